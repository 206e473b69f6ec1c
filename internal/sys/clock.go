package sys

import "time"

// epoch is what Clock counts from. A difference costs one reading of the monotonic clock; time.Now would read two.
var epoch = time.Now()

// Clock is a monotonic clock for durations: the time since some moment of this process.
func Clock() time.Duration { return time.Since(epoch) }
