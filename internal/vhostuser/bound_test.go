package vhostuser_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/vhostuser"
)

// TestThreadsAreDealtOut: every queue that a front-end is offered can have a worker, and there are
// some to replace those which are blocked.
func TestThreadsAreDealtOut(t *testing.T) {
	for _, c := range []struct{ threads, most, queues, extras int }{
		{0, 0, 64, 0}, {0, 8, 8, 0}, {vhostuser.MinThreads, 64, 1, 2}, {5, 64, 1, 3}, {11, 64, 4, 6}, {11, 1, 1, 9}, {60, 64, 29, 30}, {1000, 64, 64, 935},
	} {
		cfg := vhostuser.Config{Threads: c.threads, MaxRequestQueues: c.most}
		assert.Equal(t, c.queues, cfg.Queues(), "%+v", c)
		assert.Equal(t, c.extras, cfg.Extras(), "%+v", c)
	}
	_, c := talk(t, &echo{}, vhostuser.Config{Threads: 11})
	n, err := c.CallU64(fe.MsgGetQueueNum, nil)
	require.NoError(t, err)
	assert.EqualValues(t, 4+1, n)
}

func (d *device) workers() (n int) {
	for _, c := range d.stats() {
		n += c.Workers
	}
	return n
}

// TestWorkersAreBounded: requests that block take no more threads than there may be, whatever queue
// they come on. Another queue goes on with its own worker, and what waits is served when there is a
// thread for it again.
func TestWorkersAreBounded(t *testing.T) {
	const threads, blocks = 9, 20
	e := &echo{block: make(chan struct{})}
	d := serve(t, e, vhostuser.Config{Threads: threads}, fe.Config{RequestQueues: 3})
	start := func(queue int) *fe.Pending {
		p, err := d.fuse.On(d.Queues[queue]).Start(fe.Request{Op: opBlock, Node: 1})
		require.NoError(t, err)
		return p
	}
	d.quick(t, 1)
	d.quick(t, 3)
	var all []*fe.Pending
	for range blocks {
		all = append(all, start(1), start(2))
	}
	d.Queues[1].Publish()
	d.Queues[2].Publish()
	// The high-priority queue has no worker yet, and that of queue 3 serves something else.
	require.Eventually(t, func() bool { return e.blocked.Load() == threads-2 }, 5*time.Second, time.Millisecond)
	for range 100 {
		d.quick(t, 3)
		assert.LessOrEqual(t, d.workers(), threads)
	}
	assert.EqualValues(t, threads-2, e.blocked.Load())
	close(e.block)
	for _, p := range all {
		_, err := d.fuse.Finish(p)
		require.NoError(t, err)
	}
}

// TestIdleWorkersMakeRoom: workers that a queue keeps for later are not kept from a queue that has
// none left.
func TestIdleWorkersMakeRoom(t *testing.T) {
	const threads, extras = 12, 9
	e := &echo{block: make(chan struct{}), sleep: 20 * time.Millisecond}
	d := serve(t, e, vhostuser.Config{Threads: threads, MaxRequestQueues: 2}, fe.Config{RequestQueues: 2})
	d.quick(t, 1)
	var slow []*fe.Pending
	for range 200 {
		p, err := d.fuse.On(d.Queues[2]).Start(fe.Request{Op: opSleep, Node: 1})
		require.NoError(t, err)
		slow = append(slow, p)
	}
	d.Queues[2].Publish()
	for _, p := range slow {
		_, err := d.fuse.Finish(p)
		require.NoError(t, err)
	}
	require.Greater(t, d.stats()[2].Workers, 1, "some are kept there")
	for range extras + 1 {
		_, err := d.fuse.On(d.Queues[1]).Start(fe.Request{Op: opBlock, Node: 1})
		require.NoError(t, err)
	}
	d.Queues[1].Publish()
	assert.Eventually(t, func() bool { return e.blocked.Load() == extras+1 }, 5*time.Second, time.Millisecond, "all threads that there may be")
	assert.Equal(t, 1, d.stats()[2].Workers)
	d.quick(t, 2)
	close(e.block)
}
