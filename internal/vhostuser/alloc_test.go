//go:build !race

package vhostuser_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/vhostuser"
)

// From kick to call nothing is allocated, the front-end's part included.
func TestNoAllocation(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{Poll: 50 * time.Microsecond}, fe.Config{})
	q := d.Request(0)
	p := d.start(t, opQuick)
	q.Publish()
	require.NoError(t, q.WaitChain(p.Chain, time.Second))
	one := func() {
		q.Post(p.Chain)
		q.Publish()
		for {
			if c, _ := q.Reap(); c != nil {
				return
			}
			q.Wait()
		}
	}
	one()
	assert.Zero(t, testing.AllocsPerRun(20_000, one))
}
