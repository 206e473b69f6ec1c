package hostile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// short sends the first n bytes of a GETATTR.
func (e *Env) short(n int) (Outcome, string) {
	return e.bytes(make([]byte, n), []int{n}, []int{fe.OutHeaderSize, fe.AttrOutSize})
}

// bytes sends any bytes in segments of these lengths.
func (e *Env) bytes(b []byte, in, out []int) (Outcome, string) {
	l, err := e.FUSE.Place(b, in, out)
	if err != nil {
		return Failed, err.Error()
	}
	o, d := e.segs(l.Segs())
	if o != NeverDone {
		e.Dev.Memory.Free(l.GPA, l.Size)
	}
	return o, d
}

func (e *Env) segs(segs []fe.Seg) (Outcome, string) { return e.segsOn(e.Queue, segs) }

// segsOn posts segments as a well-formed chain.
func (e *Env) segsOn(q *fe.Queue, segs []fe.Seg) (Outcome, string) {
	c, err := q.Prepare(segs)
	if err != nil {
		return Failed, err.Error()
	}
	o, d := e.wait(q, c, segs)
	if o != NeverDone {
		q.Release(c)
	}
	return o, d
}

// wait posts a chain and looks at what comes back into the writable segments.
func (e *Env) wait(q *fe.Queue, c *fe.Chain, segs []fe.Seg) (Outcome, string) {
	err := q.Do(c, patience)
	switch {
	case errors.Is(err, fe.ErrRingStopped):
		return RingStopped, ""
	case errors.Is(err, fe.ErrBogus):
		return BadReply, err.Error()
	case err != nil:
		return NeverDone, err.Error()
	}
	room := uint64(0)
	var b []byte
	for _, s := range segs {
		if !s.Write {
			continue
		}
		room += uint64(s.Len)
		b = append(b, e.peek(s.Addr, int(s.Len))...)
	}
	switch {
	case c.Used == 0:
		return Completed0, ""
	case uint64(c.Used) > room:
		return BadReply, fmt.Sprintf("used length %d, room for %d", c.Used, room)
	case c.Used < fe.OutHeaderSize:
		return BadReply, fmt.Sprintf("used length %d is less than a header", c.Used)
	case len(b) < fe.OutHeaderSize:
		return OK, ""
	}
	if n := binary.LittleEndian.Uint32(b); n != c.Used && len(b) >= int(c.Used) {
		return BadReply, fmt.Sprintf("length %d in the header, used length %d", n, c.Used)
	}
	if code := int32(binary.LittleEndian.Uint32(b[4:])); code != 0 {
		return ErrorReply, unix.ErrnoName(unix.Errno(-code))
	}
	return OK, ""
}

// peek copies guest memory; nothing, if it is outside or has been truncated away.
func (e *Env) peek(gpa uint64, n int) (b []byte) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			b = nil
		}
	}()
	return append(b, e.Dev.Memory.Bytes(gpa, n)...)
}

// bend lays a GETATTR out in n ≥ 2 plain descriptors, header and arguments in the first, the reply's room in the second, lets
// edit change them, and posts descriptor ids[0].
func (e *Env) bend(n int, edit func(ids []uint16, d []fe.Desc)) (Outcome, string) {
	c, segs, err := e.bent(n, edit)
	if err != nil {
		return Failed, err.Error()
	}
	o, d := e.wait(e.Queue, c, segs)
	if o != NeverDone && o != RingStopped {
		e.Queue.Release(c)
	}
	return o, d
}

