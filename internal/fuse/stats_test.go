package fuse

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
)

// TestBuckets: every latency is in a bucket whose bound is longer, by an eighth at most.
func TestBuckets(t *testing.T) {
	for ns := uint64(0); ns < 1<<39; ns = ns + ns/100 + 1 {
		b := bound(bucket(ns))
		assert.Greater(t, b, ns)
		assert.LessOrEqual(t, float64(b), float64(ns)*1.125+1, "%d ns", ns)
		if i := bucket(ns); i > 0 {
			assert.LessOrEqual(t, bound(i-1), ns, "%d ns", ns)
		}
	}
	assert.Equal(t, bucketEnd-1, bucket(1<<63))
}

func TestStatsAddUp(t *testing.T) {
	s := &Session{}
	a, b := s.tally.join(1), s.tally.join(2)
	for i := range 99 {
		a.add(fuseabi.OpRead, 0)
		a.time(fuseabi.OpRead, time.Duration(i)*time.Microsecond)
	}
	a.add(fuseabi.OpRead, 0) // not timed: the mean is of those that were
	b.add(fuseabi.OpLookup, unix.ENOENT)
	b.time(fuseabi.OpLookup, time.Millisecond)
	b.add(99, unix.ENOSYS)
	b.time(99, time.Microsecond)
	check := func() {
		st := s.Stats()
		assert.EqualValues(t, 102, st.Requests)
		assert.Equal(t, OpStats{Count: 100, Mean: 49}, st.Opcodes["READ"])
		assert.Equal(t, OpStats{Count: 1, Errors: 1, Mean: 1000}, st.Opcodes["LOOKUP"])
		assert.EqualValues(t, 1, st.Opcodes["unknown"].Errors)
		assert.Equal(t, map[string]uint64{"ENOENT": 1, "ENOSYS": 1}, st.Errors)
		assert.EqualValues(t, 1000, st.Latency.Max)
		assert.InDelta(t, 50, st.Latency.P50, 50./8)
		assert.InDelta(t, 98, st.Queues[1].Max, 0)
		assert.EqualValues(t, 1000, st.Queues[2].P99)
	}
	check()
	s.tally.leave(a) // a worker's end loses nothing
	s.tally.leave(a)
	check()
	assert.NotContains(t, (&Session{}).Stats().Opcodes, "READ")
	assert.Zero(t, testing.AllocsPerRun(100, func() { a.add(fuseabi.OpWrite, unix.EIO); a.time(fuseabi.OpWrite, 5) }))
}
