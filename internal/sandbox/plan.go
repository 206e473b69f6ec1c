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

// Op is what a step does; [Enter] has one action for each.
type Op string

// The operations, in the order in which plans have them.
const (
	OpStart       Op = "start-child"    // start ourselves again in new namespaces
	OpMapSelf     Op = "map-ids"        // write the child's id maps ourselves
	OpMapTools    Op = "map-ids-tools"  // have newuidmap and newgidmap write them
	OpBecomeRoot  Op = "become-root"    // take the namespace's ids 0
	OpPrivate     Op = "private-mounts" // mounts made here stay here
	OpProc        Op = "open-proc"      // a view of our own descriptors and threads
	OpAttach      Op = "attach-share"   // the share as a mount of its own, with flags
	OpPivot       Op = "pivot-root"     // make it the root and detach the old one
	OpChroot      Op = "chroot"         // make it the root of this process
	OpShare       Op = "open-share"     // the descriptor that all work starts from
	OpGroups      Op = "drop-groups"    // supplementary groups
	OpTryGroups   Op = "try-groups"     // the same, a refusal being no error
	OpBounding    Op = "bounding-set"   // what could ever be regained
	OpCaps        Op = "capabilities"   // what is kept
	OpNoNewPrivs  Op = "no-new-privs"   // programs started give nothing
	OpNotDumpable Op = "not-dumpable"   // no other process of the user looks into us
	OpSeccomp     Op = "seccomp"        // the system call filter
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
	Setgroups  bool      `json:"setgroups"` // whether the new user namespace allows setgroups
	Keep       Caps      `json:"keep"`      // capabilities kept, at most
	Bounding   bool      `json:"bounding"`
	Readonly   bool      `json:"readonly"`
	Seccomp    string    `json:"seccomp"`
	Tools      [2]string `json:"tools"` // newuidmap and newgidmap
	Notes      []string  `json:"notes,omitempty"`
	Steps      []Step    `json:"steps"`
}

// Child reports whether the plan is executed by a child in new namespaces.
func (p *Plan) Child() bool { return len(p.Namespaces) > 0 }

// Has reports whether the plan has a step.
func (p *Plan) Has(op Op) bool {
	return slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Op == op })
}

func (p *Plan) add(op Op, what, why string) { p.Steps = append(p.Steps, Step{op, what, why}) }

func (p *Plan) note(format string, a ...any) { p.Notes = append(p.Notes, fmt.Sprintf(format, a...)) }

// Make decides what to do, or why it cannot be done and what would help. o has been validated.
func Make(o config.Options, f Facts) (Plan, error) {
	p := Plan{Mode: o.Sandbox, SharedDir: filepath.Clean(o.SharedDir), Readonly: o.Readonly, Seccomp: o.Seccomp}
	keep := needed
	if o.InodeFileHandles != "never" {
		keep |= Of(DacReadSearch)
	}
	var err error
	if p.Keep, err = modify(keep, o.ModCaps); err != nil {
		return p, err
	}
	switch o.Sandbox {
	case config.SandboxNamespace:
		err = p.namespace(o, f)
	case config.SandboxPivotRoot:
		err = p.pivotRoot(o, f)
	case config.SandboxChroot:
		err = p.chroot(o, f)
	default:
		err = p.none(f)
	}
	if err != nil {
		return p, err
	}
	p.lockDown(f)
	return p, nil
}

