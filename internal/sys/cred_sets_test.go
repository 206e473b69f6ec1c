package sys_test

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
	"virtiofsd/internal/testenv"
)

const (
	override = 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	setids   = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	fsetid   = 1 << unix.CAP_FSETID
)

// raw makes a system call on the calling thread alone.
func raw(t *testing.T, trap uintptr, args ...int) {
	a := [3]uintptr{}
	for i, v := range args {
		a[i] = uintptr(v)
	}
	_, _, e := unix.RawSyscall(trap, a[0], a[1], a[2])
	assert.Zero(t, e, "system call %d", trap)
}

// effective makes the effective set of the calling thread.
func effective(t *testing.T, set func(now uint64) uint64) {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	assert.NoError(t, unix.Capget(&h, &d[0]))
	want := set(uint64(d[0].Permitted) | uint64(d[1].Permitted)<<32)
	d[0].Effective, d[1].Effective = uint32(want), uint32(want>>32)
	assert.NoError(t, unix.Capset(&h, &d[0]))
}

func exactly(set uint64) func(uint64) uint64 { return func(uint64) uint64 { return set } }

func hex(set uint64) string { return fmt.Sprintf("%016x", set) }

func capEff(t *testing.T) uint64 {
	n, err := strconv.ParseUint(credentials(t)["CapEff"], 16, 64)
	require.NoError(t, err)
	return n
}

func newCreds(t *testing.T) *sys.Creds {
	c, err := sys.NewCreds()
	require.NoError(t, err)
	return c
}

// Id 0 means the daemon itself: its own user, and its own group, whatever that is.
func TestRootOfTheGuestIsTheDaemon(t *testing.T) {
	testenv.Need(t, "root")
	onThread(func() {
		raw(t, unix.SYS_SETRESGID, -1, 5, -1)
		c := newCreds(t)
		assert.EqualValues(t, 0, c.UID())
		assert.EqualValues(t, 5, c.GID())
		before := credentials(t)
		for _, gid := range []uint32{0, 5} {
			assert.Zero(t, c.Become(0, gid, []uint32{9}))
			assert.Equal(t, before, credentials(t))
			assert.False(t, c.Switched())
		}
		assert.Zero(t, c.Become(0, 7, []uint32{9}), "root of the guest in another group")
		now := credentials(t)
		assert.Equal(t, "0 0 0 0", now["Uid"])
		assert.Equal(t, "0 7 0 7", now["Gid"])
		assert.Equal(t, before["Groups"], now["Groups"])
		assert.Equal(t, before["CapEff"], now["CapEff"])
		assert.True(t, c.Switched())
		c.Restore()
		assert.Equal(t, before, credentials(t))

		assert.Zero(t, c.Become(1000, 0, nil), "a user in the daemon's group")
		assert.Equal(t, "0 1000 0 1000", credentials(t)["Uid"])
		assert.Equal(t, "0 5 0 5", credentials(t)["Gid"])
		c.Restore()
		assert.Equal(t, before, credentials(t))
	})
}

// The launcher's groups are no caller's, and come back.
func TestGroupsOfTheLauncherGoAndCome(t *testing.T) {
	testenv.Need(t, "root")
	onThread(func() {
		g := []uint32{7, 8}
		_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 2, ptr(&g[0]), 0)
		assert.Zero(t, e)
		c := newCreds(t)
		assert.Zero(t, c.Become(1000, 1000, nil))
		assert.Equal(t, "", credentials(t)["Groups"])
		c.Restore()
		assert.Equal(t, "7 8", credentials(t)["Groups"])
		assert.Zero(t, c.Become(1000, 1000, g))
		assert.Equal(t, "7 8", credentials(t)["Groups"])
		c.Restore()
		assert.Equal(t, "7 8", credentials(t)["Groups"])
	})
}

// Whatever the thread has, it has again after Restore: the kernel raises and lowers sets by itself
// when an effective id comes to 0 or leaves it.
func TestExactlyTheOwnSetComesBack(t *testing.T) {
	testenv.Need(t, "root")
	for name, c := range map[string]struct {
		prepare    func()
		uid        uint32
		grant, own uint64 // 0: as it was
	}{
		"root with all":              {func() {}, 1000, override, 0},
		"root with less than it may": {func() { effective(t, func(all uint64) uint64 { return all &^ fsetid }) }, 1000, override, 0},
		"root that may only switch":  {func() { effective(t, exactly(setids)) }, 1000, 0, setids},
		"root that may only read": {func() { // and has another real id, which it may take without a capability
			raw(t, unix.SYS_SETRESUID, 1000, 0, 0)
			effective(t, exactly(override))
		}, 1000, override, override},
		"a user with all": {func() {
			assert.NoError(t, unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0))
			raw(t, unix.SYS_SETRESUID, 1001, 1001, 1001)
			effective(t, func(all uint64) uint64 { return all })
		}, 1000, override, 0},
		"a user with all, for itself": {func() {
			assert.NoError(t, unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0))
			raw(t, unix.SYS_SETRESUID, 1000, 1000, 1000)
			effective(t, func(all uint64) uint64 { return all })
		}, 1000, override, 0},
	} {
		onThread(func() {
			c.prepare()
			creds := newCreds(t)
			before := credentials(t)
			if c.own != 0 {
				assert.Equal(t, hex(c.own), before["CapEff"], name)
			}
			for range 2 {
				assert.Zero(t, creds.Become(c.uid, 0, nil), name)
				now := credentials(t)
				assert.Equal(t, hex(c.grant), now["CapEff"], name)
				assert.Equal(t, before["CapPrm"], now["CapPrm"], "%s: what is not in force stays within reach", name)
				creds.Restore()
				assert.Equal(t, before, credentials(t), name)
				assert.False(t, creds.Switched(), name)
			}
		})
	}
}

