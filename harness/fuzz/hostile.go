package fuzz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// hostileOperations are what no kernel sends. Any answer will do that does not contradict itself; what must hold afterwards is checked by
// the session. They work in the scratch directory, which is not in the model.
func hostileOperations() map[string]operation {
	breaks := func(weight int, run func(*session, Step) *Finding) operation { return operation{weight, true, run} }
	chain := func(edit func(s *session, st Step, ids []uint16, d []fe.Desc)) operation {
		return breaks(1, func(s *session, st Step) *Finding {
			return s.bend(st, 4, true, func(ids []uint16, d []fe.Desc) { edit(s, st, ids, d) })
		})
	}
	table := func(edit func(s *session, st Step, head *fe.Desc, t []fe.Desc)) operation {
		return breaks(1, func(s *session, st Step) *Finding { return s.bendTable(st, edit) })
	}
	return map[string]operation{
		"short-header": breaks(1, func(s *session, st Step) *Finding {
			return s.bytes(st, s.request(st, fe.OpGetattr, fe.RootNode, make([]byte, 16))[:st.Size%fe.InHeaderSize], 200)
		}),
		"name-without-end": breaks(1, func(s *session, st Step) *Finding {
			op := []fe.Opcode{fe.OpLookup, fe.OpUnlink, fe.OpRmdir, fe.OpRemovexattr, fe.OpSymlink}[st.Flags%5]
			return s.bytes(st, s.request(st, op, s.scratch, []byte(st.Name+st.To)), 200)
		}),
		"name-empty": breaks(1, func(s *session, st Step) *Finding {
			return s.bytes(st, s.request(st, s.anyOp(st), s.scratch, make([]byte, st.Size%60)), 300)
		}),
		"length-too-small": breaks(1, func(s *session, st Step) *Finding {
			b := s.plainRequest(st)
			binary.LittleEndian.PutUint32(b, st.Size%uint32(len(b)))
			return s.bytes(st, b, 200)
		}),
		"length-too-large": breaks(1, func(s *session, st Step) *Finding {
			b := s.plainRequest(st)
			binary.LittleEndian.PutUint32(b, uint32(len(b))+1+st.Size<<(st.Flags*3))
			return s.bytes(st, b, 200)
		}),
		"arguments-cut": breaks(1, func(s *session, st Step) *Finding {
			return s.bytes(st, s.request(st, s.anyOp(st), s.scratch, st.data(st.Size%8)), 300)
		}),
		"arguments-random": breaks(6, func(s *session, st Step) *Finding {
			return s.bytes(st, s.request(st, s.anyOp(st), []uint64{s.scratch, s.victim, s.fifo, 1 << 40}[st.Flags%4], s.wild(st)), int(st.Off%5000))
		}),
		"extension-too-large": breaks(1, func(s *session, st Step) *Finding {
			b := s.request(st, fe.OpMkdir, s.scratch, fe.Body(nil).U32(0o755, 0).Name(st.Name))
			binary.LittleEndian.PutUint16(b[36:], uint16(1+st.Size*17))
			return s.bytes(st, b, 300)
		}),
		"extension-lies": breaks(1, func(s *session, st Step) *Finding {
			ext := fe.Body(nil).U32(16, 32, st.Size<<(st.Flags*4), 4)
			args := fe.Body(nil).U32(0o755, 0).Name(st.Name)
			reply, f := s.do(s.client(st), fe.Request{Op: fe.OpMkdir, Node: s.scratch, Args: args, Ext: ext, OutArgs: fe.EntrySize})
			return s.made(reply, f)
		}),
		"groups-of-others": breaks(1, func(s *session, st Step) *Finding {
			args := fe.Body(nil).U32(0o755, 0).Name(st.Name)
			for len(args)%8 != 0 {
				args = append(args, 0)
			}
			reply, f := s.do(s.client(st), fe.Request{Op: fe.OpMkdir, Node: s.scratch, Args: args, Ext: fe.Body(nil).U32(16, 32, 1, 4), OutArgs: fe.EntrySize})
			return s.made(reply, f)
		}),
		"opcode-unknown": breaks(1, func(s *session, st Step) *Finding {
			return s.bytes(st, s.request(st, fe.Opcode(54+st.Size<<(st.Flags*3)), s.scratch, st.data(st.Size%100)), 200)
		}),
		"no-room": breaks(1, func(s *session, st Step) *Finding {
			return s.bytes(st, s.request(st, fe.OpGetattr, fe.RootNode, make([]byte, 16)), 0)
		}),
		"little-room": breaks(1, func(s *session, st Step) *Finding {
			return s.bytes(st, s.request(st, []fe.Opcode{fe.OpGetattr, fe.OpStatfs, fe.OpListxattr}[st.Flags%3], fe.RootNode, make([]byte, 16)), 1+int(st.Size%100))
		}),
		"read-more-than-room": breaks(1, func(s *session, st Step) *Finding {
			op := []fe.Opcode{fe.OpRead, fe.OpReaddir}[st.Flags%2]
			return s.bytes(st, s.request(st, op, s.victim, fe.ReadArgs(s.fh, 0, 4096<<(st.Size%21))), 16+int(st.Off%4000))
		}),
		"write-less-than-said": breaks(1, func(s *session, st Step) *Finding {
			return s.bytes(st, s.request(st, fe.OpWrite, s.victim, append(fe.ReadArgs(s.fh, 0, 1+st.Size<<(st.Flags*3)), st.data(st.Size%1000)...)), 24)
		}),
		"setattr-wild": breaks(2, func(s *session, st Step) *Finding {
			size := []uint64{1 << 63, 1<<64 - 1, 1<<63 - 1, 4096}[st.Flags%4]
			args := fe.Body(nil).U32(uint32(st.Seed)&0xfff, 0).U64(s.fh, size, st.Seed, st.Seed<<7, st.Seed<<3, 0).U32(st.Size<<18, 1<<31, 0, uint32(st.Seed>>20), 0, st.User, st.Size, 0)
			return s.bytes(st, s.request(st, fe.OpSetattr, s.victim, args), 200)
		}),
		"handle-unknown": breaks(2, func(s *session, st Step) *Finding {
			op := []fe.Opcode{fe.OpRead, fe.OpReaddir, fe.OpReaddirplus, fe.OpRelease, fe.OpFlush, fe.OpFsync, fe.OpReleasedir, fe.OpLseek}[st.Flags%8]
			return s.bytes(st, s.request(st, op, s.victim, fe.ReadArgs(st.Seed|1<<20, st.Off, 100)), 300)
		}),
		"handle-of-the-wrong-kind": breaks(1, func(s *session, st Step) *Finding {
			op := []fe.Opcode{fe.OpReaddir, fe.OpReaddirplus, fe.OpFsyncdir}[st.Flags%3]
			return s.bytes(st, s.request(st, op, s.victim, fe.ReadArgs(s.fh, st.Off, 1000)), 1016)
		}),
		"node-unknown": breaks(2, func(s *session, st Step) *Finding {
			return s.bytes(st, s.request(st, s.anyOp(st), st.Seed|1<<40, s.wild(st)), 300)
		}),
		"node-0": breaks(1, func(s *session, st Step) *Finding { return s.bytes(st, s.request(st, s.anyOp(st), 0, s.wild(st)), 300) }),
		"file-as-directory": breaks(1, func(s *session, st Step) *Finding {
			op := []fe.Opcode{fe.OpLookup, fe.OpUnlink, fe.OpRmdir}[st.Flags%3]
			return s.bytes(st, s.request(st, op, s.victim, fe.Body(nil).Name(st.Name)), 300)
		}),
		"open-fifo": breaks(1, func(s *session, st Step) *Finding {
			flags := []uint32{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDONLY | unix.O_NONBLOCK}[st.Flags%4]
			return s.bytes(st, s.request(st, fe.OpOpen, s.fifo, fe.Body(nil).U32(flags, 0)), 100)
		}),
		"directory-offset": breaks(1, func(s *session, st Step) *Finding {
			h := s.model.pickFile(st.File, true)
			if h == nil {
				return nil
			}
			return s.bytes(st, s.request(st, fe.OpReaddir, h.node.id, fe.ReadArgs(h.fh, st.Seed, 4096)), 4112)
		}),
		"forget-too-much": breaks(1, func(s *session, st Step) *Finding {
			_, f := s.do(s.client(st), fe.Request{Op: fe.OpForget, Node: fe.RootNode, Args: fe.Body(nil).U64(st.Seed >> (st.Size % 60))})
			return f
		}),
		"batch-forget-lies": breaks(1, func(s *session, st Step) *Finding {
			return s.bytes(st, s.request(st, fe.OpBatchForget, 0, fe.Body(nil).U32(st.Size<<(st.Flags*3), 0).U64(1<<40, 1)), 0)
		}),
		"interrupt": breaks(1, func(s *session, st Step) *Finding {
			_, f := s.do(s.client(st), fe.Request{Op: fe.OpInterrupt, Args: fe.Body(nil).U64(st.Seed)})
			return f
		}),
		"names-that-climb": breaks(4, (*session).climb),
		"host-changes":     breaks(4, (*session).hostChanges),
		"memory-changes":   breaks(3, (*session).memoryChanges),

		"descriptor-outside": chain(func(s *session, st Step, _ []uint16, d []fe.Desc) {
			d[st.Size%2].Addr = []uint64{s.dev.Memory.Outside(), ^uint64(0) - 7, s.dev.Memory.Regions[1].GPA + s.dev.Memory.Regions[1].Size - 8, s.dev.Memory.Regions[0].Size + 4096}[st.Flags%4]
		}),
		"descriptor-long": chain(func(_ *session, st Step, _ []uint16, d []fe.Desc) { d[st.Size%2].Len = 1<<32 - 1 - st.Size }),
		"descriptor-loop": chain(func(_ *session, st Step, ids []uint16, d []fe.Desc) {
			d[st.Off%2].Flags |= fe.DescNext
			d[st.Off%2].Next = ids[st.Size%2]
		}),
		"descriptor-next": chain(func(s *session, st Step, _ []uint16, d []fe.Desc) {
			d[0].Next = s.queue(st.Queue).Size + uint16(st.Size)
		}),
		"descriptor-order": chain(func(_ *session, st Step, _ []uint16, d []fe.Desc) {
			d[0].Flags, d[1].Flags = d[0].Flags|fe.DescWrite, d[1].Flags&^fe.DescWrite
		}),
		"descriptor-flags": chain(func(_ *session, st Step, _ []uint16, d []fe.Desc) {
			d[st.Size%2].Flags ^= uint16(st.Seed) &^ fe.DescNext
		}),
		"descriptor-empty": chain(func(_ *session, st Step, _ []uint16, d []fe.Desc) { d[st.Size%2].Len = 0 }),
		"descriptor-any": chain(func(_ *session, st Step, ids []uint16, d []fe.Desc) {
			rng := rand.New(rand.NewPCG(st.Seed, 4))
			for i := range d {
				if rng.IntN(2) == 0 {
					d[i] = fe.Desc{Addr: rng.Uint64() >> rng.UintN(64), Len: rng.Uint32() >> rng.UintN(32), Flags: uint16(rng.UintN(8)), Next: ids[rng.IntN(len(ids))]}
				}
			}
		}),
		"head-outside": breaks(1, func(s *session, st Step) *Finding {
			q := s.queue(st.Queue)
			q.Post(q.PrepareRaw(q.Size+uint16(st.Size), nil))
			q.Publish()
			q.Kick()
			time.Sleep(time.Millisecond)
			return nil // it cannot be given back; that the queue goes on is seen afterwards
		}),
		"table-length": table(func(_ *session, st Step, head *fe.Desc, _ []fe.Desc) {
			head.Len = []uint32{0, 15, 33, 1<<32 - 16, st.Size}[st.Seed%5]
		}),
		"table-outside":  table(func(s *session, _ Step, head *fe.Desc, _ []fe.Desc) { head.Addr = s.dev.Memory.Outside() }),
		"table-in-table": table(func(_ *session, st Step, _ *fe.Desc, t []fe.Desc) { t[st.Size%2].Flags |= fe.DescIndirect }),
		"table-with-next": table(func(_ *session, st Step, head *fe.Desc, _ []fe.Desc) {
			head.Flags |= fe.DescNext | fe.DescWrite*uint16(st.Flags%2)
		}),
		"table-next":        table(func(_ *session, st Step, _ *fe.Desc, t []fe.Desc) { t[0].Next = 2 + uint16(st.Size) }),
		"table-loop":        table(func(_ *session, _ Step, _ *fe.Desc, t []fe.Desc) { t[0].Next = 0 }),
		"table-not-aligned": table(func(_ *session, st Step, head *fe.Desc, _ []fe.Desc) { head.Addr += 1 + uint64(st.Size%15) }),
	}
}