func (p *Plan) namespace(o config.Options, f Facts) error {
	p.Namespaces = []string{"mount", "pid", "network", "ipc", "uts", "cgroup"}
	withUser := !f.Has(SysAdmin) || len(o.UIDMap) > 0 || len(o.GIDMap) > 0
	if !withUser {
		p.add(OpStart, "start the serving process in new "+strings.Join(p.Namespaces, ", ")+" namespaces", "it sees no mount, process or network interface of the host")
		p.mounts()
		p.groups(f)
		return nil
	}
	if f.UserNamespaces != "" {
		return fmt.Errorf("sandbox namespace: an unprivileged caller needs a user namespace, and %s; allow it, run as root, or choose --sandbox=none", f.UserNamespaces)
	}
	p.Namespaces = append([]string{"user"}, p.Namespaces...)
	p.UIDMap, p.GIDMap = o.UIDMap, o.GIDMap
	if len(p.UIDMap) == 0 {
		p.UIDMap = idmap.Map{{Inside: f.UID, Outside: f.UID, Count: 1}}
	}
	if len(p.GIDMap) == 0 {
		p.GIDMap = idmap.Map{{Inside: f.GID, Outside: f.GID, Count: 1}}
	}
	p.add(OpStart, "start the serving process in new "+strings.Join(p.Namespaces, ", ")+" namespaces", "a user namespace gives it the rest without privilege on the host")

	single := p.GIDMap.Own(f.GID)
	privileged := f.Has(Setuid) && f.Has(Setgid)
	switch {
	case p.UIDMap.Own(f.UID) && single:
		p.add(OpMapSelf, fmt.Sprintf("map user %v and group %v, with setgroups denied", p.UIDMap, p.GIDMap), "the kernel lets everybody map the own id alone, but no more")
	case privileged:
		p.Setgroups = true
		p.add(OpMapSelf, fmt.Sprintf("map users %v and groups %v", p.UIDMap, p.GIDMap), "the caller may map any ids (CAP_SETUID, CAP_SETGID)")
	default:
		p.Setgroups = true
		if err := toolsWork(p, f); err != nil {
			return err
		}
		p.Tools = [2]string{f.Newuidmap, f.Newgidmap}
		p.add(OpMapTools, fmt.Sprintf("have newuidmap map users %v and newgidmap groups %v", p.UIDMap, p.GIDMap), "they are privileged to map what /etc/subuid and /etc/subgid give the caller")
	}
	if p.UIDMap.Has(0) || p.GIDMap.Has(0) {
		p.add(OpBecomeRoot, "take ids 0 of the user namespace, where they are mapped", "work as the owner of what the guest's root makes, and let go of the caller's ids")
	}
	p.mounts()
	if p.Setgroups {
		p.groups(f)
	} else {
		p.note("supplementary groups are kept: only one group id is mapped, so the kernel denies setgroups; map a range (--gid-map) to be rid of them")
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
				c.file, f.UID, r.Outside, uint64(r.Outside)+uint64(r.Count)-1, f.UID, r.Outside, r.Count)
		}
	}
	return nil
}

// mounts are the steps from a new mount namespace to a root that is the share.
func (p *Plan) mounts() {
	flags := "nosuid, nodev"
	if p.Readonly {
		flags += ", read-only"
	}
	p.add(OpPrivate, "stop mounts made here from showing outside", "the host's mount table stays as it is")
	p.add(OpProc, "mount a proc file system of the new pid namespace, attached nowhere", "own descriptors are reopened through it, and nothing else can be reached from it")
	p.add(OpAttach, "make the share a mount of its own: "+flags, "a set-id program or device node that a guest makes means nothing to the host")
	p.add(OpPivot, "make the share the root and detach the old root", "no path leads out")
	p.add(OpShare, "open the root", "every request starts from this descriptor")
}

func (p *Plan) pivotRoot(o config.Options, f Facts) error {
	if !f.Has(SysAdmin) {
		return errors.New("sandbox pivot_root: the caller's sandbox gives no CAP_SYS_ADMIN, which mounts take; run inside a user namespace with capabilities (unshare --user --map-root-user), or use --sandbox=chroot or none")
	}
	p.Namespaces = []string{"mount"}
	p.add(OpStart, "start the serving process in a new mount namespace", "nobody else's root is moved")
	p.mounts()
	return p.callerGroups(o, f)
}

