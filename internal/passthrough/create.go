package passthrough

import (
	"bytes"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

// made looks up what was just created, of type typ, after its security labels are on it.
func (t *thread) made(c *fuse.Caller, p *inode, pfd int, name fuse.Name, typ uint32, out *fuseabi.EntryOut) unix.Errno {
	if len(c.Secctx) > 0 {
		if e := t.labelName(c, pfd, name); e != 0 {
			return e
		}
	}
	return t.lookupNew(p, pfd, name, typ, out)
}

// lookupNew is lookup of a name that this request has made. The host may have put something else in its place: a guest's kernel takes
// another type for an I/O error, and ESTALE for a reason to try once more.
func (t *thread) lookupNew(p *inode, pfd int, name fuse.Name, typ uint32, out *fuseabi.EntryOut) unix.Errno {
	e := t.lookup(p, pfd, name, out)
	if e == 0 && out.Mode&unix.S_IFMT != typ {
		t.Forget(out.NodeId, 1)
		return unix.ESTALE
	}
	return e
}

// labelName labels what a name leads to, and removes the name if it cannot: nothing that was to
// have a label stays without.
func (t *thread) labelName(c *fuse.Caller, pfd int, name fuse.Name) unix.Errno {
	fd, e := sys.Openat(pfd, name.Ptr(), unix.O_PATH|unix.O_NOFOLLOW, 0)
	if e != 0 {
		return e
	}
	defer sys.Close(fd)
	if e := t.label(c, fd); e != 0 {
		t.unmake(pfd, name, fd)
		return e
	}
	return 0
}

// unmake removes the name of what was made, which fd is of, as a later step of making it has
// failed. Somebody else may have put another file in its place meanwhile, so that is looked at
// first; the descriptor keeps its number from being used again. Linux removes nothing by
// descriptor: what takes the name's place between the look and the removal goes, as it would for
// any program that removes what it has made.
func (t *thread) unmake(pfd int, name fuse.Name, fd int) {
	if sys.FStatx(fd, identityMask, &t.st) != 0 {
		return
	}
	ours := identify(&t.st)
	if sys.Statx(pfd, name.Ptr(), unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, identityMask, &t.st) != 0 || identify(&t.st) != ours {
		return
	}
	flags := 0
	if ours.typ == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	}
	sys.Unlinkat(pfd, name.Ptr(), flags)
}

// label puts security labels on what a descriptor of any kind is of.
func (t *thread) label(c *fuse.Caller, fd int) unix.Errno {
	for _, s := range c.Secctx {
		if !bytes.HasPrefix(s.Name, []byte("security.")) || !t.fs.cfg.Xattr {
			return unix.EPERM
		}
		name, e := t.hostName(fuse.Name(s.Name))
		if e != 0 {
			return e
		}
		if e := sys.Setxattr(t.fdPath(fd), name, s.Value, 0); e != 0 {
			return e
		}
	}
	return 0
}

// parent is dir for an operation that changes a directory.
func (t *thread) parent(id uint64) (*inode, int, unix.Errno) {
	if t.fs.cfg.Readonly {
		return nil, -1, unix.EROFS
	}
	return t.dir(id)
}

// Mkdir implements fuse.Thread.
func (t *thread) Mkdir(c *fuse.Caller, in *fuseabi.MkdirIn, name fuse.Name, out *fuseabi.EntryOut) unix.Errno {
	p, fd, e := t.parent(in.NodeId)
	if e != 0 {
		return e
	}
	defer t.put(p)
	if e := t.becomeWith(c, in.Umask); e != 0 {
		return e
	}
	e = sys.Mkdirat(fd, name.Ptr(), in.Mode&07777)
	t.restore()
	if e != 0 {
		return e
	}
	return t.made(c, p, fd, name, unix.S_IFDIR, out)
}

// Mknod implements fuse.Thread.
func (t *thread) Mknod(c *fuse.Caller, in *fuseabi.MknodIn, name fuse.Name, out *fuseabi.EntryOut) unix.Errno {
	p, fd, e := t.parent(in.NodeId)
	if e != 0 {
		return e
	}
	defer t.put(p)
	if e := t.becomeWith(c, in.Umask); e != 0 {
		return e
	}
	e = sys.Mknodat(fd, name.Ptr(), in.Mode&(unix.S_IFMT|07777), in.Rdev)
	t.restore()
	if e != 0 {
		return e
	}
	typ := in.Mode & unix.S_IFMT
	if typ == 0 { // mknod(2): a regular file
		typ = unix.S_IFREG
	}
	return t.made(c, p, fd, name, typ, out)
}

