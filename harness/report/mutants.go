package report

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"virtiofsd/harness/mutants"
)

// trackRecord is a page that is written by hand, except for what stands between two marks.
const (
	trackRecord  = docsDir + "/track-record.md"
	mutantsBegin = "<!-- make fix-docs writes what follows -->\n"
	mutantsEnd   = "<!-- to here -->\n"
)

// trackRecordPage is that page with the table of mutants as the outcomes have it; nil where there
// is none.
func trackRecordPage(tree fs.FS) ([]byte, error) {
	page, err := fs.ReadFile(tree, trackRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the track record: %w", err)
	}
	before, rest, begun := bytes.Cut(page, []byte(mutantsBegin))
	_, after, ended := bytes.Cut(rest, []byte(mutantsEnd))
	if !begun || !ended {
		return nil, fmt.Errorf("%s has no place for the table of mutants: write %q and %q", trackRecord, mutantsBegin, mutantsEnd)
	}
	state, err := mutants.ReadState(tree)
	if err != nil {
		return nil, err
	}
	return bytes.Join([][]byte{before, []byte(mutantsBegin), []byte(mutantsTable(state.Scores())), []byte(mutantsEnd), after}, nil), nil
}

func mutantsTable(all []*mutants.Score) string {
	var b strings.Builder
	b.WriteString("\n| package | mutants | killed | change nothing | survived | not run | killed of those that change something |\n|---|---|---|---|---|---|---|\n")
	var sum mutants.Score
	row := func(name string, s *mutants.Score) {
		score := "–" // what was run is no sample of all: what was killed once stays known, what survived is run again after each change
		if s.Unknown == 0 {
			score = fmt.Sprintf("%.1f %%", s.Percent())
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %s |\n", name, s.Mutants, s.Killed, s.Equivalent, s.Survived, s.Unknown, score)
	}
	for _, s := range all {
		row("internal/"+s.Package, s)
		sum.Mutants += s.Mutants
		sum.Killed += s.Killed
		sum.Equivalent += s.Equivalent
		sum.Survived += s.Survived
		sum.Unknown += s.Unknown
	}
	row("together", &sum)
	b.WriteString("\n")
	return b.String()
}
