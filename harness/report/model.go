package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/impl"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
)

// state is what is known of one claim for one scenario and one implementation. The order is that of attention: of several kernels'
// states the lowest counts.
type state int

const (
	stError   state = iota // the harness or the machine failed
	stFail                 // not as expected, and nobody knew
	stKnown                // not as expected, as measured before
	stUnknown              // no record, or one that was judged against another expectation
	stSkip                 // not looked at, for a reason
	stRefused              // as expected: the daemon refuses
	stAbsent               // as expected: the claim is not true in this mode
	stHolds                // as expected: the claim is true
	stNone                 // the scenario says nothing of the claim for this implementation
)

// look is how a state is shown.
type look struct {
	Sign, Word, Class, Means string
}

var looks = map[state]look{
	stHolds:   {"✓", "holds", "holds", "shown: the claim holds"},
	stAbsent:  {"○", "absent", "absent", "shown absent: this mode does not give it"},
	stRefused: {"■", "refused", "refused", "shown: the daemon refuses to start, as it should"},
	stKnown:   {"≠", "known", "known", "fails: a known difference of this daemon"},
	stFail:    {"✗", "fails", "fail", "fails, or holds against the expectation"},
	stError:   {"!", "error", "error", "the harness failed: nothing is known"},
	stSkip:    {"–", "skipped", "skip", "not looked at, for a reason"},
	stUnknown: {"?", "not shown yet", "unknown", "not shown yet: no record"},
	stNone:    {"", "", "none", "the scenario says nothing about it"},
}

func (s state) look() look { return looks[s] }

// shown reports whether the state is a proof of what the scenario expects.
func (s state) shown() bool { return s == stHolds || s == stAbsent || s == stRefused }

// stateOf is the state of one record.
func stateOf(r result.Record) state {
	switch r.Verdict {
	case result.Pass:
		switch scenario.Outcome(r.Observed) {
		case scenario.Absent:
			return stAbsent
		case scenario.Refused:
			return stRefused
		}
		return stHolds
	case result.Fail:
		if r.Known != "" {
			return stKnown
		}
		return stFail
	case result.Skip:
		return stSkip
	}
	return stError
}

// entry is a record with its place.
type entry struct {
	result.Record
	Line  int // in results.jsonl, from 1
	State state
}

// spot is one claim for one scenario and one implementation.
type spot struct {
	Claim, Scenario, Impl string
	State                 state
	Expect                *scenario.Expect // nil: the scenario says nothing of it
	Entries               []entry          // by kernel; only those that count
}

// book is all that pages are made from.
type book struct {
	run       *result.Stored // nil: nothing was measured
	areas     []claim.Area
	claims    []claim.Claim
	scenarios []*scenario.Scenario
	known     []scenario.Known
	impls     []string // columns: those that are measured or missing, ours first
	records   map[[3]string][]entry
	cells     map[result.CellID]result.Cell
}

func newBook(run *result.Stored, claims []claim.Claim, areas []claim.Area, scenarios []*scenario.Scenario, known []scenario.Known) *book {
	b := &book{
		run: run, areas: areas, claims: claims, scenarios: scenarios, known: known,
		records: map[[3]string][]entry{}, cells: map[result.CellID]result.Cell{},
	}
	if run == nil {
		b.impls = []string{impl.DialectOurs}
		return b
	}
	b.impls = implsOf(run)
	for _, c := range run.Cells {
		b.cells[c.CellID] = c
	}
	for i, r := range run.Records {
		key := [3]string{r.Claim, r.Scenario, r.Impl}
		b.records[key] = append(b.records[key], entry{r, i + 1, stateOf(r)})
	}
	for _, all := range b.records {
		slices.SortFunc(all, func(x, y entry) int { return compareVersions(x.Kernel, y.Kernel) })
	}
	return b
}