// made gives the lookup of what was created back, and removes it, so that the next can be made.
func (s *session) made(reply fe.Reply, f *Finding) *Finding {
	if f != nil || reply.Error != 0 || len(reply.Body) < fe.EntrySize {
		return f
	}
	_, f = s.do(s.fuse, fe.Request{Op: fe.OpForget, Node: fe.DecodeEntry(reply.Body).Node, Args: fe.Body(nil).U64(1)})
	for _, n := range names {
		os.Remove(filepath.Join(s.share, "scratch", n))
	}
	return f
}

// anyOp is an opcode that neither ends the session nor waits.
func (s *session) anyOp(st Step) fe.Opcode {
	for op := st.Seed % 60; ; op = (op + 1) % 60 {
		switch o := fe.Opcode(op); o {
		case 0, fe.OpInit, fe.OpDestroy, fe.OpSetlkw, fe.OpSyncfs:
		default:
			return o
		}
	}
}

// wild are arguments: numbers at their bounds and names. Nothing in them is the number of a node or an open file that there is, but for
// the scratch file's own handle.
func (s *session) wild(st Step) []byte {
	rng := rand.New(rand.NewPCG(st.Seed, 5))
	b := fe.Body(nil)
	for range rng.IntN(12) {
		switch rng.IntN(6) {
		case 0:
			b = b.U64(s.fh)
		case 1:
			b = b.U64(rng.Uint64() | 1<<40)
		case 2:
			b = b.U64([]uint64{0, 1<<64 - 1, 1 << 63, 1<<63 - 1, 1<<32 - 1}[rng.IntN(5)])
		case 3:
			b = b.U32(rng.Uint32()|1<<30, uint32(1<<20+rng.IntN(1<<10)))
		case 4:
			b = b.Name(strings.Repeat("n", rng.IntN(300)))
		case 5:
			b = b.U32(1+uint32(rng.IntN(1<<12)), 1+uint32(rng.IntN(1<<12))) // together no small number
		}
	}
	return b
}

