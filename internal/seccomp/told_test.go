package seccomp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	sc "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

// A call is told as its name, and those of its arguments at which the list looks, each once, in
// order.
func TestCallsAreDescribedByWhatDecides(t *testing.T) {
	rules := Rules(Config{Handles: true})
	describe := func(name string, rules []Rule, args ...uint64) string {
		c := &sys.SeccompCall{NR: int32(arch.X86_64.SyscallNames[name])}
		copy(c.Args[:], args)
		return describe(c, arch.X86_64, rules)
	}
	assert.Equal(t, "socket", describe("socket", rules, 1, 2, 3))
	assert.Equal(t, "read", describe("read", rules, 1, 2, 3), "all of its arguments are allowed")
	assert.Equal(t, "prctl, argument 0 is 0x4", describe("prctl", rules, 4, 5))
	assert.Equal(t, "fcntl, argument 1 is 0x8", describe("fcntl", rules, 7, 8, 9))
	assert.Equal(t, "mmap, argument 2 is 0x7", describe("mmap", rules, 1, 2, 7), "a condition looks at one that has no list of values")
	assert.Equal(t, "clone, argument 0 is 0x11", describe("clone", rules, 0x11), "two conditions look at the same")
	assert.Equal(t, "tgkill, argument 0 is 0x1", describe("tgkill", rules, 1, 2, 9))
	assert.Equal(t, "number 99999", describeNumber(99999, rules))
	mixed := []Rule{{Calls: []string{"write"}}, {Calls: []string{"read"}, Arg: 3, Values: []uint64{0}, And: []sc.Condition{{Argument: 1}, {Argument: 3}}}}
	assert.Equal(t, "read, argument 1 is 0xb, argument 3 is 0xd", describe("read", mixed, 0xa, 0xb, 0xc, 0xd))
}

func describeNumber(nr int32, rules []Rule) string {
	return describe(&sys.SeccompCall{NR: nr}, arch.X86_64, rules)
}

// A name that an architecture does not have allows nothing, and keeps no other of its rule from
// being allowed.
func TestNamesOfOtherArchitecturesAreSkipped(t *testing.T) {
	p, err := policyFor(config(), arch.X86_64)
	require.NoError(t, err)
	assert.Contains(t, p.Syscalls[0].Names, "fstatfs", "it stands behind fstatat, which amd64 does not have")
	assert.NotContains(t, p.Syscalls[0].Names, "fstatat")
	p, err = policyFor(config(), arch.AARCH64)
	require.NoError(t, err)
	assert.Contains(t, p.Syscalls[0].Names, "fstatfs")
	assert.NotContains(t, p.Syscalls[0].Names, "epoll_wait")
}

// What happens to a call that is not on the list is the caller's choice of three.
func TestActions(t *testing.T) {
	for name, want := range map[string]sc.Action{"kill": sc.ActionKillProcess, "log": sc.ActionLog, "trap": sc.ActionTrap} {
		p, err := policyFor(Config{Action: name, PID: 1}, arch.X86_64)
		require.NoError(t, err)
		assert.Equal(t, want, p.DefaultAction)
	}
	assert.EqualError(t, Install(Config{Action: "nonsense"}), `seccomp: unknown action "nonsense"`)
	fd, err := InstallTold(Config{Action: "nonsense"})
	assert.EqualError(t, err, `seccomp: unknown action "nonsense"`)
	assert.Equal(t, -1, fd)
	fd, err = listen(nil)
	assert.EqualError(t, err, "seccomp: install the filter: invalid argument")
	assert.Equal(t, -1, fd)
}

// toldEnv has the test's program be a process under the filter; it hands its listener over on
// descriptor 3.
const toldEnv = "SECCOMP_TOLD"

