package fuse

import (
	"bytes"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

const (
	bufferSize   = 16 << 10              // what a worker starts with for arguments and for replies
	maxArguments = 256 << 10             // a label and an attribute of 64 KiB each, and names, fit
	maxRequest   = MaxWrite + 4<<10      // WRITE and its header; no driver reads more of its requests at a time than that
	maxReply     = 16 + 256<<10          // of what is not file data
	maxNameLen   = 255                   // NAME_MAX
	maxTarget    = 4096                  // PATH_MAX, with NUL
	maxXattrSize = 64 << 10              // XATTR_SIZE_MAX, XATTR_LIST_MAX
	body         = fuseabi.OutHeaderSize // where a reply's body starts
)

// Worker serves requests on one thread. It implements the transport's handler.
type Worker struct {
	s        *Session
	fs       Thread
	in       []byte // header, arguments, extensions of the request: the only copy that is looked at
	out      []byte // header and body of the reply
	iov      []unix.Iovec
	ext      fuseabi.Extensions
	call     Caller
	counters *counters
	untimed  int // how many more requests are not timed
	last     fuseabi.Opcode

	// of the request at hand
	inSegs, outSegs []unix.Iovec
	inLen, room     uint64
	args            []byte // in[:end of arguments], header included; rest is what has not been parsed of it
	rest            []byte
	why             string     // what was malformed
	errno           unix.Errno // of the reply
}

func newWorker(s *Session, t Thread, queue int) *Worker {
	return &Worker{s: s, fs: t, counters: s.tally.join(queue), in: fuseabi.Buffer(bufferSize), out: fuseabi.Buffer(bufferSize), iov: make([]unix.Iovec, 0, 1024)}
}

// Abort makes the worker fit for the next request after a panic in Serve.
func (w *Worker) Abort() {
	w.drop()
	w.fs.Changing() // half of it may have been done
	w.fs.Abort()
}

// Idle does what was put off, and then works for the request that is likely to follow: the next part of a directory's list.
func (w *Worker) Idle() (more bool) {
	return w.fs.Tidy() || w.last == fuseabi.OpReaddirplus && w.fs.Ahead()
}

// Close ends the worker, on its thread.
func (w *Worker) Close() {
	w.fs.Close()
	w.s.tally.leave(w.counters)
}

func (w *Worker) drop() {
	w.inSegs, w.outSegs, w.args, w.rest = nil, nil, nil, nil
	w.iov = w.iov[:0]
}

// Serve answers one request and returns how many bytes it wrote.
func (w *Worker) Serve(in, out []unix.Iovec) uint32 {
	var began time.Duration
	timed := w.untimed == 0
	if timed {
		w.untimed = sampled
		began = sys.Clock()
	}
	w.untimed--
	w.inSegs, w.outSegs, w.inLen, w.room, w.why, w.errno = in, out, fuseabi.Len(in), fuseabi.Len(out), "", 0
	used := w.header()
	code := fuseabi.Opcode(fuseabi.View[fuseabi.InHeader](w.in).Opcode)
	if code != fuseabi.OpForget && code != fuseabi.OpBatchForget { // they come on another queue, and end no sequence of this one
		w.last = code
	}
	w.drop()
	w.counters.add(code, w.errno)
	if timed {
		w.counters.time(code, sys.Clock()-began)
		for w.fs.Tidy() { // there may be no idle time
		}
	}
	return used
}

// header takes the header, and the rest if that is whole.
func (w *Worker) header() uint32 {
	n := fuseabi.CopyIn(w.in[:fuseabi.InHeaderSize], w.inSegs, 0)
	h := fuseabi.View[fuseabi.InHeader](w.in)
	if n < fuseabi.InHeaderSize {
		clear(w.in[n:fuseabi.InHeaderSize])
		w.why = "shorter than a header"
		w.s.malformed(h, w.why)
		if n < 16 { // the number that a reply must carry is not there
			return 0
		}
		return w.reply(h, 0, unix.EINVAL)
	}
	return w.serve(h)
}

func (w *Worker) serve(h *fuseabi.InHeader) uint32 {
	code := fuseabi.Opcode(h.Opcode)
	var o *op
	if code < fuseabi.OpcodeEnd {
		o = &ops[code]
	}
	if o == nil || o.run == nil {
		return w.reply(h, 0, unix.ENOSYS)
	}
	if e := w.take(h, o); e != 0 {
		w.s.malformed(h, w.why)
		return w.reply(h, 0, e)
	}
	if !w.s.ready.Load() && !o.early {
		w.why = "before INIT"
		w.s.malformed(h, w.why)
		return w.reply(h, 0, unix.EIO)
	}
	if !code.NoReply() {
		if w.room < fuseabi.OutHeaderSize {
			w.s.malformed(h, "no room for a reply")
			return 0
		}
		if w.room < fuseabi.OutHeaderSize+uint64(o.out) {
			w.s.malformed(h, "no room for this reply")
			return w.reply(h, 0, unix.EINVAL)
		}
		clear(w.out[body : body+o.out])
	}
	if o.changes {
		w.fs.Changing()
	}
	n, e := o.run(w)
	if o.changes {
		w.fs.Changing()
	}
	if e != 0 && w.why != "" {
		w.s.malformed(h, w.why)
	}
	return w.reply(h, n, e)
}

// take copies what belongs to the request beside file data and lists of nodes, and checks lengths.
func (w *Worker) take(h *fuseabi.InHeader, o *op) unix.Errno {
	length := uint64(h.Length)
	if length < uint64(o.in) || length > w.inLen {
		w.why = "length does not fit the opcode or the memory given"
		return unix.EINVAL
	}
	if length > maxRequest { // however often the guest's descriptors name the same memory
		w.why = "longer than max_write and a header"
		return unix.E2BIG
	}
	w.inLen = length
	want := length
	if o.bulk {
		want = uint64(o.in)
	}
	if want > maxArguments {
		w.why = "arguments are too long"
		return unix.E2BIG
	}
	if want > uint64(len(w.in)) {
		grown := fuseabi.Buffer(maxArguments)
		copy(grown, w.in[:fuseabi.InHeaderSize])
		w.in = grown
		h = fuseabi.View[fuseabi.InHeader](w.in)
	}
	// The header is not copied a second time: a guest may have changed it since.
	n := fuseabi.CopyIn(w.in[fuseabi.InHeaderSize:want], w.inSegs, fuseabi.InHeaderSize)
	if uint64(n)+fuseabi.InHeaderSize != want {
		w.why = "shorter than its length"
		return unix.EINVAL
	}
	w.call = Caller{UID: h.Uid, GID: h.Gid, PID: h.Pid, Unique: h.Unique}
	w.ext.Reset()
	// Before 7.38 the field was padding, and Windows' driver leaves in it what was on its stack.
	extLen := uint64(h.TotalExtlen) * 8
	if o.bulk || o.early || !w.s.has(fuseabi.CreateSuppGroup|fuseabi.SecurityCtx) {
		extLen = 0
	}
	if extLen > want-uint64(o.in) {
		w.why = "extensions are longer than the request"
		return unix.EINVAL
	}
	w.args = w.in[:want-extLen]
	w.rest = w.args[o.in:]
	if extLen > 0 {
		return w.extensions(w.in[want-extLen : want])
	}
	return 0
}

func (w *Worker) extensions(b []byte) unix.Errno {
	if err := w.ext.Parse(b); err != nil {
		w.why = err.Error()
		return unix.EINVAL
	}
	if w.s.has(fuseabi.CreateSuppGroup) {
		w.call.Groups = w.ext.Groups
	}
	if w.s.has(fuseabi.SecurityCtx) {
		w.call.Secctx = w.ext.Secctx
	}
	return 0
}

// lateExtensions parses what follows the last name when the header announces no extensions: Linux before 6.3 sent labels so.
func (w *Worker) lateExtensions() unix.Errno {
	if len(w.rest) < 8 || len(w.call.Secctx) > 0 || !w.s.has(fuseabi.SecurityCtx) {
		return 0
	}
	return w.extensions(w.rest)
}

// str takes the next NUL-terminated string: at most max bytes, counted without the NUL.
func (w *Worker) str(max int) (Name, unix.Errno) {
	i := bytes.IndexByte(w.rest, 0)
	switch {
	case i < 0:
		w.why = "name without an end"
		return nil, unix.EINVAL
	case i == 0:
		w.why = "empty name"
		return nil, unix.EINVAL
	case i > max:
		return nil, unix.ENAMETOOLONG
	}
	n := w.rest[: i+1 : i+1]
	w.rest = w.rest[i+1:]
	return n, 0
}

// anyName takes the next name of a directory entry, of which "." and ".." are two: LOOKUP finds the
// directory itself by the one and what it lies in by the other. So Windows' driver finds the root,
// and Linux what it exports by NFS (fs/fuse/inode.c, fuse_get_dentry and fuse_get_parent).
func (w *Worker) anyName() (Name, unix.Errno) {
	n, e := w.str(maxNameLen)
	if e != 0 {
		return nil, e
	}
	if bytes.IndexByte(n, '/') >= 0 {
		w.why = "name has a '/'"
		return nil, unix.EINVAL
	}
	return n, 0
}

// name takes the next name of what can be made, removed or renamed: with "." or ".." a request
// could leave the shared directory.
func (w *Worker) name() (Name, unix.Errno) {
	n, e := w.anyName()
	if e == 0 && n.Dots() {
		w.why = "name is '.' or '..'"
		return nil, unix.EINVAL
	}
	return n, e
}

// reply writes header and n bytes of body (in w.out, or behind the header in guest memory already if n is negative: -n-1
// bytes) and returns what was used. Nothing is written for opcodes without reply or where a header has no room.
func (w *Worker) reply(h *fuseabi.InHeader, n int, e unix.Errno) uint32 {
	w.errno = e
	if fuseabi.Opcode(h.Opcode).NoReply() || w.room < fuseabi.OutHeaderSize {
		return 0
	}
	oh := fuseabi.View[fuseabi.OutHeader](w.out)
	copied := 0
	switch {
	case e != 0:
		n = 0
	case n < 0:
		n = -n - 1
	default:
		copied = n
	}
	oh.Length, oh.Status, oh.Unique = uint32(body+n), -int32(e), h.Unique
	fuseabi.CopyOut(w.outSegs, 0, w.out[:body+copied])
	return oh.Length
}

// inPlace is what an operation returns whose n bytes of body are in guest memory already.
func inPlace(n int) int { return -n - 1 }

// outBuffer is room for a variable reply of at most n bytes.
func (w *Worker) outBuffer(n int) []byte {
	n = min(n, maxReply-body)
	if body+n > len(w.out) {
		w.out = fuseabi.Buffer(maxReply)
	}
	return w.out[body : body+n]
}
