package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/idmap"
	"virtiofsd/internal/sys"
	"virtiofsd/internal/testenv"
)

// planned is a plan that asks for everything, and what a process looks like that has reached it.
func planned() (*Plan, *Entered) {
	keep := Of(Chown, Mknod)
	m := idmap.Map{{Inside: 0, Outside: 100000, Count: 65536}}
	p := &Plan{Mode: "namespace", Namespaces: []string{"user", "mount", "network"}, UIDMap: m, GIDMap: m, Keep: keep, Bounding: true, Readonly: true,
		Steps: []Step{{Op: OpGroups}, {Op: OpSeccomp}, {Op: OpLandlock}, {Op: OpPivot}}}
	ids := []uint32{0, 0, 0, 0}
	return p, &Entered{State: State{
		New: []string{"user", "mount", "network"}, UIDMap: m, GIDMap: m, Setgroups: "allow", Interfaces: []string{"lo"}, Landlock: true, Threads: 3,
		Mounts: []Mount{{"/", "ro,nosuid,nodev,relatime"}, {"/sub", "ro,nosuid,nodev"}},
		Thread: Thread{UID: ids, GID: ids, Groups: []uint32{}, Permitted: keep, Effective: keep, Bounding: keep, NoNewPrivs: 1, Seccomp: 2},
	}}
}

// What was not reached is named: the first thing that is not as planned.
func TestWhatWasReachedIsComparedWithThePlan(t *testing.T) {
	p, e := planned()
	require.NoError(t, e.check(p))
	assert.Equal(t, "namespace", e.State.Mode)
	assert.Len(t, e.State.Mounts, 2)
	assert.Equal(t, "sandbox namespace: new namespaces user,mount,network; users :0:100000:65536:; groups :0:100000:65536:; setgroups allow; uid 0 gid 0, "+
		"supplementary groups none; capabilities chown,mknod, bounding set chown,mknod; no_new_privs 1; seccomp 2; Landlock true; 3 threads; "+
		"root is a mount of its own (ro,nosuid,nodev,relatime), 2 in all", e.State.String())

	for want, change := range map[string]func(*Plan, *State){
		"the mount namespace is the caller's":       func(_ *Plan, s *State) { s.New = []string{"user", "network"} },
		"the user namespace is the caller's":        func(_ *Plan, s *State) { s.New = []string{"mount", "network"} },
		"users  and groups :0":                      func(_ *Plan, s *State) { s.UIDMap = nil },
		"and groups  are mapped":                    func(_ *Plan, s *State) { s.GIDMap = nil },
		"there are network interfaces: [lo eth0]":   func(_ *Plan, s *State) { s.Interfaces = []string{"lo", "eth0"} },
		"there are network interfaces: []":          func(_ *Plan, s *State) { s.Interfaces = nil },
		"user ids [1 0 0 0]":                        func(_ *Plan, s *State) { s.Thread.UID = []uint32{1, 0, 0, 0} },
		"user ids [0 0 0 1]":                        func(_ *Plan, s *State) { s.Thread.UID = []uint32{0, 0, 0, 1} },
		"user ids [0 0 0] ":                         func(_ *Plan, s *State) { s.Thread.UID = []uint32{0, 0, 0} },
		"group ids [0 0 2 0]":                       func(_ *Plan, s *State) { s.Thread.GID = []uint32{0, 0, 2, 0} },
		"not 5 and 0 alone":                         func(p *Plan, _ *State) { p.UID = 5 },
		"supplementary groups [4] are there":        func(_ *Plan, s *State) { s.Thread.Groups = []uint32{4} },
		"capabilities setuid are there":             func(_ *Plan, s *State) { s.Thread.Effective |= Of(Setuid) },
		"capabilities setgid are there":             func(_ *Plan, s *State) { s.Thread.Permitted |= Of(Setgid) },
		"inheritable capabilities chown are there":  func(_ *Plan, s *State) { s.Thread.Inherit = Of(Chown) },
		"ambient or inheritable capabilities mknod": func(_ *Plan, s *State) { s.Thread.Ambient = Of(Mknod) },
		"the bounding set has sys_admin":            func(_ *Plan, s *State) { s.Thread.Bounding |= Of(SysAdmin) },
		"no_new_privs is not set":                   func(_ *Plan, s *State) { s.Thread.NoNewPrivs = 0 },
		"the system call filter is not on":          func(_ *Plan, s *State) { s.Thread.Seccomp = 0 },
		"Landlock is not on":                        func(_ *Plan, s *State) { s.Landlock = false },
		"the mount at /sub is not nosuid":           func(_ *Plan, s *State) { s.Mounts[1].Options = "ro,nodev" },
		"the mount at / is not nodev":               func(_ *Plan, s *State) { s.Mounts[0].Options = "ro,nosuid" },
		"the mount at /sub is not ro":               func(_ *Plan, s *State) { s.Mounts[1].Options = "rw,nosuid,nodev" },
		"the root is no mount":                      func(_ *Plan, s *State) { s.Mounts[0].Point = "/srv" },
		"the root is no mount ":                     func(_ *Plan, s *State) { s.Mounts = nil },
	} {
		p, e := planned()
		change(p, &e.State)
		assert.ErrorContains(t, e.check(p), strings.TrimSpace(want))
	}
	for what, change := range map[string]func(*Plan, *State){
		"groups that may stay":         func(p *Plan, s *State) { p.Steps, s.Thread.Groups = p.Steps[1:], []uint32{4} },
		"no filter is asked for":       func(p *Plan, s *State) { p.Steps[1].Op, s.Thread.Seccomp = OpGroups, 0 },
		"no Landlock is asked for":     func(p *Plan, s *State) { p.Steps[2].Op, s.Landlock = OpGroups, false },
		"a bounding set that may stay": func(p *Plan, s *State) { p.Bounding, s.Thread.Bounding = false, Of(SysAdmin) },
		"the caller's network":         func(p *Plan, s *State) { p.Namespaces, s.Interfaces = []string{"user"}, []string{"eth0"} },
		"the caller's users":           func(p *Plan, s *State) { p.Namespaces, s.UIDMap = []string{"mount"}, nil },
		"a share that can be written":  func(p *Plan, s *State) { p.Readonly, s.Mounts[0].Options = false, "rw,nosuid,nodev" },
	} {
		p, e := planned()
		change(p, &e.State)
		assert.NoError(t, e.check(p), what)
	}
	p, e = planned()
	p.Steps[3].Op = OpChroot
	require.NoError(t, e.check(p))
	assert.Nil(t, e.State.Mounts, "the mounts are the caller's")
	e.State.New = []string{}
	e.State.Thread.Groups = []uint32{4, 5}
	assert.Contains(t, e.State.String(), "new namespaces none; uid 0 gid 0, supplementary groups 4 5;")
	assert.NotContains(t, e.State.String(), "root is a mount")
}

