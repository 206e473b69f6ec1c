// Package vhostuser is the back-end's half of the vhost-user protocol and the engine that runs a device's queues.
//
// [Serve] speaks with one front-end over one connection: it answers messages, maps guest memory, and runs the queues until the
// front-end leaves. What the device does with a request is the [Backend]'s business; this package knows nothing of FUSE.
//
// # How a queue runs
//
// A queue has workers: goroutines locked to an OS thread each, for life, since a [Handler] may change the thread's credentials.
// One of them leads. The leader polls the ring for a bounded time, sleeps in epoll_wait on the kick eventfd (edge-triggered: the
// eventfd is never read), takes one chain at a time and serves it on the spot. So a request that comes alone costs no hand-off, and
// what has not been started stays in the ring, where another worker can take it.
//
// Leadership passes on in two cases. A leader about to move much data while more requests wait gives it to a spare worker, so that
// both copy at once. And a monitor, which ticks only while there is work, finds leaders that have been inside one request for
// longer than a tick: a slow disk, a lock, a FIFO. Nobody tries calls in a non-blocking form first, which would cost the common case
// a second system call; blocking is noticed when it happens. A leader that lost its role finishes its request and becomes a spare.
//
// # Locks
//
// Each queue has one mutex: it guards the ring, the messages' settings and the leadership, is held for some tens of nanoseconds per
// request, and never while a request is served or a thread sleeps. The device's mutex guards the memory table and is taken by
// control messages only. Order: device before queue.
//
// # Memory
//
// A change of memory makes a new table and moves every ring to it. Requests under way keep the table that they started with; it is
// unmapped when the last of them is done, so a request that blocks for ever holds up nobody.
package vhostuser
