package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// program is a lane in the making. What goes wrong while it is written down comes out of job.
type program struct {
	s    *session
	lane lane
	err  error
}

// step appends a request; before, if not nil, fills it in each time.
func (p *program) step(r fe.Request, before func(*step)) *step {
	st, err := p.s.prepare(r)
	if err != nil {
		p.err = err
		return &step{}
	}
	if before != nil {
		st.before = func() { before(st) }
	}
	p.lane.steps = append(p.lane.steps, st)
	return st
}

// job is the finished program; items says what a pass of it counts for.
func (p *program) job(items func() int) (*job, error) {
	if p.err != nil {
		return nil, p.err
	}
	return &job{lanes: []*lane{&p.lane}, items: items}, nil
}

func node(b []byte) uint64        { return binary.LittleEndian.Uint64(b) }
func putNode(b []byte, id uint64) { binary.LittleEndian.PutUint64(b, id) }

// references are nodes to be forgotten, as BATCH_FORGET wants them.
type references struct{ b []byte }

func newReferences(n int) *references { return &references{make([]byte, 0, 16*n)} }

// add is to be called no more than newReferences was told.
func (r *references) add(id uint64) {
	r.b = binary.LittleEndian.AppendUint64(r.b, id)
	r.b = binary.LittleEndian.AppendUint64(r.b, 1)
}

// forget appends a step that forgets all of r, off the clock.
func (p *program) forget(r *references) {
	batch := min(1000, cap(r.b)/16)
	st := p.step(fe.Request{Op: fe.OpBatchForget, Args: fe.Body(nil).U32(uint32(batch), 0), Data: make([]byte, 16*batch)}, func(st *step) { r.b = st.fill(r.b, batch) })
	st.after = func() bool { return len(r.b) > 0 }
	st.offClock = true
}

// fill moves the last batch entries of nodes (node, count) into a BATCH_FORGET's data and returns the others. What is missing is
// filled up with an entry that forgets nothing.
func (st *step) fill(nodes []byte, batch int) []byte {
	at := max(0, len(nodes)-16*batch)
	rest := nodes[at:]
	for _, page := range st.data {
		k := copy(page, rest)
		rest = rest[k:]
		for ; k < len(page); k += 16 {
			binary.LittleEndian.PutUint64(page[k:], 1<<40)
			binary.LittleEndian.PutUint64(page[k+8:], 0)
		}
	}
	return nodes[:at]
}

// listing is OPENDIR, READDIRPLUS until nothing is left, RELEASEDIR.
type listing struct {
	release *step
	seen    int // entries so far; the caller's to reset
}

// list appends the listing of the directory that *dir is by then. The nodes that it looks up go to known, if that is not nil.
func (p *program) list(dir *uint64, known *references) *listing {
	l := &listing{}
	var off uint64
	open := p.step(fe.Request{Op: fe.OpOpendir, Args: fe.Body(nil).U32(unix.O_RDONLY|unix.O_DIRECTORY, 0), OutArgs: fe.OpenOutSize},
		func(st *step) { putNode(st.node, *dir); off = 0 })
	list := p.step(fe.Request{Op: fe.OpReaddirplus, Args: fe.ReadArgs(0, 0, 4096), OutData: 4096}, func(st *step) {
		putNode(st.node, *dir)
		copy(st.args, open.out[:8])
		binary.LittleEndian.PutUint64(st.args[8:], off)
	})
	list.after = func() bool {
		n := int(list.chain.Used) - fe.OutHeaderSize
		b := list.out
		for at := 0; at+fe.EntrySize+24 <= n; {
			id := node(b[at:])
			h := b[at+fe.EntrySize:]
			off = binary.LittleEndian.Uint64(h[8:])
			at += (fe.EntrySize + 24 + int(binary.LittleEndian.Uint32(h[16:])) + 7) &^ 7
			l.seen++
			if id != 0 && known != nil {
				known.add(id)
			}
		}
		return n > 0
	}
	l.release = p.step(fe.Request{Op: fe.OpReleasedir, Args: handleArgs()}, func(st *step) {
		putNode(st.node, *dir)
		copy(st.args, open.out[:8])
	})
	return l
}

