package claim

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Claim is one sentence about a daemon.
type Claim struct {
	ID          string          `toml:"id"`     // a path of words, such as containment/dotdot
	Must        string          `toml:"must"`   // one sentence with MUST or MUST NOT
	Why         string          `toml:"why"`    // what happens otherwise
	Source      []string        `toml:"source"` // specification, man page, issue, CVE
	Probe       []string        `toml:"probe"`  // guest calls and host probes whose facts decide
	FalsifiedBy []Falsification `toml:"falsified_by"`
	File        string          `toml:"-"` // where it stands
}

// Falsification is something on which the claim was seen to fail.
type Falsification struct {
	By   string `toml:"by"`   // a planted fault of the self-test, or a daemon with its version
	Seen string `toml:"seen"` // what the probe reported
}

var idForm = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*(/[a-z0-9]+(-[a-z0-9]+)*)+$`)

// Validate checks the form of a claim.
func (c Claim) Validate() error {
	switch {
	case !idForm.MatchString(c.ID):
		return fmt.Errorf("claim id %q: want a path of words such as containment/dotdot", c.ID)
	case !strings.Contains(c.Must, "MUST"):
		return fmt.Errorf("claim %s: the sentence has no MUST", c.ID)
	case !strings.HasSuffix(c.Must, "."):
		return fmt.Errorf("claim %s: the sentence has no full stop", c.ID)
	case c.Why == "":
		return fmt.Errorf("claim %s: why is empty", c.ID)
	case len(c.Source) == 0:
		return fmt.Errorf("claim %s: source is empty", c.ID)
	case len(c.Probe) == 0:
		return fmt.Errorf("claim %s: probe is empty", c.ID)
	}
	for _, f := range c.FalsifiedBy {
		if f.By == "" || f.Seen == "" {
			return fmt.Errorf("claim %s: falsified_by wants both by and seen", c.ID)
		}
	}
	return nil
}

// Area is the id's first word.
func (c Claim) Area() string {
	area, _, _ := strings.Cut(c.ID, "/")
	return area
}

// Load reads all claims of a folder's *.toml files, sorted by id. An unknown key is an error that shows its line.
func Load(fsys fs.FS, dir string) ([]Claim, error) {
	names, err := fs.Glob(fsys, path.Join(dir, "*.toml"))
	if err != nil {
		return nil, fmt.Errorf("list claims in %s: %w", dir, err)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no claims in %s", dir)
	}
	var all []Claim
	seen := map[string]string{}
	for _, name := range names {
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("read claims: %w", err)
		}
		var file struct {
			Claim []Claim `toml:"claim"`
		}
		if err := Strict(b, &file); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, c := range file.Claim {
			c.File = name
			if err := c.Validate(); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if other, twice := seen[c.ID]; twice {
				return nil, fmt.Errorf("%s: claim %s stands in %s, too", name, c.ID, other)
			}
			seen[c.ID] = name
			all = append(all, c)
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].ID < all[j].ID })
	return all, nil
}

// Strict decodes TOML; unknown keys and syntax errors are reported with the line and a caret.
func Strict(b []byte, v any) error {
	d := toml.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	var missing *toml.StrictMissingError
	if errors.As(err, &missing) {
		return fmt.Errorf("unknown key:\n%s", missing.String())
	}
	var syntax *toml.DecodeError
	if errors.As(err, &syntax) {
		row, col := syntax.Position()
		return fmt.Errorf("line %d, column %d: %w\n%s", row, col, err, syntax.String())
	}
	return err
}
