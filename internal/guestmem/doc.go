// Package guestmem maps guest memory and is the only place of the daemon that touches it.
//
// A [Table] is an immutable set of mapped regions. A change of memory makes a new table; the old one stays mapped until the last
// thread that works with it has let go ([Table.Drop], called once nobody can reach it). Addresses come from the guest
// (physical) or from the front-end (its own virtual ones, for the rings): each is checked against the regions before use.
//
// Two kinds of access leave this package: [View], a span with atomic accessors, for rings; and
// unix.Iovec lists, for data, which the kernel reads and writes directly. The memory is shared with
// a hostile guest: whoever reads a field copies it once and checks the copy. It may also vanish (a
// memfd truncated by its owner): touching it then raises SIGBUS, and EFAULT inside system calls.
// SIGBUS ends the process, but between [Touch] and [Touching.End] it is a panic that can be
// recovered.
package guestmem
