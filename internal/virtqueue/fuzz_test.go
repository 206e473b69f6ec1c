package virtqueue_test

import (
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/vhostabi"
	"virtiofsd/internal/virtqueue"
)

// FuzzChain walks a chain of any bytes: the ring's table, and what lies at the addresses it names. The walk ends, and what it yields lies
// in memory and is as long as it says.
func FuzzChain(f *testing.F) {
	seed := func(head uint16, list ...desc) {
		d := driver{mem: make([]byte, 16*len(list))}
		d.put(0, list...)
		f.Add(head, d.mem)
	}
	seed(0, desc{1 << 16, 40, next, 1}, desc{1 << 17, 104, write, 0})
	seed(0, desc{16, 64, indirect, 0}, desc{1 << 16, 40, next, 1}, desc{1 << 16, 8, next, 2}, desc{1 << 17, 104, write, 0})
	seed(0, desc{1 << 16, 1, next, 1}, desc{1 << 16, 1, next, 0})
	seed(0, desc{0, 16, indirect, 0})
	seed(3, desc{}, desc{}, desc{}, desc{math.MaxUint64, math.MaxUint32, write, 0})
	d := newDriver(f, 16)
	r := d.ring(0, virtqueue.Features{Indirect: true})
	var chain virtqueue.Chain
	first, err := d.table.AppendIovecs(nil, 0, 1)
	require.NoError(f, err)
	base := reflect.ValueOf(first[0].Base).Pointer()
	f.Fuzz(func(t *testing.T, head uint16, table []byte) {
		n := copy(d.mem[:d.buffers], table)
		clear(d.mem[n:d.buffers])
		before := append([]byte(nil), d.mem[:d.buffers]...)
		err := r.Walk(head%16, &chain)
		require.Equal(t, before, d.mem[:d.buffers], "a walk writes nothing")
		want, ok := reference(d.mem, d.size, head%16)
		require.Equal(t, ok, err == nil, "%v", err)
		if err != nil {
			return
		}
		require.LessOrEqual(t, chain.InBytes+chain.OutBytes, uint64(math.MaxUint32))
		require.LessOrEqual(t, len(chain.In)+len(chain.Out), 1024)
		require.Equal(t, chain.InBytes, length(chain.In))
		require.Equal(t, chain.OutBytes, length(chain.Out))
		var got []span
		for i, iov := range [][]unix.Iovec{chain.In, chain.Out} {
			for _, v := range iov {
				at := uint64(reflect.ValueOf(v.Base).Pointer() - base)
				got = join(got, span{at, v.Len, i == 1})
				require.LessOrEqual(t, at+v.Len, uint64(len(d.mem)))
			}
		}
		require.Equal(t, want, got)
	})
}

// FuzzTableChanges walks a chain while another processor changes eight bytes of its descriptors between two versions. Whatever is read, the
// walk ends, and what it yields lies in memory and is as long as it says: what was checked is what is used.
func FuzzTableChanges(f *testing.F) {
	seed := func(head, at uint16, flip uint64, list ...desc) {
		d := driver{mem: make([]byte, 16*len(list))}
		d.put(0, list...)
		f.Add(head, at, flip, d.mem)
	}
	seed(0, 24, 0xff00, desc{1 << 16, 40, next, 1}, desc{1 << 17, 104, write, 0})                  // a length
	seed(0, 16, 1<<40, desc{1 << 16, 40, next, 1}, desc{1 << 17, 104, write, 0})                   // an address
	seed(0, 24, 0xffff<<48|1<<32, desc{1 << 16, 40, next, 1}, desc{1 << 17, 104, write, 0})        // whether there is a next, and which
	seed(0, 8, 2<<32, desc{1 << 16, 40, next, 1}, desc{1 << 16, 8, next, 2}, desc{8, 8, write, 0}) // who may write
	seed(0, 8, 4<<32|1<<31, desc{16, 64, indirect, 0}, desc{1 << 16, 40, next, 1}, desc{1 << 17, 104, write, 0})
	d := newDriver(f, 16)
	r := d.ring(0, virtqueue.Features{Indirect: true})
	var chain virtqueue.Chain
	first, err := d.table.AppendIovecs(nil, 0, 1)
	require.NoError(f, err)
	base := reflect.ValueOf(first[0].Base).Pointer()
	f.Fuzz(func(t *testing.T, head, at uint16, flip uint64, table []byte) {
		n := copy(d.mem[:d.buffers], table)
		clear(d.mem[n:d.buffers])
		word := d.mem[at%4096&^7:][:8]
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0))))
		var flips atomic.Int64
		var stop atomic.Bool
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			for v := binary.LittleEndian.Uint64(word); !stop.Load(); flips.Add(1) {
				v ^= flip
				binary.LittleEndian.PutUint64(word, v) // one store
			}
		}()
		defer func() { stop.Store(true); <-gone }()
		for flips.Load() == 0 {
			runtime.Gosched()
		}
		for range 3000 {
			if err := r.Walk(head%16, &chain); err != nil {
				continue
			}
			if chain.InBytes != length(chain.In) || chain.OutBytes != length(chain.Out) || chain.InBytes+chain.OutBytes > math.MaxUint32 {
				t.Fatalf("%d and %d bytes are said to be %d and %d", length(chain.In), length(chain.Out), chain.InBytes, chain.OutBytes)
			}
			for _, iov := range [][]unix.Iovec{chain.In, chain.Out} {
				for _, v := range iov {
					if from := uint64(reflect.ValueOf(v.Base).Pointer() - base); from > uint64(len(d.mem)) || v.Len > uint64(len(d.mem))-from {
						t.Fatalf("%d bytes at %d of %d", v.Len, from, len(d.mem))
					}
				}
			}
		}
	})
}

