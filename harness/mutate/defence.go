package mutate

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"virtiofsd/harness/claim"
)

// Dir is where the tables are, in the tree.
const Dir = "harness/mutate/defences"

// Defence is one check or habit of the daemon that keeps something from happening, and how to do without it.
type Defence struct {
	Layer string   `toml:"-"`
	Name  string   `toml:"name"`  // what it does, in words
	File  string   `toml:"file"`  // from the root of the tree
	Old   string   `toml:"old"`   // occurs once in the file
	New   string   `toml:"new"`   // what compiles in its place, and does not defend
	Tests []string `toml:"tests"` // each "./package Regexp", as go test -run takes it; each must fail
	Fuzz  []string `toml:"fuzz"`  // each "./package FuzzTarget"; each must fail while it fuzzes
}

// Test is one of a defence's tests, or one of its fuzz targets.
type Test struct {
	Package, Run string
	Fuzz         bool
}

func (t Test) String() string { return t.Package + " " + t.Run }

// each returns the tests, or the fuzz targets. They were checked by Validate.
func (d Defence) each(fuzz bool) (all []Test) {
	from := d.Tests
	if fuzz {
		from = d.Fuzz
	}
	for _, s := range from {
		pkg, run, _ := strings.Cut(s, " ")
		all = append(all, Test{pkg, run, fuzz})
	}
	return all
}

// Validate checks what can be seen without the tree.
func (d Defence) Validate() error {
	switch {
	case d.Name == "" || d.File == "" || d.Old == "" || len(d.Tests)+len(d.Fuzz) == 0:
		return fmt.Errorf("defence %q: name, file, old, and tests or fuzz must be said", d.Name)
	case d.Old == d.New:
		return fmt.Errorf("defence %q: new is old", d.Name)
	}
	for _, s := range d.Tests {
		pkg, run, ok := strings.Cut(s, " ")
		if !ok || !strings.HasPrefix(pkg, "./") {
			return fmt.Errorf("defence %q: test %q is not \"./package Regexp\"", d.Name, s)
		}
		for _, part := range strings.Split(run, "/") {
			if _, err := regexp.Compile(part); err != nil {
				return fmt.Errorf("defence %q: test %q: %w", d.Name, s, err)
			}
		}
	}
	for _, s := range d.Fuzz {
		if pkg, run, _ := strings.Cut(s, " "); !strings.HasPrefix(pkg, "./") || !fuzzTarget.MatchString(run) {
			return fmt.Errorf("defence %q: fuzz target %q is not \"./package FuzzTarget\"", d.Name, s)
		}
	}
	return nil
}

var fuzzTarget = regexp.MustCompile(`^Fuzz\w+$`)

// Without returns the defence's file without it.
func (d Defence) Without(src []byte) ([]byte, error) {
	if n := bytes.Count(src, []byte(d.Old)); n != 1 {
		return nil, fmt.Errorf("defence %q: its text occurs %d times in %s, not once; adapt the entry in %s/%s.toml", d.Name, n, d.File, Dir, d.Layer)
	}
	return bytes.Replace(src, []byte(d.Old), []byte(d.New), 1), nil
}

// Load reads all tables of the tree, in the order of their names. An unknown key is an error that shows its line.
func Load(tree fs.FS) ([]Defence, error) {
	names, err := fs.Glob(tree, path.Join(Dir, "*.toml"))
	if err != nil {
		return nil, fmt.Errorf("list defences in %s: %w", Dir, err)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no defences in %s", Dir)
	}
	var all []Defence
	seen := map[string]bool{}
	for _, name := range names {
		b, err := fs.ReadFile(tree, name)
		if err != nil {
			return nil, fmt.Errorf("read defences: %w", err)
		}
		var table struct {
			Defences []Defence `toml:"defence"`
		}
		if err := claim.Strict(b, &table); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, d := range table.Defences {
			d.Layer = strings.TrimSuffix(path.Base(name), ".toml")
			if err := d.Validate(); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if seen[d.Name] {
				return nil, fmt.Errorf("%s: defence %q stands there twice", name, d.Name)
			}
			seen[d.Name] = true
			all = append(all, d)
		}
	}
	return all, nil
}
