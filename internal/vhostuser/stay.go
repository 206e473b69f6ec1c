package vhostuser

import "time"

// A leader waits where its thread uses less than an eighth of the time: who waits is replaced, by as many as there are, and who computes by few. A
// thread that wants a processor and gets none for a while looks as if it waited, so the more workers there are, the longer that has to last
// before there is one more. What has lasted for stayMost is judged anew: it may have computed first.
const (
	waitsBelow = 8
	stayMost   = 32 * monitorTick
)

// stay is what is known of the request that a leader is in. Its zero value is of none.
type stay struct {
	leader     *worker
	serial     uint64
	since, cpu time.Duration // when the leader was found in it, and the processor time of its thread then
}

// look notes who leads, if that one is away from the ring, and reports how long ago it was found to be in the same request, 0 for just now, and
// how much of that time its thread used.
func (s *stay) look(leader *worker, serial uint64, now, cpu time.Duration) (stayed, used time.Duration) {
	if leader == nil || leader != s.leader || serial != s.serial {
		*s = stay{leader, serial, now, cpu}
		return 0, 0
	}
	stayed, used = now-s.since, cpu-s.cpu
	if stayed >= stayMost {
		s.since, s.cpu = now, cpu
	}
	return stayed, used
}

// waits reports whether a thread that used so much of the time waits for something.
func waits(stayed, used time.Duration) bool { return used < stayed/waitsBelow }

// patience is how long a leader has to wait before a queue of n workers gets another.
func patience(n int) time.Duration {
	switch {
	case n < 4:
		return monitorTick / 2
	case n < 16:
		return 3 * monitorTick
	}
	return 10 * monitorTick
}