// errWarm says why nothing is measured without a cache.
var errWarm = errors.New("not cold: this file system is its own cache")

// coldJob reads a file of which the host has nothing in its cache: each block, or the whole of it in sequence. The harness drops it, off the clock.
func coldJob(size int, random bool) func(*session, *rand.Rand) (*job, error) {
	return func(s *session, rng *rand.Rand) (*job, error) {
		f, err := os.Open(filepath.Join(s.share, coldName))
		if err != nil {
			return nil, fmt.Errorf("open what is to be dropped from the cache: %w", err)
		}
		j, err := s.cold(f, rng, size, random)
		if err != nil {
			f.Close()
		}
		return j, err
	}
}

func (s *session) cold(f *os.File, rng *rand.Rand, size int, random bool) (*job, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return nil, fmt.Errorf("ask for the type of the share's file system: %w", err)
	}
	if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		return nil, errWarm
	}
	id, fh, err := s.open(coldName, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil { // only clean pages can be dropped
		return nil, fmt.Errorf("write back what is to be dropped from the cache: %w", err)
	}
	drop := func() { unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }
	drop()
	p := &program{s: s}
	next := offsets(rng, coldSize/size, size, random)
	read := p.step(fe.Request{Op: fe.OpRead, Node: id, Args: fe.ReadArgs(fh, 0, uint32(size)), OutData: size},
		func(st *step) { binary.LittleEndian.PutUint64(st.args[8:], next()) })
	read.used = uint32(fe.OutHeaderSize + size)
	bytes := size
	if !random {
		bytes = coldSize
		blocks := 0
		read.after = func() bool { blocks = (blocks + 1) % (coldSize / size); return blocks != 0 }
	}
	p.step(fe.Request{Op: fe.OpGetattr, Node: id, Args: make([]byte, 16), OutArgs: fe.AttrOutSize}, func(*step) { drop() }).offClock = true
	j, err := p.job(nil)
	if err == nil {
		j.bytes, j.close = bytes, func() { f.Close() }
	}
	return j, err
}

// fresh makes an empty directory that is the session's own, and looks it up.
func (s *session) fresh(part, what string) (uint64, error) {
	name := what + "-" + s.name
	dir := filepath.Join(s.share, part, name)
	err := os.RemoveAll(dir)
	if err == nil {
		err = os.Mkdir(dir, 0o755)
	}
	if err != nil {
		return 0, fmt.Errorf("make a directory for %s: %w", what, err)
	}
	parent, err := s.part(part)
	if err != nil {
		return 0, err
	}
	e, err := s.fuse.Lookup(parent, name)
	return e.Node, err
}

// part looks a part of the share up; "" is its root.
func (s *session) part(name string) (uint64, error) {
	if name == "" {
		return fe.RootNode, nil
	}
	e, err := s.fuse.Lookup(fe.RootNode, name)
	return e.Node, err
}

// Offsets of the name in a request's arguments.
const (
	createName = 16
	mkdirName  = 8
)

func (p *program) create(dir uint64, before func(*step)) *step {
	args := fe.Body(nil).U32(unix.O_CREAT|unix.O_RDWR, unix.S_IFREG|0o644, 0, 0).Name(fileName(0))
	return p.step(fe.Request{Op: fe.OpCreate, Node: dir, Args: args, OutArgs: fe.EntrySize + fe.OpenOutSize}, before)
}

// write appends WRITE of size bytes into what create made.
func (p *program) write(create *step, size int) {
	st := p.step(fe.Request{Op: fe.OpWrite, Args: fe.ReadArgs(0, 0, uint32(size)), Data: make([]byte, size), OutArgs: 8}, func(st *step) {
		copy(st.node, create.out[:8])
		copy(st.args, create.out[fe.EntrySize:fe.EntrySize+8])
	})
	st.used = fe.OutHeaderSize + 8
}

