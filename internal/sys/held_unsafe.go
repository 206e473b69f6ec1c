package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below sleep without telling Go's scheduler. It goes on to count the thread as running Go code, so that going to sleep and
// waking up cost it nothing; its watchdog thread, which looks after threads in system calls every 20 µs, finds none. The price is that a
// thread that sleeps so keeps a processor of Go's (GOMAXPROCS) to itself, and that a collector which stops the world has to interrupt
// it by a signal, to which both calls answer with EINTR; it sends them until it has its way. They are for a millisecond or so: after ten, the
// watchdog sends signals, too.

// EpollWaitHeld is epoll_wait(2) without a timeout: somebody else has to see to it that it ends.
func EpollWaitHeld(epfd int, events []unix.EpollEvent) (int, unix.Errno) {
	const forever = ^uintptr(0)
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), forever, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}

// NanosleepHeld is nanosleep(2).
func NanosleepHeld(d *unix.Timespec) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(d)), 0, 0)
	return e
}
