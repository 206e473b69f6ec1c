package vmimages

import (
	_ "embed"
	"fmt"
	"regexp"

	"virtiofsd/harness/claim"
)

//go:embed kernels.toml
var kernelsTOML []byte

// Source says where a kernel, tool, program, peer or QEMU comes from.
type Source struct {
	Name    string   `toml:"name"`
	Suite   string   `toml:"suite"`
	Package string   `toml:"package"` // regular expression over whole names
	Files   []string `toml:"files"`   // of a program: its path in the package, first that exists
	With    []string `toml:"with"`    // packages that it needs besides its libraries
	Why     string   `toml:"why"`
}

// Table is kernels.toml.
type Table struct {
	Modules []string `toml:"modules"`
	Kernels []Source `toml:"kernel"`
	Tools   []Source `toml:"tool"`
	// Programs are for benchmarks in guests: fetched when one asks for them, and in no image.
	Programs []Source `toml:"program"`
	Peers    []Source `toml:"peer"`
	QEMUs    []Source `toml:"qemu"`
}

// Known returns the built-in table.
func Known() (Table, error) { return parse(kernelsTOML) }

func parse(b []byte) (Table, error) {
	var t Table
	if err := claim.Strict(b, &t); err != nil {
		return t, fmt.Errorf("kernels.toml: %w", err)
	}
	for _, list := range [][]Source{t.Kernels, t.Tools, t.Programs, t.Peers, t.QEMUs} {
		seen := map[string]bool{}
		for _, s := range list {
			if s.Name == "" || s.Suite == "" || s.Package == "" || seen[s.Name] {
				return t, fmt.Errorf("kernels.toml: entry %q lacks a name, suite or package, or is there twice", s.Name)
			}
			seen[s.Name] = true
			if _, err := s.pattern(); err != nil {
				return t, fmt.Errorf("kernels.toml: entry %q: %w", s.Name, err)
			}
		}
	}
	return t, nil
}

func (s Source) pattern() (*regexp.Regexp, error) { return regexp.Compile(`^(?:` + s.Package + `)$`) }

func find(list []Source, name string) (Source, bool) {
	for _, s := range list {
		if s.Name == name {
			return s, true
		}
	}
	return Source{}, false
}
