package fuzz

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/testenv"
)

// replays are what was found in other daemons, one file each.
func replays(t *testing.T) map[string]Replay {
	t.Helper()
	names, err := filepath.Glob("testdata/replays/*.replay")
	require.NoError(t, err)
	require.NotEmpty(t, names)
	all := map[string]Replay{}
	for _, name := range names {
		f, err := os.Open(name)
		require.NoError(t, err)
		r, err := Read(f)
		f.Close()
		require.NoError(t, err, name)
		require.NotEmpty(t, r.Finding, name)
		all[filepath.Base(name)] = r
	}
	return all
}

// TestOursWithstandsWhatOthersDidNot: each file that broke another daemon leaves ours as it is.
func TestOursWithstandsWhatOthersDidNot(t *testing.T) {
	testenv.Need(t, "root")
	d := ours(t)
	for name, r := range replays(t) {
		t.Run(name, func(t *testing.T) {
			found, log, err := RunReplay(t.Context(), d, r)
			require.NoError(t, err)
			assert.Nil(t, found, log)
		})
	}
}

// TestReplaysFindThemAgain: the files are worth something only while they find what they were written for.
func TestReplaysFindThemAgain(t *testing.T) {
	testenv.Need(t, "root", "c-daemon")
	d := fe.Daemon{Name: "c", Dialect: "c", Exec: []string{testenv.QEMUVirtiofsd}}
	found := 0
	for name, r := range replays(t) {
		if r.Daemon != d.Name {
			continue
		}
		found++
		t.Run(name, func(t *testing.T) {
			var f *Finding
			for range 20 { // some come of a race between the daemon's threads, and a busy machine has others win it
				var err error
				f, _, err = RunReplay(t.Context(), d, r)
				require.NoError(t, err)
				if f != nil {
					break
				}
			}
			require.NotNil(t, f)
			assert.Equal(t, r.Finding, f.Signature())
		})
	}
	require.NotZero(t, found)
}