// plainRequest is a request's bytes with nothing wrong in them, with a name or without.
func (s *session) plainRequest(st Step) []byte {
	if st.Off%2 == 1 {
		return s.request(st, fe.OpLookup, s.scratch, fe.Body(nil).Name(st.Name))
	}
	return s.request(st, fe.OpGetattr, fe.RootNode, make([]byte, 16))
}

// request is a request's bytes.
func (s *session) request(st Step, op fe.Opcode, node uint64, args []byte) []byte {
	b := fe.Body(nil).U32(uint32(fe.InHeaderSize+len(args)), uint32(op)).U64(s.fuse.NextUnique()|1<<60, node).U32(st.User, st.User, 1).U16(0, 0)
	return append(b, args...)
}

// bytes sends bytes as a request with so much room for the answer, cut as the step says. Any answer will do that does not contradict itself.
func (s *session) bytes(st Step, b []byte, room int) *Finding {
	f := s.client(st)
	framing := f.Framing
	if st.Cut == 0 {
		framing = fe.WholeFraming
	}
	in, out := framing(fe.Shape{Data: len(b)}), framing(fe.Shape{Data: room})
	if len(b) == 0 {
		in = nil
	}
	if room == 0 {
		out = nil
	}
	l, err := f.Place(b, in, out)
	if err != nil {
		return nil // guest memory is full
	}
	q := s.queue(st.Queue)
	segs := l.Segs()
	if len(segs) == 0 {
		return nil
	}
	c, err := q.Prepare(segs)
	if err != nil {
		return nil
	}
	found := s.wait(q, c, l.Out)
	if found == nil {
		q.Release(c)
		s.dev.Memory.Free(l.GPA, l.Size)
	}
	return found
}

