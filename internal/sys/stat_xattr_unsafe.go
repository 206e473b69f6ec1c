package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Extended attributes of an O_PATH descriptor are reached by path only. The path is the descriptor's number, relative to
// a working directory of /proc/self/fd (see PrivateWorkingDirectory), and following it ends at the descriptor's own
// file, be that a symbolic link.

// Getxattr is getxattr(2).
func Getxattr(path, name *byte, value []byte) (int, unix.Errno) {
	n, e := call(unix.SYS_GETXATTR, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(len(value)), 0, 0)
	return int(n), e
}

// Listxattr is listxattr(2).
func Listxattr(path *byte, list []byte) (int, unix.Errno) {
	n, e := call(unix.SYS_LISTXATTR, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(unsafe.SliceData(list))), uintptr(len(list)), 0, 0, 0)
	return int(n), e
}

// Setxattr is setxattr(2).
func Setxattr(path, name *byte, value []byte, flags int) unix.Errno {
	_, e := call(unix.SYS_SETXATTR, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(len(value)), uintptr(flags), 0)
	return e
}

// Removexattr is removexattr(2).
func Removexattr(path, name *byte) unix.Errno {
	_, e := call(unix.SYS_REMOVEXATTR, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(name)), 0, 0, 0, 0)
	return e
}

// PrivateWorkingDirectory gives the calling thread a working directory and a umask of its own, and makes dirfd the former.
// The thread has to be locked to its goroutine for life: it must never serve another one.
func PrivateWorkingDirectory(dirfd int) unix.Errno {
	if _, _, e := unix.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_FS, 0, 0); e != 0 {
		return e
	}
	_, _, e := unix.RawSyscall(unix.SYS_FCHDIR, uintptr(dirfd), 0, 0)
	return e
}

// Umask is umask(2) of the calling thread, or of all threads that share its file system information.
func Umask(mask uint32) uint32 {
	old, _, _ := unix.RawSyscall(unix.SYS_UMASK, uintptr(mask), 0, 0)
	return uint32(old)
}
