package frontend_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
	"virtiofsd/internal/testenv"
)

// startC runs QEMU's C daemon on a fresh share: an implementation that this package did not grow up with.
func startC(t *testing.T) (socket, share string) {
	t.Helper()
	testenv.Need(t, "root", "c-daemon")
	share = t.TempDir()
	dir, err := os.MkdirTemp("", "fe") // t.TempDir may be too long for a socket's path
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	var log bytes.Buffer
	c := exec.Command(testenv.QEMUVirtiofsd, "--socket-path="+socket, "-o", "source="+share+",sandbox=chroot,xattr")
	c.Stderr = &log
	require.NoError(t, c.Start())
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	t.Cleanup(func() {
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			c.Process.Kill()
			t.Error("the daemon outlives its front-end")
		}
		if t.Failed() {
			t.Logf("daemon's log:\n%s", log.String())
		}
	})
	for range 500 {
		if _, err := os.Stat(socket); err == nil {
			return socket, share
		}
		time.Sleep(10 * time.Millisecond)
	}
	require.Fail(t, "the C daemon makes no socket", log.String())
	return "", ""
}

func connect(t *testing.T, cfg frontend.Config) *frontend.Device {
	t.Helper()
	d, err := frontend.Connect(context.Background(), cfg)
	require.NoError(t, err)
	t.Cleanup(d.Close)
	return d
}

func session(t *testing.T, d *frontend.Device) *frontend.FUSE {
	t.Helper()
	f := frontend.NewFUSE(d)
	init, err := f.Init(0)
	require.NoError(t, err)
	require.EqualValues(t, 7, init.Major)
	require.GreaterOrEqual(t, init.MaxWrite, uint32(128<<10))
	return f
}

func TestFilesThroughTheDevice(t *testing.T) {
	const both = frontend.DefaultFeatures
	for name, cfg := range map[string]frontend.Config{
		"default":      {},
		"direct":       {Features: both &^ (1 << frontend.FeatureIndirect)},
		"no event idx": {Features: both &^ (1 << frontend.FeatureEventIdx), QueueSize: 128},
		"mem table":    {ForceMemTable: true},
		"no protocol":  {Features: both &^ (1 << frontend.FeatureProtocol)},
		"one region":   {Memory: []uint64{32 << 20}},
		"no acks":      {ProtocolFeatures: 1<<frontend.ProtocolMQ | 1<<frontend.ProtocolMemSlots},
	} {
		t.Run(name, func(t *testing.T) {
			socket, share := startC(t)
			cfg.Socket = socket
			f := session(t, connect(t, cfg))
			files(t, f, share)
		})
	}
}

func files(t *testing.T, f *frontend.FUSE, share string) {
	t.Helper()
	e, fh, err := f.Create(frontend.RootNode, "file", unix.O_RDWR, 0o640)
	require.NoError(t, err)
	want := make([]byte, 300_000)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	n, err := f.Write(e.Node, fh, 0, want)
	require.NoError(t, err)
	require.EqualValues(t, len(want), n)
	onHost, err := os.ReadFile(filepath.Join(share, "file"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, onHost))
	got, err := f.Read(e.Node, fh, 4096, 400_000)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want[4096:], got))
	a, err := f.Getattr(e.Node)
	require.NoError(t, err)
	assert.EqualValues(t, len(want), a.Size)
	assert.EqualValues(t, unix.S_IFREG|0o640, a.Mode)
	require.NoError(t, f.Flush(e.Node, fh))
	require.NoError(t, f.Release(e.Node, fh))

	var names []string
	for i := range 300 {
		names = append(names, fmt.Sprintf("name-%03d", i))
		require.NoError(t, os.WriteFile(filepath.Join(share, names[i]), nil, 0o600))
	}
	names = append(names, "file", ".", "..")
	sort.Strings(names)
	dh, err := f.Opendir(frontend.RootNode)
	require.NoError(t, err)
	var seen []string
	for off := uint64(0); ; {
		all, err := f.Readdirplus(frontend.RootNode, dh, off, 8192)
		require.NoError(t, err)
		if len(all) == 0 {
			break
		}
		for _, d := range all {
			seen = append(seen, d.Name)
			off = d.Off
			if d.Entry.Node != 0 && d.Name != "." && d.Name != ".." {
				assert.EqualValues(t, d.Type<<12, d.Entry.Attr.Mode&unix.S_IFMT)
				require.NoError(t, f.Forget(d.Entry.Node, 1))
			}
		}
	}
	sort.Strings(seen)
	assert.Equal(t, names, seen)
	require.NoError(t, f.Releasedir(frontend.RootNode, dh))

	require.NoError(t, f.Unlink(frontend.RootNode, "file"))
	_, err = f.Lookup(frontend.RootNode, "file")
	assert.ErrorIs(t, err, unix.ENOENT)
	require.NoError(t, f.Forget(e.Node, 1))
	require.NoError(t, f.Destroy())
}

