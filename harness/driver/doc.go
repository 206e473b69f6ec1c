// Package driver is a guest's driver that keeps the rules, on hosts that are not an author's
// machine: a share on another file system, few threads or descriptors, files with attributes of
// their own; and drivers that are not Linux's. It drives the real process over its real socket
// (package frontend), without a virtual machine.
//
// A [Case] makes its host (a file system in an image, an overlay, a control group), starts a daemon
// there, sends what a guest's kernel would send, and says of each thing looked at whether the
// answer is the one that a local file system gives. What the harness itself cannot do (no room for
// an image) is an error and says nothing of the daemon; what a daemon has no option for is declined
// by the check.
//
// The counterpart, for drivers that break the rules, is package hostile.
package driver
