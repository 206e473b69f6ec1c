package passthrough

import (
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

// Setattr implements fuse.Thread. Owner first (chown(2) clears set-id bits), then size (so may truncating), then mode, which the guest
// chose knowing both, and times at last.
func (t *thread) Setattr(c *fuse.Caller, in *fuseabi.SetattrIn, out *fuseabi.AttrOut) unix.Errno {
	if t.fs.cfg.Readonly {
		return unix.EROFS
	}
	n, fd, e := t.node(in.NodeId)
	if e != 0 {
		return e
	}
	defer t.put(n)
	if in.Valid&^(fuseabi.FattrFH|fuseabi.FattrLockOwner|fuseabi.FattrCtime) == 0 {
		// What a guest's kernel leaves of chown(2) to nobody, which renews the change time and
		// clears set-id bits; and, with KILLPRIV_V2, of what it does before fallocate(2) and
		// copy_file_range(2) of a caller without CAP_FSETID, for the bits (fs/fuse/dir.c,
		// fuse_setattr).
		const same = ^uint32(0)
		if e := sys.FchownPath(fd, same, same); e != 0 {
			return e
		}
	}
	if in.Valid&(fuseabi.FattrUID|fuseabi.FattrGID) != 0 {
		if e := t.chown(fd, in); e != 0 {
			return e
		}
	}
	if in.Valid&fuseabi.FattrSize != 0 {
		if e := t.truncate(n, fd, in); e != 0 {
			return e
		}
	}
	if in.Valid&fuseabi.FattrMode != 0 {
		if n.typ == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		if e := sys.Fchmodat(t.fs.proc, t.fdPath(fd), in.Mode&07777); e != 0 {
			return e
		}
	}
	if in.Valid&(fuseabi.FattrAtime|fuseabi.FattrMtime) != 0 {
		t.times[0] = wireTime(in.Valid, fuseabi.FattrAtime, fuseabi.FattrAtimeNow, in.Atime, in.Atimensec)
		t.times[1] = wireTime(in.Valid, fuseabi.FattrMtime, fuseabi.FattrMtimeNow, in.Mtime, in.Mtimensec)
		if e := sys.Utimensat(t.fs.proc, t.fdPath(fd), &t.times); e != 0 {
			return e
		}
	}
	return t.statFD(fd, out)
}

func wireTime(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	if nsec > 999999999 { // so that no guest can say UTIME_OMIT or UTIME_NOW by number
		nsec = 999999999
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

func (t *thread) chown(fd int, in *fuseabi.SetattrIn) unix.Errno {
	const same = ^uint32(0)
	uid, gid := same, same
	var e unix.Errno
	if in.Valid&fuseabi.FattrUID != 0 {
		if uid, e = toHost(t.fs.cfg.TranslateUID, in.Uid); e != 0 {
			return e
		}
	}
	if in.Valid&fuseabi.FattrGID != 0 {
		if gid, e = toHost(t.fs.cfg.TranslateGID, in.Gid); e != 0 {
			return e
		}
	}
	if uid == same && gid == same { // (uid_t)-1 is no id
		return unix.EINVAL
	}
	e = sys.FchownPath(fd, uid, gid)
	if e == unix.EINVAL { // not mapped in our user namespace
		e = unix.EPERM
	}
	return e
}

func (t *thread) truncate(n *inode, fd int, in *fuseabi.SetattrIn) unix.Errno {
	if !n.isReg() {
		if n.isDir() {
			return unix.EISDIR
		}
		return unix.EINVAL
	}
	if int64(in.Size) < 0 {
		return unix.EFBIG
	}
	target := -1
	if in.Valid&fuseabi.FattrFH != 0 {
		if f := t.fs.files.get(in.Fh); f != nil {
			defer f.put()
			if f.dir == nil {
				target = f.fd
			}
		}
	}
	// Without ATOMIC_O_TRUNC an open(2) that truncates comes as this, too, and no guest says which it is: most are that, and have to move an
	// empty file's times.
	byOpen := in.Size == 0 && !t.fs.has(fuseabi.AtomicOTrunc)
	if target < 0 && (byOpen || !t.private) {
		w, e := sys.Openat(t.fs.proc, t.fdPath(fd), unix.O_WRONLY, 0)
		if e != 0 {
			return e
		}
		defer sys.Close(w)
		target = w
	}
	if in.Valid&fuseabi.FattrKillSuidGid != 0 {
		if e := t.killPriv(fd); e != 0 {
			return e
		}
		defer t.restore()
	}
	if target >= 0 {
		return sys.Ftruncate(target, int64(in.Size))
	}
	// The kernel sets the times for ftruncate(2) and leaves it to the file system whether for truncate(2) (fs/open.c, do_truncate): so
	// do we what the program did. The working directory is fs.proc.
	return sys.Truncate(t.fdPath(fd), int64(in.Size))
}