// wait posts a chain and judges what comes back.
func (s *session) wait(q *fe.Queue, c *fe.Chain, out []fe.Seg) *Finding {
	err := q.Do(c, patience)
	switch {
	case errors.Is(err, fe.ErrBogus):
		return &Finding{Kind: "bad reply", Detail: err.Error()}
	case errors.Is(err, fe.ErrRingStopped):
		return &Finding{Kind: "queue dead", Detail: "one request has stopped the ring"}
	case err != nil:
		return s.gone("never done", err.Error())
	}
	room := uint64(0)
	var b []byte
	for _, g := range out {
		room += uint64(g.Len)
		b = append(b, s.dev.Memory.Bytes(g.Addr, int(g.Len))...)
	}
	bad := func(format string, a ...any) *Finding {
		return &Finding{Kind: "bad reply", Detail: fmt.Sprintf(format, a...)}
	}
	switch {
	case c.Used == 0:
		return s.defects()
	case uint64(c.Used) > room:
		return bad("used length %d, room for %d", c.Used, room)
	case c.Used < fe.OutHeaderSize:
		return bad("used length %d is less than a header", c.Used)
	case len(b) < int(c.Used):
		return s.defects() // part of the room is not memory
	case binary.LittleEndian.Uint32(b) != c.Used:
		return bad("length %d in the header, used length %d", binary.LittleEndian.Uint32(b), c.Used)
	}
	if code := int32(binary.LittleEndian.Uint32(b[4:])); code > 0 || code < -4095 {
		return bad("error %d", code)
	}
	if strings.Contains(string(b), strings.TrimSpace(secret)) {
		return &Finding{Kind: "escaped", Detail: "the answer holds the file beside the share"}
	}
	return s.defects()
}

