package vhostuser

import "time"

// An interrupt costs the driver and us as much as several quick requests do, so where requests wait in the ring the driver is told of
// several at once. Nobody waits long for that: it is told when as many were done as still wait, when coalesceMost were done, and when there
// is no next request. Requests are not quick for ever: where a batch took longer than coalesceTime, the next hastyFor times the
// driver is told at once.
const (
	coalesceMost = 16
	coalesceTime = 20 * time.Microsecond
	hastyFor     = 256
)

// coalescer decides when the driver is told of what was pushed. Its zero value tells at once, and tries more. It is guarded by the queue's
// mutex.
type coalescer struct {
	untold int           // pushed since the driver was told last
	since  time.Duration // when the first of them was pushed, by the clock that due is given
	most   int           // how many may be untold
	hasty  int           // how many more times the driver is told at once
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
	switch {
	case c.hasty > 0:
		if c.hasty--; c.hasty == 0 {
			c.most = 2
		}
	case c.untold > 1 && now()-c.since > coalesceTime:
		c.most, c.hasty = 1, hastyFor
	case c.untold >= c.most:
		c.most = min(max(2*c.most, 2), coalesceMost)
	}
	return true
}
