package vhostuser_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/sys"
	"virtiofsd/internal/vhostuser"
)

func TestMain(m *testing.M) {
	// As the daemon does: workers that come out of a system call find a processor of Go's.
	runtime.GOMAXPROCS(max(16, 2*runtime.NumCPU()))
	os.Exit(m.Run())
}

func (d *device) quick(t testing.TB, q int) {
	t.Helper()
	_, err := d.fuse.On(d.Queues[q]).Do(fe.Request{Op: opQuick, Node: 1})
	require.NoError(t, err, "queue %d", q)
}

func (d *device) start(t testing.TB, op fe.Opcode) *fe.Pending {
	t.Helper()
	p, err := d.fuse.Start(fe.Request{Op: op, Node: 1})
	require.NoError(t, err)
	return p
}

// A leader with nothing to serve lets its handler work ahead, a step at a time: a request that comes meanwhile does not wait for the rest.
func TestWorksAheadWhileNothingComes(t *testing.T) {
	e := &echo{}
	e.ahead.Store(3)
	d := serve(t, e, vhostuser.Config{}, fe.Config{})
	d.quick(t, 1)
	assert.Eventually(t, func() bool { return e.aheads.Load() >= 4 }, time.Second, time.Millisecond)
	e.ahead.Store(1 << 30) // without an end
	for range 100 {
		d.quick(t, 1)
	}
	require.NoError(t, d.Enable(d.Request(0), false))
	require.NoError(t, d.Enable(d.Request(0), true))
	d.quick(t, 1)
	_, err := d.Stop(d.Request(0))
	require.NoError(t, err, "nor does the queue's end")
}

// What a request leaves to be done is done by every worker before it sleeps: the leader, and those who came to help.
func TestIsIdleBeforeItSleeps(t *testing.T) {
	e := &echo{block: make(chan struct{})}
	d := serve(t, e, vhostuser.Config{Workers: 4}, fe.Config{})
	q := d.Request(0)
	var blocked []*fe.Pending
	for range 3 {
		blocked = append(blocked, d.start(t, opBlock))
	}
	q.Publish()
	q.Kick()
	require.Eventually(t, func() bool { return e.blocked.Load() == 3 }, time.Second, time.Millisecond, "three workers are at it")
	d.quick(t, 1)
	assert.GreaterOrEqual(t, e.untidy.Load(), int32(3))
	close(e.block)
	for _, p := range blocked {
		_, err := d.fuse.Finish(p)
		require.NoError(t, err)
	}
	assert.Eventually(t, func() bool { return e.untidy.Load() == 0 }, time.Second, time.Millisecond)
	d.quick(t, 0)
	d.quick(t, 1)
	assert.Eventually(t, func() bool { return e.untidy.Load() == 0 }, time.Second, time.Millisecond)
}

func TestManyQueues(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{RequestQueues: 64, QueueSize: 16})
	for range 3 {
		for q := range 65 {
			d.quick(t, q)
		}
	}
	for q, c := range d.stats() {
		assert.EqualValues(t, 3, c.Requests, "queue %d", q)
	}
}

func TestRingsOfAllSizes(t *testing.T) {
	for _, size := range []uint16{1, 2, 128, 32768} {
		for _, f := range []uint64{fe.DefaultFeatures, fe.DefaultFeatures &^ (1 << fe.FeatureEventIdx), fe.DefaultFeatures &^ (1 << fe.FeatureIndirect)} {
			if size == 1 && f&(1<<fe.FeatureIndirect) == 0 {
				continue // a request has two descriptors
			}
			d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{QueueSize: size, Features: f})
			for range 200 {
				d.quick(t, 1)
			}
			d.Close()
			require.NoError(t, d.end(t))
		}
	}
}

func TestWithoutProtocolFeatures(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{Features: 1<<fe.FeatureVersion1 | 1<<fe.FeatureEventIdx})
	d.quick(t, 1) // rings are enabled from their start
}

