// Package virtqueue is the device's side of a split virtqueue (VIRTIO 1.2, section 2.7): taking descriptor chains from the avail
// ring, putting them on the used ring, and saying who has to be told.
//
// A [Ring] is the ring's state. It is not safe for use by several goroutines: its owner locks. The work on a chain is divided so
// that little happens under that lock: [Ring.Next] takes one head from the avail ring; [Ring.Layout].Chain then walks the
// descriptors, which needs no lock; [Ring.Push] publishes the used element.
//
// Everything in the ring is written by a guest that may be hostile and may change it while we look: each field is read once and
// the copy is checked. A chain that makes no sense is an error of that chain alone (the owner completes it with length 0 and goes
// on); only a ring whose avail index cannot be right is broken as a whole ([ErrBroken]).
package virtqueue
