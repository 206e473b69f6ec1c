package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// interruptSignal has no meaning to the kernel, the Go runtime or a C library: a real-time signal from the upper end.
const interruptSignal = 62

// signalAction is the start of what rt_sigaction(2) of all 64-bit architectures takes (include/linux/signal_types.h, struct
// sigaction): handler, flags, then a restorer where there is one, and a mask of 64 signals.
type signalAction struct {
	handler, flags uintptr
	rest           [4]uintptr
}

const saRestart = 0x10000000 // include/uapi/asm-generic/signal-defs.h

// PrepareInterrupt makes [Interrupt] work in this process. Go's runtime has a handler for every signal, which does nothing about
// this one, but asks the kernel to begin interrupted calls anew; that is what is taken back.
func PrepareInterrupt() unix.Errno {
	var a signalAction
	if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, interruptSignal, 0, uintptr(unsafe.Pointer(&a)), 8, 0, 0); e != 0 {
		return e
	}
	a.flags &^= saRestart
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, interruptSignal, uintptr(unsafe.Pointer(&a)), 0, 8, 0, 0)
	return e
}

// Interrupt ends, with EINTR, the system call in which a thread of this process waits.
func Interrupt(tid int) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_TGKILL, uintptr(unix.Getpid()), uintptr(tid), interruptSignal)
	return e
}