func TestDisabledRingWaits(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{RequestQueues: 2})
	d.quick(t, 1)
	require.NoError(t, d.Enable(d.Request(0), false))
	p := d.start(t, opQuick)
	d.Request(0).Publish()
	d.Request(0).Kick()
	assert.ErrorIs(t, d.Request(0).WaitChain(p.Chain, 50*time.Millisecond), fe.ErrTimeout)
	d.quick(t, 2)
	require.NoError(t, d.Enable(d.Request(0), true))
	_, err := d.fuse.Finish(p)
	require.NoError(t, err, "what was posted meanwhile is served")
}

// GET_VRING_BASE is answered when what was taken is done, and nothing more is taken.
func TestStopDrains(t *testing.T) {
	e := &echo{block: make(chan struct{})}
	d := serve(t, e, vhostuser.Config{}, fe.Config{})
	for range 5 {
		d.quick(t, 1)
	}
	q := d.Request(0)
	var blocked []*fe.Pending
	for range 3 {
		blocked = append(blocked, d.start(t, opBlock))
	}
	q.Publish()
	require.Eventually(t, func() bool { return e.blocked.Load() == 3 }, time.Second, time.Millisecond)

	answered := make(chan uint32)
	go func() {
		base, err := d.Stop(q)
		assert.NoError(t, err)
		answered <- base
	}()
	select {
	case <-answered:
		t.Fatal("answered while requests are under way")
	case <-time.After(500 * time.Millisecond):
	}
	assert.Positive(t, e.interrupts.Load(), "the backend is asked to interrupt what waits")
	assert.EqualValues(t, 1, e.interrupted.Load(), "on this queue")
	close(e.block)
	assert.EqualValues(t, 8, <-answered)
	for _, p := range blocked {
		r, err := d.fuse.Finish(p)
		require.NoError(t, err)
		assert.EqualValues(t, 16, r.Used, "and they are on the used ring")
	}
}

func TestUntakenRequestsStayInTheRing(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{})
	q := d.Request(0)
	require.NoError(t, d.Enable(q, false))
	for range 4 {
		d.start(t, opQuick)
	}
	q.Publish()
	base, err := d.Stop(q)
	require.NoError(t, err)
	assert.Zero(t, base, "none was taken, so the next device finds all of them")
}

func TestEndsWhileARequestIsStuck(t *testing.T) {
	for name, end := range map[string]func(*device){
		"told to end": func(d *device) { d.stop() },
		"front-end waits": func(d *device) {
			d.Conn.Send(fe.MsgGetVringBase, false, state(1, 0))
			time.Sleep(50 * time.Millisecond)
			d.stop()
		},
	} {
		e := &echo{block: make(chan struct{})}
		d := serve(t, e, vhostuser.Config{}, fe.Config{})
		d.start(t, opBlock)
		d.Request(0).Publish()
		require.Eventually(t, func() bool { return e.blocked.Load() == 1 }, time.Second, time.Millisecond)
		began := time.Now()
		end(d)
		err := d.end(t)
		assert.ErrorIs(t, err, vhostuser.ErrStuck, name)
		assert.Less(t, time.Since(began), 1500*time.Millisecond, name)
		assert.Zero(t, e.resets.Load(), "%s: the backend is not reset under a request's feet", name)
		close(e.block)
	}
}

// Nor does it wait for ever for a worker that is stuck outside of requests, in what they left: a descriptor that takes long to be closed.
func TestEndsWhileAWorkerIsStuckBetweenRequests(t *testing.T) {
	e := &echo{block: make(chan struct{}), stuck: make(chan struct{})}
	d := serve(t, e, vhostuser.Config{}, fe.Config{})
	p := d.start(t, opBlock)
	d.Request(0).Publish()
	require.Eventually(t, func() bool { return e.blocked.Load() == 1 }, time.Second, time.Millisecond)
	d.quick(t, 1) // by another, who leads from now on: the first will be one too many
	time.Sleep(100 * time.Millisecond)
	e.stick.Store(true)
	close(e.block)
	_, err := d.fuse.Finish(p)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return e.blocked.Load() == 2 }, time.Second, time.Millisecond)
	d.quick(t, 1)
	began := time.Now()
	d.stop()
	assert.ErrorIs(t, d.end(t), vhostuser.ErrStuck)
	assert.Less(t, time.Since(began), 1500*time.Millisecond)
	assert.Zero(t, e.resets.Load())
	close(e.stuck)
}

