package runner

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"

	"virtiofsd/harness/qemu"
)

// need probes one word of a scenario's needs; the answer is remembered for the run.
func (r *run) need(word string) error {
	r.mu.Lock()
	once := r.needs[word]
	if once == nil {
		once = sync.OnceValue(func() error { return r.probe(word) })
		r.needs[word] = once
	}
	r.mu.Unlock()
	return once()
}

func (r *run) probe(word string) error {
	switch word {
	case "root":
		if os.Geteuid() != 0 {
			return errors.New("not root; remedy: run as root")
		}
		return try(&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}, "a mount namespace")
	case "userns":
		// As another user, where we may: root may make user namespaces where users may not.
		a := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
		return try(a, "a user namespace")
	case "qemu":
		bin := r.QEMU
		if bin == "" {
			bin = qemu.DefaultBinary
		}
		return tool(bin, "qemu-system-x86")
	case "newuidmap":
		for _, f := range []string{"/etc/subuid", "/etc/subgid"} {
			if _, err := os.Stat(f); err != nil {
				return fmt.Errorf("%w; remedy: create it (an empty file will do)", err)
			}
		}
		return tool("newuidmap", "uidmap")
	case "bwrap":
		return tool("bwrap", "bubblewrap")
	case "unshare", "setpriv":
		return tool(word, "util-linux")
	}
	return tool(word, word)
}

func tool(name, pkg string) error {
	if _, err := exec.LookPath(name); err != nil {
		return fmt.Errorf("%w; remedy: install the package %s", err, pkg)
	}
	return nil
}

func try(attr *syscall.SysProcAttr, what string) error {
	c := exec.Command("true")
	c.SysProcAttr = attr
	if err := c.Run(); err != nil {
		return fmt.Errorf("cannot start a program in %s: %w", what, err)
	}
	return nil
}

// must reports whether a need may not be missing.
func (r *run) must(word string) bool {
	return slices.Contains(r.Must, word) || slices.Contains(r.Must, "all")
}
