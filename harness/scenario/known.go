package scenario

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"virtiofsd/harness/claim"
)

// KnownFile is the name of the file of known differences, in the scenarios' folder.
const KnownFile = "known-differences.toml"

// Known is a difference of an implementation that has been measured and explained: where a claim fails by it, the failure is
// recorded as known and does not spoil the run. Where it does not fail any more, the entry is out of date.
type Known struct {
	Claim    string `toml:"claim"`    // an id, or a pattern of path.Match
	Impl     string `toml:"impl"`     // a name, or a pattern: "rust*"
	Scenario string `toml:"scenario"` // a pattern of path.Match
	Because  string `toml:"because"`  // what the implementation does
	Measured string `toml:"measured"` // version and what was seen
	// Sometimes marks a difference that takes luck to see, such as a race: its absence makes the entry not out of date.
	Sometimes bool `toml:"sometimes"`
}

// LoadKnown reads the known differences; a missing file means none.
func LoadKnown(fsys fs.FS, dir string, claims []claim.Claim) ([]Known, error) {
	name := path.Join(dir, KnownFile)
	b, err := fs.ReadFile(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read known differences: %w", err)
	}
	var file struct {
		Known []Known `toml:"known"`
	}
	if err := claim.Strict(b, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for _, k := range file.Known {
		for _, pattern := range []string{k.Claim, k.Impl, k.Scenario} {
			if _, err := path.Match(pattern, ""); err != nil {
				return nil, fmt.Errorf("%s: claim %s: pattern %q: %w", name, k.Claim, pattern, err)
			}
		}
		if !slices.ContainsFunc(claims, func(c claim.Claim) bool { return match(k.Claim, c.ID) }) {
			return nil, fmt.Errorf("%s: unknown claim %q", name, k.Claim)
		}
		if k.Impl == "" || k.Impl == "ours" || k.Because == "" || k.Measured == "" {
			return nil, fmt.Errorf("%s: claim %s: impl (a peer), because and measured must be said", name, k.Claim)
		}
	}
	return file.Known, nil
}

// Explains returns the known difference that explains a failure, or nil.
func Explains(all []Known, claim, impl, scenario string) *Known {
	for i, k := range all {
		if match(k.Scenario, scenario) && match(k.Claim, claim) && match(k.Impl, impl) {
			return &all[i]
		}
	}
	return nil
}

func match(pattern, s string) bool {
	ok, err := path.Match(pattern, s)
	return err == nil && ok
}
