package launch

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

// A daemon's private mounts on the first thread would be the harness's mounts to everybody who looks at it.
func TestDaemonsAreNotStartedOnTheFirstThread(t *testing.T) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	first := 0
	for range 500 {
		wg.Add(1)
		onOwnThread(func() {
			defer wg.Done()
			if unix.Gettid() == unix.Getpid() {
				mu.Lock()
				first++
				mu.Unlock()
			}
		})
		wg.Wait()
	}
	assert.Zero(t, first)
}
