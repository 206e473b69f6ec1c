// Package fuse is a virtio-fs session: it takes requests as they lie in guest memory, checks them, has a Filesystem carry
// them out, and writes replies.
//
// A Session is shared by all queues. It hands out one Worker a thread; a Worker owns its buffers, so serving a request
// allocates nothing and shares nothing but the file system's own tables. Serve works in three steps:
//
//  1. copy: header, fixed arguments and names come out of guest memory once. File data never does: READ and WRITE pass
//     the guest's own segments to the kernel.
//  2. check: length against the segments, arguments against the opcode's minimum, names against what a name may be, room for
//     the reply before anything is done. A request which fails is answered with an errno if its header can be read
//     and a header has room, and with nothing otherwise. No bytes make it panic.
//  3. act and reply. A reply's header goes out last.
//
// Filesystem and Thread are what a file system implements; internal/passthrough is the one of this daemon. Thread's methods
// get structures of internal/fuseabi that lie in the Worker's buffer: private to the thread, but the guest chose every bit.
//
// No lock is held and no foreign credential is in force while guest memory is touched, so a memory fault in Serve
// (which the transport recovers before it calls Abort) leaves at worst an object which the guest was not told about; Reset takes it away.
package fuse
