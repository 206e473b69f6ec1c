package fuse

import (
	"slices"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
)

// op is what is known of an opcode: least size of a request with its header, size of the fixed reply without its header,
// whether data follows that is not to be copied, and whether it may come before INIT.
type op struct {
	in, out int
	bulk    bool
	early   bool
	changes bool // may change names or attributes
	run     func(*Worker) (n int, e unix.Errno)
}

var ops = buildOps()

func arg[T any](w *Worker) *T { return fuseabi.View[T](w.in) }
func out[T any](w *Worker) *T { return fuseabi.View[T](w.out[body:]) }

// fixed makes an operation with a fixed request and a fixed reply.
func fixed[I, O any](f func(w *Worker, in *I, out *O) unix.Errno) op {
	size := fuseabi.Size[O]()
	return op{in: fuseabi.Size[I](), out: size, run: func(w *Worker) (int, unix.Errno) {
		return size, f(w, arg[I](w), out[O](w))
	}}
}

// silent makes an operation whose reply has no body.
func silent[I any](f func(w *Worker, in *I) unix.Errno) op {
	return op{in: fuseabi.Size[I](), run: func(w *Worker) (int, unix.Errno) { return 0, f(w, arg[I](w)) }}
}

// variable makes an operation that says itself how long its reply is.
func variable[I any](f func(w *Worker, in *I) (int, unix.Errno)) op {
	return op{in: fuseabi.Size[I](), run: func(w *Worker) (int, unix.Errno) { return f(w, arg[I](w)) }}
}

func refuse(e unix.Errno) op {
	return op{in: fuseabi.InHeaderSize, run: func(*Worker) (int, unix.Errno) { return 0, e }}
}

