package report

import (
	"fmt"
	"strings"

	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
)

// scenarioPage is the page of one scenario; picture says that there is one beside it.
func (b *book) scenarioPage(l links, s *scenario.Scenario, picture bool) string {
	var w strings.Builder
	fmt.Fprintf(&w, "%s# %s: %s\n\n", generatedNote, s.ID, s.Title)
	fmt.Fprintf(&w, "Use case %s: %s. %s\n\n", s.UseCase, useCases[s.UseCase], s.Why)
	w.WriteString("## Command\n\n")
	w.WriteString(commands(s))
	fmt.Fprintf(&w, "Started by: %s. Needs of the host: %s. Guest kernels: %s.\n\n", launcher(s), orDash(strings.Join(s.Needs, ", ")), strings.Join(s.Kernels, ", "))
	w.WriteString(b.cellLines(l, s))
	if picture {
		fmt.Fprintf(&w, "## Picture\n\nOur daemon's processes as seen in /proc of the host while the guest was there.\n\n![Processes, namespaces, id maps and mounts as measured](%s.svg)\n\n", s.ID)
	}
	w.WriteString("## Verdicts\n\n" + legend())
	for _, a := range b.areas {
		head := []string{"claim", "expected"}
		var cols []string
		for _, i := range b.impls {
			if s.Runs(i) {
				cols = append(cols, i)
				head = append(head, b.heading(i))
			}
		}
		head = append(head, "seen")
		var rows [][]string
		for _, c := range a.Claims {
			var row []string
			seen := ""
			for _, i := range cols {
				p := b.spot(c.ID, s, i)
				row = append(row, b.recordLinks(l, p))
				if seen == "" && len(p.Entries) > 0 {
					e := p.Entries[len(p.Entries)-1]
					seen = plain(e.Because) + b.factLinks(l, e)
				}
			}
			expected := b.expected(s, c.ID)
			if expected == "" {
				continue
			}
			row = append([]string{fmt.Sprintf("<a id=%q></a>%s", c.Anchor(), b.claimLink(l, c)), expected}, row...)
			rows = append(rows, append(row, seen))
		}
		if len(rows) > 0 {
			fmt.Fprintf(&w, "### %s\n\n", a.Title)
			mdTable(&w, head, rows)
		}
	}
	w.WriteString(b.differencesOf(l, s))
	return w.String()
}

// commands are a scenario's command lines: ours, and those of the peers which say the same.
func commands(s *scenario.Scenario) string {
	var w strings.Builder
	for _, d := range []struct{ dialect, what string }{{"ours", ""}, {"rust", "The Rust virtiofsd"}, {"c", "QEMU's C virtiofsd"}} {
		line, err := command(s, d.dialect)
		switch {
		case err != nil && d.dialect != "ours":
			fmt.Fprintf(&w, "%s cannot be told so: %v.\n\n", d.what, err)
		case err != nil:
			fmt.Fprintf(&w, "Cannot be expressed: %v.\n\n", err)
		case d.dialect == "ours":
			fmt.Fprintf(&w, "    %s\n\n", line)
		case d.dialect == "rust" && same(s, line):
			fmt.Fprintf(&w, "%s takes the same command line.\n\n", d.what)
		default:
			fmt.Fprintf(&w, "%s: `%s`\n\n", d.what, line)
		}
	}
	return w.String()
}

func same(s *scenario.Scenario, line string) bool {
	ours, err := command(s, "ours")
	return err == nil && ours == line
}

// expected is what a scenario expects of a claim, with the reason; of implementations of which it expects otherwise, too.
func (b *book) expected(s *scenario.Scenario, claimID string) string {
	var parts []string
	for _, e := range s.Expect {
		if e.Claim != claimID {
			continue
		}
		text := string(e.Outcome) + ": " + e.Because
		if len(e.Impls) > 0 {
			text = "of " + strings.Join(e.Impls, ", ") + " " + text
		}
		parts = append(parts, cellText(text))
	}
	return strings.Join(parts, "; ")
}

// recordLinks is a spot's sign with a link to each kernel's record.
func (b *book) recordLinks(l links, p spot) string {
	if len(p.Entries) == 0 {
		return p.State.look().Sign
	}
	var parts []string
	for _, e := range p.Entries {
		text := e.Kernel
		if e.State != p.State {
			text = e.State.look().Sign + " " + text
		}
		parts = append(parts, mdLink(text, l.record(e)))
	}
	return p.State.look().Sign + " " + strings.Join(parts, " ")
}

func (b *book) factLinks(l links, e entry) string {
	var parts []string
	for _, f := range b.facts(l, e) {
		parts = append(parts, mdLink(f.Text, f.URL))
	}
	if len(parts) == 0 {
		return ""
	}
	return " (facts: " + strings.Join(parts, ", ") + ")"
}

// cellLines tell what became of the scenario's cells where that is not simply that they ran.
func (b *book) cellLines(l links, s *scenario.Scenario) string {
	if b.run == nil {
		return "Not measured yet.\n\n"
	}
	var w strings.Builder
	var grouped = map[string][]string{}
	var order []string
	for _, c := range b.run.Cells {
		if c.Scenario != s.ID || c.Status == result.CellRan {
			continue
		}
		text := fmt.Sprintf("%s: %s", title(c.Impl), c.Status)
		if c.Skip != "" {
			text += " (" + string(c.Skip) + ")"
		}
		text += ": " + plain(c.Reason)
		if grouped[text] == nil {
			order = append(order, text)
		}
		grouped[text] = append(grouped[text], mdLink("guest "+c.Kernel, l.Evidence+c.Dir()+"/"+result.CellFile))
	}
	for _, text := range order {
		fmt.Fprintf(&w, "- %s [%s]\n", text, strings.Join(grouped[text], ", "))
	}
	if len(order) > 0 {
		w.WriteString("\n")
	}
	return w.String()
}

// differencesOf lists what was not as expected in one scenario.
func (b *book) differencesOf(l links, s *scenario.Scenario) string {
	var rows [][]string
	for _, i := range b.impls {
		for _, c := range b.claims {
			for _, r := range b.differenceRows(l, c, s, i) {
				r[1] = title(i)
				rows = append(rows, r)
			}
		}
	}
	if len(rows) == 0 {
		return ""
	}
	var w strings.Builder
	w.WriteString("## Where a daemon differs from what is expected\n\n")
	mdTable(&w, []string{"claim", "daemon", "guest", "", "seen", "why, as known"}, rows)
	return w.String()
}
