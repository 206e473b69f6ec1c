package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/sys"
	"virtiofsd/internal/virtqueue"
)

// largeReply is how many bytes a request has to ask for to have another worker called when more requests wait: copying them takes longer
// than waking a thread does. What a guest writes does not count: writes to one file wait for each other in the host's file system, and
// two threads that spin for one lock were measured to do less than one thread (1 MiB in sequence, two processors: 11 against 16 GB/s,
// where reads gain, 22 against 16).
const largeReply = 64 << 10

// pollStart is the first polling time after a wake-up that came early enough to have been caught by polling, and the time below which
// polling is given up.
const pollStart = 8 * time.Microsecond

// A turn of polling that takes as long as lostProcessor was interrupted for somebody else, who may have better use for the processor: there
// is a pause of polling. It is short where that happens now and then, as it does on a virtual machine whose host has other things to do, and
// twice as long each time that polling is interrupted again within pauseRare times its length.
const (
	lostProcessor = 50 * time.Microsecond
	pauseLeast    = 200 * time.Microsecond
	pauseMost     = 50 * time.Millisecond
	pauseRare     = 20
)

var (
	errFault     = errors.New("guest memory vanished")
	errMalformed = errors.New("malformed request")
)

// worker is one thread of a queue. Its fields are the worker's own, or guarded by the queue's mutex where said.
type worker struct {
	q       *queue
	handler Handler
	idler   Idler // the handler, or nil
	chain   virtqueue.Chain
	unfit   bool    // its handler could not be put in order after a panic
	deputy  *worker // this one as a worker of the high-priority queue; nil before the first time
	bound   bool    // it is such a deputy, and takes as many requests as its quota
	quota   int

	tid    int             // guarded
	serial uint64          // counts what the worker began outside of the lock; guarded
	stay   stay            // in a request; guarded
	away   bool            // is outside of the lock, inside a request or a system call; guarded
	mem    *guestmem.Table // the request's; guarded
}

// aftermath is what a turn at the ring leaves to do, once the mutex is not held any more: each of it may block.
type aftermath struct {
	call   *eventFD // to interrupt the driver
	errfd  *eventFD // to tell the front-end that the ring has stopped
	failed error    // why it has stopped
	bad    error    // what was wrong with a request
}

func (a *aftermath) any() bool {
	return a.call != nil || a.errfd != nil || a.failed != nil || a.bad != nil
}

// do does it. The queue's mutex is not held.
func (a *aftermath) do(q *queue) {
	if a.call != nil {
		a.call.signal()
	}
	if a.errfd != nil {
		a.errfd.signal()
	}
	if a.failed != nil {
		q.dev.log.Error("queue stopped", "queue", q.index, "err", a.failed)
	}
	if a.bad != nil {
		q.dev.complain(q.index, a.bad)
	}
}

// done gives the descriptors back. The caller holds mu.
func (a *aftermath) done() {
	for _, e := range [...]*eventFD{a.call, a.errfd} {
		if fd := e.release(); fd >= 0 {
			go unix.Close(fd)
		}
	}
	*a = aftermath{}
}

// rescue is deferred by each function that touches guest memory: it turns a panic into errFault or,
// for a defect of ours, an error with the stack.
func rescue(err *error, t guestmem.Touching) {
	t.End()
	if r := recover(); r != nil {
		*err = explain(r)
	}
}

func explain(r any) error {
	if f, ok := r.(interface{ Addr() uintptr }); ok { // runtime's error for a memory fault
		return fmt.Errorf("%w at host address %#x", errFault, f.Addr())
	}
	return fmt.Errorf("defect: %v\n%s", r, debug.Stack())
}

// run is the life of a worker.
func (w *worker) run() {
	runtime.LockOSThread() // never unlocked: the thread, whose credentials we may have changed, ends with the goroutine
	sys.SetTimerSlack(sys.DefaultSlack)
	q := w.q
	var err error
	w.handler, err = q.dev.backend.NewHandler(q.index)
	w.idler, _ = w.handler.(Idler)
	q.mu.Lock()
	w.tid = unix.Gettid()
	if err != nil {
		err = fmt.Errorf("make a worker: %w", err)
		q.quit(w)
		out := aftermath{bad: err}
		if len(q.workers) == 0 {
			out = q.fail(err)
		}
		q.mu.Unlock()
		out.do(q)
		q.mu.Lock()
		out.done()
		q.mu.Unlock()
		return
	}
	for !q.closed && !w.unfit {
		if q.running() {
			w.work()
			w.tidy()
			if q.leader == nil && q.running() {
				continue // the leader went from a request straight out of work
			}
		}
		if w.unfit || q.closed || q.spares >= keptSpares && q.dev.monitor.parked.Load() || !q.wait() { // one that is late is not trimmed
			break
		}
	}
	q.quit(w)
	if w.unfit && q.leader == nil && q.running() {
		q.call1(MaxWorkers)
	}
	q.mu.Unlock()
	w.handler.Close()
}

