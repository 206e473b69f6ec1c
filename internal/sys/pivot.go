package sys

import "golang.org/x/sys/unix"

// PivotRootFiltered reports whether a filter of system calls keeps the caller from pivot_root(2), although it may mount in its mount
// namespace. Both calls are made without a path: whom the kernel lets in gets EFAULT, a filter answers before that, and so does
// the kernel (EPERM) to who may not mount here: then nothing is known.
func PivotRootFiltered() bool {
	_, _, mount := unix.RawSyscall(unix.SYS_OPEN_TREE, ^uintptr(0), 0, unix.OPEN_TREE_CLONE)
	_, _, pivot := unix.RawSyscall(unix.SYS_PIVOT_ROOT, 0, 0, 0)
	return mount == unix.EFAULT && pivot != unix.EFAULT
}

// RefusedCall makes a system call with arguments that the kernel refuses, to see whether a filter
// lets the process live.
func RefusedCall(nr uintptr) {
	_, _, _ = unix.RawSyscall6(nr, ^uintptr(0), 0, ^uintptr(0), 0, 0, 0)
}
