package verdict_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/probe"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
	"virtiofsd/harness/verdict"
)

// rootClaim is judged by a rule whose facts are easily made to hold, to be violated, or to say nothing.
var rootClaim = claim.Claim{ID: "containment/root", Judge: "one-mount", Probe: []string{scenario.ProbeMounts}}

func expect(o scenario.Outcome, says string) scenario.Expect {
	return scenario.Expect{Claim: rootClaim.ID, Outcome: o, Because: "b", Says: says}
}

// TestDecisions is Judge's whole table: status of the cell × expectation × what the rule finds.
func TestDecisions(t *testing.T) {
	ran := result.Cell{Status: result.CellRan}
	refused := result.Cell{Status: result.CellRefused, Reason: "setgroups: operation not permitted"}
	skipped := result.Cell{Status: result.CellSkipped, Skip: result.SkipNeed, Reason: "root: not root"}
	broken := result.Cell{Status: result.CellBroken, Reason: "disk full"}
	holds := obs{"mounts": mounts(root)}
	violated := obs{"mounts": mounts(root, root, mountProc)}
	start := claim.Claim{ID: verdict.StartClaim, Judge: "started"}
	const absent, mustHold, mustRefuse = scenario.Absent, scenario.Holds, scenario.Refused
	for _, c := range []struct {
		name    string
		cell    result.Cell
		claim   claim.Claim
		outcome scenario.Outcome
		says    string
		facts   obs
		want    result.Verdict
		because string
		skip    result.SkipWord
	}{
		{"holds as expected", ran, rootClaim, mustHold, "", holds, result.Pass, "one mount", ""},
		{"violated though expected", ran, rootClaim, mustHold, "", violated, result.Fail, "/proc", ""},
		{"absent as expected", ran, rootClaim, absent, "", violated, result.Pass, "/proc", ""},
		{"a surprise in the good direction", ran, rootClaim, absent, "", holds, result.Fail, "holds, though it is expected to be absent", ""},
		{"started, though it has to refuse", ran, rootClaim, mustRefuse, "setgroups", holds, result.Fail, `has to refuse with "setgroups"`, ""},
		{"nothing seen, holds expected", ran, rootClaim, mustHold, "", nil, result.Error, "no observation", ""},
		{"nothing seen, absent expected", ran, rootClaim, absent, "", nil, result.Error, "no observation", ""},
		{"facts say nothing", ran, rootClaim, absent, "", obs{"mounts": probe.Mounts{}}, result.Error, "say nothing of mounts", ""},
		{"no outcome", ran, rootClaim, "", "", holds, result.Error, "nothing that can be judged", ""},
		{"no outcome, violated", ran, rootClaim, "", "", violated, result.Error, "nothing that can be judged", ""},
		{"unknown outcome", ran, rootClaim, "perhaps", "", holds, result.Error, "nothing that can be judged", ""},
		{"unknown rule", ran, claim.Claim{ID: "a/b", Judge: "fly"}, mustHold, "", holds, result.Error, `no rule "fly"`, ""},
		{"claim without a rule", ran, claim.Claim{ID: "a/b"}, mustHold, "", holds, result.Error, `no rule ""`, ""},

		{"refused with the words", refused, rootClaim, mustRefuse, "setgroups", nil, result.Pass, "refused: setgroups", ""},
		{"refused with other words", refused, rootClaim, mustRefuse, "newuidmap", nil, result.Fail, `without "newuidmap"`, ""},
		{"did not start, another claim", refused, rootClaim, mustHold, "", nil, result.Skip, "did not start", result.SkipRefused},
		{"did not start, absent expected", refused, rootClaim, absent, "", nil, result.Skip, "did not start", result.SkipRefused},
		{"did not start, the claim that it does", refused, start, mustHold, "", nil, result.Fail, "did not start: setgroups", ""},
		{"did not start, absence of start expected", refused, start, absent, "", nil, result.Fail, "did not start", ""},

		{"skipped", skipped, rootClaim, mustHold, "", nil, result.Skip, "root: not root", result.SkipNeed},
		{"skipped, refusal expected", skipped, rootClaim, mustRefuse, "x", nil, result.Skip, "root: not root", result.SkipNeed},
		{"broken", broken, rootClaim, mustHold, "", holds, result.Error, "disk full", ""},
		{"broken, absent expected", broken, rootClaim, absent, "", violated, result.Error, "disk full", ""},
		{"broken, refusal expected", broken, rootClaim, mustRefuse, "disk", nil, result.Error, "disk full", ""},
		{"a cell without a status", result.Cell{}, rootClaim, mustHold, "", holds, result.Error, "unknown status", ""},
		{"a cell of an unknown status", result.Cell{Status: "fine"}, rootClaim, mustHold, "", holds, result.Error, `unknown status "fine"`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := view(t, c.facts)
			v.Cell = c.cell
			got, because, skip := verdict.Judge(c.claim, scenario.Expect{Claim: c.claim.ID, Outcome: c.outcome, Because: "b", Says: c.says}, v)
			assert.Equal(t, c.want, got, because)
			assert.Contains(t, because, c.because)
			assert.Equal(t, c.skip, skip)
		})
	}
}

