package passthrough

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

// thread is one worker's side of the file system: credentials and scratch memory. System call arguments that the kernel
// writes to lie here, for on the stack they would be allocated anew with each call.
type thread struct {
	fs       *FS
	queue    int
	cred     *sys.Creds
	masked   bool // umask is not 0
	private  bool // working directory and umask are this thread's own
	st       unix.Statx_t
	fst      unix.Stat_t
	sf       unix.Statfs_t
	lk       unix.Flock_t
	times    [2]unix.Timespec
	offIn    int64
	offOut   int64
	path     [16]byte
	groups   []uint32 // the caller's, translated
	iov      []unix.Iovec
	names    []byte
	list     []byte // names of attributes; nil before there are any
	handle   sys.HandleBuffer
	named    bool             // something that was listed has only a name yet
	fresh    bool             // the last name looked up was new to the guest
	closing  [mostClosing]int // descriptors that nobody needs any more
	unneeded int              // how many those are
	listed   uint64           // handle of the directory that was read last, 0 for none
}

// NewThread implements fuse.Filesystem.
func (fs *FS) NewThread(queue int) (fuse.Thread, error) {
	cred, err := sys.NewCreds()
	if err != nil {
		return nil, err
	}
	t := &thread{fs: fs, cred: cred, queue: queue}
	if e := sys.PrivateWorkingDirectory(fs.proc); e == 0 {
		t.private = true
	} else if fs.cfg.Xattr || fs.cfg.PosixACL {
		return nil, fmt.Errorf("give a worker a working directory of its own for extended attributes: %w", errors.Join(e))
	}
	return t, nil
}

// Abort implements fuse.Thread.
func (t *thread) Abort() { t.restore() }

// Close implements fuse.Thread.
func (t *thread) Close() {
	t.restore()
	t.closeAll()
}

// mostClosing is how many descriptors a thread keeps to be closed later.
const mostClosing = 32

// closeLater has a descriptor closed when the guest waits for nothing: the last one of a file that was removed takes the file's blocks along. A
// negative one is none.
func (t *thread) closeLater(fd int) {
	switch {
	case fd < 0:
	case t.unneeded == mostClosing:
		sys.Close(fd)
	default:
		t.closing[t.unneeded] = fd
		t.unneeded++
	}
}

// closeAll closes what was to be closed later, and reports whether there was anything.
func (t *thread) closeAll() bool {
	some := t.unneeded > 0
	for t.Tidy() {
	}
	return some
}

// relieve makes room for a descriptor where there are no more, and reports whether it did.
func (t *thread) relieve() bool { return t.closeAll() || t.fs.fds.relieve() }

// Tidy implements fuse.Thread.
func (t *thread) Tidy() (more bool) {
	if t.unneeded == 0 {
		return false
	}
	t.unneeded--
	sys.Close(t.closing[t.unneeded])
	return t.unneeded > 0
}

// fdPath is the path of a descriptor relative to fs.proc. It is valid until the next call.
func (t *thread) fdPath(fd int) *byte { return fdName(t.path[:], fd) }

// become lets the thread act as the caller until restore.
func (t *thread) become(c *fuse.Caller) unix.Errno {
	uid, gid, e := t.hostIDs(c.UID, c.GID)
	if e != 0 {
		return e
	}
	groups := c.Groups
	if tr := t.fs.cfg.TranslateGID; tr != nil && len(groups) > 0 {
		t.groups = t.groups[:0]
		for _, id := range groups { // one that the guest may not use is left out: it may do without
			if host, e := tr.ToHost(id); e == 0 {
				t.groups = append(t.groups, host)
			}
		}
		groups = t.groups
	}
	return t.cred.Become(uid, gid, groups)
}

// becomeWith is become for what is created with a umask: where the guest did not apply it (DONT_MASK), this thread has to,
// because the kernel ignores it where the directory has a default access list.
func (t *thread) becomeWith(c *fuse.Caller, umask uint32) unix.Errno {
	if e := t.become(c); e != 0 {
		return e
	}
	if umask&0777 != 0 && t.private && t.fs.has(fuseabi.DontMask) {
		sys.Umask(umask & 0777)
		t.masked = true
	}
	return 0
}

