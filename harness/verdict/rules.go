package verdict

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/probe"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
)

// Named is a rule with what it means.
type Named struct {
	Func Rule
	// Means is one sentence; Of says what the claim's names are, "" where the rule takes none.
	Means string
	Of    string
}

// Rules are all rules by name.
func Rules() map[string]Named {
	return map[string]Named{
		"started":          {started, "the daemon became ready and the guest mounted the share", ""},
		"attempts":         {attempts, "attempts of guest call containment were made, and none of them got outside", "patterns of attempts' names"},
		"withstands":       {withstands, "cases of probe hostile were withstood: the daemon refused what breaks the rules, and served on where it could", "patterns of cases' names"},
		"driven":           {driven, "checks of probe driven pass: the daemon answers on such a host, or such a driver, as a local file system does", "patterns of checks' names"},
		"outside":          {outside, "what the host planted beside the share is as it was, and nothing is new there", ""},
		"root-is-share":    {rootIsShare, "root and working directory of the serving process are the share's", ""},
		"namespaces":       {namespaces, "the serving process has namespaces of its own", "kinds of namespaces"},
		"one-mount":        {oneMount, "the serving process's mount namespace holds the share and nothing else", ""},
		"mount-options":    {mountOptions, "the share's mount has the options", "mount options"},
		"fds-inside":       {fdsInside, "no descriptor of the serving process leads out of the share", ""},
		"groups-dropped":   {groupsDropped, "no thread of these processes has a supplementary group", "serving, for the serving process, or others"},
		"caps-within":      {capsWithin, "effective, permitted, inheritable and ambient capabilities of every thread of the serving process are within the list", "capabilities"},
		"caps-without":     {capsWithout, "no thread of the serving process has one of the capabilities as effective, permitted, inheritable or ambient", "capabilities"},
		"bounding-within":  {boundingWithin, "the bounding set of every thread of the serving process is within the list", "capabilities"},
		"parent-caps-none": {parentCapsNone, "processes that do not serve hold no capability", ""},
		"no-new-privs":     {noNewPrivs, "no_new_privs is set in every thread of the serving process", ""},
		"seccomp":          {seccomp, "a seccomp filter is on in every thread of the serving process", ""},
		"before-guest":     {beforeGuest, "privileges and namespaces are the same before the front-end connects and while it is served", ""},
		"not-host-root":    {notHostRoot, "no thread of the serving process has uid 0 or gid 0 of the host", ""},
		"same-as-local":    {sameAsLocal, "owner, group, mode and ACL of what the guest makes are those that the same creation gives on a local file system", "kinds (file, dir …), or in:<directory> for one parent directory"},
		"owners-on-host":   {ownersOnHost, "each file belongs on the host to the ids that the serving process's maps give for the guest's ids", ""},
		"checks":           {checks, "the checks pass", "names of checks; none is all"},
		"big-io":           {bigIO, "the sha256 of what the guest wrote, what it read back, and what the host reads are the same", ""},
		"differ":           {differ, "no random operation of several users and processes gave anything else on the share than on a local file system, nor did both trees at the end", ""},
		"churn":            {churn, "random operations gave only what a file system may give while the host changed the same names, and afterwards guest and host saw the same tree", ""},
		"fsx":              {fsx, "each byte that was read, by whatever way, was the one written last", ""},
		"tree":             {tree, "as many files were made, listed, renamed, listed again and removed as asked for, and none was left", ""},
		"clean-exit":       {cleanExit, "guest, QEMU and daemon ended by themselves, with status 0", ""},
		"no-processes":     {leftProcesses, "no process of the daemon is left", ""},
		"no-mounts":        {leftMounts, "the launcher's mount table is as it was", ""},
		"no-files":         {leftFiles, "socket and pid file are gone", ""},
		"quiet-log":        {quietLog, "the daemon's log tells of no crash", ""},
		"guest-kernel":     {guestKernel, "the guest's kernel log tells of no fault", ""},
		"queues":           {queues, "the guest's device has as many request queues as the scenario asks for", ""},
	}
}

func holdsIf(ok bool, format string, args ...any) Finding {
	f := Finding{State: Violated, Saw: fmt.Sprintf(format, args...)}
	if ok {
		f.State = Holds
	}
	return f
}

// none holds when there is nothing bad.
func none(bad []string, good string, args ...any) Finding {
	if len(bad) > 0 {
		return Finding{State: Violated, Saw: some(bad, 4)}
	}
	return Finding{State: Holds, Saw: fmt.Sprintf(good, args...)}
}

func broken(format string, args ...any) Finding {
	return Finding{State: Broken, Saw: fmt.Sprintf(format, args...)}
}

