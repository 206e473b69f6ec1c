package workload

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

func (e *Env) durability(a guestproto.DurabilityArgs) (guestproto.Durability, error) {
	var r guestproto.Durability
	p, err := e.place(a.Where, guestproto.CallDurability)
	if err != nil {
		return r, err
	}
	r.Checks = runChecks(durabilityChecks, nil, p.dir, e)
	if a.FillBytes > 0 {
		e.fill(p, a.FillBytes, &r)
	}
	return r, nil
}

var durabilityChecks = []check{
	{"fsync-file", func(c *checker) { c.ok(unix.Fsync(c.file("f", "data")), "fsync") }},
	{"fdatasync-file", func(c *checker) { c.ok(unix.Fdatasync(c.file("f", "data")), "fdatasync") }},
	{"fsync-read-only-fd", func(c *checker) {
		c.file("f", "data")
		c.ok(unix.Fsync(c.open("f", unix.O_RDONLY, 0)), "fsync")
	}},
	{"fsync-dir", func(c *checker) {
		c.file("f", "data")
		c.ok(unix.Fsync(c.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)), "fsync of a directory")
	}},
	{"syncfs", func(c *checker) {
		c.file("f", "data")
		c.ok(unix.Syncfs(c.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)), "syncfs")
	}},
	{"sync-file-range", func(c *checker) {
		c.ok(unix.SyncFileRange(c.file("f", "data"), 0, 4, 2), "sync_file_range")
	}},
	{"o-sync-write", func(c *checker) {
		fd := c.open("f", unix.O_CREAT|unix.O_RDWR|unix.O_SYNC, 0o644)
		n, err := unix.Write(fd, []byte("data"))
		c.ok(err, "write")
		c.eq(n, 4, "bytes written")
	}},
	{"fsync-unlinked", func(c *checker) {
		fd := c.file("f", "data")
		c.ok(unix.Unlink(c.path("f")), "unlink")
		c.ok(unix.Fsync(fd), "fsync of an unlinked file")
	}},
	{"msync", func(c *checker) {
		fd := c.file("f", string(make([]byte, 8192)))
		m, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		c.ok(err, "mmap")
		defer unix.Munmap(m)
		copy(m[4090:], "across")
		c.ok(unix.Msync(m, unix.MS_SYNC), "msync")
		c.eq(c.read("f")[4090:4096], "across", "content after msync")
	}},
}

// fill writes and fsyncs block after block until an error, and counts what was acknowledged.
func (e *Env) fill(p place, limit int64, r *guestproto.Durability) {
	r.FillPath = filepath.Join(p.rel, "fill")
	fd, err := unix.Open(filepath.Join(p.dir, "fill"), unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		r.FillErrno = errnoName(err)
		return
	}
	defer unix.Close(fd)
	h := sha256.New()
	b := make([]byte, 64<<10)
	for r.Filled < limit {
		Pattern(b, 1, r.Filled)
		n, err := unix.Pwrite(fd, b, r.Filled)
		if err == nil {
			err = unix.Fsync(fd)
		}
		if err != nil {
			r.FillErrno = errnoName(err)
			break
		}
		h.Write(b[:n])
		r.Filled += int64(n)
		if n < len(b) {
			break // a short write: the next one would say why
		}
		e.progress("fill", r.Filled, limit)
	}
	r.FillSHA256 = hex.EncodeToString(h.Sum(nil))
}
