package passthrough

import (
	"sync"
	"time"
)

// background runs what no request waits for, one after the other, until it is closed. The zero
// value is ready for use.
type background struct {
	mu     sync.Mutex // held while something runs
	closed bool
}

// after has f run after that time.
func (b *background) after(d time.Duration, f func()) {
	time.AfterFunc(d, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !b.closed {
			f()
		}
	})
}

// close waits for what runs. Nothing runs afterwards.
func (b *background) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
}
