package frontend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// descriptor flags (virtio 1.2, section 2.7.5)
const (
	DescNext     = 1
	DescWrite    = 2
	DescIndirect = 4
)

const descSize = 16

// Desc is a descriptor as it stands in the table.
type Desc struct {
	Addr  uint64
	Len   uint32
	Flags uint16
	Next  uint16
}

// Seg is one piece of a request: device-writable if Write.
type Seg struct {
	Addr  uint64
	Len   uint32
	Write bool
}

// Chain is a request laid out in the descriptor table, which can be posted again and again. Its memory belongs to the caller.
type Chain struct {
	Head uint16
	Used uint32 // what the device wrote, as it says
	Done bool   // completed since the last Post
	Slot int    // the caller's

	descs    []uint16
	indirect uint64
	tableLen int
	posted   bool
}

var (
	// ErrRingStopped says that the daemon signalled VRING_ERR.
	ErrRingStopped = errors.New("the daemon signalled a ring error")
	// ErrBogus says that the used ring names a request that was not outstanding.
	ErrBogus = errors.New("the daemon completed a request that was not outstanding")
	// ErrNoDescriptors says that the descriptor table is full.
	ErrNoDescriptors = errors.New("no free descriptors")
)

// Queue is the driver's end of one split virtqueue.
type Queue struct {
	Index    int
	Size     uint16
	DescGPA  uint64
	AvailGPA uint64
	UsedGPA  uint64
	Kicks    uint64 // kicks sent
	Calls    uint64 // blocking waits that were needed

	mem                *Memory
	dev                *Device
	desc, avail, used  []byte
	availFlags, availI *uint16
	usedEvent          *uint16
	usedI, availEvent  *uint16
	kick, call, errfd  int
	eventIdx, indirect bool
	free               []uint16
	chains             []*Chain          // outstanding, by head
	odd                map[uint16]*Chain // the same for heads beyond the table
	next, seen, shown  uint16            // avail index to come, used index seen, avail index published
	fence              fenceWord
	one                [8]byte
	buf                [8]byte
}

func newQueue(m *Memory, index int, size uint16) (*Queue, error) {
	n := uint64(size)
	q := &Queue{Index: index, Size: size, mem: m, kick: -1, call: -1, errfd: -1}
	var err error
	for _, part := range []struct {
		gpa  *uint64
		mem  *[]byte
		size uint64
	}{
		{&q.DescGPA, &q.desc, n * descSize},
		{&q.AvailGPA, &q.avail, 6 + 2*n},
		{&q.UsedGPA, &q.used, 6 + 8*n},
	} {
		if *part.gpa, err = m.allocRing(part.size); err != nil {
			return nil, err
		}
		*part.mem = m.Bytes(*part.gpa, int(part.size))
	}
	q.availFlags, q.availI = ptr16(q.avail, 0), ptr16(q.avail, 2)
	q.usedEvent = ptr16(q.avail, uint32(4+2*n))
	q.usedI = ptr16(q.used, 2)
	q.availEvent = ptr16(q.used, uint32(4+8*n))
	q.chains = make([]*Chain, size)
	q.odd = make(map[uint16]*Chain)
	q.free = make([]uint16, 0, size)
	for _, fd := range []*int{&q.kick, &q.call, &q.errfd} {
		if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
			q.close()
			return nil, fmt.Errorf("make an eventfd: %w", err)
		}
	}
	binary.NativeEndian.PutUint64(q.one[:], 1)
	q.Reset()
	return q, nil
}

// Reset empties the rings, as a driver does before it starts a device anew. Outstanding chains are forgotten.
func (q *Queue) Reset() {
	clear(q.desc)
	clear(q.avail)
	clear(q.used)
	clear(q.chains)
	clear(q.odd)
	q.next, q.seen, q.shown = 0, 0, 0
	q.free = q.free[:0]
	for i := int(q.Size) - 1; i >= 0; i-- {
		q.free = append(q.free, uint16(i))
	}
}

