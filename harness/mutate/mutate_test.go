package mutate_test

import (
	"context"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/mutate"
)

// Every entry fits the tree: its text is there once, what is left is Go, and each test that it names exists.
func TestEntriesFitTheTree(t *testing.T) {
	root := "../.."
	defences, err := mutate.Load(os.DirFS(root))
	require.NoError(t, err)
	tests := map[string]string{} // package to its test functions' names, one a line
	for _, d := range defences {
		src, err := os.ReadFile(filepath.Join(root, d.File))
		require.NoError(t, err, d.Name)
		src, err = d.Without(src)
		if !assert.NoError(t, err) {
			continue
		}
		_, err = parser.ParseFile(token.NewFileSet(), d.File, src, 0)
		assert.NoError(t, err, d.Name)
		for _, s := range slices.Concat(d.Tests, d.Fuzz) {
			pkg, run, _ := strings.Cut(s, " ")
			if _, ok := tests[pkg]; !ok {
				tests[pkg] = testsOf(t, filepath.Join(root, pkg))
			}
			top, _, _ := strings.Cut(run, "/")
			re, err := regexp.Compile("(?m)" + top)
			require.NoError(t, err, d.Name)
			assert.Regexp(t, re, tests[pkg], "%s: %s", d.Name, s)
		}
	}
}

var function = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)

func testsOf(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	require.NoError(t, err)
	var names []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		for _, m := range function.FindAllStringSubmatch(string(b), -1) {
			names = append(names, m[1])
		}
	}
	return strings.Join(names, "\n")
}

// A test that sees its defence go is red, one that does not is green, and what teaches nothing is broken.
func TestProve(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module small\n\ngo 1.26\n",
		"a/a.go": "package a\n\nfunc Half(n int) int {\n\tif n < 0 {\n\t\treturn 0\n\t}\n\treturn n / 2\n}\n",
		"a/a_test.go": `package a

import "testing"

func TestNegative(t *testing.T) {
	if Half(-4) != 0 {
		t.Fatal()
	}
}

func TestPositive(t *testing.T) {
	if Half(4) != 2 {
		t.Fatal()
	}
}

func TestWrong(t *testing.T) { t.Fatal() }

func FuzzHalf(f *testing.F) {
	f.Add(5)
	f.Fuzz(func(t *testing.T, n int) {
		if got := Half(n); got < 0 {
			t.Fatal(got)
		}
	})
}

func FuzzNothing(f *testing.F) { f.Fuzz(func(t *testing.T, n int) { Half(n) }) }
`,
	} {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	d := mutate.Defence{Name: "keeps out what is negative", File: "a/a.go", Old: "n < 0", New: "false",
		Tests: []string{"./a TestNegative", "./a TestPositive", "./a TestWrong", "./a TestNone"}}
	unbuilt := mutate.Defence{Name: "unbuilt", File: "a/a.go", Old: "n < 0", New: "nothing", Tests: []string{"./a TestNegative"}}
	var told []mutate.Result
	all, err := mutate.Prove(context.Background(), root, []mutate.Defence{d, unbuilt}, 0, func(r mutate.Result) { told = append(told, r) })
	require.NoError(t, err)
	assert.Equal(t, all, told)
	var got []mutate.Outcome
	for _, r := range all {
		got = append(got, r.Outcome)
	}
	assert.Equal(t, []mutate.Outcome{mutate.Red, mutate.Green, mutate.Broken, mutate.Broken, mutate.Broken}, got)
	assert.Equal(t, "TestNegative", all[0].Detail)
	assert.Contains(t, all[2].Detail, "fails with the defence, too")
	assert.Contains(t, all[4].Detail, "does not build")

	d.Fuzz = []string{"./a FuzzHalf", "./a FuzzNothing"}
	all, err = mutate.Prove(context.Background(), root, []mutate.Defence{d, unbuilt}, 3*time.Second, func(mutate.Result) {})
	require.NoError(t, err)
	require.Len(t, all, 2, "an entry without targets is left out")
	assert.Equal(t, mutate.Red, all[0].Outcome, all[0].Detail)
	assert.Contains(t, all[0].Detail, "drawn, after")
	assert.Less(t, all[0].Took, 3*time.Second)
	assert.Equal(t, mutate.Green, all[1].Outcome, all[1].Detail)
	assert.NoDirExists(t, filepath.Join(root, "a", "testdata"), "what failed is no part of the tree")

	var table strings.Builder
	mutate.WriteTable(&table, all)
	assert.Contains(t, table.String(), "1 defences taken out one by one: 1 of 2 tests are red")
}

func TestEntriesAreRefused(t *testing.T) {
	good := mutate.Defence{Name: "n", File: "f", Old: "a", New: "b", Tests: []string{"./p Test"}}
	require.NoError(t, good.Validate())
	for name, change := range map[string]func(*mutate.Defence){
		"no file":         func(d *mutate.Defence) { d.File = "" },
		"no change":       func(d *mutate.Defence) { d.New = d.Old },
		"no tests":        func(d *mutate.Defence) { d.Tests = nil },
		"no target":       func(d *mutate.Defence) { d.Fuzz = []string{"./p Test"} },
		"no package":      func(d *mutate.Defence) { d.Tests = []string{"Test"} },
		"no expression":   func(d *mutate.Defence) { d.Tests = []string{"./p Test("} },
		"package outside": func(d *mutate.Defence) { d.Tests = []string{"/p Test"} },
	} {
		bad := good
		change(&bad)
		assert.Error(t, bad.Validate(), name)
	}
	_, err := good.Without([]byte("a a"))
	assert.ErrorContains(t, err, "2 times")
}
