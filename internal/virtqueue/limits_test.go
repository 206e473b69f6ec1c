package virtqueue_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/virtqueue"
)

// A chain in a small ring may have 1024 descriptors, the one that names the indirect table among
// them; and no more.
func TestLongestChain(t *testing.T) {
	for n, want := range map[int]error{1022: nil, 1023: nil, 1024: virtqueue.ErrLong} {
		d := newDriver(t, 8)
		r := d.ring(0, virtqueue.Features{Indirect: true})
		list := make([]desc, n)
		for i := range list {
			list[i] = desc{d.buffers + 1<<16, 1, next, uint16(i + 1)}
		}
		list[n-1].flags = 0
		d.put(d.buffers, list...)
		d.put(0, desc{d.buffers, uint32(16 * n), indirect, 0})
		var c virtqueue.Chain
		assert.ErrorIs(t, r.Walk(0, &c), want, "%d entries", n)
		if want == nil {
			assert.EqualValues(t, n, c.InBytes)
		}
	}
	// In a ring that is longer, as many as it has.
	const size = 2048
	for n, want := range map[int]error{size: nil, size + 1: virtqueue.ErrLong} {
		d := newDriver(t, size)
		r := d.ring(0, virtqueue.Features{Indirect: true})
		list := make([]desc, size)
		for i := range list {
			list[i] = desc{d.buffers, 1, next, uint16(i + 1)}
		}
		list[size-1].flags = 0
		if n > size {
			list[size-1] = desc{d.buffers, 1, next, size - 1} // a loop of one
		}
		d.put(0, list...)
		assert.ErrorIs(t, r.Walk(0, &virtqueue.Chain{}), want, "%d", n)
	}
}

// An indirect table has as many entries as 16 bits can name.
func TestLongestTable(t *testing.T) {
	for n, want := range map[uint32]error{1 << 16: nil, 1<<16 + 1: virtqueue.ErrLong} {
		d := newDriver(t, 8)
		r := d.ring(0, virtqueue.Features{Indirect: true})
		d.put(d.buffers, desc{0, 7, 0, 0})
		d.put(0, desc{d.buffers, 16 * n, indirect, 0})
		var c virtqueue.Chain
		assert.ErrorIs(t, r.Walk(0, &c), want, "%d entries", n)
		if want == nil {
			assert.EqualValues(t, 7, c.InBytes)
		}
	}
}

// How many heads wait is counted from where the ring stands, across the wrap of the index.
func TestHeadsThatWaitAreCounted(t *testing.T) {
	for _, base := range []uint16{0, 5, 0xfffe} {
		d := newDriver(t, 8)
		r := d.ring(base, virtqueue.Features{})
		for range 3 {
			d.post(1)
		}
		assert.Equal(t, 0, r.Waiting(), "nobody has looked")
		n, err := r.Pending(false)
		require.NoError(t, err)
		assert.Equal(t, 3, n)
		assert.Equal(t, 3, r.Waiting())
		d.post(1)
		n, err = r.Pending(false)
		require.NoError(t, err)
		assert.Equal(t, 3, n, "the known ones are enough")
		n, err = r.Pending(true)
		require.NoError(t, err)
		assert.Equal(t, 4, n)
		_, ok, err := r.Next()
		require.NoError(t, err)
		assert.True(t, ok)
		assert.Equal(t, 3, r.Waiting())
	}
}

// After Hush the driver does not kick for the next head, and after Listen it does, with the event
// index and without.
func TestHushAfterListen(t *testing.T) {
	for _, base := range []uint16{0, 7, 0xffff} {
		d := newDriver(t, 8)
		d.put16(d.avail+2, base)
		r := d.ring(base, virtqueue.Features{EventIdx: true})
		_, err := r.Listen()
		require.NoError(t, err)
		assert.Equal(t, base, d.availEvent(), "kick for the next head")
		r.Hush()
		assert.Equal(t, base-1, d.availEvent(), "kick for one that has gone by")
		assert.True(t, d.kickWanted(), "the flag is not used")

		d = newDriver(t, 8)
		d.put16(d.avail+2, base)
		r = d.ring(base, virtqueue.Features{})
		event := d.availEvent()
		_, err = r.Listen()
		require.NoError(t, err)
		assert.True(t, d.kickWanted())
		r.Hush()
		assert.False(t, d.kickWanted())
		assert.Equal(t, event, d.availEvent(), "the index is not used")
	}
}
