package passthrough

import (
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
)

var lockConfig = Config{Flock: true, PosixLock: true}

const toEnd = math.MaxInt64

// lock is SETLK, or SETLKW, of a guest's process owner.
func (g *guest) lock(op fuseabi.Opcode, node, fh, owner uint64, typ uint32, start, end uint64) unix.Errno {
	g.t.Helper()
	_, e := call(g, op, node, &fuseabi.LkIn{Fh: fh, Owner: owner, Lk: fuseabi.FileLock{Start: start, End: end, Typ: typ, Pid: uint32(owner)}}, nil, 0)
	return e
}

func (g *guest) flock(op fuseabi.Opcode, node, fh uint64, typ uint32) unix.Errno {
	g.t.Helper()
	_, e := call(g, op, node, &fuseabi.LkIn{Fh: fh, Owner: fh, LkFlags: fuseabi.LkFlock, Lk: fuseabi.FileLock{End: toEnd, Typ: typ}}, nil, 0)
	return e
}

func (g *guest) getlk(node, fh, owner uint64, typ uint32, start, end uint64) (*fuseabi.LkOut, unix.Errno) {
	g.t.Helper()
	return want[fuseabi.LkOut](g, fuseabi.OpGetlk, node, &fuseabi.LkIn{Fh: fh, Owner: owner, Lk: fuseabi.FileLock{Start: start, End: end, Typ: typ}}, nil)
}

func (g *guest) flush(node, fh, owner uint64) unix.Errno {
	g.t.Helper()
	_, e := call(g, fuseabi.OpFlush, node, &fuseabi.FlushIn{Fh: fh, LockOwner: owner}, nil, 0)
	return e
}

func (g *guest) interrupt(unique uint64) {
	g.t.Helper()
	require.Empty(g.t, g.raw(request(g, fuseabi.OpInterrupt, 0, &fuseabi.InterruptIn{Unique: unique}, nil), 0))
}

// later has a call made while the test goes on.
func later(f func() unix.Errno) <-chan unix.Errno {
	c := make(chan unix.Errno, 1)
	go func() { c <- f() }()
	return c
}

// stays asserts that nothing comes of a call yet.
func stays(t *testing.T, c <-chan unix.Errno) {
	t.Helper()
	select {
	case e := <-c:
		t.Fatalf("it did not wait: errno %d", e)
	case <-time.After(50 * time.Millisecond):
	}
}

func comes(t *testing.T, c <-chan unix.Errno) unix.Errno {
	t.Helper()
	select {
	case e := <-c:
		return e
	case <-time.After(5 * time.Second):
		t.Fatal("it still waits")
		panic("unreachable")
	}
}

// twoGuests share a directory, each by a daemon of its own, and have its file f open.
func twoGuests(t *testing.T) (a, b *guest, node, fh [2]uint64) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/f", make([]byte, 100), 0o666))
	for i, g := range []**guest{&a, &b} {
		*g = mount(t, dir, lockConfig)
		node[i] = (*g).mustLookup(root, "f")
		var e unix.Errno
		fh[i], e = (*g).open(node[i], unix.O_RDWR)
		require.Zero(t, e)
	}
	return a, b, node, fh
}

func TestRecordLocksHoldBetweenGuests(t *testing.T) {
	a, b, node, fh := twoGuests(t)
	const set = fuseabi.OpSetlk
	require.Zero(t, a.lock(set, node[0], fh[0], 11, unix.F_WRLCK, 10, 19))
	assert.Equal(t, unix.EAGAIN, b.lock(set, node[1], fh[1], 11, unix.F_WRLCK, 19, 30), "the same number in another guest is another owner")
	assert.Equal(t, unix.EAGAIN, b.lock(set, node[1], fh[1], 22, unix.F_RDLCK, 0, 10))
	assert.Zero(t, b.lock(set, node[1], fh[1], 22, unix.F_WRLCK, 20, toEnd))
	assert.Equal(t, unix.EAGAIN, a.lock(set, node[0], fh[0], 12, unix.F_RDLCK, 15, 15), "another process of the same guest, by the same descriptor")
	assert.Zero(t, a.lock(set, node[0], fh[0], 11, unix.F_RDLCK, 10, 14), "the owner may change its lock")
	assert.Zero(t, a.lock(set, node[0], fh[0], 12, unix.F_RDLCK, 14, 14))
	assert.Equal(t, unix.EAGAIN, a.lock(set, node[0], fh[0], 12, unix.F_WRLCK, 14, 14))
	assert.Zero(t, a.lock(set, node[0], fh[0], 11, unix.F_UNLCK, 0, 14), "a part is given up")
	assert.Zero(t, b.lock(set, node[1], fh[1], 22, unix.F_WRLCK, 10, 13))
	assert.Equal(t, unix.EAGAIN, b.lock(set, node[1], fh[1], 22, unix.F_WRLCK, 15, 15), "the rest is kept")

	for _, bad := range [][3]uint64{{5, 4, unix.F_RDLCK}, {1 << 63, 1<<64 - 1, unix.F_RDLCK}, {0, 1 << 63, unix.F_WRLCK}, {0, 5, 3}, {0, 5, 1<<32 - 1}} {
		assert.Equal(t, unix.EINVAL, a.lock(set, node[0], fh[0], 11, uint32(bad[2]), bad[0], bad[1]))
	}
	assert.Equal(t, unix.EBADF, a.lock(set, node[0], 999, 11, unix.F_RDLCK, 0, 5))
}