// silent is what a rule finds where a probe gave facts without the list that is asked for: an empty list is [], not nothing.
func silent(probe, what string) Finding {
	return broken("the facts of %s say nothing of %s", probe, what)
}

func started(v *View, _ []string) Finding {
	info, f := facts[guestproto.Info](v, guestproto.CallInfo)
	if f != nil {
		return *f
	}
	for _, m := range info.Mounts {
		if !m.OK {
			return holdsIf(false, "the guest cannot mount %s: %s", m.Tag, m.Errno)
		}
	}
	if len(info.Mounts) == 0 {
		return broken("the guest was not asked to mount anything")
	}
	return holdsIf(true, "ready, and mounted by Linux %s as %s", info.Release, info.Mounts[0].Tag)
}

func attempts(v *View, of []string) Finding {
	c, f := facts[guestproto.Containment](v, guestproto.CallContainment)
	if f != nil {
		return *f
	}
	var bad []string
	n := 0
	for _, a := range c.Attempts {
		if !matchAny(of, a.Name) {
			continue
		}
		n++
		if a.Escaped {
			bad = append(bad, strings.TrimSpace(fmt.Sprintf("%s got out: %s", a.Name, a.Saw)))
		}
	}
	if n == 0 {
		return broken("no attempt has a name like %s", strings.Join(of, ", "))
	}
	return none(bad, "%d attempts, none got out", n)
}

func withstands(v *View, of []string) Finding {
	h, f := facts[probe.Hostile](v, scenario.ProbeHostile)
	if f != nil {
		return *f
	}
	var bad []string
	n := 0
	for _, c := range h.Cases {
		if !matchAny(of, c.Name) {
			continue
		}
		n++
		if !c.Withstood {
			bad = append(bad, strings.TrimSpace(fmt.Sprintf("%s: %s %s", c.Name, c.Outcome, c.Detail)))
		}
	}
	if n == 0 {
		return broken("no case has a name like %s", strings.Join(of, ", "))
	}
	return none(bad, "%d cases, all withstood", n)
}

func driven(v *View, of []string) Finding {
	d, f := facts[probe.Driven](v, scenario.ProbeDriven)
	if f != nil {
		return *f
	}
	var bad, declined []string
	n, why := 0, result.SkipNeed
	for _, c := range d.Checks {
		if !matchAny(of, c.Name) {
			continue
		}
		n++
		switch c.Status {
		case guestproto.StatusPass:
		case guestproto.StatusUnsupported:
			declined, why = append(declined, c.Name+": "+c.Detail), result.SkipInexpressible
		case guestproto.StatusSkip:
			declined = append(declined, c.Name+": "+c.Detail)
		default:
			bad = append(bad, strings.TrimSpace(c.Name+": "+c.Detail))
		}
	}
	switch {
	case n == 0:
		return broken("no check has a name like %s", strings.Join(of, ", "))
	case len(bad) == 0 && len(declined) > 0:
		return Finding{State: Neither, Skip: why, Saw: some(declined, 2)}
	}
	return none(bad, "%d checks pass", n)
}

// matchAny reports whether a name matches one of the patterns of path.Match; no pattern matches all.
func matchAny(patterns []string, name string) bool {
	if len(patterns) == 0 {
		return true
	}
	// A slash in a name is no separator here.
	name = strings.ReplaceAll(name, "/", "|")
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, name)
		return err == nil && ok
	})
}

func outside(v *View, _ []string) Finding {
	o, f := facts[probe.Outside](v, scenario.ProbeOutside)
	switch {
	case f != nil:
		return *f
	case o.Entries == 0:
		return broken("nothing was planted outside the share")
	}
	return none(o.Changed, "%d entries beside the share, all as they were", o.Entries)
}

// serving is the process that serves the guest, at the time the guest is up.
func serving(v *View) (*probe.Proc, *probe.Process, *Finding) {
	p, f := factsOf[probe.Proc](v, scenario.ProbeProc, func(o result.Observation) bool {
		return !strings.HasSuffix(o.Step, "-"+scenario.AtStarted)
	})
	if f != nil {
		return nil, nil, f
	}
	s, f := servingOf(p)
	return p, s, f
}

func servingOf(p *probe.Proc) (*probe.Process, *Finding) {
	if p.Serving < 0 || p.Serving >= len(p.Processes) || len(p.Processes[p.Serving].Threads) == 0 {
		f := broken("the probe proc found no serving process with threads")
		return nil, &f
	}
	return &p.Processes[p.Serving], nil
}

