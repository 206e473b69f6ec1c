package sandbox

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"virtiofsd/internal/config"
	"virtiofsd/internal/idmap"
)

// Op is what a step does; [Enter] has one action for each that is not the parent's.
type Op string

// The operations, in the order in which plans have them.
const (
	OpStart       Op = "start-child"     // start ourselves again, in new namespaces if there are any
	OpMapSelf     Op = "map-ids"         // write the child's id maps ourselves
	OpMapTools    Op = "map-ids-tools"   // have newuidmap and newgidmap write them
	OpTakeIDs     Op = "take-ids"        // be one user and group of the user namespace, and the launcher's no more
	OpPrivate     Op = "private-mounts"  // mounts made here stay here
	OpProc        Op = "proc-view"       // our own descriptors, as a mount that leads nowhere else
	OpProcPlain   Op = "proc-view-plain" // the same directory as it is, where mounts cannot be made
	OpAttach      Op = "attach-share"    // the share as a mount of its own, with flags
	OpPivot       Op = "pivot-root"      // make it the root and detach the old one
	OpChroot      Op = "chroot"          // make it the root of this process
	OpShare       Op = "open-share"      // the descriptor that all work starts from
	OpGroups      Op = "drop-groups"     // supplementary groups
	OpTryGroups   Op = "try-groups"      // the same, a refusal being no error
	OpBounding    Op = "bounding-set"    // what could ever be regained
	OpCaps        Op = "capabilities"    // what is kept
	OpNotDumpable Op = "not-dumpable"    // no other process of the user looks into us
	OpNoNewPrivs  Op = "no-new-privs"    // programs started give nothing
	OpLandlock    Op = "landlock"        // no files but those of the share
	OpSeccomp     Op = "seccomp"         // the system call filter
	OpVerify      Op = "verify"          // read back what was reached
)

// Step is one thing that a plan does.
type Step struct {
	Op   Op     `json:"op"`
	What string `json:"what"`
	Why  string `json:"why"`
}

// Plan is what the sandbox will do. It is complete: Enter looks at nothing else.
type Plan struct {
	Mode       string    `json:"mode"`
	SharedDir  string    `json:"shared_dir"`
	Namespaces []string  `json:"namespaces"` // new ones
	UIDMap     idmap.Map `json:"uid_map,omitempty"`
	GIDMap     idmap.Map `json:"gid_map,omitempty"`
	UID        uint32    `json:"uid"` // as which it serves, in its user namespace: real, effective and saved
	GID        uint32    `json:"gid"`
	Setgroups  bool      `json:"setgroups"` // whether the new user namespace allows setgroups
	Keep       Caps      `json:"keep"`      // capabilities kept, at most
	Bounding   bool      `json:"bounding"`  // whether the bounding set is reduced
	Readonly   bool      `json:"readonly"`
	Seccomp    string    `json:"seccomp"`
	Handles    bool      `json:"handles"` // files may be opened by export handle
	Tools      [2]string `json:"tools"`   // newuidmap and newgidmap
	Threads    *Threads  `json:"threads,omitempty"`
	// Open is what this mode leaves open: sentences for people. Notes are what else they should
	// know of the options.
	Open  []string `json:"open,omitempty"`
	Notes []string `json:"notes,omitempty"`
	Steps []Step   `json:"steps"`
}

// Has reports whether the plan has a step.
func (p *Plan) Has(op Op) bool {
	return slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Op == op })
}

// NewNamespace reports whether the plan makes a namespace of a kind.
func (p *Plan) NewNamespace(kind string) bool { return slices.Contains(p.Namespaces, kind) }

func (p *Plan) add(op Op, what, why string) { p.Steps = append(p.Steps, Step{op, what, why}) }

func (p *Plan) leaves(format string, a ...any) { p.Open = append(p.Open, fmt.Sprintf(format, a...)) }

