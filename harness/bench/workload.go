package bench

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// Measure says which figure of a workload decides.
type Measure string

// The measures.
const (
	Latency Measure = "p50"  // median, lower is better
	Rate    Measure = "rate" // operations, items or bytes a second, higher is better
)

// Workload is one thing to measure.
type Workload struct {
	Name    string  `json:"name"`
	What    string  `json:"what"`
	Measure Measure `json:"measure"`
	Unit    string  `json:"unit"` // of Rate: ops, entries, files, bytes
	Depth   int     `json:"depth"`
	Queues  int     `json:"queues,omitempty"` // request queues that are in use at once; 0 = 1

	setup func(*session, *rand.Rand) (*job, error)
	on    string // the part of the share that it needs; "" = none
	ops   int    // operations of which system calls are counted; 0 = 1000
}

// Files of the share that prepareShare makes.
const (
	bigName  = "big" // read and written at random
	bigSize  = 64 << 20
	dirName  = "dir" // listed
	dirFiles = 10_000
	manyName = "many" // looked up one by one
	many     = 20_000
	coldName = "cold" // read without the host's cache
	coldSize = 32 << 20
	treeName = "tree" // walked as `git status` does
	treeDirs = 50
	treeEach = 40 // files of a directory
	deepName = "deep"
	deep     = 32    // directories one inside the other
	memName  = "mem" // a tmpfs, where files come and go at the same cost at all times
)

// parts make what workloads work on, each under its name in the share.
var parts = map[string]func(name string) error{
	bigName:  func(name string) error { return writeBig(name, bigSize) },
	coldName: func(name string) error { return writeBig(name, coldSize) },
	dirName:  func(name string) error { return makeNames(name, dirFiles) },
	manyName: func(name string) error { return makeNames(name, many) },
	treeName: func(name string) error {
		if err := os.Mkdir(name, 0o755); err != nil {
			return err
		}
		for i := range treeDirs {
			if err := makeNames(filepath.Join(name, fileName(i)), treeEach); err != nil {
				return err
			}
		}
		return nil
	},
	deepName: func(name string) error {
		return os.MkdirAll(filepath.Join(name, strings.Repeat(deepName+"/", deep-1)), 0o755)
	},
}

// prepareShare makes what the chosen workloads work on.
func (b *bed) prepareShare() error {
	need := map[string]bool{}
	for _, w := range b.Chosen() {
		need[w.on] = true
	}
	need[manyName] = b.WantsState()
	for name, f := range parts {
		if need[name] {
			if err := f(filepath.Join(b.share, name)); err != nil {
				return fmt.Errorf("prepare the share: %w", err)
			}
		}
	}
	for name, mount := range map[string]func(string) (func(), error){slowName: mountSlow, memName: mountMem} {
		if !need[name] {
			continue
		}
		unmount, err := mount(filepath.Join(b.share, name))
		if err != nil {
			return err
		}
		b.unmounts = append(b.unmounts, unmount)
	}
	return nil
}

// mountMem mounts a tmpfs at dir, as mountSlow does a disk. What a file costs on the disk's file system may depend on what was removed before: an
// ext4 without a journal passes over each inode that was removed in the last minute.
func mountMem(dir string) (unmount func(), err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs at %s: %w; remedy: run as root", dir, err)
	}
	return func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }, nil
}

