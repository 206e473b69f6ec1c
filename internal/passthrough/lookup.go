package passthrough

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

// Lookup implements fuse.Thread.
func (t *thread) Lookup(parent uint64, name fuse.Name, out *fuseabi.EntryOut) unix.Errno {
	if name.Dots() {
		return t.lookupDots(parent, name, out)
	}
	p, fd, e := t.dir(parent)
	if e != 0 {
		return e
	}
	e = t.lookup(p, fd, name, out)
	t.tells(p)
	t.put(p)
	return e
}

// tells notes that the guest is about to be told of an inode, or of a name in it, by what was seen just now: READDIRPLUS does not tell it what
// was seen before. Where nobody looks ahead that costs nothing.
func (t *thread) tells(n *inode) {
	if t.fs.changes.watched() {
		n.tell(sys.Clock())
	}
}

// lookup looks name up in directory p, whose descriptor is pfd, and adds a lookup to what it finds.
func (t *thread) lookup(p *inode, pfd int, name []byte, out *fuseabi.EntryOut) unix.Errno {
	if t.fresh { // so will this one be, most probably: it is opened at once, instead of looked at and then opened
		return t.discover(p, pfd, name, out)
	}
	if e := sys.Statx(pfd, &name[0], unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, identityMask, &t.st); e != 0 {
		return e
	}
	n, is := t.fs.nodes.find(identify(&t.st))
	if is != yes || !n.anchored() {
		if is == yes {
			t.Forget(n.id, 1)
		}
		return t.discover(p, pfd, name, out)
	}
	t.met(n, p, name)
	t.entry(n, p, out)
	return 0
}

// discover is lookup of a file that the guest does not know, or that is known by name only: it gets
// a way to it that holds whatever becomes of its name.
func (t *thread) discover(p *inode, pfd int, name []byte, out *fuseabi.EntryOut) unix.Errno {
	t.fresh = false
	fd, e := sys.Openat(pfd, &name[0], unix.O_PATH|unix.O_NOFOLLOW, 0)
	if (e == unix.EMFILE || e == unix.ENFILE) && t.relieve() {
		fd, e = sys.Openat(pfd, &name[0], unix.O_PATH|unix.O_NOFOLLOW, 0)
	}
	if e != 0 {
		return e
	}
	if e := sys.FStatx(fd, identityMask, &t.st); e != 0 {
		sys.Close(fd)
		return e
	}
	id := identify(&t.st)
	if id.mnt != p.mnt {
		t.fs.crossed(id.mnt, p, name, fd)
	}
	n, is := t.fs.nodes.find(id)
	var h *sys.ExportHandle
	if is == unsure || t.fs.cfg.InodeFileHandles != HandlesNever {
		h = t.fs.handleOf(id.mnt, fd, nil, &t.handle)
	}
	if is == unsure && h.Equal(n.handle.Load()) && t.fs.nodes.confirm(n) {
		is = yes
	}
	if is != yes {
		if h == nil && t.fs.cfg.InodeFileHandles == HandlesMandatory {
			sys.Close(fd)
			return unix.EOPNOTSUPP
		}
		n = newInode(id, p, name)
		n.handle.Store(h)
		n.state.Store(oneUser)
		keep := h == nil || n.isDir()
		if keep {
			n.setFD(fd)
		}
		if have := t.fs.nodes.add(n); have != n { // another thread was faster
			n, keep = have, false
			n.use()
		} else if keep {
			t.fs.fds.insert(n)
			t.fs.pins(n)
		}
		if !keep {
			sys.Close(fd)
		}
		t.fresh = true
	} else {
		n.use()
		if h != nil {
			n.handle.CompareAndSwap(nil, h)
		}
		if n.anchored() && id.btime != 0 && !n.isDir() {
			sys.Close(fd)
		} else {
			t.fs.publish(n, fd)
		}
	}
	t.met(n, p, name)
	t.entry(n, p, out)
	t.put(n)
	return 0
}

// met notes that the guest is told of a file by a name.
func (t *thread) met(n, p *inode, name []byte) {
	if !n.hasFD() || n.nameless.Load() {
		n.rename(p, name)
		t.fs.fds.named(n)
	}
	t.tells(n)
}