// Make decides what to do, or why it cannot be done and what would help. o has been validated.
func Make(o config.Options, f Facts) (Plan, error) {
	p := Plan{Mode: o.Sandbox, SharedDir: filepath.Clean(o.SharedDir), Readonly: o.Readonly, Seccomp: o.Seccomp, UID: f.UID, GID: f.GID}
	userns := o.Sandbox == config.SandboxNamespace && (!f.Has(SysAdmin) || len(o.UIDMap)+len(o.GIDMap) > 0)
	if f.Unmapped && (userns || f.Has(Setuid) || f.Has(Setgid)) {
		return p, fmt.Errorf("sandbox %s: the caller's own ids are not mapped in its user namespace, so that they could not be taken back after acting for a guest's user; map them (unshare --map-root-user or --map-current-user)", p.Mode)
	}
	// open_by_handle_at(2) asks for the capability in the initial user namespace.
	p.Handles = o.InodeFileHandles != "never" && f.Has(DacReadSearch) && f.Initial() && !userns
	if o.InodeFileHandles == "mandatory" && !p.Handles {
		return p, errors.New("--inode-file-handles=mandatory: opening files by handle takes CAP_DAC_READ_SEARCH in the initial user namespace, which is not there in this mode; use --inode-file-handles=prefer or never")
	}
	keep := needed
	if p.Handles {
		keep |= Of(DacReadSearch)
	}
	var err error
	if p.Keep, err = modify(keep, o.ModCaps); err != nil {
		return p, err
	}
	switch o.Sandbox {
	case config.SandboxNamespace:
		err = p.namespace(o, f, userns)
	case config.SandboxPivotRoot:
		err = p.pivotRoot(o, f)
	case config.SandboxChroot:
		err = p.chroot(o, f)
	default:
		err = p.none(o, f)
	}
	if err != nil {
		return p, err
	}
	if err := p.lockDown(o, f); err != nil {
		return p, err
	}
	if err := p.survives(f); err != nil {
		return p, err
	}
	return p, p.threads(f)
}

// kinds are the namespaces that mode namespace makes in any case.
var kinds = []string{"mount", "pid", "network", "ipc", "uts", "cgroup"}

func (p *Plan) namespace(o config.Options, f Facts, userns bool) error {
	if f.NoPivotRoot {
		return errNoPivotRoot(p.Mode)
	}
	if !userns {
		p.Namespaces = kinds
		p.start(f, "it sees no mount, process or network interface of the host")
		p.mounts()
		return p.groups(o, f)
	}
	switch {
	case f.UserNamespaces != "" && f.Has(SysAdmin):
		return fmt.Errorf("sandbox namespace: --uid-map and --gid-map need a user namespace, and none can be made: %s; allow it, or leave the maps out", f.UserNamespaces)
	case f.UserNamespaces != "":
		return fmt.Errorf("sandbox namespace: an unprivileged caller needs a user namespace, and none can be made: %s; allow it, run as root, or choose --sandbox=none", f.UserNamespaces)
	}
	p.Namespaces = append([]string{"user"}, kinds...)
	p.UIDMap, p.GIDMap = o.UIDMap, o.GIDMap
	if len(p.UIDMap) == 0 {
		p.UIDMap = idmap.Map{{Inside: f.UID, Outside: f.UID, Count: 1}}
	}
	if len(p.GIDMap) == 0 {
		p.GIDMap = idmap.Map{{Inside: f.GID, Outside: f.GID, Count: 1}}
	}
	p.excuse(o, p.GIDMap)
	p.start(f, "a user namespace gives it the rest without privilege on the host")
	if err := p.maps(f); err != nil {
		return err
	}
	for _, m := range []struct {
		given bool
		what  string
		own   uint32
	}{{len(o.UIDMap) > 0, "user", f.UID}, {len(o.GIDMap) > 0, "group", f.GID}} {
		if !m.given && len(o.UIDMap)+len(o.GIDMap) > 0 {
			p.leaves("the caller's own %s id %d is mapped and kept: --%cid-map is not given", m.what, m.own, m.what[0])
		}
	}
	p.UID, p.GID = p.UIDMap.Take(f.UID), p.GIDMap.Take(f.GID)
	p.takeIDs("the guest's root acts as they, and of the caller's ids only those are left that are mapped")
	p.mounts()
	if p.Setgroups {
		p.dropGroups()
	} else if len(f.Groups) > 0 {
		p.leaves("supplementary groups are kept: only one group id is mapped, so the kernel denies setgroups; map a range (--gid-map) to be rid of them")
	}
	return nil
}

func errNoPivotRoot(mode string) error {
	return fmt.Errorf("sandbox %s: the caller has CAP_SYS_ADMIN, but its filter of system calls refuses pivot_root, as docker's own does; use a filter that allows it (--security-opt seccomp=FILE, or unconfined), or --sandbox=chroot", mode)
}

