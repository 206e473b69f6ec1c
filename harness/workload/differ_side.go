package workload

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"runtime/debug"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// differSlots is how many files a process of the differential workload has open.
const differSlots = 6

// side is one of the two trees as a process sees it.
type side struct {
	root int // descriptor
	fds  [differSlots]int
}

// do does a step and says what came of it: the errno first, then what was returned, then the attributes of what it was about.
func (d *side) do(s step) outcome {
	words, err := d.act(s)
	o := outcome{"errno=" + errnoName(err)}
	if err == nil {
		o = append(o, words...)
	}
	switch s.Op {
	case "open", "write", "append", "mapwrite", "ftruncate", "fallocate", "fchmod", "fchown", "tmpfile", "close", "read", "fsync", "flock", "fcntl-lock", "lseek", "umask":
		return append(o, d.fdWords(s.Slot)...)
	case "copy":
		return append(o, d.fdWords(s.Slot2)...)
	case "rename", "link", "flink":
		return append(append(o, d.pathWords(s.Path)...), d.pathWords(s.To)...)
	}
	return append(o, d.pathWords(s.Path)...)
}

// pathWords are a name's attributes, of the last component itself, and its parent's: entries come and go there.
func (d *side) pathWords(name string) outcome {
	var words outcome
	for _, p := range []string{name, path.Dir(path.Clean(name))} {
		var st unix.Stat_t
		if err := unix.Fstatat(d.root, p, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			words = append(words, "stat="+errnoName(err))
			continue
		}
		words = append(words, statWords(&st)...)
	}
	return words
}

func (d *side) fdWords(slot int) outcome {
	var st unix.Stat_t
	if err := unix.Fstat(d.fds[slot], &st); err != nil {
		return outcome{"fstat=" + errnoName(err)}
	}
	return statWords(&st)
}

// taken is the slot or, if it is empty, another that is not.
func (d *side) taken(slot int) int {
	for i := range d.fds {
		if at := (slot + i) % len(d.fds); d.fds[at] >= 0 {
			return at
		}
	}
	return slot
}

// put puts a new descriptor into a slot.
func (d *side) put(slot, fd int, err error) error {
	if err != nil {
		return err
	}
	if d.fds[slot] >= 0 {
		if err := unix.Close(d.fds[slot]); err != nil {
			return fmt.Errorf("close what was there: %w", err)
		}
	}
	d.fds[slot] = fd
	return nil
}

// fill makes bytes to write, different for each step.
func fill(s step) []byte {
	b := make([]byte, max(0, s.Len))
	Pattern(b, int64(s.N), 0)
	return b
}

func word(format string, args ...any) outcome { return outcome{fmt.Sprintf(format, args...)} }

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

