package workload

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// fsx does random data operations on one file and keeps what it has to hold in memory. Each byte that is read, by whatever way,
// must be the one written last.
func (e *Env) fsx(a guestproto.FsxArgs) (guestproto.Fsx, error) {
	r := guestproto.Fsx{ByOp: map[string]int{}}
	if a.Ops == 0 {
		a.Ops = 2000
	}
	if a.MaxBytes == 0 {
		a.MaxBytes = 256 << 10
	}
	p, err := e.place(a.Where, guestproto.CallFsx)
	if err != nil {
		return r, err
	}
	x := &fsxFile{
		rng: rand.New(rand.NewPCG(uint64(a.Seed), 1)), path: filepath.Join(p.dir, "data"), max: a.MaxBytes, args: a,
		model: make([]byte, 0, a.MaxBytes), buf: aligned(a.MaxBytes + fsxBlock),
	}
	r.Path = filepath.Join(p.rel, "data")
	if err := os.Remove(x.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return r, err
	}
	if err := x.open(); err != nil {
		return r, err
	}
	defer func() { unix.Close(x.fd) }()
	start := time.Now()
	for i := range a.Ops {
		e.progress("fsx", int64(i), int64(a.Ops))
		k := fsxOps[x.rng.IntN(len(fsxOps))]
		if a.NoMmap && (k.name == "mapread" || k.name == "mapwrite") || slices.Contains(r.Unsupported, k.name) {
			continue
		}
		err := k.run(x)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			r.Unsupported = append(r.Unsupported, k.name)
			continue
		}
		if err == nil && i%64 == 63 {
			err = x.verify()
		}
		if err != nil {
			r.Mismatch = fmt.Sprintf("operation %d, %s: %v", i, k.name, err)
			r.Trace = x.trace
			break
		}
		r.Ops++
		r.ByOp[k.name]++
	}
	if r.Mismatch == "" {
		if err := errors.Join(x.verify(), unix.Fsync(x.fd)); err != nil {
			r.Mismatch = "at the end: " + err.Error()
		}
	}
	r.Seconds, r.Size = time.Since(start).Seconds(), int64(len(x.model))
	r.SHA256, err = hashPath(x.path)
	return r, err
}

// fsxBlock is what O_DIRECT wants addresses, offsets and lengths to be multiples of.
const fsxBlock = 4096

type fsxFile struct {
	rng   *rand.Rand
	path  string
	fd    int
	max   int
	args  guestproto.FsxArgs
	model []byte
	buf   []byte // aligned
	fresh int64
	trace []string
}

