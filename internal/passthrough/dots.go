package passthrough

import (
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

var dotDot = fuse.Name("..\x00")

// lookupDots is LOOKUP of "." or "..". No other request takes these names.
func (t *thread) lookupDots(node uint64, name fuse.Name, out *fuseabi.EntryOut) unix.Errno {
	n, fd, e := t.node(node)
	if e != 0 {
		return e
	}
	defer t.put(n)
	switch {
	case len(name) < len(dotDot) || n == t.fs.root: // above the root is the root, as with "/"
		return t.lookupSelf(n, fd, out)
	case !n.isDir():
		return unix.ENOTDIR
	}
	return t.lookupParent(n, fd, out)
}

// lookupSelf adds a lookup to an inode that the guest knows by number, of whatever type: so Linux
// makes an inode again that an NFS client's handle names.
func (t *thread) lookupSelf(n *inode, fd int, out *fuseabi.EntryOut) unix.Errno {
	if e := sys.FStatx(fd, identityMask, &t.st); e != 0 {
		return e
	}
	if known, is := t.fs.nodes.find(identify(&t.st)); known != n || is != yes { // it has been forgotten meanwhile
		if is == yes {
			t.Forget(known.id, 1)
		}
		return unix.ESTALE
	}
	t.tells(n)
	t.entry(n, n, out)
	return 0
}

// lookupParent looks up the directory that the directory n lies in.
func (t *thread) lookupParent(n *inode, fd int, out *fuseabi.EntryOut) unix.Errno {
	pfd, e := t.up(fd)
	if e != 0 {
		return e
	}
	id := identify(&t.st)
	seen := t.st
	if e := t.belowRoot(pfd, id); e != 0 {
		sys.Close(pfd)
		return e
	}
	t.st = seen
	p, is := t.fs.nodes.find(id)
	if is != yes {
		grand, name := n.above(id)
		p = t.adopt(id, pfd, grand, name)
	} else {
		sys.Close(pfd)
	}
	t.tells(p)
	t.entry(p, p, out)
	return 0
}

// up opens the directory that a directory lies in, and fills t.st in.
func (t *thread) up(fd int) (int, unix.Errno) {
	pfd, e := sys.Openat(fd, dotDot.Ptr(), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if (e == unix.EMFILE || e == unix.ENFILE) && t.relieve() {
		pfd, e = sys.Openat(fd, dotDot.Ptr(), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	}
	if e == unix.ENOENT { // the kernel's answer where a directory has been moved out of what is mounted (fs/namei.c, path_connected)
		e = unix.ESTALE
	}
	if e != 0 {
		return -1, e
	}
	if e := sys.FStatx(pfd, identityMask, &t.st); e != 0 {
		sys.Close(pfd)
		return -1, e
	}
	return pfd, 0
}

// belowRoot fails with ESTALE unless the directory is the root, or the way up from it leads there.
// The host may have moved a directory that the guest knows out of the share, and where the root is
// not that of a mount nothing but this keeps ".." from leading to where it is now.
func (t *thread) belowRoot(fd int, id identity) unix.Errno {
	at := fd
	defer func() {
		if at != fd {
			sys.Close(at)
		}
	}()
	for range maxDepth {
		if id.key == t.fs.root.key {
			return 0
		}
		next, e := t.up(at)
		if e != 0 {
			return e
		}
		if at != fd {
			sys.Close(at)
		}
		at = next
		last := id.key
		if id = identify(&t.st); id.key == last { // the top of everything
			return unix.ESTALE
		}
	}
	return unix.ESTALE
}

// above is where the directory that n was found in had been found, if it is the one that is meant:
// the guest may have forgotten it since.
func (n *inode) above(id identity) (parent *inode, name []byte) {
	n.slow.Lock()
	p := n.parent
	n.slow.Unlock()
	if p == nil || p.key != id.key {
		return nil, nil
	}
	p.slow.Lock()
	defer p.slow.Unlock()
	return p.parent, p.name
}

// adopt makes an inode of a file that the guest gets to know by an O_PATH descriptor, which is the
// inode's from now on. Where there is one already, that gets the lookup. The name is copied, and
// may be unknown.
func (t *thread) adopt(id identity, fd int, parent *inode, name []byte) *inode {
	fresh := newInode(id, parent, name)
	fresh.state.Store(oneUser)
	fresh.setFD(fd)
	n := t.fs.nodes.add(fresh)
	if n == fresh {
		t.fs.fds.insert(n)
		t.fs.pins(n)
		t.put(n)
	} else {
		sys.Close(fd)
	}
	return n
}
