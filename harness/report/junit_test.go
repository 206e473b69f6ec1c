package report

import (
	"bytes"
	"encoding/xml"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/result"
)

func TestJUnitCountsEachVerdictOnce(t *testing.T) {
	id := result.CellID{Scenario: "a-root", Impl: "c", Kernel: "6.12"}
	rec := func(claim string, v result.Verdict, known string) result.Record {
		return result.Record{Claim: claim, CellID: id, Verdict: v, Because: "saw <this> & that", Known: known}
	}
	run := &result.Stored{Run: result.Run{ID: "run"}, Cells: []result.Cell{{CellID: id, Status: result.CellRan, Seconds: 1.25}}, Records: []result.Record{
		rec("a/1", result.Pass, ""), rec("a/2", result.Fail, ""), rec("a/3", result.Fail, "it is so"), rec("a/4", result.Error, ""), rec("a/5", result.Skip, ""),
	}}
	var b bytes.Buffer
	require.NoError(t, JUnit(&b, run))
	var back junitSuites
	require.NoError(t, xml.Unmarshal(b.Bytes(), &back))
	assert.Equal(t, []int{5, 1, 1, 2}, []int{back.Tests, back.Failures, back.Errors, back.Skipped})
	require.Len(t, back.Suites, 1)
	cases := back.Suites[0].Cases
	assert.Nil(t, cases[0].Failure)
	assert.Equal(t, "saw <this> & that", cases[1].Failure.Message)
	assert.Contains(t, cases[2].Skipped.Message, "it is so")
	assert.NotNil(t, cases[3].Error)
	assert.NotNil(t, cases[4].Skipped)
}
