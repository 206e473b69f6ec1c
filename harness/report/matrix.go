package report

import (
	"fmt"
	"slices"
	"strings"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
)

// measured says in one paragraph what a book's evidence is.
func (b *book) measured() string {
	if b.run == nil {
		return "Nothing has been measured yet: there is no run in `docs/evidence`. Everything is printed as not shown yet.\n\n"
	}
	var s strings.Builder
	fmt.Fprintf(&s, "Measured by run `%s` (%s UTC).", b.run.ID, strings.TrimSuffix(strings.Replace(b.run.Started, "T", " ", 1), "Z"))
	var host []string
	for _, k := range sortedKeys(b.run.Host) {
		host = append(host, k+" "+b.run.Host[k])
	}
	if len(host) > 0 {
		fmt.Fprintf(&s, " Host: %s.", strings.Join(host, ", "))
	}
	s.WriteString("\n\n")
	var rows [][]string
	for _, i := range b.run.Impls {
		row := []string{title(i.Name), plain(orDash(i.Version)), plain(i.Path), short(i.SHA256)}
		if i.Missing != "" {
			row[1] = "missing: " + plain(i.Missing)
		}
		rows = append(rows, row)
	}
	for _, k := range b.run.Kernels {
		rows = append(rows, []string{"guest " + k.Name, plain(orDash(k.Version)), "", short(k.SHA256)})
	}
	mdTable(&s, []string{"what", "version", "program", "sha256"}, rows)
	for _, line := range besideLines(b.run.Beside) {
		s.WriteString(line + "\n\n")
	}
	return s.String()
}

// besideLines say which scenarios were measured by later runs, and by which builds where those are
// others.
func besideLines(all []result.Run) []string {
	var lines []string
	for _, r := range all {
		var of []string
		for _, i := range r.Impls {
			if i.Missing == "" {
				of = append(of, fmt.Sprintf("%s %.16s…", title(i.Name), i.SHA256))
			}
		}
		lines = append(lines, fmt.Sprintf("Measured later, by run %s: %s; with %s.", r.ID, strings.Join(r.Scenarios, ", "), strings.Join(of, ", ")))
	}
	return lines
}

func short(sum string) string {
	if len(sum) > 16 {
		return "`" + sum[:16] + "…`"
	}
	return sum
}

func sortedKeys[V any](m map[string]V) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

// legend explains the signs.
func legend() string {
	var parts []string
	for _, s := range []state{stHolds, stAbsent, stRefused, stKnown, stFail, stError, stSkip, stUnknown} {
		parts = append(parts, fmt.Sprintf("%s %s", s.look().Sign, s.look().Means))
	}
	return strings.Join(parts, "; ") + ". An empty cell: " + stNone.look().Means + ". Guest kernels share a cell, which shows the worst of them.\n\n"
}

// matrix is the page of all claims for all scenarios and daemons.
func (b *book) matrix(l links, htmlPage string) string {
	var s strings.Builder
	s.WriteString(generatedNote + "# The matrix: claims × scenarios × daemons\n\n")
	fmt.Fprintf(&s, "Each column is a [scenario](#scenarios), each row a claim, and each daemon has a table of its own. The same is in [one HTML page](%s), with filters.\n\n", htmlPage)
	s.WriteString(b.measured())
	s.WriteString(legend())

	s.WriteString("## Scenarios\n\n")
	var rows [][]string
	for _, sc := range b.scenarios {
		rows = append(rows, append([]string{b.scenarioLink(l, sc), sc.UseCase, cellText(sc.Title)}, b.tallies(sc)...))
	}
	head := []string{"scenario", "use case", "what it is"}
	for _, i := range b.impls {
		head = append(head, b.heading(i))
	}
	mdTable(&s, head, rows)

	for _, i := range b.impls {
		fmt.Fprintf(&s, "## %s\n\n", b.heading(i))
		if m := b.identity(i).Missing; m != "" {
			fmt.Fprintf(&s, "Not on the machine of the run: %s\n\n", plain(m))
			continue
		}
		var cols []*scenario.Scenario
		head := []string{"claim"}
		for _, sc := range b.scenarios {
			if sc.Runs(i) {
				cols = append(cols, sc)
				head = append(head, b.scenarioLink(l, sc))
			}
		}
		for _, a := range b.areas {
			fmt.Fprintf(&s, "### %s, %s\n\n", a.Title, title(i))
			var rows [][]string
			for _, c := range a.Claims {
				row := []string{b.claimLink(l, c)}
				for _, sc := range cols {
					row = append(row, b.signLink(l, b.spot(c.ID, sc, i), sc, c))
				}
				rows = append(rows, row)
			}
			mdTable(&s, head, rows)
		}
	}
	s.WriteString(b.differences(l))
	return s.String()
}

func (b *book) scenarioLink(l links, s *scenario.Scenario) string {
	if l.Scenarios == "-" {
		return s.ID
	}
	return mdLink(s.ID, l.scenarioURL(s.ID, ""))
}

func (b *book) claimLink(l links, c claim.Claim) string {
	if l.Claims == "-" {
		return c.ID
	}
	return mdLink(c.ID, l.claimURL(c))
}

