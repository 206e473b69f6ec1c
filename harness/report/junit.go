package report

import (
	"encoding/xml"
	"fmt"
	"io"

	"virtiofsd/harness/result"
)

// The elements of JUnit's XML that CI servers read: a suite a cell, a case a claim.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Name     string       `xml:"name,attr"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Errors   int          `xml:"errors,attr"`
		Skipped  int          `xml:"skipped,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Errors   int         `xml:"errors,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Time     string      `xml:"time,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Name    string        `xml:"name,attr"`
		Class   string        `xml:"classname,attr"`
		Failure *junitMessage `xml:"failure"`
		Error   *junitMessage `xml:"error"`
		Skipped *junitMessage `xml:"skipped"`
		Out     string        `xml:"system-out,omitempty"`
	}
	junitMessage struct {
		Message string `xml:"message,attr"`
	}
)

// JUnit writes a run for CI servers. A failure that is a known difference of a peer counts as skipped, with the reason: it does not
// spoil the run, and is not to be taken for a pass.
func JUnit(w io.Writer, run *result.Stored) error {
	all := junitSuites{Name: "vfsmatrix " + run.ID}
	for _, c := range run.Cells {
		s := junitSuite{Name: c.CellID.String(), Time: fmt.Sprintf("%.1f", c.Seconds)}
		for _, r := range run.Records {
			if r.CellID != c.CellID {
				continue
			}
			k := junitCase{Name: r.Claim, Class: c.CellID.String()}
			switch {
			case r.Verdict == result.Error:
				k.Error = &junitMessage{r.Because}
				s.Errors++
			case r.Bad():
				k.Failure = &junitMessage{r.Because}
				s.Failures++
			case r.Verdict == result.Fail:
				k.Skipped = &junitMessage{"known difference: " + r.Known + "; seen: " + r.Because}
				s.Skipped++
			case r.Verdict == result.Skip:
				k.Skipped = &junitMessage{string(r.Skip) + ": " + r.Because}
				s.Skipped++
			default:
				k.Out = r.Because
			}
			s.Tests++
			s.Cases = append(s.Cases, k)
		}
		all.Tests += s.Tests
		all.Failures += s.Failures
		all.Errors += s.Errors
		all.Skipped += s.Skipped
		all.Suites = append(all.Suites, s)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return fmt.Errorf("write JUnit: %w", err)
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(all); err != nil {
		return fmt.Errorf("write JUnit: %w", err)
	}
	return nil
}
