package report

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/scenario"
)

// practicesFile is where the advice stands: sentences, each with the claim that proves it.
const practicesFile = "docs/best-practices.toml"

// practices is that file.
type practices struct {
	Intro     []string `toml:"intro"`
	Uses      []use    `toml:"use"`
	Questions []answer `toml:"question"`
}

// use is the advice for one use case.
type use struct {
	Case      string     `toml:"case"`     // A to E
	Title     string     `toml:"title"`    // a few words
	Scenario  string     `toml:"scenario"` // where the sentences are shown, unless they say otherwise
	Commands  []variant  `toml:"command"`
	When      []sentence `toml:"when"`      // when to choose it
	Setup     []sentence `toml:"setup"`     // what the caller has to set up
	Protects  []sentence `toml:"protects"`  // what it protects from
	Not       []sentence `toml:"not"`       // what it does not protect from
	Otherwise []sentence `toml:"otherwise"` // what happens otherwise
}

// variant is one way to start it: the command of a scenario. In For, {subuid} and {subgid} stand for what the scenario's user has in /etc/subuid
// and /etc/subgid.
type variant struct {
	For      string `toml:"for"`
	Scenario string `toml:"scenario"`
}

// sentence is something said, with what proves it: a claim in scenarios, or a source for what is no behaviour of a daemon.
type sentence struct {
	Says    string           `toml:"says"`
	Claim   string           `toml:"claim"`
	In      []string         `toml:"in"`      // scenarios; empty: the use's
	Outcome scenario.Outcome `toml:"outcome"` // of the claim, as the sentence has it; "" is holds
	Source  string           `toml:"source"`
}

// answer is one question of virtiofsd issue 43.
type answer struct {
	Ask    string     `toml:"ask"`
	Answer []sentence `toml:"answer"`
}

// loadPractices reads and checks the advice; nil where the tree has none.
func (b *book) loadPractices(tree fs.FS) (*practices, error) {
	p, err := loadTable[practices](tree, practicesFile, "the advice")
	if p == nil {
		return nil, err
	}
	for i := range p.Uses {
		u := &p.Uses[i]
		if useCases[u.Case] == "" || u.Title == "" || u.Scenario == "" || len(u.Commands) == 0 {
			return nil, fmt.Errorf("%s: use %q: case (A to E), title, scenario and a command must be said", practicesFile, u.Case)
		}
		for _, v := range u.Commands {
			if v.For == "" || b.scenario(v.Scenario) == nil {
				return nil, fmt.Errorf("%s: use %s: the command %q wants a scenario that is there, not %q", practicesFile, u.Case, v.For, v.Scenario)
			}
		}
		for _, part := range [][]sentence{u.When, u.Setup, u.Protects, u.Not, u.Otherwise} {
			if err := b.checkSentences(part, u.Scenario); err != nil {
				return nil, fmt.Errorf("%s: use %s: %w", practicesFile, u.Case, err)
			}
		}
	}
	for _, q := range p.Questions {
		if q.Ask == "" || len(q.Answer) == 0 {
			return nil, fmt.Errorf("%s: question %q wants an answer", practicesFile, q.Ask)
		}
		if err := b.checkSentences(q.Answer, ""); err != nil {
			return nil, fmt.Errorf("%s: question %q: %w", practicesFile, q.Ask, err)
		}
	}
	return p, nil
}

// checkSentences completes sentences, and refuses those that nothing could prove.
func (b *book) checkSentences(all []sentence, home string) error {
	for i := range all {
		s := &all[i]
		if len(s.In) == 0 && home != "" {
			s.In = []string{home}
		}
		if s.Outcome == "" {
			s.Outcome = scenario.Holds
		}
		switch {
		case s.Says == "":
			return errors.New("a sentence says nothing")
		case (s.Claim == "") == (s.Source == ""):
			return fmt.Errorf("%q wants either a claim that shows it or a source", s.Says)
		case s.Claim == "":
			continue
		case !slices.ContainsFunc(b.claims, func(c claim.Claim) bool { return c.ID == s.Claim }):
			return fmt.Errorf("%q: unknown claim %q", s.Says, s.Claim)
		case len(s.In) == 0:
			return fmt.Errorf("%q: in which scenario?", s.Says)
		}
	}
	return nil
}

// contradictions are sentences which say of a claim what the scenario does not expect. They print as not shown.
func (b *book) contradictions(p *practices) []string {
	var bad []string
	for s := range p.sentences() {
		for _, id := range s.In {
			if sc := b.scenario(id); s.Claim != "" && sc != nil && !b.agrees(*s, sc) {
				bad = append(bad, fmt.Sprintf("%q: scenario %s does not expect that %s is %s", s.Says, id, s.Claim, s.Outcome))
			}
		}
	}
	return bad
}

func (b *book) agrees(s sentence, sc *scenario.Scenario) bool {
	p := b.spot(s.Claim, sc, "ours")
	return p.Expect != nil && p.Expect.Outcome == s.Outcome
}

// sentences are all of the file's.
func (p *practices) sentences() iter.Seq[*sentence] {
	return func(yield func(*sentence) bool) {
		var parts [][]sentence
		for _, u := range p.Uses {
			parts = append(parts, u.When, u.Setup, u.Protects, u.Not, u.Otherwise)
		}
		for _, q := range p.Questions {
			parts = append(parts, q.Answer)
		}
		for _, part := range parts {
			for i := range part {
				if !yield(&part[i]) {
					return
				}
			}
		}
	}
}