// close appends FLUSH and RELEASE of what came back in another step's reply, and returns the latter.
func (p *program) close(id func() []byte, fh func() []byte) *step {
	fill := func(st *step) {
		copy(st.node, id())
		copy(st.args, fh())
	}
	p.step(fe.Request{Op: fe.OpFlush, Args: handleArgs()}, fill)
	return p.step(fe.Request{Op: fe.OpRelease, Args: handleArgs()}, fill)
}

// created are node and handle in CREATE's reply.
func created(st *step) (id, fh func() []byte) {
	return func() []byte { return st.out[:8] }, func() []byte { return st.out[fe.EntrySize : fe.EntrySize+8] }
}

// remove appends UNLINK or RMDIR of n names; in tells the directory of each.
func (p *program) remove(op fe.Opcode, n int, in func(i int) (dir uint64, name int)) *step {
	at := 0
	st := p.step(fe.Request{Op: op, Args: fe.Body(nil).Name(fileName(0))}, func(st *step) {
		dir, name := in(at)
		putNode(st.node, dir)
		rename(st.args, name)
	})
	st.after = func() bool { at = (at + 1) % n; return at != 0 }
	return st
}

const (
	smallFiles = 200
	smallKinds = 8 // 1 to 8 KiB
)

// smallJob makes small files, reads them back and removes them.
func smallJob(s *session, part string) (*job, error) {
	dir, err := s.fresh(part, "small")
	if err != nil {
		return nil, err
	}
	p := &program{s: s}
	known := newReferences(smallFiles)
	at := 0
	next := func() { at = (at + 1) % smallFiles }
	var last *step
	for kind := range smallKinds {
		create := p.create(dir, func(st *step) { rename(st.args[createName:], at) })
		create.after = func() bool { known.add(node(create.out)); return false }
		p.write(create, (1+kind)<<10)
		last = p.close(created(create))
		last.after = func() bool { next(); return false }
	}
	last.after, last.back = func() bool { next(); return at != 0 }, 4*smallKinds-1
	for kind := range smallKinds {
		size := (1 + kind) << 10
		id := make([]byte, 8)
		open := p.step(fe.Request{Op: fe.OpOpen, Args: fe.Body(nil).U32(unix.O_RDONLY, 0), OutArgs: fe.OpenOutSize}, func(st *step) {
			copy(id, known.b[16*at:])
			copy(st.node, id)
		})
		read := p.step(fe.Request{Op: fe.OpRead, Args: fe.ReadArgs(0, 0, uint32(size)), OutData: size}, func(st *step) {
			copy(st.node, id)
			copy(st.args, open.out[:8])
		})
		read.used = uint32(fe.OutHeaderSize + size)
		last = p.close(func() []byte { return id }, func() []byte { return open.out[:8] })
		last.after = func() bool { next(); return false }
	}
	last.after, last.back = func() bool { next(); return at != 0 }, 4*smallKinds-1
	p.remove(fe.OpUnlink, smallFiles, func(i int) (uint64, int) { return dir, i })
	p.forget(known)
	return p.job(func() int { return smallFiles })
}

const (
	untarDirs = 10
	untarEach = 20 // files of a directory
	untarSize = 3 << 10
)

// setTimes is SETATTR's body for an open file: atime and mtime are given.
func setTimes() fe.Body {
	const fattrAtime, fattrMtime, fattrFH = 1 << 4, 1 << 5, 1 << 6
	return fe.Body(nil).U32(fattrAtime|fattrMtime|fattrFH, 0).U64(0, 0, 0, 1e9, 1e9, 0).U32(make([]uint32, 8)...)
}