func buildOps() (t [fuseabi.OpcodeEnd]op) {
	type (
		header = fuseabi.InHeader
		entry  = fuseabi.EntryOut
	)
	bulk := func(o op) op { o.bulk = true; return o }
	early := func(o op) op { o.early = true; return o }

	t[fuseabi.OpInit] = early(op{in: fuseabi.InitInCompatSize, out: fuseabi.Size[fuseabi.InitOut](), run: (*Worker).init})
	t[fuseabi.OpDestroy] = early(silent(func(w *Worker, _ *header) unix.Errno { w.s.Reset(); return 0 }))

	t[fuseabi.OpLookup] = fixed(func(w *Worker, in *header, out *entry) unix.Errno {
		name, e := w.anyName()
		if e != 0 {
			return e
		}
		return w.fs.Lookup(in.NodeId, name, out)
	})
	t[fuseabi.OpForget] = silent(func(w *Worker, in *fuseabi.ForgetIn) unix.Errno { w.fs.Forget(in.NodeId, in.Nlookup); return 0 })
	t[fuseabi.OpBatchForget] = bulk(silent((*Worker).batchForget))
	t[fuseabi.OpGetattr] = fixed(func(w *Worker, in *fuseabi.GetattrIn, out *fuseabi.AttrOut) unix.Errno { return w.fs.Getattr(in, out) })
	t[fuseabi.OpStatx] = fixed(func(w *Worker, in *fuseabi.StatxIn, out *fuseabi.StatxOut) unix.Errno { return w.fs.Statx(in, out) })
	t[fuseabi.OpSetattr] = fixed(func(w *Worker, in *fuseabi.SetattrIn, out *fuseabi.AttrOut) unix.Errno {
		return w.fs.Setattr(&w.call, in, out)
	})
	t[fuseabi.OpReadlink] = variable(func(w *Worker, in *header) (int, unix.Errno) {
		room := int(min(w.room-body, maxTarget))
		n, e := w.fs.Readlink(in.NodeId, w.outBuffer(room))
		if e == 0 && n == room && room < maxTarget-1 { // part of a target is another target
			return 0, unix.ENAMETOOLONG
		}
		return n, e
	})
	t[fuseabi.OpAccess] = silent(func(w *Worker, in *fuseabi.AccessIn) unix.Errno { return w.fs.Access(&w.call, in.NodeId, in.Mask) })
	t[fuseabi.OpStatfs] = fixed(func(w *Worker, in *header, out *fuseabi.StatfsOut) unix.Errno { return w.fs.Statfs(in.NodeId, out) })
	t[fuseabi.OpSyncfs] = silent(func(w *Worker, in *fuseabi.SyncfsIn) unix.Errno { return w.fs.Syncfs(in.NodeId) })

	t[fuseabi.OpSymlink] = fixed(func(w *Worker, in *header, out *entry) unix.Errno {
		name, e := w.name()
		if e != 0 {
			return e
		}
		target, e := w.str(maxTarget - 1)
		if e != 0 {
			return e
		}
		if e := w.lateExtensions(); e != 0 {
			return e
		}
		return w.fs.Symlink(&w.call, in.NodeId, name, target, out)
	})
	t[fuseabi.OpMknod] = fixed(func(w *Worker, in *fuseabi.MknodIn, out *entry) unix.Errno {
		name, e := w.newName()
		if e != 0 {
			return e
		}
		return w.fs.Mknod(&w.call, in, name, out)
	})
	t[fuseabi.OpMkdir] = fixed(func(w *Worker, in *fuseabi.MkdirIn, out *entry) unix.Errno {
		name, e := w.newName()
		if e != 0 {
			return e
		}
		return w.fs.Mkdir(&w.call, in, name, out)
	})
	t[fuseabi.OpCreate] = fixed(func(w *Worker, in *fuseabi.CreateIn, out *fuseabi.CreateOut) unix.Errno {
		name, e := w.newName()
		if e != 0 {
			return e
		}
		return w.fs.Create(&w.call, in, name, out)
	})
	t[fuseabi.OpTmpfile] = fixed(func(w *Worker, in *fuseabi.CreateIn, out *fuseabi.CreateOut) unix.Errno {
		if _, e := w.str(maxNameLen); e != 0 { // Linux sends "/": the file has no name yet
			return e
		}
		if e := w.lateExtensions(); e != 0 {
			return e
		}
		return w.fs.Tmpfile(&w.call, in, out)
	})
	t[fuseabi.OpLink] = fixed(func(w *Worker, in *fuseabi.LinkIn, out *entry) unix.Errno {
		name, e := w.name()
		if e != 0 {
			return e
		}
		return w.fs.Link(in.Oldnodeid, in.NodeId, name, out)
	})
	t[fuseabi.OpUnlink] = silent(func(w *Worker, in *header) unix.Errno {
		name, e := w.name()
		if e != 0 {
			return e
		}
		return w.fs.Unlink(in.NodeId, name)
	})
	t[fuseabi.OpRmdir] = silent(func(w *Worker, in *header) unix.Errno {
		name, e := w.name()
		if e != 0 {
			return e
		}
		return w.fs.Rmdir(in.NodeId, name)
	})
	t[fuseabi.OpRename] = silent(func(w *Worker, in *fuseabi.RenameIn) unix.Errno { return w.rename(in.NodeId, in.Newdir, 0) })
	t[fuseabi.OpRename2] = silent(func(w *Worker, in *fuseabi.Rename2In) unix.Errno {
		if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE|unix.RENAME_WHITEOUT) != 0 {
			return unix.EINVAL
		}
		return w.rename(in.NodeId, in.Newdir, in.Flags)
	})

	t[fuseabi.OpOpen] = fixed(func(w *Worker, in *fuseabi.OpenIn, out *fuseabi.OpenOut) unix.Errno { return w.fs.Open(in, out) })
	t[fuseabi.OpOpendir] = fixed(func(w *Worker, in *fuseabi.OpenIn, out *fuseabi.OpenOut) unix.Errno { return w.fs.Opendir(in, out) })
	t[fuseabi.OpRead] = variable((*Worker).read)
	t[fuseabi.OpWrite] = bulk(fixed((*Worker).write))
	t[fuseabi.OpFlush] = silent(func(w *Worker, in *fuseabi.FlushIn) unix.Errno { return w.fs.Flush(in) })
	t[fuseabi.OpFsync] = silent(func(w *Worker, in *fuseabi.FsyncIn) unix.Errno { return w.fs.Fsync(in, false) })
	t[fuseabi.OpFsyncdir] = silent(func(w *Worker, in *fuseabi.FsyncIn) unix.Errno { return w.fs.Fsync(in, true) })
	t[fuseabi.OpRelease] = silent(func(w *Worker, in *fuseabi.ReleaseIn) unix.Errno { return w.fs.Release(in, false) })
	t[fuseabi.OpReleasedir] = silent(func(w *Worker, in *fuseabi.ReleaseIn) unix.Errno { return w.fs.Release(in, true) })
	t[fuseabi.OpFallocate] = silent(func(w *Worker, in *fuseabi.FallocateIn) unix.Errno { return w.fs.Fallocate(in) })
	t[fuseabi.OpLseek] = fixed(func(w *Worker, in *fuseabi.LseekIn, out *fuseabi.LseekOut) unix.Errno { return w.fs.Lseek(in, out) })
	t[fuseabi.OpCopyFileRange] = fixed(func(w *Worker, in *fuseabi.CopyFileRangeIn, out *fuseabi.WriteOut) unix.Errno {
		in.Len = min(in.Len, 1<<31) // the answer has 32 bits
		n, e := w.fs.CopyFileRange(in)
		out.Size = uint32(n)
		return e
	})
	t[fuseabi.OpCopyFileRange64] = fixed(func(w *Worker, in *fuseabi.CopyFileRangeIn, out *fuseabi.CopyFileRangeOut) (e unix.Errno) {
		out.BytesCopied, e = w.fs.CopyFileRange(in)
		return e
	})
	t[fuseabi.OpGetlk] = fixed(func(w *Worker, in *fuseabi.LkIn, out *fuseabi.LkOut) unix.Errno { return w.fs.Lock(&w.call, in, out) })
	t[fuseabi.OpSetlk] = silent(func(w *Worker, in *fuseabi.LkIn) unix.Errno { return w.fs.Lock(&w.call, in, nil) })
	t[fuseabi.OpSetlkw] = t[fuseabi.OpSetlk]
	t[fuseabi.OpInterrupt] = silent(func(w *Worker, in *fuseabi.InterruptIn) unix.Errno { w.fs.Interrupt(in.Unique); return 0 })
	t[fuseabi.OpReaddir] = variable(func(w *Worker, in *fuseabi.ReadIn) (int, unix.Errno) { return w.readdir(in, false) })
	t[fuseabi.OpReaddirplus] = variable(func(w *Worker, in *fuseabi.ReadIn) (int, unix.Errno) { return w.readdir(in, true) })

	t[fuseabi.OpSetxattr] = op{in: fuseabi.Size[fuseabi.SetxattrCompatIn](), run: (*Worker).setxattr}
	t[fuseabi.OpGetxattr] = variable(func(w *Worker, in *fuseabi.GetxattrIn) (int, unix.Errno) {
		name, e := w.str(maxNameLen)
		if e != 0 {
			return 0, e
		}
		return w.attribute(in.Size, func(buf []byte) (int, unix.Errno) { return w.fs.Getxattr(in.NodeId, name, buf) })
	})
	t[fuseabi.OpListxattr] = variable(func(w *Worker, in *fuseabi.GetxattrIn) (int, unix.Errno) {
		return w.attribute(in.Size, func(buf []byte) (int, unix.Errno) { return w.fs.Listxattr(in.NodeId, buf) })
	})
	t[fuseabi.OpRemovexattr] = silent(func(w *Worker, in *header) unix.Errno {
		name, e := w.str(maxNameLen)
		if e != 0 {
			return e
		}
		return w.fs.Removexattr(in.NodeId, name)
	})
	t[fuseabi.OpIoctl] = refuse(unix.ENOTTY)
	for code := range t {
		t[code].changes = !slices.Contains(onlyLooks, fuseabi.Opcode(code))
	}
	return t
}

