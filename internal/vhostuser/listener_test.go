package vhostuser

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/testenv"
)

func group(t *testing.T, path string) uint32 {
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return st.Gid
}

// TestGroupIsGivenToTheSocketAlone: whoever may write to the socket's folder may put something else
// in its place before the group is given to it.
func TestGroupIsGivenToTheSocketAlone(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	path, victim, foreign := filepath.Join(dir, "s"), filepath.Join(dir, "victim"), filepath.Join(dir, "foreign")
	require.NoError(t, os.WriteFile(victim, nil, 0o600))
	for name, target := range map[string]string{"a file": victim, "a socket of another user": foreign} {
		if target == foreign {
			l, err := net.Listen("unix", foreign)
			require.NoError(t, err)
			defer l.Close()
			require.NoError(t, os.Chown(foreign, 1500, 0))
		}
		for how, put := range map[string]func(string, string) error{"by a link": os.Symlink, "itself": os.Link} {
			require.NoError(t, put(target, path))
			_, err := give(path, 1234)
			assert.ErrorContains(t, err, "something else has taken the socket's place", "%s %s", name, how)
			assert.Zero(t, group(t, target), "%s %s", name, how)
			require.NoError(t, os.Remove(path))
		}
	}

	l, err := Listen(path, "1234")
	require.NoError(t, err)
	defer l.Close()
	assert.EqualValues(t, 1234, group(t, path))
	st, err := os.Lstat(path)
	require.NoError(t, err)
	assert.Equal(t, os.ModeSocket|0o770, st.Mode())
}

// TestOnlyTheOwnSocketIsRemoved: another daemon's may have taken its place, or have been there
// first.
func TestOnlyTheOwnSocketIsRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path, "")
	require.NoError(t, err)
	defer l.Close()
	l.Remove()
	assert.NoFileExists(t, path)
	l.Remove()

	l, err = Listen(path, "")
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Rename(path, path+".moved")) // its number is not another's
	other, err := Prepare(path, "")
	require.NoError(t, err)
	defer other.Close()
	late, err := Prepare(path, "")
	require.NoError(t, err)
	defer late.Close()
	require.NoError(t, other.Bind())
	l.Remove()
	assert.FileExists(t, path, "another's")
	assert.ErrorIs(t, late.Bind(), unix.EADDRINUSE)
	late.Remove()
	assert.FileExists(t, path, "the one that was there first")
	other.Remove()
	assert.NoFileExists(t, path)
}

// TestSwappedSocketLeadsNowhere has somebody swap the socket for a link again and again while it is
// made.
func TestSwappedSocketLeadsNowhere(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "s"), filepath.Join(dir, "victim")
	require.NoError(t, os.WriteFile(victim, nil, 0o600))
	stop, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		link := filepath.Join(dir, "link")
		for {
			select {
			case <-stop:
				return
			default:
			}
			if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
				os.Symlink(victim, link)
				os.Rename(link, path)
			}
		}
	}()
	for range 1000 {
		if l, err := Listen(path, "1234"); err == nil {
			l.Close()
		}
		os.Remove(path)
		if !assert.Zero(t, group(t, victim)) {
			break
		}
	}
	close(stop)
	<-gone
}
