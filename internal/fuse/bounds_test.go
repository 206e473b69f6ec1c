package fuse_test

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
)

// counting is a file system that counts what it is asked to forget.
type counting struct {
	ours
	forgets int
	nodes   uint64 // their sum
}

func (c *counting) NewThread(int) (fuse.Thread, error) { return c, nil }
func (c *counting) Forget(node, _ uint64)              { c.forgets++; c.nodes += node }

type countingFS struct{ *counting }

func (countingFS) Interrupt(int) {}

// A request is no larger than WRITE may be, whatever its descriptors say: they may name the same
// memory again and again.
func TestRequestsAreNoLargerThanWrite(t *testing.T) {
	const most = fuse.MaxWrite + 4096
	c := &counting{}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ses := fuse.NewSession(countingFS{c}, fuse.SessionConfig{})
	w, err := ses.NewHandler(0)
	require.NoError(t, err)
	defer w.Close()
	out := make([]byte, 256)
	w.Serve(whole(encode(fuseabi.OpInit, 0, 1, &fuseabi.InitIn{Major: 7, Minor: 38}, nil, nil)), whole(out))

	// As many as can be told are forgotten, each once, also where it takes as many descriptors.
	n := (most - fuseabi.InHeaderSize - 8) / fuseabi.ForgetOneSize
	list := make([]byte, n*fuseabi.ForgetOneSize)
	sum := uint64(0)
	for i := range n {
		binary.LittleEndian.PutUint64(list[i*fuseabi.ForgetOneSize:], uint64(i+2))
		sum += uint64(i + 2)
	}
	raw := encode(fuseabi.OpBatchForget, 0, 2, &fuseabi.BatchForgetIn{Count: uint32(n)}, list, nil)
	for _, step := range []int{len(raw), 4096, 33, 7} {
		c.forgets, c.nodes = 0, 0
		var segs []unix.Iovec
		for at := 0; at < len(raw); at += step {
			segs = append(segs, whole(raw[at:min(at+step, len(raw))])...)
		}
		began := time.Now()
		w.Serve(segs, nil)
		assert.Less(t, time.Since(began), 2*time.Second, "%d descriptors", len(segs))
		assert.Equal(t, []any{n, sum}, []any{c.forgets, c.nodes}, "%d descriptors", len(segs))
	}
	assert.Zero(t, ses.Malformed())

	// One descriptor's memory, named 2,000 times: 2 GB.
	c.forgets = 0
	once := make([]byte, 1<<20)
	copy(once, raw)
	segs := make([]unix.Iovec, 0, 2000)
	for range 2000 {
		segs = append(segs, whole(once)...)
	}
	for _, length := range []uint32{most + 1, 2000 << 20} {
		binary.LittleEndian.PutUint32(once, length)
		binary.LittleEndian.PutUint32(once[40:], (length-48)/16)
		w.Serve(segs, nil)
		assert.Zero(t, c.forgets, "%d bytes", length)
	}
	assert.EqualValues(t, 2, ses.Malformed())
	binary.LittleEndian.PutUint32(once[4:], uint32(fuseabi.OpSetxattr))
	assert.EqualValues(t, fuseabi.OutHeaderSize, w.Serve(segs, whole(out)))
	assert.EqualValues(t, -int32(unix.E2BIG), int32(binary.LittleEndian.Uint32(out[4:])), "what has an answer gets one")
}
