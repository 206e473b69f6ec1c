// Command vfsguest is the whole user space of a test guest: PID 1 of its initramfs.
//
// It mounts proc, sys, dev and a tmpfs, loads the modules of the image, opens the virtio-serial port that package guestproto names,
// mounts the virtio-fs tags of the kernel command line (vfs.mount=TAG or vfs.mount=TAG:OPTIONS, any number of them) at /mnt/TAG,
// says hello, and then serves the calls of package workload, one at a time, until "poweroff", and a person's session (session.go). A share that cannot be mounted is a fact in the
// hello, not a failure. A panic in a call is that call's error. What keeps the agent from working at all is sent over the port, if
// there is one, printed on the console, and the guest powers off.
//
// Started with other arguments (vfsguest child NAME), it is a helper process of a workload: another user, or posixtest.
package main
