package vhostuser

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

const ms = time.Millisecond

func TestStaysAreJudgedByProcessorTime(t *testing.T) {
	w, other := &worker{}, &worker{}
	var s stay
	look := func(l *worker, serial uint64, now, cpu time.Duration) (time.Duration, bool) {
		stayed, used := s.look(l, serial, now, cpu)
		return stayed, stayed > 0 && waits(stayed, used)
	}
	assert := func(stayed time.Duration, waits bool) func(time.Duration, bool) {
		return func(s time.Duration, w bool) { t.Helper(); assert.Equal(t, []any{stayed, waits}, []any{s, w}) }
	}
	assert(0, false)(look(w, 7, 100*ms, 50*ms))
	assert(ms, true)(look(w, 7, 101*ms, 50*ms)) // it did nothing
	assert(0, false)(look(w, 8, 102*ms, 50*ms)) // another request
	assert(0, false)(look(other, 8, 103*ms, 50*ms))
	assert(0, false)(look(nil, 0, 104*ms, 50*ms))
	assert(0, false)(look(nil, 0, 105*ms, 50*ms))

	// It computes, though others have the processor most of the time: an eighth of it is enough.
	assert(0, false)(look(w, 9, 200*ms, 60*ms))
	assert(ms, false)(look(w, 9, 201*ms, 61*ms))
	assert(8*ms, false)(look(w, 9, 208*ms, 61*ms))
	assert(9*ms, true)(look(w, 9, 209*ms, 61*ms))
	// What it did long ago counts no more.
	assert(31*ms, false)(look(w, 9, 231*ms, 80*ms))
	assert(32*ms, false)(look(w, 9, 232*ms, 80*ms))
	assert(2*ms, true)(look(w, 9, 234*ms, 80*ms))
}

// Who waits is replaced at once where that takes no new thread, and soon where it takes one of the first. Who computes is replaced by so many as
// there are processors.
func TestWhoIsReplaced(t *testing.T) {
	q := &queue{dev: &device{processors: 2}, workers: map[*worker]struct{}{}}
	more := func(n int) (w *worker) {
		for range n {
			w = &worker{away: true, serial: 5}
			q.workers[w] = struct{}{}
		}
		return w
	}
	a := more(1)
	assert.True(t, q.replaces(a, ms, 0))
	more(2)
	assert.True(t, q.replaces(a, ms, 0))
	more(1)
	assert.False(t, q.replaces(a, ms, 0))
	assert.True(t, q.replaces(a, 3*ms, 0))
	q.spares = 1
	assert.True(t, q.replaces(a, ms, 0))
	q.spares = 0
	more(12)
	assert.False(t, q.replaces(a, 3*ms, 0))
	assert.True(t, q.replaces(a, 10*ms, 0))

	assert.True(t, q.replaces(a, ms, ms), "one computes")
	assert.True(t, q.replaces(a, ms, ms), "it goes on to, as nobody was there to take over")
	b, c := more(1), more(1)
	assert.True(t, q.replaces(b, ms, ms))
	assert.False(t, q.replaces(c, ms, ms), "as many as there are processors do")
	assert.True(t, q.replaces(c, 10*ms, 0), "this one waits")
	a.leave(nil)
	assert.True(t, q.replaces(c, ms, ms), "one of them has another request")
	b.back()
	assert.True(t, q.replaces(more(1), ms, ms), "one of them has none")
}