func TestGetlkTellsWhoHoldsALock(t *testing.T) {
	a, b, node, fh := twoGuests(t)
	require.Zero(t, a.lock(fuseabi.OpSetlk, node[0], fh[0], 11, unix.F_WRLCK, 10, 19))
	got, e := a.getlk(node[0], fh[0], 12, unix.F_RDLCK, 0, toEnd)
	require.Zero(t, e)
	assert.Equal(t, fuseabi.FileLock{Start: 10, End: 19, Typ: unix.F_WRLCK, Pid: 11}, got.Lk)
	got, e = a.getlk(node[0], fh[0], 11, unix.F_WRLCK, 0, toEnd)
	require.Zero(t, e)
	assert.EqualValues(t, unix.F_UNLCK, got.Lk.Typ, "one's own lock is no obstacle")
	got, e = b.getlk(node[1], fh[1], 11, unix.F_WRLCK, 15, toEnd)
	require.Zero(t, e)
	assert.Equal(t, fuseabi.FileLock{Start: 10, End: 19, Typ: unix.F_WRLCK, Pid: 0}, got.Lk, "a process of the other guest has no number here")
	require.Zero(t, b.lock(fuseabi.OpSetlk, node[1], fh[1], 22, unix.F_RDLCK, 30, toEnd))
	got, e = a.getlk(node[0], fh[0], 11, unix.F_WRLCK, 20, toEnd)
	require.Zero(t, e)
	assert.Equal(t, fuseabi.FileLock{Start: 30, End: toEnd, Typ: unix.F_RDLCK}, got.Lk)
}

func TestRecordLocksGoWithTheirOwner(t *testing.T) {
	a, b, node, fh := twoGuests(t)
	free := func() bool { return b.lock(fuseabi.OpSetlk, node[1], fh[1], 99, unix.F_WRLCK, 0, toEnd) == 0 }
	take := func(fh, owner uint64) {
		b.lock(fuseabi.OpSetlk, node[1], fh2(b), 99, unix.F_UNLCK, 0, toEnd)
		require.Zero(t, b.flush(node[1], fh2(b), 99))
		require.Zero(t, a.lock(fuseabi.OpSetlk, node[0], fh, owner, unix.F_WRLCK, 0, 5))
		require.False(t, free())
	}
	second, e := a.open(node[0], unix.O_RDONLY)
	require.Zero(t, e)

	take(fh[0], 11)
	require.Zero(t, a.flush(node[0], fh[0], 12))
	assert.False(t, free(), "another process closed the file")
	require.Zero(t, a.flush(node[0], second, 11))
	assert.True(t, free(), "closing any descriptor of the file gives all locks up: POSIX")

	take(second, 0xabcdef) // the guest's F_OFD_SETLK: the owner is the open file, and no FLUSH names it
	require.Zero(t, a.flush(node[0], second, 11))
	assert.False(t, free())
	require.Zero(t, a.release(node[0], second))
	assert.True(t, free())

	take(fh[0], 11)
	a.ses.Reset()
	assert.True(t, free(), "the guest went away")
	assert.Zero(t, a.fs.records.count.Load())
}

// fh2 is the descriptor that twoGuests opened: the first of its session.
func fh2(*guest) uint64 { return 1 }

