package verdict

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
)

// StartClaim is judged even where the daemon did not start.
const StartClaim = "start/ready"

// Finding is what a rule found. Its zero value is invalid.
type Finding struct {
	State State
	Saw   string          // one line
	Skip  result.SkipWord // for [Neither]
}

// State says whether a claim holds.
type State int

// The states.
const (
	_        State = iota
	Holds          // true here
	Violated       // false here
	Neither        // cannot be told here, for the reason of Finding.Skip
	Failed         // a guest's call gave no facts: whatever is expected of the claim, the daemon failed
	Broken         // we could not look: an error of the harness
)

// Rule reads the facts of a cell. of narrows it to the names that the claim gives.
type Rule func(v *View, of []string) Finding

// View is what a rule may look at.
type View struct {
	Scenario     *scenario.Scenario
	Cell         result.Cell
	Observations []result.Observation
}

// facts decodes the last observation of a probe. The second result is nil, or the finding to return at once.
func facts[T any](v *View, probe string) (*T, *Finding) {
	return factsOf[T](v, probe, func(result.Observation) bool { return true })
}

// factsOf is facts among the observations that match.
func factsOf[T any](v *View, probe string, match func(result.Observation) bool) (*T, *Finding) {
	for _, o := range slices.Backward(v.Observations) {
		if o.Probe != probe || !match(o) {
			continue
		}
		if o.Error != "" {
			if o.Where == result.Guest {
				return nil, &Finding{State: Failed, Saw: fmt.Sprintf("%s did not finish in the guest: %s", o.Step, o.Error)}
			}
			if o.Gone {
				return nil, &Finding{State: Failed, Saw: fmt.Sprintf("the daemon had ended before step %s", o.Step)}
			}
			return nil, &Finding{State: Broken, Saw: fmt.Sprintf("the host's probe %s failed: %s", o.Step, o.Error)}
		}
		var t T
		if err := json.Unmarshal(o.Facts, &t); err != nil {
			return nil, &Finding{State: Broken, Saw: fmt.Sprintf("the facts of %s do not decode: %v", o.Step, err)}
		}
		return &t, nil
	}
	return nil, &Finding{State: Broken, Saw: fmt.Sprintf("there is no observation of the probe %s", probe)}
}

// Judge judges one claim in one cell: a pure function of its arguments, which knows nothing of known differences.
func Judge(c claim.Claim, e scenario.Expect, v *View) (result.Verdict, string, result.SkipWord) {
	cell := v.Cell
	switch cell.Status {
	case result.CellSkipped:
		return result.Skip, cell.Reason, cell.Skip
	case result.CellBroken:
		return result.Error, cell.Reason, ""
	case result.CellRefused:
		switch {
		case e.Outcome == scenario.Refused && strings.Contains(cell.Reason, e.Says):
			return result.Pass, "refused: " + cell.Reason, ""
		case e.Outcome == scenario.Refused:
			return result.Fail, fmt.Sprintf("refused, but without %q: %s", e.Says, cell.Reason), ""
		case c.ID == StartClaim:
			// An expected absence of start would be a refusal, which has its own word.
			return result.Fail, "did not start: " + cell.Reason, ""
		}
		return result.Skip, "the daemon did not start", result.SkipRefused
	case result.CellRan:
	default:
		return result.Error, fmt.Sprintf("the cell has the unknown status %q", cell.Status), ""
	}
	if e.Outcome == scenario.Refused {
		return result.Fail, fmt.Sprintf("started, though it has to refuse with %q", e.Says), ""
	}
	rule, ok := Rules()[c.Judge]
	if !ok {
		return result.Error, fmt.Sprintf("claim %s: there is no rule %q", c.ID, c.Judge), ""
	}
	f := rule.Func(v, c.Of)
	saw := oneLine(f.Saw)
	switch {
	case f.State == Failed:
		return result.Fail, saw, ""
	case f.State == Neither && slices.Contains(result.SkipWords(), f.Skip):
		return result.Skip, saw, f.Skip
	case f.State == Holds && e.Outcome == scenario.Holds, f.State == Violated && e.Outcome == scenario.Absent:
		return result.Pass, saw, ""
	case f.State == Holds && e.Outcome == scenario.Absent:
		return result.Fail, "holds, though it is expected to be absent: " + saw, ""
	case f.State == Violated && e.Outcome == scenario.Holds:
		return result.Fail, saw, ""
	case f.State == Broken:
		return result.Error, saw, ""
	}
	return result.Error, fmt.Sprintf("rule %s found nothing that can be judged (state %d, expected %q): %s", c.Judge, f.State, e.Outcome, saw), ""
}

// observed is the word for what was seen.
func observed(v result.Verdict, e scenario.Expect, status result.CellStatus) string {
	switch {
	case v == result.Skip || v == result.Error:
		return ""
	case status == result.CellRefused:
		return string(scenario.Refused)
	case v == result.Pass:
		return string(e.Outcome)
	case e.Outcome == scenario.Absent:
		return string(scenario.Holds)
	case e.Outcome == scenario.Refused:
		return "started"
	}
	return "violated"
}

// JudgeCell judges every expectation of a scenario in one cell.
func JudgeCell(s *scenario.Scenario, claims []claim.Claim, known []scenario.Known, cell result.Cell, obs []result.Observation) []result.Record {
	v := &View{Scenario: s, Cell: cell, Observations: obs}
	var all []result.Record
	for _, e := range s.Expectations(cell.Impl) {
		r := result.Record{Claim: e.Claim, CellID: cell.CellID, Expected: string(e.Outcome)}
		i := slices.IndexFunc(claims, func(c claim.Claim) bool { return c.ID == e.Claim })
		if i < 0 {
			r.Verdict, r.Because = result.Error, "there is no such claim"
		} else {
			r.Verdict, r.Because, r.Skip = Judge(claims[i], e, v)
			r.Evidence = evidence(claims[i], cell, obs)
		}
		if r.Verdict == result.Skip && r.Skip == "" {
			r.Verdict, r.Because = result.Error, "skipped without a reason: "+r.Because
		}
		r.Observed = observed(r.Verdict, e, cell.Status)
		if k := scenario.Explains(known, e.Claim, cell.Impl, s.ID); k != nil {
			switch r.Verdict {
			case result.Fail:
				r.Known = k.Because
			case result.Pass:
				if !k.Sometimes {
					r.Verdict = result.Fail
					r.Because = "as expected, though known-differences.toml says otherwise: the entry is out of date. " + r.Because
				}
			}
		}
		all = append(all, r)
	}
	return all
}

// evidence names the observations that a claim rests on.
func evidence(c claim.Claim, cell result.Cell, obs []result.Observation) []string {
	var all []string
	for _, o := range obs {
		if slices.Contains(c.Probe, o.Probe) {
			all = append(all, cell.Dir()+"/"+result.ObservationsFile+"#"+o.Step)
		}
	}
	if len(all) == 0 {
		all = append(all, cell.Dir()+"/"+result.CellFile)
	}
	return all
}

// oneLine joins lines and bounds the length.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 300 {
		s = string(r[:297]) + "..."
	}
	return s
}

// some joins at most n of the items, with a count of the rest.
func some(items []string, n int) string {
	if len(items) <= n {
		return strings.Join(items, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(items[:n], "; "), len(items)-n)
}
