package fuse_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
)

// lazy is a scribe that has something put off, or something to do ahead.
type lazy struct {
	*scribe
	tidy, ahead int
	callers     []fuse.Caller
	aborted     bool
}

func (l *lazy) NewThread(int) (fuse.Thread, error) { return l, nil }
func (l *lazy) Abort()                             { l.aborted = true }
func (l *lazy) Tidy() bool {
	l.got = append(l.got, "tidy")
	l.tidy--
	return l.tidy > 0
}
func (l *lazy) Ahead() bool {
	l.got = append(l.got, "ahead")
	l.ahead--
	return l.ahead > 0
}
func (l *lazy) Mkdir(c *fuse.Caller, _ *fuseabi.MkdirIn, _ fuse.Name, _ *fuseabi.EntryOut) unix.Errno {
	l.callers = append(l.callers, *c)
	return unix.ENOENT
}

type lazyFS struct{ *lazy }

func (l lazyFS) Interrupt(queue int) { l.got.add("interrupt", uint64(queue)) }

func newLazy(t *testing.T, flags fuseabi.InitFlags) (*lazy, *desk) {
	l := &lazy{scribe: &scribe{ours: &ours{}, accept: flags}}
	d := &desk{scribe: l.scribe, t: t, ses: fuse.NewSession(lazyFS{l}, fuse.SessionConfig{})}
	w, err := d.ses.NewHandler(3)
	require.NoError(t, err)
	d.w = w
	d.ask(initRequest(fuseabi.Major, fuseabi.Minor, flags|fuseabi.InitExt), 80)
	l.got = nil
	return l, d
}

// What was put off comes first; then, in a list of entries, the next of them, and only there.
// FORGET ends no list.
func TestIdleTime(t *testing.T) {
	l, d := newLazy(t, 0)
	list := by(fuseabi.OpReaddirplus, &fuseabi.ReadIn{Size: 300}, nil)
	idle := func() (bool, []string) { l.got = nil; more := d.w.Idle(); return more, []string(l.got) }

	more, did := idle()
	assert.False(t, more)
	assert.Equal(t, []string{"tidy"}, did)
	d.ask(list, 4096)
	l.tidy, l.ahead = 2, 2
	more, did = idle()
	assert.True(t, more)
	assert.Equal(t, []string{"tidy"}, did)
	more, did = idle()
	assert.True(t, more)
	assert.Equal(t, []string{"tidy", "ahead"}, did)
	more, did = idle()
	assert.False(t, more)
	assert.Equal(t, []string{"tidy", "ahead"}, did)
	d.ask(by(fuseabi.OpForget, &fuseabi.ForgetIn{}, nil), 0)
	d.ask(by(fuseabi.OpBatchForget, &fuseabi.BatchForgetIn{}, nil), 0)
	_, did = idle()
	assert.Equal(t, []string{"tidy", "ahead"}, did)
	d.ask(by(fuseabi.OpStatfs, &none{}, nil), 4096)
	_, did = idle()
	assert.Equal(t, []string{"tidy"}, did)
}

// The first of every 17 requests is timed, and after it nothing is left put off.
func TestOneOf17IsTimed(t *testing.T) {
	l, d := newLazy(t, 0) // INIT was the first
	for i := 1; i < 40; i++ {
		l.got, l.tidy = nil, 3
		d.ask(by(fuseabi.OpStatfs, &none{}, nil), 4096)
		want := []string{"STATFS 5 []"}
		if i%17 == 0 {
			want = append(want, "tidy", "tidy", "tidy")
		}
		require.Equal(t, want, []string(l.got), "request %d", i)
	}
	s := d.ses.Stats()
	assert.EqualValues(t, 40, s.Requests)
	assert.Positive(t, s.Latency.Max)
	assert.Less(t, s.Latency.Max, 10e6, "µs")
	assert.Contains(t, s.Queues, 3)
	d.w.Close()
	assert.Equal(t, s, d.ses.Stats(), "a worker's end loses nothing")
}

// After a panic half a change may have been made, and the thread is made fit for the next request.
func TestAbort(t *testing.T) {
	l, d := newLazy(t, 0)
	d.w.Abort()
	assert.True(t, l.aborted)
	assert.Equal(t, []string{"change"}, []string(l.got))
	l.got = nil
	d.ses.Interrupt(3)
	assert.Equal(t, []string{"interrupt 3 []"}, []string(l.got))
}

