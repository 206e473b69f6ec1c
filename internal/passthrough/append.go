package passthrough

import (
	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

// Files that can only be appended to (chattr +a) are opened for writing with O_APPEND or not at
// all. A guest does not know of that attribute, so this is the rule:
//
//   - Where open(2) without O_APPEND is EPERM, and the guest's open has it, the file is opened with it. All other files are opened without,
//     whatever the guest says: a page that it writes later goes to its place.
//   - Of such a file the guest delays and keeps nothing (FOPEN_DIRECT_IO): pages that it had would be written whole, with the part that is in
//     the file already, and be appended as a whole. Linux refuses a shared mapping of such a file, as it does here.
//   - A write that says O_APPEND appends. One that does not, because fcntl(2) took the flag away in the guest (where a local file system
//     would have refused that), or because it was delayed by another descriptor, is done if it begins where the file ends, and is EPERM otherwise:
//     by this descriptor it would go to the end in any case.

// openToAppend opens a file behind an O_PATH descriptor that the host refuses to open without
// O_APPEND.
func (t *thread) openToAppend(fd, flags int) (int, unix.Errno) {
	if flags&unix.O_ACCMODE == unix.O_RDONLY || flags&unix.O_TRUNC != 0 {
		return -1, unix.EPERM
	}
	return t.openReal(fd, flags|unix.O_APPEND)
}

// atEnd is what a write has to pass that does not say that it appends, to a file that is only
// appended to.
func (t *thread) atEnd(fd int, off uint64) unix.Errno {
	if e := sys.FStatx(fd, unix.STATX_SIZE, &t.st); e != 0 {
		return e
	}
	if t.st.Size != off {
		return unix.EPERM
	}
	return 0
}

// probeVectors finds out whether preadv2(2) and pwritev2(2) can be used. A filter around the
// daemon, of a container's runtime for instance, may be older than they are, and answer what it
// likes; the kernel knows that there is no descriptor -1.
func (fs *FS) probeVectors() {
	_, e := sys.Preadv2(-1, nil, 0, 0)
	fs.old.read = e != unix.EBADF
	if fs.old.read {
		fs.log.Warn("preadv2(2) is refused by the kernel or a filter around the daemon: reading by preadv(2) instead", "err", e)
	}
	_, e = sys.Pwritev2(-1, nil, 0, 0)
	fs.old.write = e != unix.EBADF
	if fs.old.write {
		fs.log.Warn("pwritev2(2) is refused by the kernel or a filter around the daemon: writing by pwritev(2) instead, which opens a file once more for each write that appends", "err", e)
	}
}

func (fs *FS) pread(fd int, dst []unix.Iovec, off int64) (int, unix.Errno) {
	if fs.old.read {
		return sys.Preadv(fd, dst, off)
	}
	return sys.Preadv2(fd, dst, off, 0)
}

// pwrite writes at an offset, or to the end.
func (t *thread) pwrite(f *file, src []unix.Iovec, off int64, appends bool) (int, unix.Errno) {
	switch {
	case !t.fs.old.write && appends:
		return sys.Pwritev2(f.fd, src, off, unix.RWF_APPEND)
	case !t.fs.old.write:
		return sys.Pwritev2(f.fd, src, off, 0)
	case !appends || f.appends:
		return sys.Pwritev(f.fd, src, off)
	}
	fd, e := t.openReal(f.fd, unix.O_WRONLY|unix.O_APPEND) // by this, pwritev(2) appends
	if e != 0 {
		return 0, e
	}
	n, e := sys.Pwritev(fd, src, off)
	if closed := sys.Close(fd); e == 0 && n == 0 {
		e = closed
	}
	return n, e
}
