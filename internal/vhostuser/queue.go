package vhostuser

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/vhostabi"
	"virtiofsd/internal/virtqueue"
)

// largeRequest is how many bytes a request has to carry for its leader to let a spare take the next one meanwhile: copying them takes
// longer than waking a thread does.
const largeRequest = 64 << 10

// maxSpares is how many idle workers a queue keeps; more come only when many were blocked at once, and then they end.
const maxSpares = 2

// pollStart is the first polling time after a wake-up that came early enough to have been caught by polling, and the time below which
// polling is given up.
const pollStart = 8 * time.Microsecond

// errFault says that the ring's memory vanished under us.
var errFault = errors.New("guest memory vanished")

// queue is one vring and its workers.
type queue struct {
	dev   *device
	index int
	epoll int // waits for kick and wake
	wake  int // eventfd by which control gets a leader out of its sleep

	mu     sync.Mutex
	vacant sync.Cond // spares wait on it for the leadership
	still  sync.Cond // stop waits on it for the last request

	ring  virtqueue.Ring
	size  uint32
	addrs virtqueue.Addresses
	base  uint16

	kick, call, errfd int  // eventfds of the front-end, -1 for none
	kickless          bool // the front-end asked for polling
	enabled           bool
	started           bool
	broken            bool
	closed            bool

	leader   *worker
	workers  map[*worker]struct{}
	spares   int
	inflight int
	counters Counters
}

// worker is one thread of a queue. Its fields are the worker's own, or guarded by the queue's mutex where said.
type worker struct {
	q       *queue
	handler Handler
	chain   virtqueue.Chain
	poll    time.Duration // how long to poll next time

	serial  uint64          // counts requests; guarded
	serving bool            // guarded
	mem     *guestmem.Table // the request's; guarded
}

func newQueue(d *device, index int) (*queue, error) {
	q := &queue{dev: d, index: index, kick: -1, call: -1, errfd: -1, workers: map[*worker]struct{}{}}
	q.vacant.L, q.still.L = &q.mu, &q.mu
	var err error
	if q.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("queue %d: make an epoll: %w", index, err)
	}
	if q.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(q.epoll)
		return nil, fmt.Errorf("queue %d: make an eventfd: %w", index, err)
	}
	if err = unix.EpollCtl(q.epoll, unix.EPOLL_CTL_ADD, q.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(q.wake)}); err != nil {
		q.closeFDs()
		return nil, fmt.Errorf("queue %d: watch an eventfd: %w", index, err)
	}
	return q, nil
}

func (q *queue) closeFDs() {
	for _, fd := range []*int{&q.epoll, &q.wake, &q.kick, &q.call, &q.errfd} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// running reports whether requests may be taken. The caller holds mu.
func (q *queue) running() bool { return q.started && q.enabled && !q.broken && !q.closed }

// nudge gets the leader to look at the queue's state again. The caller holds mu.
func (q *queue) nudge() {
	if q.leader != nil {
		one := [8]byte{1}
		unix.Write(q.wake, one[:]) // EAGAIN: it is awake already
	}
	q.vacant.Broadcast()
}

// start sets the ring up from what the messages said, and gets a worker going.
func (q *queue) start(mem *guestmem.Table, f virtqueue.Features) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.size == 0 || q.addrs == (virtqueue.Addresses{}) {
		return fmt.Errorf("queue %d is started before its size and addresses are known", q.index)
	}
	if !q.started {
		if err := q.setup(mem, f); err != nil {
			return fmt.Errorf("queue %d: %w", q.index, err)
		}
		q.started, q.broken = true, false
	}
	q.staff()
	q.nudge()
	return nil
}

func (q *queue) setup(mem *guestmem.Table, f virtqueue.Features) (err error) {
	defer rescue(&err)
	return q.ring.Setup(mem, q.addrs, q.size, q.base, f)
}

// staff makes the first worker. The caller holds mu.
func (q *queue) staff() {
	if len(q.workers) == 0 && q.running() {
		q.hire()
	}
}

// hire makes one more worker. The caller holds mu.
func (q *queue) hire() {
	w := &worker{q: q}
	q.workers[w] = struct{}{}
	q.dev.workers.Go(w.run)
}

// move puts the ring into another memory table. What was under way keeps its old one.
func (q *queue) move(mem *guestmem.Table) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.started {
		return
	}
	if err := q.ring.Move(mem, q.addrs, q.size); err != nil {
		q.fail(err)
	}
}

// uses reports whether a request under way, or the ring itself, still stands in the table.
func (q *queue) uses(mem *guestmem.Table) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for w := range q.workers {
		if w.mem == mem {
			return true
		}
	}
	return q.started && !q.broken && q.ring.Mem() == mem
}

// drainPatience is how long a stopping queue waits for its requests before it asks the backend to interrupt them.
const drainPatience = 200 * time.Millisecond

