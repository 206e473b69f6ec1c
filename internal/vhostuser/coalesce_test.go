package vhostuser

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// told serves n requests that wait at once, each taking the given time, and returns after which of them the driver was told.
func (c *coalescer) told(n int, each time.Duration) (after []int) {
	var at time.Duration
	for i := 1; i <= n; i++ {
		at += each
		c.untold++
		if more := n - i - 1; more < 0 || c.due(more, func() time.Duration { return at }) {
			c.untold = 0
			after = append(after, i)
		}
	}
	return after
}

func TestDriverIsToldOfSeveralQuickRequestsAtOnce(t *testing.T) {
	var c coalescer
	for range 8 {
		c.told(64, time.Microsecond)
	}
	assert.Equal(t, []int{16, 32, 48, 56, 60, 62, 63, 64}, c.told(64, time.Microsecond), "halves, so that the driver works while we do")
	assert.Equal(t, []int{1, 2}, c.told(2, time.Microsecond))
	assert.Equal(t, []int{1}, c.told(1, time.Microsecond), "who waits for one request waits for no other")
}

// TestDriverIsToldOfAsManyAsTakeAMoment: writes of 4 KiB take some 6 µs each.
func TestDriverIsToldOfAsManyAsTakeAMoment(t *testing.T) {
	const each = 6 * time.Microsecond
	var c coalescer
	tellings, longest := 0, 0
	for range 50 {
		c.told(64, each)
	}
	for range 100 {
		last := 0
		for _, i := range c.told(64, each) {
			tellings, longest, last = tellings+1, max(longest, i-last), i
		}
	}
	assert.Less(t, tellings, 100*64/3)
	assert.LessOrEqual(t, time.Duration(longest)*each, 2*(coalesceTime+each), "a try with twice as many")
}

func TestDriverIsToldOfSlowRequestsAtOnce(t *testing.T) {
	var c coalescer
	for range 8 {
		c.told(64, time.Microsecond)
	}
	first := c.told(64, 50*time.Microsecond)
	assert.Greater(t, len(first), 40, "one batch shows that they are slow")
	late := 0
	for range 10 {
		late += 64 - len(c.told(64, 50*time.Microsecond))
	}
	assert.LessOrEqual(t, late, 10, "and is tried again now and then")
	for range 20 {
		c.told(64, time.Microsecond)
	}
	assert.Less(t, len(c.told(64, time.Microsecond)), 10, "quick ones are found out again")
}
