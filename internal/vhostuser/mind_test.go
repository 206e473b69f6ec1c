package vhostuser_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/vhostuser"
)

// minded has a device whose first request queue is polled for so long that its leader minds the high-priority queue (0), and begins with
// that.
func minded(t *testing.T, e *echo) *device {
	t.Helper()
	d := serve(t, e, vhostuser.Config{Poll: time.Millisecond}, fe.Config{})
	d.quick(t, 0)
	d.mindAgain(t)
	return d
}

// mindAgain waits until the high-priority queue is minded: what comes there is neither kicked for nor found by its own leader's polling.
func (d *device) mindAgain(t *testing.T) {
	t.Helper()
	h := d.Queues[0]
	for began := time.Now(); time.Since(began) < time.Minute; { // nobody polls while others want the processors
		for start := time.Now(); time.Since(start) < 10*time.Millisecond; { // longer than its own leader polls
			d.quick(t, 1)
		}
		kicks, hits := h.Kicks, d.count(0).PollHits
		d.quick(t, 0)
		if h.Kicks == kicks && d.count(0).PollHits == hits {
			return
		}
	}
	require.Fail(t, "nobody minds the high-priority queue")
}

// What a request of the high-priority queue leaves (the blocks of a removed file, after FORGET) is done by who minds that before he sleeps, too.
func TestMinderIsIdleBeforeItSleeps(t *testing.T) {
	e := &echo{}
	d := minded(t, e)
	for range 5 {
		d.mindAgain(t) // its last request is one that the minder serves
		assert.Eventually(t, func() bool { return e.untidy.Load() == 0 }, time.Second, time.Millisecond)
	}
}

func TestLeaderThatPollsMindsTheHighPriorityQueue(t *testing.T) {
	d := minded(t, &echo{})
	h := d.Queues[0]
	const row = 4
	longest := 0
	for began := time.Now(); longest < row && time.Since(began) < time.Minute; d.mindAgain(t) {
		kicks, hits, n := h.Kicks, d.count(0).PollHits, 0
		for ; h.Kicks == kicks && d.count(0).PollHits == hits && n < row; n++ {
			d.quick(t, 1)
			d.quick(t, 0)
		}
		longest = max(longest, n)
	}
	assert.Equal(t, row, longest, "one after the other")
}

// Whatever its minder does, the queue's own leader takes over in time.
func TestMindedQueueIsServedWhateverItsMinderDoes(t *testing.T) {
	e := &echo{block: make(chan struct{})}
	d := minded(t, e)
	soon := func(what string) {
		t.Helper()
		began := time.Now()
		d.quick(t, 0)
		assert.Less(t, time.Since(began), time.Second, what)
	}
	time.Sleep(100 * time.Millisecond)
	soon("it sleeps")

	d.mindAgain(t)
	p := d.start(t, opBlock)
	d.Request(0).Publish()
	require.Eventually(t, func() bool { return e.blocked.Load() == 1 }, time.Second, 10*time.Microsecond)
	soon("it is blocked in a request of its own queue")
	d.mindAgain(t)
	p2 := d.start(t, opBlock)
	d.Request(0).Publish()
	require.Eventually(t, func() bool { return e.blocked.Load() == 2 }, time.Second, 10*time.Microsecond)
	require.NoError(t, d.Enable(d.Request(0), false))
	soon("it is blocked, and its queue is disabled")
	require.NoError(t, d.Enable(d.Request(0), true))
	close(e.block)
	for _, p := range []*fe.Pending{p, p2} {
		_, err := d.fuse.Finish(p)
		require.NoError(t, err)
	}

	d.mindAgain(t)
	require.NoError(t, d.Enable(d.Request(0), false))
	soon("its queue is disabled")
	require.NoError(t, d.Enable(d.Request(0), true))

	d.mindAgain(t)
	_, err := d.Stop(d.Request(0))
	require.NoError(t, err)
	soon("its queue was stopped")
	require.NoError(t, d.Restart(d.Request(0)))
	d.mindAgain(t)
}

