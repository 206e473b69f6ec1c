package fuseabi

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// FuzzSegments: whatever the framing (a length a byte, empty segments among them), copies behave as on one flat memory.
func FuzzSegments(f *testing.F) {
	f.Add([]byte{40, 0, 8, 200}, []byte("some bytes of a guest that it cut as it liked"), uint16(3), uint16(20))
	f.Add([]byte{0, 0}, []byte{}, uint16(0), uint16(1))
	f.Add([]byte{1, 1, 1, 1}, []byte("abcdef"), uint16(5), uint16(9))
	f.Fuzz(func(t *testing.T, cuts, memory []byte, off, n uint16) {
		mem := bytes.Clone(memory)
		var iov []unix.Iovec
		for b := mem; len(b) > 0 || len(cuts) > 0; {
			take := len(b)
			if len(cuts) > 0 {
				take = min(int(cuts[0]), len(b))
				cuts = cuts[1:]
			}
			v := unix.Iovec{}
			if take > 0 {
				v.Base = &b[0]
			}
			v.SetLen(take)
			iov = append(iov, v)
			b = b[take:]
		}
		require.EqualValues(t, len(mem), Len(iov))
		from := min(int(off), len(mem))
		want := mem[from:min(from+int(n), len(mem))]

		dst := make([]byte, n)
		require.Equal(t, len(want), CopyIn(dst, iov, uint64(off)))
		require.True(t, bytes.Equal(want, dst[:len(want)]))
		require.Zero(t, bytes.Count(dst[len(want):], []byte{0})-len(dst[len(want):]), "nothing behind it")

		sub := Sub(nil, iov, uint64(off), uint64(n))
		require.EqualValues(t, len(want), Len(sub))
		got := make([]byte, len(want))
		CopyIn(got, sub, 0)
		require.True(t, bytes.Equal(want, got))
		for _, v := range sub {
			require.NotZero(t, v.Len)
		}

		src := bytes.Repeat([]byte{0xee}, int(n))
		flat := bytes.Clone(mem)
		copy(flat[from:], src)
		require.Equal(t, len(want), CopyOut(iov, uint64(off), src))
		require.True(t, bytes.Equal(flat, mem))

		h := View[InHeader](mem)
		require.Equal(t, len(mem) >= InHeaderSize && h != nil, h != nil)
	})
}

// FuzzFlags: names are made for any flags and any opcode.
func FuzzFlags(f *testing.F) {
	f.Add(uint64(AsyncRead|InitExt|RequestTimeoutFlag), uint32(OpStatx))
	f.Add(uint64(1<<63), uint32(7))
	f.Add(uint64(0), uint32(1<<32-1))
	f.Fuzz(func(t *testing.T, flags uint64, op uint32) {
		s := InitFlags(flags).String()
		require.Equal(t, flags == 0, s == "")
		require.NotEmpty(t, Opcode(op).String())
		require.Equal(t, op == 2 || op == 36 || op == 41 || op == 42, Opcode(op).NoReply())
		b := Buffer(int(op % 5000))
		require.Len(t, b, int(op%5000))
		require.NotNil(t, View[OutHeader](Buffer(OutHeaderSize)))
		require.Zero(t, Align8(len(b))%8)
	})
}
