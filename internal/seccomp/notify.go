package seccomp

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	bpf "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	netbpf "golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

// ErrNoListener says that the kernel would not give a listener: one that a caller's filter has excludes another.
var ErrNoListener = errors.New("the filter of the caller has a listener already")

// InstallTold puts the filter of a Config whose action is log on all threads, and returns a descriptor (close-on-exec) on which whoever
// reads it with [Watch] is told of each call that is not on the list, and must let it go on. The caller that makes such a call waits for
// that.
func InstallTold(c Config) (listener int, err error) {
	p, err := Policy(c)
	if err != nil {
		return -1, err
	}
	ins, err := p.Assemble()
	if err != nil {
		return -1, fmt.Errorf("seccomp: assemble the filter: %w", err)
	}
	for i := range ins { // the library has no word for it
		if ins[i] == (netbpf.RetConstant{Val: uint32(bpf.ActionLog)}) {
			ins[i] = netbpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF}
		}
	}
	raw, err := netbpf.Assemble(ins)
	if err != nil {
		return -1, fmt.Errorf("seccomp: assemble the filter: %w", err)
	}
	return listen(raw)
}

// listen puts a program on all threads and returns its listener.
func listen(raw []netbpf.RawInstruction) (listener int, err error) {
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	listener, errno := sys.SeccompListen(filter)
	switch errno {
	case 0:
		return listener, nil
	case unix.EBUSY:
		return -1, ErrNoListener
	}
	return -1, fmt.Errorf("seccomp: install the filter: %w", errno)
}

// toldMost bounds how many different calls are told of: arguments of a process that was taken over are endless.
const toldMost = 1000

// Watch tells of each call that is not on the list and lets it go on, until no process under the filter is left. It tells once of those that
// differ in nothing that the list looks at. A call is told as its name and, where arguments decide, their values: "prctl, argument 0 is 0x4".
func Watch(listener int, tell func(call string, thread int)) error {
	info, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	rules := Rules(Config{Handles: true})
	told := map[string]bool{}
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil {
			return fmt.Errorf("seccomp: wait for a call: %w", err)
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			return nil // hung up: nobody is left
		}
		var c sys.SeccompCall
		switch errno := sys.SeccompReceive(listener, &c); errno {
		case 0:
		case unix.EINTR, unix.ENOENT: // the call was given up, by a signal
			continue
		default:
			return fmt.Errorf("seccomp: receive a call: %w", errno)
		}
		if call := describe(&c, info, rules); !told[call] && len(told) < toldMost {
			told[call] = true
			tell(call, int(c.TID))
		}
		if errno := sys.SeccompContinue(listener, c.ID); errno != 0 && errno != unix.ENOENT {
			return fmt.Errorf("seccomp: let a call go on: %w", errno)
		}
	}
}

// describe names a call, and the arguments by which the list would have allowed it.
func describe(c *sys.SeccompCall, info *arch.Info, rules []Rule) string {
	name, ok := info.SyscallNumbers[int(c.NR)]
	if !ok {
		return fmt.Sprintf("number %d", c.NR)
	}
	var b strings.Builder
	b.WriteString(name)
	for _, r := range rules {
		if !slices.Contains(r.Calls, name) {
			continue
		}
		var args []uint32
		if len(r.Values) > 0 {
			args = append(args, r.Arg)
		}
		for _, and := range r.And {
			args = append(args, and.Argument)
		}
		slices.Sort(args)
		for _, a := range slices.Compact(args) {
			fmt.Fprintf(&b, ", argument %d is %#x", a, c.Args[a])
		}
	}
	return b.String()
}
