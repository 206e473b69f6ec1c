package vhostuser

import (
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// Handler serves requests on one worker's thread. All its calls come from that one OS thread.
type Handler interface {
	// Serve answers one request. in and out are views of guest memory in any framing, never to be kept after the return. It
	// returns how many bytes it wrote to out: 0 for requests without an answer. It may block. Guest memory that has vanished
	// raises a panic inside, which the transport recovers.
	Serve(in, out []unix.Iovec) (used uint32)
	// Abort is called after a panic in Serve, before the next Serve: it puts the thread and the handler into their normal state.
	Abort()
	// Close is the last call.
	Close()
}

// Idler is a Handler that has use for the time in which its queue is empty.
type Idler interface {
	// Idle does a little work, some microseconds of it, that no request waits for, and reports whether there is more. It is called until there is
	// none, or a request comes, and 64 times at most by a worker that does not lead; always before the worker sleeps.
	Idle() (more bool)
}

// Backend is the device behind the transport.
type Backend interface {
	// NewHandler makes the handler of one worker of a queue (0 is the high-priority queue), on that worker's thread.
	NewHandler(queue int) (Handler, error)
	// Interrupt ends, with an error to the guest, what a queue's handlers wait for inside Serve
	// that may never come (a lock). It is called when the queue has to stop and does not drain by
	// itself.
	Interrupt(queue int)
	// Reset forgets the session: the front-end has reset the device or has gone. No Serve runs meanwhile.
	Reset()
}

// Config says how the device is to run. The zero value is usable but for Logger.
type Config struct {
	// Tag is the mount tag shown in the configuration space, at most 36 bytes; "" offers no configuration space (QEMU has its own).
	Tag string
	// MaxRequestQueues bounds the request queues, 1 to 64; 0 is 64.
	MaxRequestQueues int
	// Workers is how many workers of a queue may serve at once by choice; more are made, up to MaxWorkers, only to replace those
	// which are blocked. 0 chooses 2, 1 serves a queue's requests one after the other unless one blocks.
	Workers int
	// Threads bounds the workers of all queues together, 0 for no bound; there are at least
	// [MinThreads]. Where MaxRequestQueues would leave too few to replace those which are blocked,
	// a front-end is offered fewer queues.
	Threads int
	// Poll bounds how long a queue's leader polls before it sleeps; 0 never polls.
	Poll time.Duration
	// Hidden bounds how many threads, beside one more of the device's own, may sleep for a millisecond at a time without Go's scheduler
	// knowing; each keeps one of its processors (GOMAXPROCS) meanwhile, so there have to be many more. 0 hides none.
	Hidden int
	// Started, if not nil, is told how many queues there are, each time that one more is started:
	// threads of that many will wait in system calls, and each keeps a processor of Go's until the
	// runtime's watchdog comes round.
	Started func(queues int)
	Logger  *slog.Logger
}

// MaxWorkers is the most workers that a queue gets, blocked ones included.
const MaxWorkers = 64

// MinThreads is the least that Config.Threads may be: one for the high-priority queue, one for a
// request queue, and two more.
const MinThreads = 4

// Queues is how many request queues a device offers that may have so many workers, 0 for any
// number.
func (c Config) Queues() int {
	if c = c.withDefaults(); c.Threads > 0 {
		return min(c.MaxRequestQueues, max(1, c.Threads/2-1))
	}
	return c.MaxRequestQueues
}

// Extras is how many workers a device may have beyond the first of each queue, 0 for any number.
func (c Config) Extras() int {
	if c.Threads > 0 {
		return max(2, c.Threads-1-c.Queues())
	}
	return 0
}

// MaxRequestQueues is the most request queues of a device.
const MaxRequestQueues = 64

func (c Config) withDefaults() Config {
	if c.MaxRequestQueues <= 0 || c.MaxRequestQueues > MaxRequestQueues {
		c.MaxRequestQueues = MaxRequestQueues
	}
	if c.Workers <= 0 {
		c.Workers = 2
	}
	c.Workers = min(c.Workers, MaxWorkers)
	return c
}

// Counters are what happened on one queue since the device was made.
type Counters struct {
	Requests  uint64 `json:"requests"`
	Malformed uint64 `json:"malformed"` // chains that made no sense, completed with length 0
	Faults    uint64 `json:"faults"`    // requests that ended because guest memory vanished, or by a defect of ours
	Signals   uint64 `json:"signals"`   // interrupts sent to the driver
	Sleeps    uint64 `json:"sleeps"`    // times the leader went to sleep
	PollHits  uint64 `json:"poll_hits"` // times polling found a request and saved a sleep
	Takeovers uint64 `json:"takeovers"` // times a spare took over from a leader inside a long request
	Workers   int    `json:"workers"`   // workers there are now
}
