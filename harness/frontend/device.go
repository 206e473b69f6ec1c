package frontend

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Config says how to set a device up. The zero value of each field has a meaning.
type Config struct {
	Socket string // path to connect to …
	FD     int    // … or a connected socket, if Socket is empty

	Features         uint64        // virtio features to accept where the daemon offers them; 0 = DefaultFeatures
	ProtocolFeatures uint64        // likewise; 0 = DefaultProtocolFeatures
	RequestQueues    int           // 0 = 1
	FewerQueues      bool          // take fewer request queues where the daemon has no more
	QueueSize        uint16        // 0 = 1024
	Memory           []uint64      // bytes of each region; nil = rings in 4 MiB, buffers in 64 MiB
	ForceMemTable    bool          // use SET_MEM_TABLE even where memory slots were negotiated
	Timeout          time.Duration // for each message and request; 0 = 10 s
}

// What Connect accepts if it is not told otherwise.
const (
	DefaultFeatures = 1<<FeatureIndirect | 1<<FeatureEventIdx | 1<<FeatureProtocol | 1<<FeatureVersion1

	DefaultProtocolFeatures = 1<<ProtocolMQ | 1<<ProtocolReplyAck | 1<<ProtocolBackendReq | 1<<ProtocolConfig |
		1<<ProtocolResetDevice | 1<<ProtocolMemSlots
)

// Bits of the feature masks (virtio 1.2 section 6, vhost-user.rst "Protocol features").
const (
	FeatureIndirect = 28
	FeatureEventIdx = 29
	FeatureProtocol = 30
	FeatureVersion1 = 32

	ProtocolMQ          = 0
	ProtocolReplyAck    = 3
	ProtocolBackendReq  = 5
	ProtocolConfig      = 9
	ProtocolResetDevice = 13
	ProtocolMemSlots    = 15
	ProtocolStatus      = 16
)

// Device is a running vhost-user-fs device, seen from the guest.
type Device struct {
	Conn             *Conn
	Memory           *Memory
	Queues           []*Queue // 0 is the high priority queue
	Features         uint64   // agreed
	ProtocolFeatures uint64   // agreed
	OfferedFeatures  uint64
	OfferedProtocol  uint64
	Timeout          time.Duration

	broken atomic.Bool
}

// Request returns request queue i, counted from 0.
func (d *Device) Request(i int) *Queue { return d.Queues[1+i] }