func (t *thread) restore() {
	t.cred.Restore()
	if t.masked {
		sys.Umask(0)
		t.masked = false
	}
}

func (t *thread) hostIDs(uid, gid uint32) (u, g uint32, e unix.Errno) {
	if u, e = toHost(t.fs.cfg.TranslateUID, uid); e != 0 {
		return 0, 0, e
	}
	g, e = toHost(t.fs.cfg.TranslateGID, gid)
	return u, g, e
}

func toHost(tr Translator, id uint32) (uint32, unix.Errno) {
	if tr == nil {
		return id, 0
	}
	return tr.ToHost(id)
}

// overflowID is what an id is shown as that has no counterpart (/proc/sys/kernel/overflowuid).
const overflowID = 65534

func toGuest(tr Translator, id uint32) uint32 {
	if tr == nil {
		return id
	}
	if g, e := tr.ToGuest(id); e == 0 {
		return g
	}
	return overflowID
}

// attr fills in attributes from t.st.
func (t *thread) attr(a *fuseabi.Attr) {
	st := &t.st
	a.Ino, a.Size, a.Blocks = st.Ino, st.Size, st.Blocks
	a.Atime, a.Atimensec = uint64(st.Atime.Sec), st.Atime.Nsec
	a.Mtime, a.Mtimensec = uint64(st.Mtime.Sec), st.Mtime.Nsec
	a.Ctime, a.Ctimensec = uint64(st.Ctime.Sec), st.Ctime.Nsec
	a.Mode, a.Nlink, a.Blksize = uint32(st.Mode), st.Nlink, st.Blksize
	a.Uid, a.Gid = toGuest(t.fs.cfg.TranslateUID, st.Uid), toGuest(t.fs.cfg.TranslateGID, st.Gid)
	a.Rdev = guestDev(st.Rdev_major, st.Rdev_minor)
	a.Flags = 0
}

// guestDev packs a device number into the 32 bits of Linux's new_encode_dev, which FUSE and mknod(2) use.
func guestDev(major, minor uint32) uint32 {
	return minor&0xff | major<<8&0xfff00 | minor&^0xff<<12
}

func (t *thread) setTTL(sec *uint64, nsec *uint32) { *sec, *nsec = t.fs.ttl.sec, t.fs.ttl.nsec }

// statFD fills in attributes of a descriptor.
func (t *thread) statFD(fd int, out *fuseabi.AttrOut) unix.Errno {
	if e := t.fdAttr(fd, &out.Attr); e != 0 {
		return e
	}
	t.setTTL(&out.AttrValid, &out.AttrValidNsec)
	return 0
}

// fdAttr is attr for a descriptor.
func (t *thread) fdAttr(fd int, a *fuseabi.Attr) unix.Errno {
	st := &t.fst
	if e := sys.Fstat(fd, st); e != 0 {
		return e
	}
	a.Ino, a.Size, a.Blocks = st.Ino, uint64(st.Size), uint64(st.Blocks)
	a.Atime, a.Atimensec = uint64(st.Atim.Sec), uint32(st.Atim.Nsec)
	a.Mtime, a.Mtimensec = uint64(st.Mtim.Sec), uint32(st.Mtim.Nsec)
	a.Ctime, a.Ctimensec = uint64(st.Ctim.Sec), uint32(st.Ctim.Nsec)
	a.Mode, a.Nlink, a.Blksize = st.Mode, uint32(st.Nlink), uint32(st.Blksize)
	a.Uid, a.Gid = toGuest(t.fs.cfg.TranslateUID, st.Uid), toGuest(t.fs.cfg.TranslateGID, st.Gid)
	a.Rdev = guestDev(unix.Major(st.Rdev), unix.Minor(st.Rdev))
	a.Flags = 0
	return 0
}