// practicesPage is docs/best-practices.md.
func (b *book) practicesPage(p *practices, l links) (string, error) {
	var w strings.Builder
	w.WriteString(strings.Replace(generatedNote, "what it comes from", practicesFile, 1))
	w.WriteString("# Best practices for sandboxing virtiofsd\n\n")
	for _, t := range p.Intro {
		w.WriteString(t + "\n\n")
	}
	w.WriteString(b.measuredShort(l))
	shown, total := b.score(p)
	fmt.Fprintf(&w, "Of %d sentences with a claim, %d are shown by the evidence.\n\n", total, shown)
	w.WriteString("The small print below a sentence names the claim and the scenario, then the record for each guest kernel, and the verdicts on the other daemons. " + legend())
	w.WriteString("## Which one?\n\n")
	var rows [][]string
	for _, u := range p.Uses {
		var when []string
		for _, s := range u.When {
			when = append(when, s.Says)
		}
		rows = append(rows, []string{u.Case, mdLink(u.Title, "#use-"+strings.ToLower(u.Case)), cellText(strings.Join(when, " "))})
	}
	mdTable(&w, []string{"", "use case", "choose it when"}, rows)
	for _, u := range p.Uses {
		fmt.Fprintf(&w, "## <a id=\"use-%s\"></a>%s: %s\n\n", strings.ToLower(u.Case), u.Case, u.Title)
		for _, v := range u.Commands {
			sc := b.scenario(v.Scenario)
			line, err := forReaders(sc)
			if err != nil {
				return "", fmt.Errorf("the command of %s: %w", v.Scenario, err)
			}
			about := strings.NewReplacer("{subuid}", "`"+sc.Launch.SubUID+"`", "{subgid}", "`"+sc.Launch.SubGID+"`").Replace(v.For)
			fmt.Fprintf(&w, "%s (scenario %s):\n\n    %s\n\n", about, b.scenarioLink(l, sc), line)
		}
		for _, part := range []struct {
			title string
			all   []sentence
		}{
			{"When to choose it", u.When}, {"What the caller sets up", u.Setup}, {"What it protects from", u.Protects},
			{"What it does not protect from", u.Not}, {"What happens otherwise", u.Otherwise},
		} {
			if len(part.all) > 0 {
				fmt.Fprintf(&w, "**%s**\n\n", part.title)
				b.sentences(&w, part.all, l)
			}
		}
	}
	w.WriteString("## The questions of virtiofsd issue 43\n\n")
	for i, q := range p.Questions {
		fmt.Fprintf(&w, "### <a id=\"question-%d\"></a>%d. %s\n\n", i+1, i+1, q.Ask)
		b.sentences(&w, q.Answer, l)
	}
	return w.String(), nil
}

// measuredShort says what the page rests on.
func (b *book) measuredShort(l links) string {
	if b.run == nil {
		return b.measured()
	}
	var who []string
	for _, i := range b.impls {
		if id := b.identity(i); id.Missing == "" {
			who = append(who, b.heading(i))
		}
	}
	return fmt.Sprintf("Measured by run %s with %s; [the matrix](%s) has all verdicts.\n\n", mdLink("`"+b.run.ID+"`", l.Evidence+"run.json"), strings.Join(who, ", "), l.Claims[:strings.LastIndex(l.Claims, "/")+1]+"matrix.md")
}

// score counts the sentences that rest on a claim, and those of them that are shown.
func (b *book) score(p *practices) (shown, total int) {
	for s := range p.sentences() {
		if s.Claim == "" {
			continue
		}
		total++
		if b.proven(*s) {
			shown++
		}
	}
	return shown, total
}

// proven reports whether our daemon was seen to do what a sentence says, in each of its scenarios.
func (b *book) proven(s sentence) bool {
	for _, id := range s.In {
		sc := b.scenario(id)
		if sc == nil || !b.agrees(s, sc) || !b.spot(s.Claim, sc, "ours").State.shown() {
			return false
		}
	}
	return true
}

// sentences are a list of sentences with their proofs.
func (b *book) sentences(w *strings.Builder, all []sentence, l links) {
	for _, s := range all {
		if s.Claim == "" {
			fmt.Fprintf(w, "- %s (%s)\n", s.Says, s.Source)
			continue
		}
		fmt.Fprintf(w, "- %s", s.Says)
		if !b.proven(s) {
			w.WriteString(" **Not shown yet.**")
		}
		for _, id := range s.In {
			w.WriteString("<br>" + b.proof(s.Claim, id, l))
		}
		w.WriteString("\n")
	}
	w.WriteString("\n")
}

// proof is the small print under a sentence.
func (b *book) proof(claimID, scenarioID string, l links) string {
	i := slices.IndexFunc(b.claims, func(c claim.Claim) bool { return c.ID == claimID })
	c := b.claims[i]
	sc := b.scenario(scenarioID)
	if sc == nil {
		return fmt.Sprintf("<sub>%s %s, %s: the scenario is still to be written</sub>", stUnknown.look().Sign, b.claimLink(l, c), scenarioID)
	}
	parts := []string{}
	for _, implName := range b.impls {
		p := b.spot(claimID, sc, implName)
		switch {
		case implName == "ours":
			text := b.recordLinks(l, p)
			if len(p.Entries) == 0 {
				text += " no record"
			}
			parts = append([]string{text}, parts...)
		case p.State != stNone && p.State != stUnknown:
			parts = append(parts, title(implName)+" "+b.signLink(l, p, sc, c))
		}
	}
	return fmt.Sprintf("<sub>%s, %s: %s</sub>", b.claimLink(l, c), mdLink(sc.ID, l.scenarioURL(sc.ID, c.Anchor())), strings.Join(parts, "; "))
}