// A defect in what requests left costs a worker, and no request.
func TestDefectBetweenRequests(t *testing.T) {
	for _, poll := range []time.Duration{0, time.Millisecond} {
		e := &echo{block: make(chan struct{})}
		d := serve(t, e, vhostuser.Config{Poll: poll}, fe.Config{})
		for range 5 {
			for q := range 2 {
				e.idlePanics.Store(true)
				d.quick(t, q)
				require.Eventually(t, func() bool { return !e.idlePanics.Load() }, time.Second, time.Millisecond)
			}
		}
		// One that comes to its end as one too many.
		p := d.start(t, opBlock)
		d.Request(0).Publish()
		require.Eventually(t, func() bool { return e.blocked.Load() == 1 }, time.Second, time.Millisecond)
		d.quick(t, 1)
		time.Sleep(50 * time.Millisecond)
		e.idlePanics.Store(true)
		close(e.block)
		_, err := d.fuse.Finish(p)
		require.NoError(t, err)
		require.Eventually(t, func() bool { return !e.idlePanics.Load() }, time.Second, time.Millisecond)
		d.quick(t, 1)
		assert.Contains(t, d.log.String(), "on purpose, in between")
		assert.Zero(t, e.reused.Load())
	}
}

// A leader that is stuck there holds nobody up.
func TestServedWhileLeaderIsStuckBetweenRequests(t *testing.T) {
	for _, poll := range []time.Duration{0, time.Millisecond} {
		for on := range 2 {
			e := &echo{stuck: make(chan struct{})}
			d := serve(t, e, vhostuser.Config{Poll: poll}, fe.Config{})
			e.stick.Store(true)
			d.quick(t, on)
			require.Eventually(t, func() bool { return e.blocked.Load() == 1 }, time.Second, time.Millisecond)
			for range 5 {
				for q := range 2 {
					began := time.Now()
					d.quick(t, q)
					assert.Less(t, time.Since(began), time.Second)
				}
			}
			close(e.stuck)
		}
	}
}

func TestFrontEndLeavesWhileItsRingDrains(t *testing.T) {
	e := &echo{block: make(chan struct{})}
	d := serve(t, e, vhostuser.Config{}, fe.Config{})
	d.start(t, opBlock)
	d.Request(0).Publish()
	require.Eventually(t, func() bool { return e.blocked.Load() == 1 }, time.Second, time.Millisecond)
	require.NoError(t, d.Conn.Send(fe.MsgGetVringBase, false, state(1, 0)))
	time.Sleep(20 * time.Millisecond)
	d.Conn.Close()
	time.AfterFunc(600*time.Millisecond, func() { close(e.block) })
	assert.NoError(t, d.end(t), "leaving is no error, and what is under way may take its time")
	assert.EqualValues(t, 1, e.resets.Load())
}

func TestPollingKick(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{})
	q := d.Request(0)
	_, err := d.Stop(q)
	require.NoError(t, err)
	require.NoError(t, d.Restart(q))
	require.NoError(t, d.Conn.Ack(fe.MsgSetVringKick, number(1|1<<8)))
	kicks := q.Kicks
	for range 20 {
		time.Sleep(3 * time.Millisecond)
		p := d.start(t, opQuick)
		q.SetAvailIndex(q.AvailIndex()) // shown, but not kicked
		q.SetNext(q.AvailIndex())
		_, err := d.fuse.Finish(p)
		require.NoError(t, err)
	}
	assert.Equal(t, kicks, q.Kicks)
}

func TestWithoutCallAndErr(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{})
	require.NoError(t, d.Conn.Ack(fe.MsgSetVringCall, number(1|1<<8)))
	require.NoError(t, d.Conn.Ack(fe.MsgSetVringErr, number(1|1<<8)))
	q := d.Request(0)
	p := d.start(t, opQuick)
	q.Publish()
	require.Eventually(t, func() bool { q.Reap(); return p.Chain.Done }, time.Second, time.Millisecond, "the driver polls")
	q.SetAvailIndex(q.AvailIndex() + q.Size + 1)
	q.Kick()
	d.quick(t, 0)
}

