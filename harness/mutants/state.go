package mutants

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"virtiofsd/harness/claim"
)

// StateFile and EquivalentFile are where outcomes are, and what changes nothing, from the root of
// the tree.
const (
	StateFile      = "docs/evidence/mutants.json"
	EquivalentFile = "harness/mutants/equivalent.toml"
)

// State is what is known of all mutants.
type State struct {
	Packages []*PackageState `json:"packages"`
}

// PackageState is what is known of a package's mutants.
type PackageState struct {
	Name      string           `json:"package"`
	Tests     string           `json:"tests"` // hash of its tests, with which survivors survived
	Functions []*FunctionState `json:"functions"`
}

// FunctionState has one letter for each mutant of a function, in the order of the text.
type FunctionState struct {
	File     string `json:"file"`
	Name     string `json:"function"`
	Hash     string `json:"hash"` // of its text
	Outcomes string `json:"outcomes"`
}

// ReadState reads what is known; without a file that is nothing.
func ReadState(tree fs.FS) (*State, error) {
	b, err := fs.ReadFile(tree, StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return &State{}, nil
	}
	s := &State{}
	if err == nil {
		err = json.Unmarshal(b, s)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", StateFile, err)
	}
	return s, nil
}

// Write keeps a package's state in the tree, one function a line, so that a change is a line of a
// difference. Other runs may be adding other packages' to the file.
func (s *State) Write(root, name string) error {
	dir, err := os.Open(filepath.Join(root, filepath.Dir(StateFile)))
	if err != nil {
		return fmt.Errorf("keep outcomes: %w", err)
	}
	defer dir.Close()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("keep outcomes: lock %s: %w", dir.Name(), err)
	}
	kept, err := ReadState(os.DirFS(root))
	if err != nil {
		return err
	}
	kept.Packages = slices.DeleteFunc(kept.Packages, func(p *PackageState) bool { return p.Name == name })
	for _, p := range s.Packages {
		if p.Name == name {
			kept.Packages = append(kept.Packages, p)
		}
	}
	slices.SortFunc(kept.Packages, func(a, b *PackageState) int { return slices.Index(Packages, a.Name) - slices.Index(Packages, b.Name) })
	return kept.write(root)
}

func (s *State) write(root string) error {
	var b strings.Builder
	b.WriteString("{\"packages\": [")
	for i, p := range s.Packages {
		fmt.Fprintf(&b, "%s\n{\"package\": %q, \"tests\": %q, \"functions\": [", comma(i), p.Name, p.Tests)
		for j, f := range p.Functions {
			line, err := json.Marshal(f)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%s\n  %s", comma(j), line)
		}
		b.WriteString("]}")
	}
	b.WriteString("]}\n")
	at := filepath.Join(root, StateFile)
	if err := os.WriteFile(at+".new", []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("keep outcomes: %w", err)
	}
	return os.Rename(at+".new", at)
}

func comma(i int) string {
	if i == 0 {
		return ""
	}
	return ","
}

// known is a package's outcomes while it is run.
type known struct {
	state map[*Function]*FunctionState
	place map[*Mutant]func() (*FunctionState, int)
}

func (k *known) get(m *Mutant) Outcome {
	f, i := k.place[m]()
	return Outcome(f.Outcomes[i])
}

func (k *known) set(m *Mutant, o Outcome) {
	f, i := k.place[m]()
	f.Outcomes = f.Outcomes[:i] + string(rune(o)) + f.Outcomes[i+1:]
}

// of makes the state that of a package as it is now: what does not hold any more is forgotten.
func (s *State) of(p *Package, reasons map[*Mutant]string, tests string) *known {
	var at *PackageState
	for _, one := range s.Packages {
		if one.Name == p.Name {
			at = one
		}
	}
	if at == nil {
		at = &PackageState{Name: p.Name}
		s.Packages = append(s.Packages, at)
	}
	old := map[string]string{} // by file, name and text
	for _, f := range at.Functions {
		o := f.Outcomes
		if at.Tests != tests {
			o = strings.NewReplacer(string(rune(Survived)), string(rune(Unknown)), string(rune(Unreached)), string(rune(Unknown))).Replace(o)
		}
		old[f.Name+"\x00"+f.Hash] = o
	}
	at.Tests, at.Functions = tests, nil
	k := &known{map[*Function]*FunctionState{}, map[*Mutant]func() (*FunctionState, int){}}
	for _, f := range p.Functions {
		fs := &FunctionState{File: f.File, Name: f.Name, Hash: f.Hash, Outcomes: old[f.Name+"\x00"+f.Hash]}
		if len(fs.Outcomes) != len(f.Mutants) {
			fs.Outcomes = strings.Repeat(string(rune(Unknown)), len(f.Mutants))
		}
		for i, m := range f.Mutants {
			if _, listed := reasons[m]; fs.Outcomes[i] == byte(Nothing) && !listed {
				fs.Outcomes = fs.Outcomes[:i] + string(rune(Unknown)) + fs.Outcomes[i+1:]
			}
		}
		at.Functions = append(at.Functions, fs)
		for i, m := range f.Mutants {
			k.place[m] = func() (*FunctionState, int) { return fs, i }
		}
	}
	return k
}

// testHash is that of a package's tests and their data.
func testHash(root, name string) (string, error) {
	sum := sha256.New()
	dir := filepath.Join(root, "internal", name)
	err := filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if strings.HasSuffix(at, "_test.go") || strings.Contains(at, "/testdata/") {
			b, err := os.ReadFile(at)
			if err != nil {
				return err
			}
			fmt.Fprintf(sum, "%s %d\n", at[len(dir):], len(b))
			sum.Write(b)
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("mutants of %s: %w", name, err)
	}
	return hex.EncodeToString(sum.Sum(nil)[:6]), nil
}

// Equivalent is a mutant that changes nothing which a test of its package could see.
type Equivalent struct {
	Package  string `toml:"package"`
	Function string `toml:"function"`
	Old      string `toml:"old"` // stands once in the function
	New      string `toml:"new"` // what the mutant makes of it
	Reason   string `toml:"reason"`
}

// ReadEquivalents reads the list.
func ReadEquivalents(tree fs.FS) ([]Equivalent, error) {
	b, err := fs.ReadFile(tree, EquivalentFile)
	if err != nil {
		return nil, fmt.Errorf("read mutants that change nothing: %w", err)
	}
	var list struct {
		Mutants []Equivalent `toml:"mutant"`
	}
	if err := claim.Strict(b, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", EquivalentFile, err)
	}
	return list.Mutants, nil
}

// Match finds the mutants of a package that the list names: to each its reason. An entry that names
// none, or several, is an error.
func Match(p *Package, list []Equivalent) (map[*Mutant]string, error) {
	reasons := map[*Mutant]string{}
	for _, e := range list {
		if e.Package != p.Name {
			continue
		}
		if e.Reason == "" || e.Old == "" {
			return nil, fmt.Errorf("%s: %s %s: old and reason must be said", EquivalentFile, e.Package, e.Function)
		}
		n, old, changed := 0, squeeze(e.Old), squeeze(e.New)
		for _, m := range p.Mutants {
			if m.Function == e.Function && strings.Count(m.Old, old) == 1 && strings.Replace(m.Old, old, changed, 1) == m.New && reasons[m] == "" {
				reasons[m] = e.Reason
				n++
				break
			}
		}
		if n == 0 {
			return nil, fmt.Errorf("%s: %s %s: no mutant makes %q of %q, or that stands there more than once, or is listed twice", EquivalentFile, e.Package, e.Function, e.New, e.Old)
		}
	}
	return reasons, nil
}
