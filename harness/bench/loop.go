package bench

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// step is one prepared request. Args, Out and Data are views of guest memory.
type step struct {
	queue  *fe.Queue
	chain  *fe.Chain
	op     fe.Opcode
	node   []byte   // the header's nodeid
	args   []byte   // first segment behind the header
	status []byte   // the reply's header
	out    []byte   // first segment behind the reply's header
	data   [][]byte // segments behind the arguments

	before   func()      // fills in what depends on earlier replies
	after    func() bool // true goes back
	back     int         // so many steps; 0 repeats this one
	fails    unix.Errno  // the answer that is expected instead of success
	used     uint32      // length of the reply that is expected; 0 = any
	offClock bool        // what begins with this step is cleaning up: it is not measured
}

// lane is a sequence of steps on one queue that repeats; one request of it is outstanding at a time.
type lane struct {
	steps []*step
	at    int
	began int64
	timed bool
}

// job is what one workload does: one lane per request that is outstanding at once.
type job struct {
	lanes []*lane
	items func() int // what an operation counts for; nil = 1
	bytes int        // moved by an operation
	pause int64      // nanoseconds between an operation's end and the next one's beginning
	close func()     // gives back what the harness holds; may be nil
}

// limit says when a job ends.
type limit struct {
	time time.Duration
	ops  int // if positive, instead of time
}

// patience is how long the daemon may take altogether.
func (l limit) patience() time.Duration {
	if l.ops > 0 {
		return 10 * time.Minute
	}
	return l.time + 20*time.Second
}

// measured is what one round of one workload gave.
type measured struct {
	ops, items int
	elapsed    time.Duration
	onClock    time.Duration // sum of latencies
	hist       *hdrhistogram.Histogram
	cpu        time.Duration
	kicks      uint64
	calls      uint64
	err        error
}

// session is a daemon's process and one connection with its open session.
type session struct {
	name  string
	share string // as the harness sees it
	proc  *fe.Process
	pids  []int
	dev   *fe.Device
	fuse  *fe.FUSE
}

// prepare lays a request out for good, on the first request queue.
func (s *session) prepare(r fe.Request) (*step, error) { return s.prepareOn(s.fuse.Queue, r) }

func (s *session) prepareOn(q *fe.Queue, r fe.Request) (*step, error) {
	l, err := s.fuse.Layout(r, s.fuse.NextUnique())
	if err != nil {
		return nil, err
	}
	if r.Op == fe.OpForget {
		q = s.dev.Queues[0]
	}
	c, err := q.Prepare(l.Segs())
	if err != nil {
		return nil, err
	}
	st := &step{queue: q, chain: c, op: r.Op}
	m := s.dev.Memory
	st.node = m.Bytes(l.In[0].Addr+16, 8)
	if len(l.In) > 1 {
		st.args = m.Bytes(l.In[1].Addr, int(l.In[1].Len))
	}
	for i := 2; i < len(l.In); i++ {
		st.data = append(st.data, m.Bytes(l.In[i].Addr, int(l.In[i].Len)))
	}
	if len(l.Out) > 0 {
		st.status = m.Bytes(l.Out[0].Addr, fe.OutHeaderSize)
	}
	if len(l.Out) > 1 {
		st.out = m.Bytes(l.Out[1].Addr, int(l.Out[1].Len))
	}
	return st, nil
}

var zero = time.Now()

func now() int64 { return int64(time.Since(zero)) }

// run does the job up to its limit and reports. It must not be called for two jobs of one device at once.
func (s *session) run(j *job, until limit, hist *hdrhistogram.Histogram) (m measured) {
	defer s.dev.Watch(until.patience())()
	var queues []*fe.Queue
	on := map[*fe.Queue][]*lane{}
	for _, l := range j.lanes {
		q := l.steps[0].queue
		if on[q] == nil {
			queues = append(queues, q)
		}
		on[q] = append(on[q], l)
	}
	hist.Reset()
	// Each queue has a thread, as it has a processor in a guest. One alone needs no other thread, whose start would be on the clock.
	parts := make([]measured, len(queues))
	hists := []*hdrhistogram.Histogram{hist}
	for range queues[1:] {
		hists = append(hists, hdrhistogram.New(hist.LowestTrackableValue(), hist.HighestTrackableValue(), int(hist.SignificantFigures())))
	}
	until.ops = (until.ops + len(queues) - 1) / len(queues)
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	cpu := s.cpu()
	var others sync.WaitGroup
	for i, q := range queues[1:] {
		others.Go(func() { parts[1+i] = s.drive(j, q, on[q], until, hists[1+i]) })
	}
	parts[0] = s.drive(j, queues[0], on[queues[0]], until, hist)
	others.Wait()
	m = measured{hist: hist, cpu: s.cpu() - cpu}
	for i, p := range parts {
		m.elapsed = max(m.elapsed, p.elapsed)
		m.ops, m.items, m.onClock = m.ops+p.ops, m.items+p.items, m.onClock+p.onClock
		m.kicks, m.calls = m.kicks+p.kicks, m.calls+p.calls
		if m.err == nil {
			m.err = p.err
		}
		if i > 0 {
			hist.Merge(hists[i])
		}
	}
	return m
}

