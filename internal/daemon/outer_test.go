package daemon_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	bpf "github.com/elastic/go-seccomp-bpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/testenv"
)

// outerEnv has the test's program run another under a filter that ends processes for the calls that
// it names.
const outerEnv = "VIRTIOFSD_TEST_OUTER"

func underFilter(calls string, argv []string) error {
	os.Unsetenv(outerEnv)
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	p := bpf.Policy{DefaultAction: bpf.ActionAllow, Syscalls: []bpf.SyscallGroup{{Action: bpf.ActionKillProcess, Names: strings.Split(calls, ",")}}}
	if err := bpf.LoadFilter(bpf.Filter{Flag: bpf.FilterFlagTSync, Policy: p}); err != nil {
		return err
	}
	return syscall.Exec(path, argv, os.Environ())
}

// systemService are the calls of the daemon that systemd's set @system-service lacks (systemd 252,
// systemd-analyze syscall-filter).
const systemService = "mount,umount2,pivot_root,chroot,open_tree,move_mount,mount_setattr,landlock_create_ruleset,landlock_add_rule,landlock_restrict_self,open_by_handle_at,mincore"

// TestCallersFilterIsToldOf: where the caller's filter would end the daemon for a call of its
// sandbox, it does not start, and says which calls these are; a mode that makes none of them works.
func TestCallersFilterIsToldOf(t *testing.T) {
	testenv.Need(t, "root")
	wrap := func(calls string) string { return fmt.Sprintf("env %s=%s %s", outerEnv, calls, os.Args[0]) }
	for _, c := range []struct{ calls, args, lacks string }{
		{systemService, "", "mount, open_tree, mount_setattr, move_mount, pivot_root, umount2;"},
		{systemService, "--sandbox=pivot_root", "mount, open_tree, mount_setattr, move_mount, pivot_root, umount2;"},
		{systemService, "--sandbox=chroot", "open_tree, chroot;"},
		{"landlock_restrict_self", "--landlock=on", "landlock_restrict_self;"},
		{"seccomp", "", "seccomp;"},
	} {
		h := newHost(t)
		last, status := h.refused(t, launcher{wrap: wrap(c.calls), args: c.args})
		assert.Equal(t, 1, status, last)
		assert.Contains(t, last, "the caller's filter of system calls ends the process for "+c.lacks, c.args)
	}
	for _, c := range []struct{ calls, args string }{
		{strings.ReplaceAll(systemService, "open_tree,", ""), "--sandbox=none"},
		{"landlock_create_ruleset", ""},
		{"acct", ""},
	} {
		h := newHost(t)
		h.start(t, launcher{wrap: wrap(c.calls), args: c.args})
		f := h.serve(t)
		require.Equal(t, "ok", opens(f, "file"), c.args)
	}
}