func (e *Env) bent(n int, edit func(ids []uint16, d []fe.Desc)) (*fe.Chain, []fe.Seg, error) {
	f := *e.FUSE
	f.Framing = fe.WholeFraming
	l, err := f.Layout(getattr(1), f.NextUnique()+1<<30)
	if err != nil {
		return nil, nil, err
	}
	ids, err := e.Queue.TakeDesc(n)
	if err != nil {
		return nil, nil, err
	}
	d := make([]fe.Desc, n)
	d[0] = fe.Desc{Addr: l.In[0].Addr, Len: l.In[0].Len, Flags: fe.DescNext, Next: ids[1]}
	d[1] = fe.Desc{Addr: l.Out[0].Addr, Len: l.Out[0].Len, Flags: fe.DescWrite}
	edit(ids, d)
	var segs []fe.Seg
	for i := range d {
		e.Queue.WriteDesc(ids[i], d[i])
		if d[i].Flags&(fe.DescWrite|fe.DescIndirect) == fe.DescWrite {
			segs = append(segs, fe.Seg{Addr: d[i].Addr, Len: d[i].Len, Write: true})
		}
	}
	return e.Queue.PrepareRaw(ids[0], ids), segs, nil
}

// table posts one descriptor that points to an indirect table, which edit may bend together with the descriptor.
func (e *Env) table(edit func(d *fe.Desc, table []fe.Desc) []fe.Desc) (Outcome, string) {
	return e.bend(2, func(ids []uint16, d []fe.Desc) {
		entries := []fe.Desc{{Addr: d[0].Addr, Len: d[0].Len, Flags: fe.DescNext, Next: 1}, d[1]}
		gpa, err := e.Dev.Memory.Alloc(2 * 4096)
		if err != nil {
			return
		}
		head := fe.Desc{Addr: gpa, Len: 32, Flags: fe.DescIndirect}
		entries = edit(&head, entries)
		b := e.Dev.Memory.Bytes(gpa, 4096)
		if at := e.Dev.Memory.Bytes(head.Addr, 4000); at != nil && head.Addr-gpa < 4096 {
			b = at
		}
		for i, t := range entries {
			binary.LittleEndian.PutUint64(b[16*i:], t.Addr)
			binary.LittleEndian.PutUint32(b[16*i+8:], t.Len)
			binary.LittleEndian.PutUint16(b[16*i+12:], t.Flags)
			binary.LittleEndian.PutUint16(b[16*i+14:], t.Next)
		}
		d[0] = head
	})
}

const (
	ruleRAM      = "virtio 1.2, 2.7.5: a descriptor's buffer lies in guest memory"
	ruleChain    = "virtio 1.2, 2.7.5: a chain ends, and has at most as many descriptors as the queue"
	ruleIndirect = "virtio 1.2, 2.7.5.3: an indirect table is a multiple of 16 bytes, neither empty nor nested"
	ruleOrder    = "virtio 1.2, 2.7.4.2: readable descriptors come first"
	ruleIndex    = "virtio 1.2, 2.7.6: the available index counts requests; at most queue size are outstanding"
)

