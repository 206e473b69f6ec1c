package selftest

import (
	"io/fs"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/report"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
	"virtiofsd/harness/selftest/faultd"
)

func tree(t *testing.T) (fs.FS, []claim.Claim, []*scenario.Scenario) {
	root := os.DirFS("../..")
	claims, err := claim.Load(root, "scenarios/claims")
	require.NoError(t, err)
	scenarios, err := Scenarios(claims)
	require.NoError(t, err)
	return root, claims, scenarios
}

func TestEachFaultIsPlantedWhereItsClaimIsExpectedToHold(t *testing.T) {
	_, _, scenarios := tree(t)
	planted := map[string]bool{}
	for _, p := range Plants() {
		planted[p.Fault] = true
		i := slices.IndexFunc(scenarios, func(s *scenario.Scenario) bool { return s.ID == p.Scenario })
		require.GreaterOrEqual(t, i, 0, "%s: scenario %s", p.Fault, p.Scenario)
		if p.Claim != "" {
			assert.True(t, slices.ContainsFunc(scenarios[i].Expect, func(e scenario.Expect) bool { return e.Claim == p.Claim && e.Outcome == scenario.Holds }),
				"%s: %s does not expect %s to hold", p.Fault, p.Scenario, p.Claim)
		}
	}
	for _, f := range faultd.Faults() {
		assert.True(t, planted[f.Name], "fault %s is planted nowhere", f.Name)
	}
}

func TestPickRefusesAPatternThatFitsNoFault(t *testing.T) {
	all, err := Pick(nil)
	require.NoError(t, err)
	assert.Equal(t, Plants(), all)
	some, err := Pick([]string{"keeps-*", "hangs"})
	require.NoError(t, err)
	assert.Less(t, len(some), len(all))
	assert.Contains(t, some, Plants()[slices.IndexFunc(all, func(p Plant) bool { return p.Fault == "hangs" })])
	_, err = Pick([]string{"hangs", "nosuch"})
	assert.EqualError(t, err, `there is no fault "nosuch"; vfsmatrix selftest --list shows them`)
}

func TestTheEvidenceIsOfAllFaults(t *testing.T) {
	root, _, _ := tree(t)
	seen, err := report.LoadFaults(root)
	require.NoError(t, err)
	require.NotNil(t, seen, "no run was adopted: vfsmatrix selftest --adopt")
	var want, got [][2]string
	for _, p := range Plants() {
		if p.Claim != "" {
			want = append(want, [2]string{p.Fault, p.Claim})
		}
	}
	for _, f := range seen.Found {
		got = append(got, [2]string{f.Name, f.Claim})
	}
	assert.Equal(t, want, got, "the table was changed since the self-test was adopted: vfsmatrix selftest --adopt")
}

func TestAFaultIsCaughtByItsOwnClaimOnly(t *testing.T) {
	plant := Plant{Fault: "x", Claim: "privilege/groups", Also: []string{"containment/*"}}
	ran := &result.Cell{Status: result.CellRan}
	records := func(r ...result.Record) []result.Record { return r }
	own := result.Record{Claim: "privilege/groups", Verdict: result.Fail, Because: "groups"}
	pass := result.Record{Claim: "privilege/groups", Verdict: result.Pass}
	for name, c := range map[string]struct {
		plant   Plant
		cell    *result.Cell
		records []result.Record
		caught  bool
		saw     string
	}{
		"own claim":           {plant, ran, records(own), true, "groups"},
		"and one that it may": {plant, ran, records(own, result.Record{Claim: "containment/root", Verdict: result.Fail}), true, "groups"},
		"and another":         {plant, ran, records(own, result.Record{Claim: "identity/x", Verdict: result.Fail}), false, "identity/x fails as well"},
		"only one that it may": {plant, ran, records(pass, result.Record{Claim: "containment/root", Verdict: result.Fail}), false,
			"privilege/groups is pass"},
		"not judged":        {plant, ran, records(result.Record{Claim: "a/b", Verdict: result.Pass}), false, "privilege/groups was not judged"},
		"harness's error":   {plant, ran, records(own, result.Record{Claim: "a/b", Verdict: result.Error, Because: "probe"}), false, "error of the harness at a/b: probe"},
		"skipped":           {plant, &result.Cell{Status: result.CellSkipped, Reason: "no qemu"}, records(own), false, "no qemu"},
		"honest":            {Plant{Fault: "none"}, ran, records(pass), true, "1 claims hold"},
		"honest, and fails": {Plant{Fault: "none"}, ran, records(own), false, "privilege/groups fails as well"},
		"honest, no word":   {Plant{Fault: "none"}, ran, nil, false, "nothing was judged"},
		"agent believed": {Plant{Claim: "semantics/tree", Agent: true}, ran,
			records(result.Record{Claim: "semantics/tree", Verdict: result.Fail}, result.Record{Claim: "identity/x", Verdict: result.Pass}), false, "believed: identity/x"},
		"agent not believed": {Plant{Claim: "semantics/tree", Agent: true}, ran, records(result.Record{Claim: "semantics/tree", Verdict: result.Fail, Because: "no file"}), true, "no file"},
	} {
		o := judge(c.plant, c.cell, c.records)
		assert.Equal(t, c.caught, o.Caught, name)
		assert.Contains(t, o.Saw, c.saw, name)
	}
}