// Extensions are the caller's groups and labels, each where it was negotiated, and of one request
// alone.
func TestExtensionsAreOfOneRequest(t *testing.T) {
	groupsOnly, labelsOnly := fuseabi.CreateSuppGroup, fuseabi.SecurityCtx
	mkdir := func(ext []byte) []byte { return encode(fuseabi.OpMkdir, 5, 9, &fuseabi.MkdirIn{}, z("name567"), ext) }
	both := append(groups(4, 5), label("security.selinux", "ctx")...)
	for _, c := range []struct {
		flags  fuseabi.InitFlags
		groups []uint32
		labels int
	}{
		{groupsOnly | labelsOnly, []uint32{4, 5}, 1},
		{groupsOnly, []uint32{4, 5}, 0},
		{labelsOnly, nil, 1},
		{0, nil, 0},
	} {
		l, d := newLazy(t, c.flags)
		for range 2 {
			status, _ := d.ask(mkdir(both), 4096)
			require.Equal(t, -int32(unix.ENOENT), status)
			status, _ = d.ask(mkdir(nil), 4096)
			require.Equal(t, -int32(unix.ENOENT), status)
		}
		require.Len(t, l.callers, 4)
		for i, who := range l.callers {
			if i%2 == 1 {
				assert.Empty(t, who.Groups, "%v", c.flags)
				assert.Empty(t, who.Secctx, "%v", c.flags)
				continue
			}
			assert.Equal(t, c.groups, who.Groups, "%v", c.flags)
			assert.Len(t, who.Secctx, c.labels, "%v", c.flags)
		}
		assert.Zero(t, d.ses.Malformed())
	}

	// Longer than the request, or malformed: refused, and counted.
	l, d := newLazy(t, groupsOnly)
	raw := mkdir(both)
	fuseabi.View[fuseabi.InHeader](raw).TotalExtlen = uint16(len(raw)-fuseabi.Size[fuseabi.MkdirIn]())/8 + 1
	status, _ := d.ask(raw, 4096)
	assert.Equal(t, -int32(unix.EINVAL), status)
	assert.EqualValues(t, 1, d.ses.Malformed())
	status, _ = d.ask(mkdir(groups(4)[:8]), 4096) // a group is announced, and not there
	assert.Equal(t, -int32(unix.EINVAL), status)
	assert.EqualValues(t, 2, d.ses.Malformed())
	assert.Empty(t, l.callers)
}

// A request's own errors are counted, each once: half a header, an answer before INIT, arguments
// and requests that are too long.
func TestProtocolErrorsAreCounted(t *testing.T) {
	_, d := newLazy(t, 0)
	raw := by(fuseabi.OpStatfs, &none{}, nil)
	count := func(b []byte, want int32) {
		t.Helper()
		before := d.ses.Malformed()
		status, _ := d.ask(b, 4096)
		assert.Equal(t, want, status)
		assert.Equal(t, before+1, d.ses.Malformed())
	}
	count(raw[:39], -int32(unix.EINVAL))
	count(raw[:16], -int32(unix.EINVAL))
	fuseabi.View[fuseabi.InHeader](raw).Length = 41
	count(raw, -int32(unix.EINVAL))
	fuseabi.View[fuseabi.InHeader](raw).Length = 39
	count(raw, -int32(unix.EINVAL))
	count(by(fuseabi.OpSymlink, &none{}, make([]byte, 256<<10-39)), -int32(unix.E2BIG))
	count(by(fuseabi.OpWrite, &fuseabi.WriteIn{}, make([]byte, 1<<20+4<<10-79)), -int32(unix.E2BIG))
	count(by(fuseabi.OpSymlink, &none{}, []byte("endless")), -int32(unix.EINVAL))
	count(by(fuseabi.OpSymlink, &none{}, make([]byte, 256<<10-40)), -int32(unix.EINVAL)) // it fits, and its name is empty
	d.ses.Reset()
	count(by(fuseabi.OpStatfs, &none{}, nil), -int32(unix.EIO))
}