func (d *side) act(s step) (outcome, error) {
	fd, fd2 := d.fds[s.Slot], d.fds[s.Slot2]
	switch s.Op {
	case "open":
		fd, err := unix.Openat(d.root, s.Path, s.Flags|unix.O_CLOEXEC|unix.O_NONBLOCK, s.Mode)
		return nil, d.put(s.Slot, fd, err)
	case "tmpfile":
		fd, err := unix.Openat(d.root, path.Dir(path.Clean(s.Path)), s.Flags|unix.O_TMPFILE|unix.O_CLOEXEC, s.Mode)
		return nil, d.put(s.Slot, fd, err)
	case "close":
		d.fds[s.Slot] = -1
		return nil, unix.Close(fd)
	case "read":
		b := make([]byte, s.Len)
		n, err := unix.Pread(fd, b, s.Off)
		return word("n=%d sha=%s", n, digest(b[:max(n, 0)])), err
	case "write":
		n, err := unix.Pwrite(fd, fill(s), s.Off)
		return word("n=%d", n), err
	case "append":
		n, err := unix.Write(fd, fill(s))
		if err != nil {
			return nil, err
		}
		at, err := unix.Seek(fd, 0, unix.SEEK_CUR)
		return word("n=%d at=%d", n, at), err
	case "mapread", "mapwrite":
		return d.mapped(fd, s)
	case "ftruncate":
		return nil, unix.Ftruncate(fd, s.Len)
	case "truncate":
		return nil, d.byProc(s.Path, func(p string) error { return unix.Truncate(p, s.Len) })
	case "fallocate":
		return nil, unix.Fallocate(fd, s.Mode, s.Off, s.Len)
	case "copy":
		off, off2 := s.Off, s.Off2
		n, err := unix.CopyFileRange(fd, &off, fd2, &off2, int(s.Len), s.Flags)
		return word("n=%d", n), err
	case "lseek":
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return word("a directory's offsets are its file system's own"), nil
		}
		at, err := unix.Seek(fd, s.Off, s.Flags)
		return word("at=%d", at), err
	case "fsync":
		if s.Flags == 0 {
			return nil, unix.Fdatasync(fd)
		}
		return nil, unix.Fsync(fd)
	case "fstat":
		return d.fdWords(s.Slot), nil
	case "fchmod":
		return nil, unix.Fchmod(fd, s.Mode)
	case "fchown":
		return nil, unix.Fchown(fd, s.UID, s.GID)
	case "flock":
		return nil, unix.Flock(fd, s.Flags|unix.LOCK_NB)
	case "fcntl-lock":
		lk := unix.Flock_t{Type: int16(s.Mode), Start: s.Off, Len: s.Len}
		err := unix.FcntlFlock(uintptr(fd), s.Flags, &lk)
		if s.Flags == unix.F_GETLK { // who it is differs, and which of several
			return word("free=%v", lk.Type == unix.F_UNLCK), err
		}
		return nil, err
	case "mkdir":
		return nil, unix.Mkdirat(d.root, s.Path, s.Mode)
	case "rmdir":
		return nil, unix.Unlinkat(d.root, s.Path, unix.AT_REMOVEDIR)
	case "unlink":
		return nil, unix.Unlinkat(d.root, s.Path, 0)
	case "rename":
		return nil, unix.Renameat2(d.root, s.Path, d.root, s.To, uint(s.Flags))
	case "link":
		return nil, unix.Linkat(d.root, s.Path, d.root, s.To, s.Flags)
	case "flink":
		return nil, unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), d.root, s.To, unix.AT_SYMLINK_FOLLOW)
	case "symlink":
		return nil, unix.Symlinkat(s.To, d.root, s.Path)
	case "readlink":
		b := make([]byte, 5000)
		n, err := unix.Readlinkat(d.root, s.Path, b)
		return word("target=%q", b[:max(n, 0)]), err
	case "mknod":
		return nil, unix.Mknodat(d.root, s.Path, s.Mode, s.Flags)
	case "chmod":
		return nil, unix.Fchmodat(d.root, s.Path, s.Mode, 0)
	case "lchown":
		return nil, unix.Fchownat(d.root, s.Path, s.UID, s.GID, unix.AT_SYMLINK_NOFOLLOW)
	case "utimens":
		return d.utimens(s)
	case "stat":
		var st unix.Stat_t
		if err := unix.Fstatat(d.root, s.Path, &st, 0); err != nil {
			return nil, err
		}
		return statWords(&st), nil
	case "access":
		return nil, unix.Faccessat2(d.root, s.Path, s.Mode, unix.AT_EACCESS)
	case "readdir":
		return d.readdir(s.Path)
	case "setxattr":
		return nil, d.byProc(s.Path, func(p string) error { return unix.Setxattr(p, s.Key, fill(s), s.Flags) })
	case "getxattr":
		b, n := make([]byte, s.Len), 0
		err := d.byProc(s.Path, func(p string) (err error) { n, err = unix.Getxattr(p, s.Key, b); return err })
		if err != nil || s.Len == 0 {
			return word("n=%d", n), err
		}
		return word("n=%d sha=%s", n, digest(b[:n])), nil
	case "removexattr":
		return nil, d.byProc(s.Path, func(p string) error { return unix.Removexattr(p, s.Key) })
	case "umask": // the process's, so for both sides
		unix.Umask(int(s.Mode))
		return nil, nil
	}
	return nil, fmt.Errorf("no such operation: %s", s.Op)
}

// byProc gives a path to calls that know no directory descriptor.
func (d *side) byProc(name string, f func(path string) error) error {
	return f("/proc/self/fd/" + strconv.Itoa(d.root) + "/" + name)
}

// mapped reads or writes through a mapping, inside the file: behind its last page there is a signal, as there is where a file
// system has no room for a page.
func (d *side) mapped(fd int, s step) (o outcome, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
			if _, fault := r.(interface{ Addr() uintptr }); fault {
				err = errors.New("SIGBUS")
			}
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if s.Off < 0 || s.Off >= st.Size || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return word("nothing to map"), nil
	}
	n := min(s.Len, st.Size-s.Off)
	if n == 0 {
		return word("nothing to map"), nil
	}
	prot := unix.PROT_READ
	if s.Op == "mapwrite" {
		prot |= unix.PROT_WRITE
	}
	start := s.Off &^ 4095
	m, err := unix.Mmap(fd, start, int(s.Off-start+n), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Munmap(m) }()
	part := m[s.Off-start:]
	if s.Op == "mapread" {
		return word("n=%d sha=%s", n, digest(part)), nil
	}
	Pattern(part, int64(s.N), 0)
	return nil, unix.Msync(m, unix.MS_SYNC)
}

// utimens sets times before 2010, or leaves one; 3 of Flags sets both to now.
func (d *side) utimens(s step) (outcome, error) {
	ts := []unix.Timespec{{Sec: s.Off, Nsec: s.Len}, {Sec: s.Off2, Nsec: s.Len}}
	switch s.Flags {
	case 1:
		ts[0].Nsec = unix.UTIME_OMIT
	case 2:
		ts[1].Nsec = unix.UTIME_OMIT
	case 3:
		ts[0].Nsec, ts[1].Nsec = unix.UTIME_NOW, unix.UTIME_NOW
	}
	if err := unix.UtimesNanoAt(d.root, s.Path, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(d.root, s.Path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	if s.Flags == 1 || s.Flags == 3 { // reading moves it otherwise: a guest's cache does not
		return nil, nil
	}
	return word("atime=%s", timeWord(st.Atim)), nil
}

// readdir lists names with their types, sorted.
func (d *side) readdir(name string) (outcome, error) {
	fd, err := unix.Openat(d.root, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var all outcome
	buf := make([]byte, 8192)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			length := int(b[16]) | int(b[17])<<8
			end := slices.Index(b[19:length], 0)
			all = append(all, fmt.Sprintf("entry=%q/%d", b[19:19+end], b[18]))
			b = b[length:]
		}
	}
	slices.Sort(all)
	return all, nil
}
