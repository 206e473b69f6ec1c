package sys_test

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
	"virtiofsd/internal/testenv"
)

// onThread runs f on a thread of its own, which ends with it: what f leaves behind is nobody's.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// credentials are what the kernel says of the calling thread: the lines of its status by name, numbers apart by one space.
func credentials(t *testing.T) map[string]string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", unix.Gettid()))
	require.NoError(t, err)
	all := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "Uid", "Gid", "Groups", "CapEff", "CapPrm":
			all[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	return all
}

func TestCredentialsAreTakenAndGivenBack(t *testing.T) {
	testenv.Need(t, "root")
	const override = "0000000000000006" // dac_override and dac_read_search
	for _, c := range []struct {
		uid, gid         uint32
		groups           []uint32
		ids, gids, grant string // real, effective, saved and file system's id; supplementary groups
	}{
		{1000, 1001, nil, "0 1000 0 1000", "0 1001 0 1001", ""},
		{1000, 1001, []uint32{2000, 3000}, "0 1000 0 1000", "0 1001 0 1001", "2000 3000"},
		{1000, 0, []uint32{2000}, "0 1000 0 1000", "0 0 0 0", "2000"},
	} {
		onThread(func() {
			// A launcher's group, to see it go and come.
			_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
			assert.Zero(t, e)
			creds, err := sys.NewCreds()
			if !assert.NoError(t, err) {
				return
			}
			before := credentials(t)
			assert.Zero(t, creds.Become(c.uid, c.gid, c.groups))
			assert.True(t, creds.Switched())
			now := credentials(t)
			assert.Equal(t, c.ids, now["Uid"])
			assert.Equal(t, c.gids, now["Gid"])
			assert.Equal(t, c.grant, now["Groups"])
			assert.Equal(t, override, now["CapEff"], "permissions were checked by the guest; nothing else is kept")
			creds.Restore()
			assert.False(t, creds.Switched())
			assert.Equal(t, before, credentials(t))
		})
	}
}

func TestCredentialsThatCannotBeTakenLeaveNothingBehind(t *testing.T) {
	testenv.Need(t, "root")
	for name, c := range map[string]struct {
		uid, gid uint32
		groups   []uint32
	}{
		"no user":              {^uint32(0), 1000, nil},
		"no group":             {1000, ^uint32(0), nil},
		"more groups than are": {1000, 1000, make([]uint32, 1<<16+1)}, // the group is taken by then
	} {
		onThread(func() {
			creds, err := sys.NewCreds()
			if !assert.NoError(t, err) {
				return
			}
			before := credentials(t)
			assert.Equal(t, unix.EPERM, creds.Become(c.uid, c.gid, c.groups), name)
			assert.Equal(t, before, credentials(t), name)
			assert.False(t, creds.Switched(), name)
		})
	}
}

// stuckEnv has the test's program be a thread that cannot take its ids back.
const stuckEnv = "SYS_TEST_STUCK"

func TestThreadThatCannotComeBackEndsTheProcess(t *testing.T) {
	testenv.Need(t, "root")
	if os.Getenv(stuckEnv) != "" {
		onThread(func() {
			creds, err := sys.NewCreds()
			if err != nil || creds.Become(1000, 1000, nil) != 0 {
				os.Exit(2)
			}
			unix.RawSyscall(unix.SYS_SETRESUID, 1000, 1000, 1000)
			creds.Restore()
			os.Exit(3) // it would serve on
		})
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestThreadThatCannotComeBackEndsTheProcess$")
	cmd.Env = append(os.Environ(), stuckEnv+"=1")
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Run(), &exit)
	assert.Equal(t, 70, exit.ExitCode())
}

// unmappedEnv has the test's program be a process in a user namespace that maps others' ids only.
const unmappedEnv = "SYS_TEST_UNMAPPED"

