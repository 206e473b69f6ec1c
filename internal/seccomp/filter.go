package seccomp

import (
	"fmt"
	"runtime"

	bpf "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// Supported reports whether this architecture has a table of system call numbers; without one there is no filter.
func Supported() bool {
	_, err := arch.GetInfo("")
	return err == nil
}

// Policy makes the filter's policy for the running architecture.
func Policy(c Config) (bpf.Policy, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return bpf.Policy{}, fmt.Errorf("seccomp: no table of system calls for %s; use --seccomp=none, knowing what that gives up", runtime.GOARCH)
	}
	return policyFor(c, info)
}

func policyFor(c Config, info *arch.Info) (bpf.Policy, error) {
	p := bpf.Policy{}
	switch c.Action {
	case "kill":
		p.DefaultAction = bpf.ActionKillProcess
	case "log":
		p.DefaultAction = bpf.ActionLog
	case "trap":
		p.DefaultAction = bpf.ActionTrap
	default:
		return p, fmt.Errorf("seccomp: unknown action %q", c.Action)
	}
	g := bpf.SyscallGroup{Action: bpf.ActionAllow}
	for _, r := range Rules(c) {
		for _, name := range r.Calls {
			if _, ok := info.SyscallNames[name]; !ok {
				continue // another architecture's, as epoll_wait on arm64
			}
			if len(r.Values)+len(r.And) == 0 {
				g.Names = append(g.Names, name)
				continue
			}
			for _, c := range r.alternatives() {
				g.NamesWithCondtions = append(g.NamesWithCondtions, bpf.NameWithConditions{Name: name, Conditions: c})
			}
		}
	}
	// clone3 passes its flags in memory, where a filter cannot look: ENOSYS makes callers fall back to clone.
	p.Syscalls = []bpf.SyscallGroup{g, {Names: []string{"clone3"}, Action: bpf.ActionErrno | bpf.Action(unix.ENOSYS)}}
	return p, nil
}

// Install puts the filter on all threads of this process. no_new_privs must be set before. A thread that did not take it is left to the
// caller to find, as the library does not tell (seccomp(2), SECCOMP_FILTER_FLAG_TSYNC).
func Install(c Config) error {
	p, err := Policy(c)
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

// alternatives are the sets of conditions one of which has to hold.
func (r Rule) alternatives() (all []bpf.ArgumentConditions) {
	for _, v := range r.Values {
		all = append(all, append(bpf.ArgumentConditions{{Argument: r.Arg, Operation: bpf.Equal, Value: v}}, r.And...))
	}
	if len(r.Values) == 0 {
		all = append(all, r.And)
	}
	return all
}