func TestBrokenRingIsReportedAndTheOthersServe(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{RequestQueues: 2})
	q := d.Request(0)
	d.quick(t, 1)
	p := d.start(t, opQuick)
	q.SetAvailIndex(q.AvailIndex() + q.Size + 1)
	q.Kick()
	assert.ErrorIs(t, q.WaitChain(p.Chain, time.Second), fe.ErrRingStopped, "VRING_ERR")
	d.quick(t, 2)
	d.quick(t, 0)
	assert.Eventually(t, func() bool { return strings.Count(d.log.String(), "queue stopped") == 1 }, time.Second, time.Millisecond)
	_, err := d.Stop(q)
	require.NoError(t, err)
	require.NoError(t, d.Restart(q))
	p = d.start(t, opQuick)
	q.Publish()
	require.Eventually(t, func() bool { q.Reap(); return p.Chain.Done }, time.Second, time.Millisecond, "set up anew, it serves again")
}

func TestMalformedChains(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{})
	q := d.Request(0)
	ids, err := q.TakeDesc(1)
	require.NoError(t, err)
	q.WriteDesc(ids[0], fe.Desc{Addr: d.Memory.Outside(), Len: 40})
	for range 300 {
		c := q.PrepareRaw(ids[0], nil)
		require.NoError(t, q.Do(c, time.Second))
		assert.Zero(t, c.Used)
	}
	q.Post(q.PrepareRaw(q.Size, nil))
	d.quick(t, 1)
	assert.EqualValues(t, 301, d.count(1).Malformed)
	assert.LessOrEqual(t, strings.Count(d.log.String(), "request refused"), 3, "one line a second")
	assert.Contains(t, d.log.String(), "outside of guest memory")
}

func TestVanishedMemory(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{RequestQueues: 2})
	r := d.Memory.Regions[1]
	require.NoError(t, unix.Ftruncate(r.FD, int64(r.Size/2)))
	q := d.Request(0)
	ids, err := q.TakeDesc(1)
	require.NoError(t, err)
	q.WriteDesc(ids[0], fe.Desc{Addr: r.GPA + r.Size/2, Len: 40})
	c := q.PrepareRaw(ids[0], nil)
	require.NoError(t, q.Do(c, time.Second))
	assert.Zero(t, c.Used)
	assert.EqualValues(t, 1, d.count(1).Faults)
	d.quick(t, 1)

	// The rings themselves go: those queues stop, and the connection still answers.
	rings := d.Memory.Regions[0]
	require.NoError(t, unix.Ftruncate(rings.FD, 0))
	d.Request(0).Kick()
	d.Request(1).Kick()
	require.Eventually(t, func() bool { return strings.Count(d.log.String(), "queue stopped") == 2 }, time.Second, time.Millisecond)
	_, err = d.Conn.CallU64(fe.MsgGetFeatures, nil)
	require.NoError(t, err)
	_, err = d.Stop(d.Request(0))
	require.NoError(t, err)
	require.NoError(t, unix.Ftruncate(rings.FD, int64(rings.Size))) // for the front-end's own sake
}

// While leaders are blocked and requests wait, the monitor looks into the ring.
func TestMonitorMeetsVanishedMemory(t *testing.T) {
	e := &echo{block: make(chan struct{})}
	d := serve(t, e, vhostuser.Config{}, fe.Config{})
	for range 60 {
		d.start(t, opBlock)
	}
	d.Request(0).Publish()
	require.Eventually(t, func() bool { return e.blocked.Load() > 0 }, time.Second, 100*time.Microsecond)
	rings := d.Memory.Regions[0]
	require.NoError(t, unix.Ftruncate(rings.FD, 0))
	time.Sleep(20 * time.Millisecond) // some of its ticks
	require.NoError(t, unix.Ftruncate(rings.FD, int64(rings.Size)))
	close(e.block)
	_, err := d.Conn.CallU64(fe.MsgGetFeatures, nil)
	require.NoError(t, err)
}

