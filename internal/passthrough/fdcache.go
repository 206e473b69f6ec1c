package passthrough

import (
	"sync"
	"sync/atomic"
)

// fdShards is how many parts the descriptor cache has. A power of two.
const fdShards = 16

// fdCache keeps the number of open O_PATH descriptors near a budget: it closes those of inodes that were not used since it
// last came by (the clock algorithm). Descriptors in use are never closed, so the budget can be exceeded by the number of
// calls under way and of open files.
type fdCache struct {
	shard     [fdShards]fdShard
	keepable  func(*inode) bool // nil, or: could it be opened again?
	evictions atomic.Int64
	open      atomic.Int64
}

type fdShard struct {
	mu   sync.Mutex
	list []*inode
	at   map[*inode]int
	hand int
	max  int
	_    [16]byte
}

func newFDCache(budget int) *fdCache {
	c := &fdCache{}
	for i := range c.shard {
		c.shard[i].max = max(budget/fdShards, 4)
		c.shard[i].at = map[*inode]int{}
	}
	return c
}

func (c *fdCache) budget() int64 { return int64(fdShards * c.shard[0].max) }

func (c *fdCache) of(n *inode) *fdShard { return &c.shard[n.id%fdShards] }

// insert notes that n got a descriptor, and makes room for it.
func (c *fdCache) insert(n *inode) {
	s := c.of(n)
	s.mu.Lock()
	if _, there := s.at[n]; !there {
		s.at[n] = len(s.list)
		s.list = append(s.list, n)
		c.open.Add(1)
	}
	victims := 0
	if over := len(s.list) - s.max; over > 0 {
		victims = min(over, 4)
	}
	s.mu.Unlock()
	if victims > 0 {
		c.sweep(s, victims)
	}
}

// remove notes that n's descriptor is closed.
func (c *fdCache) remove(n *inode) {
	s := c.of(n)
	s.mu.Lock()
	c.takeOut(s, n)
	s.mu.Unlock()
}

func (c *fdCache) takeOut(s *fdShard, n *inode) {
	i, ok := s.at[n]
	if !ok {
		return
	}
	last := len(s.list) - 1
	s.list[i] = s.list[last]
	s.at[s.list[i]] = i
	s.list[last] = nil
	s.list = s.list[:last]
	delete(s.at, n)
	c.open.Add(-1)
}

// sweep closes up to want cold descriptors of a shard and returns how many it closed. Candidates are checked without the lock:
// that takes system calls.
func (c *fdCache) sweep(s *fdShard, want int) int {
	closed := 0
	s.mu.Lock()
	steps := 2 * len(s.list)
	for ; steps > 0 && closed < want && len(s.list) > 0; steps-- {
		s.hand = (s.hand + 1) % len(s.list)
		n := s.list[s.hand]
		if n.hot.Swap(false) || n.state.Load()&(users|dead) != 0 {
			continue
		}
		if c.keepable != nil {
			s.mu.Unlock()
			ok := c.keepable(n)
			s.mu.Lock()
			if !ok {
				continue
			}
		}
		if n.evict() {
			c.takeOut(s, n)
			closed++
		}
	}
	s.mu.Unlock()
	c.evictions.Add(int64(closed))
	return closed
}

// relieve closes some descriptors everywhere: the process ran out of them.
func (c *fdCache) relieve() bool {
	closed := 0
	for i := range c.shard {
		s := &c.shard[i]
		s.mu.Lock()
		n := len(s.list)/4 + 1
		s.mu.Unlock()
		closed += c.sweep(s, n)
	}
	return closed > 0
}
