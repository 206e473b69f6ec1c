package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"virtiofsd/harness/result"
)

// faultsFile is the adopted run of the self-test.
const faultsFile = evidenceDir + "/selftest.json"

// Faults is a whole run of the self-test: what was planted, and what it was found by.
type Faults struct {
	Daemon string  `json:"daemon"` // the honest one's name and version
	Guest  string  `json:"guest"`  // the guest's kernel
	Found  []Fault `json:"found"`
}

// Fault is a planted fault that was caught.
type Fault struct {
	Name  string   `json:"name"`
	Does  string   `json:"does"` // to follow "the daemon"
	Claim string   `json:"claim"`
	Also  []string `json:"also,omitempty"` // other claims that it violated, as it may
	Saw   string   `json:"saw"`
}

// AdoptFaults makes a run of the self-test, in runDir, the evidence under root. Paths of the machine become words, as [Adopt] has it.
func AdoptFaults(f Faults, runDir, root string) error {
	b, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return fmt.Errorf("adopt the self-test: %w", err)
	}
	file := filepath.Join(root, filepath.FromSlash(faultsFile))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("adopt the self-test: %w", err)
	}
	if err := os.WriteFile(file, append(newNormaliser(&result.Stored{}, runDir, root).apply(b), '\n'), 0o644); err != nil {
		return fmt.Errorf("adopt the self-test: %w", err)
	}
	return nil
}

// LoadFaults reads the adopted run of the self-test from a tree; nil where there is none.
func LoadFaults(tree fs.FS) (*Faults, error) {
	b, err := fs.ReadFile(tree, faultsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the self-test: %w", err)
	}
	f := &Faults{}
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("read %s: %w; remedy: vfsmatrix selftest --adopt", faultsFile, err)
	}
	return f, nil
}

// Find is what was seen of a fault; f may be nil.
func (f *Faults) Find(name string) (Fault, bool) {
	if f != nil {
		for _, x := range f.Found {
			if x.Name == name {
				return x, true
			}
		}
	}
	return Fault{}, false
}

// of are the faults that a claim found.
func (f *Faults) of(claim string) (out []Fault) {
	if f == nil {
		return nil
	}
	for _, x := range f.Found {
		if x.Claim == claim {
			out = append(out, x)
		}
	}
	return out
}

// faultsPage is the page of the self-test; f may be nil.
func (b *book) faultsPage(f *Faults) string {
	var s strings.Builder
	s.WriteString(generatedNote + "# Planted faults\n\n")
	if f == nil {
		s.WriteString("None has been planted yet: `make selftest`, then `bin/vfsmatrix selftest --adopt` as root.\n")
		return s.String()
	}
	fmt.Fprintf(&s, "A harness that cannot fail proves nothing. So faults are planted in the real daemon (%s, guest kernel %s), one at a time: in its command line, "+
		"before it starts, or in its system calls, which a tracer leaves out, answers or changes. The claim that names the fault must fail; other claims may fail only if the fault "+
		"breaks them too. An honest daemon, wrapped and traced in the same way, violates none. Run it yourself: `make selftest`.\n\n", f.Daemon, f.Guest)
	var rows [][]string
	falsified := map[string]bool{}
	for _, x := range f.Found {
		also := "–"
		if len(x.Also) > 0 {
			also = code(x.Also)
		}
		falsified[x.Claim] = true
		rows = append(rows, []string{"`" + x.Name + "`", "the daemon " + plain(x.Does), fmt.Sprintf("[%s](claims.md#%s)", x.Claim, strings.ReplaceAll(x.Claim, "/", "-")), plain(x.Saw), also})
	}
	mdTable(&s, []string{"fault", "what it does", "found by", "as", "violated as well"}, rows)
	var never []string
	for _, c := range b.claims {
		if !falsified[c.ID] && len(c.FalsifiedBy) == 0 {
			never = append(never, fmt.Sprintf("[%s](claims.md#%s)", c.ID, c.Anchor()))
		}
	}
	if len(never) > 0 {
		fmt.Fprintf(&s, "\n%d of %d claims were not seen to fail in this way, neither with a fault of this table nor with what their text names: %s.\n", len(never), len(b.claims), strings.Join(never, ", "))
	}
	return s.String()
}