func TestMemoryComesAndGoes(t *testing.T) {
	e := &echo{block: make(chan struct{})}
	d := serve(t, e, vhostuser.Config{}, fe.Config{})
	extra, err := fe.NewRegion(1<<40, 1<<20)
	require.NoError(t, err)
	defer extra.Close()
	mapped := func() int {
		maps, err := os.ReadFile("/proc/self/maps")
		require.NoError(t, err)
		return strings.Count(string(maps), "memfd:guest-ram")
	}
	before := mapped()
	for range 100 {
		require.NoError(t, d.Conn.Ack(fe.MsgAddMemReg, fe.SingleRegion(extra), extra.FD))
		d.quick(t, 1)
		require.NoError(t, d.Conn.Ack(fe.MsgRemMemReg, fe.SingleRegion(extra)))
	}
	assert.Equal(t, before, mapped(), "what was removed is unmapped when the answer comes")

	// A request under way keeps the memory that it works in.
	require.NoError(t, d.Conn.Ack(fe.MsgAddMemReg, fe.SingleRegion(extra), extra.FD))
	p := d.start(t, opBlock)
	d.Request(0).Publish()
	require.Eventually(t, func() bool { return e.blocked.Load() == 1 }, time.Second, time.Millisecond)
	require.NoError(t, d.Conn.Ack(fe.MsgRemMemReg, fe.SingleRegion(extra)), "removing it waits for nobody")
	d.Conn.CallU64(fe.MsgGetFeatures, nil)
	assert.Equal(t, before+1, mapped())
	close(e.block)
	_, err = d.fuse.Finish(p)
	require.NoError(t, err)
	d.Conn.CallU64(fe.MsgGetFeatures, nil)
	assert.Equal(t, before, mapped())

	// The rings' memory goes: they stop.
	require.NoError(t, d.Conn.Ack(fe.MsgRemMemReg, fe.SingleRegion(d.Memory.Regions[0])))
	assert.Equal(t, 2, strings.Count(d.log.String(), "queue stopped"))
	_, err = d.Conn.CallU64(fe.MsgGetFeatures, nil)
	require.NoError(t, err)
}

func TestUnfitWorkerIsReplaced(t *testing.T) {
	e := &echo{}
	d := serve(t, e, vhostuser.Config{}, fe.Config{})
	for range 5 {
		p := d.start(t, opPanicTwice)
		d.Request(0).Publish()
		require.NoError(t, d.Request(0).WaitChain(p.Chain, time.Second))
		assert.Zero(t, p.Chain.Used)
	}
	d.quick(t, 1)
	assert.EqualValues(t, 5, e.aborts.Load())
	assert.Zero(t, e.reused.Load())
}

func TestNoWorker(t *testing.T) {
	d := serve(t, &echo{fail: errors.New("no thread today")}, vhostuser.Config{}, fe.Config{})
	p := d.start(t, opQuick)
	d.Request(0).Publish()
	assert.ErrorIs(t, d.Request(0).WaitChain(p.Chain, time.Second), fe.ErrRingStopped)
	assert.Eventually(t, func() bool { return strings.Contains(d.log.String(), "no thread today") }, time.Second, time.Millisecond)
}

// Requests that wait for a disk are served side by side, soon, and the threads that this takes end when it is quiet.
func TestSlowRequestsGetHelp(t *testing.T) {
	for _, tc := range []struct {
		sleep time.Duration
		most  int32 // at the same time
	}{{300 * time.Microsecond, 5}, {10 * time.Millisecond, vhostuser.MaxWaiting}} {
		t.Run(tc.sleep.String(), func(t *testing.T) {
			e := &echo{sleep: tc.sleep}
			d := serve(t, e, vhostuser.Config{}, fe.Config{})
			q := d.Request(0)
			var all []*fe.Pending
			for range 32 {
				all = append(all, d.start(t, opSleep))
			}
			q.Publish()
			for began := time.Now(); e.most.Load() < tc.most && time.Since(began) < 5*time.Second; { // some ticks of the monitor do
				require.True(t, q.Wait())
				for {
					c, err := q.Reap()
					require.NoError(t, err)
					if c == nil {
						break
					}
					q.Post(c)
				}
				q.Publish()
			}
			assert.GreaterOrEqual(t, e.most.Load(), tc.most)
			for _, p := range all {
				require.NoError(t, q.WaitChain(p.Chain, time.Second))
			}
			assert.Eventually(t, func() bool { return d.count(1).Workers <= 3 }, 5*time.Second, 5*time.Millisecond)
		})
	}
}

