package workload

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

func (e *Env) basics(a guestproto.BasicsArgs) (guestproto.Basics, error) {
	p, err := e.place(a.Where, guestproto.CallBasics)
	if err != nil {
		return guestproto.Basics{}, err
	}
	return guestproto.Basics{Checks: runChecks(basicChecks, a.Tests, p.dir, e)}, nil
}

// Basics lists the names of the basic checks.
func Basics() []string {
	var n []string
	for _, k := range basicChecks {
		n = append(n, k.name)
	}
	return n
}

var basicChecks = slices.Concat(dataChecks, nameChecks, attrChecks, lockChecks)

// dataChecks are about the content of files.
var dataChecks = []check{
	{"write-read", func(c *checker) {
		c.file("f", "hello")
		c.eq(c.read("f"), "hello", "content")
		c.eq(c.lstat("f").Size, int64(5), "size")
	}},
	{"append", func(c *checker) {
		c.file("f", "one")
		a := c.open("f", unix.O_WRONLY|unix.O_APPEND, 0)
		b := c.open("f", unix.O_WRONLY|unix.O_APPEND, 0)
		for i, fd := range []int{a, b, a} {
			_, err := unix.Write(fd, []byte{'0' + byte(i)})
			c.ok(err, "append")
		}
		c.eq(c.read("f"), "one012", "content")
	}},
	{"append-parallel", func(c *checker) {
		const writers, lines = 4, 50
		c.file("f", "")
		errs := make(chan error, writers)
		for w := range writers {
			fd := c.open("f", unix.O_WRONLY|unix.O_APPEND, 0)
			go func() {
				for i := range lines {
					if _, err := unix.Write(fd, fmt.Appendf(nil, "writer %d line %03d\n", w, i)); err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
		for range writers {
			c.ok(<-errs, "append")
		}
		got := strings.Split(strings.TrimSpace(c.read("f")), "\n")
		slices.Sort(got)
		c.eq(len(slices.Compact(got)), writers*lines, "whole, different lines")
	}},
	{"truncate-on-open", func(c *checker) {
		c.file("f", "content")
		c.open("f", unix.O_WRONLY|unix.O_TRUNC, 0)
		c.eq(c.lstat("f").Size, int64(0), "size")
	}},
	{"truncate", func(c *checker) {
		fd := c.file("f", "0123456789")
		c.ok(unix.Ftruncate(fd, 4), "shrink")
		c.ok(unix.Ftruncate(fd, 8), "grow")
		c.eq(c.readFD(fd), "0123\x00\x00\x00\x00", "content")
		c.ok(unix.Truncate(c.path("f"), 2), "truncate by path")
		c.eq(c.read("f"), "01", "content")
		c.errno(unix.Ftruncate(c.open("f", unix.O_RDONLY, 0), 0), "ftruncate of a read-only descriptor", unix.EINVAL)
		c.mkdir("d")
		c.errno(unix.Truncate(c.path("d"), 0), "truncate a directory", unix.EISDIR)
	}},
	{"direct-io", func(c *checker) {
		fd := c.open("f", unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT, 0o644)
		b, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		c.ok(err, "buffer")
		defer unix.Munmap(b)
		Pattern(b, 7, 0)
		want := string(b)
		n, err := unix.Pwrite(fd, b, 4096)
		c.ok(err, "write")
		c.eq(n, 8192, "bytes written")
		clear(b)
		n, err = unix.Pread(fd, b, 4096)
		c.ok(err, "read")
		c.eq(n, 8192, "bytes read")
		c.eq(string(b), want, "content")
		c.eq(c.read("f"), string(make([]byte, 4096))+want, "content through the page cache")
	}},
	{"mmap-shared", func(c *checker) {
		fd := c.file("f", string(make([]byte, 12288)))
		m, err := unix.Mmap(fd, 0, 12288, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		c.may(err, "mmap", unix.ENODEV)
		copy(m[4000:], "written through the map")
		c.eq(c.read("f")[4000:4023], "written through the map", "read sees the map's write")
		_, err = unix.Pwrite(fd, []byte("by write"), 8192)
		c.ok(err, "pwrite")
		c.eq(string(m[8192:8200]), "by write", "the map sees write")
		c.ok(unix.Munmap(m), "munmap")
		_ = dropCaches() // on a host the caches stay, and the check is weaker
		c.eq(c.read("f")[4000:4023], "written through the map", "after munmap")
	}},
	{"mmap-private", func(c *checker) {
		fd := c.file("f", "original")
		m, err := unix.Mmap(fd, 0, 8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		c.ok(err, "mmap")
		defer unix.Munmap(m)
		c.eq(string(m), "original", "content of the map")
		m[0] = 'X'
		c.eq(c.read("f"), "original", "content of the file")
	}},
	{"execute", func(c *checker) {
		if _, err := os.Stat("/bin/busybox"); err != nil || c.env.LocalDir != "" {
			c.skip("no busybox in the image")
		}
		b, err := os.ReadFile("/bin/busybox")
		c.ok(err, "read busybox")
		c.ok(os.WriteFile(c.path("busybox"), b, 0o755), "copy busybox into the share")
		r, err := c.env.exec(guestproto.ExecArgs{Where: guestproto.Where{Local: true}, Argv: []string{c.path("busybox"), "echo", "ran"}})
		c.ok(err, "run it")
		c.eq(r.Stdout, "ran\n", "output")
		c.errno(unixOpenErr(c.path("busybox"), unix.O_WRONLY|unix.O_DIRECTORY), "open as a directory", unix.ENOTDIR)
	}},
	{"vectored", func(c *checker) {
		fd := c.file("f", "")
		n, err := unix.Pwritev(fd, [][]byte{[]byte("ab"), nil, []byte("cde"), []byte(strings.Repeat("x", 5000))}, 3)
		c.ok(err, "pwritev")
		c.eq(n, 5005, "bytes written")
		a, b := make([]byte, 4), make([]byte, 4)
		n, err = unix.Preadv(fd, [][]byte{a, b}, 1)
		c.ok(err, "preadv")
		c.eq(fmt.Sprint(n, string(a), string(b)), fmt.Sprint(8, "\x00\x00ab", "cdex"), "bytes read")
	}},
	{"sparse", func(c *checker) {
		fd := c.open("f", unix.O_CREAT|unix.O_RDWR, 0o644)
		for _, off := range []int64{0, 1 << 20} {
			_, err := unix.Pwrite(fd, []byte("data"), off)
			c.ok(err, "write")
		}
		c.ok(unix.Fsync(fd), "fsync")
		hole, err := unix.Seek(fd, 0, unix.SEEK_HOLE)
		c.ok(err, "SEEK_HOLE")
		data, err := unix.Seek(fd, hole, unix.SEEK_DATA)
		c.ok(err, "SEEK_DATA")
		c.that(hole >= 4 && hole <= 1<<20 || hole == 1<<20+4, "hole at %d", hole)
		if hole < 1<<20 {
			c.that(data > hole && data <= 1<<20, "data at %d after the hole at %d", data, hole)
			c.that(c.fstat(fd).Blocks*512 < 1<<20, "%d blocks for two", c.fstat(fd).Blocks)
		}
		_, err = unix.Seek(fd, 2<<20, unix.SEEK_DATA)
		c.errno(err, "SEEK_DATA past the end", unix.ENXIO)
	}},
	{"fallocate", func(c *checker) {
		fd := c.file("f", "0123456789")
		c.ok(unix.Fallocate(fd, 0, 0, 8192), "fallocate")
		c.eq(c.fstat(fd).Size, int64(8192), "size")
		c.eq(c.readFD(fd)[:12], "0123456789\x00\x00", "content")
		c.errno(unix.Fallocate(c.open("f", unix.O_RDONLY, 0), 0, 0, 10), "fallocate of a read-only descriptor", unix.EBADF)
	}},
	{"fallocate-keep-size", func(c *checker) {
		fd := c.file("f", "0123456789")
		c.ok(unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 65536), "fallocate")
		c.eq(c.fstat(fd).Size, int64(10), "size")
	}},
	{"punch-hole", func(c *checker) {
		fd := c.file("f", strings.Repeat("x", 12288))
		c.ok(unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4000, 200), "punch")
		got := c.readFD(fd)
		c.eq(len(got), 12288, "size")
		c.eq(got[3999:4201], "x"+string(make([]byte, 200))+"x", "content around the hole")
	}},
	{"zero-range", func(c *checker) {
		fd := c.file("f", strings.Repeat("x", 8192))
		c.ok(unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 4096, 8192), "zero range")
		c.eq(c.readFD(fd), strings.Repeat("x", 4096)+string(make([]byte, 8192)), "content")
	}},
	{"copy-file-range", func(c *checker) {
		in, out := c.file("in", strings.Repeat("0123456789", 2000)), c.file("out", "head")
		from, to := int64(5), int64(4)
		for left := 15000; left > 0; {
			n, err := unix.CopyFileRange(in, &from, out, &to, left, 0)
			c.ok(err, "copy_file_range")
			c.that(n > 0, "copy_file_range copied nothing at %d", from)
			left -= n
		}
		c.eq(c.read("out"), "head"+strings.Repeat("0123456789", 2000)[5:15005], "content")
	}},
	{"unlinked-open", func(c *checker) {
		fd := c.file("f", "before")
		c.ok(unix.Unlink(c.path("f")), "unlink")
		_, err := unix.Pwrite(fd, []byte("after!"), 0)
		c.ok(err, "write after unlink")
		c.eq(c.readFD(fd), "after!", "content")
		c.eq(c.fstat(fd).Nlink, uint64(0), "links")
		c.ok(unix.Ftruncate(fd, 3), "truncate after unlink")
		c.ok(unix.Fchmod(fd, 0o600), "chmod after unlink")
		c.eq(c.fstat(fd).Size, int64(3), "size")
		c.eq(len(c.names(".")), 0, "names left")
	}},
	{"replaced-open", func(c *checker) {
		fd := c.file("f", "old")
		c.file("g", "new")
		c.ok(unix.Rename(c.path("g"), c.path("f")), "rename over")
		c.eq(c.readFD(fd), "old", "the open file")
		c.eq(c.read("f"), "new", "the name")
	}},
	{"mtime-of-write", func(c *checker) {
		fd := c.file("f", "1")
		old := []unix.Timespec{{Sec: 1000}, {Sec: 1000}}
		c.ok(unix.UtimesNanoAt(unix.AT_FDCWD, c.path("f"), old, 0), "utimensat")
		_, err := unix.Pwrite(fd, []byte("2"), 0)
		c.ok(err, "write")
		st := c.fstat(fd)
		now := time.Now().Unix()
		c.that(st.Mtim.Sec > now-60 && st.Mtim.Sec < now+60, "mtime is %d at %d", st.Mtim.Sec, now)
		c.ok(unix.Fsync(fd), "fsync")
		c.eq(c.lstat("f").Mtim.Sec, st.Mtim.Sec, "mtime by path and by descriptor")
	}},
}

func unixOpenErr(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// nameChecks are about directories and names.
var nameChecks = []check{
	{"open-flags", func(c *checker) {
		c.file("f", "x")
		c.mkdir("d")
		c.errno(unixOpenErr(c.path("f"), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR), "O_EXCL on a file", unix.EEXIST)
		c.errno(unixOpenErr(c.path("d"), unix.O_WRONLY), "write to a directory", unix.EISDIR)
		c.errno(unixOpenErr(c.path("f"), unix.O_DIRECTORY), "O_DIRECTORY on a file", unix.ENOTDIR)
		c.errno(unixOpenErr(c.path("none"), unix.O_RDONLY), "open nothing", unix.ENOENT)
		c.errno(unixOpenErr(c.path("f/x"), unix.O_RDONLY), "file as directory", unix.ENOTDIR)
	}},
	{"mkdir-rmdir", func(c *checker) {
		c.mkdir("d")
		c.errno(unix.Mkdir(c.path("d"), 0o755), "mkdir twice", unix.EEXIST)
		c.file("d/f", "x")
		c.errno(unix.Rmdir(c.path("d")), "rmdir of a full directory", unix.ENOTEMPTY)
		c.errno(unix.Rmdir(c.path("d/f")), "rmdir of a file", unix.ENOTDIR)
		c.errno(unix.Unlink(c.path("d")), "unlink of a directory", unix.EISDIR)
		c.ok(unix.Unlink(c.path("d/f")), "unlink")
		c.ok(unix.Rmdir(c.path("d")), "rmdir")
		c.errno(unix.Rmdir(c.path("d")), "rmdir twice", unix.ENOENT)
	}},
	{"directory-links", func(c *checker) {
		before := c.lstat(".").Nlink
		c.mkdir("d")
		if n := c.lstat(".").Nlink; n != before && n != before+1 {
			c.fail("%d links after one mkdir, %d before", n, before)
		}
	}},
	{"removed-directory", func(c *checker) {
		c.mkdir("d")
		fd := c.open("d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		c.ok(unix.Rmdir(c.path("d")), "rmdir of an open directory")
		n, err := unix.ReadDirent(fd, make([]byte, 4096))
		if err == nil { // "." and ".." may still be there, or nothing
			c.that(n < 100, "%d bytes of entries in a removed directory", n)
		} else {
			c.errno(err, "read a removed directory", unix.ENOENT)
		}
		_, err = unix.Openat(fd, "f", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
		c.errno(err, "create in a removed directory", unix.ENOENT)
	}},
	{"hard-link", func(c *checker) {
		c.file("f", "x")
		c.ok(unix.Link(c.path("f"), c.path("g")), "link")
		f, g := c.lstat("f"), c.lstat("g")
		c.eq(f.Ino, g.Ino, "inode numbers")
		c.eq(f.Nlink, uint64(2), "links")
		c.errno(unix.Link(c.path("f"), c.path("g")), "link over a name", unix.EEXIST)
		c.mkdir("d")
		c.errno(unix.Link(c.path("d"), c.path("e")), "link a directory", unix.EPERM)
		c.ok(unix.Unlink(c.path("f")), "unlink")
		c.eq(c.lstat("g").Nlink, uint64(1), "links after unlink")
		c.eq(c.read("g"), "x", "content of the other name")
	}},
	{"symlink", func(c *checker) {
		for i, target := range []string{"f", "../nowhere", "/abs", strings.Repeat("long/", 800), "with space\nand newline"} {
			n := fmt.Sprintf("l%d", i)
			c.ok(unix.Symlink(target, c.path(n)), "symlink")
			got, err := os.Readlink(c.path(n))
			c.ok(err, "readlink")
			c.eq(got, target, "target")
			st := c.lstat(n)
			c.eq(st.Mode&unix.S_IFMT, uint32(unix.S_IFLNK), "type")
			c.eq(st.Size, int64(len(target)), "size")
		}
		c.errno(unixOpenErr(c.path("l0"), unix.O_RDONLY|unix.O_NOFOLLOW), "O_NOFOLLOW", unix.ELOOP)
		c.errno(unix.Symlink("x", c.path("l0")), "symlink over a name", unix.EEXIST)
		c.ok(unix.Symlink("loop", c.path("loop")), "symlink to itself")
		c.errno(unixOpenErr(c.path("loop"), unix.O_RDONLY), "open a loop", unix.ELOOP)
		c.file("f", "through")
		c.eq(c.read("l0"), "through", "content through the link")
	}},
	{"rename", func(c *checker) {
		c.file("a", "A")
		c.file("b", "B")
		c.mkdir("d")
		c.mkdir("d/sub")
		c.ok(unix.Rename(c.path("a"), c.path("b")), "rename over a file")
		c.eq(c.read("b"), "A", "content")
		c.errno(unix.Rename(c.path("a"), c.path("x")), "rename nothing", unix.ENOENT)
		c.errno(unix.Rename(c.path("d"), c.path("d/sub/d")), "rename into itself", unix.EINVAL)
		c.errno(unix.Rename(c.path("b"), c.path("d")), "file over directory", unix.EISDIR)
		c.errno(unix.Rename(c.path("d"), c.path("b")), "directory over file", unix.ENOTDIR)
		c.mkdir("e")
		c.errno(unix.Rename(c.path("e"), c.path("d")), "directory over a full one", unix.ENOTEMPTY, unix.EEXIST)
		c.ok(unix.Rename(c.path("d"), c.path("e")), "directory over an empty one")
		c.ok(unix.Rename(c.path("b"), c.path("e/sub/b")), "file into a directory")
		c.eq(c.read("e/sub/b"), "A", "content")
		c.eq(strings.Join(c.names("."), " "), "e", "names left")
	}},
	{"rename-noreplace", func(c *checker) {
		c.file("a", "A")
		c.file("b", "B")
		err := unix.Renameat2(unix.AT_FDCWD, c.path("a"), unix.AT_FDCWD, c.path("b"), unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EEXIST) {
			c.may(err, "rename over a name", unix.EINVAL)
			c.fail("rename over a name succeeded")
		}
		c.ok(unix.Renameat2(unix.AT_FDCWD, c.path("a"), unix.AT_FDCWD, c.path("c"), unix.RENAME_NOREPLACE), "rename to a new name")
		c.eq(strings.Join(c.names("."), " "), "b c", "names")
	}},
	{"rename-exchange", func(c *checker) {
		c.file("a", "A")
		c.mkdir("d")
		c.file("d/x", "X")
		c.may(unix.Renameat2(unix.AT_FDCWD, c.path("a"), unix.AT_FDCWD, c.path("d"), unix.RENAME_EXCHANGE), "exchange", unix.EINVAL)
		c.eq(c.read("d"), "A", "content of the file")
		c.eq(c.read("a/x"), "X", "content of the directory")
	}},
	{"rename-whiteout", func(c *checker) {
		c.file("a", "A")
		c.may(unix.Renameat2(unix.AT_FDCWD, c.path("a"), unix.AT_FDCWD, c.path("b"), unix.RENAME_WHITEOUT), "whiteout", unix.EINVAL, unix.EPERM)
		c.eq(c.read("b"), "A", "content")
		st := c.lstat("a")
		c.eq(st.Mode&unix.S_IFMT, uint32(unix.S_IFCHR), "type of what is left")
		c.eq(st.Rdev, uint64(0), "device of what is left")
	}},
	{"tmpfile", func(c *checker) {
		fd, err := unix.Open(c.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o640)
		c.may(err, "O_TMPFILE", unix.EISDIR, unix.EINVAL)
		c.fds = append(c.fds, fd)
		_, err = unix.Write(fd, []byte("tmp"))
		c.ok(err, "write")
		c.eq(c.fstat(fd).Nlink, uint64(0), "links")
		c.eq(len(c.names(".")), 0, "names")
		c.ok(unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, c.path("f"), unix.AT_SYMLINK_FOLLOW), "link")
		c.eq(c.read("f"), "tmp", "content")
		c.eq(c.lstat("f").Nlink, uint64(1), "links after link")
	}},
	{"names", func(c *checker) {
		long := strings.Repeat("n", 255)
		want := []string{long, "ü€𝄞", "with space", "new\nline", "back\\slash", "-dash", "\xff\xfe", "...", "a\tb", "%s", "*?[", "~", "#", strings.Repeat("ü", 127)}
		for _, n := range want {
			c.file(n, n)
		}
		slices.Sort(want)
		c.eq(strings.Join(c.names("."), "|"), strings.Join(want, "|"), "names")
		for _, n := range want {
			c.eq(c.read(n), n, "content of "+n)
		}
		c.errno(unix.Mkdir(c.path(long+"n"), 0o755), "256 bytes", unix.ENAMETOOLONG)
		c.errno(unix.Symlink("x", c.path(long+"n")), "256 bytes", unix.ENAMETOOLONG)
		c.errno(unixOpenErr(c.path(long+"n"), unix.O_RDONLY), "256 bytes", unix.ENAMETOOLONG)
		c.errno(unix.Rename(c.path("~"), c.path(long+"n")), "256 bytes", unix.ENAMETOOLONG)
	}},
	{"deep-path", func(c *checker) {
		fd := c.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		name := strings.Repeat("d", 100)
		const depth = 60 // 6,000 bytes: longer than PATH_MAX, so by descriptors
		for range depth {
			c.ok(unix.Mkdirat(fd, name, 0o755), "mkdirat")
			next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			c.ok(err, "openat")
			c.fds = append(c.fds, next)
			fd = next
		}
		f, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
		c.ok(err, "create at the bottom")
		c.fds = append(c.fds, f)
		_, err = unix.Write(f, []byte("deep"))
		c.ok(err, "write")
		c.eq(c.readFD(f), "deep", "content")
	}},
	{"readdir-big", func(c *checker) {
		const n = 1000
		for i := range n {
			c.ok(unix.Mknod(c.path(fmt.Sprintf("entry-%05d", i)), unix.S_IFREG|0o644, 0), "mknod")
			c.env.progress("readdir-big", int64(i), n)
		}
		got := c.names(".")
		c.eq(len(got), n, "names")
		c.eq(len(slices.Compact(got)), n, "different names")
		c.eq(got[0]+" "+got[n-1], "entry-00000 entry-00999", "first and last")
	}},
	{"readdir-while-removing", func(c *checker) {
		const n = 300
		for i := range n {
			c.ok(unix.Mknod(c.path(fmt.Sprintf("entry-%05d", i)), unix.S_IFREG|0o644, 0), "mknod")
		}
		fd := c.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		seen := map[string]bool{}
		b := make([]byte, 4096)
		for {
			k, err := unix.ReadDirent(fd, b)
			c.ok(err, "getdents")
			if k == 0 {
				break
			}
			_, _, names := unix.ParseDirent(b[:k], -1, nil)
			for _, name := range names {
				c.that(!seen[name], "%s twice", name)
				seen[name] = true
				c.ok(unix.Unlink(c.path(name)), "unlink "+name)
			}
		}
		c.eq(len(seen), n, "names seen while removing")
		c.eq(len(c.names(".")), 0, "names left")
	}},
	{"readdir-seek", func(c *checker) {
		for i := range 100 {
			c.ok(unix.Mknod(c.path(fmt.Sprintf("e%03d", i)), unix.S_IFREG|0o644, 0), "mknod")
		}
		fd := c.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		list := func() (out []string) {
			b := make([]byte, 1024)
			for {
				k, err := unix.ReadDirent(fd, b)
				c.ok(err, "getdents")
				if k == 0 {
					slices.Sort(out)
					return out
				}
				_, _, out = unix.ParseDirent(b[:k], -1, out)
			}
		}
		first := list()
		_, err := unix.Seek(fd, 0, 0)
		c.ok(err, "rewind")
		c.file("new", "")
		again := list()
		c.eq(len(first), 100, "names")
		c.that(len(again) == 101, "%d names after rewind and one creation, want 101", len(again))
	}},
	{"dirent-types", func(c *checker) {
		c.file("f", "")
		c.mkdir("d")
		c.ok(unix.Symlink("x", c.path("l")), "symlink")
		c.ok(unix.Mkfifo(c.path("p"), 0o644), "mkfifo")
		list, err := os.ReadDir(c.dir)
		c.ok(err, "read directory")
		var got []string
		for _, d := range list {
			got = append(got, d.Name()+" "+d.Type().String())
		}
		c.eq(strings.Join(got, ","), "d d---------,f ----------,l L---------,p p---------", "types")
	}},
	{"getcwd", func(c *checker) {
		c.mkdir("d")
		old, err := os.Getwd()
		c.ok(err, "getcwd")
		defer os.Chdir(old)
		c.ok(unix.Chdir(c.path("d")), "chdir")
		b := make([]byte, 4096)
		n, err := unix.Getcwd(b)
		c.ok(err, "getcwd")
		want, err := filepath.EvalSymlinks(c.path("d"))
		c.ok(err, "resolve")
		c.eq(string(b[:n-1]), want, "working directory")
	}},
}

// attrChecks are about attributes and special files.
var attrChecks = []check{
	{"statfs", func(c *checker) {
		var s unix.Statfs_t
		c.ok(unix.Statfs(c.dir, &s), "statfs")
		c.that(s.Bsize > 0 && s.Blocks > 0 && s.Blocks >= s.Bfree && s.Bfree >= s.Bavail, "block size %d, blocks %d, free %d, available %d", s.Bsize, s.Blocks, s.Bfree, s.Bavail)
		c.that(s.Namelen == 255, "longest name %d", s.Namelen)
	}},
	{"chmod-chown", func(c *checker) {
		c.file("f", "x")
		for _, mode := range []uint32{0, 0o7777, 0o644, 0o4755} {
			c.ok(unix.Chmod(c.path("f"), mode), "chmod")
			c.eq(c.lstat("f").Mode&0o7777, mode, "mode")
		}
		if os.Geteuid() != 0 {
			return
		}
		c.ok(unix.Chown(c.path("f"), 1234, 70001), "chown")
		st := c.lstat("f")
		c.eq(fmt.Sprint(st.Uid, st.Gid), "1234 70001", "owner")
		c.eq(st.Mode&0o7777, uint32(0o755), "chown takes the setuid bit")
		c.ok(unix.Chown(c.path("f"), -1, 5), "chown of the group alone")
		st = c.lstat("f")
		c.eq(fmt.Sprint(st.Uid, st.Gid), "1234 5", "owner")
	}},
	{"utimens", func(c *checker) {
		c.file("f", "x")
		set := []unix.Timespec{{Sec: 1234567890, Nsec: 123456789}, {Sec: -5, Nsec: 987654321}}
		c.ok(unix.UtimesNanoAt(unix.AT_FDCWD, c.path("f"), set, 0), "utimensat")
		st := c.lstat("f")
		c.eq(fmt.Sprint(st.Atim, st.Mtim), fmt.Sprint(set[0], set[1]), "times")
		c.ok(unix.UtimesNanoAt(unix.AT_FDCWD, c.path("f"), []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}, 0), "omit and now")
		st = c.lstat("f")
		c.eq(fmt.Sprint(st.Atim), fmt.Sprint(set[0]), "atime that was omitted")
		now := time.Now().Unix()
		c.that(st.Mtim.Sec > now-60 && st.Mtim.Sec < now+60, "mtime now is %d at %d", st.Mtim.Sec, now)
		c.ok(unix.Symlink("f", c.path("l")), "symlink")
		c.ok(unix.UtimesNanoAt(unix.AT_FDCWD, c.path("l"), []unix.Timespec{{Sec: 7}, {Sec: 8}}, unix.AT_SYMLINK_NOFOLLOW), "of a symlink")
		c.eq(c.lstat("l").Mtim.Sec, int64(8), "mtime of the symlink")
		c.that(c.lstat("f").Mtim.Sec != 8, "the symlink's target was changed")
	}},
	{"statx-btime", func(c *checker) {
		c.file("f", "x")
		var a, b unix.Statx_t
		c.ok(unix.Statx(unix.AT_FDCWD, c.path("f"), unix.AT_STATX_FORCE_SYNC, unix.STATX_ALL|unix.STATX_BTIME, &a), "statx")
		if a.Mask&unix.STATX_BTIME == 0 {
			panic(ended{guestproto.StatusUnsupported, "no birth time"})
		}
		c.ok(unix.UtimesNanoAt(unix.AT_FDCWD, c.path("f"), []unix.Timespec{{Sec: 7}, {Sec: 8}}, 0), "utimensat")
		c.ok(unix.Statx(unix.AT_FDCWD, c.path("f"), unix.AT_STATX_FORCE_SYNC, unix.STATX_ALL|unix.STATX_BTIME, &b), "statx")
		c.eq(b.Btime, a.Btime, "birth time after utimensat")
		c.that(a.Btime.Sec > 0, "birth time is %d", a.Btime.Sec)
	}},
	{"xattr-user", func(c *checker) { xattrs(c, "user.") }},
	{"xattr-trusted", func(c *checker) { xattrs(c, "trusted.", unix.EPERM) }},
	{"xattr-security", func(c *checker) { xattrs(c, "security.vfs", unix.EPERM) }},
	{"posix-acl", func(c *checker) {
		c.mkdir("d")
		raw := unhex(c, defaultACL)
		c.may(unix.Setxattr(c.path("d"), "system.posix_acl_default", raw, 0), "set a default ACL", unix.EPERM)
		got, err := getxattr(c.path("d"), "system.posix_acl_default")
		c.ok(err, "get it")
		c.eq(string(got), string(raw), "default ACL")
		c.file("d/f", "")
		_, err = getxattr(c.path("d/f"), "system.posix_acl_access")
		c.ok(err, "access ACL inherited")
	}},
	{"fifo", func(c *checker) {
		c.ok(unix.Mkfifo(c.path("p"), 0o644), "mkfifo")
		r := c.open("p", unix.O_RDONLY|unix.O_NONBLOCK, 0)
		w := c.open("p", unix.O_WRONLY|unix.O_NONBLOCK, 0)
		_, err := unix.Write(w, []byte("by pipe"))
		c.ok(err, "write")
		b := make([]byte, 16)
		n, err := unix.Read(r, b)
		c.ok(err, "read")
		c.eq(string(b[:n]), "by pipe", "content")
	}},
	{"socket", func(c *checker) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		c.ok(err, "socket")
		c.fds = append(c.fds, fd)
		if len(c.path("s")) > 100 {
			c.skip("path too long for a socket")
		}
		c.ok(unix.Bind(fd, &unix.SockaddrUnix{Name: c.path("s")}), "bind")
		c.ok(unix.Listen(fd, 1), "listen")
		c.eq(c.lstat("s").Mode&unix.S_IFMT, uint32(unix.S_IFSOCK), "type")
		d, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		c.ok(err, "socket")
		c.fds = append(c.fds, d)
		c.ok(unix.Connect(d, &unix.SockaddrUnix{Name: c.path("s")}), "connect")
	}},
	{"device-is-the-guests", func(c *checker) {
		// /dev/zero's number: opened, it must be the guest's device. The number 1:8 (random) would do as well.
		c.may(unix.Mknod(c.path("zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))), "mknod", unix.EPERM)
		st := c.lstat("zero")
		c.eq(st.Rdev, unix.Mkdev(1, 5), "device number")
		fd, err := unix.Open(c.path("zero"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		c.may(err, "open", unix.EACCES) // nodev
		c.fds = append(c.fds, fd)
		b := []byte("xxxxxxxx")
		n, err := unix.Read(fd, b)
		c.ok(err, "read")
		c.eq(string(b[:n]), "\x00\x00\x00\x00\x00\x00\x00\x00", "content")
		c.eq(c.fstat(fd).Mode&unix.S_IFMT, uint32(unix.S_IFCHR), "type")
	}},
	{"ioctl-flags", func(c *checker) {
		_, err := unix.IoctlGetInt(c.file("f", ""), 0x80086601) // FS_IOC_GETFLAGS
		if err != nil {
			c.errno(err, "FS_IOC_GETFLAGS", unix.ENOTTY, unix.ENOSYS, unix.EOPNOTSUPP)
		}
	}},
	{"close-errors", func(c *checker) {
		fd, err := unix.Open(c.path("f"), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
		c.ok(err, "open")
		dup, err := unix.Dup(fd)
		c.ok(err, "dup")
		c.ok(unix.Close(fd), "close")
		_, err = unix.Write(dup, []byte("x"))
		c.ok(err, "write to the other descriptor")
		c.ok(unix.Close(dup), "close of the last descriptor")
	}},
}

func unhex(c *checker, s string) []byte {
	b := make([]byte, len(s)/2)
	for i := range b {
		n, err := fmt.Sscanf(s[2*i:2*i+2], "%02x", &b[i])
		c.that(n == 1 && err == nil, "bad hex")
	}
	return b
}

// xattrs checks one namespace; refusals are errnos with which a share may decline it.
func xattrs(c *checker, prefix string, refusals ...unix.Errno) {
	c.file("f", "x")
	p := c.path("f")
	c.may(unix.Setxattr(p, prefix+"a", []byte("value"), 0), "setxattr", refusals...)
	get := func(name string) string {
		b, err := getxattr(p, prefix+name)
		c.ok(err, "getxattr")
		return string(b)
	}
	c.eq(get("a"), "value", "value")
	c.errno(unix.Setxattr(p, prefix+"a", nil, unix.XATTR_CREATE), "XATTR_CREATE of one that is there", unix.EEXIST)
	c.errno(unix.Setxattr(p, prefix+"none", nil, unix.XATTR_REPLACE), "XATTR_REPLACE of nothing", unix.ENODATA)
	c.ok(unix.Setxattr(p, prefix+"empty", nil, 0), "empty value")
	c.eq(get("empty"), "", "empty value")
	big := strings.Repeat("v", 2000)
	c.ok(unix.Setxattr(p, prefix+"big", []byte(big), 0), "2,000 bytes")
	c.eq(get("big"), big, "2,000 bytes")
	_, err := unix.Getxattr(p, prefix+"big", make([]byte, 10))
	c.errno(err, "getxattr into too small a buffer", unix.ERANGE)
	n, err := unix.Getxattr(p, prefix+"big", nil)
	c.ok(err, "size of the value")
	c.eq(n, 2000, "size of the value")
	_, err = unix.Getxattr(p, prefix+"none", make([]byte, 10))
	c.errno(err, "getxattr of nothing", unix.ENODATA)
	b := make([]byte, 4096)
	n, err = unix.Listxattr(p, b)
	c.ok(err, "listxattr")
	list := strings.Split(strings.TrimRight(string(b[:n]), "\x00"), "\x00")
	for _, name := range []string{"a", "big", "empty"} {
		c.that(slices.Contains(list, prefix+name), "listxattr lacks %s: %q", prefix+name, list)
	}
	c.ok(unix.Removexattr(p, prefix+"a"), "removexattr")
	c.errno(unix.Removexattr(p, prefix+"a"), "removexattr twice", unix.ENODATA)
}

// lockChecks are about locks between open file descriptions of one guest.
var lockChecks = []check{
	{"flock", func(c *checker) {
		c.file("f", "x")
		a, b := c.open("f", unix.O_RDWR, 0), c.open("f", unix.O_RDWR, 0)
		c.ok(unix.Flock(a, unix.LOCK_EX), "lock")
		c.errno(unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB), "second exclusive lock", unix.EAGAIN)
		c.ok(unix.Flock(a, unix.LOCK_SH), "downgrade")
		c.ok(unix.Flock(b, unix.LOCK_SH|unix.LOCK_NB), "second shared lock")
		c.ok(unix.Flock(a, unix.LOCK_UN), "unlock")
		c.ok(unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB), "lock after unlock")
	}},
	{"ofd-lock", func(c *checker) {
		c.file("f", "0123456789")
		a, b := c.open("f", unix.O_RDWR, 0), c.open("f", unix.O_RDWR, 0)
		lock := func(fd int, typ int16, start, n int64) error {
			return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: start, Len: n})
		}
		c.ok(lock(a, unix.F_WRLCK, 0, 5), "lock 0-4")
		c.errno(lock(b, unix.F_RDLCK, 4, 2), "overlapping lock", unix.EAGAIN, unix.EACCES)
		c.ok(lock(b, unix.F_WRLCK, 5, 5), "lock beside it")
		get := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 10}
		c.ok(unix.FcntlFlock(uintptr(b), unix.F_OFD_GETLK, &get), "get lock")
		c.eq(fmt.Sprint(get.Type, get.Start, get.Len), fmt.Sprint(unix.F_WRLCK, 0, 5), "the lock in the way")
		c.ok(lock(a, unix.F_UNLCK, 0, 0), "unlock")
		c.ok(lock(b, unix.F_WRLCK, 0, 5), "lock after unlock")
	}},
	{"lock-ends-with-close", func(c *checker) {
		c.file("f", "x")
		a, b := c.open("f", unix.O_RDWR, 0), c.open("f", unix.O_RDWR, 0)
		c.ok(unix.Flock(a, unix.LOCK_EX), "lock")
		c.ok(unix.Close(a), "close")
		for end := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			err := unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB)
			if err == nil {
				return
			}
			if !errors.Is(err, unix.EAGAIN) || time.Now().After(end) {
				c.fail("lock after the holder's close: %v", err)
			}
		}
	}},
}