// TestAFailedGuestCallFails whatever is expected: absence is a fact, and no answer is none.
func TestAFailedGuestCallFails(t *testing.T) {
	c := claim.Claim{ID: "semantics/tree", Judge: "tree"}
	for _, o := range []scenario.Outcome{scenario.Holds, scenario.Absent} {
		v := view(t, nil)
		failed := seen(t, "tree", nil)
		failed.Facts, failed.Error = nil, "no result within 10s"
		v.Observations = []result.Observation{failed}
		got, because, _ := verdict.Judge(c, expect(o, ""), v)
		assert.Equal(t, result.Fail, got, because)
	}
}

// TestARuleThatDeclines gives a skip of the closed list.
func TestARuleThatDeclines(t *testing.T) {
	i := info()
	i.Devices[0].RequestQueues = -1
	got, because, skip := verdict.Judge(claim.Claim{ID: "lifecycle/request-queues", Judge: "queues"}, expect(scenario.Holds, ""), view(t, obs{"info": i}))
	assert.Equal(t, result.Skip, got, because)
	assert.Equal(t, result.SkipKernel, skip)
}

// TestBecauseIsOneShortLine, whatever a daemon wrote.
func TestBecauseIsOneShortLine(t *testing.T) {
	long := mountProc
	long.Point = "/" + strings.Repeat("a\n", 400)
	_, because, _ := verdict.Judge(rootClaim, expect(scenario.Holds, ""), view(t, obs{"mounts": mounts(root, long)}))
	assert.NotContains(t, because, "\n")
	assert.LessOrEqual(t, len([]rune(because)), 300)
}

var mountProc = probe.Mount{Point: "/proc", Root: "/", FSType: "proc", Options: "rw"}

func cellRun(t *testing.T, cell result.Cell, facts obs, known []scenario.Known, expects ...scenario.Expect) []result.Record {
	t.Helper()
	cell.CellID = result.CellID{Scenario: "a-test", Impl: "c", Kernel: "6.12"}
	s := &scenario.Scenario{ID: "a-test", Expect: expects}
	records := verdict.JudgeCell(s, []claim.Claim{rootClaim}, known, cell, view(t, facts).Observations)
	require.Len(t, records, len(expects))
	for _, r := range records {
		assert.NoError(t, result.CheckRecord(r), "a record that cannot be read again: %+v", r)
		assert.Equal(t, cell.CellID, r.CellID)
	}
	return records
}

func TestJudgeCellSaysWhatWasExpectedAndSeen(t *testing.T) {
	ran := result.Cell{Status: result.CellRan}
	refused := result.Cell{Status: result.CellRefused, Reason: "no"}
	holds, violated := obs{"mounts": mounts(root)}, obs{"mounts": mounts(root, mountProc)}
	for _, c := range []struct {
		cell     result.Cell
		facts    obs
		expect   scenario.Expect
		verdict  result.Verdict
		observed string
	}{
		{ran, holds, expect(scenario.Holds, ""), result.Pass, "holds"},
		{ran, violated, expect(scenario.Holds, ""), result.Fail, "violated"},
		{ran, violated, expect(scenario.Absent, ""), result.Pass, "absent"},
		{ran, holds, expect(scenario.Absent, ""), result.Fail, "holds"},
		{ran, nil, expect(scenario.Holds, ""), result.Error, ""},
		{ran, holds, expect(scenario.Refused, "no"), result.Fail, "started"},
		{refused, nil, expect(scenario.Refused, "no"), result.Pass, "refused"},
		{refused, nil, expect(scenario.Refused, "yes"), result.Fail, "refused"},
		{refused, nil, expect(scenario.Holds, ""), result.Skip, ""},
	} {
		r := cellRun(t, c.cell, c.facts, nil, c.expect)[0]
		assert.Equal(t, c.verdict, r.Verdict, "%+v", r)
		assert.Equal(t, c.observed, r.Observed, "%+v", r)
		assert.Equal(t, string(c.expect.Outcome), r.Expected)
		assert.NotEmpty(t, r.Evidence)
	}
}

