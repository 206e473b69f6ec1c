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
	Claim    string `toml:"claim"`
	Impl     string `toml:"impl"`
	Scenario string `toml:"scenario"` // a pattern of path.Match
	Because  string `toml:"because"`  // what the implementation does
	Measured string `toml:"measured"` // version and what was seen
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
		if !slices.ContainsFunc(claims, func(c claim.Claim) bool { return c.ID == k.Claim }) {
			return nil, fmt.Errorf("%s: unknown claim %q", name, k.Claim)
		}
		if _, err := path.Match(k.Scenario, "a-root"); err != nil {
			return nil, fmt.Errorf("%s: claim %s: scenario pattern %q: %w", name, k.Claim, k.Scenario, err)
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
		if ok, _ := path.Match(k.Scenario, scenario); ok && k.Claim == claim && k.Impl == impl {
			return &all[i]
		}
	}
	return nil
}
