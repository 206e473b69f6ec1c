package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const module = "virtiofsd"

// file is one parsed Go file of the tree; dir and name use slashes, relative to the module's root.
type file struct {
	dir, name string
	ast       *ast.File
	src       []byte
}

func (f file) test() bool { return strings.HasSuffix(f.name, "_test.go") }

func (f file) imports() []string {
	var all []string
	for _, i := range f.ast.Imports {
		all = append(all, strings.Trim(i.Path.Value, `"`))
	}
	return all
}

// root is the module's root, two levels above this package.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "go.mod"))
	return dir
}

// load parses every Go file of the tree, except what builds and runs leave behind.
func load(t *testing.T) []file {
	t.Helper()
	var files []file
	top := root(t)
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(top, p)
		if d.IsDir() {
			if slices.Contains([]string{".git", "bin", "runs", "vm-images/out"}, rel) || d.Name() == "testdata" {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), p, src, parser.ParseComments)
		if err != nil {
			return err
		}
		files = append(files, file{dir: filepath.ToSlash(filepath.Dir(rel)), name: d.Name(), ast: parsed, src: src})
		return nil
	})
	require.NoError(t, err)
	require.NotEmpty(t, files)
	return files
}

// allowed says which packages of this module a package may import; known is false for a package that has no place in the tables.
func allowed(dir string) (may func(string) bool, known bool) {
	daemonAt := func(p string) int { return slices.Index(daemonOrder, p) }
	layerOf := func(p string) int {
		return slices.IndexFunc(harnessOrder, func(l []string) bool { return slices.Contains(l, p) })
	}
	switch {
	case daemonAt(dir) >= 0:
		return func(p string) bool { return daemonAt(p) >= 0 && daemonAt(p) < daemonAt(dir) }, true
	case layerOf(dir) >= 0:
		return func(p string) bool {
			return slices.Contains(sharedWithHarness, p) || layerOf(p) >= 0 && layerOf(p) <= layerOf(dir)
		}, true
	case dir == "cmd/virtiofsd":
		return func(p string) bool { return daemonAt(p) >= 0 }, true
	case dir == "cmd/vfsmatrix":
		return func(p string) bool { return layerOf(p) >= 0 }, true
	case dir == "cmd/vfsguest":
		return func(p string) bool {
			return slices.Contains([]string{"harness/guestproto", "harness/workload"}, p)
		}, true
	case dir == "internal/testenv", dir == "internal/archtest":
		return func(string) bool { return false }, true
	}
	return nil, false
}

func TestImportsFollowTheLattice(t *testing.T) {
	for _, f := range load(t) {
		may, known := allowed(f.dir)
		if !assert.True(t, known, "package %s has no place in the import lattice: give it one in internal/archtest/lattice_test.go", f.dir) {
			continue
		}
		if f.test() {
			continue // a test may look at anything; TestHarnessIsBlackBox still binds the harness
		}
		for _, imp := range f.imports() {
			if p, ok := strings.CutPrefix(imp, module+"/"); ok && p != f.dir {
				assert.True(t, may(p), "%s/%s imports %s, which stands above it or apart from it", f.dir, f.name, p)
			}
		}
	}
}

func TestHarnessIsBlackBox(t *testing.T) {
	for _, f := range load(t) {
		if !strings.HasPrefix(f.dir, "harness/") && f.dir != "vm-images" {
			continue
		}
		for _, imp := range f.imports() {
			p, ok := strings.CutPrefix(imp, module+"/internal/")
			if !ok || p == "testenv" && f.test() {
				continue
			}
			assert.Contains(t, sharedWithHarness, "internal/"+p, "%s/%s imports the daemon's inside", f.dir, f.name)
		}
	}
}

func TestUnsafeStandsApart(t *testing.T) {
	for _, f := range load(t) {
		if !slices.Contains(f.imports(), "unsafe") {
			continue
		}
		base := strings.TrimSuffix(strings.TrimSuffix(f.name, ".go"), "_test")
		assert.True(t, regexp.MustCompile(`_unsafe(_[a-z0-9]+)?$`).MatchString(base), "%s/%s imports unsafe: such files are named *_unsafe.go", f.dir, f.name)
		assert.Contains(t, unsafeDirs, f.dir, "%s/%s imports unsafe", f.dir, f.name)
	}
}

func TestLibrariesNeverExit(t *testing.T) {
	for _, f := range load(t) {
		if f.test() || strings.HasPrefix(f.dir, "cmd/") || f.ast.Name.Name == "main" {
			continue
		}
		assert.NotContains(t, f.imports(), "flag", "%s/%s reads flags", f.dir, f.name)
		ast.Inspect(f.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Obj == nil {
				assert.NotContains(t, exits[pkg.Name], sel.Sel.Name, "%s/%s calls %s.%s: a library returns errors", f.dir, f.name, pkg.Name, sel.Sel.Name)
			}
			return true
		})
	}
}

func TestEveryPackageTellsItsStory(t *testing.T) {
	seen := map[string]bool{}
	story := map[string]string{}
	for _, f := range load(t) {
		if f.test() {
			continue
		}
		seen[f.dir] = true
		if f.ast.Doc != nil {
			assert.True(t, f.name == "doc.go" || f.ast.Name.Name == "main", "%s/%s: the package comment stands in doc.go", f.dir, f.name)
			story[f.dir] += f.ast.Doc.Text()
		}
	}
	for dir := range seen {
		assert.Greater(t, len(story[dir]), 120, "%s has no package comment that explains it", dir)
	}
}

func TestGofmt(t *testing.T) {
	for _, f := range load(t) {
		want, err := format.Source(f.src)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(want, f.src), "%s/%s is not formatted: run 'make fix-gofmt'", f.dir, f.name)
	}
}

func TestDaemonStaysLean(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-json=Module", "./cmd/virtiofsd")
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	require.NoError(t, err)
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct{ Module *struct{ Path string } }
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		if p.Module != nil && p.Module.Path != module {
			assert.Contains(t, daemonModules, p.Module.Path, "cmd/virtiofsd links a module that is not on the list")
		}
	}
}

// machineWords are what must never be committed: work markers, and places of the machine that the tree was written on.
var machineWords = regexp.MustCompile(`\b(TODO|FIXME|XXX)\b|/home/[a-z]+/`)

func TestNoLeftovers(t *testing.T) {
	for _, f := range load(t) {
		if f.dir == "internal/archtest" {
			continue
		}
		assert.False(t, machineWords.Match(f.src), "%s: %s", path.Join(f.dir, f.name), machineWords.Find(f.src))
	}
}