func TestFlockHoldsBetweenGuestsAndHost(t *testing.T) {
	a, b, node, fh := twoGuests(t)
	const set = fuseabi.OpSetlk
	other, e := a.open(node[0], unix.O_RDONLY)
	require.Zero(t, e)
	require.Zero(t, a.flock(set, node[0], fh[0], unix.F_RDLCK))
	assert.Zero(t, b.flock(set, node[1], fh[1], unix.F_RDLCK))
	assert.Equal(t, unix.EAGAIN, a.flock(set, node[0], other, unix.F_WRLCK))
	require.Zero(t, b.flock(set, node[1], fh[1], unix.F_UNLCK))
	require.Zero(t, a.flock(set, node[0], fh[0], unix.F_WRLCK))
	assert.Equal(t, unix.EAGAIN, b.flock(set, node[1], fh[1], unix.F_RDLCK))
	assert.Equal(t, unix.EAGAIN, a.flock(set, node[0], other, unix.F_RDLCK), "another open file of the same guest")
	assert.Zero(t, b.lock(set, node[1], fh[1], 1, unix.F_WRLCK, 0, toEnd), "the two kinds do not see each other")

	host := exec.Command("flock", "--exclusive", "--nonblock", a.dir+"/f", "true")
	assert.Error(t, host.Run(), "a host's process finds it locked")
	require.Zero(t, a.release(node[0], fh[0]))
	assert.NoError(t, exec.Command("flock", "--exclusive", "--nonblock", a.dir+"/f", "true").Run(), "closing gives it up")

	holder := exec.Command("flock", "--exclusive", a.dir+"/f", "sh", "-c", "echo locked; read end")
	in, err := holder.StdinPipe()
	require.NoError(t, err)
	out, err := holder.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, holder.Start())
	buf := make([]byte, 7)
	_, err = out.Read(buf)
	require.NoError(t, err)
	assert.Equal(t, unix.EAGAIN, b.flock(set, node[1], fh[1], unix.F_RDLCK))
	waits := later(func() unix.Errno { return b.flock(fuseabi.OpSetlkw, node[1], fh[1], unix.F_RDLCK) })
	stays(t, waits)
	in.Close()
	assert.Zero(t, comes(t, waits), "the host's process gave it up")
	holder.Wait()
}

func TestRecordLocksHoldAgainstTheHost(t *testing.T) {
	a, _, node, fh := twoGuests(t)
	host, err := unix.Open(a.dir+"/f", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(host)
	// F_SETLK's owner is this process: the daemon's own locks must not be this process's, or closing would lose them.
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: 50, Len: 10}
	require.NoError(t, unix.FcntlFlock(uintptr(host), unix.F_SETLK, &lk))
	assert.Equal(t, unix.EAGAIN, a.lock(fuseabi.OpSetlk, node[0], fh[0], 11, unix.F_RDLCK, 0, 50))
	require.Zero(t, a.lock(fuseabi.OpSetlk, node[0], fh[0], 11, unix.F_RDLCK, 0, 49))
	lk = unix.Flock_t{Type: unix.F_WRLCK, Start: 49, Len: 1}
	assert.Equal(t, unix.EAGAIN, unix.FcntlFlock(uintptr(host), unix.F_SETLK, &lk))
}

func TestWaitingForALock(t *testing.T) {
	a, b, node, fh := twoGuests(t)
	require.Zero(t, a.lock(fuseabi.OpSetlk, node[0], fh[0], 11, unix.F_WRLCK, 0, 9))
	wait := func(g *guest, i int, owner uint64) <-chan unix.Errno {
		w := g.another()
		return later(func() unix.Errno { return w.lock(fuseabi.OpSetlkw, node[i], fh[i], owner, unix.F_WRLCK, 5, 5) })
	}
	same, foreign := wait(a, 0, 12), wait(b, 1, 13)
	stays(t, same)
	stays(t, foreign)
	require.Zero(t, a.lock(fuseabi.OpSetlk, node[0], fh[0], 11, unix.F_UNLCK, 5, 9))
	var first <-chan unix.Errno
	var owner uint64
	select {
	case e := <-same:
		require.Zero(t, e)
		first, owner = foreign, 12
	case e := <-foreign:
		require.Zero(t, e)
		first, owner = same, 13
	case <-time.After(5 * time.Second):
		t.Fatal("nobody got it")
	}
	stays(t, first)
	if owner == 12 {
		require.Zero(t, a.flush(node[0], fh[0], owner))
	} else {
		require.Zero(t, b.flush(node[1], fh[1], owner))
	}
	assert.Zero(t, comes(t, first))
}

func TestAWaitEndsByInterrupt(t *testing.T) {
	a, _, node, fh := twoGuests(t)
	require.Zero(t, a.lock(fuseabi.OpSetlk, node[0], fh[0], 11, unix.F_WRLCK, 0, 9))
	require.Zero(t, a.flock(fuseabi.OpSetlk, node[0], fh[0], unix.F_WRLCK))
	other, e := a.open(node[0], unix.O_RDWR)
	require.Zero(t, e)
	for _, wait := range []func(*guest) unix.Errno{
		func(w *guest) unix.Errno {
			return w.lock(fuseabi.OpSetlkw, node[0], fh[0], 12, unix.F_RDLCK, 0, toEnd)
		},
		func(w *guest) unix.Errno { return w.flock(fuseabi.OpSetlkw, node[0], other, unix.F_RDLCK) },
	} {
		w := a.another()
		waits := later(func() unix.Errno { return wait(w) })
		stays(t, waits)
		unique := a.unique.Load()
		a.interrupt(unique - 1) // somebody else
		stays(t, waits)
		a.interrupt(unique)
		assert.Equal(t, unix.EINTR, comes(t, waits))

		// An interrupt may overtake its request: they come by different queues.
		a.interrupt(a.unique.Load() + 2)
		assert.Equal(t, unix.EINTR, comes(t, later(func() unix.Errno { return wait(w) })))

		waits = later(func() unix.Errno { return wait(w) })
		stays(t, waits)
		a.ses.Interrupt(2) // another queue has to stop
		stays(t, waits)
		a.ses.Interrupt(1) // the queue has to
		assert.Equal(t, unix.EINTR, comes(t, waits))
	}
	assert.Empty(t, a.fs.waits.m)
}

