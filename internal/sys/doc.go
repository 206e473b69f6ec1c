// Package sys holds the system calls that golang.org/x/sys lacks or wraps at a cost: statx into a caller's buffer, vectored reads and
// writes of guest memory, extended attributes by descriptor path, export handles, the listener of a seccomp filter, and
// credentials of one thread.
//
// They allocate nothing, take what they write to from the caller, and return the bare errno, which goes to the guest as it is. What may block in
// the host's file system goes through syscall.Syscall, so that the runtime knows; RawSyscall is for what never does.
//
// [Creds] is the guard of a worker's identity: it becomes a guest's caller for one call, and takes the thread's own ids back
// whatever happened. If that fails the process ends, because a worker with wrong ids must not serve.
package sys
