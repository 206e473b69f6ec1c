// Package hostile attacks a vhost-user-fs daemon from both of its untrusted sides: as a guest that breaks the rules of FUSE and
// of the ring, and as a front-end that breaks those of vhost-user. It drives the real process over its real socket.
//
// A Case is one rule broken in one way. After each breach by the guest, a GETATTR has to succeed on the same queue and a
// request on another one; after each breach by the front-end, the process has to live on or to end with an exit status of its own.
// Nothing outside the shared directory may have changed. What is seen is put into a closed list of outcomes, so that
// daemons can be compared: see Outcome.
//
// Each case gets a process of its own, because some daemons do not survive.
package hostile