// ringCases break the rules of the ring.
func ringCases() []Case {
	cases := []Case{
		{Name: "desc-outside-read", Rule: ruleRAM, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[0].Addr = e.Dev.Memory.Outside() })
		}},
		{Name: "desc-outside-write", Rule: ruleRAM, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[1].Addr = e.Dev.Memory.Outside() })
		}},
		{Name: "desc-addr-wraps", Rule: ruleRAM, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[0].Addr = ^uint64(0) - 7 })
		}},
		{Name: "desc-write-addr-wraps", Rule: ruleRAM, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[1].Addr = ^uint64(0) - 7 })
		}},
		{Name: "desc-beyond-region", Rule: ruleRAM, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) {
				r := e.Dev.Memory.Regions[1]
				d[0].Addr = r.GPA + r.Size - 8
			})
		}},
		{Name: "desc-write-beyond-region", Rule: ruleRAM, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) {
				r := e.Dev.Memory.Regions[1]
				d[1].Addr = r.GPA + r.Size - 24
			})
		}},
		{Name: "desc-in-the-hole", Rule: ruleRAM, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[0].Addr = e.Dev.Memory.Regions[0].Size + 1<<20 })
		}},
		{Name: "desc-len-max", Rule: ruleRAM, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[0].Len = 0xffffffff })
		}},
		{Name: "desc-write-len-max", Rule: ruleRAM, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[1].Len = 0xffffffff })
		}},
		{Name: "desc-self-loop", Rule: ruleChain, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(ids []uint16, d []fe.Desc) { d[0].Next = ids[0] })
		}},
		{Name: "desc-loop", Rule: ruleChain, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(ids []uint16, d []fe.Desc) { d[1].Flags |= fe.DescNext; d[1].Next = ids[1] })
		}},
		{Name: "desc-long-loop", Rule: ruleChain, Attack: func(e *Env) (Outcome, string) {
			return e.bend(100, func(ids []uint16, d []fe.Desc) {
				for i := range d {
					d[i] = fe.Desc{Addr: d[0].Addr, Len: 1, Flags: fe.DescNext, Next: ids[(i+1)%len(ids)]}
				}
			})
		}},
		{Name: "desc-next-out-of-range", Rule: ruleChain, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[0].Next = e.Queue.Size })
		}},
		{Name: "desc-next-max", Rule: ruleChain, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[0].Next = 0xffff })
		}},
		{Name: "desc-unknown-flags", Rule: "virtio 1.2, 2.7.5: flags are NEXT, WRITE, INDIRECT", Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[0].Flags |= 0xfff8; d[1].Flags |= 0xfff8 })
		}},
		{Name: "head-out-of-range", Rule: "virtio 1.2, 2.7.6: heads are below the queue size", MayStay: true, Attack: func(e *Env) (Outcome, string) { return e.head(e.Queue.Size) }},
		{Name: "head-max", Rule: "virtio 1.2, 2.7.6: heads are below the queue size", MayStay: true, Attack: func(e *Env) (Outcome, string) { return e.head(0xffff) }},
		{Name: "head-twice", Rule: "a head is posted once until it comes back", Attack: func(e *Env) (Outcome, string) {
			c, segs, err := e.bent(2, func([]uint16, []fe.Desc) {})
			if err != nil {
				return Failed, err.Error()
			}
			from := e.Queue.UsedIndex()
			e.Queue.Post(c)
			o, d := e.wait(e.Queue, c, segs)
			if o == BadReply && d == fe.ErrBogus.Error() { // posted twice, it may come back twice
				o, d = OK, "served twice"
			}
			e.strays(from + 2) // a device may also notice, and give it back once; whether it goes on is seen afterwards
			return o, d
		}},
		{Name: "write-before-read", Rule: ruleOrder, Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) {
				d[0], d[1] = fe.Desc{Addr: d[1].Addr, Len: d[1].Len, Flags: fe.DescWrite | fe.DescNext, Next: d[0].Next}, fe.Desc{Addr: d[0].Addr, Len: d[0].Len}
			})
		}},
		{Name: "read-write-read", Rule: ruleOrder, Attack: func(e *Env) (Outcome, string) {
			return e.bend(3, func(ids []uint16, d []fe.Desc) {
				d[1].Flags |= fe.DescNext
				d[1].Next = ids[2]
				d[2] = fe.Desc{Addr: d[0].Addr, Len: 16}
			})
		}},
		{Name: "nothing-writable", Rule: "the reply needs room", Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[0].Flags = 0 })
		}},
		{Name: "nothing-readable", Rule: "a request has a header", Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[0] = d[1] })
		}},
		{Name: "writable-1", Rule: "the reply needs room for a header", Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[1].Len = 1 })
		}},
		{Name: "writable-15", Rule: "the reply needs room for a header", Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[1].Len = 15 })
		}},
		{Name: "writable-16", Rule: "the reply needs room", Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[1].Len = 16 })
		}},
		{Name: "zero-length", Rule: "virtio 1.2, 2.7.5: lengths are not zero", Attack: func(e *Env) (Outcome, string) {
			return e.bend(5, func(ids []uint16, d []fe.Desc) {
				in, out := d[0], d[1]
				d[0] = fe.Desc{Addr: in.Addr, Flags: fe.DescNext, Next: ids[1]}
				d[1] = fe.Desc{Addr: in.Addr, Len: in.Len, Flags: fe.DescNext, Next: ids[2]}
				d[2] = fe.Desc{Addr: 0, Flags: fe.DescNext, Next: ids[3]}
				d[3] = fe.Desc{Addr: 0, Flags: fe.DescNext | fe.DescWrite, Next: ids[4]}
				d[4] = out
			})
		}},
		{Name: "zero-length-outside", Rule: "virtio 1.2, 2.7.5: lengths are not zero", Attack: func(e *Env) (Outcome, string) {
			return e.bend(3, func(ids []uint16, d []fe.Desc) {
				out := d[1]
				d[1] = fe.Desc{Addr: ^uint64(0), Flags: fe.DescNext, Next: ids[2]}
				d[2] = out
			})
		}},
		{Name: "zero-length-only", Rule: "virtio 1.2, 2.7.5: lengths are not zero", Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[0].Len, d[1].Len = 0, 0 })
		}},
		{Name: "longest-chain", Rule: "a chain may have as many descriptors as the queue", Config: fe.Config{QueueSize: 32}, Attack: func(e *Env) (Outcome, string) {
			return e.bend(32, func(ids []uint16, d []fe.Desc) {
				in, out := d[0], d[1]
				for i := range d {
					d[i] = fe.Desc{Addr: in.Addr + uint64(i), Len: 1, Flags: fe.DescNext}
					if i+1 < len(d) {
						d[i].Next = ids[i+1]
					}
				}
				d[30].Len = in.Len - 30
				d[31] = out
			})
		}},
		{Name: "indirect-len-0", Rule: ruleIndirect, Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc { d.Len = 0; return t })
		}},
		{Name: "indirect-len-odd", Rule: ruleIndirect, Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc { d.Len = 33; return t })
		}},
		{Name: "indirect-len-15", Rule: ruleIndirect, Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc { d.Len = 15; return t })
		}},
		{Name: "indirect-len-max", Rule: ruleIndirect, Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc { d.Len = 0xfffffff0; return t })
		}},
		{Name: "indirect-too-long", Rule: ruleChain, Config: fe.Config{QueueSize: 16}, Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc {
				in, out := t[0], t[1]
				t = t[:0]
				for i := range 200 {
					t = append(t, fe.Desc{Addr: in.Addr, Len: 1, Flags: fe.DescNext, Next: uint16(i + 1)})
				}
				d.Len = 16 * 201
				return append(t, out)
			})
		}},
		{Name: "indirect-outside", Rule: ruleRAM, Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc { d.Addr = e.Dev.Memory.Outside(); return t })
		}},
		{Name: "indirect-beyond-region", Rule: ruleRAM, Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc {
				r := e.Dev.Memory.Regions[1]
				d.Addr = r.GPA + r.Size - 16
				return t
			})
		}},
		{Name: "indirect-misaligned", Rule: "virtio 1.2, 2.7.5.3: tables need no alignment", Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc { d.Addr += 3; return t })
		}},
		{Name: "indirect-nested", Rule: ruleIndirect, Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc {
				return []fe.Desc{{Addr: d.Addr, Len: 32, Flags: fe.DescIndirect}, t[1]}
			})
		}},
		{Name: "indirect-loop", Rule: ruleChain, Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc { t[0].Next = 0; return t })
		}},
		{Name: "indirect-next-out-of-table", Rule: ruleIndirect, Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc { t[0].Next = 2; return t })
		}},
		{Name: "indirect-and-next", Rule: "virtio 1.2, 2.7.5.3.1: INDIRECT and NEXT never together", Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc { d.Flags |= fe.DescNext; d.Next = 0; return t })
		}},
		{Name: "indirect-and-write", Rule: "virtio 1.2, 2.7.5.3.2: WRITE is ignored with INDIRECT", Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc { d.Flags |= fe.DescWrite; return t })
		}},
		{Name: "indirect-not-negotiated", Rule: "virtio 1.2, 2.7.5.3.1: only with VIRTIO_F_INDIRECT_DESC", Config: fe.Config{Features: fe.DefaultFeatures &^ (1 << fe.FeatureIndirect)}, Attack: func(e *Env) (Outcome, string) {
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc { return t })
		}},
		{Name: "avail-stale", Rule: ruleIndex, Attack: func(e *Env) (Outcome, string) { return e.jump(1) }},
		{Name: "avail-jump-size", Rule: ruleIndex, RingMayStop: true, Attack: func(e *Env) (Outcome, string) { return e.jump(e.Queue.Size) }},
		{Name: "avail-jump-beyond", Rule: ruleIndex, RingMayStop: true, Attack: func(e *Env) (Outcome, string) { return e.jump(e.Queue.Size + 1) }},
		{Name: "avail-backwards", Rule: ruleIndex, RingMayStop: true, Attack: func(e *Env) (Outcome, string) { return e.jump(0xffff) }},
		{Name: "kick-storm", Rule: "kicks without work", Attack: func(e *Env) (Outcome, string) {
			for range 20000 {
				e.Queue.Kick()
			}
			return Ignored, ""
		}},
		{Name: "reply-over-descriptors", Rule: "buffers do not overlap the ring", RingMayStop: true, Attack: func(e *Env) (Outcome, string) {
			return e.over(e.Queue.DescGPA)
		}},
		{Name: "reply-over-used-ring", Rule: "buffers do not overlap the ring", RingMayStop: true, Attack: func(e *Env) (Outcome, string) {
			return e.over(e.Queue.UsedGPA)
		}},
		{Name: "reply-over-request", Rule: "readable and writable buffers do not overlap", Attack: func(e *Env) (Outcome, string) {
			return e.bend(2, func(_ []uint16, d []fe.Desc) { d[1].Addr = d[0].Addr })
		}},
		{Name: "bytes-flip", Rule: "a request does not change while it is served", Attack: func(e *Env) (Outcome, string) { return e.flip(false) }},
		{Name: "descriptors-flip", Rule: "descriptors do not change while a request is served", Attack: func(e *Env) (Outcome, string) { return e.flip(true) }},
		{Name: "memory-vanishes", Rule: "the pages of a buffer go away (ftruncate of the memfd): an error, no SIGBUS", MayClose: true, MayStay: true, Attack: func(e *Env) (Outcome, string) {
			r := e.Dev.Memory.Regions[1]
			half := r.GPA + r.Size/2
			if err := unix.Ftruncate(r.FD, int64(r.Size/2)); err != nil {
				return Failed, err.Error()
			}
			o, d := e.bend(2, func(_ []uint16, d []fe.Desc) { d[0].Addr = half })
			if o == NeverDone {
				return o, d
			}
			o2, d2 := e.bend(2, func(_ []uint16, d []fe.Desc) { d[1].Addr = half })
			if o2 == OK {
				return BadReply, "a reply into vanished memory is called a success " + d + d2
			}
			return o2, d2
		}},
		{Name: "memory-vanishes-data", Rule: "the pages of a data buffer go away: EFAULT or an error, no SIGBUS", MayClose: true, MayStay: true, Attack: func(e *Env) (Outcome, string) {
			n, err := e.FUSE.Lookup(1, "file")
			if err != nil {
				return Failed, err.Error()
			}
			fh, err := e.FUSE.Open(n.Node, unix.O_RDWR)
			if err != nil {
				return Failed, err.Error()
			}
			r := e.Dev.Memory.Regions[1]
			if err := unix.Ftruncate(r.FD, int64(r.Size/2)); err != nil {
				return Failed, err.Error()
			}
			gone := r.GPA + r.Size/2
			read, err := e.FUSE.Layout(fe.Request{Op: fe.OpRead, Node: n.Node, Args: fe.ReadArgs(fh, 0, 4096), OutData: 4096}, 1<<33)
			if err != nil {
				return Failed, err.Error()
			}
			read.Out[1].Addr = gone
			if o, d := e.segs(read.Segs()); o == NeverDone || o == OK {
				return o, "READ into vanished memory " + d
			}
			write, err := e.FUSE.Layout(fe.Request{Op: fe.OpWrite, Node: n.Node, Args: fe.ReadArgs(fh, 0, 4096), Data: make([]byte, 4096), OutArgs: 8}, 1<<33+2)
			if err != nil {
				return Failed, err.Error()
			}
			write.In[2].Addr = gone
			return e.segs(write.Segs())
		}},
		{Name: "indirect-table-vanishes", Rule: "the pages of an indirect table go away: an error, no SIGBUS", MayClose: true, MayStay: true, RingMayStop: true, Attack: func(e *Env) (Outcome, string) {
			r := e.Dev.Memory.Regions[1]
			if err := unix.Ftruncate(r.FD, int64(r.Size/2)); err != nil {
				return Failed, err.Error()
			}
			return e.table(func(d *fe.Desc, t []fe.Desc) []fe.Desc { d.Addr = r.GPA + r.Size/2; return t })
		}},
	}
	for i := range cases {
		cases[i].Side = Guest
	}
	return cases
}

