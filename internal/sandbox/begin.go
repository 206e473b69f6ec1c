package sandbox

import (
	"math/bits"
	"os"
	"runtime"
	"sync"
	"time"

	"virtiofsd/internal/sys"
)

// timerSlack is how late the watchdog of Go's runtime, sysmon, may wake up in the serving process. A thread gets it from the one that makes it
// (prctl(2) PR_SET_TIMERSLACK), also after exec, and nothing else reaches sysmon. After each request that ends a silence of 10 ms and more it
// wakes up some 60 times, every 20 µs at first: that took 1.6 ms of processor time for a guest's request each 20 ms, when all else took 0.1.
const timerSlack = 20 * time.Millisecond

// procs is how many processors the serving process's Go has, or twice the machine's if that is more; the kernel shares the real ones out. A
// queue's leader that polls, or sleeps unseen, keeps one of them, and so does whoever waits in a system call until sysmon comes round, which
// it does at leisure. Whoever wakes up then needs another. 40 instead of 16 make nothing faster, also where 16 workers wait for a disk, and take
// 70 bytes more for each of 10,000 known inodes.
const procs = 16

// Begin is for the program's init, on its first thread: in the serving process it undoes for all threads but sysmon that they may wake up late.
// The runtime began with one processor, and with one or two threads beside these. Each is given a goroutine that keeps it until all have one;
// what threads make from then on is like them. What sysmon makes is like it, so whoever sleeps for somebody sets its own.
func Begin() {
	if os.Getenv(StageEnv) != stageChild {
		return
	}
	sys.SetTimerSlack(sys.DefaultSlack)
	tasks, _ := os.ReadDir("/proc/self/task") // the daemon needs /proc, and says so where its absence is an error
	var reached, left sync.WaitGroup
	left.Add(1)
	for range tasks { // two more than there are to reach: one that is just going to rest may be passed over for a new one
		reached.Add(1)
		go func() {
			sys.SetTimerSlack(sys.DefaultSlack) // before it is locked, for which the runtime makes one more thread, of this one
			runtime.LockOSThread()
			reached.Done()
			left.Wait()
			runtime.UnlockOSThread()
		}()
	}
	reached.Wait()
	left.Done()
	runtime.GOMAXPROCS(max(procs, 2*runtime.NumCPU()))
}

// Processors sees to it that Go has one for the leader of each of so many queues, and others beside
// these. Who wakes up and finds none waits until the watchdog has taken one from a thread that
// sleeps in a system call: with 64 queues, 40 ms for every 16.
func Processors(queues int) {
	const others = procs - 4 // of a device with one request queue, two more are enough
	if want := others + 1<<bits.Len(uint(queues-1)); want > runtime.GOMAXPROCS(0) {
		runtime.GOMAXPROCS(want) // rarely, as it stops the world
	}
}