func rootIsShare(v *View, _ []string) Finding {
	_, s, f := serving(v)
	if f != nil {
		return *f
	}
	return holdsIf(s.RootIsDir == "share" && s.CwdIsDir == "share", "root is the %s's, working directory the %s's", s.RootIsDir, s.CwdIsDir)
}

func namespaces(v *View, of []string) Finding {
	p, s, f := serving(v)
	if f != nil {
		return *f
	}
	var bad []string
	for _, kind := range of {
		theirs, mine := p.Launcher.Namespaces[kind], s.Namespaces[kind]
		switch {
		case theirs == "" || mine == "":
			return broken("the probe proc does not know namespaces of the kind %q", kind)
		case theirs == mine:
			bad = append(bad, fmt.Sprintf("%s namespace is the launcher's", kind))
		}
	}
	return none(bad, "own %s", strings.Join(of, ", "))
}

func oneMount(v *View, _ []string) Finding {
	m, f := facts[probe.Mounts](v, scenario.ProbeMounts)
	switch {
	case f != nil:
		return *f
	case m.Mounts == nil:
		return silent(scenario.ProbeMounts, "mounts")
	case len(m.Mounts) == 0:
		return holdsIf(false, "the root of the serving process is no mount of its own, and all mounts of its namespace lie outside of it")
	}
	var other []string
	for _, e := range m.Mounts {
		if e.Point != "/" {
			other = append(other, fmt.Sprintf("%s (%s)", e.Point, e.FSType))
		}
	}
	if len(other) > 0 {
		return holdsIf(false, "%d mounts besides /: %s", len(other), some(other, 4))
	}
	return holdsIf(true, "one mount: %s of %s, %s", m.Mounts[0].Root, m.Mounts[0].FSType, m.Mounts[0].Options)
}

func mountOptions(v *View, of []string) Finding {
	m, f := facts[probe.Mounts](v, scenario.ProbeMounts)
	switch {
	case f != nil:
		return *f
	case m.Mounts == nil:
		return silent(scenario.ProbeMounts, "mounts")
	}
	i := slices.IndexFunc(m.Mounts, func(e probe.Mount) bool { return e.Point == "/" })
	if i < 0 {
		return holdsIf(false, "the root of the serving process is no mount of its own, so it has no options of its own")
	}
	var bad []string
	for _, o := range of {
		if !slices.Contains(strings.Split(m.Mounts[i].Options, ","), o) {
			bad = append(bad, o)
		}
	}
	if len(bad) > 0 {
		return holdsIf(false, "/ is mounted without %s: %s", strings.Join(bad, ", "), m.Mounts[i].Options)
	}
	return holdsIf(true, "/ is mounted %s", m.Mounts[i].Options)
}

func fdsInside(v *View, _ []string) Finding {
	d, f := facts[probe.FDs](v, scenario.ProbeFDs)
	switch {
	case f != nil:
		return *f
	case len(d.FDs) == 0:
		return broken("the serving process has no descriptor")
	}
	var bad []string
	for _, fd := range d.FDs {
		switch {
		case fd.Leads == "host":
			bad = append(bad, fmt.Sprintf("%d (%s) leads to the host's root by ..", fd.FD, fd.Target))
		case fd.Outside && fd.FD > 2:
			bad = append(bad, fmt.Sprintf("%d is %s", fd.FD, fd.Target))
		}
	}
	return none(bad, "%d descriptors, none leads out", len(d.FDs))
}

// eachThread calls bad for every thread and collects what it says: one line for all threads of a process of which the same is said.
// Numbers of processes and threads differ from run to run and are left out.
func eachThread(p *probe.Proc, which func(i int) bool, bad func(probe.Thread) string) (out []string, n int) {
	for i, q := range p.Processes {
		if !which(i) {
			continue
		}
		n += len(q.Threads)
		count := map[string]int{}
		var order []string
		for _, t := range q.Threads {
			if s := bad(t); s != "" {
				if count[s]++; count[s] == 1 {
					order = append(order, s)
				}
			}
		}
		role := "process that does not serve"
		if i == p.Serving {
			role = "serving process"
		}
		for _, s := range order {
			switch {
			case len(q.Threads) == 1:
				out = append(out, fmt.Sprintf("the %s has %s", role, s))
			case count[s] == len(q.Threads):
				out = append(out, fmt.Sprintf("all %d threads of the %s have %s", count[s], role, s))
			default:
				out = append(out, fmt.Sprintf("%d of %d threads of the %s have %s", count[s], len(q.Threads), role, s))
			}
		}
	}
	return out, n
}

