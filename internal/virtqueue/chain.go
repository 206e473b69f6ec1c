package virtqueue

import (
	"errors"
	"math"

	"golang.org/x/sys/unix"
	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/vhostabi"
)

// What can be wrong with a chain. The owner completes such a chain with length 0, except for ErrHead, where there is nothing to
// complete.
var (
	ErrHead     = errors.New("head is outside of the descriptor table")
	ErrNext     = errors.New("next descriptor is outside of the table")
	ErrLong     = errors.New("chain has more descriptors than the ring: a loop, or longer than a driver may make it")
	ErrBytes    = errors.New("chain has more bytes than a used element can count")
	ErrIndirect = errors.New("indirect descriptor is not allowed here, or its table is malformed")
	ErrOrder    = errors.New("device-readable descriptor behind a device-writable one")
)

// Chain is a descriptor chain as the device sees it: the bytes to read, then those to write, as views of guest memory in as few
// pieces as can be. The slices are reused by the next walk.
type Chain struct {
	In, Out           []unix.Iovec
	InBytes, OutBytes uint64 // their lengths; together not more than a used element can count
}

// minChain is how many descriptors a chain may have whatever the ring's size: an indirect table may be longer than a small ring in
// practice, as the requests of a file system are not bound by it.
const minChain = 1024

// Walk fills c with the chain at head.
func (l *Layout) Walk(head uint16, c *Chain) error {
	c.In, c.Out = c.In[:0], c.Out[:0]
	table, size := l.desc, l.size
	limit := max(size, minChain)
	c.InBytes, c.OutBytes = 0, 0
	indirect := false
	for i, n := uint32(head), uint32(0); ; n++ {
		if n >= limit {
			return ErrLong
		}
		addr, rest := table.LoadPair(uint64(i) * vhostabi.DescSize)
		length, flags, next := uint64(uint32(rest)), uint16(rest>>32), uint32(rest>>48)

		if flags&vhostabi.DescIndirect != 0 {
			// Section 2.7.5.3.1: no table in a table, not together with NEXT, made of whole descriptors.
			if indirect || !l.indirect || flags&vhostabi.DescNext != 0 || length == 0 || length%vhostabi.DescSize != 0 {
				return ErrIndirect
			}
			if length/vhostabi.DescSize > math.MaxUint16+1 {
				return ErrLong
			}
			t, err := l.mem.Guest(addr, length)
			if err != nil {
				return err
			}
			table, size, i, indirect = t, uint32(length/vhostabi.DescSize), 0, true
			continue
		}

		var err error
		switch {
		case length == 0: // allowed, and nothing
		case c.InBytes+c.OutBytes+length > math.MaxUint32:
			return ErrBytes
		case flags&vhostabi.DescWrite != 0:
			c.OutBytes += length
			c.Out, err = l.mem.AppendIovecs(c.Out, addr, length)
		case len(c.Out) > 0:
			return ErrOrder
		default:
			c.InBytes += length
			c.In, err = l.mem.AppendIovecs(c.In, addr, length)
		}
		switch {
		case err != nil:
			return err
		case uint32(len(c.In)+len(c.Out)) > limit+guestmem.MaxRegions:
			return ErrLong // a descriptor is split where its regions end, but not each of them
		}
		if flags&vhostabi.DescNext == 0 {
			return nil
		}
		if i = next; i >= size {
			return ErrNext
		}
	}
}
