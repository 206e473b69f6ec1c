package workload

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/probe"
	"virtiofsd/internal/testenv"
)

// heldEnv names what a test's own process does to the directory that it holds.
const heldEnv = "VFSMATRIX_HELD"

// inMountNamespace runs the test again in a process with mounts of its own, as what holds changes
// its working directory and mounts. It returns false there.
func inMountNamespace(t *testing.T, do string) bool {
	t.Helper()
	if os.Getenv(heldEnv) == do {
		require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		return false
	}
	testenv.Need(t, "root")
	c := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), heldEnv+"="+do)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := c.CombinedOutput()
	require.NoError(t, err, string(out))
	return true
}

// holdAndLook lays out, holds, has something done, and returns what guest and host see, by name.
func holdAndLook(t *testing.T, do func(share, dir string)) map[string]guestproto.Check {
	t.Helper()
	e := local(t)
	e.Holding = &Holding{}
	where := guestproto.Where{Local: true, Dir: "renamed/by-host"}
	_, err := probe.LayOut(e.LocalDir, probe.MovesArgs{Dir: where.Dir, Others: 3})
	require.NoError(t, err)
	held := call[guestproto.Hold](t, e, guestproto.CallHold, guestproto.HoldArgs{Where: where, Others: 3})
	assert.Equal(t, 3, held.Others)
	assert.Contains(t, held.Held, guestproto.HeldLower, "the host's kernel has overlays")
	do(e.LocalDir, where.Dir)
	seen := map[string]guestproto.Check{}
	for _, c := range call[guestproto.Held](t, e, guestproto.CallHeld, guestproto.HeldArgs{Where: where}).Checks {
		seen["held:"+c.Name] = c
	}
	assert.Equal(t, Holding{}, *e.Holding, "nothing is held any more")
	for _, c := range probe.Look(e.LocalDir, probe.MovesArgs{Dir: where.Dir}).Checks {
		seen["moves:"+c.Name] = c
	}
	assert.Len(t, seen, 16)
	return seen
}

func TestHeldStaysOnALocalFileSystem(t *testing.T) {
	if inMountNamespace(t, "moves") {
		return
	}
	for name, c := range holdAndLook(t, func(share, dir string) {
		m, err := probe.Move(probe.HostMover{Share: share}, probe.MovesArgs{Dir: dir})
		require.NoError(t, err)
		assert.Equal(t, len(guestproto.HeldMoves), m.Moved)
	}) {
		assert.Equal(t, guestproto.StatusPass, c.Status, "%s: %s", name, c.Detail)
	}
}

// TestHeldFindsAnotherInode: what is not what was held is found, by the guest or by the host.
func TestHeldFindsAnotherInode(t *testing.T) {
	if inMountNamespace(t, "nothing") {
		return
	}
	seen := holdAndLook(t, func(string, string) {}) // nothing was moved: the host finds everything at its old name
	for _, n := range guestproto.HeldDirectories {
		assert.Equal(t, guestproto.StatusFail, seen["moves:by-host-"+n].Status, n)
	}
	for _, n := range []string{guestproto.HeldFirstLink, guestproto.HeldLastLink} {
		assert.Equal(t, guestproto.StatusFail, seen["held:by-host-"+n].Status, "%s: its other name is still there", n)
	}
}

// TestHoldSaysWhatItCannotHold: an error, and nothing is held.
func TestHoldSaysWhatItCannotHold(t *testing.T) {
	if inMountNamespace(t, "lacks") {
		return
	}
	e := local(t)
	e.Holding = &Holding{}
	where := guestproto.Where{Local: true, Dir: "renamed/by-host"}
	_, err := probe.LayOut(e.LocalDir, probe.MovesArgs{Dir: where.Dir})
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(e.LocalDir, where.Dir, guestproto.HeldMountFile)))
	raw, err := json.Marshal(guestproto.HoldArgs{Where: where})
	require.NoError(t, err)
	_, err = Run(e, guestproto.CallHold, raw)
	require.ErrorContains(t, err, "bind mount-file: no such file or directory")
	raw, err = json.Marshal(guestproto.HeldArgs{Where: where})
	require.NoError(t, err)
	_, err = Run(e, guestproto.CallHeld, raw)
	require.ErrorContains(t, err, "nothing is held: bind mount-file")
	assert.Empty(t, e.Holding.fds)
}
