package sys_test

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

func TestMutexExcludes(t *testing.T) {
	var m sys.Mutex
	var wg sync.WaitGroup
	n, inside := 0, 0
	for range 8 {
		wg.Go(func() {
			runtime.LockOSThread()
			for i := range 2000 {
				m.Lock()
				inside++
				n++
				if i%100 == 0 {
					time.Sleep(10 * time.Microsecond) // others have to sleep, too
				}
				assert.Equal(t, 1, inside)
				inside--
				m.Unlock()
			}
		})
	}
	wg.Wait()
	assert.Equal(t, 16_000, n)

	require.True(t, m.TryLock())
	assert.False(t, m.TryLock())
	m.Unlock()
	assert.Panics(t, m.Unlock)
}

// A sleep that is hidden from the scheduler ends by itself, by an event, and for a collector that stops the world.
func TestHeldSleeps(t *testing.T) {
	began := time.Now()
	ts := unix.NsecToTimespec(int64(2 * time.Millisecond))
	if sys.NanosleepHeld(&ts) == 0 { // or a signal of Go's came
		assert.GreaterOrEqual(t, time.Since(began), 2*time.Millisecond)
	}

	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(epoll)
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(event)
	require.NoError(t, unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, event, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(event)}))
	var ev [2]unix.EpollEvent
	n, _ := sys.EpollWaitHeld(epoll, ev[:], 1)
	assert.Zero(t, n)
	_, err = unix.Write(event, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	require.NoError(t, err)
	n, e := sys.EpollWaitHeld(epoll, ev[:], 1000)
	assert.Zero(t, e)
	require.Equal(t, 1, n)
	assert.EqualValues(t, event, ev[0].Fd)

	if runtime.GOMAXPROCS(0) < 2 {
		return
	}
	asleep := make(chan unix.Errno)
	go func() {
		ts := unix.NsecToTimespec(int64(20 * time.Second))
		asleep <- sys.NanosleepHeld(&ts)
	}()
	time.Sleep(5 * time.Millisecond)
	began = time.Now()
	runtime.GC()
	assert.Less(t, time.Since(began), 10*time.Second, "the world stops although a thread sleeps")
	assert.Equal(t, unix.EINTR, <-asleep)
}