// work takes and serves requests until the queue stops, or there is nothing to do and another worker leads. The caller holds mu, before
// and after.
func (w *worker) work() {
	q := w.q
	q.active++
	q.dev.monitor.awake() // a worker may be long in coming, and be blocked in the first request that it takes
	defer func() {
		q.active--
		if q.leader == w {
			q.leader = nil
		}
		w.giveBack()
		q.still.Broadcast()
	}()
	var head uint16
	var used uint32
	var out aftermath
	served := 0
	pushing := false // a request was served and is to be pushed
	rested := false  // the ring was empty before this request
	for {
		next, ok := w.turn(pushing, head, used, &out)
		pushing = false
		if !ok {
			switch {
			case out.any(): // the state may be another one afterwards
				w.settle(&out)
			case w.unfit || !q.running():
				return
			case w.surplus():
				q.judge(served)
				return
			default:
				q.leader = w
				w.rest()
				rested = true
			}
			continue
		}
		if q.leader == nil {
			q.leader = w
		}
		if !rested {
			w.giveBack()
		}
		rested = false
		head = next
		if q.active < q.want {
			q.help()
		}
		used = w.one(head, &out)
		served++
		pushing = true
	}
}

// settle does what a turn left to do. The caller holds mu, before and after.
func (w *worker) settle(out *aftermath) {
	q := w.q
	w.leave(nil)
	q.mu.Unlock()
	out.do(q)
	q.mu.Lock()
	out.done()
	w.back()
}

// one serves the request at head, after what the turn left to do, and leaves in out what was wrong with it. The caller holds mu, before and
// after.
func (w *worker) one(head uint16, out *aftermath) (used uint32) {
	q := w.q
	layout := q.ring.Layout
	q.counters.Requests++
	q.inflight++
	w.leave(q.ring.Mem())
	q.mu.Unlock()

	if out.any() {
		out.do(q)
	}
	used, err := w.serve(&layout, head)

	q.mu.Lock()
	out.done()
	w.back()
	q.inflight--
	if err != nil {
		out.bad = err
		if errors.Is(err, errMalformed) {
			q.counters.Malformed++
		} else {
			q.counters.Faults++
		}
	}
	return used
}

// leave and back frame the time outside of the lock, for the monitor and for whoever wants to unmap mem.
func (w *worker) leave(mem *guestmem.Table) { w.serial++; w.away, w.mem = true, mem }
func (w *worker) back()                     { w.away, w.mem = false, nil }

// surplus reports whether others do the queue's work. The caller holds mu.
func (w *worker) surplus() bool { return w.q.leader != nil && w.q.leader != w }

// takes reports whether the worker is to take one more request. The caller holds mu.
func (w *worker) takes() bool {
	q := w.q
	switch {
	case w.unfit || !q.running():
		return false
	case w.bound:
		return w.quota > 0
	}
	return !w.surplus() || q.active <= q.want
}

// turn is all that has to be done with the ring between two requests: it pushes the one that was served, finds out whether the driver is
// to be interrupted, and takes the next.
func (w *worker) turn(pushing bool, head uint16, used uint32, out *aftermath) (next uint16, ok bool) {
	q := w.q
	next, ok, signal, err := w.exchange(pushing, head, used)
	if signal && q.call != nil {
		out.call = q.call.hold()
		q.counters.Signals++
	}
	switch {
	case errors.Is(err, virtqueue.ErrHead):
		q.counters.Malformed++
		out.bad = err
	case err != nil:
		f := q.fail(err)
		out.errfd, out.failed = f.errfd, f.failed
	}
	return next, ok
}

func (w *worker) exchange(pushing bool, head uint16, used uint32) (next uint16, ok, signal bool, err error) {
	defer rescue(&err, guestmem.Touch())
	q := w.q
	usable := q.ring.Size() != 0 && !q.broken
	if pushing && usable {
		q.ring.Push(head, used)
		q.tell.untold++
	}
	if w.takes() {
		next, ok, err = q.ring.Next()
	}
	if usable && q.tell.untold > 0 && (!ok || q.tell.due(q.ring.Waiting(), sys.Clock)) {
		q.tell.untold = 0
		signal = q.ring.MustSignal()
	}
	return next, ok, signal, err
}

