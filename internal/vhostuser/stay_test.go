package vhostuser

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

const ms = time.Millisecond

func TestStaysAreJudgedByProcessorTime(t *testing.T) {
	var s stay
	look := func(serial uint64, now, cpu time.Duration, stayed time.Duration, waits, computes bool) {
		t.Helper()
		s.look(serial, now*ms, cpu*ms)
		assert.Equal(t, []any{stayed * ms, waits, computes}, []any{s.stayed, s.waits(), s.computes()})
	}
	look(7, 100, 50, 0, false, false)
	look(7, 101, 50, 1, true, false) // it did nothing
	look(8, 102, 50, 0, false, false)

	// It computes, though others have the processor most of the time: an eighth of it is enough not
	// to be one that waits.
	look(9, 200, 60, 0, false, false)
	look(9, 201, 61, 1, false, true)
	look(9, 208, 61, 8, false, true)
	look(9, 209, 61, 9, true, true)
	look(9, 263, 80, 63, false, true)
	look(9, 264, 80, 64, false, true)
	look(9, 265, 80, 33, false, true) // what it did long ago counts less and less
	look(9, 328, 80, 96, true, true)
	look(9, 330, 80, 50, true, true)
	look(10, 331, 80, 0, false, false)
}

// Who waits is replaced at once where that takes no new thread, and soon where it takes one of the
// first. Who computes is replaced by so many as there are processors, and who waits then has to
// wait for long: it may be for a processor.
func TestWhoIsReplaced(t *testing.T) {
	for _, c := range []struct {
		workers, spares, computing int
		stayed, used               time.Duration
		want                       bool
	}{
		{3, 0, 0, ms, 0, true},
		{4, 0, 0, ms, 0, false}, {4, 0, 0, 3 * ms, 0, true}, {4, 1, 0, ms, 0, true},
		{16, 0, 0, 3 * ms, 0, false}, {16, 0, 0, 10 * ms, 0, true},
		{20, 0, 1, ms, ms, true},
		{20, 3, 2, 20 * ms, 20 * ms, false}, {20, 3, 2, 50 * ms, 50 * ms, false},
		{3, 3, 2, 49 * ms, 0, false}, {3, 3, 2, 50 * ms, 0, true},
	} {
		q := &queue{dev: &device{processors: 2}, workers: map[*worker]struct{}{}, spares: c.spares}
		for range c.workers - 1 {
			q.workers[&worker{}] = struct{}{}
		}
		w := &worker{stay: stay{stayed: c.stayed, used: c.used}}
		q.workers[w] = struct{}{}
		assert.Equal(t, c.want, q.replaces(w, c.computing), "%+v", c)
	}
}

// A worker's stay ends with its request.
func TestSurveySeesWhoIsAtWork(t *testing.T) {
	leader, other := &worker{}, &worker{tid: 1 << 22} // no thread has that number
	q := &queue{workers: map[*worker]struct{}{leader: {}, other: {}}}
	leader.leave(nil)
	other.leave(nil)
	see := func(stays bool, computing int) {
		t.Helper()
		s, c := q.survey(leader, 0)
		assert.Equal(t, []any{stays, computing}, []any{s, c})
		time.Sleep(time.Microsecond)
	}
	see(false, 0)
	see(true, 0)
	other.stay.cpu = -ms // since when its thread has used that
	see(true, 1)
	other.back()
	leader.back()
	see(false, 0)
	leader.leave(nil)
	other.leave(nil)
	see(false, 0)
	see(true, 0)
}
