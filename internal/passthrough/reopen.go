package passthrough

import (
	"bytes"
	"sync"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

// maxDepth ends the search for a parent's descriptor: names that were never renamed through us can lie, even in a circle.
const maxDepth = 4096

// node finds an inode and its descriptor. Afterwards the caller is a user of the inode and calls put.
func (t *thread) node(id uint64) (*inode, int, unix.Errno) {
	n, fd := t.fs.nodes.get(id)
	return t.opened(n, fd)
}

// opened is the second half of node: what the table gave, with its descriptor opened.
func (t *thread) opened(n *inode, fd int) (*inode, int, unix.Errno) {
	if n == nil {
		return nil, -1, unix.ESTALE
	}
	if fd >= 0 {
		if !n.hot.Load() {
			n.hot.Store(true)
		}
		return n, fd, 0
	}
	fd, e := t.fs.fdOf(n, 0)
	if e != 0 {
		t.put(n)
		return nil, -1, e
	}
	return n, fd, 0
}

// dir is node for a directory.
func (t *thread) dir(id uint64) (*inode, int, unix.Errno) {
	n, fd := t.fs.nodes.get(id)
	return t.openedDir(n, fd)
}

// openedDir is opened for a directory.
func (t *thread) openedDir(n *inode, fd int) (*inode, int, unix.Errno) {
	n, fd, e := t.opened(n, fd)
	if e == 0 && !n.isDir() {
		t.put(n)
		return nil, -1, unix.ENOTDIR
	}
	return n, fd, e
}

func (t *thread) put(n *inode) { n.drop(t.fs.fds) }

// fdOf opens an inode's descriptor if it has none. The caller is a user of n. An inode that nothing
// leads to any more is ESTALE.
func (fs *FS) fdOf(n *inode, depth int) (int, unix.Errno) {
	fd, e := fs.reopen(n, depth)
	if (e == unix.EMFILE || e == unix.ENFILE) && fs.fds.relieve() {
		fd, e = fs.reopen(n, depth)
	}
	if e != 0 {
		if e == unix.ESTALE && depth == 0 {
			fs.stale.Add(1)
		}
		return -1, e
	}
	return fs.publish(n, fd), 0
}

// publish gives an inode the descriptor that was opened for it, or closes that where it has one already, and returns which it has. The caller
// is a user of n.
func (fs *FS) publish(n *inode, fd int) int {
	n.slow.Lock()
	if have := int(n.state.Load()&fdMask) - 1; have >= 0 { // another thread was faster
		n.slow.Unlock()
		sys.Close(fd)
		return have
	}
	n.setFD(fd)
	n.slow.Unlock()
	fs.fds.insert(n)
	fs.pins(n)
	return fd
}

// reopen opens the file again and checks that it is the one: by its handle, by an open file of the
// guest's, or by its name.
func (fs *FS) reopen(n *inode, depth int) (int, unix.Errno) {
	h := n.handle.Load()
	if h != nil {
		if fd, e := fs.byHandle(n, h); e != unix.ESTALE {
			return fd, e
		}
	}
	if f := n.openFile(); f != nil {
		defer f.put()
		var name [16]byte
		return sys.Openat(fs.proc, fdName(name[:], f.fd), unix.O_PATH, 0)
	}
	fd, e := fs.byName(n, depth)
	if e == 0 && h != nil { // the handle was made of what had the name for a moment
		var buf sys.HandleBuffer
		n.handle.CompareAndSwap(h, fs.handleOf(n.mnt, fd, nil, &buf))
	}
	return fd, e
}

// byHandle opens a file by its export handle, which tells it from others that had its number.
func (fs *FS) byHandle(n *inode, h *sys.ExportHandle) (int, unix.Errno) {
	mfd, e := fs.useMount(n.mnt)
	if e != 0 {
		return -1, lost(e)
	}
	fd, e := sys.OpenByHandle(mfd, h, unix.O_PATH|unix.O_NOFOLLOW)
	fs.doneMount(n.mnt)
	if e != 0 {
		return -1, lost(e)
	}
	var st unix.Statx_t
	if e := sys.FStatx(fd, identityMask, &st); e != 0 {
		sys.Close(fd)
		return -1, e
	}
	if id := identify(&st); id.dev != n.dev || id.ino != n.ino || id.typ != n.typ {
		sys.Close(fd)
		return -1, unix.ESTALE
	}
	return fd, 0
}

// byName opens a file by parent and name. No lock of n is held meanwhile: its ancestors may be
// needed, and they may be wrong.
func (fs *FS) byName(n *inode, depth int) (int, unix.Errno) {
	n.slow.Lock()
	parent, name := n.parent, n.name
	n.slow.Unlock()
	if parent == nil {
		return -1, unix.ESTALE
	}
	if depth == maxDepth { // a circle: nobody is to go round in it again
		n.unname(parent, name)
		return -1, unix.ESTALE
	}
	pfd, spare := parent.use(), -1
	defer parent.drop(fs.fds)
	if pfd < 0 {
		var e unix.Errno
		if parent.state.Load()&dead != 0 {
			// The guest has forgotten the directory, but knows the file by another name elsewhere. A descriptor that is made now is
			// nobody's to keep.
			spare, e = fs.reopen(parent, depth+1)
			pfd = spare
		} else {
			pfd, e = fs.fdOf(parent, depth+1)
		}
		if e != 0 {
			return -1, e
		}
	}
	fd, e := sys.Openat(pfd, &name[0], unix.O_PATH|unix.O_NOFOLLOW, 0)
	if spare >= 0 {
		sys.Close(spare)
	}
	if e != 0 {
		return -1, lost(e)
	}
	var st unix.Statx_t
	if e := sys.FStatx(fd, identityMask, &st); e != 0 {
		sys.Close(fd)
		return -1, e
	}
	if !n.is(identify(&st)) {
		sys.Close(fd)
		return -1, unix.ESTALE
	}
	return fd, 0
}

// lost is what a failure to find a file again means: ESTALE, unless it says nothing of the file.
func lost(e unix.Errno) unix.Errno {
	switch e {
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EACCES, unix.EPERM, unix.EIO:
		return e
	}
	return unix.ESTALE
}

// scratch is what canReopen needs of memory: where many descriptors are closed, they shall not
// leave garbage behind.
type scratch struct {
	st     unix.Statx_t
	handle sys.HandleBuffer
	none   byte // the path ""
	number [16]byte
	paths  [2][unix.PathMax]byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// canReopen reports whether the descriptor of n could be opened again, and prepares for that: it is
// asked before a cold descriptor is closed. It asks no file system for anything, which might be on
// a server that does not answer.
func (fs *FS) canReopen(n *inode) reopening {
	mem := scratches.Get().(*scratch)
	defer scratches.Put(mem)
	fd := n.use()
	defer n.drop(fs.fds)
	if fd < 0 || n.state.Load()&dead != 0 {
		return cannotTell
	}
	if f := n.openFile(); f != nil {
		f.put()
		return possible
	}
	if sys.Statx(fd, &mem.none, unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_NLINK, &mem.st) != 0 {
		return cannotTell
	}
	if mem.st.Nlink == 0 {
		return unlinked
	}
	if n.handle.Load() != nil {
		return possible
	}
	if h := fs.handleOf(n.mnt, fd, nil, &mem.handle); h != nil {
		n.handle.CompareAndSwap(nil, h)
		return possible
	}
	if !n.slow.TryLock() {
		return cannotTell
	}
	p, name := n.parent, n.name
	n.slow.Unlock()
	if p == nil || n.btime.Load() == 0 || !fs.stillNamed(fd, p, name, mem) {
		return impossible
	}
	return possible
}

// stillNamed reports whether a descriptor's file is in directory p by that name, as far as the
// kernel knows without asking a file system.
func (fs *FS) stillNamed(fd int, p *inode, name []byte, mem *scratch) bool {
	path := fs.pathOf(fd, &mem.number, mem.paths[0][:])
	dir, found := bytes.CutSuffix(path, name[:len(name)-1])
	if !found || !bytes.HasSuffix(dir, []byte("/")) {
		return false
	}
	pfd := p.use()
	defer p.drop(fs.fds)
	if p.state.Load()&dead != 0 {
		return false
	}
	if pfd < 0 { // not worth opening it: most names stay true
		return true
	}
	above := fs.pathOf(pfd, &mem.number, mem.paths[1][:])
	return bytes.Equal(bytes.TrimSuffix(dir, []byte("/")), bytes.TrimSuffix(above, []byte("/")))
}

// pathOf is where the kernel says that a descriptor's file is; empty where it does not.
func (fs *FS) pathOf(fd int, number *[16]byte, buf []byte) []byte {
	n, e := sys.Readlinkat(fs.proc, fdName(number[:], fd), buf)
	if e != 0 || n == len(buf) {
		return nil
	}
	return buf[:n]
}
