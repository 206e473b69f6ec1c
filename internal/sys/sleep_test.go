package sys_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

// threadTime is the processor time of the calling thread.
func threadTime(t *testing.T) time.Duration {
	var ts unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts))
	return time.Duration(ts.Nano())
}

// Who waits for a word or for a mutex sleeps: it takes next to no processor time.
func TestWaitingIsSleeping(t *testing.T) {
	const held = 200 * time.Millisecond
	var word atomic.Uint32
	var m sys.Mutex
	for what, wait := range map[string]func(){
		"word": func() {
			for word.Load() == 0 {
				sys.SleepWhile(&word, 0)
			}
		},
		"mutex": func() { m.Lock(); defer m.Unlock() },
	} {
		m.Lock()
		took := make(chan time.Duration)
		began := time.Now()
		go func() {
			runtime.LockOSThread()
			before := threadTime(t)
			wait()
			took <- threadTime(t) - before
		}()
		time.Sleep(held)
		m.Unlock()
		word.Store(1)
		sys.Wake(&word)
		assert.Less(t, <-took, held/4, what)
		assert.GreaterOrEqual(t, time.Since(began), held, what)
	}
	began := time.Now()
	sys.SleepWhile(&word, 0) // it is 1
	assert.Less(t, time.Since(began), time.Second)
}

// Short locks, taken and given back all the time, by threads that spin more than they sleep: no
// step is lost.
func TestShortLocksExclude(t *testing.T) {
	var m sys.Mutex
	var wg sync.WaitGroup
	const each = 200_000
	n := 0
	for range 3 {
		wg.Go(func() {
			runtime.LockOSThread()
			for range each {
				m.Lock()
				n++
				m.Unlock()
			}
		})
	}
	wg.Wait()
	assert.Equal(t, 3*each, n)
}

// A sleep with a time that is none is refused.
func TestHeldSleepsTellErrors(t *testing.T) {
	assert.Equal(t, unix.EINVAL, sys.NanosleepHeld(&unix.Timespec{Nsec: 1 << 40}))
	_, e := sys.EpollWaitHeld(-1, make([]unix.EpollEvent, 1))
	assert.Equal(t, unix.EBADF, e)
}
