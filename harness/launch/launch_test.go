package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/impl"
	"virtiofsd/internal/testenv"
)

// script is a stand-in for a daemon's program: launch knows of it what it knows of any.
func script(t *testing.T, body string) Spec {
	dir := t.TempDir()
	p := filepath.Join(dir, "daemon")
	require.NoError(t, os.WriteFile(p, []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	return Spec{
		Impl:    &impl.Impl{Name: "fake", Dialect: impl.DialectRust, Path: p},
		Options: impl.Options{SharedDir: dir, SocketPath: filepath.Join(dir, "s")},
		Dir:     dir, ReadyIn: 2 * time.Second,
	}
}

func TestADaemonThatRefuses(t *testing.T) {
	_, err := Start(t.Context(), script(t, "echo first; echo 'no such directory' >&2; exit 3"))
	var refused *RefusedError
	require.True(t, errors.As(err, &refused), "%v", err)
	assert.Equal(t, 3, refused.Exit.Status)
	assert.Equal(t, "no such directory", refused.Last)
	assert.False(t, refused.Hung)
}

func TestADaemonThatIsNeverReady(t *testing.T) {
	s := script(t, "echo waiting; exec sleep 60")
	s.ReadyIn = 200 * time.Millisecond
	_, err := Start(t.Context(), s)
	var refused *RefusedError
	require.True(t, errors.As(err, &refused), "%v", err)
	assert.True(t, refused.Hung)
	assert.Equal(t, "SIGKILL", refused.Exit.Signal)
}

func TestTheCDaemon(t *testing.T) {
	testenv.Need(t, "root", "c-daemon")
	c, err := impl.Find(t.Context(), "c", impl.Dirs{})
	require.NoError(t, err)
	s := script(t, "")
	s.Impl, s.Options.Sandbox = c, "namespace"
	d, err := Start(t.Context(), s)
	require.NoError(t, err)
	assert.Equal(t, d.PID(), d.Tree()[0])
	assert.NotZero(t, d.ServingPID())
	// A TERM that comes between its taking of signals and its accept(2) is lost to it: wait until it sleeps there.
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", d.PID()))
		return err == nil && strings.HasPrefix(string(b), fmt.Sprint(unix.SYS_ACCEPT, " "))
	}, 5*time.Second, 10*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	e := d.Stop(ctx)
	assert.False(t, e.Killed, "%+v", e)
	assert.Empty(t, d.Left())
	assert.Empty(t, d.Tree())
}

func TestTheWholeTreeIsKilled(t *testing.T) {
	s := script(t, "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"'$(echo $1 | cut -d= -f2)'\")' ; (trap '' TERM; sleep 61) & trap '' TERM; sleep 62; sleep 63")
	d, err := Start(t.Context(), s)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(d.Tree()) >= 3 }, 5*time.Second, 10*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	e := d.Stop(ctx)
	assert.True(t, e.Killed)
	assert.Eventually(t, func() bool { return len(d.Left()) == 0 }, 2*time.Second, 10*time.Millisecond)
	assert.Equal(t, []string{d.Socket()}, d.Leftovers())
}

func TestPrivateFilesAreTheDaemonsAlone(t *testing.T) {
	testenv.Need(t, "root", "subuid")
	s := script(t, "cat /etc/subuid; id -u; exit 1")
	before, _ := os.ReadFile("/etc/subuid")
	mine := filepath.Join(s.Dir, "subuid")
	require.NoError(t, os.WriteFile(mine, []byte("someone:100000:65536\n"), 0o644))
	require.NoError(t, os.Chmod(s.Dir, 0o755))
	require.NoError(t, os.Chmod(filepath.Dir(s.Dir), 0o755))
	s.Etc, s.As = map[string]string{"/etc/subuid": mine}, &User{UID: 1500, GID: 1500, Groups: []int{1501}}
	_, err := Start(t.Context(), s)
	var refused *RefusedError
	require.True(t, errors.As(err, &refused), "%v", err)
	log, err := os.ReadFile(filepath.Join(s.Dir, LogFile))
	require.NoError(t, err)
	assert.Equal(t, "someone:100000:65536\n1500\n", string(log))
	after, _ := os.ReadFile("/etc/subuid")
	assert.Equal(t, before, after)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	assert.NotContains(t, string(mounts), t.Name(), "its file is bound in this namespace")
}
