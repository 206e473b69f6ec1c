package vmimages

import (
	"context"
	"debug/elf"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Program is a program for guests: the files that it needs, flat in one directory, whose loader runs it anywhere.
type Program struct {
	Name, Package, Version string
	files                  map[string]string // name in the directory → path in the cache
}

// EnsureProgram fetches a program of kernels.toml with the libraries of its suite.
func EnsureProgram(ctx context.Context, dirs Dirs, name string, log *slog.Logger) (*Program, error) {
	u, err := fetch(ctx, dirs, "program", func(t Table) []Source { return t.Programs }, name, log)
	if err != nil {
		return nil, err
	}
	p := &Program{Name: name, Package: u.debs[0].Package, Version: u.debs[0].Version}
	if p.files, err = closure(u.root, u.path); err != nil {
		return nil, fmt.Errorf("program %s: %w", name, err)
	}
	p.files[name], p.files[loaderName] = u.path, u.prefix[0]
	return p, nil
}

// loaderName is the loader in a program's directory.
const loaderName = "ld-linux-x86-64.so.2"

// Argv runs the program from a directory that [Program.Install] has filled.
func (p *Program) Argv(dir string) []string {
	return []string{filepath.Join(dir, loaderName), "--library-path", dir, filepath.Join(dir, p.Name)}
}

// Install copies the program's files into a directory, which is made.
func (p *Program) Install(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("install %s: %w", p.Name, err)
	}
	for name, path := range p.files {
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o755)
		}
		if err != nil {
			return fmt.Errorf("install %s: %w", p.Name, err)
		}
	}
	return nil
}

// closure finds the libraries that a program of an unpacked suite is linked with, and those that they are: name → path. A package depends on
// more than its programs load, and a guest holds them in memory.
func closure(root, program string) (map[string]string, error) {
	found := map[string]string{}
	dirs := []string{"usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"}
	for todo := []string{program}; len(todo) > 0; {
		f, err := elf.Open(todo[0])
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", todo[0], err)
		}
		names, err := f.ImportedLibraries()
		runpath, _ := f.DynString(elf.DT_RUNPATH) // most have none
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read the libraries of %s: %w", todo[0], err)
		}
		for _, r := range runpath {
			for d := range strings.SplitSeq(r, ":") {
				if filepath.IsAbs(d) && !slices.Contains(dirs, d[1:]) {
					dirs = append(dirs, d[1:])
				}
			}
		}
		todo = todo[1:]
		for _, name := range names {
			if found[name] != "" || name == loaderName {
				continue
			}
			var all []string
			for _, d := range dirs {
				all = append(all, filepath.Join(d, name))
			}
			path, err := firstFile(root, all)
			if err != nil {
				return nil, fmt.Errorf("no package has the library %s; remedy: name its package in kernels.toml (with)", name)
			}
			found[name] = path
			todo = append(todo, path)
		}
	}
	return found, nil
}
