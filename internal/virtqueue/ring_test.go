package virtqueue_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/vhostabi"
	"virtiofsd/internal/virtqueue"
)

// user is where the tests' front-end has its memory.
const user = 1 << 44

// driver is the other end of a ring: the guest, with its own mapping of the memory.
type driver struct {
	t                 testing.TB
	mem               []byte
	table             *guestmem.Table
	size              uint32
	desc, avail, used uint64 // guest addresses
	buffers           uint64 // where free memory begins
	next, seen        uint16
}

func newDriver(t testing.TB, size uint32) *driver {
	d := &driver{t: t, size: size}
	d.avail = uint64(size) * vhostabi.DescSize
	d.used = (d.avail + 6 + 2*uint64(size) + 3) &^ 3
	d.buffers = (d.used + 6 + 8*uint64(size) + 4095) &^ 4095
	total := d.buffers + 1<<20
	fd, err := unix.MemfdCreate("ring", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Ftruncate(fd, int64(total)))
	d.mem, err = unix.Mmap(fd, 0, int(total), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	d.table, err = guestmem.New([]vhostabi.MemRegion{{Size: total, UserAddr: user}}, []int{fd})
	require.NoError(t, err)
	t.Cleanup(func() { d.table.Drop(); unix.Munmap(d.mem) })
	return d
}

func (d *driver) addresses() virtqueue.Addresses {
	return virtqueue.Addresses{Desc: user + d.desc, Avail: user + d.avail, Used: user + d.used}
}

func (d *driver) ring(base uint16, f virtqueue.Features) *virtqueue.Ring {
	r := &virtqueue.Ring{}
	require.NoError(d.t, r.Setup(d.table, d.addresses(), d.size, base, f))
	d.next, d.seen = base, d.get16(d.used+2)
	return r
}

func (d *driver) get16(a uint64) uint16    { return binary.LittleEndian.Uint16(d.mem[a:]) }
func (d *driver) put16(a uint64, v uint16) { binary.LittleEndian.PutUint16(d.mem[a:], v) }

type desc struct {
	addr        uint64
	len         uint32
	flags, next uint16
}

func (d *driver) put(at uint64, list ...desc) {
	for i, e := range list {
		b := d.mem[at+uint64(i)*16:]
		binary.LittleEndian.PutUint64(b, e.addr)
		binary.LittleEndian.PutUint32(b[8:], e.len)
		binary.LittleEndian.PutUint16(b[12:], e.flags)
		binary.LittleEndian.PutUint16(b[14:], e.next)
	}
}

func (d *driver) post(head uint16) {
	d.put16(d.avail+4+2*uint64(uint32(d.next)%d.size), head)
	d.next++
	d.put16(d.avail+2, d.next)
}

func (d *driver) reap() (id, n uint32) {
	require.NotEqual(d.t, d.seen, d.get16(d.used+2), "something is on the used ring")
	at := d.used + 4 + 8*uint64(uint32(d.seen)%d.size)
	d.seen++
	return binary.LittleEndian.Uint32(d.mem[at:]), binary.LittleEndian.Uint32(d.mem[at+4:])
}

func (d *driver) usedEvent(v uint16) { d.put16(d.avail+4+2*uint64(d.size), v) }
func (d *driver) availEvent() uint16 { return d.get16(d.used + 4 + 8*uint64(d.size)) }
func (d *driver) kickWanted() bool   { return d.get16(d.used)&vhostabi.UsedNoNotify == 0 }

func TestIndicesWrap(t *testing.T) {
	for _, size := range []uint32{1, 2, 256, vhostabi.MaxRingSize} {
		d := newDriver(t, size)
		r := d.ring(0, virtqueue.Features{EventIdx: true})
		for i := range uint32(70_000) {
			for k := range min(size, 3) {
				d.post(uint16((i + k) % size))
			}
			for k := range min(size, 3) {
				head, ok, err := r.Next()
				require.NoError(t, err)
				require.True(t, ok)
				require.EqualValues(t, (i+k)%size, head)
				r.Push(head, i+k)
			}
			_, ok, err := r.Next()
			require.NoError(t, err)
			require.False(t, ok)
			for k := range min(size, 3) {
				id, n := d.reap()
				require.Equal(t, (i+k)%size, id)
				require.Equal(t, i+k, n)
			}
		}
		require.Equal(t, d.next, r.Base())
	}
}

func TestGoesOnWhereItStopped(t *testing.T) {
	d := newDriver(t, 8)
	r := d.ring(0, virtqueue.Features{})
	for range 5 {
		d.post(3)
		head, _, _ := r.Next()
		r.Push(head, 9)
	}
	d.post(4) // not taken before the stop
	base := r.Base()
	assert.EqualValues(t, 5, base)

	again := &virtqueue.Ring{}
	require.NoError(t, again.Setup(d.table, d.addresses(), d.size, base, virtqueue.Features{}))
	head, ok, err := again.Next()
	require.NoError(t, err)
	assert.True(t, ok)
	assert.EqualValues(t, 4, head)
	again.Push(head, 1)
	for range 5 {
		id, n := d.reap()
		assert.EqualValues(t, []uint32{3, 9}, []uint32{id, n})
	}
	id, n := d.reap()
	assert.EqualValues(t, []uint32{4, 1}, []uint32{id, n}, "the used ring goes on behind its last element")
}

func TestIndexThatCannotBe(t *testing.T) {
	for _, ahead := range []uint16{9, 100, 0x8000, 0xffff} {
		d := newDriver(t, 8)
		r := d.ring(7, virtqueue.Features{})
		d.put16(d.avail+2, 7+ahead)
		_, ok, err := r.Next()
		assert.ErrorIs(t, err, virtqueue.ErrBroken, "%d ahead of a ring of 8", ahead)
		assert.False(t, ok)
		_, err = r.Pending(true)
		assert.ErrorIs(t, err, virtqueue.ErrBroken)
	}
	d := newDriver(t, 8)
	r := d.ring(7, virtqueue.Features{})
	d.put16(d.avail+2, 7+8)
	n, err := r.Pending(true)
	require.NoError(t, err)
	assert.Equal(t, 8, n, "a full ring is no mistake")
	d.put16(d.avail+2, 7+4) // backwards, while eight are known
	_, ok, err := r.Next()
	require.NoError(t, err)
	assert.True(t, ok, "what was published was published")
	d.put16(d.avail+2, 6)
	_, err = r.Pending(true)
	assert.ErrorIs(t, err, virtqueue.ErrBroken)
}

func TestHeadOutsideOfTheTable(t *testing.T) {
	d := newDriver(t, 8)
	r := d.ring(0, virtqueue.Features{})
	d.post(8)
	d.post(0xffff)
	d.post(7)
	for range 2 {
		_, ok, err := r.Next()
		require.ErrorIs(t, err, virtqueue.ErrHead)
		require.False(t, ok)
	}
	head, ok, err := r.Next()
	require.NoError(t, err)
	assert.True(t, ok)
	assert.EqualValues(t, 7, head, "the ring goes on behind heads that make no sense")
}

func TestRingsLieInMemory(t *testing.T) {
	d := newDriver(t, 8)
	end := user + uint64(len(d.mem))
	good := d.addresses()
	for _, c := range []struct {
		name string
		f    func(*virtqueue.Addresses)
		ok   bool
	}{
		{"descriptor table", func(a *virtqueue.Addresses) { a.Desc = end - 8*16 }, true},
		{"descriptor table", func(a *virtqueue.Addresses) { a.Desc = end - 8*16 + 16 }, false},
		{"descriptor table", func(a *virtqueue.Addresses) { a.Desc = 0 }, false},
		{"descriptor table", func(a *virtqueue.Addresses) { a.Desc = math.MaxUint64 - 15 }, false},
		{"avail ring", func(a *virtqueue.Addresses) { a.Avail = end - 4 - 2*8 - 2 }, true},
		{"avail ring", func(a *virtqueue.Addresses) { a.Avail = end - 4 - 2*8 }, false},
		{"used ring", func(a *virtqueue.Addresses) { a.Used = end - 4 - 8*8 - 4 }, true},
		{"used ring", func(a *virtqueue.Addresses) { a.Used = end - 4 - 8*8 }, false},
	} {
		a := good
		c.f(&a)
		var r virtqueue.Ring
		err := r.Setup(d.table, a, d.size, 0, virtqueue.Features{})
		if c.ok {
			assert.NoError(t, err, c.name)
		} else {
			assert.ErrorIs(t, err, guestmem.ErrNoMemory, c.name)
			assert.ErrorContains(t, err, c.name)
		}
	}
}

func TestSignalsWithoutEventIndex(t *testing.T) {
	d := newDriver(t, 8)
	r := d.ring(0, virtqueue.Features{})
	assert.False(t, d.kickWanted(), "a ring that was set up is about to be looked at")
	assert.False(t, r.MustSignal(), "nothing was pushed")
	r.Push(0, 0)
	assert.True(t, r.MustSignal())
	assert.False(t, r.MustSignal(), "told once")
	d.put16(d.avail, vhostabi.AvailNoInterrupt)
	r.Push(0, 0)
	assert.False(t, r.MustSignal())

	more, err := r.Listen()
	require.NoError(t, err)
	assert.False(t, more)
	assert.True(t, d.kickWanted())
	assert.EqualValues(t, 2, d.get16(d.used+2), "the flags are written without touching the index beside them")
	r.Quiet()
	assert.False(t, d.kickWanted())
	d.post(1)
	more, err = r.Listen()
	require.NoError(t, err)
	assert.True(t, more, "what came before we listened is seen")
}

func TestSignalsWithEventIndex(t *testing.T) {
	for _, start := range []uint16{0, 0xfffd} { // once across the wrap
		d := newDriver(t, 8)
		d.put16(d.used+2, start)
		r := d.ring(start, virtqueue.Features{EventIdx: true})
		d.usedEvent(start + 5)
		r.Push(0, 0)
		assert.True(t, r.MustSignal(), "the first is told whatever the index says: who knows what was told before")
		for i := range uint16(8) {
			r.Push(0, 0) // done is start+2+i
			assert.Equal(t, start+2+i == start+6, r.MustSignal(), "told when the element at the driver's index was written, once: %d", i)
		}
		d.usedEvent(start + 10)
		r.Push(0, 0)
		r.Push(0, 0)
		r.Push(0, 0)
		assert.True(t, r.MustSignal(), "an index inside a batch")
		assert.True(t, d.kickWanted(), "flags are 0 with the event index (section 2.7.10)")

		for range 3 {
			d.post(0)
			_, ok, err := r.Next()
			require.NoError(t, err)
			require.True(t, ok)
		}
		more, err := r.Listen()
		require.NoError(t, err)
		assert.False(t, more)
		assert.Equal(t, start+3, d.availEvent(), "the next head is the one to kick for")
		r.Quiet()
		assert.Equal(t, start+3, d.availEvent())
	}
}

const (
	next     = vhostabi.DescNext
	write    = vhostabi.DescWrite
	indirect = vhostabi.DescIndirect
)

func TestChains(t *testing.T) {
	const size = 16
	long := func(n int, flags uint16) (list []desc) {
		for i := range n {
			list = append(list, desc{1 << 16, 1, flags | next, uint16(i + 1)})
		}
		list[n-1].flags &^= next
		return list
	}
	loop := func(n int) []desc { l := long(n, 0); l[n-1].flags |= next; l[n-1].next = 0; return l }
	type step struct {
		name    string
		table   []desc // the ring's
		at      []desc // at address 0x10000, an indirect table
		off     uint64 // of that table from 0x10000
		head    uint16
		want    error
		in, out uint64
	}
	const tbl = 1 << 16
	for _, c := range []step{
		{name: "one readable", table: []desc{{tbl, 40, 0, 0}}, in: 40},
		{name: "one writable", table: []desc{{tbl, 40, write, 0}}, out: 40},
		{name: "any framing", table: []desc{{tbl, 1, next, 5}, {}, {tbl + 1, 39, next, 7}, {}, {}, {tbl + 0x8000, 7, next, 2}, {}, {tbl, 16, write | next, 8}, {tbl, 100, write, 0}}, in: 47, out: 116},
		{name: "zero lengths are nothing", table: []desc{{0, 0, next, 1}, {1 << 60, 0, next, 2}, {tbl, 4, next, 3}, {0, 0, write | next, 4}, {tbl, 5, write, 0}}, in: 4, out: 5},
		{name: "nothing at all", table: []desc{{0, 0, 0, 0}}},
		{name: "as long as the ring", table: long(size, 0), in: size},
		{name: "head in the middle", table: []desc{{}, {}, {tbl, 9, 0, 0}}, head: 2, in: 9},
		{name: "unknown flags are ignored", table: []desc{{tbl, 9, 0x8000, 0}}, in: 9},

		{name: "next outside", table: []desc{{tbl, 1, next, size}}, want: virtqueue.ErrNext},
		{name: "next far outside", table: []desc{{tbl, 1, next, 0xffff}}, want: virtqueue.ErrNext},
		{name: "loop of one", table: loop(1), want: virtqueue.ErrLong},
		{name: "loop of all", table: loop(size), want: virtqueue.ErrLong},
		{name: "loop of nothing", table: []desc{{0, 0, next, 0}}, want: virtqueue.ErrLong},
		{name: "readable behind writable", table: []desc{{tbl, 1, write | next, 1}, {tbl, 1, 0, 0}}, want: virtqueue.ErrOrder},
		{name: "outside of memory", table: []desc{{1 << 40, 1, 0, 0}}, want: guestmem.ErrNoMemory},
		{name: "writable outside of memory", table: []desc{{tbl, 8, next, 1}, {1 << 40, 1, write, 0}}, want: guestmem.ErrNoMemory},
		{name: "wraps", table: []desc{{^uint64(0), 2, 0, 0}}, want: guestmem.ErrNoMemory},
		{name: "longer than memory", table: []desc{{tbl, math.MaxUint32, 0, 0}}, want: guestmem.ErrNoMemory},

		{name: "indirect", table: []desc{{tbl, 48, indirect, 0}}, at: []desc{{tbl + 4096, 40, next, 2}, {}, {tbl + 8192, 20, write, 0}}, in: 40, out: 20},
		{name: "indirect with WRITE", table: []desc{{tbl, 16, indirect | write, 0}}, at: []desc{{tbl + 4096, 40, 0, 0}}, in: 40},
		{name: "indirect behind a descriptor", table: []desc{{tbl + 4096, 8, next, 1}, {tbl, 16, indirect, 0}}, at: []desc{{tbl + 8192, 40, write, 0}}, in: 8, out: 40},
		{name: "indirect longer than the ring", table: []desc{{tbl, 16 * 500, indirect, 0}}, at: long(500, 0), in: 500},
		{name: "indirect, unaligned", table: []desc{{tbl + 3, 32, indirect, 0}}, off: 3, at: []desc{{tbl + 4096, 40, next, 1}, {tbl + 8192, 20, write, 0}}, in: 40, out: 20},
		{name: "indirect, empty", table: []desc{{tbl, 0, indirect, 0}}, want: virtqueue.ErrIndirect},
		{name: "indirect, half a descriptor", table: []desc{{tbl, 24, indirect, 0}}, want: virtqueue.ErrIndirect},
		{name: "indirect and NEXT", table: []desc{{tbl, 16, indirect | next, 1}, {tbl, 1, 0, 0}}, at: []desc{{tbl + 4096, 1, 0, 0}}, want: virtqueue.ErrIndirect},
		{name: "indirect in indirect", table: []desc{{tbl, 16, indirect, 0}}, at: []desc{{tbl, 16, indirect, 0}}, want: virtqueue.ErrIndirect},
		{name: "indirect, next outside", table: []desc{{tbl, 32, indirect, 0}}, at: []desc{{tbl, 1, next, 2}, {}}, want: virtqueue.ErrNext},
		{name: "indirect, next inside the ring's table only", table: []desc{{tbl, 16, indirect, 0}}, at: []desc{{tbl, 1, next, 1}}, want: virtqueue.ErrNext},
		{name: "indirect, loop", table: []desc{{tbl, 32, indirect, 0}}, at: []desc{{tbl, 1, next, 1}, {tbl, 1, next, 0}}, want: virtqueue.ErrLong},
		{name: "indirect, too long", table: []desc{{tbl, 16 * 2000, indirect, 0}}, at: long(2000, 0), want: virtqueue.ErrLong},
		{name: "indirect, table larger than indices", table: []desc{{tbl, 16 * 65537, indirect, 0}}, want: virtqueue.ErrLong},
		{name: "indirect outside of memory", table: []desc{{1 << 40, 16, indirect, 0}}, want: guestmem.ErrNoMemory},
		{name: "indirect across the end of memory", table: []desc{{0, 0xfffffff0, indirect, 0}}, want: virtqueue.ErrLong},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDriver(t, size)
			d.put(d.desc, c.table...)
			d.put(tbl+c.off, c.at...)
			r := d.ring(0, virtqueue.Features{Indirect: true})
			var chain virtqueue.Chain
			err := r.Walk(c.head, &chain)
			if c.want != nil {
				require.ErrorIs(t, err, c.want)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, []uint64{c.in, c.out}, []uint64{chain.InBytes, chain.OutBytes})
			assert.Equal(t, []uint64{c.in, c.out}, []uint64{length(chain.In), length(chain.Out)})
		})
	}
}