// A thread that computes is not blocked: more of them than there are processors serve nobody
// sooner. That is told by the time that they get, so there are some more where others want the
// processors, too.
func TestRequestsThatComputeGetFewThreads(t *testing.T) {
	e := &echo{sleep: 10 * time.Millisecond}
	d := serve(t, e, vhostuser.Config{}, fe.Config{})
	var all []*fe.Pending
	for range 60 {
		all = append(all, d.start(t, opCompute))
	}
	d.Request(0).Publish()
	most := 0
	for _, p := range all {
		require.NoError(t, d.Request(0).WaitChain(p.Chain, 30*time.Second))
		most = max(most, d.count(1).Workers)
	}
	assert.LessOrEqual(t, most, 30)
}

// A request that computes for long does not hold up the next one either, and those that wait are
// told from it.
func TestRequestsThatComputeHoldUpNobody(t *testing.T) {
	e := &echo{sleep: 500 * time.Millisecond, block: make(chan struct{})}
	d := serve(t, e, vhostuser.Config{}, fe.Config{})
	long := d.start(t, opCompute)
	d.quick(t, 1)
	assert.False(t, long.Chain.Done)
	for range 20 {
		d.start(t, opBlock)
	}
	d.quick(t, 1)
	assert.EqualValues(t, 1+20, e.blocked.Load())
	close(e.block)
}

func processTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestCheapRequestsStayWithOneWorker(t *testing.T) {
	workers := 64
	for n := 0; n < 30 && workers > 2; n++ { // where others want the processors, requests take long that are cheap
		d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{})
		q := d.Request(0)
		for range 32 {
			d.start(t, opQuick)
		}
		q.Publish()
		for began, served := time.Now(), 0; served < 20_000 || time.Since(began) < 50*time.Millisecond; {
			c, err := q.Reap()
			require.NoError(t, err)
			if c != nil {
				served++
				q.Post(c)
				q.Publish()
			}
		}
		workers = d.count(1).Workers
	}
	assert.LessOrEqual(t, workers, 2)
}

func threads(t testing.TB) int {
	list, err := os.ReadDir("/proc/self/task")
	require.NoError(t, err)
	return len(list)
}

func TestNothingIsLeftBehind(t *testing.T) {
	once := func() {
		d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{RequestQueues: 4, QueueSize: 64, Memory: []uint64{1 << 20, 1 << 20}})
		for q := range 5 {
			d.quick(t, q)
		}
		kick, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		require.NoError(t, err)
		require.NoError(t, d.Conn.Ack(fe.MsgSetVringKick, number(1), kick), "one descriptor for another")
		unix.Close(kick)
		d.Close()
		require.NoError(t, d.end(t))
	}
	for range 3 {
		once()
	}
	fds, routines, tasks := openFDs(t), runtime.NumGoroutine(), threads(t)
	for range 100 {
		once()
	}
	// Each round's listener is closed at the test's end only.
	assert.Equal(t, fds+100, openFDs(t))
	assert.Eventually(t, func() bool { return runtime.NumGoroutine() <= routines+1 }, time.Second, time.Millisecond) // Eventually has one
	assert.Eventually(t, func() bool { return threads(t) <= tasks+4 }, 2*time.Second, 10*time.Millisecond)
}