// onlyLooks are the operations that change nothing of what READDIRPLUS tells, but for access times.
var onlyLooks = []fuseabi.Opcode{
	fuseabi.OpInit, fuseabi.OpDestroy, fuseabi.OpInterrupt, fuseabi.OpLookup, fuseabi.OpForget, fuseabi.OpBatchForget, fuseabi.OpGetattr,
	fuseabi.OpStatx, fuseabi.OpReadlink, fuseabi.OpAccess, fuseabi.OpStatfs, fuseabi.OpOpendir, fuseabi.OpReaddir, fuseabi.OpReaddirplus,
	fuseabi.OpReleasedir, fuseabi.OpRead, fuseabi.OpLseek, fuseabi.OpGetxattr, fuseabi.OpListxattr, fuseabi.OpGetlk, fuseabi.OpSetlk, fuseabi.OpSetlkw,
}

// newName is the name of what is to be created; labels of old kernels may follow.
func (w *Worker) newName() (Name, unix.Errno) {
	name, e := w.name()
	if e != 0 {
		return nil, e
	}
	return name, w.lateExtensions()
}

func (w *Worker) init() (int, unix.Errno) {
	if len(w.args) < fuseabi.Size[fuseabi.InitIn]() { // before 7.36: no second word of flags
		clear(w.in[len(w.args):fuseabi.Size[fuseabi.InitIn]()])
	}
	in, out := arg[fuseabi.InitIn](w), out[fuseabi.InitOut](w)
	size := fuseabi.Size[fuseabi.InitOut]()
	out.Major, out.Minor = fuseabi.Major, fuseabi.Minor
	if in.Major > fuseabi.Major { // it tries again with ours
		return size, 0
	}
	if in.Major < fuseabi.Major || in.Minor < fuseabi.MinMinor {
		if w.s.mayLog() {
			w.s.log.Error("guest's FUSE protocol is too old", "version", [2]uint32{in.Major, in.Minor}, "needed", [2]uint32{fuseabi.Major, fuseabi.MinMinor})
		}
		return 0, unix.EPROTO
	}
	offered := fuseabi.InitFlags(in.Flags)
	if offered&fuseabi.InitExt != 0 {
		offered |= fuseabi.InitFlags(in.Flags2) << 32
	}
	w.s.ready.Store(false)
	flags := w.s.fs.Init(offered)&offered | offered&(fuseabi.MaxPages|fuseabi.InitExt|fuseabi.BigWrites)
	w.s.flags.Store(uint64(flags))
	w.s.ready.Store(true)

	out.Minor = min(in.Minor, fuseabi.Minor)
	out.MaxReadAhead = in.MaxReadAhead
	out.Flags, out.Flags2 = uint32(flags), uint32(flags>>32)
	out.MaxBackground, out.CongestionThreshold = maxBackground, maxBackground/4*3
	out.MaxWrite, out.MaxPages, out.TimeGran = MaxWrite, MaxPages, 1
	if w.s.mayLog() {
		w.s.log.Debug("session begins", "guest", [2]uint32{in.Major, in.Minor}, "offered", offered.String(), "flags", flags.String())
	}
	return size, 0
}

