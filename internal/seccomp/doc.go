// Package seccomp is the daemon's system call filter: an allow-list as data, with a reason for each line, and its installation on
// every thread with a check that it took.
//
// The list is what the serving process needs after its sandbox is set up. What is not on it is refused by the action that the
// user chose. A filter can only look at numbers: where an argument decides (a clone flag, a prctl operation), the line says which.
//
// Sources: seccomp(2), linux/seccomp.h; the Go runtime's own calls were read from a trace.
package seccomp