func TestIdleDeviceUsesNoProcessor(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{Poll: 50 * time.Microsecond, Hidden: 4}, fe.Config{RequestQueues: 8})
	for range 500 { // so that polling is worth while
		for q := range 9 {
			d.quick(t, q)
		}
	}
	time.Sleep(100 * time.Millisecond) // the monitor parks
	cpu := func() time.Duration { return processTime(t) }
	least := time.Hour
	for range 3 { // Go's runtime has its own reasons now and then
		before := cpu()
		time.Sleep(500 * time.Millisecond)
		least = min(least, cpu()-before)
	}
	assert.Less(t, least, 5*time.Millisecond, "1 % of a processor, tests and Go's own threads included")
}

func BenchmarkDepth32(b *testing.B) {
	for _, poll := range []time.Duration{0, 50 * time.Microsecond} {
		b.Run(fmt.Sprint("poll=", poll), func(b *testing.B) {
			d := serve(b, &echo{}, vhostuser.Config{Poll: poll}, fe.Config{})
			q := d.Request(0)
			for range 32 {
				d.start(b, opQuick)
			}
			q.Publish()
			b.ResetTimer()
			for n := 0; n < b.N; {
				q.Wait()
				for {
					c, _ := q.Reap()
					if c == nil {
						break
					}
					n++
					q.Post(c)
				}
				q.Publish()
			}
		})
	}
}

// hurry brings so many quick requests that further ones count as quick.
func (d *device) hurry(t testing.TB, q *fe.Queue) {
	t.Helper()
	for range 50 {
		var all []*fe.Pending
		for range 64 {
			all = append(all, d.start(t, opQuick))
		}
		q.Publish()
		for _, p := range all {
			_, err := d.fuse.Finish(p)
			require.NoError(t, err)
		}
	}
}

// The driver is told of several quick requests at once; those behind them may block, and then it is told of the quick ones all the same.
func TestDriverIsToldBeforeRequestsThatBlock(t *testing.T) {
	e := &echo{block: make(chan struct{}), sleep: 300 * time.Microsecond}
	d := serve(t, e, vhostuser.Config{}, fe.Config{QueueSize: 1024})
	q := d.Request(0)
	d.hurry(t, q)
	first := d.start(t, opSleep)          // long enough for the driver to sleep, too
	for range vhostuser.MaxWorkers + 20 { // more than can be taken
		d.start(t, opBlock)
	}
	q.Publish()
	began := time.Now()
	require.NoError(t, q.WaitChain(first.Chain, 2*time.Second))
	assert.Less(t, time.Since(began), time.Second)
	close(e.block)
}

// A descriptor whose writing blocks is the front-end's own trouble, but what it asks for next is done all the same.
func TestCallThatBlocksHoldsTheMonitorUpNot(t *testing.T) {
	e := &echo{block: make(chan struct{}), sleep: 300 * time.Microsecond}
	d := serve(t, e, vhostuser.Config{}, fe.Config{QueueSize: 1024})
	full := fullEvent(t)
	q := d.Request(0)
	d.hurry(t, q)
	first := d.start(t, opSleep)
	for range vhostuser.MaxWorkers {
		d.start(t, opBlock)
	}
	require.NoError(t, d.Conn.Ack(fe.MsgSetVringCall, fe.U64(uint64(q.Index)), full))
	q.Arm()
	q.Publish()
	_ = q.WaitChain(first.Chain, 100*time.Millisecond) // by then the monitor has seen who is blocked
	asked := make(chan error, 1)
	go func() { asked <- d.Conn.Ack(fe.MsgSetVringCall, fe.U64(uint64(q.Index)|1<<8)) }() // which takes the queue's lock
	select {
	case err := <-asked:
		assert.NoError(t, err)
	case <-time.After(5 * time.Second):
		assert.Fail(t, "the queue cannot be set up anew")
	}
	close(e.block)
	_, err := unix.Read(full, make([]byte, 8)) // whoever writes can end
	require.NoError(t, err)
	unix.Close(full)
}

