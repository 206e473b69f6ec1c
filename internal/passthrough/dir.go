package passthrough

import (
	"bytes"
	"encoding/binary"
	"math"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

// dirStream is what getdents64 returned and the guest has not read yet. Reading goes on where it ended without a seek.
type dirStream struct {
	mu   sync.Mutex
	buf  []byte // entries not yet read
	next uint64 // offset of the first of them; the descriptor's own when there are none
	lost bool   // next is not known: reading begins with a seek
	mem  []byte
	foresight
	held   bool
	holder *atomic.Int64 // counts the directories that are held
}

const direntBuffer = 16 << 10 // bytes of directory entries read at once

// mostHeld is how many directories may keep what they have read from one request to the next: 210 KiB at most for each.
const mostHeld = 256

// hold counts the directory as one that keeps what it has read.
func (d *dirStream) hold() {
	if !d.held {
		d.held = true
		d.holder.Add(1)
	}
}

// drop gives up what was read. Reading begins with a seek after that.
func (d *dirStream) drop() {
	if d.held {
		d.held = false
		d.holder.Add(-1)
	}
	d.forget()
	d.buf, d.mem, d.spare, d.lost = nil, nil, nil, true
}

// reclen is how long the first of some struct linux_dirent64 is (ino, off, reclen, type, name), in bytes.
func reclen(de []byte) int { return int(binary.NativeEndian.Uint16(de[16:])) }

// fill reads the next entries of the directory fd into buf, which is empty. It stays so at the end.
func (d *dirStream) fill(fd int) unix.Errno {
	d.forget()
	d.hold()
	if d.mem == nil {
		d.mem = make([]byte, direntBuffer)
	}
	k, e := sys.Getdents64(fd, d.mem)
	if e == 0 {
		d.buf = d.mem[:k]
	}
	return e
}

// seek goes to where an entry ended that the guest was told of. An offset is what the host's file
// system says, a hash or a server's own number of 64 bits: where that is negative to lseek(2),
// which refuses it, the directory is read from its beginning to there.
func (d *dirStream) seek(fd int, off uint64) unix.Errno {
	d.forget()
	d.buf, d.lost, d.passed, d.want = nil, true, 0, 0
	_, e := sys.Lseek(fd, int64(off), unix.SEEK_SET)
	if e == 0 {
		d.next, d.lost = off, false
		return 0
	}
	if off <= math.MaxInt64 || e != unix.EINVAL {
		return e
	}
	if _, e := sys.Lseek(fd, 0, unix.SEEK_SET); e != 0 {
		return e
	}
	for {
		if e := d.fill(fd); e != 0 {
			return e
		}
		if len(d.buf) == 0 { // the entry has gone, and its offset with it
			return unix.EINVAL
		}
		for at := d.buf; len(at) > 0; {
			end := binary.NativeEndian.Uint64(at[8:])
			at = at[reclen(at):]
			if end == off {
				d.buf, d.next, d.lost = at, off, false
				return 0
			}
		}
	}
}

// Opendir implements fuse.Thread.
func (t *thread) Opendir(in *fuseabi.OpenIn, out *fuseabi.OpenOut) unix.Errno {
	n, fd, e := t.dir(in.NodeId)
	if e != 0 {
		return e
	}
	defer t.put(n)
	flags := unix.O_RDONLY | unix.O_DIRECTORY
	if t.fs.cfg.Readonly {
		flags |= unix.O_NOATIME
	}
	real, e := t.openReal(fd, flags)
	if e == unix.EPERM && flags&unix.O_NOATIME != 0 {
		real, e = t.openReal(fd, flags&^unix.O_NOATIME)
	}
	if e != 0 {
		return e
	}
	out.Fh = t.fs.files.add(&file{fd: real, node: n.id, inode: n, dir: &dirStream{holder: &t.fs.held}})
	switch t.fs.cfg.Cache {
	case CacheMetadata, CacheAlways:
		out.OpenFlags = fuseabi.FopenCacheDir | fuseabi.FopenKeepCache
	}
	return 0
}

// Readdir implements fuse.Thread.
func (t *thread) Readdir(in *fuseabi.ReadIn, plus bool, buf []byte) (int, unix.Errno) {
	f := t.fs.files.get(in.Fh)
	if f == nil {
		return 0, unix.EBADF
	}
	defer f.put()
	if f.dir == nil {
		return 0, unix.ENOTDIR
	}
	if f.node != in.NodeId { // the names are looked up in one, and read from the other
		return 0, unix.EBADF
	}
	n, fd, e := t.dir(in.NodeId)
	if e != 0 {
		return 0, e
	}
	defer t.put(n)
	d := f.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	defer func() {
		if t.named {
			t.named = false
			t.fs.anchorLater()
		}
		if d.held && t.fs.held.Load() > mostHeld {
			d.drop()
		}
	}()
	if in.Offset != d.next || in.Offset == 0 || d.lost {
		if e := d.seek(f.fd, in.Offset); e != 0 {
			return 0, e
		}
	}
	if plus {
		t.listed = in.Fh
		d.begin()
	} else {
		d.forget()
	}
	done, before := 0, d.passed
	for {
		if len(d.buf) == 0 {
			if e := d.fill(f.fd); e != 0 {
				if done > 0 {
					return done, 0
				}
				return 0, e
			}
			if len(d.buf) == 0 {
				d.drop()
				return done, 0
			}
		}
		if plus {
			d.call(t.fs, f, len(buf))
		}
		for len(d.buf) > 0 {
			de := d.buf[:reclen(d.buf)]
			k := t.dirent(n, fd, de, plus, d, buf[done:])
			if k < 0 {
				if done == 0 {
					return 0, unix.EINVAL // as getdents64 with a buffer for less than one entry
				}
				d.want = d.passed - before
				return done, 0
			}
			done += k
			d.next = binary.NativeEndian.Uint64(de[8:])
			d.buf = d.buf[len(de):]
			d.read++
			d.passed++
		}
		if done > len(buf)*3/4 { // another getdents64 would rather read too much
			d.want = d.passed - before
			return done, 0
		}
	}
}

// dirent converts one struct linux_dirent64 (ino, off, reclen, type, name) and returns the bytes used of out, or -1 if they
// are too few.
func (t *thread) dirent(p *inode, pfd int, de []byte, plus bool, stream *dirStream, out []byte) int {
	name := de[19:]
	end := bytes.IndexByte(name, 0)
	if end < 0 {
		return 0
	}
	head := fuseabi.DirentSize
	if plus {
		head = fuseabi.DirentplusSize
	}
	size := fuseabi.Align8(head + end)
	if size > len(out) {
		return -1
	}
	out = out[:size]
	clear(out[:head])
	clear(out[head+end:])
	var d *fuseabi.Dirent
	if plus {
		v := fuseabi.View[fuseabi.Direntplus](out)
		d = &v.Dirent
		if !dots(name[:end]) {
			e := unix.ESTALE
			if seen := stream.seen(t.fs, p, pfd); seen != nil {
				t.st = seen.st
				e = t.listEntry(p, name[:end+1], seen.when, &v.EntryOut)
			}
			if e == unix.ESTALE { // nothing was seen, or it is old
				if e = sys.Statx(pfd, &name[0], unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, identityMask, &t.st); e == 0 {
					e = t.listEntry(p, name[:end+1], 0, &v.EntryOut)
				}
			}
			if e == unix.ESTALE {
				e = t.discover(p, pfd, name[:end+1], &v.EntryOut)
			}
			switch e {
			case 0:
			case unix.ENOENT, unix.ESTALE:
				return 0 // removed meanwhile
			default: // node 0: the name is listed, its attributes have to be asked for
				v.EntryOut = fuseabi.EntryOut{}
			}
		}
	} else {
		d = fuseabi.View[fuseabi.Dirent](out)
	}
	d.Ino = binary.NativeEndian.Uint64(de)
	if p == t.fs.root && end == 2 && dots(name[:2]) { // what is above the share is nobody's business
		d.Ino = p.ino
	}
	d.Off = binary.NativeEndian.Uint64(de[8:])
	d.NameLen, d.Type = uint32(end), uint32(de[18])
	copy(out[head:], name[:end])
	return size
}

func dots(name []byte) bool {
	return name[0] == '.' && (len(name) == 1 || len(name) == 2 && name[1] == '.')
}