// serve walks the chain and has it served; the queue's mutex is not held.
func (w *worker) serve(layout *virtqueue.Layout, head uint16) (used uint32, err error) {
	defer w.rescue(&used, &err, guestmem.Touch())
	if err := layout.Walk(head, &w.chain); err != nil {
		return 0, fmt.Errorf("%w: %w", errMalformed, err)
	}
	if w.chain.OutBytes >= largeReply && w.q.dev.cfg.Workers > 1 {
		w.share()
	}
	return w.handler.Serve(w.chain.In, w.chain.Out), nil
}

// share lets others work beside this one, if more requests wait.
func (w *worker) share() {
	q := w.q
	q.mu.Lock()
	defer q.mu.Unlock()
	n, err := q.pending()
	switch {
	case err != nil || n == 0 || !q.running():
	case q.unshared > 0:
		q.unshared--
	default:
		q.want = max(q.want, q.dev.cfg.Workers)
		if q.active < q.want {
			q.call1(q.want)
		}
	}
}

// unsharedMost bounds for how many requests no help is called after a helper came in vain.
const unsharedMost = 1024

// judge decides, when a helper has nothing left to do, how soon help for large replies is called again. Where the front-end brings its
// requests one by one, or the processors are busy with other things, helpers come too late to find any. One that is found is worth it (at
// depth 4 on two processors, 12.9 GB/s for READ of 128 KiB; it is 10.4 where a helper has to find four). The caller holds mu.
func (q *queue) judge(served int) {
	if served > 0 {
		q.backoff = 0
		return
	}
	q.backoff = min(max(2*q.backoff, 16), unsharedMost)
	q.unshared = q.backoff
}

func (w *worker) rescue(used *uint32, err *error, t guestmem.Touching) {
	t.End()
	r := recover()
	if r == nil {
		return
	}
	*used, *err = 0, explain(r)
	defer func() {
		if r := recover(); r != nil { // what is left of this handler cannot be trusted
			*err = errors.Join(*err, explain(r))
			w.unfit = true
		}
	}()
	w.handler.Abort()
}

func (q *queue) listen() (more bool, err error) {
	defer rescue(&err, guestmem.Touch())
	return q.ring.Listen()
}

func (q *queue) quiet() (err error) {
	defer rescue(&err, guestmem.Touch())
	q.ring.Quiet()
	return nil
}

func (q *queue) hush() (err error) {
	defer rescue(&err, guestmem.Touch())
	q.ring.Hush()
	return nil
}

// step has the handler do a little of what no request waits for, and reports whether there is more. A handler with a defect there is not used
// again; those of other workers go on. The queue's mutex is not held.
func (w *worker) step() (more bool) {
	defer func() {
		if r := recover(); r != nil {
			w.unfit, more = true, false
			w.q.dev.complain(w.q.index, explain(r))
		}
	}()
	return w.idler.Idle()
}

// idle lets the handler do what no request waits for, and reports whether one has come, or the leader has another thing to look at. The caller
// holds mu, before and after.
func (w *worker) idle() bool {
	q := w.q
	for more := w.idler != nil; more; {
		w.leave(nil)
		q.mu.Unlock()
		more = w.step()
		q.mu.Lock()
		w.back()
		more = w.deputize() || more // which may leave something as well
		if w.unfit || q.leader != w || !q.running() {
			return true
		}
		if n, err := q.pending(); n > 0 || err != nil {
			q.counters.PollHits++
			return true
		}
	}
	return false
}

// mostIdle is how many steps a handler gets to do what no request waits for before a worker that does not lead sleeps.
const mostIdle = 64

// tidy has the handler do what no request waits for, before the worker sleeps as one of those that do not lead. The caller holds mu, before and
// after.
func (w *worker) tidy() {
	if w.idler == nil || w.unfit {
		return
	}
	w.leave(nil)
	w.q.mu.Unlock()
	for n := 0; n < mostIdle && w.step(); n++ {
	}
	w.q.mu.Lock()
	w.back()
}