func (w *Worker) batchForget(in *fuseabi.BatchForgetIn) unix.Errno {
	start := uint64(fuseabi.Size[fuseabi.BatchForgetIn]())
	if uint64(in.Count)*fuseabi.ForgetOneSize > w.inLen-start {
		w.why = "more nodes announced than sent"
		return unix.EINVAL
	}
	left := uint64(in.Count) * fuseabi.ForgetOneSize
	buf := w.in[start : start+256*fuseabi.ForgetOneSize]
	for segs, at := w.inSegs, start; left > 0; {
		for at >= uint64(segs[0].Len) { // each is passed once: there may be as many as nodes
			at -= uint64(segs[0].Len)
			segs = segs[1:]
		}
		n := fuseabi.CopyIn(buf[:min(uint64(len(buf)), left)], segs, at)
		for i := 0; i+fuseabi.ForgetOneSize <= n; i += fuseabi.ForgetOneSize {
			f := fuseabi.View[fuseabi.ForgetOne](buf[i:])
			w.fs.Forget(f.NodeID, f.Nlookup)
		}
		at += uint64(n)
		left -= uint64(n)
	}
	return 0
}

func (w *Worker) rename(parent, newParent uint64, flags uint32) unix.Errno {
	name, e := w.name()
	if e != 0 {
		return e
	}
	newName, e := w.name()
	if e != 0 {
		return e
	}
	return w.fs.Rename(&w.call, parent, name, newParent, newName, flags)
}