// start is the first step of every plan. A child in a new user namespace takes its ids once they
// are mapped.
func (p *Plan) start(f Facts, why string) {
	what := "start the serving process"
	switch len(p.Namespaces) {
	case 0:
	case 1:
		what += " in a new " + p.Namespaces[0] + " namespace"
	default:
		what += " in new " + strings.Join(p.Namespaces, ", ") + " namespaces"
	}
	p.add(OpStart, what, why)
	if f.Mixed && !p.NewNamespace("user") {
		p.takeIDs("the caller's real, effective and saved ids are not alike: the others could be taken, or this one not be taken back")
	}
}

func (p *Plan) takeIDs(why string) {
	p.add(OpTakeIDs, fmt.Sprintf("take user id %d and group id %d", p.UID, p.GID), why)
}

// maps decides who writes the id maps of the new user namespace (user_namespaces(7), "Defining user and group ID mappings").
func (p *Plan) maps(f Facts) error {
	for _, c := range []struct{ m, outer idmap.Map }{{p.UIDMap, f.UIDMap}, {p.GIDMap, f.GIDMap}} {
		if r, ok := c.m.Unmapped(c.outer); ok {
			return fmt.Errorf("sandbox namespace: ids %d to %d are not mapped in the user namespace that the caller is in; map some that /proc/self/uid_map and gid_map have", r.Outside, r.Last())
		}
	}
	switch {
	case f.Has(Setuid) && f.Has(Setgid):
		p.Setgroups = true
		if (p.UIDMap.HasOutside(0) || p.GIDMap.HasOutside(0)) && !f.Has(Setfcap) {
			return errors.New("sandbox namespace: mapping the caller's root takes CAP_SETFCAP, which is missing; leave 0 out of --uid-map and --gid-map, or give the caller the capability")
		}
		p.add(OpMapSelf, fmt.Sprintf("map users %v and groups %v", p.UIDMap, p.GIDMap), "the caller may map any ids (CAP_SETUID, CAP_SETGID)")
	case p.UIDMap.Own(f.UID) && p.GIDMap.Own(f.GID):
		p.add(OpMapSelf, fmt.Sprintf("map user %v and group %v, with setgroups denied", p.UIDMap, p.GIDMap), "the kernel lets everybody map the own id alone, but no more")
	default:
		if err := toolsWork(p, f); err != nil {
			return err
		}
		p.Tools = [2]string{f.Newuidmap, f.Newgidmap}
		p.add(OpMapTools, fmt.Sprintf("have newuidmap map users %v and newgidmap groups %v", p.UIDMap, p.GIDMap), "they are privileged to map what /etc/subuid and /etc/subgid give the caller")
	}
	return nil
}

// toolsWork checks what newuidmap and newgidmap would refuse, before they do.
func toolsWork(p *Plan, f Facts) error {
	if f.Newuidmap == "" || f.Newgidmap == "" {
		return errors.New("sandbox namespace: mapping more than the own id takes newuidmap and newgidmap, which are not on the PATH; install the package uidmap")
	}
	if f.NoNewPrivs {
		return errors.New("sandbox namespace: newuidmap cannot work, as no_new_privs is set on the caller; map one id only, or allow privilege escalation for the daemon")
	}
	for _, c := range []struct {
		m    idmap.Map
		own  uint32
		subs []idmap.Sub
		file string
	}{{p.UIDMap, f.UID, f.SubUID, "/etc/subuid"}, {p.GIDMap, f.GID, f.SubGID, "/etc/subgid"}} {
		if r, missing := c.m.Missing(c.own, c.subs); missing {
			return fmt.Errorf("sandbox namespace: %s does not give the caller (uid %d) the ids %d to %d; add a line such as '%d:%d:%d'",
				c.file, f.UID, r.Outside, r.Last(), f.UID, r.Outside, r.Count)
		}
	}
	p.Setgroups = !p.GIDMap.Own(f.GID) // newgidmap denies setgroups where nothing of /etc/subgid is mapped
	return nil
}

// mounts are the steps from a new mount namespace to a root that is the share.
func (p *Plan) mounts() {
	flags := "nosuid, nodev"
	if p.Readonly {
		flags += ", read-only"
	}
	p.add(OpPrivate, "stop mounts made here from showing outside", "the host's mount table stays as it is")
	p.procView()
	p.add(OpAttach, "make the share a mount of its own: "+flags, "a set-id program or device node that a guest makes means nothing to the host")
	p.add(OpPivot, "make the share the root and detach the old root", "no path leads out")
	p.add(OpShare, "open the root", "every request starts from this descriptor")
}

func (p *Plan) procView() {
	p.add(OpProc, "make a mount of our own /proc/self/fd, attached nowhere", "descriptors are reopened through it, and no \"..\" leads out of it")
}

