// Package fuseabi is the FUSE protocol as it lies on the wire: opcodes, flags, the layout of requests and replies, and a
// way to take them out of memory that belongs to somebody else.
//
// The structures are those of linux/fuse.h. Where go-fuse exports one it is used (request structures of go-fuse begin with
// the header, so one view covers header and fixed arguments); what go-fuse keeps to itself is defined here. All are checked
// against the header's sizes and offsets by this package's tests. Both ends are little endian, as virtio 1.2 section 5.11
// asks for.
//
// A request arrives as a list of memory segments which the guest cut as it liked and goes on writing to. CopyIn takes bytes
// out of them exactly once, View lays a structure over the copy, and nothing else ever reads a field from guest memory.
// CopyOut writes a reply over any number of segments, and Sub names a part of the segments, for system calls that move file
// data without a copy of ours.
//
// Only CopyIn and CopyOut touch guest memory. When it vanishes (its memfd was truncated) they raise a memory fault,
// which whoever owns the thread recovers.
package fuseabi
