package daemon

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Without preemption by signals nobody could interrupt a thread that sleeps unseen.
func TestNobodySleepsUnseenWithoutPreemption(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	assert.Equal(t, 7, mostHidden())
	t.Setenv("GODEBUG", "madvdontneed=1,asyncpreemptoff=1")
	assert.Zero(t, mostHidden())
}

func TestHeapMayGrow(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		alive uint64
		want  int
	}{{0, 400}, {1 * mib, 400}, {4 * mib, 400}, {8 * mib, 200}, {11 * mib, 100}, {16 * mib, 100}, {1 << 40, 100}} {
		assert.Equal(t, tc.want, growth(tc.alive), "%d", tc.alive)
	}
}