func (e *Env) head(h uint16) (Outcome, string) {
	o, d := e.wait(e.Queue, e.Queue.PrepareRaw(h, nil), nil)
	if o == NeverDone && e.Dev.Alive() {
		return NeverDone, ""
	}
	return o, d
}

// jump moves the available index by n without filling the ring: its slots hold what an idle ring holds, or old heads. Up to the ring's
// size that is nothing that a device can tell from requests, and it gives all of them back; beyond, the ring cannot be right.
func (e *Env) jump(n uint16) (Outcome, string) {
	from := e.Queue.UsedIndex()
	at := e.Queue.AvailIndex() + n
	e.Queue.SetAvailIndex(at)
	e.Queue.SetNext(at)
	e.Queue.Kick()
	switch err := e.strays(from + n); {
	case errors.Is(err, fe.ErrRingStopped):
		return RingStopped, ""
	case err != nil && n <= e.Queue.Size:
		return NeverDone, fmt.Sprintf("%d of %d came back: %v", e.Queue.UsedIndex()-from, n, err)
	}
	return Ignored, fmt.Sprintf("%d came back", e.Queue.UsedIndex()-from)
}

// strays takes completions off the used ring until its index is at upTo, whatever they belong to. It ends with WaitChain's error where the
// ring stops, the daemon leaves, or nothing comes for as long as an answer may take.
func (e *Env) strays(upTo uint16) error {
	nobody := e.Queue.PrepareRaw(0, nil)
	for e.Queue.UsedIndex() != upTo {
		if err := e.Queue.WaitChain(nobody, patience); err != nil && !errors.Is(err, fe.ErrBogus) {
			return err
		}
	}
	for e.Queue.Pending() {
		e.Queue.Reap()
	}
	return nil
}

