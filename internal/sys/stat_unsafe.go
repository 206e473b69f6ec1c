package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of this file take names as pointers to NUL-terminated bytes, so that a name copied out of a request once needs
// no second copy and no allocation. All repeat themselves on EINTR, and return 0 or the error number.

// empty is the path "" of the calls that work on a descriptor (AT_EMPTY_PATH).
var empty [1]byte

// call makes a system call that may block, again and again while it is interrupted.
//
//go:uintptrescapes
func call(trap, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, unix.Errno) {
	for {
		r, _, e := unix.Syscall6(trap, a1, a2, a3, a4, a5, a6)
		if e != unix.EINTR {
			return r, e
		}
	}
}

// Statx is statx(2).
func Statx(dirfd int, name *byte, flags int, mask uint32, st *unix.Statx_t) unix.Errno {
	_, e := call(unix.SYS_STATX, uintptr(dirfd), uintptr(unsafe.Pointer(name)), uintptr(flags), uintptr(mask), uintptr(unsafe.Pointer(st)), 0)
	return e
}

// FStatx is statx(2) of a descriptor of any kind, O_PATH included.
func FStatx(fd int, mask uint32, st *unix.Statx_t) unix.Errno {
	return Statx(fd, &empty[0], unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW, mask, st)
}

// Fstat is fstat(2) of a descriptor of any kind, O_PATH included. It is the cheapest way to the attributes that it gives.
func Fstat(fd int, st *unix.Stat_t) unix.Errno {
	_, e := call(unix.SYS_FSTAT, uintptr(fd), uintptr(unsafe.Pointer(st)), 0, 0, 0, 0)
	return e
}

// Openat is openat(2). O_CLOEXEC is always set, and O_NOCTTY.
func Openat(dirfd int, name *byte, flags int, mode uint32) (int, unix.Errno) {
	fd, e := call(unix.SYS_OPENAT, uintptr(dirfd), uintptr(unsafe.Pointer(name)), uintptr(flags|unix.O_CLOEXEC|unix.O_NOCTTY), uintptr(mode), 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(fd), 0
}

// Openat2 is openat2(2); the caller fills in how, O_CLOEXEC included.
func Openat2(dirfd int, name *byte, how *unix.OpenHow) (int, unix.Errno) {
	fd, e := call(unix.SYS_OPENAT2, uintptr(dirfd), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(how)), unsafe.Sizeof(*how), 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(fd), 0
}

// Mkdirat is mkdirat(2).
func Mkdirat(dirfd int, name *byte, mode uint32) unix.Errno {
	_, e := call(unix.SYS_MKDIRAT, uintptr(dirfd), uintptr(unsafe.Pointer(name)), uintptr(mode), 0, 0, 0)
	return e
}

// Mknodat is mknodat(2).
func Mknodat(dirfd int, name *byte, mode, dev uint32) unix.Errno {
	_, e := call(unix.SYS_MKNODAT, uintptr(dirfd), uintptr(unsafe.Pointer(name)), uintptr(mode), uintptr(dev), 0, 0)
	return e
}

// Unlinkat is unlinkat(2).
func Unlinkat(dirfd int, name *byte, flags int) unix.Errno {
	_, e := call(unix.SYS_UNLINKAT, uintptr(dirfd), uintptr(unsafe.Pointer(name)), uintptr(flags), 0, 0, 0)
	return e
}

// Renameat2 is renameat2(2).
func Renameat2(olddir int, oldname *byte, newdir int, newname *byte, flags uint32) unix.Errno {
	_, e := call(unix.SYS_RENAMEAT2, uintptr(olddir), uintptr(unsafe.Pointer(oldname)), uintptr(newdir), uintptr(unsafe.Pointer(newname)), uintptr(flags), 0)
	return e
}

// Linkat is linkat(2).
func Linkat(olddir int, oldname *byte, newdir int, newname *byte, flags int) unix.Errno {
	_, e := call(unix.SYS_LINKAT, uintptr(olddir), uintptr(unsafe.Pointer(oldname)), uintptr(newdir), uintptr(unsafe.Pointer(newname)), uintptr(flags), 0)
	return e
}

// Symlinkat is symlinkat(2).
func Symlinkat(target *byte, dirfd int, name *byte) unix.Errno {
	_, e := call(unix.SYS_SYMLINKAT, uintptr(unsafe.Pointer(target)), uintptr(dirfd), uintptr(unsafe.Pointer(name)), 0, 0, 0)
	return e
}

// Readlink is readlinkat(2) of an O_PATH descriptor of a symbolic link.
func Readlink(fd int, buf []byte) (int, unix.Errno) {
	return Readlinkat(fd, &empty[0], buf)
}

// Readlinkat is readlinkat(2).
func Readlinkat(dirfd int, name *byte, buf []byte) (int, unix.Errno) {
	n, e := call(unix.SYS_READLINKAT, uintptr(dirfd), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0, 0)
	return int(n), e
}

// Fchmodat is fchmodat(2): it follows a final link.
func Fchmodat(dirfd int, name *byte, mode uint32) unix.Errno {
	_, e := call(unix.SYS_FCHMODAT, uintptr(dirfd), uintptr(unsafe.Pointer(name)), uintptr(mode), 0, 0, 0)
	return e
}

// FchownPath is fchownat(2) of a descriptor of any kind. An id of all ones is left as it is.
func FchownPath(fd int, uid, gid uint32) unix.Errno {
	_, e := call(unix.SYS_FCHOWNAT, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])), uintptr(uid), uintptr(gid), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW, 0)
	return e
}

// Utimensat is utimensat(2): it follows a final link.
func Utimensat(dirfd int, name *byte, times *[2]unix.Timespec) unix.Errno {
	_, e := call(unix.SYS_UTIMENSAT, uintptr(dirfd), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(times)), 0, 0, 0)
	return e
}

// Faccessat2 is faccessat2(2).
func Faccessat2(dirfd int, name *byte, mode uint32, flags int) unix.Errno {
	_, e := call(unix.SYS_FACCESSAT2, uintptr(dirfd), uintptr(unsafe.Pointer(name)), uintptr(mode), uintptr(flags), 0, 0)
	return e
}

// Getdents64 is getdents64(2).
func Getdents64(fd int, buf []byte) (int, unix.Errno) {
	n, e := call(unix.SYS_GETDENTS64, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0, 0, 0)
	return int(n), e
}

// Fstatfs is fstatfs(2).
func Fstatfs(fd int, st *unix.Statfs_t) unix.Errno {
	_, e := call(unix.SYS_FSTATFS, uintptr(fd), uintptr(unsafe.Pointer(st)), 0, 0, 0, 0)
	return e
}