// procViewIn is procView in a mode that makes no mount namespace for itself.
func (p *Plan) procViewIn(f Facts) {
	if f.Has(SysAdmin) {
		p.procView()
		return
	}
	p.add(OpProcPlain, "open our own /proc/self/fd", "descriptors are reopened through it")
	p.leaves("an attacker who controls the daemon can follow \"..\" from its /proc/self/fd descriptor to the caller's root: without CAP_SYS_ADMIN it cannot be made a mount of its own")
}

func (p *Plan) pivotRoot(o config.Options, f Facts) error {
	if !f.Has(SysAdmin) {
		return errors.New("sandbox pivot_root: the caller's sandbox gives no CAP_SYS_ADMIN, which mounts take; run inside a user namespace with capabilities (unshare --user --map-root-user), or use --sandbox=chroot or none")
	}
	if f.NoPivotRoot {
		return errNoPivotRoot(p.Mode)
	}
	p.Namespaces = []string{"mount"}
	p.start(f, "nobody else's root is moved")
	p.mounts()
	p.leaves("network, process and other namespaces are the caller's")
	return p.groups(o, f)
}

// outside is why modes without namespaces start a child all the same.
const outside = "its parent stays outside, to remove the socket and the pid file at the end and to say how the other ended"

func (p *Plan) chroot(o config.Options, f Facts) error {
	if !f.Has(SysChroot) {
		return errors.New("sandbox chroot: CAP_SYS_CHROOT is missing; use --sandbox=namespace, or run inside a user namespace (unshare --user --map-root-user)")
	}
	p.start(f, outside)
	p.procViewIn(f)
	p.add(OpChroot, "make the share the root of this process", "no absolute path and no link leads out")
	p.add(OpShare, "open the root", "every request starts from this descriptor")
	p.leaves("namespaces are the caller's, and set-id programs and device nodes on the share mean to the caller's system what they mean anywhere")
	return p.groups(o, f)
}

func (p *Plan) none(o config.Options, f Facts) error {
	p.start(f, outside)
	p.procViewIn(f)
	p.add(OpShare, "open the share", "every request starts from this descriptor; names are checked, and links never followed")
	p.leaves("the root directory and all namespaces are the caller's")
	if refusal(f) == "" || p.excused(o, f) {
		return p.groups(o, f)
	}
	p.excuse(o, f.GIDMap)
	if len(f.Groups) > 0 {
		p.leaves("supplementary groups are kept: %s", refusal(f))
	}
	return nil
}

func (p *Plan) dropGroups() {
	p.add(OpGroups, "drop supplementary groups", "what the launcher may read through a group is not the guest's to read")
}

// refusal is why setgroups(2) would fail, or "".
func refusal(f Facts) string {
	switch {
	case f.SetgroupsDenied:
		return "the kernel denies setgroups in this user namespace"
	case !f.Has(Setgid):
		return "CAP_SETGID is missing"
	}
	return ""
}

const mapGroups = "map a range of group ids by newgidmap and leave setgroups allowed"

// excused reports whether the caller may keep groups that cannot be dropped.
func (p *Plan) excused(o config.Options, f Facts) bool { return o.NoFailSetgroups && f.MapIsSingle() }

// excuse notes that --no-fail-setgroups, which some launchers always give, changes nothing where
// several groups are mapped.
func (p *Plan) excuse(o config.Options, m idmap.Map) {
	if o.NoFailSetgroups && m.Ids() > 1 {
		p.Notes = append(p.Notes, "--no-fail-setgroups has no effect: it excuses a process with one mapped group id, and more are mapped here")
	}
}

// groups is the rule in the user namespace of the caller: dropping is due; where the kernel will refuse, only a caller with a single
// mapped group may be let off, and has to say so.
func (p *Plan) groups(o config.Options, f Facts) error {
	why := refusal(f)
	p.excuse(o, f.GIDMap)
	switch {
	case p.excused(o, f):
		p.add(OpTryGroups, "try to drop supplementary groups", "one group id is mapped, and the caller accepts a refusal (--no-fail-setgroups)")
		if why != "" && len(f.Groups) > 0 {
			p.leaves("supplementary groups are kept, as --no-fail-setgroups allows: %s", why)
		}
	case why == "" || len(f.Groups) == 0:
		p.dropGroups()
	case f.MapIsSingle():
		return fmt.Errorf("sandbox %s: supplementary groups cannot be dropped: %s; give --no-fail-setgroups to go on with them, or %s", p.Mode, why, mapGroups)
	default:
		return fmt.Errorf("sandbox %s: supplementary groups cannot be dropped: %s; %s", p.Mode, why, mapGroups)
	}
	return nil
}

