package guestmem

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// View is a checked span of guest memory. Offsets are in bytes from its start; one beyond its end is a mistake of this program and
// panics. The zero View is empty.
type View struct {
	p unsafe.Pointer
	n uint64
}

func (r *region) view(off, n uint64) View {
	return View{unsafe.Pointer(unsafe.SliceData(r.mem[r.off+off : r.off+off+n])), n}
}

func (r *region) appendIovec(iov []unix.Iovec, off, n uint64) []unix.Iovec {
	base := unsafe.SliceData(r.mem[r.off+off : r.off+off+n])
	if k := len(iov); k > 0 {
		if last := &iov[k-1]; unsafe.Add(unsafe.Pointer(last.Base), last.Len) == unsafe.Pointer(base) {
			last.Len += n
			return iov
		}
	}
	return append(iov, unix.Iovec{Base: base, Len: n})
}

// Len is the length of the view in bytes.
func (v View) Len() uint64 { return v.n }

// Sub returns the n bytes at off as a view of their own.
func (v View) Sub(off, n uint64) View { return View{v.at(off, n), n} }

func (v View) at(off, size uint64) unsafe.Pointer {
	if off > v.n || size > v.n-off {
		panic("guestmem: offset beyond the view")
	}
	return unsafe.Add(v.p, off)
}

// Load16 reads the 16-bit field at off, which must be 2-aligned in memory, with acquire order. It reads the aligned 32-bit word
// around the field, as there are no 16-bit atomics; that word never crosses a page.
func (v View) Load16(off uint64) uint16 {
	p := uintptr(v.at(off, 2))
	word := atomic.LoadUint32((*uint32)(unsafe.Add(v.at(off, 2), -int(p&2))))
	return uint16(word >> (8 * (p & 2)))
}

// Load32 reads the aligned 32-bit word at off once.
func (v View) Load32(off uint64) uint32 { return atomic.LoadUint32((*uint32)(v.at(off, 4))) }

// LoadPair reads the two little-endian 64-bit words at off, each byte once. They need no alignment: an indirect table has none.
func (v View) LoadPair(off uint64) (lo, hi uint64) {
	p := v.at(off, 16)
	if uintptr(p)%8 == 0 {
		return atomic.LoadUint64((*uint64)(p)), atomic.LoadUint64((*uint64)(unsafe.Add(p, 8)))
	}
	b := *(*[16]byte)(p)
	return binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])
}

// Store16 writes the 16-bit field at off without order: a store with order, or Fence, has to follow.
func (v View) Store16(off uint64, x uint16) { *(*uint16)(v.at(off, 2)) = x }

// Store32 writes the aligned 32-bit word at off without order.
func (v View) Store32(off uint64, x uint32) { *(*uint32)(v.at(off, 4)) = x }

// StoreRelease32 writes the aligned 32-bit word at off after all stores before it, and before all loads behind it.
func (v View) StoreRelease32(off uint64, x uint32) { atomic.StoreUint32((*uint32)(v.at(off, 4)), x) }

// Fence orders every store before it against every atomic load behind it; word is any word of the caller's own. A sequentially
// consistent store does that: an exchange on amd64; a store-release on arm64, which no later load-acquire passes.
func Fence(word *atomic.Uint32) { word.Store(1) }

// CopyIn copies from the start of iov to dst and returns how many bytes there were.
func CopyIn(dst []byte, iov []unix.Iovec) int {
	n := 0
	for i := range iov {
		if n == len(dst) {
			break
		}
		n += copy(dst[n:], unsafe.Slice(iov[i].Base, iov[i].Len))
	}
	return n
}

// CopyOut copies src to the start of iov and returns how many bytes found room.
func CopyOut(iov []unix.Iovec, src []byte) int {
	n := 0
	for i := range iov {
		if n == len(src) {
			break
		}
		n += copy(unsafe.Slice(iov[i].Base, iov[i].Len), src[n:])
	}
	return n
}
