// Package daemon puts the parts together: options, listener, sandbox, file system, transport; and takes them apart in the right order.
//
// # Start
//
// Options are checked, stray descriptors closed, the socket bound, limits raised. Then the plan: where it needs new namespaces, this
// process becomes the parent of the one that serves, hands it the socket, gives up every privilege and waits. Otherwise it enters
// the sandbox itself. Only a process inside its sandbox accepts a front-end, and only then says that it waits for one.
//
// # End
//
// When the front-end leaves, the daemon ends with status 0. TERM, INT and HUP end it too: requests under way are finished, for a second
// at most. Socket and pid file are removed. Parent and child end together, whichever is killed: the child by a signal at the
// parent's death and by the end of the pipe between them, the parent by waiting for the child, whose status it passes on.
package daemon