// Symlink implements fuse.Thread.
func (t *thread) Symlink(c *fuse.Caller, parent uint64, name, target fuse.Name, out *fuseabi.EntryOut) unix.Errno {
	p, fd, e := t.parent(parent)
	if e != 0 {
		return e
	}
	defer t.put(p)
	if e := t.become(c); e != 0 {
		return e
	}
	e = sys.Symlinkat(target.Ptr(), fd, name.Ptr())
	t.restore()
	if e != 0 {
		return e
	}
	return t.made(c, p, fd, name, unix.S_IFLNK, out)
}

// Link implements fuse.Thread.
func (t *thread) Link(node, newParent uint64, newName fuse.Name, out *fuseabi.EntryOut) unix.Errno {
	p, pfd, e := t.parent(newParent)
	if e != 0 {
		return e
	}
	defer t.put(p)
	n, fd, e := t.node(node)
	if e != 0 {
		return e
	}
	defer t.put(n)
	if n.isDir() {
		return unix.EPERM
	}
	if e := sys.Linkat(t.fs.proc, t.fdPath(fd), pfd, newName.Ptr(), unix.AT_SYMLINK_FOLLOW); e != 0 {
		return e
	}
	return t.lookupNew(p, pfd, newName, uint32(n.typ), out)
}

// Create implements fuse.Thread. The file is created exclusively, so that nothing that exists is opened by name; one that
// exists is looked up and opened as any other.
func (t *thread) Create(c *fuse.Caller, in *fuseabi.CreateIn, name fuse.Name, out *fuseabi.CreateOut) unix.Errno {
	p, pfd, e := t.dir(in.NodeId)
	if e != 0 {
		return e
	}
	defer t.put(p)
	if t.fs.cfg.Readonly {
		if in.Flags&unix.O_EXCL == 0 {
			return t.existing(p, pfd, in, name, out)
		}
		return unix.EROFS
	}
	for range 4 { // a file may come and go between the two ways
		e = t.create(c, p, pfd, in, name, out)
		if e != unix.EEXIST || in.Flags&unix.O_EXCL != 0 {
			return e
		}
		if e = t.existing(p, pfd, in, name, out); e != unix.ENOENT {
			return e
		}
	}
	return e
}

func (t *thread) create(c *fuse.Caller, p *inode, pfd int, in *fuseabi.CreateIn, name fuse.Name, out *fuseabi.CreateOut) unix.Errno {
	if e := t.becomeWith(c, in.Umask); e != 0 {
		return e
	}
	flags := t.fs.openFlags(in.Flags)&^(unix.O_NOATIME|unix.O_TRUNC) | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW
	fd, e := sys.Openat(pfd, name.Ptr(), flags, in.Mode&07777)
	t.restore()
	if (e == unix.EMFILE || e == unix.ENFILE) && t.relieve() {
		return t.create(c, p, pfd, in, name, out)
	}
	if e != 0 {
		return e
	}
	if e = t.newFile(c, p, fd, name, in.Flags, out); e != 0 {
		t.unmake(pfd, name, fd)
		sys.Close(fd)
	}
	return e
}

// newFile answers a creation with fd, which stays the caller's if it fails.
func (t *thread) newFile(c *fuse.Caller, p *inode, fd int, name fuse.Name, flags uint32, out *fuseabi.CreateOut) unix.Errno {
	if e := t.label(c, fd); e != 0 {
		return e
	}
	if e := sys.FStatx(fd, identityMask, &t.st); e != 0 {
		return e
	}
	id := identify(&t.st)
	n, is := t.fs.nodes.find(id)
	if is != yes {
		// An O_PATH descriptor at once: a temporary file is often unlinked while open, and is then not found again.
		pathFD, e := t.openReal(fd, unix.O_PATH)
		if e != 0 {
			return e
		}
		if name == nil {
			n = t.adopt(id, pathFD, nil, nil)
		} else {
			n = t.adopt(id, pathFD, p, name)
		}
	}
	t.entry(n, p, &out.EntryOut)
	opened := &file{fd: fd, node: n.id, inode: n, quiet: t.fs.quiet(id.key, fd)}
	out.Fh = t.fs.files.add(opened)
	out.OpenOut.OpenFlags = t.fs.fopen(flags, opened)
	return 0
}