// lockDown are the steps that all modes end with.
func (p *Plan) lockDown(o config.Options, f Facts) error {
	have := f.Effective
	if p.NewNamespace("user") {
		have = 1<<(f.LastCap+1) - 1
	}
	missing := p.Keep &^ have
	p.Keep &= have
	if have.Has(Setpcap) {
		p.Bounding = true
		p.add(OpBounding, "reduce the bounding set to "+p.Keep.String(), "nothing else can ever be gained")
	} else if have != 0 {
		p.leaves("the bounding set stays as the caller made it: CAP_SETPCAP is missing")
	}
	if missing != 0 && have != 0 {
		p.leaves("capabilities that are missing here, so that what needs them is refused to the guest: %v", missing)
	}
	if p.Keep == 0 {
		p.add(OpCaps, "have no capabilities", "the caller has none to give; the guest's users all act as the daemon's")
	} else {
		p.add(OpCaps, "keep the capabilities "+p.Keep.String(), "to act for any owner within the share; all others are given up")
	}
	p.add(OpNotDumpable, "make the process not dumpable", "other processes of the same user can neither trace it nor read its memory")
	p.add(OpNoNewPrivs, "set no_new_privs", "no program started could gain privilege")
	if p.Keep.Has(Mknod) && f.Initial() && !p.Has(OpPivot) {
		p.leaves("device nodes made on the share can be opened by one who has taken the process over: give --modcaps=-mknod where the guest needs none")
	}
	if p.Handles {
		p.leaves("CAP_DAC_READ_SEARCH is kept for export handles (--inode-file-handles): one who has taken the process over can open any file of the share's file system by it")
	}
	switch {
	case o.Landlock == "off":
		p.leaves("no Landlock: --landlock=off")
	case f.Landlock < minLandlock && o.Landlock == "on":
		return fmt.Errorf("--landlock=on: the kernel has version %d of Landlock and %d is needed, for renames between directories; use Linux 5.19 or newer with landlock among its security modules (lsm=), or --landlock=auto", f.Landlock, minLandlock)
	case f.Landlock < minLandlock:
		p.leaves("no Landlock: the kernel lacks it, or is older than Linux 5.19")
	case p.Handles && o.Landlock == "on":
		return errors.New("--landlock=on: a file found again by export handle may have no path, and Landlock refuses what has none; use --inode-file-handles=never, or --landlock=auto")
	case p.Handles:
		p.leaves("no Landlock: a file found again by export handle may have no path, and Landlock refuses what has none")
	case f.ShareHoldsProc && !p.Has(OpPivot) && !p.Readonly && o.Landlock == "on":
		return errors.New("--landlock=on: the share is the whole tree of files, so there is none that Landlock could refuse; share less, or with --readonly, or use --landlock=auto")
	case f.ShareHoldsProc && !p.Has(OpPivot) && !p.Readonly:
		p.leaves("no Landlock: the share is the whole tree of files, so there is none to refuse")
	default:
		p.add(OpLandlock, "have Landlock refuse all files but those of the share", "a second wall, or the first where there is no other")
		if !p.Has(OpPivot) && !p.Has(OpChroot) {
			p.leaves("Landlock protects the contents of files outside the share, but not their names or attributes")
		}
	}
	switch {
	case p.Seccomp == "none":
		p.leaves("no system call filter: --seccomp=none")
	case !f.Seccomp:
		return errors.New("seccomp: the kernel has no system call filters; use --seccomp=none, knowing what that gives up")
	default:
		p.add(OpSeccomp, "filter system calls: others than the list's "+action(p.Seccomp), "a daemon that a guest has taken over finds few doors")
	}
	p.add(OpVerify, "read back from /proc what was reached, for every thread", "a sandbox that is not what it should be does not serve")
	return nil
}

func action(a string) string {
	switch a {
	case "log":
		return "are logged"
	case "trap":
		return "raise SIGSYS"
	}
	return "kill the process"
}

// String is the plan for people.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sandbox %s for %s\n", p.Mode, p.SharedDir)
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "%3d. %s\n     %s\n", i+1, s.What, s.Why)
	}
	if p.Threads != nil {
		fmt.Fprintf(&b, "threads: %v\n", p.Threads)
	}
	for _, n := range p.Open {
		fmt.Fprintf(&b, "left open: %s\n", n)
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	return b.String()
}
