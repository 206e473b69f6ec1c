package bench

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

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
	Unit    string  `json:"unit"` // of Rate: ops, entries, bytes
	Depth   int     `json:"depth"`

	setup func(*session, *rand.Rand) (*job, error)
}

// Files of the share that prepare makes.
const (
	bigFile  = "big" // read and written at random
	bigSize  = 64 << 20
	dirName  = "dir" // listed
	dirFiles = 10_000
	manyName = "many" // looked up one by one
	many     = 20_000
)

// prepareShare makes what the workloads work on.
func prepareShare(dir string) error {
	big := make([]byte, 1<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range big {
		big[i] = byte(rng.Uint32())
	}
	f, err := os.Create(filepath.Join(dir, bigFile))
	if err != nil {
		return fmt.Errorf("prepare the share: %w", err)
	}
	for range bigSize / len(big) {
		if _, err := f.Write(big); err != nil {
			return fmt.Errorf("prepare the share: %w", err)
		}
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("prepare the share: %w", err)
	}
	for name, n := range map[string]int{dirName: dirFiles, manyName: many} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return fmt.Errorf("prepare the share: %w", err)
		}
		for i := range n {
			fd, err := unix.Open(filepath.Join(dir, name, fileName(i)), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
			if err != nil {
				return fmt.Errorf("prepare the share: %w", err)
			}
			unix.Close(fd)
		}
	}
	return nil
}

func fileName(i int) string { return fmt.Sprintf("file-%06d.txt", i) }