// A thread's status is read whole, or not at all.
func TestStatusOfAThread(t *testing.T) {
	const whole = "Name:\tvirtiofsd\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapInh:\t0000000000000001\nCapPrm:\t000001ffffffffff\n" +
		"CapEff:\t0000000000000003\nCapBnd:\t0000000000000004\nCapAmb:\t0000000000000005\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"
	got, err := parseStatus([]byte(whole))
	require.NoError(t, err)
	assert.Equal(t, Thread{UID: []uint32{1, 2, 3, 4}, GID: []uint32{5, 6, 7, 8}, Groups: []uint32{9, 10}, Inherit: 1, Permitted: 1<<41 - 1, Effective: 3, Bounding: 4,
		Ambient: 5, NoNewPrivs: 1, Seccomp: 2}, got)
	for _, name := range []string{"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"} {
		_, err := parseStatus([]byte(strings.Replace(whole, "\n"+name+":", "\nOther:", 1)))
		assert.ErrorContains(t, err, name+" is missing")
	}
	got, err = parseStatus([]byte(strings.Replace(whole, "\nSeccomp:", "\nOther:", 1)))
	require.NoError(t, err, "a kernel without filters does not tell of them")
	assert.Zero(t, got.Seccomp)
	got, err = parseStatus([]byte(strings.Replace(whole, "9 10 ", "", 1)))
	require.NoError(t, err)
	assert.Equal(t, []uint32{}, got.Groups)
	for old, bad := range map[string]string{"0000000000000003": "xyz", "\t1\t2\t3\t4": "\t-1\t2\t3\t4", "NoNewPrivs:\t1": "NoNewPrivs:\t1 1", "9 10": "9 4294967296"} {
		_, err := parseStatus([]byte(strings.Replace(whole, old, bad, 1)))
		assert.ErrorContains(t, err, "read its status", bad)
	}
}

