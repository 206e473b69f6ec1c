package winfs_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/winfs"
	"virtiofsd/internal/testenv"
)

// ours is cmd/virtiofsd, built once.
var ours frontend.Daemon

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "winfs-bin")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := testenv.Build(dir, "virtiofsd"); err != nil {
		panic(err)
	}
	ours = frontend.Daemon{Name: "ours", Dialect: "ours", Exec: []string{filepath.Join(dir, "virtiofsd")}}
	return m.Run()
}

// replay has a live daemon serve Windows' driver, twice: a second mount begins where the first has
// ended.
func replay(t *testing.T, d frontend.Daemon) {
	dir, err := os.MkdirTemp("", "winfs") // t.TempDir may be too long for a socket's path
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	share, socket := filepath.Join(dir, "share"), filepath.Join(dir, "s")
	require.NoError(t, os.Mkdir(share, 0o775))
	require.NoError(t, os.WriteFile(filepath.Join(share, "theirs"), []byte("x"), 0o644))
	argv, err := d.Argv(frontend.Options{Share: share, Socket: socket})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	proc, err := frontend.Spawn(ctx, argv, nil, socket)
	require.NoError(t, err)
	defer proc.Kill()
	dev, err := frontend.Connect(ctx, frontend.Config{Socket: socket, RequestQueues: 1, Timeout: 20 * time.Second})
	require.NoError(t, err)
	defer dev.Close()
	f := frontend.NewFUSE(dev)
	for range 2 {
		checks := winfs.Replay(f)
		assert.Len(t, checks, 15)
		for _, c := range checks {
			assert.Equal(t, guestproto.StatusPass, c.Status, "%s: %s", c.Name, c.Detail)
		}
	}
	left, err := os.ReadDir(share)
	require.NoError(t, err)
	assert.Len(t, left, 1, "the share is as it was")
}

func TestReplayOnOurDaemon(t *testing.T) {
	testenv.Need(t, "root")
	replay(t, ours)
}

// What the replay asks for is what a driver in use asks for: another daemon answers it as well.
func TestReplayOnTheCDaemon(t *testing.T) {
	testenv.Need(t, "root", "c-daemon")
	replay(t, frontend.Daemon{Name: "c", Dialect: "c", Exec: []string{testenv.QEMUVirtiofsd}})
}
