package vhostuser

import "time"

// An interrupt costs the driver and us as much as several quick requests do, so where requests wait in the ring the driver is told of
// several at once. Nobody waits long for that: it is told when as many were done as still wait, when as many were done as take some
// coalesceTime, coalesceMost in any case, and when there is no next request. How many that are is found out by trying twice as many; where
// they took longer, there is no other try in the next heldFor times.
const (
	coalesceMost = 16
	coalesceTime = 20 * time.Microsecond
	heldFor      = 256
)

// coalescer decides when the driver is told of what was pushed. Its zero value tells at once, and tries more. It is guarded by the queue's
// mutex.
type coalescer struct {
	untold int           // pushed since the driver was told last
	since  time.Duration // when the first of them was pushed, by the clock that due is given
	most   int           // how many may be untold
	held   int           // how many more times most stays
}

// due reports whether the driver is to be told now, while a request is about to be served and more wait besides.
func (c *coalescer) due(more int, now func() time.Duration) bool {
	if c.untold == 0 {
		return false
	}
	if c.untold < c.most && c.untold < more {
		if c.untold == 1 {
			c.since = now()
		}
		return false
	}
	if c.untold > 1 {
		if took := now() - c.since; took > coalesceTime {
			c.most, c.held = 1+int(coalesceTime*time.Duration(c.untold-1)/took), heldFor
			return true
		}
	}
	switch {
	case c.held > 0:
		c.held--
	case c.untold >= c.most:
		c.most = min(max(2*c.most, 2), coalesceMost)
	}
	return true
}
