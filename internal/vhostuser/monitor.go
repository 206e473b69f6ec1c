package vhostuser

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// monitorTick is the time after which a request counts as blocked: between one and two ticks.
	monitorTick = 1 * time.Millisecond
	// monitorLinger is for how many ticks without a request the monitor goes on before it parks.
	monitorLinger = 50
)

// monitor finds leaders that are blocked inside a request. Its thread ticks only while requests come in.
type monitor struct {
	dev    *device
	parked atomic.Bool
	wake   chan struct{} // one place: a wake-up is never lost and never waits
	quit   chan struct{}
}

func newMonitor(d *device) *monitor {
	return &monitor{dev: d, wake: make(chan struct{}, 1), quit: make(chan struct{})}
}

// awake is called by leaders when they come out of a sleep.
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
	type seen struct{ requests, serial uint64 }
	last := make([]seen, len(m.dev.queues))
	for quietTicks := 0; ; {
		switch {
		case quietTicks == monitorLinger:
			m.parked.Store(true) // one tick more: a leader that came out of its sleep before this line is seen then
		case quietTicks > monitorLinger:
			select {
			case <-m.wake:
			case <-m.quit:
				return
			}
			quietTicks = 0
		}
		if quietTicks < monitorLinger && m.parked.Load() {
			m.parked.Store(false)
		}
		ts := unix.NsecToTimespec(int64(monitorTick))
		unix.Nanosleep(&ts, nil)
		select {
		case <-m.quit:
			return
		default:
		}
		quietTicks++
		for i, q := range m.dev.queues {
			if !q.mu.TryLock() {
				quietTicks = 0 // somebody is at work there
				continue
			}
			if q.counters.Requests != last[i].requests {
				last[i].requests = q.counters.Requests
				quietTicks = 0
			}
			if w := q.leader; w != nil && w.serving {
				if w.serial == last[i].serial && q.running() {
					q.counters.Takeovers++
					q.pass(MaxWorkers)
				}
				last[i].serial = w.serial
			}
			q.mu.Unlock()
		}
	}
}