func length(iov []unix.Iovec) (n uint64) {
	for i := range iov {
		n += iov[i].Len
	}
	return n
}

func TestIndirectIsNegotiated(t *testing.T) {
	d := newDriver(t, 16)
	d.put(d.desc, desc{1 << 16, 16, indirect, 0})
	d.put(1<<16, desc{1<<16 + 4096, 1, 0, 0})
	var chain virtqueue.Chain
	assert.ErrorIs(t, d.ring(0, virtqueue.Features{}).Walk(0, &chain), virtqueue.ErrIndirect)
	assert.NoError(t, d.ring(0, virtqueue.Features{Indirect: true}).Walk(0, &chain))
}

// A buffer is split where regions end. Memory of many small regions makes no long list of a few
// descriptors.
func TestChainHasNoMorePiecesThanFit(t *testing.T) {
	const page = 4096
	d := newDriver(t, 8)
	fd, err := unix.MemfdCreate("small", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Ftruncate(fd, page))
	table := d.table
	for i := range uint64(500) {
		next, err := table.Add(vhostabi.MemRegion{GuestAddr: 1<<32 + i*page, Size: page, UserAddr: 1<<45 + i*page}, fd)
		require.NoError(t, err)
		if table != d.table {
			table.Drop()
		}
		table = next
	}
	defer table.Drop()
	r := d.ring(0, virtqueue.Features{})
	require.NoError(t, r.Move(table, d.addresses(), 8))
	all := desc{1 << 32, 500 * page, next, 0}
	var list []desc
	for i := range uint16(4) {
		all.next = i + 1
		list = append(list, all)
	}
	list[2].flags = 0
	d.put(d.desc, list...)
	var chain virtqueue.Chain
	require.NoError(t, r.Walk(0, &chain))
	assert.Len(t, chain.In, 1500)
	list[2].flags, list[3].flags = next, 0
	d.put(d.desc, list...)
	assert.ErrorIs(t, r.Walk(0, &chain), virtqueue.ErrLong)
}

