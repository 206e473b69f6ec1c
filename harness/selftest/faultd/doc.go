// Package faultd is a daemon with one fault, for the self-test of the harness: a claim that was never seen to fail proves nothing.
//
// A faulty daemon is the real one, begun by [Main] under the name fault-NAME. Three means make the fault, none of which changes the real
// daemon's program, so that they work on any daemon:
//
//   - its command line is changed: a defence is switched off that has a switch;
//   - something is done before it begins, in its own process: a descriptor is opened, a child left, a file written;
//   - it is traced (ptrace(2)), and single system calls are answered otherwise than the kernel would: setgroups(2) succeeds without having
//     dropped a group, pwritev2(2) writes another byte, unlinkat(2) leaves the socket where it is.
//
// The tracer is no child of the daemon: the probes must see the daemon's own tree of processes. It ends with the daemon, and if it is
// killed, the kernel kills what it traces. A call that is to be left out becomes gettid(2), which every filter allows.
//
// [Guest] is the other faulty part: an agent of the guest which says that all was done, and did nothing.
package faultd