func (q *Queue) close() {
	for _, fd := range []*int{&q.kick, &q.call, &q.errfd} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// WriteDesc writes entry i of the descriptor table, raw.
func (q *Queue) WriteDesc(i uint16, d Desc) { putDesc(q.desc[int(i)*descSize:], d) }

// TakeDesc reserves n entries of the descriptor table for raw use.
func (q *Queue) TakeDesc(n int) ([]uint16, error) {
	if len(q.free) < n {
		return nil, fmt.Errorf("take %d of %d: %w", n, len(q.free), ErrNoDescriptors)
	}
	at := len(q.free) - n
	taken := make([]uint16, n)
	for i := range taken {
		taken[i] = q.free[at+n-1-i]
	}
	q.free = q.free[:at]
	return taken, nil
}

func putDesc(b []byte, d Desc) {
	binary.LittleEndian.PutUint64(b[0:], d.Addr)
	binary.LittleEndian.PutUint32(b[8:], d.Len)
	binary.LittleEndian.PutUint16(b[12:], d.Flags)
	binary.LittleEndian.PutUint16(b[14:], d.Next)
}

// Prepare lays out a request. It uses an indirect table where that was negotiated and more than one segment is there.
func (q *Queue) Prepare(segs []Seg) (*Chain, error) {
	c := &Chain{}
	if q.indirect && len(segs) > 1 {
		c.tableLen = len(segs) * descSize
		gpa, err := q.mem.Alloc(c.tableLen)
		if err != nil {
			return nil, err
		}
		c.indirect = gpa
		table := q.mem.Bytes(gpa, c.tableLen)
		for i, s := range segs {
			putDesc(table[i*descSize:], segDesc(s, uint16(i+1), i+1 == len(segs)))
		}
		if c.descs, err = q.TakeDesc(1); err != nil {
			q.mem.Free(gpa, c.tableLen)
			return nil, err
		}
		q.WriteDesc(c.descs[0], Desc{Addr: gpa, Len: uint32(c.tableLen), Flags: DescIndirect})
	} else {
		var err error
		if c.descs, err = q.TakeDesc(len(segs)); err != nil {
			return nil, err
		}
		for i, s := range segs {
			var next uint16
			if i+1 < len(segs) {
				next = c.descs[i+1]
			}
			q.WriteDesc(c.descs[i], segDesc(s, next, i+1 == len(segs)))
		}
	}
	c.Head = c.descs[0]
	return c, nil
}

func segDesc(s Seg, next uint16, last bool) Desc {
	d := Desc{Addr: s.Addr, Len: s.Len}
	if s.Write {
		d.Flags |= DescWrite
	}
	if !last {
		d.Flags |= DescNext
		d.Next = next
	}
	return d
}

// PrepareRaw makes a chain of descriptors that the caller took and wrote; head may be any number.
func (q *Queue) PrepareRaw(head uint16, taken []uint16) *Chain {
	return &Chain{Head: head, descs: taken}
}

// Release gives a chain's descriptors and its indirect table back. A chain that is still outstanding must not be released.
func (q *Queue) Release(c *Chain) {
	for i := len(c.descs) - 1; i >= 0; i-- {
		q.free = append(q.free, c.descs[i])
	}
	c.descs = nil
	if c.tableLen > 0 {
		q.mem.Free(c.indirect, c.tableLen)
		c.tableLen = 0
	}
}

// Post puts a chain on the available ring; the device sees it at the next Publish.
func (q *Queue) Post(c *Chain) {
	c.Done, c.posted = false, true
	if int(c.Head) < len(q.chains) {
		q.chains[c.Head] = c
	} else {
		q.odd[c.Head] = c
	}
	binary.LittleEndian.PutUint16(q.avail[4+2*uint32(q.next%q.Size):], c.Head)
	q.next++
}

// Publish shows the device what was posted and kicks it if it wants to be kicked (virtio 1.2, section 2.7.13).
func (q *Queue) Publish() {
	if q.shown == q.next {
		return
	}
	q.fence.fence()
	store16(q.availI, q.next)
	q.fence.fence()
	old := q.shown
	q.shown = q.next
	if q.eventIdx {
		if event := load16(q.availEvent); q.next-event-1 >= q.next-old {
			return
		}
	} else if load16(ptr16(q.used, 0))&1 != 0 {
		return
	}
	q.Kick()
}

// Kick signals the device whether it wants it or not.
func (q *Queue) Kick() {
	q.Kicks++
	unix.Write(q.kick, q.one[:])
}

// SetAvailIndex writes the available index raw: a jump.
func (q *Queue) SetAvailIndex(i uint16) {
	q.fence.fence()
	store16(q.availI, i)
	q.fence.fence()
}

// AvailIndex is the index that the next Post will fill.
func (q *Queue) AvailIndex() uint16 { return q.next }

// SetAvailRing writes one slot of the available ring raw.
func (q *Queue) SetAvailRing(slot, head uint16) {
	binary.LittleEndian.PutUint16(q.avail[4+2*uint32(slot%q.Size):], head)
}

// SetNext moves our own idea of the available index, after raw writes.
func (q *Queue) SetNext(i uint16) { q.next, q.shown = i, i }

// UsedIndex is the used ring's index as the device shows it: how many requests it has given back since the ring started, modulo 65536.
func (q *Queue) UsedIndex() uint16 { return load16(q.usedI) }

// Pending reports whether the used ring holds something that Reap has not seen.
func (q *Queue) Pending() bool { return load16(q.usedI) != q.seen }

// Reap takes one completion from the used ring; nil, nil if there is none.
func (q *Queue) Reap() (*Chain, error) {
	if load16(q.usedI) == q.seen {
		return nil, nil
	}
	q.fence.fence()
	at := 4 + 8*uint32(q.seen%q.Size)
	id := binary.LittleEndian.Uint32(q.used[at:])
	n := binary.LittleEndian.Uint32(q.used[at+4:])
	q.seen++
	var c *Chain
	if id < uint32(q.Size) {
		c, q.chains[id] = q.chains[id], nil
	} else if id <= 0xffff {
		c = q.odd[uint16(id)]
		delete(q.odd, uint16(id))
	}
	if c == nil {
		return nil, ErrBogus
	}
	c.Used, c.Done, c.posted = n, true, false
	return c, nil
}

// Arm asks for a call at the next completion, and reports whether one is there already. Waiting arms as well; who has to be told of the first
// completion however soon it comes arms before publishing.
func (q *Queue) Arm() bool {
	if q.eventIdx {
		store16(q.usedEvent, q.seen)
	}
	q.fence.fence()
	return load16(q.usedI) != q.seen
}

// Wait blocks until the used ring holds something new. It blocks in read(2) with no time-out of its own: Device.Watch breaks
// it when the daemon goes away or a deadline passes, then it returns false.
func (q *Queue) Wait() bool {
	for !q.Arm() {
		if q.dev != nil && q.dev.broken.Load() {
			return false
		}
		q.Calls++
		if _, err := unix.Read(q.call, q.buf[:]); err != nil && err != unix.EINTR {
			return false
		}
	}
	return true
}

// WaitChain reaps until c is complete.
func (q *Queue) WaitChain(c *Chain, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	var pfd [3]unix.PollFd
	for {
		for {
			got, err := q.Reap()
			if err != nil {
				return err
			}
			if got == nil {
				break
			}
		}
		if c.Done {
			return nil
		}
		if q.Arm() {
			continue
		}
		left := time.Until(deadline)
		if left <= 0 {
			return ErrTimeout
		}
		pfd[0] = unix.PollFd{Fd: int32(q.call), Events: unix.POLLIN}
		pfd[1] = unix.PollFd{Fd: int32(q.errfd), Events: unix.POLLIN}
		pfd[2] = unix.PollFd{Fd: -1, Events: unix.POLLRDHUP}
		if q.dev != nil && q.dev.Conn != nil {
			pfd[2].Fd = int32(q.dev.Conn.fd)
		}
		ts := unix.NsecToTimespec(int64(left))
		if _, err := unix.Ppoll(pfd[:], &ts, nil); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		if pfd[0].Revents&unix.POLLIN != 0 {
			unix.Read(q.call, q.buf[:])
		}
		if q.Pending() {
			continue
		}
		if pfd[1].Revents&unix.POLLIN != 0 {
			return ErrRingStopped
		}
		if pfd[2].Revents != 0 {
			return ErrGone
		}
	}
}

// Do posts a chain and waits for it.
func (q *Queue) Do(c *Chain, timeout time.Duration) error {
	q.Post(c)
	q.Publish()
	return q.WaitChain(c, timeout)
}
