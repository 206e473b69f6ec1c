package vhostuser_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/sys"
	"virtiofsd/internal/vhostuser"
)

// echo answers every FUSE request with an empty reply, but for those that have an opcode of these.
type echo struct {
	resets, aborts, blocked, interrupts atomic.Int32
	sleeping, most                      atomic.Int32  // in opSleep at a time
	interrupted                         atomic.Int32  // the queue that stopped last
	reused                              atomic.Int32  // requests that came to a handler which could not be put in order
	block                               chan struct{} // opBlock waits until it is closed
	fail                                error         // what NewHandler returns
	start                               time.Duration // how long it takes
	late                                atomic.Int32  // of the threads that called it, those whose sleeps may end late
	sleep                               time.Duration // how long opSleep takes
	untidy                              atomic.Int32  // handlers that have served since they were idle
	idlePanics                          atomic.Bool   // the next time that a handler is idle
	stick                               atomic.Bool   // the next to be idle waits until stuck is closed, which counts as blocked
	stuck                               chan struct{}
	ahead, aheads                       atomic.Int32 // how many more times there is something to do ahead; how many times it was asked
}

const (
	opBlock = 255 - iota
	opPanic
	opPanicTwice // in Abort too
	opSleep      // as a disk does
	opCompute    // for so much processor time as opSleep takes time
	opQuick      = 3
)

func (e *echo) NewHandler(int) (vhostuser.Handler, error) {
	if slack, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); slack > int(sys.DefaultSlack) {
		e.late.Add(1)
	}
	if e.fail != nil {
		return nil, e.fail
	}
	time.Sleep(e.start)
	return &echoHandler{e: e}, nil
}
func (e *echo) Interrupt(queue int) { e.interrupts.Add(1); e.interrupted.Store(int32(queue)) }
func (e *echo) Reset()              { e.resets.Add(1) }

type echoHandler struct {
	e         *echo
	in, reply [40]byte
	unfit     bool
	sum       int
	served    bool // since Idle
}

func (h *echoHandler) Serve(in, out []unix.Iovec) uint32 {
	if !h.served {
		h.served = true
		h.e.untidy.Add(1)
	}
	if h.unfit {
		h.e.reused.Add(1)
	}
	if guestmem.CopyIn(h.in[:], in) < len(h.in) {
		return 0
	}
	switch op := binary.LittleEndian.Uint32(h.in[4:]); op {
	case opBlock:
		h.e.blocked.Add(1)
		<-h.e.block
	case opPanic, opPanicTwice:
		h.unfit = op == opPanicTwice
		panic("on purpose")
	case opSleep:
		if n := h.e.sleeping.Add(1); n > h.e.most.Load() {
			h.e.most.Store(n)
		}
		ts := unix.NsecToTimespec(int64(h.e.sleep))
		unix.Nanosleep(&ts, nil)
		h.e.sleeping.Add(-1)
	case opCompute:
		h.e.blocked.Add(1)
		for until := threadTime() + h.e.sleep; threadTime() < until; {
			for range 1000 {
				h.sum++
			}
		}
	}
	binary.LittleEndian.PutUint32(h.reply[0:], 16)
	copy(h.reply[8:16], h.in[8:16])
	return uint32(guestmem.CopyOut(out, h.reply[:16]))
}

func (h *echoHandler) Idle() bool {
	if h.served {
		h.served = false
		h.e.untidy.Add(-1)
	}
	if h.e.idlePanics.CompareAndSwap(true, false) {
		panic("on purpose, in between")
	}
	if h.e.stick.CompareAndSwap(true, false) {
		h.e.blocked.Add(1)
		<-h.e.stuck
	}
	h.e.aheads.Add(1)
	return h.e.ahead.Add(-1) >= 0
}

func (h *echoHandler) Abort() {
	h.e.aborts.Add(1)
	if h.unfit {
		panic("on purpose, again")
	}
}

func (h *echoHandler) Close() {}

// journal is a log that tests read.
type journal struct {
	mu   sync.Mutex
	b    bytes.Buffer
	stop atomic.Pointer[chan struct{}] // a warning waits until it is closed
}