// bend posts a GETATTR of the root in plain descriptors which edit changes: the first has the request, the second the room for its answer.
func (s *session) bend(st Step, n int, room bool, edit func(ids []uint16, d []fe.Desc)) *Finding {
	f := s.client(st)
	f.Framing = fe.WholeFraming
	q := s.queue(st.Queue)
	l, err := f.Layout(fe.Request{Op: fe.OpGetattr, Node: fe.RootNode, Args: fe.Body(nil).U32(0, 0).U64(0), OutArgs: fe.AttrOutSize}, f.NextUnique()|1<<60)
	if err != nil {
		return nil
	}
	ids, err := q.TakeDesc(n)
	if err != nil {
		return nil
	}
	d := make([]fe.Desc, n)
	d[0] = fe.Desc{Addr: l.In[0].Addr, Len: l.In[0].Len, Flags: fe.DescNext, Next: ids[1]}
	d[1] = fe.Desc{Addr: l.Out[0].Addr, Len: l.Out[0].Len, Flags: fe.DescWrite}
	edit(ids, d)
	var segs []fe.Seg
	for i := range d {
		q.WriteDesc(ids[i], d[i])
		if d[i].Flags&(fe.DescWrite|fe.DescIndirect) == fe.DescWrite {
			segs = append(segs, fe.Seg{Addr: d[i].Addr, Len: d[i].Len, Write: true})
		}
	}
	// What is read back is only what is surely memory and in order.
	var out []fe.Seg
	sum := uint64(0)
	for _, g := range segs {
		sum += uint64(g.Len)
	}
	if len(segs) == 1 && s.dev.Memory.Bytes(segs[0].Addr, int(min(segs[0].Len, 1<<16))) != nil && segs[0].Len < 1<<16 {
		out = segs
	} else {
		out = []fe.Seg{{Addr: s.dev.Memory.Outside(), Len: uint32(min(sum, 1<<32-1)), Write: true}}
	}
	c := q.PrepareRaw(ids[0], ids)
	found := s.wait(q, c, out)
	if found == nil {
		q.Release(c)
		s.dev.Memory.Free(l.GPA, l.Size)
	}
	return found
}