// Each version of Landlock refuses what it can, and no right is asked for that it does not know.
func TestWhatEachLandlockRefuses(t *testing.T) {
	const first = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1 | unix.LANDLOCK_ACCESS_FS_REFER
	const tcp = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	const three = first | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	const five = three | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	for abi, want := range map[int]unix.LandlockRulesetAttr{
		2: {Handled_access_fs: first},
		3: {Handled_access_fs: three},
		4: {Handled_access_fs: three, Handled_access_net: tcp},
		5: {Handled_access_fs: five, Handled_access_net: tcp},
		6: {Handled_access_fs: five, Handled_access_net: tcp, Scoped: unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET},
		7: {Handled_access_fs: five, Handled_access_net: tcp, Scoped: unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET},
	} {
		assert.Equal(t, want, landlockAttr(abi), "version %d", abi)
	}
}

// A refusal of the kernel's says what helps, where something does.
func TestRemediesOfSteps(t *testing.T) {
	all := []unix.Errno{unix.EPERM, unix.ENOSPC, unix.EACCES, unix.EINVAL, unix.EIO}
	for op, of := range map[Op]map[unix.Errno]string{
		OpStart:    {unix.EPERM: "new namespaces are not allowed", unix.ENOSPC: "the limit of namespaces", unix.EACCES: "its own executable"},
		OpMapSelf:  {unix.EPERM: "see --uid-map", unix.ENOSPC: "see --uid-map", unix.EACCES: "see --uid-map", unix.EINVAL: "see --uid-map", unix.EIO: "see --uid-map"},
		OpProc:     {unix.EPERM: "forbids mounts"},
		OpAttach:   {unix.EACCES: "may not enter the directory"},
		OpPivot:    {unix.EACCES: "may not enter the directory", unix.EINVAL: "the current root is an initramfs"},
		OpShare:    {unix.EACCES: "may not enter the directory"},
		OpChroot:   {unix.EACCES: "may not enter the directory"},
		OpGroups:   {unix.EPERM: "allow setgroups"},
		OpBounding: {},
		OpVerify:   {},
	} {
		for _, e := range all {
			err := &StepError{Step{Op: op, What: "do it"}, fmt.Errorf("call: %w", e)}
			assert.ErrorIs(t, err, e)
			want := "sandbox: do it: call: " + e.Error()
			if of[e] == "" {
				assert.EqualError(t, err, want, "%v", op)
				continue
			}
			assert.True(t, strings.HasPrefix(err.Error(), want+"; "), err.Error())
			assert.Contains(t, err.Error(), of[e], "%v", op)
		}
	}
	for op, want := range map[Op]string{OpMapTools: "--uid-map", OpLandlock: "--landlock=off", OpSeccomp: "--seccomp=none"} {
		assert.ErrorContains(t, &StepError{Step{Op: op}, unix.EIO}, want)
	}
	assert.Equal(t, unix.ENOENT, clean(&os.PathError{Op: "fork/exec", Path: "/proc/self/exe", Err: unix.ENOENT}))
	assert.Equal(t, unix.EIO, clean(unix.EIO))
	assert.Equal(t, "one", firstLine([]byte("one\ntwo\n")))
	assert.Equal(t, "one", firstLine([]byte("one")))
	assert.Equal(t, "", firstLine([]byte("\n")))
}

// Files of /proc and /etc are read as their manual pages say.
func TestFilesOfFacts(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) string {
		p := filepath.Join(dir, "f")
		require.NoError(t, os.WriteFile(p, []byte(text), 0o600))
		return p
	}
	assert.EqualValues(t, 40, readNumber(file("40\n"), 7))
	assert.EqualValues(t, 7, readNumber(file("many\n"), 7))
	assert.EqualValues(t, 7, readNumber(filepath.Join(dir, "none"), 7))

	m, err := readMap(file("         0       1000          1\n         1     100000      65536\n"))
	require.NoError(t, err)
	assert.Equal(t, idmap.Map{{Inside: 0, Outside: 1000, Count: 1}, {Inside: 1, Outside: 100000, Count: 65536}}, m)
	m, err = readMap(filepath.Join(dir, "none"))
	require.NoError(t, err)
	assert.Equal(t, idmap.Map{{Inside: 0, Outside: 0, Count: 1<<32 - 1}}, m, "a kernel without user namespaces")
	_, err = readMap(file("0 one 1\n"))
	assert.ErrorContains(t, err, `read the id map's line "0 one 1\n"`)
	_, err = readMap(dir)
	assert.ErrorContains(t, err, "read the id map: ")

	text := "root:100000:65536\n1500:200000:10\nother:300000:5\n0:400000:20\n"
	assert.Equal(t, []idmap.Sub{{First: 100000, Count: 65536}, {First: 400000, Count: 20}}, subIDs(file(text), 0), "by name and by number")
	assert.Equal(t, []idmap.Sub{{First: 200000, Count: 10}}, subIDs(file(text), 1500))
	assert.Empty(t, subIDs(file(text), 1234))
	assert.Empty(t, subIDs(filepath.Join(dir, "none"), 0))
}

