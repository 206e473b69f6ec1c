package passthrough

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// opened makes a file and returns its node, its handle and the descriptor behind that.
func (g *guest) opened(name string) (node, fh uint64, fd int) {
	g.t.Helper()
	out, e := g.create(root, name, unix.O_RDWR, 0o600, 0)
	require.Zero(g.t, e)
	f := g.fs.files.get(out.Fh)
	defer f.put()
	return out.NodeId, out.Fh, f.fd
}

func open(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// Descriptors that nobody needs any more are closed when the guest waits for nothing, or after so many requests.
func TestClosesWhenNobodyWaits(t *testing.T) {
	g := mount(t, t.TempDir(), Config{})
	g.w.busy = true
	left := 0
	for range 40 {
		n, fh, fd := g.opened("f")
		_, pathFD := g.fs.nodes.get(n)
		g.fs.nodes.slots.get(n).drop(g.fs.fds)
		require.Zero(t, g.unlink(root, "f"))
		require.Zero(t, g.release(n, fh))
		if open(fd) {
			left++
		}
		g.forget(n, 1)
		g.foresee()
		assert.False(t, open(fd))
		assert.False(t, open(pathFD))
	}
	assert.Greater(t, left, 20, "most were closed after the answer")

	before := openDescriptors(t)
	for range 200 {
		n, fh, _ := g.opened("f")
		require.Zero(t, g.unlink(root, "f"))
		require.Zero(t, g.release(n, fh))
		g.forget(n, 1)
		assert.LessOrEqual(t, openDescriptors(t), before+mostClosing)
	}
	g.foresee()
	assert.Equal(t, before, openDescriptors(t))

	n, fh, fd := g.opened("f")
	require.Zero(t, g.release(n, fh))
	for range 20 {
		_, e := g.getattr(root)
		require.Zero(t, e)
	}
	assert.False(t, open(fd), "there was no idle time, and it was closed all the same")
}

// Whoever waits for a lock gets it when the one who had it is answered.
func TestClosesAtOnceWhatMayBeLocked(t *testing.T) {
	for _, cfg := range []Config{{Flock: true}, {PosixLock: true}} {
		g := mount(t, t.TempDir(), cfg)
		g.w.busy = true
		for range 20 {
			n, fh, fd := g.opened("f")
			require.Zero(t, g.release(n, fh))
			assert.False(t, open(fd))
		}
	}
}

// A thread keeps no more than it has room for, and nothing beyond its end.
func TestClosesWhatItKept(t *testing.T) {
	fs, err := New(openFD(t, t.TempDir()), openFD(t, "/proc/self/fd"), Config{})
	require.NoError(t, err)
	defer fs.Close()
	w := &thread{fs: fs}
	var fds []int
	for range mostClosing + 2 {
		fd, err := unix.Dup(fs.rootFD)
		require.NoError(t, err)
		fds = append(fds, fd)
		w.closeLater(fd)
	}
	w.closeLater(-1)
	kept := 0
	for _, fd := range fds {
		if open(fd) {
			kept++
		}
	}
	assert.Equal(t, mostClosing, kept)
	assert.True(t, w.Tidy())
	assert.Equal(t, mostClosing-1, w.unneeded)
	for w.Tidy() {
	}
	assert.False(t, w.Tidy())
	for _, fd := range fds {
		assert.False(t, open(fd))
	}
}