// stop takes no more requests and returns when those under way are done, with the avail index to go on from.
func (q *queue) stop() uint16 {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.started = false
	q.nudge()
	for tries := 0; q.inflight > 0 || q.leader != nil; tries++ {
		timer := time.AfterFunc(drainPatience, func() {
			q.dev.backend.Interrupt()
			q.mu.Lock()
			q.still.Broadcast()
			q.mu.Unlock()
		})
		q.still.Wait()
		timer.Stop()
	}
	if q.ring.Size() != 0 {
		q.base = q.ring.Base()
		q.ring = virtqueue.Ring{}
	}
	return q.base
}

// close ends the workers.
func (q *queue) close() {
	q.stop()
	q.mu.Lock()
	q.closed = true
	q.nudge()
	q.mu.Unlock()
}

// fail gives the ring up, as it cannot be interpreted any more, and tells the front-end. The caller holds mu.
func (q *queue) fail(err error) {
	q.broken = true
	q.dev.log.Error("queue stopped", "queue", q.index, "err", err)
	if q.errfd >= 0 {
		one := [8]byte{1}
		unix.Write(q.errfd, one[:])
	}
}

// rescue turns a panic into errFault or, for a defect of ours, an error with the stack.
func rescue(err *error) {
	switch r := recover().(type) {
	case nil:
	case interface{ Addr() uintptr }: // runtime's error for a memory fault
		*err = fmt.Errorf("%w at host address %#x", errFault, r.Addr())
	default:
		*err = fmt.Errorf("defect: %v\n%s", r, debug.Stack())
	}
}

// run is the life of a worker.
func (w *worker) run() {
	runtime.LockOSThread() // never unlocked: the thread, whose credentials we may have changed, ends with the goroutine
	debug.SetPanicOnFault(true)
	q := w.q
	var err error
	w.handler, err = q.dev.backend.NewHandler(q.index)
	q.mu.Lock()
	defer q.mu.Unlock()
	defer func() {
		delete(q.workers, w)
	}()
	if err != nil {
		q.fail(fmt.Errorf("make a worker: %w", err))
		return
	}
	defer w.handler.Close()
	for !q.closed {
		if q.leader == nil && q.running() {
			q.leader = w
			w.lead()
			if q.leader == w {
				q.leader = nil
				q.still.Broadcast()
			}
			continue
		}
		if q.spares >= maxSpares {
			return
		}
		q.spares++
		q.vacant.Wait()
		q.spares--
	}
}

// pass gives the leadership to a spare, or to a new worker where that is allowed. The caller holds mu and has it still afterwards.
func (q *queue) pass(limit int) {
	switch {
	case q.spares > 0:
		q.leader = nil
		q.vacant.Signal()
	case len(q.workers) < limit:
		q.leader = nil
		q.hire()
	}
}

// lead takes and serves requests until the queue stops or another worker leads. The caller holds mu, before and after.
func (w *worker) lead() {
	q := w.q
	var head uint16
	var used uint32
	done := false // a request was served and is to be pushed
	for {
		next, ok, signal, err := w.cycle(done, head, used)
		done = false
		if signal && q.call >= 0 {
			one := [8]byte{1}
			unix.Write(q.call, one[:])
			q.counters.Signals++
		}
		switch {
		case errors.Is(err, virtqueue.ErrHead):
			q.counters.Malformed++
			q.dev.complain(q.index, err)
			continue
		case err != nil:
			q.fail(err)
			return
		case q.leader != w || !q.running():
			return
		case !ok:
			w.rest()
			continue
		}
		head = next
		layout := q.ring.Layout
		w.serial++
		w.serving, w.mem = true, q.ring.Mem()
		q.inflight++
		q.counters.Requests++
		q.mu.Unlock()

		used, err = w.serve(&layout, head)

		q.mu.Lock()
		w.serving, w.mem = false, nil
		q.inflight--
		if q.inflight == 0 && !q.started {
			q.still.Broadcast()
		}
		done = true
		if err != nil {
			if errors.Is(err, errMalformed) {
				q.counters.Malformed++
			} else {
				q.counters.Faults++
			}
			q.dev.complain(q.index, err)
		}
	}
}

// cycle is all that has to be done with the ring between two requests: it pushes the one that is done, says whether the driver is to be
// interrupted, and takes the next.
func (w *worker) cycle(done bool, head uint16, used uint32) (next uint16, ok, signal bool, err error) {
	defer rescue(&err)
	q := w.q
	if done && q.ring.Size() != 0 && !q.broken {
		q.ring.Push(head, used)
		signal = q.ring.MustSignal()
	}
	if q.leader != w || !q.running() {
		return 0, false, signal, nil
	}
	next, ok, err = q.ring.Next()
	return next, ok, signal, err
}