// A queue that always has another request leaves its minder no time to look at anything else.
func TestMindedQueueIsServedBesideAQueueThatIsNeverEmpty(t *testing.T) {
	d := minded(t, &echo{sleep: 20 * time.Microsecond}) // longer than we take for one
	h, q := d.Queues[0], d.Request(0)
	prepare := func(q *fe.Queue, op fe.Opcode) *fe.Chain {
		l, err := d.fuse.Layout(fe.Request{Op: op, Node: 1}, d.fuse.NextUnique())
		require.NoError(t, err)
		c, err := q.Prepare(l.Segs())
		require.NoError(t, err)
		return c
	}
	var many []*fe.Chain
	for range 32 {
		many = append(many, prepare(q, opSleep))
	}
	one := prepare(h, opQuick)
	for range 30 { // each is a try: others may have helped the leader
		d.mindAgain(t)
		for _, c := range many {
			q.Post(c)
		}
		q.Publish()
		began, posted, back := time.Now(), false, 0
		for ; back < len(many); q.Publish() {
			switch after := time.Since(began); {
			case !posted && after > time.Millisecond:
				h.Post(one)
				h.Publish()
				began, posted = time.Now(), true
			case posted && after > 5*time.Second: // we may get no processor for long, and so may the queue's own leader
				require.True(t, h.Pending(), "starved")
			}
			c, err := q.Reap()
			require.NoError(t, err)
			switch {
			case c == nil:
			case posted && h.Pending():
				back++
			default:
				q.Post(c)
			}
		}
		require.NoError(t, h.WaitChain(one, time.Second))
	}
}

// Who is blocked in a request of the high-priority queue holds up neither queue.
func TestMinderThatIsBlockedHoldsUpNobody(t *testing.T) {
	e := &echo{block: make(chan struct{})}
	d := minded(t, e)
	h := d.Queues[0]
	p, err := d.fuse.On(h).Start(fe.Request{Op: opBlock, Node: 1})
	require.NoError(t, err)
	h.Publish()
	require.Eventually(t, func() bool { return e.blocked.Load() == 1 }, time.Second, 10*time.Microsecond)
	for range 10 {
		d.quick(t, 1)
		d.quick(t, 0)
	}
	answered := make(chan error)
	go func() {
		_, err := d.Stop(h)
		answered <- err
	}()
	select {
	case <-answered:
		t.Fatal("the queue is stopped while a request of it is under way")
	case <-time.After(100 * time.Millisecond):
	}
	close(e.block)
	require.NoError(t, <-answered)
	require.NoError(t, h.WaitChain(p.Chain, time.Second))
}

func TestMindedQueueStopsAndMoves(t *testing.T) {
	d := minded(t, &echo{})
	h := d.Queues[0]
	extra, err := fe.NewRegion(1<<40, 1<<20)
	require.NoError(t, err)
	defer extra.Close()
	for range 50 {
		d.quick(t, 1)
		require.NoError(t, d.Conn.Ack(fe.MsgAddMemReg, fe.SingleRegion(extra), extra.FD))
		d.quick(t, 0)
		require.NoError(t, d.Conn.Ack(fe.MsgRemMemReg, fe.SingleRegion(extra)))
		d.quick(t, 1)
		_, err := d.Stop(h)
		require.NoError(t, err)
		d.quick(t, 1)
		require.NoError(t, d.Restart(h))
		d.quick(t, 0)
		require.NoError(t, d.Enable(h, false))
		d.quick(t, 1)
		require.NoError(t, d.Enable(h, true))
		d.quick(t, 0)
	}
}

func TestPanicsWhileMinding(t *testing.T) {
	e := &echo{}
	d := minded(t, e)
	h := d.Queues[0]
	for i, op := range []fe.Opcode{opPanic, opPanicTwice, opPanic, opPanicTwice} {
		p, err := d.fuse.On(h).Start(fe.Request{Op: op, Node: 1})
		require.NoError(t, err)
		h.Publish()
		require.NoError(t, h.WaitChain(p.Chain, time.Second))
		assert.Zero(t, p.Chain.Used)
		assert.EqualValues(t, i+1, e.aborts.Load())
		d.mindAgain(t)
	}
	assert.Zero(t, e.reused.Load(), "who cannot be put in order serves no queue any more")
	assert.EqualValues(t, 4, d.count(0).Faults)
}

// The queue's memory may vanish while it is minded: that is the queue's end, and no other's.
func TestMindedRingVanishes(t *testing.T) {
	d := minded(t, &echo{})
	rings := d.Memory.Regions[0]
	d.quick(t, 1)
	require.NoError(t, unix.Ftruncate(rings.FD, 0))
	time.Sleep(20 * time.Millisecond)
	require.NoError(t, unix.Ftruncate(rings.FD, int64(rings.Size)))
	_, err := d.Conn.CallU64(fe.MsgGetFeatures, nil)
	require.NoError(t, err)
}
