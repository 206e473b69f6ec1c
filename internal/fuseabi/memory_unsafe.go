package fuseabi

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Len is the number of bytes that the segments hold.
func Len(iov []unix.Iovec) uint64 {
	var n uint64
	for i := range iov {
		n += uint64(iov[i].Len)
	}
	return n
}

// CopyIn copies bytes from offset off of the segments and returns how many there were, at most len(dst).
func CopyIn(dst []byte, iov []unix.Iovec, off uint64) int {
	n := 0
	for i := range iov {
		l := uint64(iov[i].Len)
		if off >= l {
			off -= l
			continue
		}
		if n == len(dst) {
			break
		}
		seg := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(iov[i].Base), off)), l-off)
		n += copy(dst[n:], seg)
		off = 0
	}
	return n
}

// CopyOut copies src to offset off of the segments and returns how many bytes had room.
func CopyOut(iov []unix.Iovec, off uint64, src []byte) int {
	n := 0
	for i := range iov {
		l := uint64(iov[i].Len)
		if off >= l {
			off -= l
			continue
		}
		if n == len(src) {
			break
		}
		seg := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(iov[i].Base), off)), l-off)
		n += copy(seg, src[n:])
		off = 0
	}
	return n
}

// Sub appends to dst those parts of the segments that make up the n bytes from offset off; fewer, if there are fewer.
func Sub(dst []unix.Iovec, iov []unix.Iovec, off, n uint64) []unix.Iovec {
	for i := range iov {
		l := uint64(iov[i].Len)
		if off >= l {
			off -= l
			continue
		}
		if n == 0 {
			break
		}
		take := min(l-off, n)
		v := unix.Iovec{Base: (*byte)(unsafe.Add(unsafe.Pointer(iov[i].Base), off))}
		v.SetLen(int(take))
		dst = append(dst, v)
		n -= take
		off = 0
	}
	return dst
}

// View lays a structure over the start of b, or returns nil if b is too short for it or not aligned to 8 bytes.
func View[T any](b []byte) *T {
	var t T
	if uintptr(len(b)) < unsafe.Sizeof(t) || uintptr(unsafe.Pointer(unsafe.SliceData(b)))%8 != 0 {
		return nil
	}
	return (*T)(unsafe.Pointer(unsafe.SliceData(b)))
}

// Size is a structure's size in bytes.
func Size[T any]() int {
	var t T
	return int(unsafe.Sizeof(t))
}

// Buffer makes a zeroed byte slice that View accepts.
func Buffer(n int) []byte {
	words := make([]uint64, (n+7)/8+1)
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), len(words)*8)[:n:n]
}

// Bytes is the structure's memory.
func Bytes[T any](p *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}
