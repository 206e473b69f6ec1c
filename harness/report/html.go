package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"slices"
	"strings"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/scenario"
)

//go:embed matrix.html.tmpl
var matrixHTML string

// The types of the page's template.
type (
	htmlPage struct {
		Title    string
		Measured []string
		Legend   []look
		Impls    []htmlImpl
		Groups   []htmlGroup // the head's first line
		Columns  []htmlColumn
		Areas    []htmlArea
		Details  []htmlDetail
		About    []htmlScenario
	}
	htmlImpl  struct{ Name, Title, Missing string }
	htmlGroup struct {
		Scenario, Title string
		Span            int
	}
	htmlColumn struct{ Scenario, Impl, Title string }
	htmlArea   struct {
		Name, Title, About string
		Rows               []htmlRow
	}
	htmlRow struct {
		ID, Name, Anchor, Must, Why string
		Bad                         bool // some daemon differs here
		Cells                       []htmlCell
	}
	htmlCell struct {
		look
		Column htmlColumn
		Href   string
		Title  string
	}
	htmlDetail struct {
		Anchor, Claim, Scenario, Impl string
		Looks                         []htmlSeen
	}
	htmlSeen struct {
		look
		Kernel, Because, Known, Href string
		Facts                        []link
	}
	htmlScenario struct{ ID, UseCase, Case, Title, Why, Command string }
)

// html is the matrix as one page that needs nothing else: the table is plain HTML, and its filters are the only script.
func (b *book) html(l links) ([]byte, error) {
	p := htmlPage{Title: "The matrix: claims × scenarios × virtio-fs daemons", Measured: b.measuredLines()}
	for _, s := range []state{stHolds, stAbsent, stRefused, stKnown, stFail, stError, stSkip, stUnknown} {
		p.Legend = append(p.Legend, s.look())
	}
	for _, i := range b.impls {
		p.Impls = append(p.Impls, htmlImpl{i, b.heading(i), b.identity(i).Missing})
	}
	for _, s := range b.scenarios {
		g := htmlGroup{Scenario: s.ID, Title: s.Title}
		for _, i := range b.impls {
			if s.Runs(i) && b.identity(i).Missing == "" {
				p.Columns = append(p.Columns, htmlColumn{s.ID, i, strings.NewReplacer(" (Go)", "", " (QEMU)", "").Replace(b.heading(i))})
				g.Span++
			}
		}
		p.Groups = append(p.Groups, g)
		line, err := command(s, "ours")
		if err != nil {
			line = err.Error()
		}
		p.About = append(p.About, htmlScenario{s.ID, s.UseCase, useCases[s.UseCase], s.Title, s.Why, line})
	}
	for _, a := range b.areas {
		area := htmlArea{Name: a.Name, Title: a.Title, About: a.About}
		for _, c := range a.Claims {
			row := htmlRow{ID: c.ID, Name: strings.TrimPrefix(c.ID, a.Name+"/"), Anchor: c.Anchor(), Must: c.Must, Why: c.Why}
			for _, col := range p.Columns {
				cell, detail := b.htmlCell(l, c, b.scenario(col.Scenario), col)
				row.Cells = append(row.Cells, cell)
				row.Bad = row.Bad || cell.Class == "fail" || cell.Class == "known" || cell.Class == "error"
				if detail != nil {
					p.Details = append(p.Details, *detail)
				}
			}
			area.Rows = append(area.Rows, row)
		}
		p.Areas = append(p.Areas, area)
	}
	t, err := template.New("matrix").Parse(matrixHTML)
	if err != nil {
		return nil, fmt.Errorf("parse the matrix's template: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, p); err != nil {
		return nil, fmt.Errorf("write the matrix's page: %w", err)
	}
	return out.Bytes(), nil
}

// htmlCell is one cell; with a detail where more than a sign has to be said.
func (b *book) htmlCell(l links, c claim.Claim, s *scenario.Scenario, col htmlColumn) (htmlCell, *htmlDetail) {
	p := b.spot(c.ID, s, col.Impl)
	cell := htmlCell{look: p.State.look(), Column: col}
	if p.State == stNone {
		return cell, nil
	}
	cell.Title = fmt.Sprintf("%s, %s, %s: %s", c.ID, s.ID, col.Title, p.State.look().Word)
	if len(p.Entries) == 0 {
		return cell, nil
	}
	if p.State.shown() {
		cell.Href = l.record(p.Entries[len(p.Entries)-1])
		return cell, nil
	}
	d := &htmlDetail{Anchor: strings.Join([]string{"d", c.Anchor(), s.ID, col.Impl}, "-"), Claim: c.ID, Scenario: s.ID, Impl: col.Title}
	for _, e := range p.Entries {
		d.Looks = append(d.Looks, htmlSeen{e.State.look(), e.Kernel, e.Because, e.Known, l.record(e), b.facts(l, e)})
	}
	cell.Href = "#" + d.Anchor
	return cell, d
}

// measuredLines say what was measured, in plain text.
func (b *book) measuredLines() []string {
	if b.run == nil {
		return []string{"Nothing has been measured yet: everything is printed as not shown yet."}
	}
	lines := []string{"Measured by run " + b.run.ID + "."}
	var host []string
	for _, k := range sortedKeys(b.run.Host) {
		host = append(host, k+" "+b.run.Host[k])
	}
	if len(host) > 0 {
		lines = append(lines, "Host: "+strings.Join(host, ", ")+".")
	}
	for _, i := range b.run.Impls {
		if i.Missing != "" {
			lines = append(lines, title(i.Name)+" was missing: "+i.Missing+".")
			continue
		}
		lines = append(lines, fmt.Sprintf("%s: %s, sha256 %.16s….", title(i.Name), i.Version, i.SHA256))
	}
	lines = append(lines, besideLines(b.run.Beside)...)
	var kernels []string
	for _, k := range b.run.Kernels {
		kernels = append(kernels, k.Name+" ("+k.Version+")")
	}
	slices.SortFunc(kernels, compareVersions)
	if len(kernels) > 0 {
		lines = append(lines, "Guest kernels: "+strings.Join(kernels, ", ")+".")
	}
	if b.run.End == nil {
		lines = append(lines, "The run is broken: it did not end.")
	}
	return lines
}
