package virtqueue

import (
	"errors"
	"fmt"
	"sync/atomic"

	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/vhostabi"
)

// ErrBroken says that the ring as a whole cannot be interpreted any more.
var ErrBroken = errors.New("ring is broken")

// Addresses are where the parts of a ring are, in the front-end's address space.
type Addresses struct{ Desc, Avail, Used uint64 }

// Features are what was negotiated for the ring.
type Features struct {
	EventIdx bool // VIRTIO_F_EVENT_IDX
	Indirect bool // VIRTIO_F_INDIRECT_DESC
}

// Layout is what walking a chain needs: memory, descriptor table and size. It is copied out of a [Ring] under its owner's lock
// and stays usable as long as its table is not dropped.
type Layout struct {
	mem      *guestmem.Table
	desc     guestmem.View
	size     uint32
	indirect bool
}

// Ring is the device's state of one split ring.
type Ring struct {
	Layout
	avail, used guestmem.View
	features    Features

	next  uint16 // of the avail ring: the next head to take
	done  uint16 // of the used ring: the next element to write
	known uint16 // avail index as last read: heads up to here can be taken without looking again

	signalled uint16 // used index up to which the driver was told
	fresh     bool   // nothing was told since the ring was set up: the driver is told whatever its event index says
	quiet     bool   // UsedNoNotify stands in the used ring's flags
	fence     atomic.Uint32
}

// Setup places a ring of size descriptors (a checked power of two) in mem, with the avail index at which to go on. The used index is
// read back from the ring, as a reconnecting device has to find where it was.
func (r *Ring) Setup(mem *guestmem.Table, a Addresses, size uint32, base uint16, f Features) error {
	if err := r.Move(mem, a, size); err != nil {
		return err
	}
	r.features, r.indirect = f, f.Indirect
	r.next, r.known = base, base
	r.done = r.used.Load16(2)
	r.signalled, r.fresh = r.done, true
	r.setQuiet(!f.EventIdx)
	return nil
}

// Move finds the ring anew in another memory table and keeps its state.
func (r *Ring) Move(mem *guestmem.Table, a Addresses, size uint32) error {
	desc, err := mem.User(a.Desc, uint64(size)*vhostabi.DescSize)
	if err != nil {
		return fmt.Errorf("descriptor table: %w", err)
	}
	avail, err := mem.User(a.Avail, vhostabi.RingHeader+2*uint64(size)+vhostabi.RingEvent)
	if err != nil {
		return fmt.Errorf("avail ring: %w", err)
	}
	used, err := mem.User(a.Used, vhostabi.RingHeader+vhostabi.UsedElemSize*uint64(size)+vhostabi.RingEvent)
	if err != nil {
		return fmt.Errorf("used ring: %w", err)
	}
	r.mem, r.desc, r.avail, r.used, r.size = mem, desc, avail, used, size
	return nil
}

// Base is the avail index to go on from: what GET_VRING_BASE reports.
func (r *Ring) Base() uint16 { return r.next }

// Size is the number of descriptors.
func (r *Ring) Size() uint32 { return r.size }

// Mem is the memory table that the ring stands in.
func (r *Ring) Mem() *guestmem.Table { return r.mem }

// Pending is how many heads can be taken. It reads the driver's index only when the known ones are used up, or when fresh is set.
// An index further ahead than the ring is long is ErrBroken (section 2.7.13.3: at most queue-size heads are outstanding).
func (r *Ring) Pending(fresh bool) (int, error) {
	if r.known == r.next || fresh {
		idx := r.avail.Load16(2)
		if uint32(idx-r.next) > r.size {
			return 0, fmt.Errorf("avail index %d is %d ahead of %d in a ring of %d: %w", idx, idx-r.next, r.next, r.size, ErrBroken)
		}
		r.known = idx
	}
	return int(r.known - r.next), nil
}

// Waiting is how many heads are known to wait, without a look at the driver's index.
func (r *Ring) Waiting() int { return int(r.known - r.next) }

// Next takes one head off the avail ring; ok is false when there is none. A head outside of the descriptor table is taken and
// reported as ErrHead: there is no element by which it could be completed.
func (r *Ring) Next() (head uint16, ok bool, err error) {
	n, err := r.Pending(false)
	if n == 0 || err != nil {
		return 0, false, err
	}
	slot := uint32(r.next) & (r.size - 1)
	head = r.avail.Load16(vhostabi.RingHeader + 2*uint64(slot))
	r.next++
	if uint32(head) >= r.size {
		return 0, false, fmt.Errorf("head %d: %w", head, ErrHead)
	}
	return head, true, nil
}

// Push publishes that the device is done with the chain at head and wrote n bytes to it.
func (r *Ring) Push(head uint16, n uint32) {
	at := vhostabi.RingHeader + vhostabi.UsedElemSize*uint64(uint32(r.done)&(r.size-1))
	r.used.Store32(at, uint32(head))
	r.used.Store32(at+4, n)
	r.done++
	r.publish()
}

// publish stores flags and index in one aligned word, after all that was written before.
func (r *Ring) publish() {
	var flags uint32
	if r.quiet {
		flags = vhostabi.UsedNoNotify
	}
	r.used.StoreRelease32(0, flags|uint32(r.done)<<16)
}

// MustSignal reports whether the driver has to be interrupted for what was pushed since the last time it answered true
// (section 2.7.10).
func (r *Ring) MustSignal() bool {
	if r.done == r.signalled {
		return false
	}
	// The driver's wish must be read after the index became visible: publish ends with such an order.
	if !r.features.EventIdx {
		r.signalled, r.fresh = r.done, false
		return r.avail.Load16(0)&vhostabi.AvailNoInterrupt == 0
	}
	event := r.avail.Load16(vhostabi.RingHeader + 2*uint64(r.size))
	old, fresh := r.signalled, r.fresh
	r.signalled, r.fresh = r.done, false
	// vring_need_event of linux/virtio_ring.h
	return fresh || r.done-event-1 < r.done-old
}

// Quiet asks the driver not to kick. With the event index nothing is written: an index that stays behind asks for no kick.
func (r *Ring) Quiet() {
	if !r.features.EventIdx {
		r.setQuiet(true)
	}
}

// Hush is Quiet after a Listen that nothing has come after: the index is put behind.
func (r *Ring) Hush() {
	if r.features.EventIdx {
		r.used.Store16(vhostabi.RingHeader+vhostabi.UsedElemSize*uint64(r.size), r.next-1)
		return
	}
	r.setQuiet(true)
}

// Listen asks the driver to kick for the next head, and reports whether heads have come meanwhile: then the caller goes on
// instead of sleeping.
func (r *Ring) Listen() (more bool, err error) {
	if r.features.EventIdx {
		r.used.Store16(vhostabi.RingHeader+vhostabi.UsedElemSize*uint64(r.size), r.next)
	} else {
		r.setQuiet(false)
	}
	guestmem.Fence(&r.fence)
	n, err := r.Pending(true)
	return n > 0, err
}

func (r *Ring) setQuiet(q bool) {
	r.quiet = q && !r.features.EventIdx
	r.publish()
}
