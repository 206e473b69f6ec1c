package workload

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// Pattern fills p with the bytes at offset off of the stream with that seed; off and len(p) are multiples of 8 but at the end. The host can make the
// same bytes, and no two blocks of a stream are equal, so a misplaced block is seen.
func Pattern(p []byte, seed, off int64) {
	const chunk = 4096
	for len(p) > 0 {
		n := min(len(p), chunk-int(off%chunk))
		r := rand.New(rand.NewPCG(uint64(seed), uint64(off/chunk)))
		for range off % chunk / 8 {
			r.Uint64()
		}
		for i := 0; i < n; i += 8 {
			v := r.Uint64()
			for j := i; j < min(i+8, n); j++ {
				p[j] = byte(v)
				v >>= 8
			}
		}
		p, off = p[n:], off+int64(n)
	}
}

func (e *Env) bigIO(a guestproto.BigIOArgs) (guestproto.BigIO, error) {
	var r guestproto.BigIO
	if a.Bytes == 0 {
		a.Bytes = 128 << 20
	}
	if a.Block == 0 {
		a.Block = 1 << 20
	}
	if a.Name == "" {
		a.Name = "big"
	}
	if a.Bytes < 0 || a.Block < 512 || a.Block%512 != 0 {
		return r, fmt.Errorf("%d bytes in blocks of %d: want blocks that are multiples of 512", a.Bytes, a.Block)
	}
	p, err := e.place(a.Where, guestproto.CallBigIO)
	if err != nil {
		return r, err
	}
	path := filepath.Join(p.dir, a.Name)
	r.Path = filepath.Join(p.rel, a.Name)
	// An anonymous mapping is aligned to pages, as O_DIRECT wants.
	buf, err := unix.Mmap(-1, 0, a.Block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return r, fmt.Errorf("make a buffer: %w", err)
	}
	defer unix.Munmap(buf)
	if !a.ReadOnly {
		if step, err := e.writeBig(path, buf, a, &r); err != nil {
			r.Failed, r.Errno = step, errnoName(err)
			return r, nil
		}
	}
	if err := dropCaches(); err != nil && !a.Local {
		return r, err
	}
	if step, err := e.readBig(path, buf, a, &r); err != nil {
		r.Failed, r.Errno = step, errnoName(err)
	}
	return r, nil
}

func (e *Env) writeBig(path string, buf []byte, a guestproto.BigIOArgs, r *guestproto.BigIO) (string, error) {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_CLOEXEC|direct(a.Direct), 0o644)
	if err != nil {
		return "create", err
	}
	defer unix.Close(fd)
	h := sha256.New()
	start := time.Now()
	for off := int64(0); off < a.Bytes; {
		b := buf[:min(int64(len(buf)), a.Bytes-off)]
		Pattern(b, a.Seed, off)
		h.Write(b)
		for done := 0; done < len(b); {
			n, err := unix.Pwrite(fd, b[done:], off+int64(done))
			if err == nil && n == 0 {
				err = io.ErrShortWrite
			}
			if err != nil {
				return fmt.Sprintf("write at %d", off+int64(done)), err
			}
			done += n
		}
		off += int64(len(b))
		r.Bytes = off
		e.progress("write", off, a.Bytes)
	}
	r.WriteS = time.Since(start).Seconds()
	start = time.Now()
	if err := unix.Fsync(fd); err != nil {
		return "fsync", err
	}
	r.FsyncS = time.Since(start).Seconds()
	r.WroteSHA256 = hex.EncodeToString(h.Sum(nil))
	return "", nil
}

func (e *Env) readBig(path string, buf []byte, a guestproto.BigIOArgs, r *guestproto.BigIO) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|direct(a.Direct), 0)
	if err != nil {
		return "open", err
	}
	defer unix.Close(fd)
	h := sha256.New()
	start := time.Now()
	off := int64(0)
	for {
		n, err := unix.Pread(fd, buf, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Sprintf("read at %d", off), err
		}
		if n == 0 {
			break
		}
		h.Write(buf[:n])
		off += int64(n)
		e.progress("read", off, a.Bytes)
	}
	r.ReadS, r.Bytes = time.Since(start).Seconds(), off
	r.ReadSHA256 = hex.EncodeToString(h.Sum(nil))
	return "", nil
}

func direct(on bool) int {
	if on {
		return unix.O_DIRECT
	}
	return 0
}

// dropCaches makes what is seen next come from the share: pages, dentries and inodes are dropped (proc(5), drop_caches).
func dropCaches() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("drop the guest's caches: %w", err)
	}
	return nil
}