func TestASkipWithoutAReasonIsAnError(t *testing.T) {
	r := cellRun(t, result.Cell{Status: result.CellSkipped, Reason: "just so"}, nil, nil, expect(scenario.Holds, ""))[0]
	assert.Equal(t, result.Error, r.Verdict)
	assert.Contains(t, r.Because, "skipped without a reason: just so")
}

func TestAnUnknownClaimIsAnError(t *testing.T) {
	e := expect(scenario.Holds, "")
	e.Claim = "moon/phase"
	r := cellRun(t, result.Cell{Status: result.CellRan}, obs{"mounts": mounts(root)}, nil, e)[0]
	assert.Equal(t, result.Error, r.Verdict)
	assert.Contains(t, r.Because, "no such claim")
}

func TestEvidenceNamesTheSteps(t *testing.T) {
	ran := result.Cell{Status: result.CellRan}
	r := cellRun(t, ran, obs{"mounts": mounts(root)}, nil, expect(scenario.Holds, ""))[0]
	assert.Equal(t, []string{"cells/a-test/c/6.12/observations.jsonl#mounts"}, r.Evidence)
	r = cellRun(t, ran, nil, nil, expect(scenario.Holds, ""))[0]
	assert.Equal(t, []string{"cells/a-test/c/6.12/cell.json"}, r.Evidence)
}

func TestKnownDifferences(t *testing.T) {
	ran := result.Cell{Status: result.CellRan}
	holds, violated := obs{"mounts": mounts(root)}, obs{"mounts": mounts(root, mountProc)}
	known := func(k scenario.Known) []scenario.Known {
		k.Because, k.Measured = "it mounts proc", "7.2.22"
		return []scenario.Known{k}
	}
	here := scenario.Known{Claim: "containment/*", Impl: "c", Scenario: "a-*"}
	sometimes := here
	sometimes.Sometimes = true
	for _, c := range []struct {
		name  string
		known []scenario.Known
		facts obs
		want  result.Verdict
		bad   bool
		says  string
	}{
		{"explains the failure", known(here), violated, result.Fail, false, "/proc"},
		{"is out of date", known(here), holds, result.Fail, true, "the entry is out of date"},
		{"is a matter of luck", known(sometimes), holds, result.Pass, false, "one mount"},
		{"is another daemon's", known(scenario.Known{Claim: "containment/*", Impl: "rust*", Scenario: "a-*"}), violated, result.Fail, true, "/proc"},
		{"is another scenario's", known(scenario.Known{Claim: "containment/*", Impl: "c", Scenario: "e-*"}), violated, result.Fail, true, "/proc"},
		{"does not excuse an error of ours", known(here), nil, result.Error, true, "no observation"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := cellRun(t, ran, c.facts, c.known, expect(scenario.Holds, ""))[0]
			assert.Equal(t, c.want, r.Verdict)
			assert.Equal(t, c.bad, r.Bad(), "%+v", r)
			assert.Contains(t, r.Because, c.says)
			if !c.bad && c.want == result.Fail {
				assert.Equal(t, "it mounts proc", r.Known)
			}
		})
	}
}

// TestZeroValuesNeverPass: nothing that somebody forgot to fill in is a pass.
func TestZeroValuesNeverPass(t *testing.T) {
	got, because, _ := verdict.Judge(claim.Claim{}, scenario.Expect{}, &verdict.View{})
	assert.Equal(t, result.Error, got, because)
	for _, status := range []result.CellStatus{"", result.CellRan, result.CellRefused, result.CellSkipped, result.CellBroken} {
		for _, outcome := range []scenario.Outcome{"", scenario.Holds, scenario.Absent} {
			v := &verdict.View{Scenario: &scenario.Scenario{}, Cell: result.Cell{Status: status}}
			got, because, _ := verdict.Judge(rootClaim, expect(outcome, ""), v)
			assert.NotEqual(t, result.Pass, got, fmt.Sprintf("status %q, outcome %q: %s", status, outcome, because))
		}
	}
	var f verdict.Finding
	assert.NotContains(t, []verdict.State{verdict.Holds, verdict.Violated, verdict.Neither, verdict.Failed, verdict.Broken}, f.State)
}
