package passthrough

import (
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

// fdOf opens an inode's descriptor if it has none. The caller is a user of n.
func (fs *FS) fdOf(n *inode, depth int) (int, unix.Errno) {
	fd, e := fs.reopen(n, depth)
	if (e == unix.EMFILE || e == unix.ENFILE) && fs.fds.relieve() {
		fd, e = fs.reopen(n, depth)
	}
	if e != 0 {
		return -1, e
	}
	return fs.publish(n, fd), 0
}

// publish gives an inode the descriptor that was opened for it, or closes that where it has one already, and returns which it has. The caller
// is a user of n.
func (fs *FS) publish(n *inode, fd int) int {
	n.slow.Lock()
	if have := int(n.state.Load()&fdMask) - 1; have >= 0 { // somebody else was faster
		n.slow.Unlock()
		sys.Close(fd)
		return have
	}
	n.setFD(fd)
	n.slow.Unlock()
	fs.fds.insert(n)
	return fd
}

// reopen opens the file again and checks that it is the one.
func (fs *FS) reopen(n *inode, depth int) (int, unix.Errno) {
	fd, e := fs.reopenFound(n, depth)
	if e != unix.ESTALE {
		return fd, e
	}
	if f := fs.files.of(n.id); f != nil { // whoever has it open can go on
		defer f.put()
		var name [16]byte
		return sys.Openat(fs.proc, fdName(name[:], f.fd), unix.O_PATH, 0)
	}
	return -1, e
}

// reopenFound opens the file again by handle or name. No lock of n is held meanwhile: its ancestors may be needed, and they may be
// wrong.
func (fs *FS) reopenFound(n *inode, depth int) (int, unix.Errno) {
	n.slow.Lock()
	parent, name, handle, mount := n.parent, n.name, n.handle, n.mount
	n.slow.Unlock()
	var fd int
	var e unix.Errno
	switch {
	case handle != nil:
		fd, e = sys.OpenByHandle(int(mount), handle, unix.O_PATH|unix.O_NOFOLLOW)
	case parent != nil && depth < maxDepth:
		pfd, spare := parent.use(), -1
		switch {
		case parent.state.Load()&dead != 0:
			// The guest has forgotten the directory, but knows the file by another name elsewhere. A descriptor that is made now is
			// nobody's to keep.
			if spare, e = fs.reopen(parent, depth+1); e != 0 {
				parent.drop(fs.fds)
				return -1, e
			}
			pfd = spare
		case pfd < 0:
			if pfd, e = fs.fdOf(parent, depth+1); e != 0 {
				parent.drop(fs.fds)
				return -1, e
			}
		}
		fd, e = sys.Openat(pfd, &name[0], unix.O_PATH|unix.O_NOFOLLOW, 0)
		if spare >= 0 {
			sys.Close(spare)
		}
		parent.drop(fs.fds)
	default:
		return -1, unix.ESTALE
	}
	switch e {
	case 0:
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EACCES, unix.EPERM, unix.EIO:
		return -1, e
	default: // the name is gone, or leads elsewhere
		return -1, unix.ESTALE
	}
	var st unix.Statx_t
	if e := sys.FStatx(fd, identityMask, &st); e != 0 {
		sys.Close(fd)
		return -1, e
	}
	if id := identify(&st); id.dev != n.dev || id.ino != n.ino || id.typ != n.typ || id.btime != n.btime {
		sys.Close(fd)
		return -1, unix.ESTALE
	}
	return fd, 0
}

// keepable reports whether the descriptor of n could be opened again, and prepares for that: it is asked before a cold
// descriptor is closed.
func (fs *FS) keepable(n *inode) bool {
	fd := n.use()
	defer n.drop(fs.fds)
	if fd < 0 {
		return true
	}
	if n.state.Load()&dead != 0 {
		return false
	}
	var st unix.Statx_t
	if sys.FStatx(fd, unix.STATX_NLINK, &st) != 0 || st.Nlink == 0 {
		return false
	}
	if !n.slow.TryLock() {
		return false
	}
	defer n.slow.Unlock()
	if n.handle != nil {
		return true
	}
	if fs.handles.Load() {
		if h, mount := fs.handleOf(n.mnt, fd, n.isDir() || n.isReg()); h != nil {
			n.handle, n.mount = h, mount
			return true
		}
	}
	p := n.parent
	if p == nil {
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
	if sys.Statx(pfd, &n.name[0], unix.AT_SYMLINK_NOFOLLOW, identityMask, &st) != 0 {
		return false
	}
	id := identify(&st)
	return id.dev == n.dev && id.ino == n.ino
}

// handleOf makes an export handle of a descriptor, and finds the mount to open it at.
func (fs *FS) handleOf(mnt uint64, fd int, openable bool) (*sys.ExportHandle, int32) {
	fs.mounts.RLock()
	mfd, ok := fs.mounts.fd[mnt]
	count := len(fs.mounts.fd)
	fs.mounts.RUnlock()
	if !ok {
		if !openable || count >= maxMounts {
			return nil, -1
		}
		var name [16]byte
		var e unix.Errno
		if mfd, e = sys.Openat(fs.proc, fdName(name[:], fd), unix.O_RDONLY|unix.O_NONBLOCK, 0); e != 0 {
			return nil, -1
		}
		fs.mounts.Lock()
		if have, raced := fs.mounts.fd[mnt]; raced {
			sys.Close(mfd)
			mfd = have
		} else {
			fs.mounts.fd[mnt] = mfd
		}
		fs.mounts.Unlock()
	}
	h := &sys.ExportHandle{}
	var mount int32
	if sys.NameToHandle(fd, nil, h, &mount) != 0 {
		return nil, -1
	}
	return h, int32(mfd)
}
