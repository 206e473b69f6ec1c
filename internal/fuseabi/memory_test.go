package fuseabi

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// cut makes segments of random lengths, empty ones among them, out of b.
func cut(r *rand.Rand, b []byte) []unix.Iovec {
	var iov []unix.Iovec
	for len(b) > 0 {
		n := min(r.IntN(20), len(b))
		v := unix.Iovec{}
		if n > 0 || r.IntN(2) == 0 {
			v.Base = &b[0]
		}
		v.SetLen(n)
		iov = append(iov, v)
		b = b[n:]
	}
	return iov
}

func TestCopiesDoNotDependOnFraming(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		mem := make([]byte, r.IntN(200))
		for i := range mem {
			mem[i] = byte(r.Uint32())
		}
		before := bytes.Clone(mem)
		iov := cut(r, mem)
		require.EqualValues(t, len(mem), Len(iov))

		off, n := r.IntN(220), r.IntN(220)
		want := mem[min(off, len(mem)):min(off+n, len(mem))]
		dst := make([]byte, n)
		require.Equal(t, len(want), CopyIn(dst, iov, uint64(off)))
		require.True(t, bytes.Equal(want, dst[:len(want)]))

		var got []byte
		for _, v := range Sub(nil, iov, uint64(off), uint64(n)) {
			require.NotZero(t, v.Len, "a system call would be given an empty segment")
			one := make([]byte, v.Len)
			CopyIn(one, []unix.Iovec{v}, 0)
			got = append(got, one...)
		}
		require.True(t, bytes.Equal(want, got))

		src := bytes.Repeat([]byte{0xaa}, n)
		require.Equal(t, len(want), CopyOut(iov, uint64(off), src))
		copy(before[min(off, len(mem)):], src)
		require.True(t, bytes.Equal(before, mem), "only the named bytes are written")
	}
}

func TestOffsetsBeyondTheSegments(t *testing.T) {
	mem := []byte("abc")
	iov := []unix.Iovec{{Base: &mem[0], Len: 3}}
	for _, off := range []uint64{3, 4, 1 << 32, 1<<64 - 1} {
		assert.Zero(t, CopyIn(make([]byte, 8), iov, off))
		assert.Zero(t, CopyOut(iov, off, []byte("xx")))
		assert.Empty(t, Sub(nil, iov, off, 1<<64-1))
	}
	assert.Len(t, Sub(nil, iov, 1, 1<<64-1), 1)
	assert.Empty(t, Sub(nil, iov, 0, 0))
	assert.Zero(t, Len(nil))
}

func TestViewRefusesWhatDoesNotFit(t *testing.T) {
	b := Buffer(InHeaderSize)
	assert.NotNil(t, View[InHeader](b))
	assert.Nil(t, View[InHeader](b[:InHeaderSize-1]))
	assert.Nil(t, View[OutHeader](b[4:]), "not aligned")
	assert.Nil(t, View[OutHeader](nil))
	b[0] = 7
	assert.EqualValues(t, 7, View[InHeader](b).Length)
	for _, n := range []int{0, 1, 7, 8, 9, 4096} {
		assert.Len(t, Buffer(n), n)
		assert.Equal(t, n, cap(Buffer(n)))
	}
	h := OutHeader{Unique: 1}
	assert.Equal(t, byte(1), Bytes(&h)[8])
}

func TestAlign8(t *testing.T) {
	for n, want := range map[int]int{0: 0, 1: 8, 7: 8, 8: 8, 9: 16, 24 + 255: 280} {
		assert.Equal(t, want, Align8(n))
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	mem := make([]byte, 8192)
	iov := []unix.Iovec{{Base: &mem[0], Len: 40}, {Base: &mem[40], Len: 4000}, {Base: &mem[4040], Len: 4000}}
	dst, sub := make([]byte, 200), make([]unix.Iovec, 0, 8)
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		CopyIn(dst, iov, 0)
		CopyOut(iov, 16, dst)
		sub = Sub(sub[:0], iov, 16, 8000)
	}))
}
