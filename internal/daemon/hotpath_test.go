//go:build !race

package daemon

import (
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/fuse"
	"virtiofsd/internal/passthrough"
	"virtiofsd/internal/vhostuser"
)

// From the avail ring to the used ring nothing is allocated, through transport, session and file system.
func TestHotPathAllocatesNothing(t *testing.T) {
	share := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(share, "file"), make([]byte, 1<<20), 0o600))
	root, err := unix.Open(share, unix.O_PATH|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	proc, err := unix.Open("/proc/self/fd", unix.O_PATH|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	fs, err := passthrough.New(root, proc, passthrough.Config{})
	require.NoError(t, err)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := vhostuser.Listen(socket, "")
	require.NoError(t, err)
	defer l.Close()
	ended := make(chan error, 1)
	go func() {
		conn, err := l.Accept(context.Background())
		if err == nil {
			b := backend{fuse.NewSession(fs, fuse.SessionConfig{})}
			err = vhostuser.Serve(context.Background(), conn, b, vhostuser.Config{Poll: 50 * time.Microsecond, Logger: slog.New(slog.DiscardHandler)}, nil)
		}
		ended <- err
	}()
	d, err := fe.Connect(t.Context(), fe.Config{Socket: socket})
	require.NoError(t, err)
	f := fe.NewFUSE(d)
	_, err = f.Init(0)
	require.NoError(t, err)
	e, err := f.Lookup(fe.RootNode, "file")
	require.NoError(t, err)
	fh, err := f.Open(e.Node, unix.O_RDWR)
	require.NoError(t, err)

	q := d.Request(0)
	for name, r := range map[string]fe.Request{
		"GETATTR":     {Op: fe.OpGetattr, Node: e.Node, Args: make([]byte, 16), OutArgs: fe.AttrOutSize},
		"LOOKUP":      {Op: fe.OpLookup, Node: fe.RootNode, Args: fe.Body(nil).Name("file"), OutArgs: fe.EntrySize},
		"READ 4 KiB":  {Op: fe.OpRead, Node: e.Node, Args: fe.ReadArgs(fh, 4096, 4096), OutData: 4096},
		"READ 1 MiB":  {Op: fe.OpRead, Node: e.Node, Args: fe.ReadArgs(fh, 0, 1<<20), OutData: 1 << 20},
		"WRITE 4 KiB": {Op: fe.OpWrite, Node: e.Node, Args: fe.ReadArgs(fh, 4096, 4096), Data: make([]byte, 4096), OutArgs: 8},
		"WRITE 1 MiB": {Op: fe.OpWrite, Node: e.Node, Args: fe.ReadArgs(fh, 0, 1<<20), Data: make([]byte, 1<<20), OutArgs: 8},
	} {
		layout, err := f.Layout(r, f.NextUnique())
		require.NoError(t, err)
		c, err := q.Prepare(layout.Segs())
		require.NoError(t, err)
		one := func() {
			q.Post(c)
			q.Publish()
			for {
				if got, _ := q.Reap(); got != nil {
					return
				}
				q.Wait()
			}
		}
		one()
		require.Greater(t, c.Used, uint32(fe.OutHeaderSize), name)
		assert.Zero(t, binary.LittleEndian.Uint32(d.Memory.Bytes(layout.Out[0].Addr, 8)[4:]), "%s: no error", name)
		assert.Zero(t, testing.AllocsPerRun(500, one), name)
		q.Release(c)
	}
	d.Close()
	require.NoError(t, <-ended)
}