func (w *Worker) read(in *fuseabi.ReadIn) (int, unix.Errno) {
	if uint64(in.Size) > w.room-body || in.Size > MaxWrite {
		w.why = "more wanted than there is room for"
		return 0, unix.EINVAL
	}
	w.iov = fuseabi.Sub(w.iov[:0], w.outSegs, body, uint64(in.Size))
	n, e := w.fs.Read(in, w.iov)
	return inPlace(n), e
}

func (w *Worker) write(in *fuseabi.WriteIn, out *fuseabi.WriteOut) unix.Errno {
	start := uint64(fuseabi.Size[fuseabi.WriteIn]())
	if uint64(in.Size) > w.inLen-start || in.Size > MaxWrite {
		w.why = "more announced than sent"
		return unix.EINVAL
	}
	w.iov = fuseabi.Sub(w.iov[:0], w.inSegs, start, uint64(in.Size))
	n, e := w.fs.Write(in, w.iov)
	out.Size = uint32(n)
	return e
}

func (w *Worker) readdir(in *fuseabi.ReadIn, plus bool) (int, unix.Errno) {
	if uint64(in.Size) > w.room-body {
		w.why = "more wanted than there is room for"
		return 0, unix.EINVAL
	}
	return w.fs.Readdir(in, plus, w.outBuffer(int(min(in.Size, maxReply))))
}

// attribute answers GETXATTR and LISTXATTR: size 0 asks how much there is.
func (w *Worker) attribute(size uint32, get func([]byte) (int, unix.Errno)) (int, unix.Errno) {
	if size == 0 {
		if w.room < uint64(body+fuseabi.Size[fuseabi.GetxattrOut]()) {
			w.why = "no room for a size"
			return 0, unix.EINVAL
		}
		n, e := get(nil)
		*out[fuseabi.GetxattrOut](w) = fuseabi.GetxattrOut{Size: uint32(n)}
		return fuseabi.Size[fuseabi.GetxattrOut](), e
	}
	if uint64(size) > w.room-body {
		w.why = "more wanted than there is room for"
		return 0, unix.EINVAL
	}
	return get(w.outBuffer(int(min(size, maxXattrSize))))
}

func (w *Worker) setxattr() (int, unix.Errno) {
	in := *arg[fuseabi.SetxattrCompatIn](w)
	var ext uint32
	if w.s.has(fuseabi.SetxattrExt) {
		long := arg[fuseabi.SetxattrIn](w)
		size := fuseabi.Size[fuseabi.SetxattrIn]()
		if len(w.args) < size {
			w.why = "shorter than its arguments"
			return 0, unix.EINVAL
		}
		ext = long.SetXAttrFlags
		w.rest = w.args[size:]
	}
	name, e := w.str(maxNameLen)
	if e != 0 {
		return 0, e
	}
	if in.Size > maxXattrSize {
		return 0, unix.E2BIG
	}
	if uint64(in.Size) > uint64(len(w.rest)) {
		w.why = "more announced than sent"
		return 0, unix.EINVAL
	}
	return 0, w.fs.Setxattr(in.NodeId, name, w.rest[:in.Size], in.Flags, ext)
}