// bendTable posts the same by an indirect table.
func (s *session) bendTable(st Step, edit func(s *session, st Step, head *fe.Desc, t []fe.Desc)) *Finding {
	gpa, err := s.dev.Memory.Alloc(fe.PageSize)
	if err != nil {
		return nil
	}
	return s.bend(st, 2, true, func(_ []uint16, d []fe.Desc) {
		t := []fe.Desc{{Addr: d[0].Addr, Len: d[0].Len, Flags: fe.DescNext, Next: 1}, d[1]}
		head := fe.Desc{Addr: gpa, Len: 32, Flags: fe.DescIndirect, Next: d[0].Next}
		edit(s, st, &head, t)
		at := gpa
		if head.Addr-gpa < 16 {
			at = head.Addr
		}
		b := s.dev.Memory.Bytes(at, 32)
		for i, e := range t {
			binary.LittleEndian.PutUint64(b[16*i:], e.Addr)
			binary.LittleEndian.PutUint32(b[16*i+8:], e.Len)
			binary.LittleEndian.PutUint16(b[16*i+12:], e.Flags)
			binary.LittleEndian.PutUint16(b[16*i+14:], e.Next)
		}
		d[0] = head
	})
}

// climb uses names that lead out of the share, if somebody follows them.
func (s *session) climb(st Step) *Finding {
	name := []string{"..", "../..", "../../secret", "../../outside/secret", "../../outside/dir", "out/secret", "/" + s.base + "/secret", "./a", "a/", "."}[st.Seed%10]
	into := "../../outside/" + st.To
	body := fe.Body(nil)
	var r fe.Request
	switch st.Seed / 16 % 10 {
	case 0, 1, 2:
		r = fe.Request{Op: fe.OpLookup, Args: body.Name(name), OutArgs: fe.EntrySize}
	case 3:
		r = fe.Request{Op: fe.OpMkdir, Args: body.U32(0o755, 0).Name(into), OutArgs: fe.EntrySize}
	case 4:
		r = fe.Request{Op: fe.OpCreate, Args: body.U32(unix.O_RDWR|unix.O_CREAT, 0o100644, 0, 0).Name(into), OutArgs: fe.EntrySize + fe.OpenOutSize}
	case 5:
		r = fe.Request{Op: fe.OpUnlink, Args: body.Name("../../outside/secret")}
	case 6:
		r = fe.Request{Op: fe.OpRename, Args: body.U64(s.scratch).Name("../../outside/secret").Name(st.To)}
	case 7:
		r = fe.Request{Op: fe.OpSymlink, Args: body.Name(into).Name("x"), OutArgs: fe.EntrySize}
	case 8:
		r = fe.Request{Op: fe.OpLink, Args: body.U64(s.victim).Name(into), OutArgs: fe.EntrySize}
	case 9:
		r = fe.Request{Op: fe.OpRmdir, Args: body.Name("../../outside/dir")}
	}
	r.Node = s.scratch
	reply, f := s.do(s.client(st), r)
	if f != nil {
		return f
	}
	if reply.Error == 0 && len(reply.Body) >= fe.EntrySize {
		if e := fe.DecodeEntry(reply.Body); s.inodes[e.Attr.Ino] {
			return &Finding{Kind: "escaped", Detail: fmt.Sprintf("%v of %q answers with a file beside the share", r.Op, strings.ReplaceAll(name, s.base, "…"))}
		}
	}
	return s.contained()
}

