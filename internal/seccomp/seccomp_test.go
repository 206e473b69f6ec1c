package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	sc "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/testenv"
)

// never are calls that no daemon under the filter may make, with any arguments.
var never = []string{
	"execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "kill", "tkill",
	"mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsmount", "fspick", "mount_setattr", "setns",
	"socket", "socketpair", "connect", "bind", "listen", "bpf", "perf_event_open", "userfaultfd", "memfd_create", "memfd_secret",
	"io_uring_setup", "io_uring_enter", "io_uring_register", "keyctl", "add_key", "request_key", "kexec_load", "init_module", "finit_module", "delete_module",
	"personality", "seccomp", "landlock_restrict_self", "quotactl", "swapon", "reboot", "syslog", "iopl", "ioperm", "modify_ldt", "sethostname", "settimeofday",
	"ioctl", "name_to_handle_at", "open_by_handle_at", "setpriority", "sched_setattr", "acct", "uselib", "vmsplice", "mq_open", "shmget", "shmat", "msgget", "semget",
}

func config() Config { return Config{Action: "kill", PID: os.Getpid()} }

// lacking are the calls of the list that an architecture does not have, or by another of the list's names.
var lacking = map[string][]string{
	arch.X86_64.Name:  {"fstatat"},
	arch.AARCH64.Name: {"newfstatat", "epoll_wait", "poll"},
}

func TestRulesHaveReasonsAndKnownNames(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Rules(Config{Action: "kill", Handles: true}) {
		assert.Greater(t, len(r.Reason), 10)
		for _, c := range r.Calls {
			assert.False(t, seen[c], "%s stands twice", c)
			seen[c] = true
			for _, info := range []*arch.Info{arch.X86_64, arch.AARCH64} {
				_, ok := info.SyscallNames[c]
				assert.Equal(t, !slices.Contains(lacking[info.Name], c), ok, "%s on %s: a name that is not known allows nothing", c, info.Name)
			}
		}
	}
	for _, r := range Rules(config()) {
		for _, n := range never {
			assert.NotContains(t, r.Calls, n)
		}
	}
}

// TestFilter judges calls by the list of each architecture, and runs the program made of it for the one that this is.
func TestFilter(t *testing.T) {
	for _, info := range []*arch.Info{arch.X86_64, arch.AARCH64} {
		p, err := policyFor(Config{Action: "kill", PID: 42}, info)
		require.NoError(t, err)
		require.Greater(t, len(p.Syscalls[0].Names), 80, info.Name)
		judge := func(name string, args ...uint64) uint32 { return byList(p, name, args) }
		checkCalls(t, judge, info)
		if here, err := arch.GetInfo(""); err == nil && here.Name == info.Name {
			checkCalls(t, program(t, p, info), info)
		}
	}
	_, err := policyFor(Config{Action: "nonsense"}, arch.X86_64)
	assert.ErrorContains(t, err, "unknown action")
}

// Answers of a filter (linux/seccomp.h).
const (
	kill   = 0x80000000
	allow  = 0x7fff0000
	logged = 0x7ffc0000
	enosys = 0x00050000 | uint32(unix.ENOSYS)
)

func checkCalls(t *testing.T, judge func(name string, args ...uint64) uint32, info *arch.Info) {
	t.Helper()
	for _, n := range never {
		if _, ok := info.SyscallNames[n]; ok {
			assert.EqualValues(t, kill, judge(n), "%s on %s", n, info.Name)
		}
	}
	for _, c := range []struct {
		name string
		args []uint64
		want uint32
	}{
		{"read", nil, allow},
		{"statx", nil, allow},
		{"clone3", nil, enosys},
		{"clone", []uint64{threadFlags}, allow},
		{"clone", []uint64{threadFlags | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID}, allow},
		{"clone", []uint64{uint64(unix.SIGCHLD)}, kill},
		{"clone", []uint64{threadFlags | unix.CLONE_NEWNET}, kill},
		{"clone", []uint64{threadFlags | unix.CLONE_NEWCGROUP}, kill},
		{"clone", []uint64{unix.CLONE_NEWUSER}, kill},
		{"mmap", []uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE}, allow},
		{"mmap", []uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, kill},
		{"mprotect", []uint64{0, 4096, unix.PROT_NONE}, allow},
		{"mprotect", []uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, kill},
		{"tgkill", []uint64{42, 43, 23}, allow},
		{"tgkill", []uint64{1, 1, 9}, kill},
		{"prlimit64", []uint64{0}, allow},
		{"prlimit64", []uint64{42}, allow},
		{"prlimit64", []uint64{1}, kill},
		{"prctl", []uint64{unix.PR_SET_VMA}, allow},
		{"prctl", []uint64{unix.PR_GET_SECUREBITS}, allow},
		{"prctl", []uint64{unix.PR_SET_SECUREBITS, 0}, kill},
		{"prctl", []uint64{unix.PR_SET_DUMPABLE, 1}, kill},
		{"prctl", []uint64{unix.PR_SET_KEEPCAPS, 1}, kill},
		{"prctl", []uint64{unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE}, kill},
		{"fcntl", []uint64{5, unix.F_SETFD, 1}, allow},
		{"fcntl", []uint64{5, unix.F_SETOWN, 1}, kill},
		{"fcntl", []uint64{5, unix.F_SETSIG, 9}, kill},
		{"fcntl", []uint64{5, unix.F_NOTIFY}, kill},
		{"unshare", []uint64{unix.CLONE_FS}, allow},
		{"unshare", []uint64{unix.CLONE_NEWUSER}, kill},
		{"unshare", []uint64{unix.CLONE_FS | unix.CLONE_NEWNS}, kill},
		{"unshare", []uint64{0}, kill},
	} {
		assert.Equal(t, fmt.Sprintf("%#x", c.want), fmt.Sprintf("%#x", judge(c.name, c.args...)), "%s%v on %s", c.name, c.args, info.Name)
	}
}

