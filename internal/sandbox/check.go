package sandbox

import (
	"fmt"
	"strings"

	"virtiofsd/internal/config"
	"virtiofsd/internal/idmap"
)

// Advice says which ways of sandboxing work for a caller on a host.
type Advice struct {
	Facts Facts `json:"facts"`
	Ways  []Way `json:"ways"` // best first
}

// Way is one way of sandboxing.
type Way struct {
	Name        string   `json:"name"`
	Options     []string `json:"options"` // what to add to the command line
	Works       bool     `json:"works"`
	Recommended bool     `json:"recommended"`    // the best that works
	Why         string   `json:"why,omitempty"`  // it does not, and the remedy
	Open        []string `json:"open,omitempty"` // what it leaves open
}

// Check tries the plans of all modes on facts; other options are as in o. It is pure.
func Check(o config.Options, f Facts) Advice {
	a := Advice{Facts: f}
	o.UIDMap, o.GIDMap, o.NoFailSetgroups = nil, nil, false
	try := func(name, mode string, maps bool) {
		w := Way{Name: name, Options: []string{"--sandbox=" + mode}}
		o := o
		o.Sandbox = mode
		if maps {
			o.UIDMap, o.GIDMap = withRanges(f.UID, f.SubUID), withRanges(f.GID, f.SubGID)
			for _, r := range o.UIDMap {
				w.Options = append(w.Options, "--uid-map="+r.String())
			}
			for _, r := range o.GIDMap {
				w.Options = append(w.Options, "--gid-map="+r.String())
			}
		}
		p, err := Make(o, f)
		if err != nil && f.MapIsSingle() && mode != config.SandboxNone {
			o.NoFailSetgroups = true
			if again, e := Make(o, f); e == nil {
				p, err = again, nil
				w.Options = append(w.Options, "--no-fail-setgroups")
			}
		}
		w.Works, w.Open = err == nil, p.Open
		if err != nil {
			w.Why, w.Open = err.Error(), nil
		}
		a.Ways = append(a.Ways, w)
	}
	if !f.Has(SysAdmin) {
		try("user namespace with a range of ids", config.SandboxNamespace, true)
	}
	try("namespaces", config.SandboxNamespace, false)
	try("the caller's sandbox, with the share as root", config.SandboxPivotRoot, false)
	try("change of root", config.SandboxChroot, false)
	try("none", config.SandboxNone, false)
	for i := range a.Ways {
		if a.Ways[i].Works {
			a.Ways[i].Recommended = true
			break
		}
	}
	return a
}

// withRanges maps the caller's own id to 0 and the first range that subuid(5) gives him above it, as libvirt and podman do.
func withRanges(own uint32, subs []idmap.Sub) idmap.Map {
	m := idmap.Map{{Inside: 0, Outside: own, Count: 1}}
	if len(subs) == 0 { // the refusal will say what to add
		return append(m, idmap.Range{Inside: 1, Outside: 100000, Count: 65536})
	}
	return append(m, idmap.Range{Inside: 1, Outside: subs[0].First, Count: subs[0].Count})
}

// String is the advice for people.
func (a Advice) String() string {
	var b strings.Builder
	f := a.Facts
	where := "the initial user namespace"
	if !f.Initial() {
		where = fmt.Sprintf("a user namespace with %d user ids and %d group ids", f.UIDMap.Ids(), f.GIDMap.Ids())
	}
	fmt.Fprintf(&b, "caller: uid %d, gid %d, supplementary groups %s, in %s\ncapabilities: %v\n", f.UID, f.GID,
		orNone(strings.Trim(fmt.Sprint(f.Groups), "[]")), where, f.Effective)
	fmt.Fprintf(&b, "kernel: Landlock version %d, system call filters %s\n", f.Landlock, map[bool]string{true: "yes", false: "no"}[f.Seccomp])
	for _, r := range f.Rooms {
		fmt.Fprintf(&b, "threads: %s leaves %d\n", r.By, r.Left)
	}
	for _, w := range a.Ways {
		mark := "does not work"
		switch {
		case w.Recommended:
			mark = "works, recommended"
		case w.Works:
			mark = "works"
		}
		fmt.Fprintf(&b, "\n%s: %s\n    %s\n", w.Name, mark, strings.Join(w.Options, " "))
		if w.Why != "" {
			fmt.Fprintf(&b, "    %s\n", w.Why)
		}
		for _, o := range w.Open {
			fmt.Fprintf(&b, "    left open: %s\n", o)
		}
	}
	return b.String()
}