// signLink is a spot's sign, linked to its row on the scenario's page or, without such pages, to its first record.
func (b *book) signLink(l links, p spot, s *scenario.Scenario, c claim.Claim) string {
	sign := p.State.look().Sign
	switch {
	case p.State == stNone:
		return ""
	case l.Scenarios != "-":
		return mdLink(sign, l.scenarioURL(s.ID, c.Anchor()))
	case len(p.Entries) > 0:
		return mdLink(sign, l.record(p.Entries[0]))
	}
	return sign
}

// tallies count, for each implementation, the claims of a scenario by state: the shown ones, and what is not.
func (b *book) tallies(s *scenario.Scenario) []string {
	var out []string
	for _, i := range b.impls {
		if !s.Runs(i) {
			out = append(out, "")
			continue
		}
		shown, by := 0, map[state]int{}
		for _, c := range b.claims {
			p := b.spot(c.ID, s, i)
			if p.State.shown() {
				shown++
			}
			by[p.State]++
		}
		parts := []string{fmt.Sprintf("%d shown", shown)}
		for _, st := range []state{stFail, stKnown, stError, stSkip, stUnknown} {
			if by[st] > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", by[st], st.look().Word))
			}
		}
		out = append(out, strings.Join(parts, ", "))
	}
	return out
}

// differences lists what was not as expected, by implementation, with what was seen.
func (b *book) differences(l links) string {
	var s strings.Builder
	s.WriteString("## Where a daemon differs from what is expected\n\n")
	if b.run == nil {
		return s.String() + "Not shown yet.\n\n"
	}
	n := 0
	for _, i := range b.impls {
		var rows [][]string
		for _, c := range b.claims {
			for _, sc := range b.scenarios {
				rows = append(rows, b.differenceRows(l, c, sc, i)...)
			}
		}
		if len(rows) == 0 {
			continue
		}
		n += len(rows)
		fmt.Fprintf(&s, "### Differences of %s\n\n", b.heading(i))
		mdTable(&s, []string{"claim", "scenario", "guest", "", "seen", "why, as known"}, rows)
	}
	if n == 0 {
		s.WriteString("Nowhere.\n\n")
	}
	return s.String()
}

func (b *book) differenceRows(l links, c claim.Claim, sc *scenario.Scenario, implName string) [][]string {
	var bad []result.Record
	line := map[string]entry{}
	for _, e := range b.spot(c.ID, sc, implName).Entries {
		if e.State == stFail || e.State == stKnown || e.State == stError {
			bad = append(bad, e.Record)
			line[e.Kernel] = e
		}
	}
	var rows [][]string
	for _, g := range group(bad, func(r result.Record) string { return r.Because }) {
		e := line[g.kernels[0]]
		var where []string
		for _, k := range g.kernels {
			where = append(where, mdLink(k, l.record(line[k])))
		}
		rows = append(rows, []string{
			b.claimLink(l, c), b.scenarioLink(l, sc), strings.Join(where, ", "), e.State.look().Sign, plain(e.Because), cellText(e.Known),
		})
	}
	return rows
}

// claimsPage is the page of all claims' texts.
func (b *book) claimsPage(l links, faults *Faults, rules func(string) (means, of string)) string {
	var s strings.Builder
	s.WriteString(generatedNote + "# Claims\n\n")
	s.WriteString("What is claimed about a virtio-fs daemon. A claim is written once, in `scenarios/claims/`; each scenario says whether it should hold there. " +
		"A claim that was never seen to fail proves little, and says so.\n\n")
	for _, a := range b.areas {
		fmt.Fprintf(&s, "## %s\n\n%s\n\n", a.Title, a.About)
		for _, c := range a.Claims {
			fmt.Fprintf(&s, "### <a id=%q></a>%s\n\n%s\n\nOtherwise: %s\n\n", c.Anchor(), c.ID, c.Must, c.Why)
			means, of := rules(c.Judge)
			how := fmt.Sprintf("- Shown by: %s. Rule `%s`: %s", code(c.Probe), c.Judge, means)
			if len(c.Of) > 0 {
				how += fmt.Sprintf("; %s: %s", of, code(c.Of))
			}
			s.WriteString(how + ".\n")
			fmt.Fprintf(&s, "- Source: %s.\n", strings.Join(c.Source, "; "))
			planted := faults.of(c.ID)
			if len(c.FalsifiedBy)+len(planted) == 0 {
				s.WriteString("- Seen to fail: not yet.\n")
			}
			for _, f := range planted {
				fmt.Fprintf(&s, "- Seen to fail with the planted fault [%s](faults.md), a daemon that %s: %s\n", f.Name, plain(f.Does), plain(f.Saw))
			}
			for _, f := range c.FalsifiedBy {
				fmt.Fprintf(&s, "- Seen to fail with %s: %s\n", plain(f.By), plain(f.Seen))
			}
			s.WriteString(b.outcomes(l, c) + "\n")
		}
	}
	return s.String()
}

func code(all []string) string { return "`" + strings.Join(all, "`, `") + "`" }

// outcomes is a claim's line of signs in all scenarios, for each implementation.
func (b *book) outcomes(l links, c claim.Claim) string {
	var lines strings.Builder
	for _, i := range b.impls {
		var parts []string
		for _, sc := range b.scenarios {
			if p := b.spot(c.ID, sc, i); p.State != stNone {
				parts = append(parts, sc.ID+" "+b.signLink(l, p, sc, c))
			}
		}
		if len(parts) > 0 {
			fmt.Fprintf(&lines, "- %s: %s\n", title(i), strings.Join(parts, ", "))
		}
	}
	return lines.String()
}
