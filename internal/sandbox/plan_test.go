package sandbox

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/config"
	"virtiofsd/internal/idmap"
)

var update = flag.Bool("update", false, "write the golden files anew")

// caller is a set of facts with a name.
type caller struct {
	name, what string
	facts      Facts
}

func initial() idmap.Map { return idmap.Map{{Inside: 0, Outside: 0, Count: 1<<32 - 1}} }

// callers are those who start the daemon in the field.
func callers() []caller {
	const all = Caps(1<<41 - 1)
	podman := Of(Chown, DacOverride, Fowner, Fsetid, Setgid, Setuid, Setpcap, SysChroot, Setfcap)
	range_ := idmap.Map{{Inside: 0, Outside: 1500, Count: 1}, {Inside: 1, Outside: 100000, Count: 65536}}
	base := Facts{LastCap: 40, UIDMap: initial(), GIDMap: initial(), Seccomp: true, Landlock: 7, Bounding: all, Groups: []uint32{}}
	with := func(change func(*Facts)) Facts {
		f := base
		change(&f)
		return f
	}
	user := with(func(f *Facts) { f.UID, f.GID, f.Groups = 1500, 1500, []uint32{4, 1500} })
	tools := func(f *Facts) {
		f.Newuidmap, f.Newgidmap = "/usr/bin/newuidmap", "/usr/bin/newgidmap"
		f.SubUID, f.SubGID = []idmap.Sub{{First: 100000, Count: 65536}}, []idmap.Sub{{First: 100000, Count: 65536}}
	}
	userWith := func(change func(*Facts)) Facts {
		f := user
		change(&f)
		return f
	}
	ns := func(uids idmap.Map, denied bool) Facts {
		return with(func(f *Facts) {
			f.Effective, f.UIDMap, f.GIDMap, f.SetgroupsDenied = all, uids, uids, denied
			f.Groups = []uint32{65534}
		})
	}
	return []caller{
		{"root", "root of the host, in group 4", with(func(f *Facts) { f.Effective, f.Groups = all, []uint32{4} })},
		{"user", "uid 1500 in group 4, without subordinate ids", user},
		{"user-ranges", "the same with newuidmap and 65536 ids from 100000 on", userWith(tools)},
		{"user-nnp", "the same under no_new_privs", userWith(func(f *Facts) { tools(f); f.NoNewPrivs = true })},
		{"user-no-userns", "a user where no user namespace can be made", userWith(func(f *Facts) {
			tools(f)
			f.UserNamespaces = "sysctl user.max_user_namespaces is 0"
		})},
		{"unshare-r", "root of a user namespace with one id, as 'unshare -Ur' makes it", ns(idmap.Map{{Inside: 0, Outside: 1500, Count: 1}}, true)},
		{"userns-range", "root of a user namespace with a range, as LXD, podman unshare and 'unshare --map-auto' make it", ns(range_, false)},
		{"container", "root in a container with podman's default capabilities, whose filter allows no user namespace, as docker's", with(func(f *Facts) {
			f.Effective, f.Bounding, f.UserNamespaces, f.Groups = podman, podman, "the kernel, a container's filter, a chroot or a security module forbids it: operation not permitted", []uint32{4}
		})},
		{"docker-sys-admin", "root in docker's container with --cap-add=SYS_ADMIN: its filter leaves pivot_root out", with(func(f *Facts) {
			f.Effective, f.Bounding, f.NoPivotRoot = podman|Of(Mknod, SysAdmin), podman|Of(Mknod, SysAdmin), true
		})},
		{"kubevirt", "uid 107 without any capability, under no_new_privs, where no user namespace can be made", with(func(f *Facts) {
			f.UID, f.GID, f.NoNewPrivs, f.Bounding = 107, 107, true, 0
			f.UserNamespaces = "the kernel, a container's filter, a chroot or a security module forbids it: operation not permitted"
		})},
		{"whole-tree", "a user without subordinate ids who shares the root directory", userWith(func(f *Facts) { f.ShareHoldsProc = true })},
		{"old-kernel", "root of a host without Landlock and filters", with(func(f *Facts) { f.Effective, f.Landlock, f.Seccomp = all, 1, false })},
	}
}