func (p *Plan) chroot(o config.Options, f Facts) error {
	if !f.Has(SysChroot) {
		return errors.New("sandbox chroot: CAP_SYS_CHROOT is missing; use --sandbox=namespace, or run inside a user namespace (unshare --user --map-root-user)")
	}
	p.add(OpProc, "open a view of our own descriptors", "they are reopened through it")
	p.add(OpChroot, "make the share the root of this process", "no absolute path and no link leads out")
	p.add(OpShare, "open the root", "every request starts from this descriptor")
	return p.callerGroups(o, f)
}

func (p *Plan) none(f Facts) error {
	p.add(OpProc, "open a view of our own descriptors", "they are reopened through it")
	p.add(OpShare, "open the share", "every request starts from this descriptor; names are checked, and links never followed")
	switch {
	case len(f.Groups) == 0:
	case f.SetgroupsDenied, !f.Has(Setgid):
		p.note("supplementary groups are kept: the caller may not change them")
	default:
		p.groups(f)
	}
	return nil
}

// groups drops supplementary groups where that can be done.
func (p *Plan) groups(f Facts) {
	p.add(OpGroups, "drop supplementary groups", "what the launcher may read through a group is not the guest's to read")
}

// callerGroups is the rule inside a sandbox that the caller set up: dropping is due; where the kernel will refuse, only a caller with a
// single mapped group may be let off, and has to say so.
func (p *Plan) callerGroups(o config.Options, f Facts) error {
	const remedy = "map a range of group ids by newgidmap and leave setgroups allowed"
	refused := f.SetgroupsDenied || !f.Has(Setgid)
	if o.NoFailSetgroups {
		if !f.MapIsSingle() {
			return fmt.Errorf("--no-fail-setgroups is honoured only where one group id is mapped, and %d are: a process with several ids must drop its groups; %s", f.GIDMap.Ids(), remedy)
		}
		p.add(OpTryGroups, "try to drop supplementary groups", "one group id is mapped and the caller accepts a refusal (--no-fail-setgroups)")
		return nil
	}
	if refused {
		why := "the kernel denies setgroups in this user namespace"
		if !f.SetgroupsDenied {
			why = "CAP_SETGID is missing"
		}
		if f.MapIsSingle() {
			return fmt.Errorf("sandbox %s: supplementary groups cannot be dropped: %s; give --no-fail-setgroups to go on with them, or %s", p.Mode, why, remedy)
		}
		return fmt.Errorf("sandbox %s: supplementary groups cannot be dropped: %s; %s", p.Mode, why, remedy)
	}
	p.groups(f)
	return nil
}

// lockDown are the steps that all modes end with.
func (p *Plan) lockDown(f Facts) {
	inUserNS := slices.Contains(p.Namespaces, "user")
	have := f.Effective
	if inUserNS {
		have = 1<<(f.LastCap+1) - 1
	}
	if have.Has(Setpcap) {
		p.Bounding = true
		p.add(OpBounding, "reduce the bounding set to "+(p.Keep&have).String(), "nothing else can ever be gained")
	} else if have != 0 {
		p.note("the bounding set stays as the caller made it: CAP_SETPCAP is missing")
	}
	if missing := p.Keep &^ have; missing != 0 && have != 0 && !inUserNS {
		p.note("not available here, so operations that need them are refused to the guest: %v", missing)
	}
	p.add(OpCaps, "keep the capabilities "+(p.Keep&have).String(), "to act for any owner within the share; all others are given up")
	p.add(OpNotDumpable, "make the process not dumpable", "other processes of the same user can neither trace it nor read its memory")
	p.add(OpNoNewPrivs, "set no_new_privs", "no program started could gain privilege")
	if p.Seccomp != "none" {
		p.add(OpSeccomp, "filter system calls: others than the list's "+action(p.Seccomp), "a daemon that a guest has taken over finds few doors")
	} else {
		p.note("no system call filter: --seccomp=none")
	}
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
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	return b.String()
}
