package vhostuser

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// MaxWaiting is for the tests from outside.
const MaxWaiting = maxWaiting

// TestHelpIsNotKeptForASilentQueue: what a disk needed, the next burst of quick requests does not.
func TestHelpIsNotKeptForASilentQueue(t *testing.T) {
	q := &queue{want: maxWaiting, asleep: true}
	q.watch(&seen{}, monitorTick)
	assert.Equal(t, maxWaiting/2, q.want)
	q.inflight = 1
	q.watch(&seen{}, monitorTick)
	assert.Equal(t, maxWaiting/2, q.want, "a worker waits for it")
}

// TestPollingAdapts: a queue is polled for longer where that would have caught a request, and gives it up where it is in vain more often than
// it is worth.
func TestPollingAdapts(t *testing.T) {
	const most, short, long = 50 * time.Microsecond, 20 * time.Microsecond, 2 * time.Millisecond
	q := &queue{dev: &device{cfg: Config{Poll: most}}}
	wait := func(d time.Duration) {
		if d < q.poll {
			q.hit()
		} else {
			q.adapt(d)
		}
	}
	wait(long)
	assert.Zero(t, q.poll, "nothing says that polling would help")
	for range 10 {
		wait(short)
	}
	assert.Greater(t, q.poll, short)
	for range 100 { // as creating and deleting files does: one of six waits is for something else
		for range 5 {
			wait(short)
		}
		wait(long)
		assert.Greater(t, q.poll, short)
	}
	for range 20 { // every second one
		wait(short)
		wait(long)
	}
	assert.Less(t, q.poll, short)
	for range 10 {
		wait(long)
	}
	assert.Zero(t, q.poll)
}

// TestPollingPausesLongerTheMoreItIsInterrupted: once in a while is the host's doing; each time is somebody who needs the processor.
func TestPollingPausesLongerTheMoreItIsInterrupted(t *testing.T) {
	q := &queue{}
	now := time.Now()
	for range 10 {
		now = now.Add(200 * time.Millisecond)
		q.interrupted(now)
		assert.Equal(t, pauseLeast, q.pollAgain.Sub(now), "now and then")
	}
	paused, began := time.Duration(0), now
	for range 100 {
		now = q.pollAgain.Add(3 * time.Millisecond) // a slice of the processor
		q.interrupted(now)
		paused += q.pollAgain.Sub(now)
	}
	assert.Equal(t, pauseMost, q.pause)
	assert.Greater(t, paused, now.Sub(began)*9/10)
	now = now.Add(10 * time.Second)
	q.interrupted(now)
	assert.Equal(t, pauseLeast, q.pause)
}

func TestSlowRequestsWantWorkersWhereTheyWait(t *testing.T) {
	for _, c := range []struct {
		want         int
		known, waits bool
		next         int
	}{
		{8, false, true, 8}, {8, false, false, 8}, // of a new leader nothing is known
		{1, true, true, 2}, {8, true, true, 16}, {16, true, true, 16}, {20, true, true, 20},
		{8, true, false, 4}, {1, true, false, 1},
	} {
		assert.Equal(t, c.next, wanted(c.want, c.known, c.waits), "%+v", c)
	}
}

// A worker that is done with enough requests is enough, whatever was wanted before.
func TestCheapRequestsWantOneWorker(t *testing.T) {
	for served, want := range map[uint64]int{19: 8, 20: 1, 1000: 1} {
		w := &worker{}
		q := &queue{dev: &device{}, want: 8, active: 1, started: true, enabled: true, leader: w, workers: map[*worker]struct{}{w: {}}}
		q.counters.Requests = served
		q.watch(&seen{leader: w}, monitorTick)
		assert.Equal(t, want, q.want, "%d requests in a millisecond", served)
	}
}