// A guest that lets more requests wait than there may be gets an error for the rest; its other requests go on.
func TestWaitsAreBounded(t *testing.T) {
	a, _, node, fh := twoGuests(t)
	require.Zero(t, a.lock(fuseabi.OpSetlk, node[0], fh[0], 11, unix.F_WRLCK, 0, 9))
	var all []<-chan unix.Errno
	for i := range maxWaits {
		w := a.another()
		all = append(all, later(func() unix.Errno {
			return w.lock(fuseabi.OpSetlkw, node[0], fh[0], 100+uint64(i), unix.F_RDLCK, 0, 9)
		}))
	}
	require.Eventually(t, func() bool {
		a.fs.waits.mu.Lock()
		defer a.fs.waits.mu.Unlock()
		return len(a.fs.waits.m) == maxWaits
	}, 5*time.Second, time.Millisecond)
	assert.Equal(t, unix.ENOLCK, comes(t, later(func() unix.Errno {
		return a.lock(fuseabi.OpSetlkw, node[0], fh[0], 99, unix.F_RDLCK, 0, 9)
	})))
	_, e := a.getattr(node[0])
	assert.Zero(t, e)
	a.ses.Reset()
	for _, w := range all {
		assert.Contains(t, []unix.Errno{0, unix.EINTR}, comes(t, w), "the holder is gone as well")
	}
	assert.Zero(t, a.fs.records.count.Load())
}

// Each owner costs a descriptor: a guest with many owners must not take those which other requests need.
func TestLockOwnersAreBounded(t *testing.T) {
	cfg := lockConfig
	cfg.FDBudget = 100
	g := mount(t, t.TempDir(), cfg)
	f, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	before := openDescriptors(t)
	for i := range uint64(200) {
		e := g.lock(fuseabi.OpSetlk, f.NodeId, f.Fh, i+1, unix.F_RDLCK, 0, 9)
		if i < 25 {
			require.Zero(t, e)
		} else {
			require.Equal(t, unix.ENOLCK, e)
		}
	}
	assert.Equal(t, before+25, openDescriptors(t))
	require.Zero(t, g.release(f.NodeId, f.Fh))
	assert.Equal(t, before-1, openDescriptors(t))
}

func TestLocksThatWereNotOfferedAreRefused(t *testing.T) {
	for _, cfg := range []Config{{}, {Flock: true}, {PosixLock: true}} {
		g := mount(t, t.TempDir(), cfg)
		flags := g.ses.Flags()
		assert.Equal(t, cfg.Flock, flags&fuseabi.FlockLocks != 0)
		assert.Equal(t, cfg.PosixLock, flags&fuseabi.PosixLocks != 0)
		f, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
		require.Zero(t, e)
		assert.Equal(t, cfg.Flock, g.flock(fuseabi.OpSetlk, f.NodeId, f.Fh, unix.F_WRLCK) != unix.ENOSYS)
		assert.Equal(t, cfg.PosixLock, g.lock(fuseabi.OpSetlk, f.NodeId, f.Fh, 1, unix.F_WRLCK, 0, 9) != unix.ENOSYS)
		if cfg.PosixLock {
			assert.Zero(t, f.OpenFlags&fuseabi.FopenNoflush, "FLUSH gives locks up")
		}
	}
}

// A share that may only be read can be locked for reading.
func TestLocksOnAReadonlyShare(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/f", []byte(strings.Repeat("x", 100)), 0o666))
	cfg := lockConfig
	cfg.Readonly = true
	g := mount(t, dir, cfg)
	n := g.mustLookup(root, "f")
	fh, e := g.open(n, unix.O_RDONLY)
	require.Zero(t, e)
	assert.Zero(t, g.lock(fuseabi.OpSetlk, n, fh, 1, unix.F_RDLCK, 0, toEnd))
	assert.Equal(t, unix.EBADF, g.lock(fuseabi.OpSetlk, n, fh, 1, unix.F_WRLCK, 0, toEnd))
	assert.Zero(t, g.flock(fuseabi.OpSetlk, n, fh, unix.F_WRLCK))
}
