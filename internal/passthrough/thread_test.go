package passthrough

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
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

// removed makes a file that nothing leads to any more but the guest's number, and returns that and the descriptor behind it.
func (g *guest) removed() (node uint64, fd int) {
	g.t.Helper()
	n, fh, _ := g.opened("f")
	_, fd = g.fs.nodes.get(n)
	g.fs.nodes.slots.get(n).drop(g.fs.fds)
	require.Zero(g.t, g.unlink(root, "f"))
	require.Zero(g.t, g.release(n, fh))
	return n, fd
}

// Descriptors that nobody needs any more are closed when the guest waits for nothing, or after so many requests.
func TestClosesWhenNobodyWaits(t *testing.T) {
	g := mount(t, t.TempDir(), Config{})
	g.w.busy = true
	left := 0
	for range 40 {
		n, fd := g.removed()
		g.forget(n, 1)
		if open(fd) {
			left++
		}
		g.foresee()
		assert.False(t, open(fd))
	}
	assert.Greater(t, left, 20, "most were closed after the answer")

	before := openDescriptors(t)
	for range 200 {
		n, _ := g.removed()
		g.forget(n, 1)
		assert.LessOrEqual(t, openDescriptors(t), before+mostClosing)
	}
	g.foresee()
	assert.Equal(t, before, openDescriptors(t))

	n, fd := g.removed()
	g.forget(n, 1)
	for range 20 {
		_, e := g.getattr(root)
		require.Zero(t, e)
	}
	assert.False(t, open(fd), "there was no idle time, and it was closed all the same")
}

// Who waits for a lock, perhaps for days, keeps nothing of it open meanwhile.
func TestWaitingForALockKeepsNothingOpen(t *testing.T) {
	for name, cfg := range map[string]Config{"flock": {Flock: true}, "posix": {PosixLock: true}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			g := mount(t, dir, cfg)
			g.w.busy = true
			lock := fuseabi.LkIn{Lk: fuseabi.FileLock{Typ: unix.F_WRLCK, End: 1<<63 - 1}}
			if cfg.Flock {
				lock.LkFlags = fuseabi.LkFlock
			}
			n, fh, _ := g.opened("lock")
			lock.Fh = fh
			host, err := unix.Open(dir+"/lock", unix.O_RDWR, 0)
			require.NoError(t, err)
			defer unix.Close(host)
			if cfg.Flock {
				require.NoError(t, unix.Flock(host, unix.LOCK_EX))
			} else {
				require.NoError(t, unix.FcntlFlock(uintptr(host), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
			}
			waited := false
			for !waited { // one in a row of requests is followed by tidying
				gone, fd := g.removed()
				g.forget(gone, 1)
				waited = open(fd)
				answered := make(chan struct{})
				go func() {
					defer close(answered)
					_, e := call(g, fuseabi.OpSetlkw, n, &lock, nil, 0)
					assert.Equal(t, unix.EINTR, e)
				}()
				assert.Eventually(t, func() bool { return !open(fd) }, 5*time.Second, time.Millisecond)
				require.Eventually(t, func() bool {
					g.fs.Interrupt(1)
					select {
					case <-answered:
						return true
					default:
						return false
					}
				}, 5*time.Second, time.Millisecond)
			}
		})
	}
}

// When close(2) has returned in the guest, the host's file is closed: it can be run, and whoever waits for its lock has it.
func TestReleaseClosesAtOnce(t *testing.T) {
	for _, cfg := range []Config{{}, {Flock: true}, {PosixLock: true}} {
		g := mount(t, t.TempDir(), cfg)
		g.w.busy = true
		for range 20 {
			n, fh, fd := g.opened("f")
			require.Zero(t, g.release(n, fh))
			assert.False(t, open(fd))
		}
	}
}

// A guest at the limit that closes a file opens another in its place, and what nobody needs any more makes room.
func TestWhatIsClosedLaterMakesRoom(t *testing.T) {
	dir, inside := limited(t, 0, 256, func(string) {})
	if !inside {
		return
	}
	fs, err := New(openFD(t, dir), openFD(t, "/proc/self/fd"), Config{})
	require.NoError(t, err)
	last := -1
	for {
		fd, err := unix.Dup(fs.rootFD)
		if err != nil {
			require.ErrorIs(t, err, unix.EMFILE)
			break
		}
		last = fd
	}
	w := &thread{fs: fs}
	_, e := w.openReal(fs.rootFD, unix.O_RDONLY)
	require.Equal(t, unix.EMFILE, e)
	w.closeLater(last)
	fd, e := w.openReal(fs.rootFD, unix.O_RDONLY)
	assert.Zero(t, e)
	assert.Equal(t, last, fd)
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
