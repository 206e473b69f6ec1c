package sys

import (
	"os"
	"os/exec"
	"testing"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/testenv"
)

// TestPivotRootFiltered looks, and again in a child whose filter of system calls leaves pivot_root out.
func TestPivotRootFiltered(t *testing.T) {
	if os.Getenv("NOT_ROOT_HERE") != "" {
		assert.False(t, PivotRootFiltered())
		return
	}
	testenv.Need(t, "root", "userns")
	if os.Getenv("NO_PIVOT_ROOT") != "" {
		require.NoError(t, seccomp.LoadFilter(seccomp.Filter{Flag: seccomp.FilterFlagTSync, Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionAllow,
			Syscalls:      []seccomp.SyscallGroup{{Action: seccomp.ActionErrno, Names: []string{"pivot_root"}}},
		}}))
		assert.True(t, PivotRootFiltered())
		return
	}
	assert.False(t, PivotRootFiltered())
	c := exec.Command(os.Args[0], "-test.run=^TestPivotRootFiltered$")
	c.Env = append(os.Environ(), "NO_PIVOT_ROOT=1")
	out, err := c.CombinedOutput()
	assert.NoError(t, err, string(out))

	// Root of a user namespace in the mount namespace of another, as LXD starts the daemon: EPERM is the kernel's.
	c = exec.Command("unshare", "--user", "--map-root-user", os.Args[0], "-test.run=^TestPivotRootFiltered$")
	c.Env = append(os.Environ(), "NOT_ROOT_HERE=1")
	out, err = c.CombinedOutput()
	assert.NoError(t, err, string(out))
}