// The watcher is told of each call that is not on the list, once of those that are alike, of a
// bounded number, and lets all go on.
func TestWatchTells(t *testing.T) {
	if what := os.Getenv(toldEnv); what != "" {
		toldChild(what)
	}
	if _, err := arch.GetInfo(""); err != nil || runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		assert.False(t, Supported())
		return
	}
	assert.True(t, Supported())
	watch := func(what string) (told []string, err error) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		theirs := os.NewFile(uintptr(pair[1]), "theirs")
		mine, err := net.FileConn(os.NewFile(uintptr(pair[0]), "mine"))
		require.NoError(t, err)
		defer mine.Close()
		c := exec.Command(os.Args[0], "-test.run=^TestWatchTells$")
		c.Env = append(os.Environ(), toldEnv+"="+what)
		c.ExtraFiles = []*os.File{theirs}
		require.NoError(t, c.Start())
		theirs.Close()
		oob := make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := mine.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), oob)
		require.NoError(t, err)
		m, err := unix.ParseSocketControlMessage(oob[:n])
		require.NoError(t, err)
		require.Len(t, m, 1)
		fds, err := unix.ParseUnixRights(&m[0])
		require.NoError(t, err)
		defer unix.Close(fds[0])
		threads := map[int]bool{}
		done := make(chan error, 1)
		go func() {
			done <- Watch(fds[0], func(call string, thread int) { told = append(told, call); threads[thread] = true })
		}()
		require.NoError(t, c.Wait(), "every call went on")
		err = <-done // it ends by itself: nobody is left
		assert.NotEmpty(t, threads)
		assert.NotContains(t, threads, 0, "a thread has a number")
		return told, err
	}
	told, err := watch("few")
	require.NoError(t, err)
	ours := func(s []string) (of []string) {
		for _, c := range s {
			if strings.HasPrefix(c, "prctl, argument 0 is 0x1") || strings.HasPrefix(c, "socket") {
				of = append(of, c)
			}
		}
		return of
	}
	assert.Equal(t, []string{"socket", "prctl, argument 0 is 0x10001", "prctl, argument 0 is 0x10002"}, ours(told))
	assert.NotContains(t, told, "read")
	told, err = watch("many")
	require.NoError(t, err)
	assert.Len(t, told, 1000)
}

// toldChild makes calls that are not on the list.
func toldChild(what string) {
	fail := os.Exit
	if unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != nil {
		fail(3)
	}
	if what == "refused" {
		if sc.LoadFilter(sc.Filter{Flag: sc.FilterFlagTSync, Policy: sc.Policy{DefaultAction: sc.ActionAllow,
			Syscalls: []sc.SyscallGroup{{Action: sc.ActionErrno | sc.Action(unix.EPERM), Names: []string{"seccomp"}}}}}) != nil {
			fail(8)
		}
		err := Install(config())
		if err == nil {
			fail(9)
		}
		fmt.Println(err)
		fail(0)
	}
	listener, err := InstallTold(Config{Action: "log", PID: os.Getpid()})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		fail(4)
	}
	if unix.Sendmsg(3, []byte{0}, unix.UnixRights(listener), nil, 0) != nil || unix.Close(listener) != nil {
		fail(5)
	}
	for range 2 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			fail(6)
		}
		unix.Close(fd)
	}
	n := map[string]int{"few": 2, "many": 1200}[what]
	for range 2 {
		for i := range n {
			if err := unix.Prctl(0x10001+i, 0, 0, 0, 0); !errors.Is(err, unix.EINVAL) { // the kernel's answer: there is no such
				fail(7)
			}
		}
	}
	os.Exit(0)
}

// A kernel or a caller's filter that will not take the filter is an error, not a daemon without
// one.
func TestFilterThatCannotBeInstalledIsTold(t *testing.T) {
	c := exec.Command(os.Args[0], "-test.run=^TestWatchTells$")
	c.Env = append(os.Environ(), toldEnv+"=refused")
	out, err := c.CombinedOutput()
	require.NoError(t, err)
	assert.Regexp(t, "^seccomp: install the filter: .*operation not permitted\n$", string(out))
}

// What is no listener is an error that says so; one whose end is gone is none.
func TestWatchTellsWhatIsWrong(t *testing.T) {
	var p [2]int
	require.NoError(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	defer unix.Close(p[0])
	_, err := unix.Write(p[1], []byte{1})
	require.NoError(t, err)
	never := func(string, int) { assert.Fail(t, "there is no call") }
	assert.EqualError(t, Watch(p[0], never), "seccomp: receive a call: inappropriate ioctl for device")
	_, err = unix.Read(p[0], make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, unix.Close(p[1]))
	assert.NoError(t, Watch(p[0], never))
}
