package passthrough

import (
	"sync"
	"sync/atomic"
)

// fdShards is how many parts the descriptor cache has. A power of two.
const fdShards = 16

// Lists of a part of the descriptor cache. An inode whose descriptor is open is in one of them.
// Descriptors of directories are closed when there are none of files: a guest has fewer of them,
// and what it holds for long is mostly one (a working directory, a mount).
const (
	noClass uint8 = iota
	ofFile
	ofDir
	ofStuck // would not be found again
	classes
)

// fdCache keeps the number of open O_PATH descriptors near a budget: it closes those of inodes that were not used since it
// last came by (the clock algorithm). Descriptors in use are never closed, so the budget can be exceeded by the number of
// calls under way.
type fdCache struct {
	shard     [fdShards]fdShard
	again     func(*inode) reopening // could it be opened again?
	expel     func(*inode)           // makes an inode unknown whose file has no name left
	evictions atomic.Int64
	open      atomic.Int64
}

// reopening says what closing a descriptor would mean.
type reopening uint8

const (
	cannotTell reopening = iota // now
	possible
	impossible // as far as one can see; the guest may look the file up by another name
	unlinked   // the file has no name, and its descriptor is all that keeps it
)

type fdShard struct {
	mu   sync.Mutex
	list [classes]fdList
	max  int // descriptors
	_    [16]byte
}

// fdList is a list of inodes in no order, and the hand of a clock that goes round in it.
type fdList struct {
	all  []*inode
	hand int
}

func newFDCache(budget int) *fdCache {
	c := &fdCache{}
	for i := range c.shard {
		c.shard[i].max = max(budget/fdShards, 4)
	}
	return c
}

func (c *fdCache) budget() int64 { return int64(fdShards * c.shard[0].max) }

func (c *fdCache) of(n *inode) *fdShard { return &c.shard[n.id%fdShards] }

// put puts n into a list, and takes it out of the one that it was in. The caller holds mu.
func (s *fdShard) put(n *inode, class uint8) {
	if n.class != noClass {
		l := &s.list[n.class]
		last := len(l.all) - 1
		l.all[n.place] = l.all[last]
		l.all[n.place].place = n.place
		l.all[last] = nil
		l.all = l.all[:last]
		if cap(l.all) > 64 && last < cap(l.all)/4 { // many were forgotten
			l.all = append(make([]*inode, 0, cap(l.all)/2), l.all...)
		}
	}
	n.class = class
	if class != noClass {
		l := &s.list[class]
		n.place = int32(len(l.all))
		l.all = append(l.all, n)
	}
}

// over is how many descriptors of a list are too many. Those that would not be found again are
// counted apart: they are not to drive out others.
func (s *fdShard) over(class uint8) int {
	if class == ofStuck {
		return len(s.list[ofStuck].all) - s.max/2
	}
	return len(s.list[ofFile].all) + len(s.list[ofDir].all) - s.max
}

// insert notes that n got a descriptor, and makes room for it.
func (c *fdCache) insert(n *inode) {
	s := c.of(n)
	s.mu.Lock()
	if n.class == noClass {
		class := ofFile
		if n.isDir() {
			class = ofDir
		}
		s.put(n, class)
		c.open.Add(1)
	}
	over := s.over(ofFile) > 0
	s.mu.Unlock()
	if over {
		c.sweep(s, 4, false)
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
	if n.class != noClass {
		s.put(n, noClass)
		c.open.Add(-1)
	}
}

// named notes that a file has a name again that leads to it.
func (c *fdCache) named(n *inode) {
	s := c.of(n)
	s.mu.Lock()
	if n.class == ofStuck {
		s.put(n, noClass)
		c.open.Add(-1)
		s.mu.Unlock()
		c.insert(n)
		return
	}
	s.mu.Unlock()
}

// sweep closes up to want cold descriptors of a shard and returns how many it closed: of files,
// then of directories, and of what would not be found again only if there is too much of it.
// Candidates are looked at without the lock. It is urgent where the process has no descriptors
// left.
func (c *fdCache) sweep(s *fdShard, want int, urgent bool) int {
	closed := 0
	s.mu.Lock()
	for class := ofFile; class < classes && closed < want; class++ {
		l := &s.list[class]
		for steps := 2 * len(l.all); steps > 0 && closed < want && len(l.all) > 0; steps-- {
			if s.over(class) <= 0 && (class == ofStuck || !urgent) {
				break
			}
			l.hand = (l.hand + 1) % len(l.all)
			n := l.all[l.hand]
			if n.state.Load()&(users|dead) != 0 || n.hot.Swap(false) && class != ofStuck {
				continue
			}
			if c.again != nil {
				s.mu.Unlock()
				again := c.again(n)
				if again == unlinked && class == ofStuck {
					c.expel(n)
				}
				s.mu.Lock()
				switch {
				case n.class == noClass: // closed meanwhile
					closed++
					continue
				case again == cannotTell:
					continue
				case again != possible && class != ofStuck:
					s.put(n, ofStuck)
					continue
				}
			}
			if n.evict() {
				c.takeOut(s, n)
				closed++
			}
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
		closed += c.sweep(&c.shard[i], 16, true)
	}
	return closed > 0
}
