package daemon_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/testenv"
)

// TestStopHasABound: SIGTERM ends the daemon also where its serving process cannot do anything any
// more. A process that is stopped stands for one whose threads wait for a page of the front-end's
// memory, of which Go's runtime can stop none.
func TestStopHasABound(t *testing.T) {
	testenv.Need(t, "root", "userns")
	for _, l := range []launcher{
		{}, {args: "--uid-map=:0:100000:65536: --gid-map=:0:100000:65536:"}, {args: "--sandbox=none"}, {as: user()}, {as: user(), args: "--sandbox=none"},
	} {
		t.Run(l.args, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			d := h.start(t, l)
			h.serve(t)
			require.NoError(t, unix.Kill(d.ServingPID(), unix.SIGSTOP))
			began := time.Now()
			require.NoError(t, unix.Kill(d.PID(), unix.SIGTERM))
			select {
			case <-d.Done():
			case <-time.After(30 * time.Second):
				require.FailNow(t, "it does not end")
			}
			assert.GreaterOrEqual(t, time.Since(began), 5*time.Second)
			assert.Equal(t, 128+int(unix.SIGKILL), d.Exit().Status)
			log, err := d.Log()
			require.NoError(t, err)
			assert.Equal(t, 1, strings.Count(string(log), "has not ended within 5 s of being asked to, and is killed"), "%s", log)
			assert.Equal(t, 1, strings.Count(string(log), "ERROR"), "%s", log)
			assert.NoFileExists(t, h.socket)
			assert.NoFileExists(t, h.socket+".pid")
		})
	}
}