// hostChanges renames, replaces and truncates on the host what the guest works on, and then works on it.
func (s *session) hostChanges(st Step) *Finding {
	dir := filepath.Join(s.share, "scratch")
	at := filepath.Join(dir, "h")
	os.Mkdir(at, 0o777)
	os.WriteFile(filepath.Join(at, "secret"), []byte("of the share"), 0o666)
	os.Mkdir(filepath.Join(at, "dir"), 0o777)
	e, err := s.fuse.Walk("scratch", "h")
	if err != nil {
		os.RemoveAll(at)
		var errno unix.Errno
		if errors.As(err, &errno) {
			return nil
		}
		return s.judge(fe.OpLookup, fe.Reply{}, err)
	}
	file, _ := s.fuse.Lookup(e.Node, "secret")
	sub, _ := s.fuse.Lookup(e.Node, "dir")
	moved := filepath.Join(dir, "moved")
	os.RemoveAll(moved)
	switch st.Flags % 5 {
	case 0: // the directory becomes a link that leads out
		os.Rename(at, moved)
		os.Symlink("../../outside", at)
	case 1: // the file does
		os.Remove(filepath.Join(at, "secret"))
		os.Symlink("../../../outside/secret", filepath.Join(at, "secret"))
	case 2: // a directory within
		os.Remove(filepath.Join(at, "dir"))
		os.Symlink("../../../outside/dir", filepath.Join(at, "dir"))
	case 3:
		os.Truncate(filepath.Join(at, "secret"), 0)
		os.RemoveAll(at)
	case 4:
		os.Rename(at, moved)
		os.WriteFile(at, []byte("a file now"), 0o666)
	}
	body := fe.Body(nil)
	var found *Finding
	for _, r := range []fe.Request{
		{Op: fe.OpLookup, Node: e.Node, Args: body.Name("secret"), OutArgs: fe.EntrySize},
		{Op: fe.OpOpen, Node: file.Node, Args: body.U32(unix.O_RDWR, 0), OutArgs: fe.OpenOutSize},
		{Op: fe.OpSetattr, Node: file.Node, Args: body.U32(fe.SetMode|fe.SetSize, 0).U64(0, 3, 0, 0, 0, 0).U32(0, 0, 0, 0o100600, 0, 0, 0, 0), OutArgs: fe.AttrOutSize},
		{Op: fe.OpMkdir, Node: e.Node, Args: body.U32(0o755, 0).Name(st.Name), OutArgs: fe.EntrySize},
		{Op: fe.OpUnlink, Node: e.Node, Args: body.Name("secret")},
		{Op: fe.OpMkdir, Node: sub.Node, Args: body.U32(0o755, 0).Name(st.To), OutArgs: fe.EntrySize},
		{Op: fe.OpGetattr, Node: file.Node, Args: body.U32(0, 0).U64(0), OutArgs: fe.AttrOutSize},
	} {
		if r.Node == 0 {
			continue
		}
		reply, f := s.do(s.client(st), r)
		if f != nil {
			return f
		}
		if reply.Error != 0 {
			continue
		}
		switch {
		case r.OutArgs == fe.EntrySize && len(reply.Body) >= fe.EntrySize:
			got := fe.DecodeEntry(reply.Body)
			if s.inodes[got.Attr.Ino] {
				found = &Finding{Kind: "escaped", Detail: fmt.Sprintf("%v answers with a file beside the share, after the host has put a link in a directory's place", r.Op)}
			}
			s.fuse.Forget(got.Node, 1)
		case r.Op == fe.OpOpen && len(reply.Body) >= 8:
			fh := binary.LittleEndian.Uint64(reply.Body)
			if b, err := s.fuse.Read(file.Node, fh, 0, 100); err == nil && strings.Contains(secret, string(b)) && len(b) > 20 {
				found = &Finding{Kind: "escaped", Detail: "the file beside the share was read"}
			}
			s.fuse.Release(file.Node, fh)
		}
	}
	for _, n := range []uint64{file.Node, sub.Node, e.Node} {
		if n != 0 {
			s.fuse.Forget(n, 1)
		}
	}
	if found == nil {
		found = s.contained()
	}
	os.RemoveAll(at)
	os.RemoveAll(moved)
	return found
}

