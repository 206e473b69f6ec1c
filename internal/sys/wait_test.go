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
	_, err = unix.Write(event, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	require.NoError(t, err)
	n, e := sys.EpollWaitHeld(epoll, ev[:])
	assert.Zero(t, e)
	require.Equal(t, 1, n)
	assert.EqualValues(t, event, ev[0].Fd)
	require.NoError(t, unix.EpollCtl(epoll, unix.EPOLL_CTL_DEL, event, nil))

	if runtime.GOMAXPROCS(0) < 2 {
		return
	}
	for name, sleep := range map[string]func() unix.Errno{
		"nanosleep": func() unix.Errno {
			ts := unix.NsecToTimespec(int64(20 * time.Second))
			return sys.NanosleepHeld(&ts)
		},
		"epoll_wait": func() unix.Errno {
			var ev [2]unix.EpollEvent
			_, e := sys.EpollWaitHeld(epoll, ev[:])
			return e
		},
	} {
		for range 20 {
			asleep := make(chan unix.Errno, 1)
			go func() { asleep <- sleep() }()
			runtime.Gosched() // it may be anywhere: before the call, inside
			began = time.Now()
			runtime.GC()
			assert.Less(t, time.Since(began), 10*time.Second, "the world stops although a thread sleeps")
			runtime.GC()
			assert.Equal(t, unix.EINTR, <-asleep, name)
		}
	}
}