// factsEnv has the test's program print its facts.
const factsEnv = "SANDBOX_TEST_FACTS"

// Facts are those of the process that gathers them.
func TestFactsOfAProcess(t *testing.T) {
	testenv.Need(t, "root", "userns", "newuidmap")
	if share := os.Getenv(factsEnv); share != "" {
		f, err := Gather(share, strings.HasSuffix(share, "/maps/.."))
		require.NoError(t, err)
		fmt.Printf("%d %d %v mixed=%t unmapped=%t all=%t nnp=%t setgroups=%t holds=%t userns=%q map=%v\n", f.UID, f.GID, f.Groups, f.Mixed, f.Unmapped, f.Has(SysAdmin), f.NoNewPrivs,
			f.SetgroupsDenied, f.ShareHoldsProc, f.UserNamespaces, f.UIDMap)
		os.Exit(0)
	}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	const whole = ":0:0:4294967295:"
	for _, c := range []struct{ share, as, want string }{
		{dir, "", "0 0 [4 5] mixed=false unmapped=false all=true nnp=false setgroups=false holds=false userns=\"\" map=" + whole},
		{"/", "", "0 0 [4 5] mixed=false unmapped=false all=true nnp=false setgroups=false holds=true userns=\"\" map=" + whole},
		{"/proc", "", "0 0 [4 5] mixed=false unmapped=false all=true nnp=false setgroups=false holds=true userns=\"\" map=" + whole},
		{"/proc/sys", "", "0 0 [4 5] mixed=false unmapped=false all=true nnp=false setgroups=false holds=false userns=\"\" map=" + whole},
		{dir + "/none", "", "0 0 [4 5] mixed=false unmapped=false all=true nnp=false setgroups=false holds=false userns=\"\" map=" + whole},
		{dir, "--no-new-privs", "0 0 [4 5] mixed=false unmapped=false all=true nnp=true setgroups=false holds=false userns=\"\" map=" + whole},
		{dir, "--egid=7", "0 7 [4 5] mixed=true unmapped=false all=true nnp=false setgroups=false holds=false userns=\"\" map=" + whole},
	} {
		args := append([]string{"--groups=4,5"}, strings.Fields(c.as)...)
		cmd := exec.Command("setpriv", append(args, os.Args[0], "-test.run=^TestFactsOfAProcess$")...)
		cmd.Env = append(os.Environ(), factsEnv+"="+c.share)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Equal(t, c.want+"\n", string(out), "%s %s", c.share, c.as)
	}
	cmd := exec.Command("unshare", "--user", "--map-root-user", os.Args[0], "-test.run=^TestFactsOfAProcess$")
	cmd.Env = append(os.Environ(), factsEnv+"="+dir)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "mixed=false unmapped=false all=true nnp=false setgroups=true holds=false userns=\"\" map=:0:0:1:\n")

	f, err := Gather(dir, false)
	require.NoError(t, err)
	assert.True(t, f.Seccomp)
	assert.Equal(t, sys.LandlockABI(), f.Landlock)
	for name, got := range map[string]string{"newuidmap": f.Newuidmap, "newgidmap": f.Newgidmap} {
		want, err := exec.LookPath(name)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	assert.EqualValues(t, readNumber("/proc/sys/kernel/cap_last_cap", 0), f.LastCap)
	assert.False(t, f.NoPivotRoot)
	assert.True(t, f.Bounding.Has(SysAdmin))
	assert.Equal(t, subIDs("/etc/subuid", 0), f.SubUID)
	assert.Equal(t, subIDs("/etc/subgid", 0), f.SubGID)
}