// memoryChanges has a request served while its memory changes between two versions.
func (s *session) memoryChanges(st Step) *Finding {
	f := s.client(st)
	f.Framing = fe.WholeFraming
	q := s.queue(st.Queue)
	body := fe.Body(nil)
	r := []fe.Request{
		{Op: fe.OpLookup, Node: s.scratch, Args: body.Name("file"), OutArgs: fe.EntrySize},
		{Op: fe.OpGetattr, Node: s.scratch, Args: body.U32(0, 0).U64(0), OutArgs: fe.AttrOutSize},
		{Op: fe.OpWrite, Node: s.victim, Args: fe.ReadArgs(s.fh, 0, 64), Data: make([]byte, 64), OutArgs: 8},
		{Op: fe.OpRead, Node: s.victim, Args: fe.ReadArgs(s.fh, 0, 64), OutData: 64},
		{Op: fe.OpSetxattr, Node: s.victim, Args: append(body.U32(5, 0).Name("user.x"), "value"...)},
		{Op: fe.OpMkdir, Node: s.scratch, Args: append(body.U32(0o755, 0).Name("m234567"), body.U32(16, 32, 1, 4)...), OutArgs: fe.EntrySize},
		{Op: fe.OpUnlink, Node: s.scratch, Args: body.Name("../x")},
	}[st.Seed%7]
	l, err := f.Layout(r, f.NextUnique()|1<<60)
	if err != nil {
		return nil
	}
	c, err := q.Prepare(l.Segs())
	if err != nil {
		return nil
	}
	in := s.dev.Memory.Bytes(l.In[0].Addr, int(l.In[0].Len))
	// Never what names the node, and the opcode only within its neighbours.
	places := []struct {
		at   int
		flip uint32
	}{{0, 0xfff}, {0, 0xffffffff}, {36, 0xffff}, {40, 0xff}, {40, 0xffffffff}, {len(in) - 4, 0x2f2f2f2f}, {len(in) - 4, 0xffffffff}, {56, 0xffffff}}
	p := places[st.Seed/8%uint64(len(places))]
	at := min(p.at&^3, len(in)-4)
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for word := in[at : at+4]; !stop.Load(); {
			binary.NativeEndian.PutUint32(word, binary.NativeEndian.Uint32(word)^p.flip)
		}
	}()
	var found *Finding
	for range 20 {
		if found = s.wait(q, c, l.Out); found != nil {
			break
		}
	}
	stop.Store(true)
	<-ended
	if found == nil {
		q.Release(c)
		s.dev.Memory.Free(l.GPA, l.Size)
		os.RemoveAll(filepath.Join(s.share, "scratch", "m234567"))
	}
	return found
}
