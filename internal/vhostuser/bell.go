package vhostuser

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Whoever speaks with the front-end waits for it in poll(2) on a thread of its own, and not in Go's
// poller. Nobody waits for that one while other threads are in system calls, and so hold processors
// of Go's: what comes is then found by the runtime's watchdog, which wakes up late here. A
// connection that was set up so took 30 ms for each queue.

// errRung says that a wait was ended by the bell.
var errRung = errors.New("the wait was ended")

// bell ends the waits of one thread for good.
type bell struct {
	mu sync.Mutex
	fd int // eventfd, -1 once closed
}

func newBell() (*bell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd: %w; raise the limit of open files", err)
	}
	return &bell{fd: fd}, nil
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fd >= 0 {
		ring(b.fd, 1)
	}
}

func (b *bell) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	closeAll(&b.fd)
}

// wait waits until fd is ready for one of events or at its end, or the bell has rung.
func (b *bell) wait(fd int, events int16) error {
	p := [...]unix.PollFd{{Fd: int32(b.fd), Events: unix.POLLIN}, {Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(p[:], -1)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("wait for a descriptor: %w", err)
		case p[0].Revents != 0:
			return errRung
		default:
			return nil
		}
	}
}
