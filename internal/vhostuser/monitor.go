package vhostuser

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/sys"
)

const (
	// monitorTick is the time after which a request counts as blocked: between one and two ticks.
	monitorTick = 1 * time.Millisecond
	// monitorRare is the longest time between two looks at a guest that asks now and then.
	monitorRare = 16 * monitorTick
	// monitorLinger is for how long without a request the monitor goes on before it parks.
	monitorLinger = 50 * monitorTick
	// slowBelow is how many requests a millisecond a worker has to finish to count as fast: 50 µs for each. Below that, and with more of
	// them waiting, waking another thread costs less than what it saves.
	slowBelow = 20
	// maxWaiting is the most workers of a queue that are put to work on requests which wait for something but are not blocked for long: a disk.
	maxWaiting = 16
)

// monitor watches over the queues of a device. It finds leaders that are blocked inside a request, and queues whose requests wait for
// something slow while others are to be served. Its thread ticks only while requests come in.
type monitor struct {
	dev    *device
	parked atomic.Bool
	wake   chan struct{} // one place: a wake-up is never lost and never waits
	quit   chan struct{}
}

// seen is what the monitor remembers of a queue from tick to tick.
type seen struct {
	leader   *worker
	requests uint64
	sleeps   uint64        // if the leader is hidden
	cpu      time.Duration // of the leader's thread, if requests were slow
}

func newMonitor(d *device) *monitor {
	return &monitor{dev: d, wake: make(chan struct{}, 1), quit: make(chan struct{})}
}

