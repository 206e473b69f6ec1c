package daemon

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// heapLeast is how far the heap may grow before the collector runs, in bytes. Go's own is a quarter of that, which a guest that lists some
// thousand files fills each time: READDIRPLUS of what is not known yet took 5 to 20 % longer.
const heapLeast = 16 << 20

// growth is how far the heap may grow until the collector runs again, in percent of what was alive: to twice as much, or to heapLeast. It
// goes by fifties, as each change stops the process for a moment.
func growth(alive uint64) int {
	const least, most, step = 100, 400, 50
	if alive == 0 {
		return most
	}
	return int(min(max(100*heapLeast/alive/step*step, least), most)) // most gives heapLeast from the start: Go begins with 4 MiB at 100
}

// collection is alive until the collector runs; its finalizer is called then, and sets the next one.
type collection struct{ percent *int }

func (c *collection) over() {
	alive := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(alive)
	if p := growth(alive[0].Value.Uint64()); p != *c.percent {
		*c.percent = p
		debug.SetGCPercent(p)
	}
	runtime.SetFinalizer(c, (*collection).over)
}

// tuneCollector has the collector go by growth, unless who starts the daemon decides by GOGC.
func tuneCollector() {
	if os.Getenv("GOGC") != "" {
		return
	}
	p := growth(0)
	debug.SetGCPercent(p)
	runtime.SetFinalizer(&collection{&p}, (*collection).over)
}

// What is forgotten together is given back to the host together, and not more often than now and then, as the whole heap is looked at for it.
const (
	giveBackAfter = 500 * time.Millisecond
	giveBackAgain = time.Second
	giveBackShare = 20 // times as long as it took: at most a twentieth of the time is spent on it, whatever a guest does
)

// giveBack gives memory back to the host when a guest has forgotten most of what it knew, as when it drops its caches: the collector would come
// round to it when the heap has grown again, which may be never.
func giveBack(ctx context.Context, forgot <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-forgot:
		}
		if !rest(ctx, giveBackAfter) {
			return
		}
		began := time.Now()
		debug.FreeOSMemory()
		if !rest(ctx, max(giveBackAgain, giveBackShare*time.Since(began))) {
			return
		}
	}
}

// rest waits, and reports whether ctx is still going on.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
