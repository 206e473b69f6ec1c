// Package frontend is the other side of a vhost-user-fs daemon: a vhost-user front-end, a virtio driver and a FUSE client in
// one, so that any daemon can be tested, attacked and measured over its real socket without a virtual machine.
//
// It has four layers, and a test may enter at each:
//
//   - Conn speaks vhost-user (QEMU's docs/interop/vhost-user.rst): framed messages, or any bytes with any descriptors.
//   - Memory is the guest's RAM: one memfd a region, mapped here and handed to the daemon. Guest physical addresses and
//     "user addresses" are made up and differ from each other, so that a daemon which confuses them is found out.
//   - Queue is the driver's end of a split virtqueue (virtio 1.2, section 2.7), with indirect tables and event indices
//     where they were negotiated. Alongside the well-behaved calls, every ring field and descriptor can be written raw.
//   - FUSE sends requests and decodes replies, framed as Linux's virtio_fs driver frames them or in any other way.
//
// Connect does what a VMM and a guest's driver do until the device runs; the order of messages is QEMU's.
//
// Two ways of waiting exist, because they answer different questions. Wait blocks in read(2) of the call eventfd, as a guest
// whose interrupt has to arrive; Reap looks at the used ring only, as a guest that polls. Nothing on the path Post, Kick,
// Wait, Reap allocates or locks, so that the front-end is not what a benchmark measures.
//
// A Queue belongs to one goroutine at a time. Device and Memory may be shared once Connect has returned.
package frontend