// threads judges every thread of the serving process.
func threads(v *View, good string, bad func(probe.Thread) string) Finding {
	p, _, f := serving(v)
	if f != nil {
		return *f
	}
	out, n := eachThread(p, func(i int) bool { return i == p.Serving }, bad)
	return none(out, "%s in each of %d threads", good, n)
}

func groupsDropped(v *View, of []string) Finding {
	p, _, f := serving(v)
	if f != nil {
		return *f
	}
	bad, n := eachThread(p, func(i int) bool { return (i == p.Serving) == slices.Contains(of, "serving") }, func(t probe.Thread) string {
		if len(t.Groups) == 0 {
			return ""
		}
		return fmt.Sprintf("the groups %v", t.Groups)
	})
	return none(bad, "no supplementary group in %d threads", n)
}

func capsWithin(v *View, of []string) Finding {
	allowed, err := Mask(of)
	if err != nil {
		return broken("%v", err)
	}
	var sum uint64
	f := threads(v, "", func(t probe.Thread) string {
		has := t.CapEff | t.CapPrm | t.CapInh | t.CapAmb
		sum |= has
		if over := has &^ allowed; over != 0 {
			return names(over) + " beyond the list"
		}
		return ""
	})
	if f.State == Holds {
		f.Saw = names(sum) + f.Saw
	}
	return f
}

func capsWithout(v *View, of []string) Finding {
	barred, err := Mask(of)
	if err != nil {
		return broken("%v", err)
	}
	return threads(v, "none of "+strings.Join(of, ", "), func(t probe.Thread) string {
		if has := (t.CapEff | t.CapPrm | t.CapInh | t.CapAmb) & barred; has != 0 {
			return names(has)
		}
		return ""
	})
}

func boundingWithin(v *View, of []string) Finding {
	allowed, err := Mask(of)
	if err != nil {
		return broken("%v", err)
	}
	what := "an empty bounding set"
	if len(of) > 0 {
		what = "a bounding set within the list"
	}
	return threads(v, what, func(t probe.Thread) string {
		if over := t.CapBnd &^ allowed; over != 0 {
			return names(over) + " in the bounding set"
		}
		return ""
	})
}

func parentCapsNone(v *View, _ []string) Finding {
	p, _, f := serving(v)
	if f != nil {
		return *f
	}
	out, n := eachThread(p, func(i int) bool { return i != p.Serving }, func(t probe.Thread) string {
		if has := t.CapEff | t.CapPrm; has != 0 {
			return names(has)
		}
		return ""
	})
	if n == 0 {
		return holdsIf(true, "there is no other process")
	}
	return none(out, "no capability in %d threads", n)
}

func noNewPrivs(v *View, _ []string) Finding {
	return threads(v, "no_new_privs", func(t probe.Thread) string {
		if t.NoNewPrivs == 1 {
			return ""
		}
		return "no_new_privs " + strconv.Itoa(t.NoNewPrivs)
	})
}

func seccomp(v *View, _ []string) Finding {
	return threads(v, "seccomp filter", func(t probe.Thread) string {
		if t.Seccomp == 2 {
			return ""
		}
		return "seccomp mode " + strconv.Itoa(t.Seccomp)
	})
}

// beforeGuest compares what the serving process may do before a front-end has connected with what it may do afterwards.
func beforeGuest(v *View, _ []string) Finding {
	p, f := factsOf[probe.Proc](v, scenario.ProbeProc, func(o result.Observation) bool {
		return strings.HasSuffix(o.Step, "-"+scenario.AtStarted)
	})
	if f != nil {
		return *f
	}
	before, f := servingOf(p)
	if f != nil {
		return *f
	}
	_, after, f := serving(v)
	if f != nil {
		return *f
	}
	var bad []string
	for _, kind := range []string{"mnt", "pid", "net", "user"} {
		if before.Namespaces[kind] != after.Namespaces[kind] {
			bad = append(bad, kind+" namespace is entered only after the front-end has connected")
		}
	}
	union := func(p *probe.Process) (c uint64) {
		for _, t := range p.Threads {
			c |= t.CapEff | t.CapPrm
		}
		return c
	}
	if extra := union(before) &^ union(after); extra != 0 {
		bad = append(bad, "holds until then "+names(extra))
	}
	weakest := func(p *probe.Process) int {
		m := 2
		for _, t := range p.Threads {
			m = min(m, t.Seccomp)
		}
		return m
	}
	if weakest(before) < weakest(after) {
		bad = append(bad, "has no seccomp filter until then")
	}
	if before.RootIsDir != after.RootIsDir {
		bad = append(bad, "its root is the "+before.RootIsDir+"'s until then")
	}
	return none(bad, "namespaces, root, capabilities and seccomp do not change when the front-end connects")
}

