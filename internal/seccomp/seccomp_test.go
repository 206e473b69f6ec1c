package seccomp

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestRulesHaveReasonsAndKnownNames(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Rules() {
		assert.NotEmpty(t, r.Reason)
		for _, c := range r.Calls {
			assert.False(t, seen[c], "%s stands twice", c)
			seen[c] = true
			_, amd := arch.X86_64.SyscallNames[c]
			_, arm := arch.AARCH64.SyscallNames[c]
			assert.True(t, amd || arm || c == "fchmodat2", "%s is no system call of amd64 or arm64", c)
		}
	}
	for _, never := range []string{"execve", "execveat", "fork", "vfork", "ptrace", "mount", "umount2", "pivot_root", "chroot", "setns", "socket", "connect", "bpf", "keyctl", "io_uring_setup", "kexec_load", "init_module", "open_tree", "move_mount", "fsopen", "process_vm_readv", "userfaultfd", "memfd_create", "kill"} {
		assert.False(t, seen[never], "%s is allowed", never)
	}
	for _, a := range []*arch.Info{arch.X86_64, arch.AARCH64} {
		p, err := policyFor("kill", a)
		require.NoError(t, err)
		assert.Greater(t, len(p.Syscalls[0].Names), 80, a.Name)
	}
}

// TestFilterHolds runs this test binary under the filter and has it do what is forbidden.
func TestFilterHolds(t *testing.T) {
	if what := os.Getenv("SECCOMP_CHILD"); what != "" {
		child(what)
		return
	}
	if !Supported() {
		t.Skipf("needs a system call table for %s", runtime.GOARCH)
	}
	run := func(what string) error {
		c := exec.Command(os.Args[0], "-test.run=^TestFilterHolds$")
		c.Env = append(os.Environ(), "SECCOMP_CHILD="+what)
		return c.Run()
	}
	assert.NoError(t, run("nothing"), "the runtime, threads and the garbage collector work under the filter")
	for _, what := range []string{"socket", "unshare", "exec", "chroot"} {
		var exit *exec.ExitError
		require.ErrorAs(t, run(what), &exit, what)
		assert.Equal(t, syscall.SIGSYS, exit.Sys().(syscall.WaitStatus).Signal(), what)
	}
}

func child(what string) {
	task, err := os.Open("/proc/self/task")
	if err != nil || Install("kill") != nil {
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
		if Verify(task) != nil {
			os.Exit(4)
		}
	case "socket":
		unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	case "unshare":
		unix.Unshare(unix.CLONE_NEWNS)
	case "exec":
		unix.Exec("/bin/true", []string{"true"}, nil)
	case "chroot":
		unix.Chroot("/")
	}
	os.Exit(0)
}
