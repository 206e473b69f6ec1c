package passthrough

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
)

// share is a file system under test with its session. Requests go through fuse.Worker as the transport hands them over,
// in segments cut at random.
type share struct {
	t      testing.TB
	dir    string
	fs     *FS
	ses    *fuse.Session
	unique atomic.Uint64
}

// guest is one user of the guest, served by one worker.
type guest struct {
	*share
	w        *worker
	uid, gid uint32
	groups   []uint32 // sent along with what creates
}

// worker is a fuse.Worker on its own thread, which ends with it: it has a working directory and ids of its own.
type worker struct {
	calls chan func(*fuse.Worker)
	rng   *rand.Rand
	plain bool // whole segments
	busy  bool // one request follows the other
}

func openFD(t testing.TB, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// mount shares dir with a guest that offers all flags in INIT.
func mount(t testing.TB, dir string, cfg Config) *guest {
	t.Helper()
	fs, err := New(openFD(t, dir), openFD(t, "/proc/self/fd"), cfg)
	require.NoError(t, err)
	s := &share{t: t, dir: dir, fs: fs, ses: fuse.NewSession(fs, fuse.SessionConfig{})}
	g := &guest{share: s, w: s.worker()}
	t.Cleanup(func() { s.ses.Reset(); fs.Close() })
	g.init(^fuseabi.InitFlags(0))
	return g
}

func (s *share) worker() *worker {
	w := &worker{calls: make(chan func(*fuse.Worker)), rng: rand.New(rand.NewPCG(s.unique.Load(), 7))}
	ready := make(chan error)
	var done sync.WaitGroup
	done.Add(1)
	go func() {
		defer done.Done()
		runtime.LockOSThread() // and never unlocked: the thread ends here
		fw, err := s.ses.NewHandler(1)
		ready <- err
		if err != nil {
			return
		}
		for f := range w.calls {
			f(fw)
		}
		fw.Close()
	}()
	require.NoError(s.t, <-ready)
	s.t.Cleanup(func() { close(w.calls); done.Wait() })
	return w
}

// another is the same user served by another worker.
func (g *guest) another() *guest {
	o := *g
	o.w = g.share.worker()
	return &o
}

// as is another user served by the same worker.
func (g *guest) as(uid, gid uint32, groups ...uint32) *guest {
	o := *g
	o.uid, o.gid, o.groups = uid, gid, groups
	return &o
}

// cut makes segments out of b.
func (w *worker) cut(b []byte) []unix.Iovec {
	var iov []unix.Iovec
	for len(b) > 0 {
		n := len(b)
		if !w.plain && n > 1 {
			switch w.rng.IntN(8) {
			case 0:
				n = 1
			case 1:
				n = w.rng.IntN(n)
			case 2:
				n = min(n, 1+w.rng.IntN(64))
			case 3:
				n = min(n, 4096)
			}
		}
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(n)
		iov = append(iov, v)
		b = b[n:]
	}
	return iov
}

// raw has a request served as it is and returns what was written.
func (g *guest) raw(request []byte, room int) []byte {
	out := make([]byte, room)
	var used uint32
	done := make(chan struct{})
	g.w.calls <- func(w *fuse.Worker) {
		defer close(done)
		used = w.Serve(g.w.cut(request), g.w.cut(out))
		for i := g.w.rng.IntN(8); i > 0 && !g.w.busy && w.Idle(); i-- { // the ring is empty for a while, or is not
		}
	}
	<-done
	require.LessOrEqual(g.t, int(used), room)
	return out[:used]
}

// creates are the opcodes that Linux sends supplementary groups with.
func creates(op fuseabi.Opcode) bool {
	switch op {
	case fuseabi.OpCreate, fuseabi.OpMkdir, fuseabi.OpMknod, fuseabi.OpSymlink, fuseabi.OpTmpfile:
		return true
	}
	return false
}

// request makes a request's bytes: in begins with a header, which is filled in; tail follows it.
func request[I any](g *guest, op fuseabi.Opcode, node uint64, in *I, tail []byte) []byte {
	ext := []byte(nil)
	if len(g.groups) > 0 && creates(op) {
		ext = binary.LittleEndian.AppendUint32(nil, uint32(fuseabi.Align8(12+4*len(g.groups))))
		ext = binary.LittleEndian.AppendUint32(ext, fuseabi.ExtGroups)
		ext = binary.LittleEndian.AppendUint32(ext, uint32(len(g.groups)))
		for _, id := range g.groups {
			ext = binary.LittleEndian.AppendUint32(ext, id)
		}
		ext = append(ext, make([]byte, fuseabi.Align8(len(ext))-len(ext))...)
	}
	body := fuseabi.Bytes(in)
	pad := 0
	if len(ext) > 0 {
		pad = fuseabi.Align8(len(body)+len(tail)) - len(body) - len(tail)
	}
	b := fuseabi.Buffer(len(body) + len(tail) + pad + len(ext))
	copy(b, body)
	copy(b[len(body):], tail)
	copy(b[len(b)-len(ext):], ext)
	h := fuseabi.View[fuseabi.InHeader](b)
	h.Length, h.Opcode, h.Unique, h.NodeId = uint32(len(b)), uint32(op), g.unique.Add(1), node
	h.Uid, h.Gid, h.Pid, h.TotalExtlen = g.uid, g.gid, 4321, uint16(len(ext)/8)
	return b
}

// call has a request served; an answer has to be there and whole.
func call[I any](g *guest, op fuseabi.Opcode, node uint64, in *I, tail []byte, room int) ([]byte, unix.Errno) {
	g.t.Helper()
	req := request(g, op, node, in, tail)
	unique := fuseabi.View[fuseabi.InHeader](req).Unique
	got := g.raw(req, fuseabi.OutHeaderSize+room)
	require.GreaterOrEqual(g.t, len(got), fuseabi.OutHeaderSize, "%s: no answer", op)
	h := fuseabi.Buffer(fuseabi.OutHeaderSize)
	copy(h, got)
	oh := fuseabi.View[fuseabi.OutHeader](h)
	require.Equal(g.t, unique, oh.Unique, "%s", op)
	require.EqualValues(g.t, len(got), oh.Length, "%s", op)
	require.LessOrEqual(g.t, oh.Status, int32(0), "%s", op)
	if oh.Status != 0 {
		require.Len(g.t, got, fuseabi.OutHeaderSize, "%s: an error has no body", op)
	}
	return got[fuseabi.OutHeaderSize:], unix.Errno(-oh.Status)
}

// want is call for a reply of one structure.
func want[O, I any](g *guest, op fuseabi.Opcode, node uint64, in *I, tail []byte) (*O, unix.Errno) {
	g.t.Helper()
	size := fuseabi.Size[O]()
	got, e := call(g, op, node, in, tail, size)
	b := fuseabi.Buffer(size)
	if e == 0 {
		require.Len(g.t, got, size, "%s", op)
		copy(b, got)
	}
	return fuseabi.View[O](b), e
}

func (g *guest) init(offer fuseabi.InitFlags) fuseabi.InitFlags {
	g.t.Helper()
	out, e := want[fuseabi.InitOut](g, fuseabi.OpInit, 0, &fuseabi.InitIn{
		Major: fuseabi.Major, Minor: fuseabi.Minor, Flags: uint32(offer), Flags2: uint32(offer >> 32), MaxReadAhead: 131072,
	}, nil)
	require.Zero(g.t, e)
	return fuseabi.InitFlags(out.Flags64())
}

func z(names ...string) []byte {
	var b []byte
	for _, n := range names {
		b = append(append(b, n...), 0)
	}
	return b
}

type none struct{ fuseabi.InHeader }

type fuseabiSetattrCommon = gofuse.SetAttrInCommon

func (g *guest) lookup(parent uint64, name string) (*fuseabi.EntryOut, unix.Errno) {
	g.t.Helper()
	return want[fuseabi.EntryOut](g, fuseabi.OpLookup, parent, &none{}, z(name))
}

func (g *guest) mustLookup(parent uint64, name string) uint64 {
	g.t.Helper()
	e, errno := g.lookup(parent, name)
	require.Zero(g.t, errno, "look up %s", name)
	return e.NodeId
}

func (g *guest) forget(node, n uint64) {
	g.t.Helper()
	require.Empty(g.t, g.raw(request(g, fuseabi.OpForget, node, &fuseabi.ForgetIn{Nlookup: n}, nil), 0))
}

func (g *guest) getattr(node uint64) (*fuseabi.AttrOut, unix.Errno) {
	g.t.Helper()
	return want[fuseabi.AttrOut](g, fuseabi.OpGetattr, node, &fuseabi.GetattrIn{}, nil)
}

func (g *guest) setattr(node uint64, in fuseabi.SetattrIn) (*fuseabi.AttrOut, unix.Errno) {
	g.t.Helper()
	return want[fuseabi.AttrOut](g, fuseabi.OpSetattr, node, &in, nil)
}

func (g *guest) mkdir(parent uint64, name string, mode, umask uint32) (*fuseabi.EntryOut, unix.Errno) {
	g.t.Helper()
	return want[fuseabi.EntryOut](g, fuseabi.OpMkdir, parent, &fuseabi.MkdirIn{Mode: mode, Umask: umask}, z(name))
}

func (g *guest) mknod(parent uint64, name string, mode, rdev uint32) (*fuseabi.EntryOut, unix.Errno) {
	g.t.Helper()
	return want[fuseabi.EntryOut](g, fuseabi.OpMknod, parent, &fuseabi.MknodIn{Mode: mode, Rdev: rdev}, z(name))
}

func (g *guest) symlink(parent uint64, name, target string) (*fuseabi.EntryOut, unix.Errno) {
	g.t.Helper()
	return want[fuseabi.EntryOut](g, fuseabi.OpSymlink, parent, &none{}, z(name, target))
}

func (g *guest) link(node, parent uint64, name string) (*fuseabi.EntryOut, unix.Errno) {
	g.t.Helper()
	return want[fuseabi.EntryOut](g, fuseabi.OpLink, parent, &fuseabi.LinkIn{Oldnodeid: node}, z(name))
}

func (g *guest) create(parent uint64, name string, flags, mode, umask uint32) (*fuseabi.CreateOut, unix.Errno) {
	g.t.Helper()
	return want[fuseabi.CreateOut](g, fuseabi.OpCreate, parent, &fuseabi.CreateIn{Flags: flags, Mode: unix.S_IFREG | mode, Umask: umask}, z(name))
}

func (g *guest) unlink(parent uint64, name string) unix.Errno {
	g.t.Helper()
	_, e := call(g, fuseabi.OpUnlink, parent, &none{}, z(name), 0)
	return e
}

func (g *guest) rmdir(parent uint64, name string) unix.Errno {
	g.t.Helper()
	_, e := call(g, fuseabi.OpRmdir, parent, &none{}, z(name), 0)
	return e
}

func (g *guest) rename(parent uint64, name string, newParent uint64, newName string, flags uint32) unix.Errno {
	g.t.Helper()
	_, e := call(g, fuseabi.OpRename2, parent, &fuseabi.Rename2In{Newdir: newParent, Flags: flags}, z(name, newName), 0)
	return e
}

func (g *guest) open(node uint64, flags uint32) (uint64, unix.Errno) {
	g.t.Helper()
	out, e := want[fuseabi.OpenOut](g, fuseabi.OpOpen, node, &fuseabi.OpenIn{Flags: flags}, nil)
	return out.Fh, e
}

func (g *guest) release(node, fh uint64) unix.Errno {
	g.t.Helper()
	_, e := call(g, fuseabi.OpRelease, node, &fuseabi.ReleaseIn{Fh: fh}, nil, 0)
	return e
}

func (g *guest) read(node, fh, off uint64, size int) ([]byte, unix.Errno) {
	g.t.Helper()
	return call(g, fuseabi.OpRead, node, &fuseabi.ReadIn{Fh: fh, Offset: off, Size: uint32(size)}, nil, size)
}

func (g *guest) write(node, fh, off uint64, data []byte, flags, writeFlags uint32) (int, unix.Errno) {
	g.t.Helper()
	out, e := want[fuseabi.WriteOut](g, fuseabi.OpWrite, node,
		&fuseabi.WriteIn{Fh: fh, Offset: off, Size: uint32(len(data)), Flags: flags, WriteFlags: writeFlags}, data)
	return int(out.Size), e
}

func (g *guest) opendir(node uint64) (uint64, unix.Errno) {
	g.t.Helper()
	out, e := want[fuseabi.OpenOut](g, fuseabi.OpOpendir, node, &fuseabi.OpenIn{Flags: unix.O_RDONLY}, nil)
	return out.Fh, e
}

func (g *guest) releasedir(node, fh uint64) unix.Errno {
	g.t.Helper()
	_, e := call(g, fuseabi.OpReleasedir, node, &fuseabi.ReleaseIn{Fh: fh}, nil, 0)
	return e
}

// entry is what READDIR or READDIRPLUS said of a name.
type entry struct {
	name   string
	node   uint64 // 0 with READDIR
	dirent fuseabi.Dirent
	attr   fuseabi.Attr
}

// readdir reads a directory to its end with buffers of size bytes.
func (g *guest) readdir(node uint64, plus bool, size int) []entry {
	g.t.Helper()
	fh, e := g.opendir(node)
	require.Zero(g.t, e)
	defer func() { require.Zero(g.t, g.releasedir(node, fh)) }()
	var all []entry
	for off := uint64(0); ; {
		part, e := g.readdirAt(node, fh, off, plus, size)
		require.Zero(g.t, e)
		if len(part) == 0 {
			return all
		}
		all = append(all, part...)
		off = part[len(part)-1].dirent.Off
	}
}

func (g *guest) readdirAt(node, fh, off uint64, plus bool, size int) ([]entry, unix.Errno) {
	g.t.Helper()
	op := fuseabi.OpReaddir
	if plus {
		op = fuseabi.OpReaddirplus
	}
	b, e := call(g, op, node, &fuseabi.ReadIn{Fh: fh, Offset: off, Size: uint32(size)}, nil, size)
	if e != 0 {
		return nil, e
	}
	var all []entry
	for len(b) > 0 {
		head := fuseabi.DirentSize
		if plus {
			head = fuseabi.DirentplusSize
		}
		require.GreaterOrEqual(g.t, len(b), head)
		own := fuseabi.Buffer(head)
		copy(own, b)
		var en entry
		if plus {
			v := fuseabi.View[fuseabi.Direntplus](own)
			en.node, en.attr, en.dirent = v.NodeId, v.Attr, v.Dirent
		} else {
			en.dirent = *fuseabi.View[fuseabi.Dirent](own)
		}
		size := fuseabi.Align8(head + int(en.dirent.NameLen))
		require.GreaterOrEqual(g.t, len(b), size)
		en.name = string(b[head : head+int(en.dirent.NameLen)])
		all = append(all, en)
		b = b[size:]
	}
	return all, 0
}

func (g *guest) getxattr(node uint64, name string, size int) ([]byte, unix.Errno) {
	g.t.Helper()
	room := max(size, 8)
	return call(g, fuseabi.OpGetxattr, node, &fuseabi.GetxattrIn{Size: uint32(size)}, z(name), room)
}

func (g *guest) setxattr(node uint64, name string, value []byte, flags uint32) unix.Errno {
	g.t.Helper()
	var e unix.Errno
	if g.ses.Flags()&fuseabi.SetxattrExt != 0 {
		_, e = call(g, fuseabi.OpSetxattr, node, &fuseabi.SetxattrIn{Size: uint32(len(value)), Flags: flags}, append(z(name), value...), 0)
	} else {
		_, e = call(g, fuseabi.OpSetxattr, node, &fuseabi.SetxattrCompatIn{Size: uint32(len(value)), Flags: flags}, append(z(name), value...), 0)
	}
	return e
}

func (g *guest) removexattr(node uint64, name string) unix.Errno {
	g.t.Helper()
	_, e := call(g, fuseabi.OpRemovexattr, node, &none{}, z(name), 0)
	return e
}

func (g *guest) listxattr(node uint64, size int) ([]byte, unix.Errno) {
	g.t.Helper()
	return call(g, fuseabi.OpListxattr, node, &fuseabi.GetxattrIn{Size: uint32(size)}, nil, max(size, 8))
}

// openDescriptors counts this process's descriptors.
func openDescriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}