// implsOf lists a run's implementations: the known names in their order, then others by name.
func implsOf(run *result.Stored) []string {
	set := map[string]bool{}
	for _, c := range run.Cells {
		set[c.Impl] = true
	}
	for _, r := range run.Records {
		set[r.Impl] = true
	}
	rank := func(name string) int {
		if i := slices.Index(impl.Names(), name); i >= 0 {
			return i
		}
		return len(impl.Names())
	}
	return slices.SortedFunc(maps.Keys(set), func(x, y string) int {
		return cmp.Or(cmp.Compare(rank(x), rank(y)), cmp.Compare(x, y))
	})
}

// compareVersions orders 6.1 before 6.12, and 6.9 before both.
func compareVersions(x, y string) int {
	a, b := strings.Split(x, "."), strings.Split(y, ".")
	for i := range min(len(a), len(b)) {
		c := cmp.Compare(a[i], b[i])
		if len(a[i]) != len(b[i]) {
			c = cmp.Compare(len(a[i]), len(b[i]))
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

// spot says what is known of a claim. A record counts if it was judged against what the scenario expects now.
func (b *book) spot(claimID string, s *scenario.Scenario, implName string) spot {
	p := spot{Claim: claimID, Scenario: s.ID, Impl: implName, State: stNone}
	if !s.Runs(implName) {
		return p
	}
	for _, e := range s.Expectations(implName) {
		if e.Claim == claimID {
			p.Expect = &e
		}
	}
	if p.Expect == nil {
		return p
	}
	p.State = stUnknown
	for _, e := range b.records[[3]string{claimID, s.ID, implName}] {
		if e.Expected == string(p.Expect.Outcome) {
			p.Entries = append(p.Entries, e)
		}
	}
	if len(p.Entries) > 0 {
		p.State = stHolds
		for _, e := range p.Entries {
			p.State = min(p.State, e.State)
		}
	}
	return p
}

// scenario returns a scenario by id, or nil.
func (b *book) scenario(id string) *scenario.Scenario {
	for _, s := range b.scenarios {
		if s.ID == id {
			return s
		}
	}
	return nil
}

// identity returns what a run says of one of its implementations.
func (b *book) identity(implName string) result.Identity {
	if b.run != nil {
		for _, i := range b.run.Impls {
			if i.Name == implName {
				return i
			}
		}
	}
	return result.Identity{Name: implName}
}

// version is an implementation's version without the program's name, for headings.
func (b *book) version(implName string) string {
	v := strings.TrimPrefix(strings.TrimPrefix(b.identity(implName).Version, "virtiofsd "), "version ")
	v, _, _ = strings.Cut(v, " (")
	return v
}

// titles are how implementations are called in headings.
func title(implName string) string {
	switch implName {
	case "ours":
		return "ours (Go)"
	case "c":
		return "C (QEMU)"
	case "rust":
		return "Rust"
	case "rust-next":
		return "Rust (newer)"
	}
	return implName
}

// heading is title and version.
func (b *book) heading(implName string) string {
	if v := b.version(implName); v != "" && implName != "ours" {
		return title(implName) + " " + v
	}
	return title(implName)
}

// links says where a page's links lead: prefixes of paths, relative to the page.
type links struct {
	Evidence  string // of the run's folder, with a slash at the end or ""
	Scenarios string // of the scenarios' pages; "-" where there are none
	Claims    string // the claims' page; "-" where there is none
}

// record is the link of a record.
func (l links) record(e entry) string {
	return fmt.Sprintf("%s%s#L%d", l.Evidence, result.ResultsFile, e.Line)
}

// facts are the links of a record's evidence, by step.
func (b *book) facts(l links, e entry) []link {
	var all []link
	for _, ref := range e.Evidence {
		file, step, ok := strings.Cut(ref, "#")
		if !ok {
			all = append(all, link{"cell", l.Evidence + file})
			continue
		}
		for i, o := range b.run.Observations[e.CellID] {
			if o.Step == step {
				all = append(all, link{step, fmt.Sprintf("%s%s#L%d", l.Evidence, file, i+1)})
			}
		}
	}
	return all
}

// link is a text with its target.
type link struct{ Text, URL string }