// existing answers CREATE of a name that exists.
func (t *thread) existing(p *inode, pfd int, in *fuseabi.CreateIn, name fuse.Name, out *fuseabi.CreateOut) unix.Errno {
	if e := t.lookup(p, pfd, name, &out.EntryOut); e != 0 {
		if e == unix.ENOENT && t.fs.cfg.Readonly {
			return unix.EROFS
		}
		return e
	}
	n, fd, e := t.node(out.NodeId)
	if e == 0 {
		e = t.open(n, fd, in.Flags, in.OpenFlags, &out.OpenOut)
		if e == 0 && in.Flags&unix.O_TRUNC != 0 {
			e = t.fdAttr(fd, &out.Attr)
		}
		t.put(n)
	}
	if e != 0 {
		t.Forget(out.NodeId, 1)
	}
	return e
}

// Tmpfile implements fuse.Thread.
func (t *thread) Tmpfile(c *fuse.Caller, in *fuseabi.CreateIn, out *fuseabi.CreateOut) unix.Errno {
	p, pfd, e := t.parent(in.NodeId)
	if e != 0 {
		return e
	}
	defer t.put(p)
	if e := t.becomeWith(c, in.Umask); e != 0 {
		return e
	}
	flags := t.fs.openFlags(in.Flags)&^(unix.O_NOATIME|unix.O_TRUNC) | unix.O_TMPFILE | int(in.Flags)&unix.O_EXCL
	fd, e := sys.Openat(t.fs.proc, t.fdPath(pfd), flags, in.Mode&07777)
	t.restore()
	if e != 0 {
		return e
	}
	if e = t.newFile(c, p, fd, nil, in.Flags, out); e != 0 {
		sys.Close(fd)
	}
	return e
}

// Unlink implements fuse.Thread.
func (t *thread) Unlink(parent uint64, name fuse.Name) unix.Errno { return t.unlink(parent, name, 0) }

// Rmdir implements fuse.Thread.
func (t *thread) Rmdir(parent uint64, name fuse.Name) unix.Errno {
	return t.unlink(parent, name, unix.AT_REMOVEDIR)
}

func (t *thread) unlink(parent uint64, name fuse.Name, flags int) unix.Errno {
	p, fd, e := t.parent(parent)
	if e != 0 {
		return e
	}
	defer t.put(p)
	n := t.keep(fd, name)
	e = sys.Unlinkat(fd, name.Ptr(), flags)
	t.gone(n, p, name, e)
	return e
}

// keep opens the descriptor of what a name leads to before the name goes: the guest may use the file on, and for one
// whose descriptor is closed, the name may be all that leads to it. What it returns, or nil, is for gone.
func (t *thread) keep(pfd int, name fuse.Name) *inode {
	if sys.Statx(pfd, name.Ptr(), unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, identityMask, &t.st) != 0 {
		return nil
	}
	n, fd := t.fs.nodes.peek(identify(&t.st))
	if n != nil && fd < 0 {
		_, _ = t.fs.fdOf(n, 0)
	}
	return n
}

// gone tells what keep returned how the removal of its name ended.
func (t *thread) gone(n, p *inode, name fuse.Name, e unix.Errno) {
	if n == nil {
		return
	}
	if e == 0 {
		n.unname(p, name)
	}
	t.put(n)
}

// Rename implements fuse.Thread.
func (t *thread) Rename(c *fuse.Caller, parent uint64, name fuse.Name, newParent uint64, newName fuse.Name, flags uint32) unix.Errno {
	p, pfd, e := t.parent(parent)
	if e != 0 {
		return e
	}
	defer t.put(p)
	q, qfd, e := t.dir(newParent)
	if e != 0 {
		return e
	}
	defer t.put(q)
	var over *inode
	if flags&unix.RENAME_EXCHANGE == 0 {
		over = t.keep(qfd, newName)
	}
	if flags&unix.RENAME_WHITEOUT != 0 { // the whiteout is made, and has an owner
		if e := t.become(c); e != 0 {
			t.gone(over, q, newName, e)
			return e
		}
	}
	e = sys.Renameat2(pfd, name.Ptr(), qfd, newName.Ptr(), flags)
	t.restore()
	t.gone(over, q, newName, e)
	if e != 0 {
		return e
	}
	t.renamed(q, qfd, newName)
	if flags&unix.RENAME_EXCHANGE != 0 {
		t.renamed(p, pfd, name)
	}
	return 0
}

// renamed tells the inode where it went.
func (t *thread) renamed(p *inode, pfd int, name fuse.Name) {
	if sys.Statx(pfd, name.Ptr(), unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, identityMask, &t.st) != 0 {
		return
	}
	if n, _ := t.fs.nodes.peek(identify(&t.st)); n != nil {
		n.rename(p, name)
		t.fs.fds.named(n)
		t.put(n)
	}
}