// awake is called by leaders when they come out of a sleep and by workers when they begin, with their queue's mutex held.
func (m *monitor) awake() {
	if m.parked.Load() {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

func (m *monitor) run() {
	runtime.LockOSThread() // so that a tick is a nanosleep of one thread, without the scheduler's timers
	sys.SetTimerSlack(sys.DefaultSlack)
	last := make([]seen, len(m.dev.queues))
	tick, quiet := monitorTick, time.Duration(0)
	for {
		if ts := unix.NsecToTimespec(int64(tick)); m.dev.cfg.Hidden > 0 && tick == monitorTick {
			sys.NanosleepHeld(&ts)
		} else {
			unix.Nanosleep(&ts, nil)
		}
		select {
		case <-m.quit:
			return
		default:
		}
		busy, near := m.look(last, tick)
		if m.dev.short.Swap(false) {
			m.spare()
		}
		if quiet += tick; busy {
			quiet = 0
		}
		if tick = min(2*tick, monitorRare); near {
			tick = monitorTick
		}
		if quiet < monitorLinger {
			continue
		}
		// A worker that gets going from here on sees that we are parked; one that did before is seen to be awake.
		m.parked.Store(true)
		if busy, _ := m.look(last, tick); !busy {
			for _, q := range m.dev.queues {
				q.mu.Lock()
				q.trim(keptSpares)
				q.mu.Unlock()
			}
			select {
			case <-m.wake:
			case <-m.quit:
				return
			}
		}
		m.parked.Store(false)
		tick, quiet = monitorTick, 0
	}
}

// look looks at all queues once, and reports whether any was at work since the last tick, and whether there is reason to look closely: one
// is at work just now, or has much to do.
func (m *monitor) look(last []seen, tick time.Duration) (busy, near bool) {
	for i, q := range m.dev.queues {
		if !q.mu.TryLock() {
			busy, near = true, true // somebody is at work there
			continue
		}
		if served := q.counters.Requests - last[i].requests; served > 0 || q.leader != nil && !q.asleep {
			busy = true
			near = near || !q.asleep || served >= uint64(tick/monitorTick)
			q.watch(&last[i], tick)
		}
		if q.asleep && q.hidden.Load() {
			busy, near = true, true // until it is not
			if last[i].sleeps == q.counters.Sleeps {
				q.lasts.Store(true)
				ring(q.wake, 1)
			}
			last[i].sleeps = q.counters.Sleeps
		}
		q.mu.Unlock()
	}
	return busy, near
}

// spare ends the spares of all queues: the process may have no more threads, and one of the queues
// needs another.
func (m *monitor) spare() {
	for _, q := range m.dev.queues {
		if q.mu.TryLock() { // whoever is at work there is no spare, and the monitor comes again
			q.trim(0)
			q.mu.Unlock()
		}
	}
}

// watch does for one queue what a tick is for. The caller holds mu.
func (q *queue) watch(last *seen, tick time.Duration) {
	w := q.leader
	served := q.counters.Requests - last.requests
	was := *last
	*last = seen{leader: w, requests: q.counters.Requests, sleeps: was.sleeps}
	if q.asleep && q.inflight == 0 {
		q.want = max(1, q.want/2)
	}
	if w == nil {
		return
	}
	cpu := threadCPU(w.tid)
	stays, computing := q.survey(w, cpu)
	if stays {
		w.giveBack()
	}
	if !q.running() || q.asleep {
		return
	}
	if served >= slowBelow*uint64(tick/monitorTick)*uint64(max(q.active, 1)) {
		q.want = 1
	} else if n, err := q.pending(); err == nil && n > 0 {
		// The processor time of the leader's thread says whether its requests wait or compute.
		// Where they compute, more threads are of no use, but for large replies, which call for
		// help themselves. Of a new leader nothing is known yet, and one tick is not enough: the
		// thread may have had no processor.
		last.cpu = cpu
		wait := cpu-was.cpu < tick/2
		if stays {
			wait = w.stay.waits()
		}
		if !wait || computing < q.dev.processors {
			q.want = wanted(q.want, w == was.leader && was.cpu != 0, wait)
		}
	}
	if stays && q.replaces(w, computing) {
		q.tellAll()
		q.leader = nil
		if q.call1(MaxWorkers) {
			q.counters.Takeovers++
		} else {
			q.leader = w // until the monitor comes again
			q.dev.short.Store(true)
		}
	} else {
		q.help()
	}
}

// wanted is how many workers shall be at work on slow requests of which more wait, where so many
// were, and the leader's thread is known to wait or to compute.
func wanted(want int, known, waits bool) int {
	switch {
	case !known:
		return want
	case waits:
		return max(want, min(2*want, maxWaiting))
	}
	return max(1, want/2)
}

// survey looks at all workers that are at work, and reports whether the leader, with that processor
// time, is in one request for some time, and how many others compute for some time. The caller
// holds mu.
func (q *queue) survey(leader *worker, cpu time.Duration) (stays bool, computing int) {
	now := sys.Clock()
	for w := range q.workers {
		switch {
		case !w.away:
			w.stay = stay{}
		case w == leader:
			w.stay.look(w.serial, now, cpu)
		default:
			if w.stay.look(w.serial, now, threadCPU(w.tid)); w.stay.computes() {
				computing++
			}
		}
	}
	return leader.stay.stayed > 0, computing
}

// replaces reports whether another worker is to lead instead of w, which is in one request for some
// time while so many others compute. Who waits for something is replaced. Who computes is as well,
// but for few: more threads than processors serve nobody sooner. The caller holds mu.
func (q *queue) replaces(w *worker, computing int) bool {
	switch wait := w.stay.waits(); {
	case computing >= q.dev.processors:
		return wait && w.stay.stayed >= patienceBusy
	case wait && q.spares == 0:
		return w.stay.stayed >= patience(len(q.workers))
	}
	return true
}

// tellAll has the driver told of what was pushed before a request that blocks. Not by the monitor, which writing to a descriptor of the
// front-end's could block. The caller holds mu.
func (q *queue) tellAll() {
	if q.tell.untold == 0 || q.call != nil && q.telling == q.call {
		return
	}
	q.tell.untold = 0
	signal := func() (signal bool, err error) {
		defer rescue(&err, guestmem.Touch())
		return q.ring.MustSignal(), nil
	}
	if yes, err := signal(); err != nil || !yes || q.call == nil {
		return
	}
	q.counters.Signals++
	q.telling = q.call.hold()
	go q.apart(&aftermath{call: q.telling})
}

// threadCPU is the processor time of one of our threads: its number makes a clock (include/linux/posix-timers_types.h: per thread,
// scheduler's clock). It is 0 where there is no such thread any more.
func threadCPU(tid int) time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(int32(^tid)<<3|6, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