// Workloads are all, in the order of the report.
func Workloads() []Workload {
	return []Workload{
		{Name: "getattr-1", What: "GETATTR of a known file, depth 1", Measure: Latency, Unit: "ops", Depth: 1, setup: getattrJob(1)},
		{Name: "getattr-32", What: "GETATTR of a known file, depth 32", Measure: Rate, Unit: "ops", Depth: 32, setup: getattrJob(32)},
		{Name: "lookup-1", What: "LOOKUP of a known name, depth 1", Measure: Latency, Unit: "ops", Depth: 1, setup: lookupJob},
		{Name: "create-write-unlink", What: "CREATE, WRITE 4k, FLUSH, RELEASE, UNLINK, FORGET", Measure: Latency, Unit: "ops", Depth: 1, setup: createJob},
		{Name: "open-read-close", What: "OPEN, READ 4k, FLUSH, RELEASE", Measure: Latency, Unit: "ops", Depth: 1, setup: openJob},
		{Name: "read-4k-1", What: "READ 4 KiB at random, cached, depth 1", Measure: Latency, Unit: "ops", Depth: 1, setup: readJob(4096, 1, true)},
		{Name: "read-4k-16", What: "READ 4 KiB at random, cached, depth 16", Measure: Rate, Unit: "ops", Depth: 16, setup: readJob(4096, 16, true)},
		{Name: "write-4k-1", What: "WRITE 4 KiB at random, depth 1", Measure: Latency, Unit: "ops", Depth: 1, setup: writeJob(4096, 1, true)},
		{Name: "write-4k-16", What: "WRITE 4 KiB at random, depth 16", Measure: Rate, Unit: "ops", Depth: 16, setup: writeJob(4096, 16, true)},
		{Name: "read-128k-4", What: "READ 128 KiB in sequence, cached, depth 4", Measure: Rate, Unit: "bytes", Depth: 4, setup: readJob(128<<10, 4, false)},
		{Name: "read-1m-4", What: "READ 1 MiB in sequence, cached, depth 4", Measure: Rate, Unit: "bytes", Depth: 4, setup: readJob(1<<20, 4, false)},
		{Name: "write-128k-4", What: "WRITE 128 KiB in sequence, depth 4", Measure: Rate, Unit: "bytes", Depth: 4, setup: writeJob(128<<10, 4, false)},
		{Name: "write-1m-4", What: "WRITE 1 MiB in sequence, depth 4", Measure: Rate, Unit: "bytes", Depth: 4, setup: writeJob(1<<20, 4, false)},
		{Name: "readdirplus", What: "READDIRPLUS of 10,000 entries not known yet, 4 KiB a request", Measure: Rate, Unit: "entries", Depth: 1, setup: readdirJob(true)},
		{Name: "readdirplus-known", What: "READDIRPLUS of 10,000 known entries, 4 KiB a request", Measure: Rate, Unit: "entries", Depth: 1, setup: readdirJob(false)},
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

// lanes makes depth lanes of one step each.
func (s *session) lanes(depth int, make func(i int) (*step, error)) (*job, error) {
	j := &job{}
	for i := range depth {
		st, err := make(i)
		if err != nil {
			return nil, err
		}
		j.lanes = append(j.lanes, &lane{steps: []*step{st}})
	}
	return j, nil
}

func getattrJob(depth int) func(*session, *rand.Rand) (*job, error) {
	return func(s *session, _ *rand.Rand) (*job, error) {
		e, err := s.fuse.Lookup(fe.RootNode, bigFile)
		if err != nil {
			return nil, err
		}
		return s.lanes(depth, func(int) (*step, error) {
			return s.prepare(fe.Request{Op: fe.OpGetattr, Node: e.Node, Args: make([]byte, 16), OutArgs: fe.AttrOutSize})
		})
	}
}

func lookupJob(s *session, _ *rand.Rand) (*job, error) {
	return s.lanes(1, func(int) (*step, error) {
		return s.prepare(fe.Request{Op: fe.OpLookup, Node: fe.RootNode, Args: fe.Body(nil).Name(bigFile), OutArgs: fe.EntrySize})
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

func createJob(s *session, _ *rand.Rand) (*job, error) {
	name := fe.Body(nil).Name("fresh")
	l, err := s.sequence(
		fe.Request{Op: fe.OpCreate, Node: fe.RootNode, Args: append(fe.Body(nil).U32(unix.O_CREAT|unix.O_RDWR, unix.S_IFREG|0o644, 0, 0), name...), OutArgs: fe.EntrySize + fe.OpenOutSize},
		fe.Request{Op: fe.OpWrite, Args: fe.ReadArgs(0, 0, 4096), Data: make([]byte, 4096), OutArgs: 8},
		fe.Request{Op: fe.OpFlush, Args: handleArgs()},
		fe.Request{Op: fe.OpRelease, Args: handleArgs()},
		fe.Request{Op: fe.OpUnlink, Node: fe.RootNode, Args: name},
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
	e, err := s.fuse.Lookup(fe.RootNode, bigFile)
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

// offsets gives each call the next offset of a block in the big file.
func offsets(rng *rand.Rand, size int, random bool) func() uint64 {
	blocks, at := bigSize/size, 0
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
		node, fh, err := s.open(bigFile, unix.O_RDONLY)
		if err != nil {
			return nil, err
		}
		next := offsets(rng, size, random)
		j, err := s.lanes(depth, func(int) (*step, error) {
			st, err := s.prepare(fe.Request{Op: fe.OpRead, Node: node, Args: fe.ReadArgs(fh, 0, uint32(size)), OutData: size})
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

func writeJob(size, depth int, random bool) func(*session, *rand.Rand) (*job, error) {
	return func(s *session, rng *rand.Rand) (*job, error) {
		node, fh, err := s.open(bigFile, unix.O_RDWR)
		if err != nil {
			return nil, err
		}
		next := offsets(rng, size, random)
		j, err := s.lanes(depth, func(int) (*step, error) {
			st, err := s.prepare(fe.Request{Op: fe.OpWrite, Node: node, Args: fe.ReadArgs(fh, 0, uint32(size)), Data: make([]byte, size), OutArgs: 8})
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

// readdirJob lists a directory with READDIRPLUS. When cold, all nodes are forgotten between two lists, off the clock.
func readdirJob(cold bool) func(*session, *rand.Rand) (*job, error) {
	return func(s *session, _ *rand.Rand) (*job, error) {
		d, err := s.fuse.Lookup(fe.RootNode, dirName)
		if err != nil {
			return nil, err
		}
		l, err := s.sequence(
			fe.Request{Op: fe.OpOpendir, Node: d.Node, Args: fe.Body(nil).U32(unix.O_RDONLY|unix.O_DIRECTORY, 0), OutArgs: fe.OpenOutSize},
			fe.Request{Op: fe.OpReaddirplus, Node: d.Node, Args: fe.ReadArgs(0, 0, 4096), OutData: 4096},
			fe.Request{Op: fe.OpReleasedir, Node: d.Node, Args: handleArgs()},
		)
		if err != nil {
			return nil, err
		}
		open, list, release := l.steps[0], l.steps[1], l.steps[2]
		var off uint64
		seen, total := 0, 0
		nodes := make([]byte, 0, 16*(dirFiles+64))
		list.before = func() {
			copy(list.args, open.out[:8])
			binary.LittleEndian.PutUint64(list.args[8:], off)
		}
		list.after = func() bool {
			n := int(list.chain.Used) - fe.OutHeaderSize
			b := list.out
			for at := 0; at+fe.EntrySize+24 <= n; {
				node := binary.LittleEndian.Uint64(b[at:])
				h := b[at+fe.EntrySize:]
				off = binary.LittleEndian.Uint64(h[8:])
				at += (fe.EntrySize + 24 + int(binary.LittleEndian.Uint32(h[16:])) + 7) &^ 7
				seen++
				if node != 0 && len(nodes) < cap(nodes) && cold {
					nodes = binary.LittleEndian.AppendUint64(nodes, node)
					nodes = binary.LittleEndian.AppendUint64(nodes, 1)
				}
			}
			return n > 0
		}
		release.before = func() { copy(release.args, open.out[:8]); total, seen, off = seen, 0, 0 }
		if cold {
			const batch = 1000
			for range dirFiles / batch {
				st, err := s.prepare(fe.Request{Op: fe.OpBatchForget, Args: fe.Body(nil).U32(batch, 0), Data: make([]byte, 16*batch)})
				if err != nil {
					return nil, err
				}
				st.before = func() { nodes = st.fill(nodes, batch) }
				st.offClock = true
				l.steps = append(l.steps, st)
			}
		}
		return &job{lanes: []*lane{l}, items: func() int { return total }}, nil
	}
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
