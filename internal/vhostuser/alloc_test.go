//go:build !race

package vhostuser_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/vhostuser"
)

// From kick to call nothing is allocated, the front-end's part included, be the ring polled or slept on.
func TestNoAllocation(t *testing.T) {
	for name, cfg := range map[string]vhostuser.Config{
		"polled": {Poll: 50 * time.Microsecond}, "slept on": {}, "slept on unseen": {Hidden: 4},
	} {
		t.Run(name, func(t *testing.T) {
			d := serve(t, &echo{}, cfg, fe.Config{})
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
			const runs = 20_000
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range runs {
				one()
			}
			runtime.ReadMemStats(&after)
			assert.Less(t, after.Mallocs-before.Mallocs, uint64(runs/50), "but for what the runtime does meanwhile")
		})
	}
}