// over has a READ's data written over the ring at gpa.
func (e *Env) over(gpa uint64) (Outcome, string) {
	n, err := e.FUSE.Lookup(1, "file")
	if err != nil {
		return Failed, err.Error()
	}
	fh, err := e.FUSE.Open(n.Node, unix.O_RDWR)
	if err != nil {
		return Failed, err.Error()
	}
	l, err := e.FUSE.Layout(fe.Request{Op: fe.OpRead, Node: n.Node, Args: fe.ReadArgs(fh, 0, 4096), OutData: 4096}, 1<<33)
	if err != nil {
		return Failed, err.Error()
	}
	l.Out[1].Addr = gpa
	c, err := e.Queue.Prepare(l.Segs())
	if err != nil {
		return Failed, err.Error()
	}
	before := e.Queue.AvailIndex()
	e.Queue.Post(c)
	e.Queue.Publish()
	time.Sleep(50 * time.Millisecond)
	// The ring is ours to repair, as a driver that resets its queue would; a device that stopped it says so.
	if _, err := e.Dev.Stop(e.Queue); err != nil {
		return NeverDone, err.Error()
	}
	if err := e.Dev.Restart(e.Queue); err != nil {
		return NeverDone, err.Error()
	}
	return Ignored, fmt.Sprintf("ring restarted at index %d", before)
}