// Nor does a descriptor that blocks hold up a message that stops a queue, and with it the end.
func TestErrThatBlocksHoldsUpNoMessage(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{})
	full := fullEvent(t)
	defer unix.Close(full)
	d.quick(t, 1)
	require.NoError(t, d.Conn.Ack(fe.MsgSetVringErr, fe.U64(1), full))
	require.NoError(t, d.Conn.Ack(fe.MsgRemMemReg, fe.SingleRegion(d.Memory.Regions[0])), "the rings' memory goes")
	d.stop()
	assert.NoError(t, d.end(t))
	_, err := unix.Read(full, make([]byte, 8)) // whoever writes can end
	require.NoError(t, err)
	assert.Eventually(t, func() bool { n, err := unix.Write(full, make([]byte, 8)); return n == 8 && err == nil }, time.Second, time.Millisecond)
}

// A log that blocks holds up who writes to it, and nobody who has nothing to say.
func TestLogThatBlocksHoldsUpNobodyElse(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{RequestQueues: 3})
	stop := make(chan struct{})
	d.log.stop.Store(&stop)
	malformed := func(q *fe.Queue) {
		ids, err := q.TakeDesc(1)
		require.NoError(t, err)
		q.WriteDesc(ids[0], fe.Desc{Addr: d.Memory.Outside(), Len: 40})
		c := q.PrepareRaw(ids[0], nil)
		q.Post(c)
		q.Publish()
	}
	malformed(d.Queues[1])
	require.Eventually(t, func() bool { return d.count(1).Malformed == 1 }, time.Second, time.Millisecond)
	for _, q := range d.Queues[2:] {
		malformed(q)
		d.quick(t, q.Index)
	}
	stopped := make(chan error, 1)
	go func() {
		_, err := d.Stop(d.Queues[2])
		stopped <- err
	}()
	select {
	case err := <-stopped:
		assert.NoError(t, err)
	case <-time.After(2 * time.Second):
		assert.Fail(t, "another queue is held up by the log")
	}
	close(stop)
}

// fullEvent is an eventfd to which a write blocks.
func fullEvent(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	require.NoError(t, err)
	_, err = unix.Write(fd, []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	require.NoError(t, err)
	return fd
}

// A write to the old descriptor may block for as long as it likes: what is pushed later is told by the new one.
func TestNewCallIsToldWhileTheOldOneBlocks(t *testing.T) {
	e := &echo{block: make(chan struct{}), sleep: 300 * time.Microsecond}
	d := serve(t, e, vhostuser.Config{}, fe.Config{QueueSize: 1024})
	full := fullEvent(t)
	fresh, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	require.NoError(t, err)
	q := d.Request(0)
	d.hurry(t, q)
	round := func(call, blocks int) {
		require.NoError(t, d.Conn.Ack(fe.MsgSetVringCall, fe.U64(uint64(q.Index)), call))
		first := d.start(t, opSleep)
		for range blocks { // some wait until the first is done, else it is told at once
			d.start(t, opBlock)
		}
		q.Arm()
		q.Publish()
		q.Kick()
		_ = q.WaitChain(first.Chain, 100*time.Millisecond) // by then the monitor has seen who is blocked
	}
	round(full, 4)
	round(fresh, vhostuser.MaxWorkers+20)
	assert.Eventually(t, func() bool { n, _ := unix.Read(fresh, make([]byte, 8)); return n == 8 }, time.Second, time.Millisecond)
	close(e.block)
	_, err = unix.Read(full, make([]byte, 8)) // whoever writes can end
	require.NoError(t, err)
	unix.Close(full)
	unix.Close(fresh)
}

// Workers wake up in time on whichever threads the runtime has for them: one that its watchdog made may be late, as that is.
func TestWorkersAreNotLate(t *testing.T) {
	slacken := func(d time.Duration) {
		var reached, left sync.WaitGroup
		left.Add(1)
		for range 50 {
			reached.Add(1)
			go func() {
				runtime.LockOSThread()
				sys.SetTimerSlack(d)
				reached.Done()
				left.Wait()
				runtime.UnlockOSThread()
			}()
		}
		reached.Wait()
		left.Done()
	}
	slacken(20 * time.Millisecond)
	defer slacken(sys.DefaultSlack)
	e := &echo{}
	d := serve(t, e, vhostuser.Config{}, fe.Config{RequestQueues: 16})
	for q := range 17 {
		d.quick(t, q)
	}
	assert.Zero(t, e.late.Load())
}
