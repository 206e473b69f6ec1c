package report

import (
	"encoding/json"
	"fmt"
	"html"
	"slices"
	"strings"

	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/probe"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
	"virtiofsd/harness/verdict"
)

// picture is what was measured of a scenario's processes, as SVG: the launcher, the daemon's processes, what is around them (namespaces,
// id maps, root, mounts) and what they may still do. ok is false where there is nothing to draw.
func (b *book) picture(s *scenario.Scenario) (svg string, ok bool) {
	if b.run == nil {
		return "", false
	}
	for _, k := range slices.Backward(s.Kernels) {
		id := result.CellID{Scenario: s.ID, Impl: "ours", Kernel: k}
		obs := b.run.Observations[id]
		proc, ok := factsOf[probe.Proc](obs, scenario.ProbeProc)
		if !ok || proc.Serving < 0 || proc.Serving >= len(proc.Processes) {
			continue
		}
		mounts, _ := factsOf[probe.Mounts](obs, scenario.ProbeMounts)
		info, _ := factsOf[guestproto.Info](obs, guestproto.CallInfo)
		return draw(s, k, proc, mounts, info), true
	}
	return "", false
}

// factsOf decodes the last observation of a probe that was taken with the guest there.
func factsOf[T any](obs []result.Observation, what string) (v T, ok bool) {
	for _, o := range slices.Backward(obs) {
		if o.Probe == what && o.Error == "" && !strings.HasSuffix(o.Step, "-"+scenario.AtStarted) {
			return v, json.Unmarshal(o.Facts, &v) == nil
		}
	}
	return v, false
}

// The picture's measures in pixels; a character of the text is taken as 7.1 wide.
const (
	picWidth = 760
	picPad   = 14
	picLine  = 18
	picChar  = 7.1
)

// box is a titled frame with lines of text, and boxes within.
type box struct {
	title, class string
	lines        []string
	inner        []box
}

