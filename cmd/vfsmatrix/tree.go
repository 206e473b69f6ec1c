package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/impl"
	"virtiofsd/harness/qemu"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
	"virtiofsd/harness/verdict"
	vmimages "virtiofsd/vm-images"
)

// Folders of the tree.
const (
	scenariosDir = "scenarios"
	claimsDir    = "scenarios/claims"
	runsDir      = "runs"
)

// tree finds the tree: a folder with go.mod and scenarios/.
func (a *app) tree() (string, error) {
	is := func(dir string) bool {
		for _, name := range []string{"go.mod", claimsDir} {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				return false
			}
		}
		return true
	}
	if a.treeDir != "" {
		if !is(a.treeDir) {
			return "", usagef("--tree %s has no scenarios/claims", a.treeDir)
		}
		return filepath.Abs(a.treeDir)
	}
	var starts []string
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	if exe, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(exe))
	}
	for _, dir := range starts {
		for ; ; dir = filepath.Dir(dir) {
			if is(dir) {
				return dir, nil
			}
			if dir == "/" {
				break
			}
		}
	}
	return "", usagef("no tree with scenarios/claims above the current directory; go there, or say --tree DIR")
}

// book is all that is written down about what to test.
type book struct {
	root      string
	areas     []claim.Area
	claims    []claim.Claim
	scenarios []*scenario.Scenario
	known     []scenario.Known
}

// book reads the tree's claims, scenarios and known differences, and checks that they fit together.
func (a *app) book() (*book, error) {
	root, err := a.tree()
	if err != nil {
		return nil, err
	}
	b := &book{root: root}
	fsys := os.DirFS(root)
	if b.areas, err = claim.LoadAreas(fsys, claimsDir); err != nil {
		return nil, usageError{err}
	}
	if b.claims, err = claim.Load(fsys, claimsDir); err != nil {
		return nil, usageError{err}
	}
	if b.scenarios, err = scenario.Load(fsys, scenariosDir, b.claims); err != nil {
		return nil, usageError{err}
	}
	if b.known, err = scenario.LoadKnown(fsys, scenariosDir, b.claims); err != nil {
		return nil, usageError{err}
	}
	rules := verdict.Rules()
	for _, c := range b.claims {
		if _, ok := rules[c.Judge]; !ok {
			return nil, usagef("claim %s: there is no rule %q (rules: %s)", c.ID, c.Judge, strings.Join(sortedKeys(rules), ", "))
		}
	}
	return b, nil
}

// pick returns the scenarios of the names or patterns given, all if none is.
func (b *book) pick(patterns []string) ([]*scenario.Scenario, error) {
	if len(patterns) == 0 {
		return b.scenarios, nil
	}
	hit := map[string]bool{}
	for _, p := range patterns {
		found := false
		for _, s := range b.scenarios {
			if ok, err := filepath.Match(p, s.ID); err != nil {
				return nil, usagef("pattern %q: %w", p, err)
			} else if ok {
				hit[s.ID], found = true, true
			}
		}
		if !found {
			return nil, usagef("there is no scenario %q; vfsmatrix list shows them", p)
		}
	}
	var all []*scenario.Scenario
	for _, s := range b.scenarios {
		if hit[s.ID] {
			all = append(all, s)
		}
	}
	return all, nil
}

func (a *app) log() *slog.Logger {
	level := slog.LevelInfo
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, at slog.Attr) slog.Attr {
		if at.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return at
	}}))
}

// cache is where fetched packages stay.
func cache() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a place for fetched packages: %w; set XDG_CACHE_HOME", err)
	}
	return filepath.Join(dir, "vfsmatrix"), nil
}

func imageDirs(root string) (vmimages.Dirs, error) {
	c, err := cache()
	return vmimages.Dirs{Cache: c, Out: filepath.Join(root, "vm-images", "out"), Guest: filepath.Join(root, "bin", "vfsguest")}, err
}

// qemuHelp is the help of --qemu.
var qemuHelp = "QEMU's program, or " + strings.Join(vmimages.QEMUNames(), ", ") + " for a newer one, which is fetched"

// emulator is the program that --qemu names: one that is fetched if need be, or what was said, which has to be there unless it is the default.
func (a *app) emulator(ctx context.Context, root, said string) (string, error) {
	if !slices.Contains(vmimages.QEMUNames(), said) {
		if _, err := exec.LookPath(said); err != nil && said != "" && said != qemu.DefaultBinary {
			return "", usagef("--qemu %s is no program; name one that is there", said)
		}
		return said, nil
	}
	dirs, err := imageDirs(root)
	if err != nil {
		return "", err
	}
	return vmimages.EnsureQEMU(ctx, dirs, said, a.log())
}

// checkKernels refuses guest kernels that have neither a name nor a file.
func checkKernels(names []string) error {
	t, err := vmimages.Known()
	if err != nil {
		return err
	}
	for _, n := range names {
		if _, err := os.Stat(n); err == nil && strings.ContainsRune(n, '/') {
			continue
		}
		if !slices.ContainsFunc(t.Kernels, func(s vmimages.Source) bool { return s.Name == n }) {
			return usagef("there is no guest kernel %q; vfsmatrix list shows them, or name the path of a kernel image", n)
		}
	}
	return nil
}

func implDirs(root string, log *slog.Logger) (impl.Dirs, error) {
	c, err := cache()
	return impl.Dirs{Bin: filepath.Join(root, "bin"), Cache: c, Log: log}, err
}

// runDir is the folder of a run: the newest for "latest" or "".
func (a *app) runDir(name string) (string, error) {
	if name != "" && name != "latest" {
		if _, err := os.Stat(filepath.Join(name, result.RunFile)); err != nil {
			return "", usagef("%s: no run there; ls %s/", name, runsDir)
		}
		return name, nil
	}
	root, err := a.tree()
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(root, runsDir, "latest"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", usagef("there is no run yet; start one with vfsmatrix run")
	}
	return dir, err
}