func TestMoreBytesThanCanBeCounted(t *testing.T) {
	fd, err := unix.MemfdCreate("big", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Ftruncate(fd, 8<<30))
	table, err := guestmem.New([]vhostabi.MemRegion{{Size: 8 << 30, UserAddr: user}}, []int{fd})
	require.NoError(t, err)
	defer table.Drop()
	d := newDriver(t, 4)
	var r virtqueue.Ring
	mem, err := unix.Mmap(fd, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	defer unix.Munmap(mem)
	d.mem = mem
	require.NoError(t, r.Setup(table, d.addresses(), 4, 0, virtqueue.Features{}))
	var chain virtqueue.Chain
	d.put(d.desc, desc{0, math.MaxUint32, write, 0})
	require.NoError(t, r.Walk(0, &chain))
	assert.EqualValues(t, math.MaxUint32, chain.OutBytes)
	d.put(d.desc, desc{0, math.MaxUint32, next, 1}, desc{0, 1, write, 0})
	assert.ErrorIs(t, r.Walk(0, &chain), virtqueue.ErrBytes)
	d.mem = nil
}

func TestNoAllocation(t *testing.T) {
	d := newDriver(t, 1024)
	r := d.ring(0, virtqueue.Features{EventIdx: true, Indirect: true})
	d.put(d.desc, desc{1 << 17, 16 * 300, indirect, 0})
	var table []desc
	for i := range 300 {
		table = append(table, desc{1<<18 + uint64(i)*8192, 100, next | write, uint16(i + 1)})
	}
	table[0].flags, table[299].flags = next, write
	d.put(1<<17, table[:100]...)
	d.put(1<<17+16*100, table[100:]...)
	table[0].addr = 1 << 18
	d.mem[1<<17+16*99+12] = byte(write) // a hundred descriptors
	var chain virtqueue.Chain
	one := func() {
		d.post(0)
		head, ok, err := r.Next()
		if !ok || err != nil {
			panic(fmt.Sprint(ok, err))
		}
		if err := r.Walk(head, &chain); err != nil {
			panic(err)
		}
		r.Push(head, 1)
		r.MustSignal()
		r.Listen()
		r.Quiet()
	}
	one()
	require.Len(t, chain.Out, 99)
	assert.Zero(t, testing.AllocsPerRun(1000, one))
}

func BenchmarkGetattr(b *testing.B) {
	d := newDriver(b, 1024)
	r := d.ring(0, virtqueue.Features{EventIdx: true, Indirect: true})
	d.put(d.desc, desc{1 << 16, 32, indirect, 0})
	d.put(1<<16, desc{1 << 17, 56, next, 1}, desc{1 << 18, 120, write, 0})
	var chain virtqueue.Chain
	for b.Loop() {
		d.post(0)
		head, _, _ := r.Next()
		if err := r.Walk(head, &chain); err != nil {
			b.Fatal(err)
		}
		r.Push(head, 120)
		r.MustSignal()
	}
}