// commands are option sets.
func commands() []string {
	return []string{
		"",
		"--readonly",
		"--no-fail-setgroups",
		"--uid-map=:0:1500:1: --gid-map=:0:1500:1:",
		"--uid-map=:0:100000:65536: --gid-map=:0:100000:65536:",
		"--uid-map=:0:100000:70000: --gid-map=:0:100000:65536:",
		"--uid-map=:0:0:1000: --gid-map=:0:0:1000:",
		"--uid-map=:1000:100000:1000:",
		"--sandbox=pivot_root",
		"--sandbox=pivot_root --no-fail-setgroups",
		"--sandbox=chroot",
		"--sandbox=chroot --no-fail-setgroups",
		"--sandbox=none",
		"--sandbox=none --no-fail-setgroups",
		"--sandbox=none --readonly",
		"--sandbox=none --landlock=on",
		"--inode-file-handles=prefer",
		"--inode-file-handles=mandatory",
		"--landlock=on",
		"--sandbox=none --landlock=off --seccomp=none",
		"--modcaps=-mknod:+sys_admin --seccomp=log",
	}
}

func options(t testing.TB, line string) config.Options {
	t.Helper()
	o, err := config.Parse(append([]string{"--shared-dir=/srv/share", "--fd=3"}, strings.Fields(line)...))
	require.NoError(t, err)
	require.NoError(t, o.Validate())
	return o
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(want), got, "run 'go test ./internal/sandbox -update' and read the difference")
}

// TestPlans is what every option set does for every caller. The golden file is meant to be read.
func TestPlans(t *testing.T) {
	var b strings.Builder
	b.WriteString("What the sandbox does, or why not: every set of options for every kind of caller.\n")
	plans := 0
	for _, c := range callers() {
		fmt.Fprintf(&b, "\n======== %s: %s\n", c.name, c.what)
		for _, line := range commands() {
			p, err := Make(options(t, line), c.facts)
			plans++
			if err != nil {
				fmt.Fprintf(&b, "\n$ virtiofsd %s\n  refused: %v\n", line, err)
				assert.NotContains(t, err.Error(), "\n", "%s %s", c.name, line)
				continue
			}
			fmt.Fprintf(&b, "\n$ virtiofsd %s\n  %s", line, p.Steps[0].What)
			for _, s := range p.Steps[1:] {
				switch s.Op {
				case OpMapSelf, OpMapTools, OpTryGroups, OpAttach:
					fmt.Fprintf(&b, "; %s", s.What)
				default:
					fmt.Fprintf(&b, "; %s", s.Op)
				}
			}
			fmt.Fprintf(&b, "\n  keeps: %v\n", p.Keep)
			for _, o := range p.Open {
				fmt.Fprintf(&b, "  left open: %s\n", o)
			}
			for _, n := range p.Notes {
				fmt.Fprintf(&b, "  note: %s\n", n)
			}
		}
	}
	assert.GreaterOrEqual(t, plans, 60)
	golden(t, "plans.golden", b.String())
}

// TestPlanForPeople is the text of --print-plan for each of the use cases.
func TestPlanForPeople(t *testing.T) {
	var b strings.Builder
	find := func(name string) Facts {
		i := slices.IndexFunc(callers(), func(c caller) bool { return c.name == name })
		return callers()[i].facts
	}
	for _, c := range []struct{ title, caller, line string }{
		{"A: root", "root", ""},
		{"B: a user, one id", "user", ""},
		{"C: a user, many ids", "user-ranges", "--uid-map=:0:1500:1: --uid-map=:1:100000:65535: --gid-map=:0:1500:1: --gid-map=:1:100000:65535:"},
		{"D: inside 'unshare -Ur'", "unshare-r", "--sandbox=pivot_root --no-fail-setgroups"},
		{"D: inside a container", "container", "--sandbox=chroot"},
		{"E: no capability at all", "kubevirt", "--sandbox=none"},
	} {
		p, err := Make(options(t, c.line), find(c.caller))
		require.NoError(t, err, c.title)
		fmt.Fprintf(&b, "-------- %s\n$ virtiofsd --print-plan %s\n%v\n", c.title, c.line, p)
	}
	golden(t, "print-plan.golden", b.String())
}

