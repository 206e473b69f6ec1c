package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/vhostabi"
	"virtiofsd/internal/virtqueue"
)

// features are the virtio features offered. VHOST_F_LOG_ALL comes with migration.
const features = vhostabi.FeatureVersion1 | vhostabi.FeatureIndirectDesc | vhostabi.FeatureEventIdx | vhostabi.FeatureProtocolFeatures

// protocolFeatures are the protocol features offered; CONFIG is added where there is a tag to show. The places of INFLIGHT_SHMFD,
// LOG_SHMFD and DEVICE_STATE are in dispatch.
const protocolFeatures = vhostabi.ProtocolMQ | vhostabi.ProtocolReplyAck | vhostabi.ProtocolBackendReq | vhostabi.ProtocolBackendSendFD |
	vhostabi.ProtocolResetDevice | vhostabi.ProtocolConfigureMemSlots | vhostabi.ProtocolStatus

// device is what one front-end has set up over one connection.
type device struct {
	ctx     context.Context
	cfg     Config
	backend Backend
	log     *slog.Logger
	conn    *Conn
	monitor *monitor
	workers sync.WaitGroup
	queues  []*queue

	processors int // that there are for our threads

	held   atomic.Int32           // leaders in sleeps that are hidden from Go's scheduler
	most   int32                  // extras there may be, 0 for any number
	extras atomic.Int32           // workers beyond the first of each queue
	short  atomic.Bool            // a queue whose leader is blocked got no other
	minder atomic.Pointer[worker] // who minds the high-priority queue; written with that queue's mu held

	// All below belongs to the goroutine that reads messages.
	features   uint64
	protocol   uint64
	status     uint8
	begun      int // queues that were started at any time
	mem        *guestmem.Table
	retired    []*guestmem.Table // replaced, perhaps still used by requests under way
	backendReq int

	complaints complaints
}

// Stats gives the counters of a device that is being served, by queue; index 0 is the high-priority queue.
type Stats func() []Counters