// listEntry is lookup of an entry of a list, whose attributes are in t.st, seen at that time, or
// just now if that is 0. A new one is known by its name alone, if that is enough for a while. It
// fails with ESTALE where something has come to pass since: the name is to be looked up.
func (t *thread) listEntry(p *inode, name []byte, when time.Duration, out *fuseabi.EntryOut) unix.Errno {
	id := identify(&t.st)
	n, is := t.fs.nodes.find(id)
	switch {
	case is == yes && when != 0 && !n.tell(when):
		t.Forget(n.id, 1)
		return unix.ESTALE
	case is == unsure:
		return unix.ESTALE
	case is == no:
		// A guest may go into a directory without asking again, and stay.
		if id.typ == unix.S_IFDIR || id.mnt != t.fs.mounts.root || id.btime == 0 || t.fs.cfg.InodeFileHandles == HandlesMandatory {
			return unix.ESTALE
		}
		n = t.fs.nodes.add(newInode(id, p, name))
		t.named = t.named || !n.anchored()
		if when != 0 {
			n.tell(when)
		}
	case !n.hasFD() || n.nameless.Load():
		n.rename(p, name)
		t.fs.fds.named(n)
	}
	if when == 0 {
		t.tells(n)
	}
	t.entry(n, p, out)
	return 0
}

// entry fills in a reply about n in directory p from t.st.
func (t *thread) entry(n, p *inode, out *fuseabi.EntryOut) {
	out.NodeId, out.Generation = n.id, 0
	t.attr(&out.Attr)
	t.setTTL(&out.EntryValid, &out.EntryValidNsec)
	t.setTTL(&out.AttrValid, &out.AttrValidNsec)
	if n.isDir() && (n.mnt != p.mnt || n.dev != p.dev) && t.fs.has(fuseabi.Submounts) {
		out.Flags |= fuseabi.AttrSubmount
	}
}

// rename notes where the file is now.
func (n *inode) rename(p *inode, name []byte) {
	n.slow.Lock()
	if n.id != fuseabi.RootID && (n.parent != p || !slices.Equal(n.name, name)) {
		n.parent, n.name = p, slices.Clone(name)
	}
	n.nameless.Store(false)
	n.slow.Unlock()
}

// unname notes that a name is not the file's any more. It may have others, of which the next lookup tells.
func (n *inode) unname(p *inode, name []byte) {
	n.slow.Lock()
	if n.parent == p && slices.Equal(n.name, name) {
		n.parent, n.name = nil, nil
		n.nameless.Store(true)
	}
	n.slow.Unlock()
}

// Forget implements fuse.Thread.
func (t *thread) Forget(node, n uint64) { t.closeLater(t.fs.nodes.forget(node, n)) }

// Getattr implements fuse.Thread.
func (t *thread) Getattr(in *fuseabi.GetattrIn, out *fuseabi.AttrOut) unix.Errno {
	if in.Flags()&fuseabi.GetattrFH != 0 {
		if f := t.fs.files.get(in.Fh()); f != nil {
			e := t.statFD(f.fd, out)
			f.put()
			if n := t.fs.nodes.slots.get(in.NodeId); n != nil {
				t.tells(n)
			}
			return e
		}
	}
	n, fd := t.fs.nodes.get(in.NodeId)
	if n != nil && fd < 0 && t.glance(n, 0) {
		t.attr(&out.Attr)
		t.setTTL(&out.AttrValid, &out.AttrValidNsec)
		t.tells(n)
		t.put(n)
		return 0
	}
	n, fd, e := t.opened(n, fd)
	if e != 0 {
		return e
	}
	e = t.statFD(fd, out)
	t.tells(n)
	t.put(n)
	return e
}

// glance looks at an inode that has no descriptor by its name, and reports whether it found it: t.st is filled in then. That is one system
// call and leaves nothing open, for a guest that looks at many files once. An inode that is asked for again is worth a descriptor. The flags
// are of synchronisation (statx(2)).
func (t *thread) glance(n *inode, flags int) bool {
	if n.btime.Load() == 0 || n.hot.Swap(true) { // without a birth time a number may mean another file meanwhile
		return false
	}
	n.slow.Lock()
	p, name := n.parent, n.name
	n.slow.Unlock()
	if p == nil {
		return false
	}
	pfd := p.use()
	found := pfd >= 0 && sys.Statx(pfd, &name[0], flags|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, identityMask, &t.st) == 0 &&
		n.is(identify(&t.st))
	t.put(p)
	return found
}