// TestCheck is the text of --check for every kind of caller.
func TestCheck(t *testing.T) {
	var b strings.Builder
	for _, c := range callers() {
		a := Check(options(t, ""), c.facts)
		fmt.Fprintf(&b, "-------- %s: %s\n%v\n", c.name, c.what, a)
		best := 0
		for _, w := range a.Ways {
			if w.Recommended {
				best++
				assert.True(t, w.Works)
			}
			assert.NotEqual(t, w.Works, w.Why != "", "%s %s: it works, or it is said why not", c.name, w.Name)
		}
		assert.LessOrEqual(t, best, 1, c.name)
		if c.name != "old-kernel" { // it has to give the filter up first
			assert.Equal(t, 1, best, "%s gets a recommendation", c.name)
		}
	}
	golden(t, "check.golden", b.String())
}

// TestEveryPlanIsOrdered: a step needs what the next one takes away, and none may be missing.
func TestEveryPlanIsOrdered(t *testing.T) {
	order := []Op{
		OpStart, OpMapSelf, OpMapTools, OpTakeIDs, OpPrivate, OpProc, OpProcPlain, OpAttach, OpPivot, OpChroot, OpShare, OpGroups, OpTryGroups,
		OpBounding, OpCaps, OpNotDumpable, OpNoNewPrivs, OpLandlock, OpSeccomp, OpVerify,
	}
	for _, c := range callers() {
		for _, line := range commands() {
			p, err := Make(options(t, line), c.facts)
			if err != nil {
				continue
			}
			last := -1
			for _, s := range p.Steps {
				at := slices.Index(order, s.Op)
				assert.Greater(t, at, last, "%s, %q: %s", c.name, line, s.Op)
				assert.NotEmpty(t, s.What)
				assert.NotEmpty(t, s.Why)
				_, does := actions[s.Op]
				assert.Equal(t, slices.Contains([]Op{OpStart, OpMapSelf, OpMapTools}, s.Op), !does, "%s is done by the parent or by Enter", s.Op)
				last = at
			}
			for _, op := range []Op{OpStart, OpShare, OpCaps, OpNotDumpable, OpNoNewPrivs, OpVerify} {
				assert.True(t, p.Has(op), "%s, %q: %s is missing", c.name, line, op)
			}
			assert.Equal(t, p.Mode == config.SandboxNamespace || p.Mode == config.SandboxPivotRoot, p.Has(OpPivot))
			if p.Keep.Has(SysAdmin) {
				assert.Contains(t, line, "sys_admin", "only who asks for it keeps it")
			}
		}
	}
}

func TestModify(t *testing.T) {
	s, err := modify(needed, "+sys_admin:-CAP_MKNOD:-setfcap")
	require.NoError(t, err)
	assert.True(t, s.Has(SysAdmin))
	assert.False(t, s.Has(Mknod) || s.Has(Setfcap))
	for _, bad := range []string{"mknod", "+", "+nonsense", "-mknod,+chown"} {
		_, err := modify(needed, bad)
		assert.ErrorContains(t, err, "--modcaps", bad)
	}
	assert.Equal(t, "none", Caps(0).String())
	assert.Equal(t, "all", Caps(1<<41-1).String())
	assert.Equal(t, "all but sys_admin", (Caps(1<<41-1) &^ Of(SysAdmin)).String())
	assert.Equal(t, "chown,setuid", Of(Setuid, Chown).String())
}