func notHostRoot(v *View, _ []string) Finding {
	return threads(v, "neither uid 0 nor gid 0 of the host", func(t probe.Thread) string {
		if slices.Contains(t.UID[:], 0) || slices.Contains(t.GID[:], 0) {
			return fmt.Sprintf("the uids %v and gids %v", t.UID, t.GID)
		}
		return ""
	})
}

// view is an owner and mode in one word.
func view(w guestproto.View) string {
	if w.Errno != "" {
		return w.Errno
	}
	s := fmt.Sprintf("%d:%d %s", w.UID, w.GID, w.Mode)
	if w.ACL != "" {
		s += " acl " + w.ACL
	}
	return s
}

// inACL says that an inode was made in one of the directories with a default ACL that guest call identity makes.
func inACL(o guestproto.Ownership) bool { return strings.HasPrefix(o.Parent, "acl") }

func sameAsLocal(v *View, of []string) Finding {
	id, f := facts[guestproto.Identity](v, guestproto.CallIdentity)
	if f != nil {
		return *f
	}
	var bad []string
	n := 0
	noGroups := older(v, sinceKernel["supplementary"]) // the daemon cannot know that the creator is a member
	for _, o := range id.Created {
		// What stands in a directory with a default ACL, and device nodes, are judged only where the claim is about them: a share may
		// lack either without being wrong in all else.
		node := o.Kind == "char" || o.Kind == "block"
		special := inACL(o) || node
		parent, _, _ := strings.Cut(o.Parent, "-") // acl-setgid is one with a default ACL, too
		named := slices.Contains(of, "in:"+parent) && !node || !inACL(o) && slices.Contains(of, o.Kind)
		if !named && (special || len(of) > 0) {
			continue
		}
		if o.Kind == "setgidfile" && len(o.As.Groups) > 0 && noGroups {
			continue
		}
		n++
		if o.Kind == "tmpfile" && slices.Contains([]string{"ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EISDIR"}, o.Share.Errno) {
			continue // an honest refusal, after which programs use a named file
		}
		if !o.Same {
			bad = append(bad, fmt.Sprintf("%s by %d:%d%s is %s, locally %s", o.Path, o.As.UID, o.As.GID, groups(o.As.Groups), view(o.Share), view(o.Local)))
		}
	}
	if n == 0 {
		return broken("nothing of %s was made", strings.Join(of, ", "))
	}
	if len(bad) > 0 {
		return holdsIf(false, "%d of %d differ: %s", len(bad), n, some(bad, 3))
	}
	return holdsIf(true, "%d creations, all as on a local file system", n)
}

func groups(g []int) string {
	if len(g) == 0 {
		return ""
	}
	return fmt.Sprintf(" with groups %v", g)
}

func ownersOnHost(v *View, _ []string) Finding {
	id, f := facts[guestproto.Identity](v, guestproto.CallIdentity)
	if f != nil {
		return *f
	}
	host, f := facts[probe.Owners](v, scenario.ProbeOwners)
	if f != nil {
		return *f
	}
	_, s, f := serving(v)
	if f != nil {
		return *f
	}
	uids, err := parseMap(s.UIDMap)
	if err != nil {
		return broken("uid_map: %v", err)
	}
	gids, err := parseMap(s.GIDMap)
	if err != nil {
		return broken("gid_map: %v", err)
	}
	onHost := map[string]probe.Owner{}
	for _, o := range host.Entries {
		onHost[o.Path] = o
	}
	var bad []string
	n := 0
	for _, o := range id.Created {
		if o.Share.Errno != "" || o.Kind == "tmpfile" {
			continue
		}
		n++
		h, ok := onHost[o.Path]
		uid, okU := uids.out(o.As.UID)
		gid, okG := gids.out(o.Share.GID)
		switch {
		case !ok:
			bad = append(bad, o.Path+" is not on the host")
		case !okU || !okG:
			bad = append(bad, fmt.Sprintf("%s was made as %d:%d, which the maps do not have", o.Path, o.As.UID, o.Share.GID))
		case h.UID != uid || h.GID != gid:
			bad = append(bad, fmt.Sprintf("%s belongs to %d:%d on the host, the maps say %d:%d", o.Path, h.UID, h.GID, uid, gid))
		case o.Share.UID != o.As.UID:
			bad = append(bad, fmt.Sprintf("%s made by %d belongs to %d in the guest", o.Path, o.As.UID, o.Share.UID))
		}
	}
	if n == 0 {
		return holdsIf(false, "no creation succeeded")
	}
	if len(bad) > 0 {
		return holdsIf(false, "%d of %d: %s", len(bad), n, some(bad, 3))
	}
	return holdsIf(true, "%d files, each with the owner that the maps give", n)
}