// Serve serves one front-end until it leaves (nil), ctx ends (nil, requests under way being finished first), or it breaks the
// protocol (the error says how). The connection is closed in any case. started, if not nil, gets the counters' source.
//
// An error that is [ErrStuck] says that requests do not end: threads of the device still work in the backend and in guest memory, and
// the process should end.
func Serve(ctx context.Context, c *Conn, b Backend, cfg Config, started func(Stats)) (err error) {
	defer c.Close()
	d := &device{ctx: ctx, cfg: cfg.withDefaults(), backend: b, log: cfg.Logger, conn: c, mem: &guestmem.Table{}, backendReq: -1, processors: runtime.NumCPU()}
	d.most, d.cfg.MaxRequestQueues = int32(d.cfg.Extras()), d.cfg.Queues()
	d.monitor = newMonitor(d)
	defer func() {
		if stuck := d.shutdown(); stuck != nil {
			err = errors.Join(err, stuck)
		}
	}()
	for i := range d.cfg.MaxRequestQueues + 1 {
		d.queues = append(d.queues, newQueue(d, i))
	}
	d.workers.Go(d.monitor.run)
	if started != nil {
		started(d.stats)
	}

	if c.stop, err = newBell(); err != nil {
		return err
	}
	defer c.stop.close()
	defer context.AfterFunc(ctx, c.stop.ring)()
	for {
		m, err := c.receive()
		if err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return err
		}
		err = d.handle(&m)
		m.closeFDs()
		switch {
		case ctx.Err() != nil, errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// more counts one more worker, or reports that there may be no more.
func (d *device) more() bool {
	if n := d.extras.Add(1); d.most > 0 && n > d.most {
		d.extras.Add(-1)
		return false
	}
	return true
}

// ErrStuck says that requests under way did not end when they had to.
var ErrStuck = errors.New("they are stuck in the host's file system")

// How long requests under way may take to end once the front-end has left, and once the process is to end.
const (
	leftPatience = 10 * time.Second
	stopPatience = 800 * time.Millisecond
)

// shutdown ends the queues, waits for their workers, and gives everything back; where workers do not end, nothing.
func (d *device) shutdown() error {
	for _, q := range d.queues {
		q.halt()
	}
	until := time.Now().Add(leftPatience)
	giveUp := func() error {
		if d.ctx.Err() != nil {
			if latest := time.Now().Add(stopPatience - drainPatience); latest.Before(until) {
				until = latest
			}
		}
		if time.Now().After(until) {
			return ErrStuck
		}
		return nil
	}
	var stuck error
	for _, q := range d.queues {
		if _, err := q.stop(giveUp); err != nil {
			stuck = errors.Join(stuck, err)
		}
		q.close()
	}
	close(d.monitor.quit)
	for i, c := range d.stats() {
		if c.Requests > 0 {
			d.log.Debug("queue ends", "queue", i, "counters", c)
		}
	}
	if stuck != nil {
		return stuck
	}
	ended := make(chan struct{})
	go func() { d.workers.Wait(); close(ended) }()
	for waits := true; waits; {
		select {
		case <-ended:
			waits = false
		case <-time.After(drainPatience): // one is stuck outside of requests, in what they left
			if err := giveUp(); err != nil {
				return err
			}
		}
	}
	d.backend.Reset()
	for _, q := range d.queues {
		q.closeFDs()
	}
	if d.backendReq >= 0 {
		unix.Close(d.backendReq)
	}
	for _, t := range append(d.retired, d.mem) {
		t.Drop()
	}
	return nil
}

// goOn is asked while a message waits for requests to end: there is no bound to that, a front-end that waits for its ring wants it
// whole, but nobody has to wait for a front-end that has left, or when the process is to end.
func (d *device) goOn() error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	if d.conn.gone() {
		return io.EOF
	}
	return nil
}

func (d *device) stats() []Counters {
	all := make([]Counters, len(d.queues))
	for i, q := range d.queues {
		all[i] = q.snapshot()
	}
	return all
}

// handle acts on one message and answers it. A message that is wrong is refused with a reply where the front-end asked for one, and ends
// the connection where it did not: it would go on believing.
func (d *device) handle(m *message) error {
	d.log.Debug("message", "request", m.Request, "size", m.Size, "fds", len(m.fds))
	reply, err := d.dispatch(m)
	d.reap() // before the answer: a front-end that removed memory may count on its being gone
	if err != nil {
		err = fmt.Errorf("%v: %w", m.Request, err)
	}
	switch {
	case reply != nil && err == nil:
		return d.conn.reply(m, reply)
	case m.Request == vhostabi.GetConfig && err != nil:
		d.log.Error("message refused", "err", err)
		return d.conn.reply(m, nil) // "a zero-size payload indicates an error"
	case errors.Is(err, io.EOF), hasReply[m.Request]:
		return err // what would be sent as a status would be taken for the reply
	case !m.NeedReply() || d.protocol&vhostabi.ProtocolReplyAck == 0:
		return err
	}
	status := vhostabi.U64(0)
	if err != nil {
		d.log.Error("message refused", "err", err)
		status = 1
	}
	return d.conn.reply(m, status.AppendTo(nil))
}

// dispatch returns the reply's payload for requests that have one, nil for the others.
func (d *device) dispatch(m *message) (reply []byte, err error) {
	if want, ok := fdsOf[m.Request]; !ok && len(m.fds) != 0 || ok && len(m.fds) > want {
		return nil, fmt.Errorf("%d descriptors came with it", len(m.fds))
	}
	switch m.Request {
	case vhostabi.GetFeatures:
		return vhostabi.U64(features).AppendTo(nil), d.empty(m)
	case vhostabi.SetFeatures:
		return nil, d.setFeatures(m)
	case vhostabi.GetProtocolFeatures:
		return vhostabi.U64(d.offered()).AppendTo(nil), d.empty(m)
	case vhostabi.SetProtocolFeatures:
		return nil, d.setProtocolFeatures(m)
	case vhostabi.GetQueueNum:
		return vhostabi.U64(len(d.queues)).AppendTo(nil), d.empty(m)
	case vhostabi.GetMaxMemSlots:
		return vhostabi.U64(guestmem.MaxRegions).AppendTo(nil), d.empty(m)
	case vhostabi.SetOwner:
		return nil, d.empty(m)
	case vhostabi.ResetOwner, vhostabi.ResetDevice:
		if err := d.empty(m); err != nil {
			return nil, err
		}
		return nil, d.reset()
	case vhostabi.SetMemTable:
		return nil, d.setMemTable(m)
	case vhostabi.AddMemReg:
		return nil, d.addMemReg(m)
	case vhostabi.RemMemReg:
		return nil, d.remMemReg(m)
	case vhostabi.SetVringNum, vhostabi.SetVringBase, vhostabi.SetVringEnable, vhostabi.GetVringBase:
		return d.vringState(m)
	case vhostabi.SetVringAddr:
		return nil, d.setVringAddr(m)
	case vhostabi.SetVringKick, vhostabi.SetVringCall, vhostabi.SetVringErr:
		return nil, d.setVringFD(m)
	case vhostabi.SetBackendReqFD:
		if len(m.fds) != 1 {
			return nil, fmt.Errorf("%d descriptors, not 1", len(m.fds))
		}
		if d.backendReq >= 0 {
			unix.Close(d.backendReq)
		}
		d.backendReq = m.take()
		return nil, nil
	case vhostabi.GetConfig:
		return d.getConfig(m)
	case vhostabi.SetStatus:
		return nil, d.setStatus(m)
	case vhostabi.GetStatus:
		return vhostabi.U64(d.status).AppendTo(nil), d.empty(m)
	}
	// Migration's messages (GET_INFLIGHT_FD, SET_LOG_BASE, SET_DEVICE_STATE_FD, …) have their place here; nothing announces them.
	return nil, errors.New("not supported by this device, and not announced")
}

// fdsOf is how many descriptors may come with a request; those not listed carry none.
var fdsOf = map[vhostabi.Request]int{
	vhostabi.SetMemTable: vhostabi.MaxFDs, vhostabi.AddMemReg: 1, vhostabi.SetVringKick: 1, vhostabi.SetVringCall: 1,
	vhostabi.SetVringErr: 1, vhostabi.SetBackendReqFD: 1,
}

// hasReply are the requests whose reply is not a status.
var hasReply = map[vhostabi.Request]bool{
	vhostabi.GetFeatures: true, vhostabi.GetProtocolFeatures: true, vhostabi.GetQueueNum: true, vhostabi.GetVringBase: true,
	vhostabi.GetConfig: true, vhostabi.GetMaxMemSlots: true, vhostabi.GetStatus: true, vhostabi.GetInflightFD: true,
	vhostabi.SetLogBase: true, vhostabi.GetSharedObject: true, vhostabi.SetDeviceStateFD: true, vhostabi.CheckDeviceState: true,
	vhostabi.PostcopyAdvise: true, vhostabi.PostcopyEnd: true, vhostabi.CreateCryptoSession: true,
}

func (d *device) empty(m *message) error {
	if m.Size != 0 {
		return fmt.Errorf("payload of %d bytes, not 0", m.Size)
	}
	return nil
}

func (d *device) setFeatures(m *message) error {
	var f vhostabi.U64
	if err := f.Unmarshal(m.payload); err != nil {
		return err
	}
	if extra := uint64(f) &^ features; extra != 0 {
		return fmt.Errorf("features %#x were not offered", extra)
	}
	d.features = uint64(f)
	return nil
}

func (d *device) offered() uint64 {
	if d.cfg.Tag != "" {
		return protocolFeatures | vhostabi.ProtocolConfig
	}
	return protocolFeatures
}

func (d *device) setProtocolFeatures(m *message) error {
	var f vhostabi.U64
	if err := f.Unmarshal(m.payload); err != nil {
		return err
	}
	if extra := uint64(f) &^ d.offered(); extra != 0 {
		return fmt.Errorf("protocol features %#x were not offered", extra)
	}
	d.protocol = uint64(f)
	return nil
}

// change puts another memory table in place and retires the old one.
func (d *device) change(next *guestmem.Table) {
	old := d.mem
	d.mem = next
	for _, q := range d.queues {
		q.move(next)
	}
	d.retired = append(d.retired, old)
}

// reap drops retired tables that no request uses any more.
func (d *device) reap() {
	kept := d.retired[:0]
	for _, t := range d.retired {
		used := false
		for _, q := range d.queues {
			used = used || q.uses(t)
		}
		if used {
			kept = append(kept, t)
		} else {
			t.Drop()
		}
	}
	d.retired = kept
}

func (d *device) setMemTable(m *message) error {
	var t vhostabi.MemTable
	if err := t.Unmarshal(m.payload); err != nil {
		return err
	}
	if err := t.Validate(len(m.fds)); err != nil {
		return err
	}
	next, err := d.mem.Replace(t, m.fds)
	if err != nil {
		return err
	}
	d.change(next)
	return nil
}

func (d *device) addMemReg(m *message) error {
	var r vhostabi.SingleMemRegion
	if err := r.Unmarshal(m.payload); err != nil {
		return err
	}
	if len(m.fds) != 1 {
		return fmt.Errorf("%d descriptors, not 1", len(m.fds))
	}
	next, err := d.mem.Add(r.MemRegion, m.fds[0])
	if err != nil {
		return err
	}
	d.change(next)
	return nil
}

func (d *device) remMemReg(m *message) error {
	var r vhostabi.SingleMemRegion
	if err := r.Unmarshal(m.payload); err != nil {
		return err
	}
	next, err := d.mem.Remove(r.MemRegion)
	if err != nil {
		return err
	}
	d.change(next)
	return nil
}

func (d *device) queue(index uint32) (*queue, error) {
	if index >= uint32(len(d.queues)) {
		return nil, fmt.Errorf("queue %d: there are %d", index, len(d.queues))
	}
	return d.queues[index], nil
}

func (d *device) ringFeatures() virtqueue.Features {
	return virtqueue.Features{
		EventIdx: d.features&vhostabi.FeatureEventIdx != 0,
		Indirect: d.features&vhostabi.FeatureIndirectDesc != 0,
	}
}

func (d *device) vringState(m *message) ([]byte, error) {
	var s vhostabi.VringState
	if err := s.Unmarshal(m.payload); err != nil {
		return nil, err
	}
	q, err := d.queue(s.Index)
	if err != nil {
		return nil, err
	}
	switch m.Request {
	case vhostabi.GetVringBase:
		base, err := q.stop(d.goOn)
		if err != nil {
			return nil, err
		}
		return vhostabi.VringState{Index: s.Index, Num: uint32(base)}.AppendTo(nil), nil
	case vhostabi.SetVringNum:
		err = s.ValidateNum()
	case vhostabi.SetVringBase:
		err = s.ValidateBase()
	case vhostabi.SetVringEnable:
		err = s.ValidateEnable()
	}
	if err != nil {
		return nil, fmt.Errorf("queue %d: %w", s.Index, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case m.Request == vhostabi.SetVringEnable:
		q.enabled = s.Num == 1
		q.staff()
		q.nudge()
	case q.started:
		return nil, fmt.Errorf("queue %d runs: stop it by GET_VRING_BASE first", s.Index)
	case m.Request == vhostabi.SetVringNum:
		q.size = s.Num
	default:
		q.base = uint16(s.Num)
	}
	return nil, nil
}

func (d *device) setVringAddr(m *message) error {
	var a vhostabi.VringAddr
	if err := a.Unmarshal(m.payload); err != nil {
		return err
	}
	q, err := d.queue(a.Index)
	if err != nil {
		return err
	}
	if err := a.Validate(); err != nil {
		return fmt.Errorf("queue %d: %w", a.Index, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	at, err := ringOf(d.mem, a, q.size)
	if err != nil {
		return fmt.Errorf("queue %d: %w", a.Index, err)
	}
	if q.started && at != q.addrs {
		return fmt.Errorf("queue %d runs: stop it by GET_VRING_BASE first", a.Index)
	}
	q.addrs = at
	return nil
}

// setVringFD takes an eventfd. The kick is what starts a queue ("Ring states" of the protocol); where protocol features were not
// negotiated it is enabled by that as well.
func (d *device) setVringFD(m *message) error {
	var v vhostabi.VringFD
	if err := v.Unmarshal(m.payload); err != nil {
		return err
	}
	if err := v.Validate(len(m.fds)); err != nil {
		return err
	}
	q, err := d.queue(v.Index())
	if err != nil {
		return err
	}
	for _, fd := range m.fds {
		if err := isEvent(fd); err != nil {
			return fmt.Errorf("queue %d: %w", v.Index(), err)
		}
	}
	switch m.Request {
	case vhostabi.SetVringCall:
		q.setEvent(&q.call, m.take())
		return nil
	case vhostabi.SetVringErr:
		q.setEvent(&q.errfd, m.take())
		return nil
	}
	if !q.begun {
		q.begun = true
		if d.begun++; d.cfg.Started != nil {
			d.cfg.Started(d.begun)
		}
	}
	if err := q.setKick(m.take()); err != nil {
		return err
	}
	if d.features&vhostabi.FeatureProtocolFeatures == 0 {
		q.mu.Lock()
		q.enabled = true
		q.mu.Unlock()
	}
	return q.start(d.mem, d.ringFeatures())
}

// isEvent refuses descriptors on which a write could block or do something: an eventfd is an anonymous inode, which has no file type.
func isEvent(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at the descriptor: %w", err)
	}
	if st.Mode&unix.S_IFMT != 0 {
		return errors.New("the descriptor is no eventfd")
	}
	return nil
}

func (d *device) getConfig(m *message) ([]byte, error) {
	if d.cfg.Tag == "" {
		return nil, errors.New("there is no configuration space: start the daemon with --tag")
	}
	var c vhostabi.Config
	if err := c.Unmarshal(m.payload); err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	space := vhostabi.FSConfig{Tag: d.cfg.Tag, NumRequestQueues: uint32(d.cfg.MaxRequestQueues)}.AppendTo(nil)
	data := make([]byte, len(c.Data))
	if int(c.Offset) < len(space) {
		copy(data, space[c.Offset:])
	}
	c.Data = data
	return c.AppendTo(nil), nil
}

// setStatus follows the device status (VIRTIO 1.2, section 2.1); 0 is a reset.
func (d *device) setStatus(m *message) error {
	var s vhostabi.U64
	if err := s.Unmarshal(m.payload); err != nil {
		return err
	}
	if s > 0xff {
		return fmt.Errorf("status %#x is wider than 8 bits", uint64(s))
	}
	d.status = uint8(s)
	if s == 0 {
		return d.reset()
	}
	return nil
}

// reset stops the queues and has the backend forget the session. Memory and features stay, as the front-end sets them again.
func (d *device) reset() error {
	for _, q := range d.queues {
		q.halt()
	}
	for _, q := range d.queues {
		if _, err := q.stop(d.goOn); err != nil {
			return err
		}
		q.mu.Lock()
		q.enabled, q.base = false, 0
		q.mu.Unlock()
	}
	d.status = 0
	d.backend.Reset()
	return nil
}

// complaints limits log lines about what a guest does wrong: one a second, with the number of those that were left out.
type complaints struct {
	mu    sync.Mutex
	next  time.Time
	quiet int
}

func (d *device) complain(queue int, err error) {
	if quiet, due := d.complaints.due(time.Now()); due {
		d.log.Warn("request refused", "queue", queue, "err", err, "not_shown_before", quiet) // not under a lock: a log may block
	}
}

// due reports whether there is to be a line now, and how many were left out before it.
func (c *complaints) due(now time.Time) (quiet int, due bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Before(c.next) {
		c.quiet++
		return 0, false
	}
	quiet, c.quiet, c.next = c.quiet, 0, now.Add(time.Second)
	return quiet, true
}