// drive does the lanes of one queue.
func (s *session) drive(j *job, queue *fe.Queue, lanes []*lane, until limit, hist *hdrhistogram.Histogram) (m measured) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	byHead := make([]*lane, queue.Size)
	kicks, calls := queue.Kicks, queue.Calls
	start := now()
	end := start + int64(until.time)
	over := func(t int64) bool {
		if until.ops > 0 {
			return m.ops >= until.ops
		}
		return t >= end
	}
	for _, l := range lanes {
		l.at, l.began, l.timed = 0, start, true
		post(l, byHead)
	}
	queue.Publish()
	for live := len(lanes); live > 0; {
		c, err := queue.Reap()
		if err != nil {
			m.err = err
			return m
		}
		if c == nil {
			queue.Publish()
			if !queue.Pending() && !queue.Wait() {
				m.err = fmt.Errorf("the daemon stopped answering after %d operations", m.ops)
				return m
			}
			continue
		}
		l := byHead[c.Head]
		st := l.steps[l.at]
		if m.err = st.check(); m.err != nil {
			return m
		}
		if st.after != nil && st.after() {
			l.at -= st.back
		} else {
			l.at++
		}
		done := l.at == len(l.steps)
		t := now()
		if l.timed && (done || l.steps[l.at].offClock) {
			l.timed = false
			m.ops++
			n := 1
			if j.items != nil {
				n = j.items()
			}
			m.items += n
			m.onClock += time.Duration(t - l.began)
			hist.RecordValue(t - l.began)
		}
		if done {
			if over(t) {
				live--
				continue
			}
			l.at, l.began, l.timed = 0, rest(j.pause, t), true
		}
		next := l.steps[l.at]
		if next.queue != queue {
			// A sequence that changes queues runs alone (depth 1): wait on the other one.
			if m.err = s.aside(l); m.err != nil {
				return m
			}
			if l.at == len(l.steps) {
				if t = now(); l.timed {
					l.timed = false
					m.ops++
					m.items++
					m.onClock += time.Duration(t - l.began)
					hist.RecordValue(t - l.began)
				}
				if over(t) {
					live--
					continue
				}
				l.at, l.began, l.timed = 0, rest(j.pause, t), true
			}
		}
		post(l, byHead)
	}
	m.elapsed = time.Duration(now() - start)
	m.kicks, m.calls = queue.Kicks-kicks, queue.Calls-calls
	return m
}

// rest sleeps and returns the time then: t if there is nothing to sleep.
func rest(pause, t int64) int64 {
	if pause == 0 {
		return t
	}
	ts := unix.NsecToTimespec(pause)
	_ = unix.Nanosleep(&ts, nil) // a signal of Go's scheduler may end it early
	return now()
}

func post(l *lane, byHead []*lane) {
	st := l.steps[l.at]
	if st.before != nil {
		st.before()
	}
	byHead[st.chain.Head] = l
	st.queue.Post(st.chain)
}

// aside runs steps of another queue until the lane is back on its own or at its end.
func (s *session) aside(l *lane) error {
	own := l.steps[0].queue
	for l.at < len(l.steps) && l.steps[l.at].queue != own {
		st := l.steps[l.at]
		if st.before != nil {
			st.before()
		}
		st.queue.Post(st.chain)
		st.queue.Publish()
		for {
			c, err := st.queue.Reap()
			if err != nil {
				return err
			}
			if c != nil {
				break
			}
			if !st.queue.Wait() {
				return fmt.Errorf("the daemon stopped answering %v", st.op)
			}
		}
		l.at++
	}
	return nil
}

func (st *step) check() error {
	if st.status == nil {
		return nil
	}
	if st.chain.Used < fe.OutHeaderSize {
		return fmt.Errorf("%v: completed with length %d", st.op, st.chain.Used)
	}
	switch code := unix.Errno(-int32(binary.LittleEndian.Uint32(st.status[4:]))); {
	case code != st.fails && code != 0:
		return fmt.Errorf("%v: %w", st.op, code)
	case code != st.fails:
		return fmt.Errorf("%v: success, not %w", st.op, st.fails)
	case st.used != 0 && st.chain.Used != st.used:
		return fmt.Errorf("%v: completed with length %d, not %d", st.op, st.chain.Used, st.used)
	}
	return nil
}

// floor measures an eventfd there and back between two threads that sleep: what a request at depth 1 costs in wake-ups alone.
func floor(d time.Duration, hist *hdrhistogram.Histogram) error {
	a, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	defer unix.Close(a)
	b, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	defer unix.Close(b)
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		var buf [8]byte
		for {
			unix.Read(a, buf[:])
			select {
			case <-stop:
				return
			default:
			}
			unix.Write(b, one[:])
		}
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	hist.Reset()
	var buf [8]byte
	for began := time.Now(); time.Since(began) < d; {
		t := now()
		unix.Write(a, one[:])
		unix.Read(b, buf[:])
		hist.RecordValue(now() - t)
	}
	close(stop)
	unix.Write(a, one[:])
	<-ended
	return nil
}