// idMap is a uid_map or gid_map as the probe gives it: "inside outside count, …".
type idMap [][3]int

func parseMap(s string) (idMap, error) {
	var m idMap
	for line := range strings.SplitSeq(s, ",") {
		var e [3]int
		if n, err := fmt.Sscan(line, &e[0], &e[1], &e[2]); err != nil {
			return nil, fmt.Errorf("line %q has %d numbers: %w", line, n, err)
		}
		m = append(m, e)
	}
	return m, nil
}

// out is the id outside for one inside.
func (m idMap) out(id int) (int, bool) {
	for _, e := range m {
		if id >= e[0] && id-e[0] < e[2] {
			return e[1] + id - e[0], true
		}
	}
	return 0, false
}

// checks looks at whichever of the calls that give checks the names are of: the first word of a name says which.
// sinceKernel is the first Linux that asks a share for something, as fs/fuse of the kernel has it.
var sinceKernel = map[string][2]int{
	"basics:tmpfile":     {6, 2}, // FUSE_TMPFILE
	"supplementary":      {6, 3}, // FUSE_CREATE_SUPP_GROUP
	"basics:statx-btime": {6, 6}, // FUSE_STATX
}

// older reports whether the guest's kernel is older than a version. One that is not known is not older.
func older(v *View, than [2]int) bool {
	i, f := facts[guestproto.Info](v, guestproto.CallInfo)
	if f != nil {
		return false
	}
	var is [2]int
	if n, _ := fmt.Sscanf(i.Release, "%d.%d", &is[0], &is[1]); n != 2 {
		return false
	}
	return slices.Compare(is[:], than[:]) < 0
}

// stepsOf are the steps that ran a probe, in order; without any, the probe's name, so that its lack
// is found.
func stepsOf(v *View, probe string) []string {
	var all []string
	for _, o := range v.Observations {
		if o.Probe == probe && !slices.Contains(all, o.Step) {
			all = append(all, o.Step)
		}
	}
	if all == nil {
		return []string{probe}
	}
	return all
}

func checks(v *View, of []string) Finding {
	var all []guestproto.Check
	for _, call := range []string{guestproto.CallPosixTest, guestproto.CallBasics, guestproto.CallDurability, guestproto.CallReadonly, guestproto.CallHeld, scenario.ProbeMoves} {
		var wanted []string
		for _, n := range of {
			if name, ok := strings.CutPrefix(n, call+":"); ok {
				wanted = append(wanted, name)
			}
		}
		if len(wanted) == 0 {
			continue
		}
		n := len(all)
		for _, step := range stepsOf(v, call) {
			c, f := factsOf[struct {
				Checks []guestproto.Check `json:"checks"`
			}](v, call, func(o result.Observation) bool { return o.Step == step })
			if f != nil {
				return *f
			}
			for _, k := range c.Checks {
				if matchAny(wanted, k.Name) {
					all = append(all, k)
				}
			}
		}
		if len(all) == n {
			return broken("no check has a name like %s:%s", call, strings.Join(wanted, ", "))
		}
	}
	if len(all) == 0 {
		return broken("no check has a name like %s", strings.Join(of, ", "))
	}
	var bad, skipped []string
	for _, k := range all {
		switch k.Status {
		case guestproto.StatusPass:
		case guestproto.StatusSkip:
			skipped = append(skipped, k.Name+": "+k.Detail)
		case guestproto.StatusUnsupported:
			if least, ok := sinceKernel["basics:"+k.Name]; ok && older(v, least) {
				skipped = append(skipped, fmt.Sprintf("%s: the guest's kernel asks for it since Linux %d.%d", k.Name, least[0], least[1]))
				continue
			}
			bad = append(bad, fmt.Sprintf("%s is not supported (%s)", k.Name, k.Errno))
		default:
			bad = append(bad, fmt.Sprintf("%s: %s %s", k.Name, k.Detail, k.Errno))
		}
	}
	switch {
	case len(bad) > 0:
		return holdsIf(false, "%d of %d: %s", len(bad), len(all), some(bad, 3))
	case len(skipped) == len(all):
		return Finding{State: Neither, Skip: result.SkipKernel, Saw: some(skipped, 2)}
	case len(skipped) > 0:
		return holdsIf(true, "%d checks pass, %d declined (%s)", len(all)-len(skipped), len(skipped), some(skipped, 2))
	}
	return holdsIf(true, "%d checks pass", len(all))
}

