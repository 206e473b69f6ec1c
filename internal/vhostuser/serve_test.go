package vhostuser_test

import (
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/vhostuser"
)

// echo answers every FUSE request with an empty reply; opcode 255 waits until it is let go.
type echo struct {
	resets, aborts, blocked atomic.Int32
	block                   chan struct{}
}

const opBlock, opPanic = 255, 254

func (e *echo) NewHandler(int) (vhostuser.Handler, error) { return &echoHandler{e: e}, nil }
func (e *echo) Interrupt()                                {}
func (e *echo) Reset()                                    { e.resets.Add(1) }

type echoHandler struct {
	e         *echo
	in, reply [40]byte
}

func (h *echoHandler) Serve(in, out []unix.Iovec) uint32 {
	if guestmem.CopyIn(h.in[:], in) < len(h.in) {
		return 0
	}
	switch binary.LittleEndian.Uint32(h.in[4:]) {
	case opBlock:
		h.e.blocked.Add(1)
		<-h.e.block
	case opPanic:
		panic("on purpose")
	}
	binary.LittleEndian.PutUint32(h.reply[0:], 16)
	copy(h.reply[8:16], h.in[8:16])
	return uint32(guestmem.CopyOut(out, h.reply[:16]))
}
func (h *echoHandler) Abort() { h.e.aborts.Add(1) }
func (h *echoHandler) Close() {}

// serve runs the transport over a real socket and returns the connected front-end.
func serve(t testing.TB, e *echo, cfg vhostuser.Config, f frontend.Config) *frontend.Device {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := vhostuser.Listen(path, "")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cfg.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept(ctx)
		if err == nil {
			err = vhostuser.Serve(ctx, c, e, cfg, nil)
		}
		done <- err
	}()
	f.Socket = path
	if f.Timeout == 0 {
		f.Timeout = 5 * time.Second
	}
	d, err := frontend.Connect(ctx, f)
	require.NoError(t, err)
	t.Cleanup(func() {
		d.Close()
		select {
		case err := <-done:
			assert.NoError(t, err)
		case <-time.After(10 * time.Second):
			t.Error("the device did not end with its front-end")
		}
		cancel()
		l.Close()
		assert.Positive(t, e.resets.Load(), "the backend learns that the front-end went")
	})
	return d
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) { os.Stderr.Write(b); return len(b), nil }

func TestQueuesServe(t *testing.T) {
	for _, table := range []bool{false, true} {
		d := serve(t, &echo{}, vhostuser.Config{Poll: 50 * time.Microsecond}, frontend.Config{RequestQueues: 4, ForceMemTable: table})
		fuse := frontend.NewFUSE(d)
		for q := range 4 {
			for range 2000 {
				r, err := fuse.On(d.Request(q)).Do(frontend.Request{Op: 3, Node: 1})
				require.NoError(t, err)
				require.Equal(t, uint32(16), r.Used)
			}
		}
	}
}

func TestBlockedRequestHoldsUpNobody(t *testing.T) {
	e := &echo{block: make(chan struct{})}
	d := serve(t, e, vhostuser.Config{}, frontend.Config{})
	fuse := frontend.NewFUSE(d)
	var blocked []*frontend.Pending
	for range 10 {
		p, err := fuse.Start(frontend.Request{Op: opBlock, Node: 1})
		require.NoError(t, err)
		blocked = append(blocked, p)
	}
	for range 100 {
		_, err := fuse.Do(frontend.Request{Op: 3, Node: 1})
		require.NoError(t, err)
	}
	assert.EqualValues(t, 10, e.blocked.Load())
	close(e.block)
	for _, p := range blocked {
		_, err := fuse.Finish(p)
		require.NoError(t, err)
	}
}

func TestPanicEndsTheRequestOnly(t *testing.T) {
	e := &echo{}
	d := serve(t, e, vhostuser.Config{}, frontend.Config{})
	fuse := frontend.NewFUSE(d)
	p, err := fuse.Start(frontend.Request{Op: opPanic, Node: 1})
	require.NoError(t, err)
	d.Request(0).Publish()
	d.Request(0).Kick()
	require.NoError(t, d.Request(0).WaitChain(p.Chain, time.Second))
	assert.EqualValues(t, 1, e.aborts.Load())
	_, err = fuse.Do(frontend.Request{Op: 3, Node: 1})
	require.NoError(t, err)
}

func TestStopAndRestart(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, frontend.Config{})
	fuse := frontend.NewFUSE(d)
	for range 50 {
		_, err := fuse.Do(frontend.Request{Op: 3, Node: 1})
		require.NoError(t, err)
		_, err = d.Stop(d.Request(0))
		require.NoError(t, err)
		require.NoError(t, d.Restart(d.Request(0)))
	}
}

func BenchmarkDepth1(b *testing.B) {
	for _, poll := range []time.Duration{0, 50 * time.Microsecond} {
		b.Run("poll="+poll.String(), func(b *testing.B) {
			d := serve(b, &echo{}, vhostuser.Config{Poll: poll}, frontend.Config{})
			fuse := frontend.NewFUSE(d)
			b.ResetTimer()
			for range b.N {
				if _, err := fuse.Do(frontend.Request{Op: 3, Node: 1}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
