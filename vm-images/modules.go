package vmimages

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// moduleTree is a kernel's directory of modules.
type moduleTree struct {
	dir     string
	builtin map[string]bool
	files   map[string]string // module name → path
}

// openModules reads a directory such as /usr/lib/modules/6.1.0-1-amd64. An empty dir is a kernel of which nothing is known: it is taken to have
// everything built in.
func openModules(dir string) (*moduleTree, error) {
	t := &moduleTree{dir: dir, builtin: map[string]bool{}, files: map[string]string{}}
	if dir == "" {
		return t, nil
	}
	b, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read the kernel's built-in modules: %w", err)
	}
	for line := range strings.FieldsSeq(string(b)) {
		t.builtin[moduleName(line)] = true
	}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			t.files[moduleName(p)] = p
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the kernel's modules: %w", err)
	}
	return t, nil
}

// moduleName is the kernel's name of a module file: no directory, no suffix, '_' for '-'.
func moduleName(p string) string {
	n, _, _ := strings.Cut(filepath.Base(p), ".ko")
	return strings.ReplaceAll(n, "-", "_")
}

// module is one unpacked module.
type module struct {
	name string
	data []byte
}

// resolve returns the wanted modules that are not built in, and those they depend on, in an order in which each may be loaded.
func (t *moduleTree) resolve(ctx context.Context, wanted []string) ([]module, error) {
	if t.dir == "" {
		return nil, nil
	}
	var out []module
	state := map[string]int{} // 1: being resolved, 2: done
	var visit func(name, by string) error
	visit = func(name, by string) error {
		if t.builtin[name] || state[name] == 2 {
			return nil
		}
		if state[name] == 1 {
			return fmt.Errorf("module %s depends on itself through %s", name, by)
		}
		state[name] = 1
		path, ok := t.files[name]
		if !ok {
			return fmt.Errorf("kernel in %s has module %s (wanted by %s) neither built in nor as a file", t.dir, name, by)
		}
		data, err := unpack(ctx, path)
		if err != nil {
			return err
		}
		deps, err := moduleDeps(data)
		if err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
		for _, d := range deps {
			if err := visit(d, name); err != nil {
				return err
			}
		}
		state[name] = 2
		out = append(out, module{name, data})
		return nil
	}
	for _, w := range wanted {
		if err := visit(moduleName(w), "the agent"); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// moduleDeps reads "depends=" of a module's .modinfo section (NUL-terminated key=value strings; include/linux/module.h).
func moduleDeps(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo section")
	}
	b, err := s.Data()
	if err != nil {
		return nil, err
	}
	var deps []string
	for kv := range bytes.SplitSeq(b, []byte{0}) {
		v, ok := strings.CutPrefix(string(kv), "depends=")
		if !ok {
			continue
		}
		for d := range strings.SplitSeq(v, ",") {
			if d != "" {
				deps = append(deps, moduleName(d))
			}
		}
	}
	return deps, nil
}

// unpack reads a file, decompressed by its suffix. Other formats than gzip are left to apt's helper, which knows them all and is
// there wherever the package came from.
func unpack(ctx context.Context, path string) ([]byte, error) {
	switch filepath.Ext(path) {
	case ".ko":
		return os.ReadFile(path)
	case ".gz":
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", path, err)
		}
		return io.ReadAll(z)
	}
	tools := [][]string{{"/usr/lib/apt/apt-helper", "cat-file", path}, {"xz", "-dc", path}, {"zstd", "-dcq", path}}
	for _, argv := range tools {
		if strings.HasSuffix(path, ".zst") != (argv[0] == "zstd") && argv[0] != tools[0][0] {
			continue
		}
		if _, err := exec.LookPath(argv[0]); err != nil {
			continue
		}
		out, err := run(ctx, nil, "", argv...)
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", path, err)
		}
		return out, nil
	}
	return nil, fmt.Errorf("unpack %s: no program for it; remedy: install the package xz-utils or zstd", path)
}

// kernelRelease reads the release (uname -r) out of a bzImage: boot protocol ≥ 2.00, Documentation/arch/x86/boot.rst, field
// kernel_version. It returns "" for other formats.
func kernelRelease(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 64<<10)
	n, _ := io.ReadFull(f, b) // shorter files are judged by what they hold
	b = b[:n]
	if len(b) < 0x210 || string(b[0x202:0x206]) != "HdrS" {
		return ""
	}
	at := int(binary.LittleEndian.Uint16(b[0x20e:])) + 0x200
	if at >= len(b) {
		return ""
	}
	s, _, _ := bytes.Cut(b[at:], []byte{0})
	rel, _, _ := strings.Cut(string(s), " ")
	return rel
}