func bigIO(v *View, _ []string) Finding {
	b, f := facts[guestproto.BigIO](v, guestproto.CallBigIO)
	if f != nil {
		return *f
	}
	h, f := facts[probe.SHA256](v, scenario.ProbeSHA256)
	switch {
	case f != nil:
		return *f
	case b.Errno != "":
		return holdsIf(false, "%s ended with %s", b.Failed, b.Errno)
	case b.Bytes == 0 || b.WroteSHA256 == "":
		return broken("nothing was written")
	case b.WroteSHA256 != b.ReadSHA256:
		return holdsIf(false, "the guest wrote %.12s and read back %.12s", b.WroteSHA256, b.ReadSHA256)
	case h.SHA256 != b.WroteSHA256 || h.Bytes != b.Bytes:
		return holdsIf(false, "the guest wrote %d bytes %.12s, the host reads %d bytes %.12s", b.Bytes, b.WroteSHA256, h.Bytes, h.SHA256)
	}
	return holdsIf(true, "%d MiB, sha256 %.12s on both sides", b.Bytes>>20, b.WroteSHA256)
}

func differ(v *View, _ []string) Finding {
	d, f := facts[guestproto.Differ](v, guestproto.CallDiffer)
	switch {
	case f != nil:
		return *f
	case d.Ops == 0:
		return broken("no operation was done")
	case d.Total > 0:
		var all []string
		for _, x := range d.Differences {
			all = append(all, fmt.Sprintf("%s (%s): share %s, local %s", x.Name, x.Op, x.Share, x.Local))
		}
		return holdsIf(false, "%d of %d operations differ: %s", d.Total, d.Ops, some(all, 1))
	}
	known := 0
	for _, n := range d.Known {
		known += n
	}
	if known > 0 {
		return holdsIf(true, "%d operations, %d differ in a way that is known and explained", d.Ops, known)
	}
	return holdsIf(true, "%d operations, no difference", d.Ops)
}

func churn(v *View, _ []string) Finding {
	c, f := facts[guestproto.Churn](v, guestproto.CallChurn)
	if f != nil {
		return *f
	}
	walk, f := facts[guestproto.Walk](v, guestproto.CallWalk)
	if f != nil {
		return *f
	}
	host, f := facts[probe.Owners](v, scenario.ProbeOwners)
	if f != nil {
		return *f
	}
	out, f := facts[probe.Outside](v, scenario.ProbeOutside)
	switch {
	case f != nil:
		return *f
	case out.Entries == 0:
		return broken("nothing stands beside the share that could change")
	case len(out.Changed) > 0:
		return holdsIf(false, "beside the share: %s", some(out.Changed, 4))
	case c.Ops == 0 || c.HostChanges == 0:
		return broken("%d operations and %d changes by the host prove nothing", c.Ops, c.HostChanges)
	case len(host.Entries) == 0 || walk.Cut:
		return broken("the host lists %d entries, and the guest's list is cut: %v", len(host.Entries), walk.Cut)
	case c.Strangers > 0:
		return holdsIf(false, "%d of %d operations gave what no file system gives: %s", c.Strangers, c.Ops, some(c.Strange, 4))
	}
	return none(twoViews(walk.Entries, host.Entries), "%d operations, %d changes by the host, %d entries left that both see", c.Ops, c.HostChanges, len(host.Entries))
}

// twoViews says where a tree is not the same for guest and host.
func twoViews(guest []guestproto.Entry, host []probe.Owner) (bad []string) {
	seen := map[string]string{}
	for _, e := range guest {
		what := fmt.Sprintf("%d:%d %s %s %s", e.UID, e.GID, e.Mode, e.Rdev, e.SHA256)
		if e.Errno != "" {
			what = e.Errno
		}
		seen[e.Path] = what
	}
	for _, o := range host {
		is := fmt.Sprintf("%d:%d %s %s %s", o.UID, o.GID, o.Mode, o.Rdev, o.SHA256)
		switch was, ok := seen[o.Path]; {
		case !ok:
			bad = append(bad, o.Path+" is not there for the guest")
		case was != is:
			bad = append(bad, fmt.Sprintf("%s is %s for the guest and %s for the host", o.Path, was, is))
		}
		delete(seen, o.Path)
	}
	for p := range seen {
		bad = append(bad, p+" is there for the guest only")
	}
	slices.Sort(bad)
	return bad
}