// writeBig makes a file of random bytes, a multiple of a MiB.
func writeBig(name string, size int) error {
	block := make([]byte, 1<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range block {
		block[i] = byte(rng.Uint32())
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	for range size / len(block) {
		if _, err := f.Write(block); err != nil {
			f.Close()
			return err
		}
	}
	return f.Close()
}

// makeNames makes a directory of n empty files. mknodat is one call a name, without a descriptor.
func makeNames(dir string, n int) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(fd)
	for i := range n {
		if err := unix.Mknodat(fd, fileName(i), unix.S_IFREG|0o644, 0); err != nil {
			return fmt.Errorf("make name %d of %s: %w", i, dir, err)
		}
	}
	return nil
}

func fileName(i int) string { return fmt.Sprintf("file-%06d.txt", i) }

// rename makes the name b, which fileName made, that of i.
func rename(b []byte, i int) {
	for k := len("file-000000") - 1; k >= len("file-"); k-- {
		b[k] = byte('0' + i%10)
		i /= 10
	}
}

// Workloads are all, in the order of the report.
func Workloads() []Workload {
	return []Workload{
		{Name: "getattr-1", What: "GETATTR of a known file, depth 1", Measure: Latency, Unit: "ops", Depth: 1, on: bigName, setup: getattrJob(1)},
		{Name: "getattr-32", What: "GETATTR of a known file, depth 32", Measure: Rate, Unit: "ops", Depth: 32, on: bigName, setup: getattrJob(32)},
		{Name: "lookup-1", What: "LOOKUP of a known name, depth 1", Measure: Latency, Unit: "ops", Depth: 1, on: bigName, setup: lookupJob},
		{Name: "create-write-unlink", What: "CREATE, WRITE 4k, FLUSH, RELEASE, UNLINK, FORGET", Measure: Latency, Unit: "ops", Depth: 1, setup: in("", createJob)},
		{Name: "create-tmpfs", What: "The same as create-write-unlink, on a tmpfs", Measure: Latency, Unit: "ops", Depth: 1, on: memName, setup: in(memName, createJob)},
		{Name: "open-read-close", What: "OPEN, READ 4k, FLUSH, RELEASE", Measure: Latency, Unit: "ops", Depth: 1, on: bigName, setup: openJob},
		{Name: "read-4k-1", What: "READ 4 KiB at random, cached, depth 1", Measure: Latency, Unit: "ops", Depth: 1, on: bigName, setup: readJob(4096, 1, true)},
		{Name: "read-4k-16", What: "READ 4 KiB at random, cached, depth 16", Measure: Rate, Unit: "ops", Depth: 16, on: bigName, setup: readJob(4096, 16, true)},
		{Name: "write-4k-1", What: "WRITE 4 KiB at random, depth 1", Measure: Latency, Unit: "ops", Depth: 1, on: bigName, setup: writeJob(4096, 1, true)},
		{Name: "write-4k-16", What: "WRITE 4 KiB at random, depth 16", Measure: Rate, Unit: "ops", Depth: 16, on: bigName, setup: writeJob(4096, 16, true)},
		{Name: "read-128k-4", What: "READ 128 KiB in sequence, cached, depth 4", Measure: Rate, Unit: "bytes", Depth: 4, on: bigName, setup: readJob(128<<10, 4, false)},
		{Name: "read-1m-4", What: "READ 1 MiB in sequence, cached, depth 4", Measure: Rate, Unit: "bytes", Depth: 4, on: bigName, setup: readJob(1<<20, 4, false)},
		{Name: "write-128k-4", What: "WRITE 128 KiB in sequence, depth 4", Measure: Rate, Unit: "bytes", Depth: 4, on: bigName, setup: writeJob(128<<10, 4, false)},
		{Name: "write-1m-4", What: "WRITE 1 MiB in sequence, depth 4", Measure: Rate, Unit: "bytes", Depth: 4, on: bigName, setup: writeJob(1<<20, 4, false)},
		{Name: "readdirplus", What: "READDIRPLUS of 10,000 entries not known yet, 4 KiB a request", Measure: Rate, Unit: "entries", Depth: 1, on: dirName, setup: readdirJob(dirName, dirFiles, true), ops: 3},
		{Name: "readdirplus-known", What: "READDIRPLUS of 10,000 known entries, 4 KiB a request", Measure: Rate, Unit: "entries", Depth: 1, on: dirName, setup: readdirJob(dirName, dirFiles, false), ops: 3},
		{Name: "getattr-2x16", What: "GETATTR of a known file on two queues, depth 16 on each", Measure: Rate, Unit: "ops", Depth: 32, Queues: 2, on: bigName, setup: getattrJob(32)},
		{Name: "read-4k-2x16", What: "READ 4 KiB at random, cached, on two queues, depth 16 on each", Measure: Rate, Unit: "ops", Depth: 32, Queues: 2, on: bigName, setup: readJob(4096, 32, true)},
		{Name: "read-cold-4k", What: "READ 4 KiB at random, not cached, depth 1", Measure: Latency, Unit: "ops", Depth: 1, on: coldName, setup: coldJob(4096, true)},
		{Name: "read-cold-128k", What: "READ 32 MiB in sequence by 128 KiB, not cached, depth 1", Measure: Rate, Unit: "bytes", Depth: 1, on: coldName, setup: coldJob(128<<10, false), ops: 3},
		{Name: "read-slow-16", What: "READ 4 KiB from a disk that takes 10 ms for each, however many at once, depth 16", Measure: Rate, Unit: "ops", Depth: 16, on: slowName, setup: slowJob, ops: 64},
		{Name: "small-files", What: "200 files of 1 to 8 KiB: CREATE, WRITE, FLUSH, RELEASE each; OPEN, READ, FLUSH, RELEASE each; UNLINK each", Measure: Rate, Unit: "files", Depth: 1, setup: in("", smallJob), ops: 3},
		{Name: "small-files-tmpfs", What: "The same as small-files, on a tmpfs", Measure: Rate, Unit: "files", Depth: 1, on: memName, setup: in(memName, smallJob), ops: 3},
		{Name: "untar", What: "200 new files of 3 KiB in 10 new directories: LOOKUP, CREATE, WRITE, SETATTR of times, FLUSH, RELEASE each", Measure: Rate, Unit: "files", Depth: 1, setup: in("", untarJob), ops: 3},
		{Name: "untar-tmpfs", What: "The same as untar, on a tmpfs", Measure: Rate, Unit: "files", Depth: 1, on: memName, setup: in(memName, untarJob), ops: 3},
		{Name: "git-status", What: "LOOKUP, GETATTR of 2,000 files in 50 directories, READDIRPLUS of each directory", Measure: Rate, Unit: "files", Depth: 1, on: treeName, setup: walkJob, ops: 3},
		{Name: "getattr-2ms", What: "GETATTR of a known file, 2 ms after the last answer", Measure: Latency, Unit: "ops", Depth: 1, on: bigName, setup: seldomJob(2 * time.Millisecond), ops: 100},
		{Name: "getattr-20ms", What: "GETATTR of a known file, 20 ms after the last answer", Measure: Latency, Unit: "ops", Depth: 1, on: bigName, setup: seldomJob(20 * time.Millisecond), ops: 20},
		{Name: "deep-path", What: "LOOKUP of a path of 32 directories, none known", Measure: Latency, Unit: "ops", Depth: 1, on: deepName, setup: deepJob, ops: 100},
	}
}

func (s *session) open(name string, flags uint32) (node, fh uint64, err error) {
	e, err := s.fuse.Lookup(fe.RootNode, name)
	if err != nil {
		return 0, 0, err
	}
	fh, err = s.fuse.Open(e.Node, flags)
	return e.Node, fh, err
}

// in sets a job up in a part of the share, or in its root where that is "".
func in(part string, setup func(s *session, part string) (*job, error)) func(*session, *rand.Rand) (*job, error) {
	return func(s *session, _ *rand.Rand) (*job, error) { return setup(s, part) }
}

// lanes makes depth lanes of one step each, on all queues in turn.
func (s *session) lanes(depth int, make func(q *fe.Queue) (*step, error)) (*job, error) {
	j := &job{}
	queues := s.dev.Queues[1:]
	for i := range depth {
		st, err := make(queues[i%len(queues)])
		if err != nil {
			return nil, err
		}
		j.lanes = append(j.lanes, &lane{steps: []*step{st}})
	}
	return j, nil
}

func getattrJob(depth int) func(*session, *rand.Rand) (*job, error) {
	return func(s *session, _ *rand.Rand) (*job, error) {
		e, err := s.fuse.Lookup(fe.RootNode, bigName)
		if err != nil {
			return nil, err
		}
		return s.lanes(depth, func(q *fe.Queue) (*step, error) {
			return s.prepareOn(q, fe.Request{Op: fe.OpGetattr, Node: e.Node, Args: make([]byte, 16), OutArgs: fe.AttrOutSize})
		})
	}
}

// seldomJob is what a guest does that has other things to do.
func seldomJob(pause time.Duration) func(*session, *rand.Rand) (*job, error) {
	return func(s *session, rng *rand.Rand) (*job, error) {
		j, err := getattrJob(1)(s, rng)
		if err == nil {
			j.pause = pause.Nanoseconds()
		}
		return j, err
	}
}

func lookupJob(s *session, _ *rand.Rand) (*job, error) {
	return s.lanes(1, func(q *fe.Queue) (*step, error) {
		return s.prepareOn(q, fe.Request{Op: fe.OpLookup, Node: fe.RootNode, Args: fe.Body(nil).Name(bigName), OutArgs: fe.EntrySize})
	})
}

// sequence makes one lane of several steps.
func (s *session) sequence(all ...fe.Request) (*lane, error) {
	l := &lane{}
	for _, r := range all {
		st, err := s.prepare(r)
		if err != nil {
			return nil, err
		}
		l.steps = append(l.steps, st)
	}
	return l, nil
}

func handleArgs() fe.Body { return fe.Body(nil).U64(0).U32(0, 0).U64(0) }

func createJob(s *session, part string) (*job, error) {
	dir, err := s.part(part)
	if err != nil {
		return nil, err
	}
	name := fe.Body(nil).Name("fresh")
	l, err := s.sequence(
		fe.Request{Op: fe.OpCreate, Node: dir, Args: append(fe.Body(nil).U32(unix.O_CREAT|unix.O_RDWR, unix.S_IFREG|0o644, 0, 0), name...), OutArgs: fe.EntrySize + fe.OpenOutSize},
		fe.Request{Op: fe.OpWrite, Args: fe.ReadArgs(0, 0, 4096), Data: make([]byte, 4096), OutArgs: 8},
		fe.Request{Op: fe.OpFlush, Args: handleArgs()},
		fe.Request{Op: fe.OpRelease, Args: handleArgs()},
		fe.Request{Op: fe.OpUnlink, Node: dir, Args: name},
		fe.Request{Op: fe.OpForget, Args: fe.Body(nil).U64(1)},
	)
	if err != nil {
		return nil, err
	}
	create := l.steps[0]
	for _, st := range []*step{l.steps[1], l.steps[2], l.steps[3]} {
		st.before = func() {
			copy(st.node, create.out[:8])
			copy(st.args, create.out[fe.EntrySize:fe.EntrySize+8])
		}
	}
	l.steps[5].before = func() { copy(l.steps[5].node, create.out[:8]) }
	return &job{lanes: []*lane{l}}, nil
}

func openJob(s *session, _ *rand.Rand) (*job, error) {
	e, err := s.fuse.Lookup(fe.RootNode, bigName)
	if err != nil {
		return nil, err
	}
	l, err := s.sequence(
		fe.Request{Op: fe.OpOpen, Node: e.Node, Args: fe.Body(nil).U32(unix.O_RDONLY, 0), OutArgs: fe.OpenOutSize},
		fe.Request{Op: fe.OpRead, Node: e.Node, Args: fe.ReadArgs(0, 0, 4096), OutData: 4096},
		fe.Request{Op: fe.OpFlush, Node: e.Node, Args: handleArgs()},
		fe.Request{Op: fe.OpRelease, Node: e.Node, Args: handleArgs()},
	)
	if err != nil {
		return nil, err
	}
	for _, st := range l.steps[1:] {
		st.before = func() { copy(st.args, l.steps[0].out[:8]) }
	}
	return &job{lanes: []*lane{l}}, nil
}

// offsets gives each call the next offset of a block in a file of so many.
func offsets(rng *rand.Rand, blocks, size int, random bool) func() uint64 {
	at := 0
	return func() uint64 {
		if random {
			return uint64(rng.IntN(blocks)) * uint64(size)
		}
		at = (at + 1) % blocks
		return uint64(at) * uint64(size)
	}
}

func readJob(size, depth int, random bool) func(*session, *rand.Rand) (*job, error) {
	return func(s *session, rng *rand.Rand) (*job, error) {
		node, fh, err := s.open(bigName, unix.O_RDONLY)
		if err != nil {
			return nil, err
		}
		next := map[*fe.Queue]func() uint64{} // each belongs to the queue's thread
		for _, q := range s.dev.Queues[1:] {
			next[q] = offsets(rand.New(rand.NewPCG(rng.Uint64(), 1)), bigSize/size, size, random)
		}
		j, err := s.lanes(depth, func(q *fe.Queue) (*step, error) {
			next := next[q]
			st, err := s.prepareOn(q, fe.Request{Op: fe.OpRead, Node: node, Args: fe.ReadArgs(fh, 0, uint32(size)), OutData: size})
			if err == nil {
				st.before = func() { binary.LittleEndian.PutUint64(st.args[8:], next()) }
			}
			return st, err
		})
		if err == nil {
			j.bytes = size
		}
		return j, err
	}
}

// slowJob waits for a disk.
func slowJob(s *session, _ *rand.Rand) (*job, error) {
	dir, err := s.fuse.Lookup(fe.RootNode, slowName)
	if err != nil {
		return nil, err
	}
	file, err := s.fuse.Lookup(dir.Node, slowFile)
	if err != nil {
		return nil, err
	}
	fh, err := s.fuse.Open(file.Node, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return s.lanes(16, func(q *fe.Queue) (*step, error) {
		return s.prepareOn(q, fe.Request{Op: fe.OpRead, Node: file.Node, Args: fe.ReadArgs(fh, 0, 4096), OutData: 4096})
	})
}

func writeJob(size, depth int, random bool) func(*session, *rand.Rand) (*job, error) {
	return func(s *session, rng *rand.Rand) (*job, error) {
		node, fh, err := s.open(bigName, unix.O_RDWR)
		if err != nil {
			return nil, err
		}
		next := map[*fe.Queue]func() uint64{} // each belongs to the queue's thread
		for _, q := range s.dev.Queues[1:] {
			next[q] = offsets(rand.New(rand.NewPCG(rng.Uint64(), 1)), bigSize/size, size, random)
		}
		j, err := s.lanes(depth, func(q *fe.Queue) (*step, error) {
			next := next[q]
			st, err := s.prepareOn(q, fe.Request{Op: fe.OpWrite, Node: node, Args: fe.ReadArgs(fh, 0, uint32(size)), Data: make([]byte, size), OutArgs: 8})
			if err == nil {
				st.before = func() { binary.LittleEndian.PutUint64(st.args[8:], next()) }
			}
			return st, err
		})
		if err == nil {
			j.bytes = size
		}
		return j, err
	}
}

// readdirJob lists a directory of n files with READDIRPLUS. When cold, all nodes are forgotten between two lists, off the clock.
func readdirJob(name string, n int, cold bool) func(*session, *rand.Rand) (*job, error) {
	return func(s *session, _ *rand.Rand) (*job, error) {
		d, err := s.fuse.Lookup(fe.RootNode, name)
		if err != nil {
			return nil, err
		}
		p := &program{s: s}
		var known *references
		if cold {
			known = newReferences(n)
		}
		l := p.list(&d.Node, known)
		total := 0
		l.release.after = func() bool { total, l.seen = l.seen, 0; return false }
		if cold {
			p.forget(known)
		}
		return p.job(func() int { return total })
	}
}
