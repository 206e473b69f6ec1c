package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxHandleSize is the most bytes that an export handle has (MAX_HANDLE_SZ).
const MaxHandleSize = 128

// ExportHandle is struct file_handle with room for the longest handle. The zero value is ready for use.
type ExportHandle struct {
	Bytes uint32
	Type  int32
	Data  [MaxHandleSize]byte
}

// NameToHandle is name_to_handle_at(2). With name nil it makes the handle of dirfd itself.
func NameToHandle(dirfd int, name *byte, h *ExportHandle, mount *int32) unix.Errno {
	flags := 0
	if name == nil {
		name, flags = &empty[0], unix.AT_EMPTY_PATH
	}
	h.Bytes = MaxHandleSize
	_, e := call(unix.SYS_NAME_TO_HANDLE_AT, uintptr(dirfd), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(h)), uintptr(unsafe.Pointer(mount)), uintptr(flags), 0)
	return e
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