// aligned makes a buffer that starts at a page: a mapping does.
func aligned(n int) []byte {
	b, err := unix.Mmap(-1, 0, (n+fsxBlock-1)&^(fsxBlock-1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return make([]byte, n)
	}
	return b
}

func (x *fsxFile) open() (err error) {
	flags := unix.O_RDWR | unix.O_CREAT | unix.O_CLOEXEC
	if x.args.Direct {
		flags |= unix.O_DIRECT
	}
	x.fd, err = unix.Open(x.path, flags, 0o644)
	return err
}

func (x *fsxFile) say(format string, args ...any) {
	if len(x.trace) == 30 {
		x.trace = x.trace[1:]
	}
	x.trace = append(x.trace, fmt.Sprintf(format, args...))
}

// span draws a part of a file of at most limit bytes; with O_DIRECT it is of whole blocks.
func (x *fsxFile) span(limit int) (off, n int) {
	if limit <= 0 {
		return 0, 0
	}
	off = x.rng.IntN(limit)
	n = 1 + x.rng.IntN(min(limit-off, 64<<10))
	if x.args.Direct {
		off &^= fsxBlock - 1
		n = max(fsxBlock, n&^(fsxBlock-1))
	}
	return off, n
}

// grow makes the model reach size, with zeroes.
func (x *fsxFile) grow(size int) {
	if size > len(x.model) {
		old := len(x.model)
		x.model = x.model[:size]
		clear(x.model[old:])
	}
}

// content makes bytes that were never written before.
func (x *fsxFile) content(n int) []byte {
	x.fresh++
	Pattern(x.buf[:n], x.args.Seed*1_000_003+x.fresh, 0)
	return x.buf[:n]
}

func (x *fsxFile) compare(got []byte, off int) error {
	want := x.model[off : off+len(got)]
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for got[at] == want[at] {
		at++
	}
	bad := 0
	for i := range got {
		if got[i] != want[i] {
			bad++
		}
	}
	return fmt.Errorf("byte %#x is %#02x and has to be %#02x; %d of %d bytes from %#x are wrong, the file has %#x", off+at, got[at], want[at], bad, len(got), off, len(x.model))
}

// verify reads the whole file and asks for its size.
func (x *fsxFile) verify() error {
	var st unix.Stat_t
	if err := unix.Fstat(x.fd, &st); err != nil {
		return err
	}
	if st.Size != int64(len(x.model)) {
		return fmt.Errorf("the size is %#x and has to be %#x", st.Size, len(x.model))
	}
	b, err := os.ReadFile(x.path)
	if err != nil {
		return err
	}
	if len(b) != len(x.model) {
		return fmt.Errorf("%#x bytes can be read, there have to be %#x", len(b), len(x.model))
	}
	return x.compare(b, 0)
}

type fsxOp struct {
	name string
	run  func(*fsxFile) error
}

var fsxOps = []fsxOp{
	{"read", (*fsxFile).read}, {"read", (*fsxFile).read},
	{"write", (*fsxFile).write}, {"write", (*fsxFile).write},
	{"mapread", (*fsxFile).mapread},
	{"mapwrite", (*fsxFile).mapwrite},
	{"truncate", (*fsxFile).truncate},
	{"fallocate", func(x *fsxFile) error { return x.fallocate(0) }},
	{"punch", func(x *fsxFile) error { return x.fallocate(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE) }},
	{"zero", func(x *fsxFile) error { return x.fallocate(unix.FALLOC_FL_ZERO_RANGE) }},
	{"copy", (*fsxFile).copy},
	{"reopen", (*fsxFile).reopen},
	{"append", (*fsxFile).append},
	{"sync", func(x *fsxFile) error { x.say("fdatasync"); return unix.Fdatasync(x.fd) }},
}

func (x *fsxFile) read() error {
	off, n := x.span(len(x.model))
	x.say("read %#x+%#x of %#x", off, n, len(x.model))
	got, err := unix.Pread(x.fd, x.buf[:n], int64(off))
	if err != nil {
		return err
	}
	if want := max(0, min(n, len(x.model)-off)); got != want {
		return fmt.Errorf("%#x bytes came, there are %#x", got, want)
	}
	return x.compare(x.buf[:got], off)
}

func (x *fsxFile) write() error {
	off, n := x.span(x.max)
	n = min(n, x.max-off)
	if n == 0 {
		return nil
	}
	x.say("write %#x+%#x, size was %#x", off, n, len(x.model))
	b := x.content(n)
	if got, err := unix.Pwrite(x.fd, b, int64(off)); err != nil || got != n {
		return fmt.Errorf("%d of %d bytes: %w", got, n, err)
	}
	x.grow(off + n)
	copy(x.model[off:], b)
	return nil
}

// append writes at the end through a descriptor of its own.
func (x *fsxFile) append() error {
	n := min(1+x.rng.IntN(8192), x.max-len(x.model))
	if n == 0 || x.args.Direct {
		return nil
	}
	x.say("append %#x to %#x", n, len(x.model))
	fd, err := unix.Open(x.path, unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	b := x.content(n)
	got, err := unix.Write(fd, b)
	if err = errors.Join(err, unix.Close(fd)); err != nil || got != n {
		return fmt.Errorf("%d of %d bytes: %w", got, n, err)
	}
	old := len(x.model)
	x.grow(old + n)
	copy(x.model[old:], b)
	return nil
}

func (x *fsxFile) mapping(off, n, prot int, f func([]byte) error) error {
	start := off &^ (fsxBlock - 1)
	m, err := unix.Mmap(x.fd, int64(start), off-start+n, prot, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	err = f(m[off-start:])
	if prot&unix.PROT_WRITE != 0 && x.rng.IntN(2) == 0 {
		err = errors.Join(err, unix.Msync(m, unix.MS_SYNC))
	}
	return errors.Join(err, unix.Munmap(m))
}

func (x *fsxFile) mapread() error {
	off, n := x.span(len(x.model))
	n = min(n, len(x.model)-off)
	if n <= 0 {
		return nil
	}
	x.say("read a mapping %#x+%#x", off, n)
	return x.mapping(off, n, unix.PROT_READ, func(m []byte) error { return x.compare(m, off) })
}

func (x *fsxFile) mapwrite() error {
	off, n := x.span(len(x.model))
	n = min(n, len(x.model)-off)
	if n <= 0 {
		return nil
	}
	x.say("write a mapping %#x+%#x", off, n)
	b := x.content(n)
	copy(x.model[off:], b)
	return x.mapping(off, n, unix.PROT_READ|unix.PROT_WRITE, func(m []byte) error { copy(m, b); return nil })
}

func (x *fsxFile) truncate() error {
	size := x.rng.IntN(x.max + 1)
	if x.args.Direct {
		size &^= fsxBlock - 1
	}
	byPath := x.rng.IntN(2) == 0
	x.say("truncate %#x to %#x, by path: %v", len(x.model), size, byPath)
	var err error
	if byPath {
		err = unix.Truncate(x.path, int64(size))
	} else {
		err = unix.Ftruncate(x.fd, int64(size))
	}
	if err != nil {
		return err
	}
	x.grow(size)
	x.model = x.model[:size]
	return nil
}

func (x *fsxFile) fallocate(mode uint32) error {
	off, n := x.span(x.max)
	n = min(n, x.max-off)
	if n == 0 {
		return nil
	}
	x.say("fallocate mode %#x %#x+%#x of %#x", mode, off, n, len(x.model))
	if err := unix.Fallocate(x.fd, mode, int64(off), int64(n)); err != nil {
		return err
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		x.grow(off + n)
	}
	if mode != 0 && off < len(x.model) {
		clear(x.model[off:min(off+n, len(x.model))])
	}
	return nil
}

// copy copies within the file, between parts that do not overlap.
func (x *fsxFile) copy() error {
	off, n := x.span(len(x.model))
	n = min(n, len(x.model)-off, 32<<10)
	if n <= 0 {
		return nil
	}
	to := x.rng.IntN(x.max)
	if x.args.Direct {
		to &^= fsxBlock - 1
	}
	n = min(n, x.max-to)
	if to < off+n && off < to+n || n == 0 {
		return nil
	}
	x.say("copy %#x+%#x to %#x of %#x", off, n, to, len(x.model))
	for n > 0 {
		in, out := int64(off), int64(to)
		got, err := unix.CopyFileRange(x.fd, &in, x.fd, &out, n, 0)
		if err != nil {
			return err
		}
		if got == 0 {
			return errors.New("nothing more was copied")
		}
		x.grow(to + got)
		copy(x.model[to:to+got], x.model[off:off+got])
		off, to, n = off+got, to+got, n-got
	}
	return nil
}

// reopen closes the file, which the page cache forgets half the time, and opens it again.
func (x *fsxFile) reopen() error {
	drop := x.rng.IntN(2) == 0
	x.say("reopen, without what is cached: %v", drop)
	if drop {
		if err := errors.Join(unix.Fdatasync(x.fd), unix.Fadvise(x.fd, 0, 0, unix.FADV_DONTNEED)); err != nil {
			return err
		}
	}
	if err := unix.Close(x.fd); err != nil {
		return err
	}
	return x.open()
}
