package sys

import (
	"bytes"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxHandleSize is the most bytes that an export handle has (MAX_HANDLE_SZ).
const MaxHandleSize = 128

// ExportHandle is a struct file_handle of the length that its file system needs. It is made by
// NameToHandle alone.
type ExportHandle struct {
	bytes uint32
	typ   int32
	// The handle's bytes follow.
}

const handleHead = unsafe.Sizeof(ExportHandle{})

// HandleBuffer is room for the longest export handle. The zero value is ready for use.
type HandleBuffer struct {
	head  ExportHandle
	_     [MaxHandleSize]byte
	mount int32
}

// data is the handle with its head.
func (h *ExportHandle) data() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(h)), handleHead+uintptr(h.bytes))
}

// Equal reports whether two handles are of the same file of one file system.
func (h *ExportHandle) Equal(other *ExportHandle) bool {
	return h != nil && other != nil && bytes.Equal(h.data(), other.data())
}

// NameToHandle is name_to_handle_at(2). With name nil it makes the handle of dirfd itself. The
// buffer is scratch memory.
func NameToHandle(dirfd int, name *byte, buf *HandleBuffer) (*ExportHandle, unix.Errno) {
	flags := 0
	if name == nil {
		name, flags = &empty[0], unix.AT_EMPTY_PATH
	}
	buf.head.bytes = MaxHandleSize
	_, e := call(unix.SYS_NAME_TO_HANDLE_AT, uintptr(dirfd), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&buf.head)), uintptr(unsafe.Pointer(&buf.mount)), uintptr(flags), 0)
	if e != 0 {
		return nil, e
	}
	src := buf.head.data()
	own := make([]uint32, (len(src)+3)/4)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&own[0])), len(src)), src)
	return (*ExportHandle)(unsafe.Pointer(&own[0])), 0
}

// OpenByHandle is open_by_handle_at(2); mountfd is an ordinary (not O_PATH) descriptor of anything on the file system.
// It needs CAP_DAC_READ_SEARCH in the user namespace that owns the mount (before Linux 6.11: the initial one).
func OpenByHandle(mountfd int, h *ExportHandle, flags int) (int, unix.Errno) {
	fd, e := call(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(mountfd), uintptr(unsafe.Pointer(h)), uintptr(flags|unix.O_CLOEXEC), 0, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(fd), 0
}