// CAP_FSETID alone goes, or all, and all come back.
func TestCapabilitiesGoAndCome(t *testing.T) {
	testenv.Need(t, "root")
	onThread(func() {
		c := newCreds(t)
		before := credentials(t)
		all := capEff(t)
		assert.NotZero(t, all&fsetid)
		assert.Zero(t, c.DropFsetid())
		assert.Equal(t, all&^fsetid, capEff(t))
		assert.True(t, c.Switched())
		c.Restore()
		assert.False(t, c.Switched())
		assert.Equal(t, before, credentials(t))

		assert.Zero(t, c.DropAll())
		assert.Zero(t, capEff(t))
		assert.True(t, c.Switched())
		c.Restore()
		assert.False(t, c.Switched())
		assert.Equal(t, before, credentials(t))

		assert.Zero(t, c.Become(1000, 1000, nil))
		assert.Zero(t, c.DropAll(), "of what a caller was left with")
		assert.Zero(t, capEff(t))
		c.Restore()
		assert.Equal(t, before, credentials(t))
	})
	onThread(func() {
		effective(t, func(all uint64) uint64 { return all &^ fsetid })
		c := newCreds(t)
		before := credentials(t)
		assert.Zero(t, c.DropFsetid())
		assert.False(t, c.Switched(), "there was nothing to take")
		assert.Equal(t, before, credentials(t))
	})
	onThread(func() {
		effective(t, exactly(0))
		c := newCreds(t)
		before := credentials(t)
		assert.Zero(t, c.DropAll())
		assert.False(t, c.Switched(), "there was nothing to take")
		assert.Equal(t, before, credentials(t))
		assert.Equal(t, unix.EPERM, c.Become(1000, 1000, nil), "who may not switch")
		assert.Equal(t, unix.EPERM, c.Become(1000, 0, nil))
		assert.Equal(t, before, credentials(t))
	})
}

// hardEnv has the test's program be a process for which some calls fail.
const hardEnv = "SYS_TEST_HARD"

// TestCallsThatFail: what the kernel or a filter refuses is told, and leaves the thread as it was.
func TestCallsThatFail(t *testing.T) {
	testenv.Need(t, "root")
	if what := os.Getenv(hardEnv); what != "" {
		onThread(func() { refusedHere(t, what) })
		return
	}
	for _, what := range []string{"capget", "getgroups", "setgroups", "capset", "ids"} {
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestCallsThatFail$")
		cmd.Env = append(os.Environ(), hardEnv+"="+what)
		if what == "ids" {
			m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000}}
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: m, GidMappings: m, GidMappingsEnableSetgroups: true,
				Credential: &syscall.Credential{}}
		}
		out, err := cmd.CombinedOutput()
		assert.NoError(t, err, "%s: %s", what, out)
	}
}

func refusedHere(t *testing.T, what string) {
	if what == "ids" {
		c := newCreds(t)
		before := credentials(t)
		assert.Equal(t, unix.EPERM, c.Become(5000, 5, nil), "a user that is not mapped")
		assert.Equal(t, before, credentials(t))
		assert.Equal(t, unix.EPERM, c.Become(5, 5000, nil), "a group that is not mapped")
		assert.Equal(t, before, credentials(t))
		assert.Equal(t, unix.EPERM, c.Become(5, 5, []uint32{5000}), "a supplementary group that is not mapped")
		assert.Equal(t, before, credentials(t))
		assert.False(t, c.Switched())
		assert.Zero(t, c.Become(5, 5, []uint32{999}))
		return
	}
	require.NoError(t, seccomp.LoadFilter(seccomp.Filter{Flag: seccomp.FilterFlagTSync, Policy: seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls:      []seccomp.SyscallGroup{{Action: seccomp.ActionErrno | seccomp.Action(unix.EPERM), Names: []string{what}}},
	}}))
	c, err := sys.NewCreds()
	switch what {
	case "capget":
		assert.EqualError(t, err, "read the thread's capabilities: operation not permitted")
		return
	case "getgroups":
		assert.EqualError(t, err, "read the thread's supplementary groups: operation not permitted")
		return
	}
	require.NoError(t, err)
	before := credentials(t)
	switch what {
	case "setgroups": // as a user namespace denies it: groups stay, ids are switched
		assert.Zero(t, c.Become(1000, 1001, []uint32{2000}))
		assert.Equal(t, "0 1000 0 1000", credentials(t)["Uid"])
		assert.Equal(t, before["Groups"], credentials(t)["Groups"])
		c.Restore()
		assert.Equal(t, before, credentials(t))
	case "capset":
		assert.Equal(t, unix.EPERM, c.DropFsetid())
		assert.False(t, c.Switched())
		assert.Equal(t, unix.EPERM, c.Become(1000, 1001, []uint32{2000}))
		assert.Equal(t, before, credentials(t))
		assert.False(t, c.Switched())
		assert.Equal(t, unix.EPERM, c.DropAll())
		assert.Equal(t, before, credentials(t))
	}
}
