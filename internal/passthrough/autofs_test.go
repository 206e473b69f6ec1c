package passthrough

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/testenv"
)

// What the host mounts on demand is not mounted because a guest looks at it, or tries to remove or
// rename it: a server that is down would hold up who only lists a directory. It is a directory
// until the host mounts it, and then leads there.
func TestAutomountsAreNotTriggered(t *testing.T) {
	testenv.Need(t, "root")
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(b), "\tautofs\n") {
		testenv.Lacks(t, "autofs", "the kernel has no autofs")
	}
	dir := tmpfs(t)
	trigger := dir + "/trigger"
	require.NoError(t, os.Mkdir(trigger, 0o755))
	// Who is in the group of the automounter triggers nothing: it has to be another's.
	automounter := exec.Command("sleep", "1000")
	automounter.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, automounter.Start())
	t.Cleanup(func() { automounter.Process.Kill(); automounter.Wait() })
	asks, tells, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, unix.Mount("test", trigger, "autofs", 0,
		fmt.Sprintf("fd=%d,pgrp=%d,minproto=5,maxproto=5,direct", tells.Fd(), automounter.Process.Pid)))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(trigger, unix.MNT_DETACH)) })
	tells.Close()
	triggered := make(chan struct{})
	go func() {
		if n, _ := asks.Read(make([]byte, 4096)); n > 0 {
			close(triggered)
		}
		asks.Close() // nobody has to wait for an answer
	}()
	quiet := func(what string) {
		t.Helper()
		select {
		case <-triggered:
			require.Fail(t, "it is mounted by "+what)
		case <-time.After(20 * time.Millisecond):
		}
	}

	for _, h := range []Handles{HandlesNever, HandlesPrefer} {
		g := mount(t, dir, Config{InodeFileHandles: h, AnnounceSubmounts: true})
		n := g.mustLookup(root, "trigger")
		quiet("LOOKUP")
		names := g.readdir(root, true, 4096)
		assert.True(t, slices.ContainsFunc(names, func(e entry) bool { return e.name == "trigger" && e.node == n }))
		quiet("READDIRPLUS")
		_, e := g.getattr(n)
		require.Zero(t, e)
		quiet("GETATTR")
		_, e = want[fuseabi.StatxOut](g, fuseabi.OpStatx, n, &fuseabi.StatxIn{SxMask: unix.STATX_BASIC_STATS}, nil)
		require.Zero(t, e)
		quiet("STATX")
		assert.Equal(t, unix.EBUSY, g.rmdir(root, "trigger"))
		quiet("RMDIR")
		assert.Equal(t, unix.EISDIR, g.unlink(root, "trigger"))
		quiet("UNLINK")
		assert.Equal(t, unix.EBUSY, g.rename(root, "trigger", root, "other", 0))
		quiet("RENAME of it")
		require.NoError(t, os.Mkdir(dir+"/empty", 0o755))
		assert.Equal(t, unix.EBUSY, g.rename(root, "empty", root, "trigger", 0))
		quiet("RENAME over it")
		require.NoError(t, os.Remove(dir+"/empty"))
		assert.Len(t, g.readdir(n, true, 4096), 2)
		quiet("OPENDIR, as there is no name on the way to it")
		assert.EqualValues(t, root, g.mustLookup(n, ".."))
		quiet("LOOKUP of its parent")
	}
}