func fsx(v *View, _ []string) Finding {
	x, f := facts[guestproto.Fsx](v, guestproto.CallFsx)
	switch {
	case f != nil:
		return *f
	case x.Mismatch != "":
		return holdsIf(false, "%s", x.Mismatch)
	case x.Ops == 0:
		return broken("no operation was done")
	case len(x.Unsupported) > 0:
		return holdsIf(true, "%d operations, each byte right; refused: %s", x.Ops, strings.Join(x.Unsupported, ", "))
	}
	return holdsIf(true, "%d operations, each byte right", x.Ops)
}

func tree(v *View, _ []string) Finding {
	t, f := facts[guestproto.Tree](v, guestproto.CallTree)
	switch {
	case f != nil:
		return *f
	case t.Files == 0:
		return broken("no file was asked for")
	}
	n := t.Files
	ok := t.Made == n && t.Listed == n && t.Renamed == n && t.ListedAfter == n && t.Removed == n && t.Left == 0 && len(t.Wrong) == 0
	if !ok {
		return holdsIf(false, "of %d: made %d, listed %d, renamed %d, listed %d, removed %d, left %d; %s",
			n, t.Made, t.Listed, t.Renamed, t.ListedAfter, t.Removed, t.Left, some(t.Wrong, 3))
	}
	return holdsIf(true, "%d files made, listed, renamed, listed and removed", n)
}

func cleanExit(v *View, _ []string) Finding {
	e, f := facts[probe.Exit](v, scenario.ProbeExit)
	if f != nil {
		return *f
	}
	var bad []string
	if !e.GuestDone {
		bad = append(bad, "the guest did not say done")
	}
	if e.QEMU != 0 {
		bad = append(bad, fmt.Sprintf("QEMU ended with status %d", e.QEMU))
	}
	switch {
	case e.Killed:
		bad = append(bad, fmt.Sprintf("the daemon still ran %.0f s after QEMU had ended, and was killed", e.Seconds))
	case e.Signal != "":
		bad = append(bad, "the daemon was ended by "+e.Signal)
	case e.Status != 0:
		bad = append(bad, fmt.Sprintf("the daemon ended with status %d", e.Status))
	}
	return none(bad, "all ended with status 0, the daemon within %.0f s", max(1, e.Seconds))
}

func leftProcesses(v *View, _ []string) Finding {
	e, f := facts[probe.Exit](v, scenario.ProbeExit)
	switch {
	case f != nil:
		return *f
	case e.Processes == nil:
		return silent(scenario.ProbeExit, "processes")
	}
	return holdsIf(len(e.Processes) == 0, "%d processes left", len(e.Processes))
}

func leftMounts(v *View, _ []string) Finding {
	e, f := facts[probe.Exit](v, scenario.ProbeExit)
	switch {
	case f != nil:
		return *f
	case e.Mounts == nil:
		return silent(scenario.ProbeExit, "mounts")
	}
	return none(e.Mounts, "no mount left")
}

func leftFiles(v *View, _ []string) Finding {
	e, f := facts[probe.Exit](v, scenario.ProbeExit)
	switch {
	case f != nil:
		return *f
	case e.Files == nil:
		return silent(scenario.ProbeExit, "files")
	}
	var bad []string
	for _, n := range e.Files {
		bad = append(bad, path.Base(n)+" is left")
	}
	return none(bad, "socket and pid file are gone")
}

func quietLog(v *View, _ []string) Finding {
	l, f := facts[probe.Log](v, scenario.ProbeLog)
	switch {
	case f != nil:
		return *f
	case l.Trouble == nil:
		return silent(scenario.ProbeLog, "trouble")
	}
	return none(l.Trouble, "%d lines, none of a crash", len(l.Lines))
}

func guestKernel(v *View, _ []string) Finding {
	i, f := facts[guestproto.Info](v, guestproto.CallInfo)
	switch {
	case f != nil:
		return *f
	case i.KernelTrouble == nil:
		return silent(guestproto.CallInfo, "the kernel's log")
	}
	return none(i.KernelTrouble, "no fault in the kernel log of Linux %s", i.Release)
}

func queues(v *View, _ []string) Finding {
	i, f := facts[guestproto.Info](v, guestproto.CallInfo)
	if f != nil {
		return *f
	}
	want := max(1, v.Scenario.Guest.RequestQueues)
	for _, d := range i.Devices {
		if d.RequestQueues < 0 {
			return Finding{State: Neither, Skip: result.SkipKernel, Saw: "this guest kernel does not show how many queues there are"}
		}
		if d.RequestQueues != want {
			return holdsIf(false, "%s has %d request queues, the scenario asks for %d", d.Name, d.RequestQueues, want)
		}
	}
	if len(i.Devices) == 0 {
		return holdsIf(false, "the guest has no virtio-fs device")
	}
	return holdsIf(true, "%d request queues", want)
}
