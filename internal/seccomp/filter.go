package seccomp

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	bpf "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// Supported reports whether this architecture has a table of system call numbers; without one there is no filter.
func Supported() bool {
	_, err := arch.GetInfo("")
	return err == nil
}

// Policy makes the filter's policy for the running architecture. action is kill, log or trap.
func Policy(action string) (bpf.Policy, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return bpf.Policy{}, fmt.Errorf("seccomp: no table of system calls for %s; use --seccomp=none, knowing what that gives up", runtime.GOARCH)
	}
	return policyFor(action, info)
}

func policyFor(action string, info *arch.Info) (bpf.Policy, error) {
	p := bpf.Policy{}
	switch action {
	case "kill":
		p.DefaultAction = bpf.ActionKillProcess
	case "log":
		p.DefaultAction = bpf.ActionLog
	case "trap":
		p.DefaultAction = bpf.ActionTrap
	default:
		return p, fmt.Errorf("seccomp: unknown action %q", action)
	}
	g := bpf.SyscallGroup{Action: bpf.ActionAllow}
	for _, r := range Rules() {
		for _, name := range r.Calls {
			if _, ok := info.SyscallNames[name]; !ok {
				continue // another architecture's, as epoll_wait on arm64
			}
			if len(r.Values) == 0 {
				g.Names = append(g.Names, name)
				continue
			}
			for _, v := range r.Values {
				op := bpf.Equal
				if r.Mask {
					op = bpf.BitsSet
				}
				g.NamesWithCondtions = append(g.NamesWithCondtions, bpf.NameWithConditions{
					Name:       name,
					Conditions: []bpf.Condition{{Argument: r.Arg, Operation: op, Value: v}},
				})
			}
		}
	}
	// clone3 passes its flags in memory, where a filter cannot look: ENOSYS makes callers fall back to clone.
	p.Syscalls = []bpf.SyscallGroup{g, {Names: []string{"clone3"}, Action: bpf.ActionErrno | bpf.Action(unix.ENOSYS)}}
	return p, nil
}

// Install puts the filter on all threads of this process and checks that each has it. no_new_privs must be set before.
func Install(action string) error {
	p, err := Policy(action)
	if err != nil {
		return err
	}
	// The library sets no_new_privs and installs in two calls, which must come from one thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := bpf.LoadFilter(bpf.Filter{NoNewPrivs: true, Flag: bpf.FilterFlagTSync, Policy: p}); err != nil {
		return fmt.Errorf("seccomp: install the filter: %w", err)
	}
	return nil
}

// Verify checks that every thread is under a filter. task is an open /proc/self/task, which stays the caller's: the check works
// after the root directory was changed too.
func Verify(task *os.File) error {
	if _, err := task.Seek(0, 0); err != nil {
		return fmt.Errorf("seccomp: list threads: %w", err)
	}
	names, err := task.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("seccomp: list threads: %w", err)
	}
	for _, tid := range names {
		fd, err := unix.Openat(int(task.Fd()), tid+"/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue // it has ended
		}
		if err != nil {
			return fmt.Errorf("seccomp: look at thread %s: %w", tid, err)
		}
		b := make([]byte, 4096)
		n, err := unix.Read(fd, b)
		unix.Close(fd)
		if err == nil && !strings.Contains(string(b[:max(n, 0)]), "\nSeccomp:\t2\n") {
			return fmt.Errorf("seccomp: thread %s is without the filter", tid)
		}
	}
	return nil
}
