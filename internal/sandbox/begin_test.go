package sandbox

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
)

// TestEachQueueHasAProcessorOfGo: with as many queues as threads that keep one in a system call,
// others are left, and none is ever taken back.
func TestEachQueueHasAProcessorOfGo(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
	for queues := range 66 {
		if queues == 0 {
			continue
		}
		before := runtime.GOMAXPROCS(0)
		Processors(queues)
		now := runtime.GOMAXPROCS(0)
		assert.GreaterOrEqual(t, now, queues+procs-4)
		assert.GreaterOrEqual(t, now, before)
		if queues <= 4 {
			assert.Equal(t, procs, now, "few queues stop no world")
		}
	}
	Processors(2)
	assert.Equal(t, procs-4+128, runtime.GOMAXPROCS(0))
}
