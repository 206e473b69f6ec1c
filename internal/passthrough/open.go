package passthrough

import (
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

// openFlags are the flags of a guest's open that reach ours. O_APPEND does only where the host
// insists on it (openToAppend): the guest says with each write whether it appends, and a delayed
// write does not, whereas pwrite(2) by a descriptor with O_APPEND always does.
const openFlags = unix.O_ACCMODE | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC | unix.O_NONBLOCK

func (fs *FS) openFlags(guest uint32) int {
	keep := openFlags
	if fs.cfg.AllowDirectIO {
		keep |= unix.O_DIRECT
	}
	if fs.cfg.PreserveNoatime {
		keep |= unix.O_NOATIME
	}
	f := int(guest) & keep
	if fs.cfg.Readonly {
		f |= unix.O_NOATIME
	}
	if f&unix.O_ACCMODE == unix.O_ACCMODE {
		f &^= unix.O_WRONLY // 3 is Linux's "neither": for ioctl
	}
	if fs.has(fuseabi.WritebackCache) && f&unix.O_ACCMODE == unix.O_WRONLY {
		f = f&^unix.O_ACCMODE | unix.O_RDWR // the guest reads the rest of a page that it writes a part of
	}
	return f
}

// fopen are the flags of an answer to open.
func (fs *FS) fopen(guest uint32, file *file) (f uint32) {
	switch {
	case file.appends, fs.cfg.AllowDirectIO && guest&unix.O_DIRECT != 0, fs.cfg.Cache == CacheNever, fs.cfg.Cache == CacheMetadata:
		f = fuseabi.FopenDirectIO | fuseabi.FopenParallelDirectWrites
	case fs.cfg.Cache == CacheAlways:
		f = fuseabi.FopenKeepCache
	}
	if file.quiet && !fs.has(fuseabi.PosixLocks) {
		f |= fuseabi.FopenNoflush
	}
	return f
}

// Open implements fuse.Thread.
func (t *thread) Open(in *fuseabi.OpenIn, out *fuseabi.OpenOut) unix.Errno {
	n, fd, e := t.node(in.NodeId)
	if e != 0 {
		return e
	}
	e = t.open(n, fd, in.Flags, in.Mode, out)
	t.put(n)
	return e
}

// open opens the file of an O_PATH descriptor whose type is known.
func (t *thread) open(n *inode, fd int, flags, openFlags uint32, out *fuseabi.OpenOut) unix.Errno {
	switch n.typ {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return unix.EISDIR
	case unix.S_IFLNK:
		return unix.ELOOP
	default: // a device's driver is not the guest's to talk to
		return unix.EBADF
	}
	f := t.fs.openFlags(flags)
	if t.fs.cfg.Readonly && (f&unix.O_ACCMODE != unix.O_RDONLY || f&unix.O_TRUNC != 0) {
		return unix.EROFS
	}
	if f&unix.O_TRUNC != 0 && openFlags&fuseabi.OpenKillSuidGid != 0 {
		if e := t.killPriv(fd); e != 0 {
			return e
		}
		defer t.restore()
	}
	real, e := t.openReal(fd, f)
	if e == unix.EACCES && f&unix.O_ACCMODE == unix.O_RDWR && int(flags)&unix.O_ACCMODE == unix.O_WRONLY {
		f = f&^unix.O_ACCMODE | unix.O_WRONLY
		real, e = t.openReal(fd, f)
	}
	if e == unix.EPERM && f&unix.O_NOATIME != 0 { // only a file's owner may
		f &^= unix.O_NOATIME
		real, e = t.openReal(fd, f)
	}
	appends := e == unix.EPERM && flags&unix.O_APPEND != 0
	if appends {
		real, e = t.openToAppend(fd, f)
	}
	if e != 0 {
		return e
	}
	opened := &file{fd: real, node: n.id, inode: n, appends: appends, quiet: t.fs.quiet(n.key, real)}
	out.Fh = t.fs.files.add(opened)
	out.OpenFlags = t.fs.fopen(flags, opened)
	return 0
}

// openReal opens the file behind an O_PATH descriptor. When descriptors run out, cold ones make room.
func (t *thread) openReal(fd, flags int) (int, unix.Errno) {
	real, e := sys.Openat(t.fs.proc, t.fdPath(fd), flags, 0)
	if (e == unix.EMFILE || e == unix.ENFILE) && t.relieve() {
		real, e = sys.Openat(t.fs.proc, t.fdPath(fd), flags, 0)
	}
	return real, e
}

// openFile finds an open file, not a directory.
func (t *thread) openFile(fh uint64) (*file, unix.Errno) {
	f := t.fs.files.get(fh)
	if f == nil {
		return nil, unix.EBADF
	}
	if f.dir != nil {
		f.put()
		return nil, unix.EISDIR
	}
	return f, 0
}

// Read implements fuse.Thread.
func (t *thread) Read(in *fuseabi.ReadIn, dst []unix.Iovec) (int, unix.Errno) {
	f, e := t.openFile(in.Fh)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	off := int64(in.Offset)
	if off < 0 {
		return 0, unix.EINVAL
	}
	n, e := t.fs.pread(f.fd, dst, off)
	done := uint64(n)
	if e != 0 || n == 0 {
		return 0, e
	}
	for want := fuseabi.Len(dst); done < want; done += uint64(n) { // less than wanted would be the end of the file to the guest
		t.iov = fuseabi.Sub(t.iov[:0], dst, done, want-done)
		if n, e = t.fs.pread(f.fd, t.iov, off+int64(done)); e != 0 || n == 0 {
			break
		}
	}
	return int(done), 0
}

// Write implements fuse.Thread.
func (t *thread) Write(in *fuseabi.WriteIn, src []unix.Iovec) (int, unix.Errno) {
	if t.fs.cfg.Readonly {
		return 0, unix.EROFS
	}
	f, e := t.openFile(in.Fh)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	off := int64(in.Offset)
	if off < 0 {
		return 0, unix.EINVAL
	}
	appends := in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuseabi.WriteCache == 0
	if f.appends && !appends {
		if e := t.atEnd(f.fd, in.Offset); e != 0 {
			return 0, e
		}
	}
	if in.WriteFlags&fuseabi.WriteKillSuidGid != 0 { // with FOPEN_DIRECT_IO Linux says so whatever was negotiated
		if e := t.killPriv(f.fd); e != 0 {
			return 0, e
		}
		defer t.restore()
	}
	n, e := t.pwrite(f, src, off, appends)
	if e != 0 || len(src) <= sys.IovMax {
		return n, e
	}
	done := uint64(n)
	for want := fuseabi.Len(src); n > 0 && done < want; done += uint64(n) {
		t.iov = fuseabi.Sub(t.iov[:0], src, done, want-done)
		if n, e = t.pwrite(f, t.iov, off+int64(done), appends); e != 0 {
			break
		}
	}
	return int(done), 0
}

// killPriv has the host's kernel clear set-id bits of a file with the next change of its data, as for an ordinary user, until
// restore. Few files have any: looking costs less than changing capabilities twice.
func (t *thread) killPriv(fd int) unix.Errno {
	if e := sys.FStatx(fd, unix.STATX_MODE, &t.st); e != 0 {
		return e
	}
	if t.st.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return 0
	}
	return t.cred.DropFsetid()
}

