package vhostuser

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/sys"
	"virtiofsd/internal/vhostabi"
	"virtiofsd/internal/virtqueue"
)

// keptSpares is how many idle workers a queue keeps when it is silent. More come only when many were needed at once.
const keptSpares = 2

// queue is one vring and its workers.
type queue struct {
	dev    *device
	index  int
	epoll  int  // waits for kick and wake
	wake   int  // eventfd by which control gets a leader out of its sleep
	spring int  // eventfd, a semaphore, in which spare workers block
	begun  bool // it was given a kick descriptor once; the goroutine's that reads messages

	mu    sys.Mutex
	still sync.Cond // stop waits on it for the workers to come to rest

	ring  virtqueue.Ring
	size  uint32
	addrs virtqueue.Addresses
	base  uint16

	kick        int // eventfd of the front-end, -1 for none; not guarded, but only for who reads messages
	call, errfd *eventFD
	kickless    bool // the front-end asked for polling
	enabled     bool
	started     bool
	broken      bool
	closed      bool
	tell        coalescer
	telling     *eventFD // what somebody writes to for the monitor, or nil

	leader    *worker     // who polls and sleeps, or will when its request is done
	asleep    bool        // the leader sleeps
	hidden    atomic.Bool // unseen by Go's scheduler
	lasts     atomic.Bool // the monitor says that such a sleep lasts
	poll      time.Duration
	brisk     bool          // the last sleep was short
	pollAgain time.Time     // no polling before
	pause     time.Duration // the last one of polling
	credit    int           // of hits of polling, see adapt
	unshared  int           // how many more large replies are not to be shared
	backoff   int           // what unshared was set to last
	want      int           // how many workers shall be at work while requests wait; the monitor's to set
	active    int           // workers at work: leading, serving or about to
	inflight  int           // requests being served
	workers   map[*worker]struct{}
	spares    int // workers blocked in spring, less those that were called already
	dismiss   int // how many of those called shall end
	counters  Counters
}

// eventFD is an eventfd of the front-end that workers write to while they do not hold the queue's
// mutex. Replaced, it is closed when the last writer is done. Its count is guarded by the queue's
// mutex, under which it is never closed: it is the front-end's, and might block.
type eventFD struct{ fd, refs int }

func (e *eventFD) hold() *eventFD { e.refs++; return e }

// release returns the descriptor if it is to be closed, or -1.
func (e *eventFD) release() (fd int) {
	if e == nil {
		return -1
	}
	if e.refs--; e.refs > 0 {
		return -1
	}
	return e.fd
}

func (e *eventFD) signal() { ring(e.fd, 1) } // EAGAIN: its count is at its most, so the reader was told

// ring adds n to an eventfd.
func ring(fd int, n int) {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], uint64(n))
	unix.Write(fd, b[:])
}

func newQueue(d *device, index int) *queue {
	q := &queue{dev: d, index: index, epoll: -1, wake: -1, spring: -1, kick: -1, want: 1, workers: map[*worker]struct{}{}}
	q.still.L = &q.mu
	return q
}

// open makes the queue's own descriptors, which a queue that is never used does without. The caller holds mu.
func (q *queue) open() error {
	if q.spring >= 0 {
		return nil
	}
	err := func() (err error) {
		if q.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
			return err
		}
		if q.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			return err
		}
		if err = unix.EpollCtl(q.epoll, unix.EPOLL_CTL_ADD, q.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(q.wake)}); err != nil {
			return err
		}
		q.spring, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_SEMAPHORE)
		return err
	}()
	if err != nil {
		closeAll(&q.epoll, &q.wake)
		return fmt.Errorf("queue %d: make its descriptors: %w; raise the limit of open files", q.index, err)
	}
	return nil
}