// errMalformed marks chains that made no sense.
var errMalformed = errors.New("malformed request")

// serve walks the chain and has it served; the queue's mutex is not held.
func (w *worker) serve(layout *virtqueue.Layout, head uint16) (used uint32, err error) {
	defer w.rescue(&used, &err)
	if err := layout.Walk(head, &w.chain); err != nil {
		return 0, fmt.Errorf("%w: %w", errMalformed, err)
	}
	q := w.q
	if q.dev.cfg.Workers > 1 && w.chain.Bytes >= largeRequest {
		q.mu.Lock()
		if n, err := w.pending(); err == nil && n > 0 && q.leader == w && q.running() {
			q.pass(q.dev.cfg.Workers)
		}
		q.mu.Unlock()
	}
	return w.handler.Serve(w.chain.In, w.chain.Out), nil
}

func (w *worker) rescue(used *uint32, err *error) {
	if r := recover(); r != nil {
		*used = 0
		func() {
			defer rescue(err)
			panic(r)
		}()
		w.handler.Abort()
	}
}

func (w *worker) pending() (n int, err error) {
	defer rescue(&err)
	return w.q.ring.Pending(true)
}

func (w *worker) listen() (more bool, err error) {
	defer rescue(&err)
	return w.q.ring.Listen()
}

func (w *worker) quiet() (err error) {
	defer rescue(&err)
	w.q.ring.Quiet()
	return nil
}

// rest is what a leader does with an empty ring: it polls for a while, then sleeps until it is kicked or nudged. The caller holds mu,
// before and after; errors show up when the ring is used next.
func (w *worker) rest() {
	q := w.q
	if w.poll > 0 {
		for end := time.Now().Add(w.poll); ; {
			q.mu.Unlock()
			virtqueue.Relax()
			late := time.Now().After(end)
			q.mu.Lock()
			if q.leader != w || !q.running() {
				return
			}
			if n, err := w.pending(); n > 0 || err != nil {
				q.counters.PollHits++
				return
			}
			if late {
				break
			}
		}
	}
	if more, err := w.listen(); more || err != nil {
		return
	}
	timeout := -1
	if q.kickless {
		timeout = 1
	}
	q.counters.Sleeps++
	q.mu.Unlock()

	began := time.Now()
	var ev [2]unix.EpollEvent
	n, _ := unix.EpollWait(q.epoll, ev[:], timeout)
	for _, e := range ev[:max(n, 0)] {
		if int(e.Fd) == q.wake {
			var b [8]byte
			unix.Read(q.wake, b[:])
		}
	}
	slept := time.Since(began)
	q.dev.monitor.awake()

	q.mu.Lock()
	if q.leader == w && q.running() {
		w.quiet()
	}
	w.adapt(slept)
}

// adapt sets the polling time by how long the sleep was that polling could have saved, as the kernel's halt polling does
// (virt/kvm/kvm_main.c): short sleeps double it, long ones halve it.
func (w *worker) adapt(slept time.Duration) {
	most := w.q.dev.cfg.Poll
	switch {
	case slept <= most:
		w.poll = min(max(2*w.poll, pollStart), most)
	case w.poll > pollStart:
		w.poll /= 2
	default:
		w.poll = 0
	}
}

// setFD puts an eventfd of the front-end into one of the queue's places and closes what was there.
func (q *queue) setFD(place *int, fd int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if *place >= 0 {
		unix.Close(*place)
	}
	*place = fd
}

// setKick changes the eventfd that the leader waits for; -1 asks for polling instead.
func (q *queue) setKick(fd int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.kick >= 0 {
		// Closing alone would leave it in the epoll, as the front-end has the eventfd open too.
		_ = unix.EpollCtl(q.epoll, unix.EPOLL_CTL_DEL, q.kick, nil)
		unix.Close(q.kick)
		q.kick = -1
	}
	if fd >= 0 {
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
		if err := unix.EpollCtl(q.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			unix.Close(fd)
			return fmt.Errorf("queue %d: wait for its kick descriptor: %w", q.index, err)
		}
		q.kick = fd
	}
	q.kickless = fd < 0
	q.nudge()
	return nil
}

// snapshot returns the queue's counters.
func (q *queue) snapshot() Counters {
	q.mu.Lock()
	defer q.mu.Unlock()
	c := q.counters
	c.Workers = len(q.workers)
	return c
}

// ringOf checks a ring's addresses against memory before the queue starts, so that a front-end's mistake is told at once.
func ringOf(mem *guestmem.Table, a vhostabi.VringAddr, size uint32) (virtqueue.Addresses, error) {
	at := virtqueue.Addresses{Desc: a.Desc, Avail: a.Avail, Used: a.Used}
	var r virtqueue.Ring
	if size == 0 {
		size = 1
	}
	return at, r.Move(mem, at, size)
}
