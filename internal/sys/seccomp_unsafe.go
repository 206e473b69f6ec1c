package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// SeccompCall is struct seccomp_notif with the struct seccomp_data that it ends in (linux/seccomp.h): a system call that waits for an answer.
type SeccompCall struct {
	ID         uint64
	TID, Flags uint32
	NR         int32
	Arch       uint32
	IP         uint64
	Args       [6]uint64
}

// SeccompListen puts a filter on all threads and returns the descriptor (close-on-exec) on which calls that it hands on can be received.
// EBUSY: a filter that is there already has a listener, and another may not. The caller must have set no_new_privs (seccomp(2),
// SECCOMP_FILTER_FLAG_NEW_LISTENER).
func SeccompListen(filter []unix.SockFilter) (listener int, e unix.Errno) {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: unsafe.SliceData(filter)}
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	fd, e := call(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)), 0, 0, 0)
	return int(fd), e
}

// SeccompReceive takes a call off a listener, waiting for one. ENOENT: it was given up meanwhile.
func SeccompReceive(listener int, c *SeccompCall) unix.Errno {
	*c = SeccompCall{} // the kernel wants zeroes
	_, e := call(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(c)), 0, 0, 0)
	return e
}

// SeccompContinue lets a call that was received go on. ENOENT: it was given up meanwhile.
func SeccompContinue(listener int, id uint64) unix.Errno {
	answer := struct { // struct seccomp_notif_resp
		id    uint64
		val   int64
		errno int32
		flags uint32
	}{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	_, e := call(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&answer)), 0, 0, 0)
	return e
}
