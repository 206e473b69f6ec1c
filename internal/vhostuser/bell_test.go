package vhostuser_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/vhostuser"
)

// polledSockets are the sockets of this process that some epoll of it waits for: Go's poller has
// one.
func polledSockets(t *testing.T) (all []string) {
	t.Helper()
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	require.NoError(t, err)
	for _, info := range infos {
		b, err := os.ReadFile(info)
		if err != nil {
			continue // it was the list's own
		}
		for line := range strings.Lines(string(b)) {
			var fd int
			if n, _ := fmt.Sscanf(line, "tfd: %d", &fd); n == 1 {
				if to, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); strings.HasPrefix(to, "socket:") {
					all = append(all, to)
				}
			}
		}
	}
	return all
}

// TestFrontEndDoesNotWaitForGoPoller: what a front-end sends is seen at once, also where all other
// threads are in system calls. Go's poller would see it when the runtime's watchdog comes round.
func TestFrontEndDoesNotWaitForGoPoller(t *testing.T) {
	before := polledSockets(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := vhostuser.Listen(path, "")
	require.NoError(t, err)
	defer l.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		c, err := l.Accept(ctx)
		if err == nil {
			admit := l.Refuse(c)
			err = vhostuser.Serve(ctx, c, &echo{}, vhostuser.Config{Logger: (&journal{}).logger()}, nil)
			admit()
		}
		ended <- err
	}()
	time.Sleep(20 * time.Millisecond)
	assert.Equal(t, before, polledSockets(t), "of the listener")
	d, err := fe.Connect(t.Context(), fe.Config{Socket: path, RequestQueues: 2})
	require.NoError(t, err)
	defer d.Close()
	assert.Equal(t, before, polledSockets(t), "of the connection and of who refuses others")
	stop()
	select {
	case err := <-ended:
		assert.NoError(t, err, "what waits for the front-end ends when the process is to end")
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on waiting")
	}
}

// TestQueuesAreTold: who is to give Go a processor for each queue learns of each once.
func TestQueuesAreTold(t *testing.T) {
	var told []int
	d := serve(t, &echo{}, vhostuser.Config{Started: func(n int) { told = append(told, n) }}, fe.Config{RequestQueues: 3})
	for q := range 4 {
		d.quick(t, q)
	}
	_, err := d.Stop(d.Request(1))
	require.NoError(t, err)
	require.NoError(t, d.Restart(d.Request(1)))
	d.quick(t, 2)
	assert.Equal(t, []int{1, 2, 3, 4}, told)
}
