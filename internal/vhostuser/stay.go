package vhostuser

import "time"

// A leader waits where its thread uses less than an eighth of the time: who waits is replaced, by
// as many as there are, and who computes by few. A thread that wants a processor and gets none for
// a while looks as if it waited, so the more workers there are, the longer that has to last before
// there is one more. What was used half of stayMost ago counts half: it may have computed first.
const (
	waitsBelow = 8
	stayMost   = 64 * monitorTick
	// patienceBusy is how long a leader has to wait where as many others compute as there are
	// processors: it may be one that gets none.
	patienceBusy = 50 * monitorTick
)

// stay is what the monitor knows of the request that a worker is in.
type stay struct {
	serial     uint64
	since, cpu time.Duration // when the worker was found in it, and the processor time of its thread then
	stayed     time.Duration // for how long it was in it at the last look, 0 if it had just been found
	used       time.Duration // how much of that time its thread used
}

// look notes that a worker is in a request, and the processor time of its thread.
func (s *stay) look(serial uint64, now, cpu time.Duration) {
	if serial != s.serial {
		*s = stay{serial: serial, since: now, cpu: cpu}
		return
	}
	s.stayed, s.used = now-s.since, cpu-s.cpu
	if s.stayed >= stayMost {
		s.since += s.stayed / 2
		s.cpu += s.used / 2
	}
}

// waits reports whether the worker waits for something.
func (s *stay) waits() bool { return s.stayed > 0 && s.used < s.stayed/waitsBelow }

// computes reports whether the worker is known to compute, however rarely it gets a processor.
func (s *stay) computes() bool { return s.used >= monitorTick }

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