func closeAll(fds ...*int) {
	for _, fd := range fds {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// closeFDs is for the end, when no worker is left.
func (q *queue) closeFDs() {
	q.mu.Lock()
	call, errfd := q.call.release(), q.errfd.release()
	q.call, q.errfd = nil, nil
	q.mu.Unlock()
	closeAll(&q.epoll, &q.wake, &q.spring, &q.kick, &call, &errfd)
}

// running reports whether requests may be taken. The caller holds mu.
func (q *queue) running() bool { return q.started && q.enabled && !q.broken && !q.closed }

// nudge gets all workers to look at the queue's state again. The caller holds mu.
func (q *queue) nudge() {
	if q.leader != nil {
		ring(q.wake, 1) // EAGAIN: it is awake already
	}
	q.rouse(q.spares)
}

// rouse calls n spares. The caller holds mu.
func (q *queue) rouse(n int) {
	if n > 0 {
		q.spares -= n
		ring(q.spring, n)
	}
}

// wait blocks a spare worker until it is called, and reports whether it is to go on. The caller holds mu, before and after. The thread
// blocks in the kernel and not in Go's scheduler, which would take two wake-ups to get a locked goroutine going.
func (q *queue) wait() bool {
	q.spares++
	q.mu.Unlock()
	var b [8]byte
	for {
		if _, err := unix.Read(q.spring, b[:]); err != unix.EINTR {
			break
		}
	}
	q.mu.Lock()
	if q.dismiss > 0 {
		q.dismiss--
		return false
	}
	return true
}

// call1 gets a spare, or a new worker if there are fewer than limit, to work. The caller holds mu.
func (q *queue) call1(limit int) bool {
	switch {
	case q.spares > 0:
		q.rouse(1)
	case len(q.workers) < limit:
		return q.hire()
	default:
		return false
	}
	return true
}

// help gets one more worker to work if more are wanted and requests wait. The caller holds mu.
func (q *queue) help() {
	if n, err := q.pending(); err == nil && n > 0 && q.active < q.want && q.running() {
		q.call1(q.want)
	}
}

// trim ends all spares but some to keep, and never the last worker. The caller holds mu.
func (q *queue) trim(keep int) {
	if n := min(q.spares-keep, len(q.workers)-q.dismiss-1); n > 0 {
		q.dismiss += n
		q.rouse(n)
	}
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
		q.started, q.broken, q.want, q.poll, q.tell = true, false, 1, 0, coalescer{}
	}
	q.staff()
	q.nudge()
	return nil
}

func (q *queue) setup(mem *guestmem.Table, f virtqueue.Features) (err error) {
	defer rescue(&err, guestmem.Touch())
	return q.ring.Setup(mem, q.addrs, q.size, q.base, f)
}

// pending is how many requests wait in the ring. The caller holds mu.
func (q *queue) pending() (n int, err error) {
	defer rescue(&err, guestmem.Touch())
	return q.ring.Pending(true)
}

// staff makes the first worker. The caller holds mu.
func (q *queue) staff() {
	if len(q.workers) == 0 && q.running() {
		q.hire()
	}
}

// hire makes one more worker, if the process may have one more thread. A queue's first one it
// always may. The caller holds mu.
func (q *queue) hire() bool {
	if len(q.workers) > 0 && !q.dev.more() {
		return false
	}
	w := &worker{q: q}
	q.workers[w] = struct{}{}
	q.dev.workers.Go(w.run)
	return true
}

// quit takes a worker out, which is about to end. The caller holds mu.
func (q *queue) quit(w *worker) {
	delete(q.workers, w)
	if len(q.workers) > 0 {
		q.dev.extras.Add(-1)
	}
}

// move puts the ring into another memory table. What is under way keeps its old one.
func (q *queue) move(mem *guestmem.Table) {
	q.mu.Lock()
	var out aftermath
	if q.started && !q.broken {
		if err := q.ring.Move(mem, q.addrs, q.size); err != nil {
			out = q.fail(err)
		}
	}
	if e := out.errfd; e != nil {
		out.errfd = nil
		go q.apart(&aftermath{errfd: e}) // a message is not held up by it
	}
	q.mu.Unlock()
	out.do(q)
}

// apart does what is left to do in a goroutine of its own: a descriptor of the front-end's may
// block.
func (q *queue) apart(out *aftermath) {
	out.do(q)
	q.mu.Lock()
	if q.telling == out.call {
		q.telling = nil
	}
	out.done()
	q.mu.Unlock()
}

// uses reports whether a request under way still stands in a table that was replaced. The ring
// itself was moved.
func (q *queue) uses(mem *guestmem.Table) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for w := range q.workers {
		if w.mem == mem {
			return true
		}
	}
	return false
}

// drainPatience is how long a stopping queue waits for its requests before it asks the backend to interrupt them, and how often it then
// asks giveUp.
const drainPatience = 200 * time.Millisecond

// halt has the queue take no more requests.
func (q *queue) halt() {
	q.mu.Lock()
	q.started = false
	q.nudge()
	q.mu.Unlock()
}

// stop halts the queue and returns, when the requests under way are done, the avail index to go on from. giveUp, asked now and then,
// ends the wait by an error; the queue is halted then, but some of its workers are still inside a request.
func (q *queue) stop(giveUp func() error) (uint16, error) {
	q.halt()
	q.mu.Lock()
	defer q.mu.Unlock()
	began := time.Now()
	for q.active > 0 {
		timer := time.AfterFunc(drainPatience, func() {
			q.mu.Lock()
			q.still.Broadcast()
			q.mu.Unlock()
		})
		q.still.Wait()
		timer.Stop()
		if q.active > 0 && time.Since(began) >= drainPatience {
			n := q.inflight
			q.mu.Unlock()
			q.dev.backend.Interrupt(q.index)
			err := giveUp()
			q.mu.Lock()
			if err != nil {
				return 0, fmt.Errorf("queue %d: %d requests do not end: %w", q.index, n, err)
			}
		}
	}
	if q.ring.Size() != 0 {
		q.base = q.ring.Base()
		q.ring = virtqueue.Ring{}
	}
	return q.base, nil
}

// close ends the workers.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.nudge()
	q.mu.Unlock()
}

// fail gives the ring up, as it cannot be interpreted any more. What it returns tells the front-end. The caller holds mu.
func (q *queue) fail(err error) (out aftermath) {
	q.broken = true
	out.failed = err
	if q.errfd != nil {
		out.errfd = q.errfd.hold()
	}
	return out
}

// setEvent puts an eventfd of the front-end into one of the queue's places; fd -1 empties it.
func (q *queue) setEvent(place **eventFD, fd int) {
	var e *eventFD
	if fd >= 0 {
		e = &eventFD{fd: fd, refs: 1}
	}
	q.mu.Lock()
	old := (*place).release()
	*place = e
	q.mu.Unlock()
	closeAll(&old)
}

// setKick changes the eventfd that the leader waits for; -1 asks for polling instead.
func (q *queue) setKick(fd int) error {
	q.mu.Lock()
	err := q.open()
	q.mu.Unlock()
	if err != nil {
		closeAll(&fd)
		return err
	}
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
	q.mu.Lock()
	defer q.mu.Unlock()
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
