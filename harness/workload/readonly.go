package workload

import (
	"errors"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// readonly tries each kind of change on what the host has put into a directory of a share that is not to be changed. It makes no
// directories of its own, as the other calls do.
func (e *Env) readonly(a guestproto.ReadonlyArgs) (guestproto.Readonly, error) {
	r := guestproto.Readonly{Checks: []guestproto.Check{}}
	root := e.localDir()
	if !a.Local {
		m, err := e.Shares.find(a.Share)
		if err != nil {
			return r, err
		}
		root = m.Dir
	}
	dir := filepath.Join(root, filepath.Clean("/"+a.Dir))
	for _, k := range readonlyChecks(a.Content) {
		r.Checks = append(r.Checks, runCheckIn(k, dir, e))
	}
	return r, nil
}

// runCheckIn is runCheck in a directory that is there, and stays as it is.
func runCheckIn(k check, dir string, e *Env) (r guestproto.Check) {
	r = guestproto.Check{Name: k.name, Status: guestproto.StatusPass}
	c := &checker{dir: dir, env: e}
	start := time.Now()
	defer func() {
		c.finish(&r, start, recover())
	}()
	k.run(c)
	return r
}

func readonlyChecks(content string) []check {
	refused := func(name string, change func(c *checker) error) check {
		return check{name, func(c *checker) { c.errno(change(c), name, unix.EROFS) }}
	}
	openFor := func(name string, flags int) check {
		return refused("open-"+name, func(c *checker) error {
			fd, err := unix.Open(c.path("file"), flags|unix.O_CLOEXEC, 0o644)
			if err == nil {
				unix.Close(fd)
			}
			return err
		})
	}
	times := []unix.Timespec{{Sec: 1}, {Sec: 2}}
	return []check{
		openFor("write", unix.O_WRONLY),
		openFor("read-write", unix.O_RDWR),
		openFor("append", unix.O_WRONLY|unix.O_APPEND),
		openFor("truncate", unix.O_WRONLY|unix.O_TRUNC),
		refused("create", func(c *checker) error {
			fd, err := unix.Open(c.path("new-create"), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}),
		refused("tmpfile", func(c *checker) error {
			fd, err := unix.Open(c.path("dir"), unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o644)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}),
		refused("mkdir", func(c *checker) error { return unix.Mkdir(c.path("new-mkdir"), 0o755) }),
		refused("mknod", func(c *checker) error { return unix.Mknod(c.path("new-mknod"), unix.S_IFIFO|0o644, 0) }),
		refused("symlink", func(c *checker) error { return unix.Symlink("file", c.path("new-symlink")) }),
		refused("link", func(c *checker) error { return unix.Link(c.path("file"), c.path("new-link")) }),
		refused("rmdir", func(c *checker) error { return unix.Rmdir(c.path("dir/inner")) }),
		refused("truncate", func(c *checker) error { return unix.Truncate(c.path("file"), 1) }),
		refused("chmod", func(c *checker) error { return unix.Chmod(c.path("file"), 0o600) }),
		refused("chown", func(c *checker) error { return unix.Chown(c.path("file"), 1, 1) }),
		refused("utimes", func(c *checker) error { return unix.UtimesNanoAt(unix.AT_FDCWD, c.path("file"), times, 0) }),
		refused("setxattr", func(c *checker) error { return unix.Setxattr(c.path("file"), "user.a", []byte("x"), 0) }),
		refused("removexattr", func(c *checker) error { return unix.Removexattr(c.path("file"), "user.a") }),
		refused("exchange", func(c *checker) error {
			return unix.Renameat2(unix.AT_FDCWD, c.path("file"), unix.AT_FDCWD, c.path("link"), unix.RENAME_EXCHANGE)
		}),
		refused("rename", func(c *checker) error { return unix.Rename(c.path("file"), c.path("new-rename")) }),
		refused("unlink", func(c *checker) error { return unix.Unlink(c.path("file")) }),
		{"reads", func(c *checker) {
			c.eq(c.read("file"), content, "content")
			c.eq(c.read("link"), content, "content by the link")
			c.eq(strings.Join(c.names("dir"), " "), "inner", "names")
			c.ok(unix.Fsync(c.open("file", unix.O_RDONLY, 0)), "fsync")
		}},
		{"as-it-was", func(c *checker) {
			c.eq(strings.Join(c.names("."), " "), "dir file link", "names")
			c.eq(c.lstat("file").Mode&0o7777, uint32(0o666), "mode")
		}},
		{"atime", func(c *checker) {
			// The host has just made them, so that reading moves their time under relatime, too.
			before := [3]unix.Timespec{c.hostAtime("file"), c.hostAtime("dir"), c.hostAtime("link")}
			time.Sleep(20 * time.Millisecond) // the kernel's clock for times has steps
			_ = c.read("file")
			_ = c.names("dir")
			if _, err := unix.Readlink(c.path("link"), make([]byte, 100)); err != nil {
				c.ok(err, "readlink")
			}
			c.eq([3]unix.Timespec{c.hostAtime("file"), c.hostAtime("dir"), c.hostAtime("link")}, before, "times of access")
		}},
	}
}

// hostAtime is when the host says that a file was last read.
func (c *checker) hostAtime(name string) unix.Timespec {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, c.path(name), unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_FORCE_SYNC, unix.STATX_ATIME, &st)
	if errors.Is(err, unix.ENOSYS) {
		c.skip("statx: %v", err)
	}
	c.ok(err, "statx "+name)
	return unix.Timespec{Sec: st.Atime.Sec, Nsec: int64(st.Atime.Nsec)}
}
