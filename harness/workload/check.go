package workload

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// check is one thing that a local file system does.
type check struct {
	name string
	run  func(c *checker)
}

// checker gives a check its directory and its ways to end. It is used by one goroutine.
type checker struct {
	dir  string
	env  *Env
	fds  []int
	errn string
}

// ended is how a check ends early: a panic value, caught by one.
type ended struct {
	status guestproto.Status
	detail string
}

// runChecks runs the checks named (none: all) in fresh directories under dir.
func runChecks(list []check, names []string, dir string, e *Env) []guestproto.Check {
	out := []guestproto.Check{}
	for i, k := range list {
		if len(names) > 0 && !slices.Contains(names, k.name) {
			continue
		}
		e.progress(k.name, int64(i), int64(len(list)))
		out = append(out, runCheck(k, filepath.Join(dir, k.name), e))
	}
	for _, n := range names {
		if !slices.ContainsFunc(list, func(k check) bool { return k.name == n }) {
			out = append(out, guestproto.Check{Name: n, Status: guestproto.StatusFail, Detail: "there is no such check"})
		}
	}
	return out
}

func runCheck(k check, dir string, e *Env) guestproto.Check {
	defer os.RemoveAll(dir)
	return runAlone(check{k.name, func(c *checker) {
		c.dir = dir
		if err := os.RemoveAll(dir); err != nil {
			c.fail("remove leftovers: %v", err)
		}
		c.ok(os.MkdirAll(dir, 0o755), "mkdir")
		k.run(c)
	}}, e)
}

// runAlone runs a check that has no directory of its own.
func runAlone(k check, e *Env) (r guestproto.Check) {
	r = guestproto.Check{Name: k.name, Status: guestproto.StatusPass}
	start := time.Now()
	c := &checker{env: e}
	defer func() { c.finish(&r, start, recover()) }()
	k.run(c)
	return r
}

// finish notes how a check ended: p is what it panicked with, or nil.
func (c *checker) finish(r *guestproto.Check, start time.Time, p any) {
	for _, fd := range c.fds {
		_ = unix.Close(fd) // those that a check closed itself give EBADF
	}
	r.Seconds, r.Errno = time.Since(start).Seconds(), c.errn
	if p == nil {
		return
	}
	end, ok := p.(ended)
	if !ok {
		end = ended{guestproto.StatusFail, fmt.Sprintf("panic: %v", p)}
	}
	r.Status, r.Detail = end.status, end.detail
}

func (c *checker) fail(format string, args ...any) {
	panic(ended{guestproto.StatusFail, fmt.Sprintf(format, args...)})
}

func (c *checker) skip(format string, args ...any) {
	panic(ended{guestproto.StatusSkip, fmt.Sprintf(format, args...)})
}

// ok ends the check unless err is nil: as unsupported, where the errno says so, else as a failure.
func (c *checker) ok(err error, what string) {
	if err == nil {
		return
	}
	c.errn = errnoName(err)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		panic(ended{guestproto.StatusUnsupported, what + ": " + c.errn})
	}
	c.fail("%s: %v", what, err)
}

// may is ok for operations that a share may refuse as a matter of policy, with one of these errnos.
func (c *checker) may(err error, what string, refusals ...unix.Errno) {
	for _, no := range refusals {
		if errors.Is(err, no) {
			c.errn = errnoName(err)
			panic(ended{guestproto.StatusUnsupported, what + ": " + c.errn})
		}
	}
	c.ok(err, what)
}

// errno fails the check unless err is one of the errnos.
func (c *checker) errno(err error, what string, want ...unix.Errno) {
	for _, no := range want {
		if errors.Is(err, no) {
			return
		}
	}
	c.errn = errnoName(err)
	var names []string
	for _, no := range want {
		names = append(names, unix.ErrnoName(no))
	}
	got := c.errn
	if got == "" {
		got = "success"
	}
	c.fail("%s: got %s, want %s", what, got, strings.Join(names, " or "))
}

func (c *checker) eq(got, want any, what string) {
	if got != want {
		c.fail("%s: got %s, want %s", what, short(got), short(want))
	}
}

func (c *checker) that(ok bool, format string, args ...any) {
	if !ok {
		c.fail(format, args...)
	}
}

func short(v any) string {
	s := fmt.Sprintf("%#v", v)
	if len(s) > 120 {
		s = s[:60] + " … " + s[len(s)-50:]
	}
	return s
}

func (c *checker) path(name string) string { return filepath.Join(c.dir, name) }

// open opens a file of the check; it is closed at the end.
func (c *checker) open(name string, flags int, mode uint32) int {
	fd, err := unix.Open(c.path(name), flags|unix.O_CLOEXEC, mode)
	c.ok(err, "open "+name)
	c.fds = append(c.fds, fd)
	return fd
}

// file makes a file with a content and returns a descriptor for reading and writing at its start.
func (c *checker) file(name, content string) int {
	fd := c.open(name, unix.O_CREAT|unix.O_TRUNC|unix.O_RDWR, 0o644)
	n, err := unix.Pwrite(fd, []byte(content), 0)
	c.ok(err, "write "+name)
	c.eq(n, len(content), "bytes written to "+name)
	return fd
}

func (c *checker) mkdir(name string) { c.ok(unix.Mkdir(c.path(name), 0o755), "mkdir "+name) }

// read returns a file's content through a fresh open.
func (c *checker) read(name string) string {
	b, err := os.ReadFile(c.path(name))
	c.ok(err, "read "+name)
	return string(b)
}

// readFD returns what a descriptor's file holds from its start.
func (c *checker) readFD(fd int) string {
	var out bytes.Buffer
	b := make([]byte, 64<<10)
	for off := int64(0); ; {
		n, err := unix.Pread(fd, b, off)
		c.ok(err, "pread")
		if n == 0 {
			return out.String()
		}
		out.Write(b[:n])
		off += int64(n)
	}
}

func (c *checker) lstat(name string) unix.Stat_t {
	var st unix.Stat_t
	c.ok(unix.Lstat(c.path(name), &st), "lstat "+name)
	return st
}

func (c *checker) fstat(fd int) unix.Stat_t {
	var st unix.Stat_t
	c.ok(unix.Fstat(fd, &st), "fstat")
	return st
}

// names lists a directory, sorted.
func (c *checker) names(name string) []string {
	f, err := os.Open(c.path(name))
	c.ok(err, "open directory "+name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil && err != io.EOF {
		c.ok(err, "read directory "+name)
	}
	slices.Sort(names)
	return names
}