// rest is what a leader does with an empty ring: it polls for a while, then sleeps until it is kicked or nudged. The caller holds mu,
// before and after; errors show up when the ring is used next.
func (w *worker) rest() {
	q := w.q
	if w.idle() {
		return
	}
	began := time.Now()
	if q.poll > 0 && began.After(q.pollAgain) {
		w.mind()
		end, last := began.Add(q.poll), began
		for {
			q.mu.Unlock()
			sys.Relax()
			now := time.Now()
			q.mu.Lock()
			deputized := w.deputize()
			if w.unfit || q.leader != w || !q.running() {
				return
			}
			if n, err := q.pending(); n > 0 || err != nil {
				q.counters.PollHits++
				q.hit()
				return
			}
			if deputized { // what that left is done, and the wait begins anew
				q.hit()
				if w.idle() {
					return
				}
				began = time.Now()
				end, last = began.Add(q.poll), began
				continue
			}
			if now.Sub(last) > lostProcessor {
				q.interrupted(now)
				break
			}
			if now.After(end) {
				break
			}
			last = now
		}
	}
	w.giveBack()
	if more, err := q.listen(); more || err != nil {
		return
	}
	q.counters.Sleeps++
	q.asleep = true
	q.hide()
	timeout := -1
	if q.kickless {
		timeout = 1
	}
	q.mu.Unlock()

	err := q.sleep(timeout)
	waited := time.Since(began)

	q.mu.Lock()
	q.asleep = false
	if q.index == 0 {
		q.dev.minder.Store(nil)
	}
	q.dev.monitor.awake() // with mu held, so that the monitor either sees us awake or is seen to be parked
	if q.leader == w && q.running() {
		q.quiet()
	}
	if err == nil { // and not a signal of Go's scheduler
		q.brisk = waited < briskSleep
		q.adapt(waited)
	}
}

// briskSleep is how long a queue's sleeps may be for the next one to begin hidden from Go's scheduler.
const briskSleep = time.Millisecond

// hide decides whether a sleep begins hidden from Go's scheduler. That takes its processor from a thread that sleeps in a system call, and its
// watchdog looks every 20 µs for such threads; that cost more than the requests of a busy queue did. So where the last sleep was short this one
// is hidden, if not too many are: each keeps one of Go's processors. The monitor ends that when it lasts. A timeout would as well, but to set a
// timer and to cancel it costs a virtual machine two exits, for each request. The caller holds mu, so that the monitor sees it with asleep.
func (q *queue) hide() {
	if !q.brisk || q.kickless {
		return
	}
	if int(q.dev.held.Add(1)) > q.dev.cfg.Hidden {
		q.dev.held.Add(-1)
		return
	}
	q.hidden.Store(true)
}

// sleep waits for a kick or a nudge, or for timeout milliseconds unless that is negative.
func (q *queue) sleep(timeout int) error {
	if q.hidden.Load() {
		lasts, err := q.await(true, -1)
		q.hidden.Store(false)
		q.dev.held.Add(-1)
		if !lasts || err != nil {
			return err
		}
	}
	_, err := q.await(false, timeout)
	return err
}

// await waits once. It reports whether nothing has come but the monitor's word that a hidden sleep lasts.
func (q *queue) await(hidden bool, timeout int) (lasts bool, err error) {
	var ev [2]unix.EpollEvent
	n := 0
	if hidden {
		var e unix.Errno
		if n, e = sys.EpollWaitHeld(q.epoll, ev[:]); e != 0 {
			err = e
		}
	} else {
		n, err = unix.EpollWait(q.epoll, ev[:], timeout)
	}
	for _, e := range ev[:max(n, 0)] {
		if int(e.Fd) == q.wake {
			var b [8]byte
			unix.Read(q.wake, b[:])
			lasts = q.lasts.Swap(false) && n == 1 && binary.NativeEndian.Uint64(b[:]) == 1
		}
	}
	return lasts, err
}

// mostCredit is how many hits of polling count at most, and vainCost how many of them a turn in vain uses up: polling in vain takes several
// times the processor time that a hit saves. A sequence with a wait for something else in it, such as a FORGET after UNLINK, goes on being
// polled for.
const (
	mostCredit = 8
	vainCost   = 3
)

// interrupted notes that polling was. The caller holds mu.
func (q *queue) interrupted(now time.Time) {
	if now.Sub(q.pollAgain) > pauseRare*q.pause {
		q.pause = pauseLeast
	} else {
		q.pause = min(2*q.pause, pauseMost)
	}
	q.pollAgain = now.Add(q.pause)
}

// hit notes that polling caught a request. The caller holds mu.
func (q *queue) hit() { q.credit = min(q.credit+1, mostCredit) }

// adapt sets the polling time by how long the queue waited in vain polling and in the sleep after it, much as the kernel's halt polling does
// (virt/kvm/kvm_main.c): a wait that more polling could have caught doubles it, a longer one halves it unless there is credit. The caller
// holds mu.
func (q *queue) adapt(waited time.Duration) {
	most := q.dev.cfg.Poll
	switch {
	case time.Now().Before(q.pollAgain):
	case waited <= most:
		q.poll = min(max(2*q.poll, pollStart), most)
	case q.credit >= vainCost:
		q.credit -= vainCost
	case q.poll > pollStart:
		q.poll /= 2
	default:
		q.poll = 0
	}
}
