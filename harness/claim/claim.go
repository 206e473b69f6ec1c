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

// Area is one file of claims.
type Area struct {
	Name   string  `toml:"area"`  // the first word of its claims' ids, and the file's name
	Title  string  `toml:"title"` // a few words, for headings
	About  string  `toml:"about"` // one or two sentences: what the area is about
	Claims []Claim `toml:"claim"`
}

// Claim is one sentence about a daemon.
type Claim struct {
	ID          string          `toml:"id"`     // a path of words, such as containment/dotdot
	Must        string          `toml:"must"`   // one sentence with MUST or MUST NOT
	Why         string          `toml:"why"`    // what happens otherwise
	Source      []string        `toml:"source"` // specification, man page, issue, CVE
	Probe       []string        `toml:"probe"`  // guest calls and host probes whose facts decide
	Judge       string          `toml:"judge"`  // the rule of package verdict that reads the facts
	Of          []string        `toml:"of"`     // narrows the rule to these names (checks, attempts, capabilities …); its meaning is the rule's
	FalsifiedBy []Falsification `toml:"falsified_by"`
	File        string          `toml:"-"` // where it stands
}

// Falsification is something on which the claim was seen to fail.
type Falsification struct {
	By   string `toml:"by"`   // "fault NAME" of the self-test, "removed DEFENCE" of our daemon, or a daemon with its version
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
	case c.Judge == "":
		return fmt.Errorf("claim %s: judge names no rule", c.ID)
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

// Anchor is the id as the fragment of a link.
func (c Claim) Anchor() string { return strings.ReplaceAll(c.ID, "/", "-") }

// Load reads all claims of a folder's *.toml files, sorted by id. An unknown key is an error that says where it stands.
func Load(fsys fs.FS, dir string) ([]Claim, error) {
	areas, err := LoadAreas(fsys, dir)
	if err != nil {
		return nil, err
	}
	var all []Claim
	for _, a := range areas {
		all = append(all, a.Claims...)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].ID < all[j].ID })
	return all, nil
}

// LoadAreas reads a folder's *.toml files, sorted by name, claims in the order of the file.
func LoadAreas(fsys fs.FS, dir string) ([]Area, error) {
	names, err := fs.Glob(fsys, path.Join(dir, "*.toml"))
	if err != nil {
		return nil, fmt.Errorf("list claims in %s: %w", dir, err)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no claims in %s", dir)
	}
	var all []Area
	seen := map[string]string{}
	for _, name := range names {
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("read claims: %w", err)
		}
		var area Area
		if err := Strict(b, &area); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if area.Name != strings.TrimSuffix(path.Base(name), ".toml") || area.Title == "" || area.About == "" {
			return nil, fmt.Errorf("%s: area must be the file's name, and title and about must be said", name)
		}
		for i := range area.Claims {
			c := &area.Claims[i]
			c.File = name
			if err := c.Validate(); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if c.Area() != area.Name {
				return nil, fmt.Errorf("%s: claim %s is not of this area", name, c.ID)
			}
			if other, twice := seen[c.ID]; twice {
				return nil, fmt.Errorf("%s: claim %s stands in %s, too", name, c.ID, other)
			}
			seen[c.ID] = name
		}
		all = append(all, area)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all, nil
}

// Strict decodes TOML; an unknown key and a syntax error are reported in one line, with their place.
func Strict(b []byte, v any) error {
	d := toml.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	var missing *toml.StrictMissingError
	if errors.As(err, &missing) {
		e := missing.Errors[0]
		row, col := e.Position()
		return fmt.Errorf("line %d, column %d: unknown key %q", row, col, strings.Join(e.Key(), "."))
	}
	var syntax *toml.DecodeError
	if errors.As(err, &syntax) {
		row, col := syntax.Position()
		return fmt.Errorf("line %d, column %d: %w", row, col, err)
	}
	return err
}
