package fuse

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
)

// Latencies are counted in buckets of eight to a power of two of nanoseconds: percentiles are right to an eighth.
const (
	subBits   = 3
	powers    = 40 // up to 18 minutes
	bucketEnd = powers << subBits
	errnoEnd  = 134 // one more than the highest of Linux
)

// sampled is of how many requests of a worker one is timed, the first of them: two readings of the clock are a twentieth of a quick
// request. It is a prime, so that it does not keep step with requests that come again and again in one order.
const sampled = 17

// counters are those of one worker, who alone writes them: no cache line is shared by two that serve. Readers see each figure whole, though
// not all at one moment.
type counters struct {
	queue   int
	opcode  [fuseabi.OpcodeEnd + 1]opCounters // the last is for opcodes that nobody knows
	errno   [errnoEnd]atomic.Uint64
	latency [bucketEnd]atomic.Uint64
	longest atomic.Uint64 // ns
}

type opCounters struct{ count, errors, timed, ns atomic.Uint64 } // ns is of those timed

// add counts one request that was served.
func (c *counters) add(code fuseabi.Opcode, e unix.Errno) {
	o := &c.opcode[min(code, fuseabi.OpcodeEnd)]
	o.count.Add(1)
	if e != 0 {
		o.errors.Add(1)
		c.errno[min(e, errnoEnd-1)].Add(1)
	}
}

// time counts how long one took.
func (c *counters) time(code fuseabi.Opcode, took time.Duration) {
	ns := uint64(max(took, 0))
	o := &c.opcode[min(code, fuseabi.OpcodeEnd)]
	o.timed.Add(1)
	o.ns.Add(ns)
	c.latency[bucket(ns)].Add(1)
	if ns > c.longest.Load() {
		c.longest.Store(ns)
	}
}

func bucket(ns uint64) int {
	n := bits.Len64(ns)
	if n <= subBits {
		return int(ns)
	}
	shift := n - subBits - 1
	return min((shift+1)<<subBits+int(ns>>shift)&(1<<subBits-1), bucketEnd-1)
}

// bound is the least latency, in ns, that is longer than all of a bucket.
func bound(bucket int) uint64 {
	if bucket < 1<<subBits {
		return uint64(bucket) + 1
	}
	shift := bucket>>subBits - 1
	return (1<<subBits + uint64(bucket&(1<<subBits-1)) + 1) << shift
}

// tally keeps the counters of a session's workers, and what those that ended had counted.
type tally struct {
	mu   sync.Mutex
	live map[*counters]struct{}
	gone map[int]*counters // by queue
}

func (t *tally) join(queue int) *counters {
	c := &counters{queue: queue}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live, t.gone = map[*counters]struct{}{}, map[int]*counters{}
	}
	t.live[c] = struct{}{}
	return c
}

func (t *tally) leave(c *counters) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, there := t.live[c]; !there {
		return
	}
	delete(t.live, c)
	if t.gone[c.queue] == nil {
		t.gone[c.queue] = &counters{queue: c.queue}
	}
	t.gone[c.queue].merge(c)
}

func (c *counters) merge(from *counters) {
	for i := range c.opcode {
		c.opcode[i].count.Add(from.opcode[i].count.Load())
		c.opcode[i].errors.Add(from.opcode[i].errors.Load())
		c.opcode[i].timed.Add(from.opcode[i].timed.Load())
		c.opcode[i].ns.Add(from.opcode[i].ns.Load())
	}
	for i := range c.errno {
		c.errno[i].Add(from.errno[i].Load())
	}
	for i := range c.latency {
		c.latency[i].Add(from.latency[i].Load())
	}
	c.longest.Store(max(c.longest.Load(), from.longest.Load()))
}

// Stats are a session's counters since it was made: those of connections that ended too.
type Stats struct {
	Requests  uint64             `json:"requests"`
	Malformed int64              `json:"malformed"` // requests that broke the protocol
	Latency   Latency            `json:"latency_us"`
	Opcodes   map[string]OpStats `json:"opcodes"` // by name; those that came
	Errors    map[string]uint64  `json:"errors"`  // replies by errno's name
	Queues    map[int]Latency    `json:"-"`       // by queue, 0 being the high-priority queue
}

// OpStats are the counters of one opcode.
type OpStats struct {
	Count  uint64  `json:"count"`
	Errors uint64  `json:"errors,omitempty"` // of Count, answered with an errno
	Mean   float64 `json:"mean_us"`
}

// Latency is how long requests took, in µs, from being taken off the ring until their reply was written, of the one in 17 that is timed.
// Percentiles are too high by an eighth at most.
type Latency struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// Stats adds the workers' counters up. It holds up no worker.
func (s *Session) Stats() Stats {
	queues := map[int]*counters{}
	all := &counters{}
	s.tally.mu.Lock()
	add := func(c *counters) {
		if queues[c.queue] == nil {
			queues[c.queue] = &counters{}
		}
		queues[c.queue].merge(c)
		all.merge(c)
	}
	for c := range s.tally.live {
		add(c)
	}
	for _, c := range s.tally.gone {
		add(c)
	}
	s.tally.mu.Unlock()

	st := Stats{Malformed: s.Malformed(), Latency: all.percentiles(), Opcodes: map[string]OpStats{}, Errors: map[string]uint64{}, Queues: map[int]Latency{}}
	for i := range all.opcode {
		o := &all.opcode[i]
		n := o.count.Load()
		if n == 0 {
			continue
		}
		name := "unknown"
		if code := fuseabi.Opcode(i); code < fuseabi.OpcodeEnd {
			name = code.String()
		}
		st.Requests += n
		st.Opcodes[name] = OpStats{Count: n, Errors: o.errors.Load(), Mean: micros(o.ns.Load() / max(o.timed.Load(), 1))}
	}
	for i := range all.errno {
		if n := all.errno[i].Load(); n > 0 {
			st.Errors[unix.ErrnoName(unix.Errno(i))] = n
		}
	}
	for q, c := range queues {
		st.Queues[q] = c.percentiles()
	}
	return st
}

func (c *counters) percentiles() (l Latency) {
	var total uint64
	for i := range c.latency {
		total += c.latency[i].Load()
	}
	longest := c.longest.Load()
	at := func(permille uint64) float64 {
		var sum uint64
		for i := range c.latency {
			if sum += c.latency[i].Load(); sum > 0 && sum*1000 >= total*permille {
				return micros(min(bound(i), longest))
			}
		}
		return 0
	}
	return Latency{P50: at(500), P90: at(900), P99: at(990), P999: at(999), Max: micros(longest)}
}

func micros(ns uint64) float64 { return float64(ns/10) / 100 }