// untarJob makes a tree of files with times, and removes it off the clock.
func untarJob(s *session, part string) (*job, error) {
	root, err := s.fresh(part, "untar")
	if err != nil {
		return nil, err
	}
	p := &program{s: s}
	known := newReferences(untarDirs * (1 + untarEach))
	var dirs [untarDirs]uint64
	d, f := 0, 0
	mkdir := p.step(fe.Request{Op: fe.OpMkdir, Node: root, Args: fe.Body(nil).U32(0o755, 0).Name(fileName(0)), OutArgs: fe.EntrySize},
		func(st *step) { rename(st.args[mkdirName:], d) })
	mkdir.after = func() bool {
		dirs[d] = node(mkdir.out)
		known.add(dirs[d])
		return false
	}
	look := p.step(fe.Request{Op: fe.OpLookup, Args: fe.Body(nil).Name(fileName(0)), OutArgs: fe.EntrySize}, func(st *step) {
		putNode(st.node, dirs[d])
		rename(st.args, f)
	})
	look.fails = unix.ENOENT
	create := p.create(0, func(st *step) {
		putNode(st.node, dirs[d])
		rename(st.args[createName:], f)
	})
	create.after = func() bool { known.add(node(create.out)); return false }
	p.write(create, untarSize)
	p.step(fe.Request{Op: fe.OpSetattr, Args: setTimes(), OutArgs: fe.AttrOutSize}, func(st *step) {
		copy(st.node, create.out[:8])
		copy(st.args[8:], create.out[fe.EntrySize:fe.EntrySize+8])
	})
	last := p.close(created(create))
	last.after = func() bool {
		last.back = 5 // the next file
		if f = (f + 1) % untarEach; f == 0 {
			last.back = 6 // the next directory
			d = (d + 1) % untarDirs
		}
		return f != 0 || d != 0
	}
	p.remove(fe.OpUnlink, untarDirs*untarEach, func(i int) (uint64, int) { return dirs[i/untarEach], i % untarEach }).offClock = true
	p.remove(fe.OpRmdir, untarDirs, func(i int) (uint64, int) { return root, i })
	p.forget(known)
	return p.job(func() int { return untarDirs * untarEach })
}

// walkJob looks at every file of a tree, then lists its directories for files that are new.
func walkJob(s *session, _ *rand.Rand) (*job, error) {
	root, err := s.fuse.Lookup(fe.RootNode, treeName)
	if err != nil {
		return nil, err
	}
	p := &program{s: s}
	known := newReferences(treeDirs * (1 + 2*treeEach))
	d, f := 0, 0
	var dir uint64
	enter := p.step(fe.Request{Op: fe.OpLookup, Node: root.Node, Args: fe.Body(nil).Name(fileName(0)), OutArgs: fe.EntrySize},
		func(st *step) { rename(st.args, d) })
	enter.after = func() bool {
		dir = node(enter.out)
		known.add(dir)
		return false
	}
	look := p.step(fe.Request{Op: fe.OpLookup, Args: fe.Body(nil).Name(fileName(0)), OutArgs: fe.EntrySize}, func(st *step) {
		putNode(st.node, dir)
		rename(st.args, f)
	})
	look.after = func() bool { known.add(node(look.out)); return false }
	attr := p.step(fe.Request{Op: fe.OpGetattr, Args: make([]byte, 16), OutArgs: fe.AttrOutSize}, func(st *step) { copy(st.node, look.out[:8]) })
	attr.after, attr.back = func() bool { f = (f + 1) % treeEach; return f != 0 }, 1
	l := p.list(&dir, known)
	l.release.after, l.release.back = func() bool { d = (d + 1) % treeDirs; return d != 0 }, 5
	p.forget(known)
	return p.job(func() int { return treeDirs * treeEach })
}

// deepJob looks a long path up, name by name.
func deepJob(s *session, _ *rand.Rand) (*job, error) {
	p := &program{s: s}
	known := newReferences(deep)
	at, level := uint64(fe.RootNode), 0
	look := p.step(fe.Request{Op: fe.OpLookup, Args: fe.Body(nil).Name(deepName), OutArgs: fe.EntrySize}, func(st *step) { putNode(st.node, at) })
	look.after = func() bool {
		at = node(look.out)
		known.add(at)
		if level++; level < deep {
			return true
		}
		at, level = fe.RootNode, 0
		return false
	}
	p.forget(known)
	return p.job(nil)
}