// killUnsaid is killPriv for changes of data with which the protocol does not say whether the caller has CAP_FSETID: root has. A
// guest that knows idmapped mounts (ALLOW_IDMAP) sends no caller with these, and is new enough to ask for it by a SETATTR before.
func (t *thread) killUnsaid(uid uint32, fd int) unix.Errno {
	if uid == 0 || t.fs.has(fuseabi.AllowIdmap) || !t.fs.has(fuseabi.HandleKillprivV2) {
		return 0
	}
	return t.killPriv(fd)
}

// Flush implements fuse.Thread. Closing a duplicate lets a network file system report what it could not write.
func (t *thread) Flush(in *fuseabi.FlushIn) unix.Errno {
	f, e := t.openFile(in.Fh)
	if e != 0 {
		return e
	}
	defer f.put()
	if t.fs.has(fuseabi.PosixLocks) {
		t.fs.unlockOwner(f.node, in.LockOwner)
	}
	if f.quiet {
		return 0
	}
	fd, e := sys.Dup(f.fd)
	if e == unix.EMFILE || e == unix.ENFILE {
		return 0 // nothing to do is better than an error for a close that works
	}
	if e != 0 {
		return e
	}
	return sys.Close(fd)
}

// Fsync implements fuse.Thread.
func (t *thread) Fsync(in *fuseabi.FsyncIn, dir bool) unix.Errno {
	f := t.fs.files.get(in.Fh)
	if f == nil {
		return unix.EBADF
	}
	defer f.put()
	if in.FsyncFlags&fuseabi.FsyncFdatasync != 0 {
		return sys.Fdatasync(f.fd)
	}
	return sys.Fsync(f.fd)
}

