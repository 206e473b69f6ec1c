package passthrough

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
)

// chunks counts the chunks that there are.
func (s *slots) chunks() (n int) {
	for i := range s.shard {
		if all := s.shard[i].chunks.Load(); all != nil {
			for i := range *all {
				if (*all)[i].Load() != nil {
					n++
				}
			}
		}
	}
	return n
}

func TestNumbersOfInodes(t *testing.T) {
	shrunk := 0
	s := slots{shrunk: func() { shrunk++ }}
	root := &inode{id: fuseabi.RootID}
	s.put(root)
	rng := rand.New(rand.NewPCG(1, 2))
	known, ever := map[uint64]*inode{}, map[uint64]bool{}
	const most = 20_000
	for range 10 {
		for len(known) < most {
			n := &inode{}
			s.put(n)
			require.False(t, ever[n.id], "%#x again", n.id)
			require.NotEqual(t, uint64(fuseabi.RootID), n.id)
			ever[n.id], known[n.id] = true, n
		}
		for id, n := range known {
			require.Same(t, n, s.get(id))
			if rng.IntN(3) > 0 {
				require.True(t, s.remove(n))
				require.Nil(t, s.get(id))
				require.False(t, s.remove(n), "twice")
				delete(known, id)
			}
		}
		require.Equal(t, 1+len(known), s.len())
	}
	assert.LessOrEqual(t, s.chunks(), 2*most/chunkSlots, "places are used again")
	for id := range ever {
		if known[id] == nil {
			require.Nil(t, s.get(id), "what is at its place now is another inode")
		}
	}
	for range 100_000 { // what a guest may make up
		if id := rng.Uint64(); known[id] == nil && id != fuseabi.RootID {
			require.Nil(t, s.get(id))
		}
	}
	assert.Zero(t, shrunk)
	for _, n := range known {
		require.True(t, s.remove(n))
	}
	assert.Equal(t, slotShards, shrunk)
	assert.LessOrEqual(t, s.chunks(), slotShards, "memory is given back")
	n := &inode{}
	assert.Zero(t, testing.AllocsPerRun(1000, func() {
		s.put(n)
		s.remove(n)
	}), "one file after the other")
	assert.Same(t, root, s.get(fuseabi.RootID))
	assert.Equal(t, 1, s.len())
}

func TestNumbersAreFoundWithoutALock(t *testing.T) {
	var s slots
	var writers, reader sync.WaitGroup
	var shown atomic.Pointer[inode]
	var over atomic.Bool
	for range 2 {
		writers.Go(func() {
			for range 20_000 {
				n := &inode{}
				s.put(n)
				shown.Store(n)
				if !assert.Same(t, n, s.get(n.id)) {
					return
				}
				s.remove(n)
				if !assert.Nil(t, s.get(n.id)) {
					return
				}
			}
		})
	}
	reader.Go(func() {
		for !over.Load() {
			if n := shown.Load(); n != nil {
				if m := s.get(n.id); m != nil && !assert.Same(t, n, m, "another inode has its number") {
					return
				}
			}
		}
	})
	writers.Wait()
	over.Store(true)
	reader.Wait()
}

// An inode is found without a lock, so it may go the next moment: who uses it then must not close its descriptor twice, nor keep it.
func TestInodesGoWhileTheyAreFound(t *testing.T) {
	before := openDescriptors(t)
	table := newTable(newFDCache(1000))
	var users sync.WaitGroup
	var shown atomic.Uint64
	var over atomic.Bool
	for range 2 {
		users.Go(func() {
			for !over.Load() {
				n, fd := table.get(shown.Load())
				if n == nil {
					continue
				}
				var st unix.Stat_t
				if fd >= 0 && !assert.NoError(t, unix.Fstat(fd, &st), "closed while it is used") {
					return
				}
				n.drop(table.fds)
			}
		})
	}
	for i := range 20_000 {
		n := &inode{key: key{ino: uint64(i)}}
		fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		n.state.Store(oneUser)
		n.setFD(fd)
		table.add(n)
		table.fds.insert(n)
		n.drop(table.fds)
		shown.Store(n.id)
		if fd := table.forget(n.id, 1); fd >= 0 {
			require.NoError(t, unix.Close(fd))
		}
	}
	over.Store(true)
	users.Wait()
	assert.Zero(t, table.fds.open.Load(), "a descriptor is kept")
	assert.Equal(t, before, openDescriptors(t), "one is open that is not counted")
}