func draw(s *scenario.Scenario, kernel string, proc probe.Proc, mounts probe.Mounts, info guestproto.Info) string {
	guest := box{title: "Guest", class: "guest", lines: []string{"Linux " + orDash(info.Release)}}
	if guest.lines[0] == "Linux –" {
		guest.lines[0] = "Linux " + kernel
	}
	for _, m := range info.Mounts {
		guest.lines = append(guest.lines, fmt.Sprintf("%s mounted as virtiofs (%s)", m.Tag, m.Effective))
	}
	boxes := []box{{title: "Launcher (here vfsmatrix)", class: "host", lines: privileges(proc.Launcher)}}
	for i, p := range proc.Processes {
		title, class := "The daemon's waiting process", "wait"
		if i == proc.Serving {
			title, class = "The serving process", "serve"
		}
		inside := box{title: title, class: class, lines: privileges(p)}
		inside.lines = append(inside.lines, fmt.Sprintf("root: %s; working directory: %s", rootWord(p.RootIsDir), rootWord(p.CwdIsDir)))
		if i == proc.Serving {
			inside.inner = append(inside.inner, mountBox(mounts))
		}
		boxes = append(boxes, framed(inside, p, proc.Launcher))
	}
	boxes = append(boxes, guest)

	var w strings.Builder
	y := 0
	for i, b := range boxes {
		if i > 0 {
			what := "starts"
			if i == len(boxes)-1 {
				what = "vhost-user socket, guest memory"
			}
			fmt.Fprintf(&w, "<path class=\"arrow\" d=\"M%d %d v22\"/><text class=\"small\" x=\"%d\" y=\"%d\">%s</text>\n", picWidth/2, y+2, picWidth/2+12, y+18, what)
			y += 28
		}
		y += b.draw(&w, 1, y+1, picWidth-2)
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">
<title>%s</title>
<style>
text { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; fill: #1b1f24; } .b { font-weight: bold; } .small { font-size: 12px; fill: #59636e; }
rect { fill: #fff; stroke: #8a949e; rx: 5px; } .bg { stroke: none; } .host { fill: #f3f5f7; } .wait { fill: #eef1f5; } .serve { fill: #e2f3e6; stroke: #3f9150; }
.guest { fill: #e3ebf9; stroke: #4a74b8; } .ns { fill: #fffaf0; stroke: #c08a2a; stroke-dasharray: 6 3; } .userns { fill: #fdf2fb; stroke: #a3489a; stroke-dasharray: 6 3; } .mounts { fill: #fff; }
.arrow { stroke: #59636e; stroke-width: 1.5; fill: none; marker-end: url(#tip); }
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#59636e"/></marker></defs>
<rect class="bg" width="%d" height="%d"/>
%s</svg>
`, picWidth, y+2, picWidth, y+2, html.EscapeString(s.ID+": processes, namespaces, id maps and mounts as measured"), html.EscapeString(s.ID+", Linux "+kernel), picWidth, y+2, w.String())
}

// framed puts a process into its namespaces, as far as they are not the launcher's.
func framed(b box, p, launcher probe.Process) box {
	var own []string
	for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		if p.Namespaces[kind] != launcher.Namespaces[kind] {
			own = append(own, map[string]string{"mnt": "mount", "net": "network"}[kind])
			if own[len(own)-1] == "" {
				own[len(own)-1] = kind
			}
		}
	}
	if len(own) > 0 {
		b = box{title: "Own namespaces: " + strings.Join(own, ", "), class: "ns", inner: []box{b}}
	}
	if p.Namespaces["user"] != launcher.Namespaces["user"] {
		b = box{title: "Own user namespace", class: "userns", lines: []string{
			"uid map (inside outside count): " + p.UIDMap, "gid map: " + p.GIDMap + "; setgroups: " + p.Setgroups,
		}, inner: []box{b}}
	}
	return b
}

func mountBox(m probe.Mounts) box {
	b := box{title: fmt.Sprintf("Mounts it can reach: %d", len(m.Mounts)), class: "mounts"}
	for i, e := range m.Mounts {
		if i == 6 && len(m.Mounts) > 7 {
			b.lines = append(b.lines, fmt.Sprintf("and %d more", len(m.Mounts)-i))
			break
		}
		b.lines = append(b.lines, fmt.Sprintf("%s  %s  %s", e.Point, e.FSType, e.Options))
	}
	return b
}

func rootWord(is string) string {
	return map[string]string{"host": "the host's", "share": "the share"}[is] + map[bool]string{true: is}[is != "host" && is != "share"]
}

// privileges are who a process is and what it may do, of all threads together.
func privileges(p probe.Process) []string {
	if len(p.Threads) == 0 {
		return nil
	}
	first, caps, bounding := p.Threads[0], uint64(0), uint64(0)
	groups := map[int]bool{}
	nnp, seccomp := 1, 2
	for _, t := range p.Threads {
		caps |= t.CapEff | t.CapPrm
		bounding |= t.CapBnd
		nnp, seccomp = min(nnp, t.NoNewPrivs), min(seccomp, t.Seccomp)
		for _, g := range t.Groups {
			groups[g] = true
		}
	}
	var list []int
	for g := range groups {
		list = append(list, g)
	}
	slices.Sort(list)
	words := "none"
	if len(list) > 0 {
		words = strings.Trim(strings.ReplaceAll(fmt.Sprint(list), " ", ", "), "[]")
	}
	bound := capWords(bounding)
	if bounding == caps && caps != 0 {
		bound = "the same"
	}
	return []string{
		fmt.Sprintf("uid %d, gid %d on the host; supplementary groups: %s", first.UID[1], first.GID[1], words),
		"capabilities: " + capWords(caps),
		"bounding set: " + bound,
		fmt.Sprintf("no_new_privs: %s; system call filter: %s", yes(nnp == 1), yes(seccomp == 2)),
	}
}

func capWords(m uint64) string {
	n := verdict.Capabilities(m)
	switch {
	case len(n) == 0:
		return "none"
	case len(n) > 12:
		return fmt.Sprintf("%d", len(n))
	}
	return strings.Join(n, " ")
}

func yes(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

// draw writes the box and returns its height.
func (b box) draw(w *strings.Builder, x, y, width int) int {
	var inside strings.Builder
	h := picPad + picLine
	fmt.Fprintf(&inside, "<text class=\"b\" x=\"%d\" y=\"%d\">%s</text>\n", x+picPad, y+h-picLine/3, html.EscapeString(b.title))
	for _, l := range b.lines {
		for i, part := range wrap(l, int(float64(width-2*picPad)/(picChar*1.11))) {
			dx := 0
			if i > 0 {
				dx = 2 * picPad
			}
			h += picLine
			fmt.Fprintf(&inside, "<text x=\"%d\" y=\"%d\">%s</text>\n", x+picPad+dx, y+h-picLine/3, html.EscapeString(part))
		}
	}
	h += picPad / 2
	for _, c := range b.inner {
		h += c.draw(&inside, x+picPad, y+h, width-2*picPad) + picPad
	}
	fmt.Fprintf(w, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>\n%s", b.class, x, y, width, h, inside.String())
	return h
}

// wrap breaks a line between words.
func wrap(s string, width int) []string {
	var out []string
	line := ""
	for _, word := range strings.Fields(s) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) > width:
			out = append(out, line)
			line, width = word, width-4
		default:
			line += " " + word
		}
	}
	return append(out, line)
}