// Release implements fuse.Thread.
func (t *thread) Release(in *fuseabi.ReleaseIn, dir bool) unix.Errno {
	f := t.fs.files.remove(in.Fh)
	if f == nil {
		return unix.EBADF
	}
	t.fs.releaseLocks(in.Fh)
	f.put() // at once: the guest's close(2) waits for this, and then the file can be run, and its locks are gone
	return 0
}

// Fallocate implements fuse.Thread.
func (t *thread) Fallocate(in *fuseabi.FallocateIn) unix.Errno {
	if t.fs.cfg.Readonly {
		return unix.EROFS
	}
	f, e := t.openFile(in.Fh)
	if e != 0 {
		return e
	}
	defer f.put()
	if e := t.killUnsaid(in.Uid, f.fd); e != 0 {
		return e
	}
	defer t.restore()
	return sys.Fallocate(f.fd, in.Mode, int64(in.Offset), int64(in.Length))
}

// Lseek implements fuse.Thread. The descriptor's position, which lseek moves, is used by nobody.
func (t *thread) Lseek(in *fuseabi.LseekIn, out *fuseabi.LseekOut) unix.Errno {
	f, e := t.openFile(in.Fh)
	if e != 0 {
		return e
	}
	defer f.put()
	switch in.Whence {
	case unix.SEEK_DATA, unix.SEEK_HOLE, unix.SEEK_SET, unix.SEEK_END:
	default:
		return unix.EINVAL
	}
	off, e := sys.Lseek(f.fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return e
}

// mostCopied is how much one COPY_FILE_RANGE copies, which is as much as the guest asks for: up to
// 2 GiB in one system call, for whose end a ring that stops has to wait. Callers go on with the
// rest, and where blocks are shared, that is so for a part as well.
const mostCopied = 64 << 20

// CopyFileRange implements fuse.Thread.
func (t *thread) CopyFileRange(in *fuseabi.CopyFileRangeIn) (uint64, unix.Errno) {
	if t.fs.cfg.Readonly {
		return 0, unix.EROFS
	}
	src, e := t.openFile(in.FhIn)
	if e != 0 {
		return 0, e
	}
	defer src.put()
	dst, e := t.openFile(in.FhOut)
	if e != 0 {
		return 0, e
	}
	defer dst.put()
	if e := t.killUnsaid(in.Uid, dst.fd); e != 0 {
		return 0, e
	}
	defer t.restore()
	t.offIn, t.offOut = int64(in.OffIn), int64(in.OffOut)
	return sys.CopyFileRange(src.fd, &t.offIn, dst.fd, &t.offOut, min(in.Len, mostCopied), uint32(in.Flags))
}