// flip runs GETATTR, LOOKUP and READ while another thread changes their bytes or their descriptors.
func (e *Env) flip(descriptors bool) (Outcome, string) {
	const slots = 16
	rng := rand.New(rand.NewPCG(5, 6))
	q := e.Queue
	var chains [slots]*fe.Chain
	var layouts [slots]fe.Layout
	good := make([][]byte, slots)
	ids := make([][]uint16, slots)
	var descs [slots][]fe.Desc
	for i := range slots {
		r := []fe.Request{getattr(1), lookup("file"), {Op: fe.OpMkdir, Node: 1, Args: body().U32(0o755, 0).Name("../victim"), OutArgs: fe.EntrySize}}[i%3]
		f := *e.FUSE
		f.Framing = fe.WholeFraming
		l, err := f.Layout(r, uint64(i+1)<<40)
		if err != nil {
			return Failed, err.Error()
		}
		layouts[i] = l
		b := e.Dev.Memory.Bytes(l.In[0].Addr, int(l.In[0].Len))
		good[i] = append([]byte(nil), b...)
		if ids[i], err = q.TakeDesc(2); err != nil {
			return Failed, err.Error()
		}
		descs[i] = []fe.Desc{
			{Addr: l.In[0].Addr, Len: l.In[0].Len, Flags: fe.DescNext, Next: ids[i][1]},
			{Addr: l.Out[0].Addr, Len: l.Out[0].Len, Flags: fe.DescWrite},
		}
		q.WriteDesc(ids[i][0], descs[i][0])
		q.WriteDesc(ids[i][1], descs[i][1])
		chains[i] = q.PrepareRaw(ids[i][0], ids[i])
	}
	stop := make(chan struct{})
	flipped := make(chan struct{})
	go func() {
		defer close(flipped)
		rng := rand.New(rand.NewPCG(7, 8))
		for {
			select {
			case <-stop:
				return
			default:
			}
			for range 64 {
				i := rng.IntN(slots)
				if descriptors {
					k := rng.IntN(2)
					d := descs[i][k]
					switch rng.IntN(4) {
					case 0:
						if bit := rng.IntN(64); bit != 32 { // that one would point into our own rings
							d.Addr ^= 1 << bit
						}
					case 1:
						d.Len ^= 1 << rng.IntN(32)
					case 2:
						d.Flags ^= 1 << rng.IntN(3)
					case 3:
						d.Next = uint16(rng.Uint32())
					}
					q.WriteDesc(ids[i][k], d)
					q.WriteDesc(ids[i][k], descs[i][k])
					continue
				}
				b := e.Dev.Memory.Bytes(layouts[i].In[0].Addr, len(good[i]))
				at := rng.IntN(len(b))
				b[at] = byte(rng.Uint32())
				b[at] = good[i][at]
			}
		}
	}()
	done, began := 0, time.Now()
	var outcome Outcome = OK
	detail := ""
	for time.Since(began) < 400*time.Millisecond && outcome == OK {
		posted := 0
		for _, i := range rng.Perm(slots) {
			q.Post(chains[i])
			posted++
		}
		q.Publish()
		for posted > 0 {
			if err := q.WaitChain(chains[0], patience); err != nil && !errors.Is(err, fe.ErrBogus) {
				outcome, detail = NeverDone, fmt.Sprintf("after %d requests: %v", done, err)
				break
			}
			posted = 0
			for _, c := range chains {
				if c.Done {
					continue
				}
				if err := q.WaitChain(c, patience); err != nil && !errors.Is(err, fe.ErrBogus) {
					outcome, detail = NeverDone, fmt.Sprintf("after %d requests: %v", done, err)
				}
				break
			}
			for _, c := range chains {
				if !c.Done {
					posted++
				}
			}
			if outcome != OK {
				break
			}
		}
		done += slots
	}
	close(stop)
	<-flipped
	if detail == "" {
		detail = fmt.Sprintf("%d requests", done)
	}
	return outcome, detail
}