// Connect brings a device up: negotiation, memory, rings, enable.
func Connect(ctx context.Context, cfg Config) (*Device, error) {
	d, err := Negotiate(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := d.start(cfg); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Negotiate connects, agrees on features and makes memory and rings, but tells the daemon of neither: what Share, SetUp and
// Enable do. Hostile tests go on by hand from here.
func Negotiate(ctx context.Context, cfg Config) (*Device, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Features == 0 {
		cfg.Features = DefaultFeatures
	}
	if cfg.ProtocolFeatures == 0 {
		cfg.ProtocolFeatures = DefaultProtocolFeatures
	}
	if cfg.RequestQueues == 0 {
		cfg.RequestQueues = 1
	}
	if cfg.QueueSize == 0 {
		cfg.QueueSize = 1024
	}
	if cfg.Memory == nil {
		cfg.Memory = []uint64{4 << 20, 64 << 20}
	}
	d := &Device{Timeout: cfg.Timeout}
	var err error
	if cfg.Socket != "" {
		d.Conn, err = Dial(cfg.Socket, cfg.Timeout)
	} else {
		d.Conn, err = NewConn(cfg.FD, cfg.Timeout)
	}
	if err != nil {
		return nil, err
	}
	if err := d.negotiate(ctx, cfg); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Device) negotiate(ctx context.Context, cfg Config) error {
	var err error
	if d.OfferedFeatures, err = d.Conn.CallU64(MsgGetFeatures, nil); err != nil {
		return fmt.Errorf("ask for features: %w", err)
	}
	d.Features = d.OfferedFeatures & cfg.Features
	if d.OfferedFeatures&(1<<FeatureProtocol) != 0 && cfg.Features&(1<<FeatureProtocol) != 0 {
		if d.OfferedProtocol, err = d.Conn.CallU64(MsgGetProtocolFeatures, nil); err != nil {
			return fmt.Errorf("ask for protocol features: %w", err)
		}
		d.ProtocolFeatures = d.OfferedProtocol & cfg.ProtocolFeatures
		if err := d.Conn.Send(MsgSetProtocolFeatures, false, U64(d.ProtocolFeatures)); err != nil {
			return fmt.Errorf("set protocol features: %w", err)
		}
	}
	if d.HasProtocol(ProtocolMQ) {
		n, err := d.Conn.CallU64(MsgGetQueueNum, nil)
		if err != nil {
			return fmt.Errorf("ask for the number of queues: %w", err)
		}
		if cfg.FewerQueues && n >= 2 {
			cfg.RequestQueues = min(cfg.RequestQueues, int(n-1))
		}
		if n < uint64(1+cfg.RequestQueues) {
			return fmt.Errorf("%d request queues wanted: %w (it has %d queues in all)", cfg.RequestQueues, ErrTooManyQueues, n)
		}
	}
	if err := d.Conn.Send(MsgSetOwner, false, nil); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if d.Memory, err = NewMemory(cfg.Memory...); err != nil {
		return err
	}
	for i := range 1 + cfg.RequestQueues {
		q, err := newQueue(d.Memory, i, cfg.QueueSize)
		if err != nil {
			return err
		}
		q.dev = d
		q.eventIdx = d.Features&(1<<FeatureEventIdx) != 0
		q.indirect = d.Features&(1<<FeatureIndirect) != 0
		d.Queues = append(d.Queues, q)
	}
	return ctx.Err()
}

// ErrTooManyQueues says that the daemon has fewer queues than were asked for.
var ErrTooManyQueues = errors.New("the daemon has fewer queues")

// HasProtocol reports whether a protocol feature was agreed on.
func (d *Device) HasProtocol(bit int) bool { return d.ProtocolFeatures&(1<<bit) != 0 }

func (d *Device) start(cfg Config) error {
	if err := d.set(MsgSetFeatures, U64(d.Features)); err != nil {
		return fmt.Errorf("set features: %w", err)
	}
	if err := d.Share(cfg.ForceMemTable); err != nil {
		return err
	}
	for _, q := range d.Queues {
		if err := d.SetUp(q); err != nil {
			return err
		}
	}
	for _, q := range d.Queues {
		if err := d.Enable(q, true); err != nil {
			return err
		}
	}
	// A message with an answer is a fence: when it arrives, all before it has been dealt with.
	if _, err := d.Conn.CallU64(MsgGetFeatures, nil); err != nil {
		return fmt.Errorf("after the rings were set up: %w", err)
	}
	return nil
}

// set sends a message that changes something, and waits for its verdict where REPLY_ACK was agreed on.
func (d *Device) set(r Message, payload []byte, fds ...int) error {
	if d.HasProtocol(ProtocolReplyAck) {
		return d.Conn.Ack(r, payload, fds...)
	}
	return d.Conn.Send(r, false, payload, fds...)
}

// Share tells the daemon of all memory: by slots where they were negotiated and the table is not forced, else by SET_MEM_TABLE.
func (d *Device) Share(forceTable bool) error {
	if d.HasProtocol(ProtocolMemSlots) && !forceTable {
		for _, r := range d.Memory.Regions {
			if err := d.set(MsgAddMemReg, SingleRegion(r), r.FD); err != nil {
				return fmt.Errorf("add the memory region at %#x: %w", r.GPA, err)
			}
		}
		return nil
	}
	fds := make([]int, len(d.Memory.Regions))
	for i, r := range d.Memory.Regions {
		fds[i] = r.FD
	}
	if err := d.set(MsgSetMemTable, MemTable(d.Memory.Regions), fds...); err != nil {
		return fmt.Errorf("set the memory table: %w", err)
	}
	return nil
}

// SetUp hands a ring to the daemon, which starts with its kick descriptor; it stays disabled where protocol features were agreed on.
func (d *Device) SetUp(q *Queue) error {
	i := uint32(q.Index)
	for _, m := range []struct {
		r       Message
		payload []byte
		fds     []int
	}{
		{MsgSetVringCall, U64(uint64(i)), []int{q.call}},
		{MsgSetVringErr, U64(uint64(i)), []int{q.errfd}},
		{MsgSetVringNum, VringState(i, uint32(q.Size)), nil},
		{MsgSetVringBase, VringState(i, uint32(q.next)), nil},
		{MsgSetVringAddr, d.VringAddr(q), nil},
		{MsgSetVringKick, U64(uint64(i)), []int{q.kick}},
	} {
		if err := d.set(m.r, m.payload, m.fds...); err != nil {
			return fmt.Errorf("%v of queue %d: %w", m.r, i, err)
		}
	}
	return nil
}

// Enable starts or pauses a ring.
func (d *Device) Enable(q *Queue, on bool) error {
	if d.Features&(1<<FeatureProtocol) == 0 {
		return nil // rings are enabled from the start
	}
	var v uint32
	if on {
		v = 1
	}
	if err := d.set(MsgSetVringEnable, VringState(uint32(q.Index), v)); err != nil {
		return fmt.Errorf("enable queue %d: %w", q.Index, err)
	}
	return nil
}

// Stop stops a ring and returns the index at which the daemon would go on; it has finished all before it.
func (d *Device) Stop(q *Queue) (base uint32, err error) {
	b, err := d.Conn.Call(MsgGetVringBase, VringState(uint32(q.Index), 0))
	if err != nil {
		return 0, fmt.Errorf("stop queue %d: %w", q.Index, err)
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("the daemon answers the stop of queue %d with %d bytes, not 8", q.Index, len(b))
	}
	if got := binary.LittleEndian.Uint32(b); got != uint32(q.Index) {
		return 0, fmt.Errorf("the daemon answers the stop of queue %d for queue %d", q.Index, got)
	}
	return binary.LittleEndian.Uint32(b[4:]), nil
}

// Restart resets a stopped ring and starts it anew, as a rebooted guest does.
func (d *Device) Restart(q *Queue) error {
	q.Reset()
	if err := d.SetUp(q); err != nil {
		return err
	}
	return d.Enable(q, true)
}

// Alive reports whether the daemon still holds the connection.
func (d *Device) Alive() bool {
	pfd := []unix.PollFd{{Fd: int32(d.Conn.fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(pfd, 0)
	return err != nil || n == 0 || pfd[0].Revents == 0
}

// Watch makes Wait return false on all queues once the daemon leaves or d passes. stop ends the watch.
func (d *Device) Watch(limit time.Duration) (stop func()) {
	quit := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		deadline := time.Now().Add(limit)
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			if time.Now().Before(deadline) && d.Alive() {
				continue
			}
			d.broken.Store(true)
			for _, q := range d.Queues {
				unix.Write(q.call, q.one[:])
			}
		}
	}()
	return func() { close(quit); <-ended }
}

// Close leaves: the daemon sees the connection end.
func (d *Device) Close() {
	if d.Conn != nil {
		d.Conn.Close()
	}
	for _, q := range d.Queues {
		q.close()
	}
	if d.Memory != nil {
		d.Memory.Close()
	}
}

// U64 is the payload of one number.
func U64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// VringState is the payload of messages about one ring's number (vhost-user.rst, "A vring state description").
func VringState(index, num uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, index), num)
}

// VringAddr is SET_VRING_ADDR's payload for a ring, in user addresses.
func (d *Device) VringAddr(q *Queue) []byte {
	return RingAddresses(uint32(q.Index), d.Memory.UserAddr(q.DescGPA), d.Memory.UserAddr(q.UsedGPA), d.Memory.UserAddr(q.AvailGPA))
}

// RingAddresses is SET_VRING_ADDR's payload with any addresses.
func RingAddresses(index uint32, desc, used, avail uint64) []byte {
	b := VringState(index, 0) // no logging
	for _, v := range []uint64{desc, used, avail, 0} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func appendRegion(b []byte, r *Region) []byte {
	for _, v := range []uint64{r.GPA, r.Size, r.UserAddr, r.MmapOffset} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// SingleRegion is ADD_MEM_REG's payload.
func SingleRegion(r *Region) []byte { return appendRegion(make([]byte, 8), r) }

// MemTable is SET_MEM_TABLE's payload.
func MemTable(regions []*Region) []byte {
	b := VringState(uint32(len(regions)), 0)
	for _, r := range regions {
		b = appendRegion(b, r)
	}
	return b
}
