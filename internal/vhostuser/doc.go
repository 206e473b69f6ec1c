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
// what has not been started stays in the ring, where another worker can take it. Spare workers block in the read of an eventfd: a
// locked goroutine that waits in Go's scheduler instead takes two wake-ups to get going.
//
// While it polls, a leader also minds the high-priority queue (FORGET), whose own leader sleeps: that one need not be woken up for a request
// that comes right behind others.
//
// A handler that is an [Idler] gets the time in which the leader would poll for requests to come, a few microseconds at a time.
//
// Others come to work beside the leader, taking from the same ring, in three cases.
//   - The leader is blocked inside a request: a lock, a FIFO, a slow disk. A monitor, which ticks only while there is work, finds that
//     out within two milliseconds and gives the leadership away. Nobody tries calls in a non-blocking form first, which would cost the
//     common case a second system call; blocking is noticed when it happens.
//     A leader that computes for so long is replaced as well, until as many as there are processors do: the clock of its thread tells.
//   - Requests wait in the ring while those served take long and the leader's thread uses little processor time: a disk again, less slow.
//     The monitor doubles the number of workers wanted with each tick, and takes them back when requests become fast.
//   - A reply of 64 KiB or more is asked for and more requests wait: two processors copy faster than one. A helper that came
//     too late to find one cost more than it did; the next is called later, the oftener that happens.
//
// Where the process may have only so many threads (Config.Threads), every queue has its first
// worker for sure, and all share the others. A blocked leader that gets no deputy keeps the queue
// until the monitor finds one for it: spares of other queues end for that.
//
// Cheap requests at depth stay with one worker: two would share the ring's cache lines and wake each other.
//
// Between the requests of a busy queue its leader sleeps behind the back of Go's scheduler, and so does the monitor. Where sleeps are
// short, what the runtime does about threads in system calls costs more than the requests do.
//
// # Locks
//
// Each queue has one mutex, on which threads wait in the kernel (sys.Mutex) for the same reason
// that spares do: it guards the ring, the messages' settings and the roles of workers. It is held
// for some tens of nanoseconds per request, and never while a request is served, a descriptor of
// the front-end's is written, waited for or closed, or a line is logged: each of those may block.
// The monitor takes it by TryLock only, but for the moment before it parks. Nobody holds two, but
// who begins or ends to mind the high-priority queue or looks into it: its own queue's, then that
// one's. One leader does at a time, and no other touches that lock meanwhile.
//
// # Memory
//
// A change of memory makes a new table and moves every ring to it. Requests under way keep the table that they started with; it is
// unmapped when the last of them is done, so a request that blocks for ever holds up nobody.
//
// # The end
//
// A queue that stops finishes what is under way. GET_VRING_BASE waits for that as long as the front-end does: it may not have its ring
// back while somebody writes to the guest's memory. When the front-end has left or the process is to end, patience is bounded; what then
// is still inside the host's file system keeps its memory, and [ErrStuck] tells the caller to end the process.
package vhostuser