// The C daemon accepts every framing as the specification wants it: requests cut anywhere give the same replies.
func TestFramings(t *testing.T) {
	socket, share := startC(t)
	f := session(t, connect(t, frontend.Config{Socket: socket}))
	require.NoError(t, os.WriteFile(filepath.Join(share, "a-name"), []byte("contents"), 0o600))
	for name, framing := range map[string]frontend.Framing{
		"whole":  frontend.WholeFraming,
		"odd":    frontend.CutFraming(7),
		"random": frontend.RandomFraming(rand.New(rand.NewPCG(1, 2)), 20),
	} {
		f.Framing = framing
		e, err := f.Lookup(frontend.RootNode, "a-name")
		require.NoError(t, err, name)
		fh, err := f.Open(e.Node, unix.O_RDWR)
		require.NoError(t, err, name)
		b, err := f.Read(e.Node, fh, 0, 100)
		require.NoError(t, err, name)
		assert.Equal(t, "contents", string(b), name)
		require.NoError(t, f.Release(e.Node, fh))
	}
}

func TestStopAndRestart(t *testing.T) {
	socket, _ := startC(t)
	d := connect(t, frontend.Config{Socket: socket})
	f := session(t, d)
	for range 3 {
		_, err := f.Getattr(frontend.RootNode)
		require.NoError(t, err)
	}
	base, err := d.Stop(d.Queues[1])
	require.NoError(t, err)
	assert.EqualValues(t, 4, base, "INIT and three GETATTR")
	require.NoError(t, d.Restart(d.Queues[1]))
	_, err = f.Getattr(frontend.RootNode)
	require.NoError(t, err)
}

// Prepared chains run again and again at depth without an allocation.
func TestHotPathAllocatesNothing(t *testing.T) {
	socket, _ := startC(t)
	d := connect(t, frontend.Config{Socket: socket})
	f := session(t, d)
	q := d.Queues[1]
	defer d.Watch(30 * time.Second)()
	const depth = 8
	var chains [depth]*frontend.Chain
	for i := range chains {
		l, err := f.Layout(frontend.Request{Op: frontend.OpGetattr, Node: 1, Args: make([]byte, 16), OutArgs: frontend.AttrOutSize}, f.NextUnique())
		require.NoError(t, err)
		chains[i], err = q.Prepare(l.Segs())
		require.NoError(t, err)
	}
	failed := false
	round := func() {
		for _, c := range chains {
			q.Post(c)
		}
		q.Publish()
		for left := depth; left > 0; {
			c, err := q.Reap()
			switch {
			case err != nil:
				failed = true
				return
			case c != nil:
				failed = failed || c.Used != frontend.OutHeaderSize+frontend.AttrOutSize
				left--
			case !q.Wait():
				failed = true
				return
			}
		}
	}
	assert.Zero(t, testing.AllocsPerRun(200, round))
	assert.False(t, failed)
}

func TestMemoryAllocator(t *testing.T) {
	m, err := frontend.NewMemory(1<<20, 1<<20)
	require.NoError(t, err)
	defer m.Close()
	rng := rand.New(rand.NewPCG(3, 4))
	type block struct {
		gpa uint64
		n   int
	}
	var live []block
	for range 2000 {
		if len(live) > 0 && rng.IntN(2) == 0 {
			i := rng.IntN(len(live))
			m.Free(live[i].gpa, live[i].n)
			live = append(live[:i], live[i+1:]...)
			continue
		}
		n := 1 + rng.IntN(20_000)
		gpa, err := m.Alloc(n)
		if err != nil {
			require.ErrorIs(t, err, frontend.ErrNoMemory)
			continue
		}
		require.NotNil(t, m.Bytes(gpa, n))
		for _, b := range live {
			require.True(t, gpa+uint64(n) <= b.gpa || b.gpa+uint64(b.n) <= gpa, "two buffers overlap")
		}
		live = append(live, block{gpa, n})
	}
	for _, b := range live {
		m.Free(b.gpa, b.n)
	}
	_, err = m.Alloc(1 << 20)
	require.NoError(t, err, "everything freed is one piece again")
}