func (j *journal) Write(b []byte) (int, error) {
	if stop := j.stop.Load(); stop != nil && bytes.Contains(b, []byte("level=WARN")) {
		<-*stop
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// device is a device that is served over a real socket, seen from both sides.
type device struct {
	*frontend.Device
	fuse  *frontend.FUSE
	log   *journal
	stats vhostuser.Stats
	stop  context.CancelFunc
	ended chan error
	taken bool
}

// end waits for Serve to return.
func (d *device) end(t testing.TB) error {
	t.Helper()
	d.taken = true
	select {
	case err := <-d.ended:
		return err
	case <-time.After(15 * time.Second):
		t.Fatal("the device does not end")
		return nil
	}
}

func (d *device) count(queue int) vhostuser.Counters { return d.stats()[queue] }

// serve runs the transport over a real socket and returns the connected front-end.
func serve(t testing.TB, e *echo, cfg vhostuser.Config, f frontend.Config) *device {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := vhostuser.Listen(path, "")
	require.NoError(t, err)
	d := &device{log: &journal{}, ended: make(chan error, 1)}
	var ctx context.Context
	ctx, d.stop = context.WithCancel(context.Background())
	cfg.Logger = d.log.logger()
	stats := make(chan vhostuser.Stats, 1)
	go func() {
		c, err := l.Accept(ctx)
		if err == nil {
			err = vhostuser.Serve(ctx, c, e, cfg, func(s vhostuser.Stats) { stats <- s })
		}
		d.ended <- err
	}()
	f.Socket = path
	if f.Timeout == 0 {
		f.Timeout = 5 * time.Second
	}
	d.Device, err = frontend.Connect(ctx, f)
	require.NoError(t, err)
	d.stats = <-stats
	d.fuse = frontend.NewFUSE(d.Device)
	t.Cleanup(func() {
		d.Close()
		if !d.taken {
			assert.NoError(t, d.end(t))
			assert.Positive(t, e.resets.Load(), "the backend learns that the front-end went")
		}
		d.stop()
		l.Close()
		if t.Failed() && d.log.String() != "" {
			t.Log(d.log.String())
		}
	})
	return d
}

func TestQueuesServe(t *testing.T) {
	for _, table := range []bool{false, true} {
		d := serve(t, &echo{}, vhostuser.Config{Poll: 50 * time.Microsecond}, frontend.Config{RequestQueues: 4, ForceMemTable: table})
		for q := range 4 {
			for range 2000 {
				r, err := d.fuse.On(d.Request(q)).Do(frontend.Request{Op: 3, Node: 1})
				require.NoError(t, err)
				require.Equal(t, uint32(16), r.Used)
			}
		}
	}
}

func TestBlockedRequestHoldsUpNobody(t *testing.T) {
	const blockedMost = 40 // more than get help because requests wait; these need somebody to take over
	e := &echo{block: make(chan struct{})}
	d := serve(t, e, vhostuser.Config{}, frontend.Config{})
	var blocked []*frontend.Pending
	for range blockedMost {
		p, err := d.fuse.Start(frontend.Request{Op: opBlock, Node: 1})
		require.NoError(t, err)
		blocked = append(blocked, p)
	}
	for range 100 {
		_, err := d.fuse.Do(frontend.Request{Op: 3, Node: 1})
		require.NoError(t, err)
	}
	assert.EqualValues(t, blockedMost, e.blocked.Load())
	close(e.block)
	for _, p := range blocked {
		_, err := d.fuse.Finish(p)
		require.NoError(t, err)
	}
}

// A new worker may be so long in coming that the monitor has gone to sleep meanwhile, and then be blocked itself.
func TestWorkersThatAreSlowToStart(t *testing.T) {
	e := &echo{block: make(chan struct{}), start: 150 * time.Millisecond}
	d := serve(t, e, vhostuser.Config{}, frontend.Config{})
	defer close(e.block)
	for range 3 {
		_, err := d.fuse.Start(frontend.Request{Op: opBlock, Node: 1})
		require.NoError(t, err)
	}
	_, err := d.fuse.Do(frontend.Request{Op: opQuick, Node: 1})
	require.NoError(t, err)
}

func TestPanicEndsTheRequestOnly(t *testing.T) {
	e := &echo{}
	d := serve(t, e, vhostuser.Config{}, frontend.Config{})
	p, err := d.fuse.Start(frontend.Request{Op: opPanic, Node: 1})
	require.NoError(t, err)
	d.Request(0).Publish()
	d.Request(0).Kick()
	require.NoError(t, d.Request(0).WaitChain(p.Chain, time.Second))
	assert.EqualValues(t, 1, e.aborts.Load())
	_, err = d.fuse.Do(frontend.Request{Op: 3, Node: 1})
	require.NoError(t, err)
}

func TestStopAndRestart(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, frontend.Config{})
	for range 50 {
		_, err := d.fuse.Do(frontend.Request{Op: 3, Node: 1})
		require.NoError(t, err)
		_, err = d.Stop(d.Request(0))
		require.NoError(t, err)
		require.NoError(t, d.Restart(d.Request(0)))
	}
}

func BenchmarkDepth1(b *testing.B) {
	for _, poll := range []time.Duration{0, 50 * time.Microsecond} {
		b.Run("poll="+poll.String(), func(b *testing.B) {
			d := serve(b, &echo{}, vhostuser.Config{Poll: poll}, frontend.Config{})
			b.ResetTimer()
			for range b.N {
				if _, err := d.fuse.Do(frontend.Request{Op: 3, Node: 1}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// threadTime is the processor time of this thread.
func threadTime() time.Duration {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}