// span is a piece of a chain in guest memory.
type span struct {
	addr, len uint64
	write     bool
}

// join appends a piece; what continues the last one makes it longer.
func join(all []span, s span) []span {
	if n := len(all); n > 0 && all[n-1].addr+all[n-1].len == s.addr && all[n-1].write == s.write {
		all[n-1].len += s.len
		return all
	}
	return append(all, s)
}

// reference walks a chain as VIRTIO 1.2, section 2.7.5, has it, in one region of memory from address 0, step by step on a copy.
func reference(mem []byte, size uint32, head uint16) (all []span, ok bool) {
	le := binary.LittleEndian
	table, inTable := mem[:16*size], false
	total := uint64(0)
	for i, n := uint32(head), 0; n < 1024; n++ {
		e := table[16*i : 16*i+16]
		addr, length, flags, after := le.Uint64(e), uint64(le.Uint32(e[8:])), le.Uint16(e[12:]), uint32(le.Uint16(e[14:]))
		inside := addr < uint64(len(mem)) && length <= uint64(len(mem))-addr
		switch {
		case flags&indirect != 0:
			if inTable || flags&next != 0 || length == 0 || length%16 != 0 || length > 16*65536 || !inside {
				return nil, false
			}
			table, size, i, inTable = mem[addr:addr+length], uint32(length/16), 0, true
			continue
		case length == 0:
		case !inside, total+length > math.MaxUint32:
			return nil, false
		case flags&write == 0 && len(all) > 0 && all[len(all)-1].write:
			return nil, false
		default:
			total += length
			all = join(all, span{addr, length, flags&write != 0})
		}
		if flags&next == 0 {
			return all, true
		}
		if after >= size {
			return nil, false
		}
		i = after
	}
	return nil, false
}

// FuzzRing is a driver that does anything to its rings between the device's steps. The device never takes more than the ring holds without
// looking, never leaves the rings, and reports a broken index instead of following it.
func FuzzRing(f *testing.F) {
	f.Add(true, []byte{0, 1, 0, 10, 11, 12, 13, 14})
	f.Add(false, []byte{0, 16, 0, 10, 11, 0, 200, 255, 10, 15})
	f.Add(true, []byte{1, 2, 255, 10, 2, 255, 255, 11, 14})
	f.Add(true, []byte{1, 16, 0, 0, 1, 0, 4}) // a head one behind the table
	f.Add(false, []byte{0, 17, 0, 4, 4, 7})   // an index one too far ahead
	round := []byte{}                         // a ring that goes round
	for i := range byte(20) {
		round = append(round, 0, i+1, 0, 1|i<<3, i%16, 0, 4, 6, 7)
	}
	f.Add(true, round)
	f.Add(false, round)
	d := newDriver(f, 16)
	pristine := append([]byte(nil), d.mem[d.buffers:]...)
	f.Fuzz(func(t *testing.T, eventIdx bool, ops []byte) {
		clear(d.mem[:d.buffers])
		r := &virtqueue.Ring{}
		require.NoError(t, r.Setup(d.table, d.addresses(), d.size, 0, virtqueue.Features{EventIdx: eventIdx}))
		var taken []uint16
		pushed := uint16(0)
		for len(ops) > 0 {
			op := ops[0]
			ops = ops[1:]
			var arg [2]byte
			if op%8 < 4 {
				ops = ops[copy(arg[:], ops):]
			}
			v := binary.LittleEndian.Uint16(arg[:])
			switch op % 8 {
			case 0:
				d.put16(d.avail+2, v)
			case 1:
				d.put16(d.avail+4+2*uint64(op>>3%16), v)
			case 2:
				d.usedEvent(v)
			case 3:
				d.put16(d.avail, v)
			case 4, 5:
				base := r.Base()
				head, ok, err := r.Next()
				switch {
				case errors.Is(err, virtqueue.ErrBroken):
					require.Equal(t, base, r.Base())
					return
				case err != nil:
					require.ErrorIs(t, err, virtqueue.ErrHead)
					require.Equal(t, base+1, r.Base())
				case ok:
					require.Less(t, head, uint16(16))
					require.Equal(t, base+1, r.Base())
					taken = append(taken, head)
				default:
					require.Equal(t, base, r.Base())
				}
			case 6:
				if len(taken) > 0 {
					r.Push(taken[0], uint32(op))
					pushed++
					require.EqualValues(t, taken[0], binary.LittleEndian.Uint32(d.mem[d.used+4+8*uint64((pushed-1)%16):]))
					require.Equal(t, pushed, d.get16(d.used+2))
					taken = taken[1:]
				}
				r.MustSignal()
			case 7:
				more, err := r.Listen()
				n, err2 := r.Pending(true)
				require.Equal(t, err == nil, err2 == nil)
				if err == nil {
					require.Equal(t, n > 0, more)
					require.LessOrEqual(t, n, 16)
				}
				r.Quiet()
			}
			require.Zero(t, d.get16(d.used)&^vhostabi.UsedNoNotify)
		}
		require.Equal(t, pristine, d.mem[d.buffers:], "nothing behind the rings was written")
	})
}