// Statx implements fuse.Thread.
func (t *thread) Statx(in *fuseabi.StatxIn, out *fuseabi.StatxOut) unix.Errno {
	fd := -1
	if in.GetattrFlags&fuseabi.GetattrFH != 0 {
		if f := t.fs.files.get(in.Fh); f != nil {
			defer f.put()
			fd = f.fd
		}
	}
	flags := int(in.SxFlags) & (unix.AT_STATX_FORCE_SYNC | unix.AT_STATX_DONT_SYNC) // as the caller wants it
	seen := false
	if fd < 0 {
		n, nfd := t.fs.nodes.get(in.NodeId)
		if seen = n != nil && nfd < 0 && t.glance(n, flags); !seen {
			var e unix.Errno
			if n, nfd, e = t.opened(n, nfd); e != 0 {
				return e
			}
		}
		defer t.put(n)
		fd = nfd
	}
	const mask = unix.STATX_BASIC_STATS | unix.STATX_BTIME // only what the protocol has fields for
	if !seen {
		var empty = &t.path[len(t.path)-1]
		*empty = 0
		if e := sys.Statx(fd, empty, flags|unix.AT_EMPTY_PATH, in.SxMask&mask|unix.STATX_BASIC_STATS, &t.st); e != 0 {
			return e
		}
	}
	if n := t.fs.nodes.slots.get(in.NodeId); n != nil {
		t.tells(n)
	}
	out.FromStatx(&t.st)
	out.Mask &= mask
	out.Uid, out.Gid = toGuest(t.fs.cfg.TranslateUID, t.st.Uid), toGuest(t.fs.cfg.TranslateGID, t.st.Gid)
	out.RdevMajor, out.RdevMinor = t.st.Rdev_major, t.st.Rdev_minor
	t.setTTL(&out.AttrValid, &out.AttrValidNsec)
	return 0
}

// Readlink implements fuse.Thread.
func (t *thread) Readlink(node uint64, buf []byte) (int, unix.Errno) {
	n, fd, e := t.node(node)
	if e != 0 {
		return 0, e
	}
	defer t.put(n)
	if n.typ != unix.S_IFLNK {
		return 0, unix.EINVAL
	}
	return sys.Readlink(fd, buf)
}

// Access implements fuse.Thread. Linux does not ask: it checks modes itself on virtio-fs (default_permissions).
func (t *thread) Access(c *fuse.Caller, node uint64, mask uint32) unix.Errno {
	n, fd, e := t.node(node)
	if e != 0 {
		return e
	}
	defer t.put(n)
	if mask&^7 != 0 {
		return unix.EINVAL
	}
	if e := t.become(c); e != 0 {
		return unix.EACCES
	}
	defer t.restore()
	if c.UID != 0 {
		if e := t.cred.DropAll(); e != 0 {
			return e
		}
	}
	e = sys.Faccessat2(t.fs.proc, t.fdPath(fd), mask, unix.AT_EACCESS)
	if e == 0 && mask&2 != 0 && t.fs.cfg.Readonly {
		return unix.EROFS
	}
	return e
}

// Statfs implements fuse.Thread.
func (t *thread) Statfs(node uint64, out *fuseabi.StatfsOut) unix.Errno {
	n, fd, e := t.node(node)
	if e != 0 {
		return e
	}
	defer t.put(n)
	s := &t.sf
	if e := sys.Fstatfs(fd, s); e != 0 {
		return e
	}
	out.Blocks, out.Bfree, out.Bavail, out.Files, out.Ffree = s.Blocks, s.Bfree, s.Bavail, s.Files, s.Ffree
	out.Bsize, out.NameLen, out.Frsize = uint32(s.Bsize), uint32(s.Namelen), uint32(s.Frsize)
	return 0
}

// Syncfs implements fuse.Thread.
func (t *thread) Syncfs(node uint64) unix.Errno {
	n, fd, e := t.node(node)
	if e != 0 {
		return e
	}
	defer t.put(n)
	if !n.isDir() && !n.isReg() {
		return unix.EINVAL
	}
	real, e := sys.Openat(t.fs.proc, t.fdPath(fd), unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if e != 0 {
		return e
	}
	e = sys.Syncfs(real)
	sys.Close(real)
	return e
}