// byList judges a call by the rules themselves.
func byList(p sc.Policy, name string, args []uint64) uint32 {
	args = append(args, 0, 0, 0, 0, 0, 0)
	holds := func(c sc.Condition) bool {
		switch v := args[c.Argument]; c.Operation {
		case sc.Equal:
			return v == c.Value
		case sc.BitsSet:
			return v&c.Value == c.Value
		case sc.BitsNotSet:
			return v&c.Value == 0
		}
		return false
	}
	for _, g := range p.Syscalls {
		if slices.Contains(g.Names, name) {
			return uint32(g.Action)
		}
		for _, n := range g.NamesWithCondtions {
			if n.Name == name && !slices.ContainsFunc(n.Conditions, func(c sc.Condition) bool { return !holds(c) }) {
				return uint32(g.Action)
			}
		}
	}
	return uint32(p.DefaultAction)
}

func TestHandlesAndLogMode(t *testing.T) {
	p, err := policyFor(Config{Action: "log", Handles: true}, arch.X86_64)
	require.NoError(t, err)
	assert.EqualValues(t, allow, byList(p, "open_by_handle_at", nil))
	assert.EqualValues(t, logged, byList(p, "socket", nil))
}

func program(t *testing.T, p sc.Policy, info *arch.Info) func(name string, args ...uint64) uint32 {
	run := machine(t, p)
	return func(name string, args ...uint64) uint32 {
		return run(uint32(info.ID), info.SyscallNames[name], args...)
	}
}

// machine runs a policy's program on struct seccomp_data of a call (linux/seccomp.h). Every load is of 32 bits, which the interpreter takes
// as big-endian and the kernel as native: the fields are written as the interpreter reads them.
func machine(t *testing.T, p sc.Policy) func(archID uint32, nr int, args ...uint64) uint32 {
	t.Helper()
	ins, err := p.Assemble()
	require.NoError(t, err)
	vm, err := bpf.NewVM(ins)
	require.NoError(t, err)
	return func(archID uint32, nr int, args ...uint64) uint32 {
		data := make([]byte, 64)
		binary.BigEndian.PutUint32(data[0:], uint32(nr))
		binary.BigEndian.PutUint32(data[4:], archID)
		for i, a := range args {
			binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
			binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
		}
		ret, err := vm.Run(data)
		require.NoError(t, err)
		return uint32(ret)
	}
}

// TestFilterHolds runs this test binary under the filter and has it do what is forbidden.
func TestFilterHolds(t *testing.T) {
	if what := os.Getenv("SECCOMP_CHILD"); what != "" {
		child(what)
		return
	}
	if !Supported() {
		testenv.Lacks(t, "seccomp", "there is no table of system calls for "+runtime.GOARCH+"; remedy: amd64 or arm64")
	}
	run := func(what string) error {
		c := exec.Command(os.Args[0], "-test.run=^TestFilterHolds$")
		c.Env = append(os.Environ(), "SECCOMP_CHILD="+what)
		return c.Run()
	}
	assert.NoError(t, run("nothing"), "the runtime, threads and the garbage collector work under the filter")
	assert.NoError(t, run("second listener"))
	for _, what := range []string{"socket", "unshare", "exec", "chroot", "map code", "signal another"} {
		var exit *exec.ExitError
		require.ErrorAs(t, run(what), &exit, what)
		assert.Equal(t, syscall.SIGSYS, exit.Sys().(syscall.WaitStatus).Signal(), what)
	}
}

// secondListener tries to have one where a filter, of a container's runtime for instance, has a listener.
func secondListener() int {
	if unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != nil {
		return 3
	}
	if _, err := listen([]bpf.RawInstruction{{Op: unix.BPF_RET, K: allow}}); err != nil {
		return 4
	}
	if _, err := InstallTold(Config{Action: "log", PID: os.Getpid()}); !errors.Is(err, ErrNoListener) {
		return 5
	}
	return 0
}

func child(what string) {
	if what == "second listener" {
		os.Exit(secondListener())
	}
	before := make(chan bool)
	for range 5 {
		go func() { runtime.LockOSThread(); before <- true; select {} }()
	}
	for range 5 {
		<-before
	}
	if unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != nil || Install(config()) != nil {
		os.Exit(3)
	}
	switch what {
	case "nothing":
		done := make(chan bool)
		for range 50 {
			go func() { runtime.LockOSThread(); _ = make([]byte, 1<<20); done <- true }()
		}
		for range 50 {
			<-done
		}
		runtime.GC()
		status, _ := filepath.Glob("/proc/self/task/*/status")
		for _, s := range status {
			if b, err := os.ReadFile(s); err == nil && !strings.Contains(string(b), "\nSeccomp:\t2\n") {
				os.Exit(4)
			}
		}
	case "socket":
		unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	case "unshare":
		unix.Unshare(unix.CLONE_NEWNS)
	case "exec":
		unix.Exec("/bin/true", []string{"true"}, nil)
	case "chroot":
		unix.Chroot("/")
	case "map code":
		unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
	case "signal another":
		unix.Tgkill(os.Getppid(), os.Getppid(), 0)
	}
	os.Exit(0)
}
