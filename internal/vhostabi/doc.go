// Package vhostabi is the wire format between a vhost-user front-end (the VMM) and back-end (the daemon), and the layout of
// the virtio structures that both of them share with the driver.
//
// It holds numbers and shapes, no behaviour: messages decode from bytes that were already copied, and each has a Validate which
// refuses what the specification does not allow, before anybody acts on it. All integers are little endian, as both the
// vhost-user protocol on the hosts we run on and virtio 1 have it.
//
// Sources: QEMU docs/interop/vhost-user.rst; Virtual I/O Device (VIRTIO) Version 1.2, sections 2.7 (split virtqueues), 5.11
// (file system device) and 6 (reserved feature bits).
package vhostabi
