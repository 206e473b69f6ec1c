package daemon

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/testenv"
)

func TestMostFilesLeaveTheHostSome(t *testing.T) {
	for _, c := range []struct{ nrOpen, fileMax, want uint64 }{
		{1 << 30, math.MaxInt64, 1000000},
		{1 << 20, math.MaxInt64, 1000000},
		{65536, math.MaxInt64, 65536}, // fs.nr_open
		{1 << 20, 100000, 100000 - 16384},
		{1 << 20, 17000, 1024}, // a small host: enough to start with
		{1 << 20, 100, 1024},
		{0, 0, 1000000}, // not known
	} {
		assert.Equal(t, c.want, mostFiles(c.nrOpen, c.fileMax), "fs.nr_open %d, fs.file-max %d", c.nrOpen, c.fileMax)
	}
}

// TestPidFileIsOurOwn: in a folder that others may write to, what they have put in the pid file's
// place is neither written to nor waited for, and at the end only our own is removed.
func TestPidFileIsOurOwn(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	victim := filepath.Join(dir, "victim")
	require.NoError(t, os.WriteFile(victim, []byte("precious"), 0o600))
	path := socket + ".pid"
	for name, plant := range map[string]func() error{
		"a link":                       func() error { return os.Symlink(victim, path) },
		"a link that leads to nothing": func() error { return os.Symlink(filepath.Join(dir, "new"), path) },
		"another name of a file":       func() error { return os.Link(victim, path) },
		"another user's file":          func() error { return errors.Join(os.WriteFile(path, nil, 0o666), os.Chown(path, 1500, 1500)) },
		"a FIFO":                       func() error { return unix.Mkfifo(path, 0o600) },
		"a folder":                     func() error { return os.Mkdir(path, 0o700) },
	} {
		require.NoError(t, plant(), name)
		_, err := newPidFile(socket)
		assert.ErrorContains(t, err, "has not made; remove it", name)
		require.NoError(t, os.Remove(path), name)
	}
	b, err := os.ReadFile(victim)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(b))
	assert.NoFileExists(t, filepath.Join(dir, "new"))

	require.NoError(t, os.WriteFile(path, []byte("12345678\n"), 0o600)) // of one that was killed
	p, err := newPidFile(socket)
	require.NoError(t, err)
	b, err = os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, fmt.Sprintln(os.Getpid()), string(b))
	_, err = newPidFile(socket)
	assert.ErrorContains(t, err, "another daemon serves this socket")
	p.remove()
	assert.NoFileExists(t, path)

	p, err = newPidFile(socket)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, []byte("another's"), 0o600))
	p.remove()
	assert.FileExists(t, path, "another's stays")
}
