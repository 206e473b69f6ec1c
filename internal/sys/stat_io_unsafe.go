package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// IovMax is the most segments that one vectored call takes (UIO_MAXIOV).
const IovMax = 1024

// Preadv2 is preadv2(2) into at most IovMax segments.
func Preadv2(fd int, iov []unix.Iovec, off int64, flags int) (int, unix.Errno) {
	n, e := call(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(min(len(iov), IovMax)), uintptr(off), 0, uintptr(flags))
	return int(n), e
}

// Pwritev2 is pwritev2(2) from at most IovMax segments.
func Pwritev2(fd int, iov []unix.Iovec, off int64, flags int) (int, unix.Errno) {
	n, e := call(unix.SYS_PWRITEV2, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(min(len(iov), IovMax)), uintptr(off), 0, uintptr(flags))
	return int(n), e
}

// Preadv is preadv(2) into at most IovMax segments.
func Preadv(fd int, iov []unix.Iovec, off int64) (int, unix.Errno) {
	n, e := call(unix.SYS_PREADV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(min(len(iov), IovMax)), uintptr(off), 0, 0)
	return int(n), e
}

// Pwritev is pwritev(2) from at most IovMax segments.
func Pwritev(fd int, iov []unix.Iovec, off int64) (int, unix.Errno) {
	n, e := call(unix.SYS_PWRITEV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(min(len(iov), IovMax)), uintptr(off), 0, 0)
	return int(n), e
}

// CopyFileRange is copy_file_range(2); the offsets are moved on.
func CopyFileRange(in int, offIn *int64, out int, offOut *int64, n uint64, flags uint32) (uint64, unix.Errno) {
	r, e := call(unix.SYS_COPY_FILE_RANGE, uintptr(in), uintptr(unsafe.Pointer(offIn)), uintptr(out), uintptr(unsafe.Pointer(offOut)), uintptr(n), uintptr(flags))
	return uint64(r), e
}

// Lseek is lseek(2).
func Lseek(fd int, off int64, whence int) (int64, unix.Errno) {
	r, e := call(unix.SYS_LSEEK, uintptr(fd), uintptr(off), uintptr(whence), 0, 0, 0)
	return int64(r), e
}

// Simple calls on a descriptor.

// Fsync is fsync(2).
func Fsync(fd int) unix.Errno { _, e := call(unix.SYS_FSYNC, uintptr(fd), 0, 0, 0, 0, 0); return e }

// Fdatasync is fdatasync(2).
func Fdatasync(fd int) unix.Errno {
	_, e := call(unix.SYS_FDATASYNC, uintptr(fd), 0, 0, 0, 0, 0)
	return e
}

// Syncfs is syncfs(2).
func Syncfs(fd int) unix.Errno { _, e := call(unix.SYS_SYNCFS, uintptr(fd), 0, 0, 0, 0, 0); return e }

// Truncate is truncate(2): it follows a final link.
func Truncate(path *byte, size int64) unix.Errno {
	_, e := call(unix.SYS_TRUNCATE, uintptr(unsafe.Pointer(path)), uintptr(size), 0, 0, 0, 0)
	return e
}

// Ftruncate is ftruncate(2).
func Ftruncate(fd int, size int64) unix.Errno {
	_, e := call(unix.SYS_FTRUNCATE, uintptr(fd), uintptr(size), 0, 0, 0, 0)
	return e
}

// Fchmod is fchmod(2).
func Fchmod(fd int, mode uint32) unix.Errno {
	_, e := call(unix.SYS_FCHMOD, uintptr(fd), uintptr(mode), 0, 0, 0, 0)
	return e
}

// Fallocate is fallocate(2).
func Fallocate(fd int, mode uint32, off, n int64) unix.Errno {
	_, e := call(unix.SYS_FALLOCATE, uintptr(fd), uintptr(mode), uintptr(off), uintptr(n), 0, 0)
	return e
}

// Dup duplicates a descriptor with close-on-exec.
func Dup(fd int) (int, unix.Errno) {
	r, e := call(unix.SYS_FCNTL, uintptr(fd), unix.F_DUPFD_CLOEXEC, 0, 0, 0, 0)
	return int(r), e
}

// Close is close(2). It is not repeated: on Linux the descriptor is gone whatever the result.
func Close(fd int) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	return e
}

// Flock is flock(2); it returns EINTR instead of trying again, so that a wait can be ended by a signal.
func Flock(fd, how int) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_FLOCK, uintptr(fd), uintptr(how), 0)
	return e
}

// FcntlFlock is fcntl(2) with a record lock; it returns EINTR instead of trying again.
func FcntlFlock(fd, cmd int, lk *unix.Flock_t) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), uintptr(cmd), uintptr(unsafe.Pointer(lk)))
	return e
}
