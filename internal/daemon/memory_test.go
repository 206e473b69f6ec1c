package daemon

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestHeapMayGrow(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		alive uint64
		want  int
	}{{0, 400}, {1 * mib, 400}, {4 * mib, 400}, {8 * mib, 200}, {11 * mib, 100}, {16 * mib, 100}, {1 << 40, 100}} {
		assert.Equal(t, tc.want, growth(tc.alive), "%d", tc.alive)
	}
}