// TestIDsThatCannotBeTakenAgainAreFound: the kernel shows ids that are not mapped as 65534, which
// may be mapped to somebody else.
func TestIDsThatCannotBeTakenAgainAreFound(t *testing.T) {
	if os.Getenv(unmappedEnv) != "" {
		mapped := sys.IDsAreMapped()
		_, err := sys.NewCreds()
		fmt.Printf("%d %t %v\n", os.Geteuid(), mapped, err)
		os.Exit(0)
	}
	testenv.Need(t, "root")
	for _, c := range []struct {
		first int
		want  string
	}{
		{1000, "65534 false the thread's own ids, 65534 and 65534, cannot be taken again: they are not mapped in its user namespace\n"},
		{65000, "65534 false <nil>\n"}, // NewCreds cannot tell
	} {
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestIDsThatCannotBeTakenAgainAreFound$")
		cmd.Env = append(os.Environ(), unmappedEnv+"=1")
		m := []syscall.SysProcIDMap{{ContainerID: c.first, HostID: 100000, Size: 1000}}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER, UidMappings: m, GidMappings: m, GidMappingsEnableSetgroups: true,
			AmbientCaps: []uintptr{unix.CAP_SETUID, unix.CAP_SETGID},
		}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Equal(t, c.want, string(out))
	}
	onThread(func() { assert.True(t, sys.IDsAreMapped()) })
}

// TestCredentialsFollowWhateverTheLauncherSays: a launcher's secure bits, which it may have locked,
// keep the kernel from changing capabilities with ids. A thread that acts for somebody keeps
// CAP_FSETID then (CVE-2022-0358), or never gets its own back, unless that is minded.
func TestCredentialsFollowWhateverTheLauncherSays(t *testing.T) {
	testenv.Need(t, "root")
	for name, c := range map[string]struct {
		bits       uintptr
		without    uint32 // capabilities that the thread does not have
		guarded    string // while it acts for somebody
		permitOnly uint32 // capabilities that it has, but not in effect
	}{
		"as usual":                               {0, 0, "0000000000000006", 0},
		"without fixup":                          {1 << 2, 0, "0000000000000006", 0},
		"without fixup, locked":                  {1<<2 | 1<<3, 0, "0000000000000006", 0},
		"all of them, locked":                    {0x2f | 0xc0, 0, "0000000000000006", 0},
		"--modcaps=-dac_override":                {0, 6, "0000000000000000", 0},
		"--modcaps=-dac_override, without fixup": {1 << 2, 6, "0000000000000000", 0},
		"not all in effect":                      {0, 0, "0000000000000006", 1 << unix.CAP_KILL},
		"not all in effect, without fixup":       {1 << 2, 0, "0000000000000006", 1 << unix.CAP_KILL},
	} {
		onThread(func() {
			_, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, c.bits, 0)
			assert.Zero(t, e, name)
			h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var d [2]unix.CapUserData
			assert.NoError(t, unix.Capget(&h, &d[0]))
			d[0].Permitted &^= c.without
			d[0].Effective = d[0].Permitted &^ c.permitOnly
			assert.NoError(t, unix.Capset(&h, &d[0]))
			creds, err := sys.NewCreds()
			if !assert.NoError(t, err, name) {
				return
			}
			before := credentials(t)
			for range 2 {
				for _, id := range []uint32{1000, 0} {
					assert.Zero(t, creds.Become(id, 1000, nil), name)
					if id != 0 {
						assert.Equal(t, c.guarded, credentials(t)["CapEff"], name)
					}
					creds.Restore()
					assert.Equal(t, before, credentials(t), name)
				}
				assert.Zero(t, creds.Become(1000, 1000, nil), name)
				assert.Zero(t, creds.DropAll(), name)
				assert.Equal(t, "0000000000000000", credentials(t)["CapEff"], name)
				creds.Restore()
				assert.Zero(t, creds.DropFsetid(), name)
				creds.Restore()
				assert.Equal(t, before, credentials(t), name)
			}
		})
	}
}
