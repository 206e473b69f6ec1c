// Package daemon puts the parts together: options, listener, sandbox, file system, transport; and takes them apart in the right order.
//
// # Start
//
// Options are checked, stray descriptors closed, limits raised. Then the plan: this process starts the one that serves, which enters the
// sandbox and reports what it has reached there. Only then the socket appears. The parent stays outside, whatever the mode: it can
// remove socket and pid file in the end, and say how the other ended. It gives up its privileges, and only then lets the other
// accept a front-end and say that it waits for one.
//
// # End
//
// When the front-end leaves, the daemon ends with status 0. TERM, INT and HUP end it too: requests under way are finished, for a second
// at most. Socket and pid file are removed. Parent and child end together, whichever is killed: the child by a signal at the
// parent's death and by the end of the pipe between them, the parent by waiting for the child, whose status it passes on.
package daemon
