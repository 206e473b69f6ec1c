package passthrough

import (
	"math/bits"
	"sync/atomic"

	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

// slots knows inodes by number without a lock for who asks, as every request does. A number says where the inode is, and how many came
// before it there:
//
//	bits  0 to  3  the shard
//	bits  4 to 27  the slot in it
//	bits 28 to 63  the shard's count of numbers, so that none comes back before 2^36 others were given out
//
// The root has a number of its own (FUSE_ROOT_ID), which none of these is: the count begins at 1.
type slots struct {
	shrunk func() // is called, with a lock held, when many were removed; may be nil
	root   atomic.Pointer[inode]
	next   atomic.Uint64 // the shard of the next inode
	shard  [slotShards]slotShard
}

const (
	slotShards = 16
	slotBits   = 24
	countShift = 4 + slotBits
	chunkSlots = 128 // of a chunk, which comes and goes as a whole
	maxChunks  = 1 << slotBits / chunkSlots
	shrinks    = 512 // inodes of a shard whose going is worth mentioning: some megabytes of all shards
)

type slotShard struct {
	chunks atomic.Pointer[[]atomic.Pointer[chunk]]

	mu    sys.Mutex // guards all that is written
	first int       // no chunk before it has room
	count uint64
	n     int
	most  int // that there were since shrunk was called
	_     [16]byte
}

type chunk struct {
	slot [chunkSlots]atomic.Pointer[inode]
	used [chunkSlots / 64]uint64
	n    int
}

// place is the chunk of a number, and its slot in that.
func place(id uint64) (chunk, slot int) {
	at := int(id >> 4 & (1<<slotBits - 1))
	return at / chunkSlots, at % chunkSlots
}

func (s *slots) of(id uint64) *slotShard { return &s.shard[id%slotShards] }

// get finds an inode. It may be gone from the table the next moment.
func (s *slots) get(id uint64) *inode {
	if id == fuseabi.RootID {
		return s.root.Load()
	}
	c, i := place(id)
	all := s.of(id).chunks.Load()
	if all == nil || c >= len(*all) {
		return nil
	}
	if c := (*all)[c].Load(); c != nil {
		if n := c.slot[i].Load(); n != nil && n.id == id {
			return n
		}
	}
	return nil
}

// put gives an inode a number, unless it is the root, and makes it known by that. There are 2^28 places, for more memory than anybody has.
func (s *slots) put(n *inode) {
	if n.id == fuseabi.RootID {
		s.root.Store(n)
		return
	}
	at := s.next.Add(1) % slotShards
	sh := &s.shard[at]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, c := sh.room()
	if c == nil {
		panic("no number is left for an inode")
	}
	word := 0
	for c.used[word] == 1<<64-1 {
		word++
	}
	bit := bits.TrailingZeros64(^c.used[word])
	c.used[word] |= 1 << bit
	c.n++
	sh.n++
	sh.most = max(sh.most, sh.n)
	sh.count++
	slot := 64*word + bit
	n.id = sh.count<<countShift | uint64(i*chunkSlots+slot)<<4 | at
	c.slot[slot].Store(n)
}

// room finds the first chunk that has room, or makes one. The caller holds mu.
func (sh *slotShard) room() (int, *chunk) {
	var all []atomic.Pointer[chunk]
	if p := sh.chunks.Load(); p != nil {
		all = *p
	}
	for ; sh.first < len(all); sh.first++ {
		switch c := all[sh.first].Load(); {
		case c == nil:
			c = &chunk{}
			all[sh.first].Store(c)
			return sh.first, c
		case c.n < chunkSlots:
			return sh.first, c
		}
	}
	if len(all) == maxChunks {
		return 0, nil
	}
	more := make([]atomic.Pointer[chunk], max(4, min(2*len(all), maxChunks)))
	for i := range all {
		more[i].Store(all[i].Load())
	}
	c := &chunk{}
	more[sh.first].Store(c)
	sh.chunks.Store(&more)
	return sh.first, c
}

// remove makes an inode unknown, and reports whether it was known.
func (s *slots) remove(n *inode) bool {
	sh := s.of(n.id)
	i, slot := place(n.id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	all := sh.chunks.Load()
	if all == nil || i >= len(*all) {
		return false
	}
	c := (*all)[i].Load()
	if c == nil || !c.slot[slot].CompareAndSwap(n, nil) {
		return false
	}
	c.used[slot/64] &^= 1 << (slot % 64)
	c.n--
	sh.n--
	sh.first = min(sh.first, i)
	if sh.most >= shrinks && sh.n < sh.most/4 {
		sh.most = sh.n
		if s.shrunk != nil {
			s.shrunk()
		}
	}
	switch {
	case sh.n == 0 && i > 0:
		sh.chunks.Store(nil)
	case c.n == 0 && i > 0: // one is kept, for who creates and deletes one file after the other
		(*all)[i].Store(nil)
	}
	return true
}

// chunk calls f for each inode of a chunk of a shard, and reports whether the shard has more chunks
// behind it.
func (s *slots) chunk(shard, i int, f func(*inode)) (more bool) {
	p := s.shard[shard].chunks.Load()
	if p == nil || i >= len(*p) {
		return false
	}
	if c := (*p)[i].Load(); c != nil {
		for k := range c.slot {
			if n := c.slot[k].Load(); n != nil {
				f(n)
			}
		}
	}
	return i+1 < len(*p)
}

// clear makes all but the root unknown, and returns them.
func (s *slots) clear() (all []*inode) {
	for i := range s.shard {
		sh := &s.shard[i]
		sh.mu.Lock()
		if p := sh.chunks.Load(); p != nil {
			for i := range *p {
				c := (*p)[i].Load()
				for k := 0; c != nil && k < chunkSlots; k++ {
					if n := c.slot[k].Swap(nil); n != nil {
						all = append(all, n)
					}
				}
			}
		}
		sh.chunks.Store(nil)
		if sh.most >= shrinks && s.shrunk != nil {
			s.shrunk()
		}
		sh.first, sh.n, sh.most = 0, 0, 0
		sh.mu.Unlock()
	}
	return all
}

// len counts the inodes, the root included.
func (s *slots) len() (n int) {
	if s.root.Load() != nil {
		n = 1
	}
	for i := range s.shard {
		s.shard[i].mu.Lock()
		n += s.shard[i].n
		s.shard[i].mu.Unlock()
	}
	return n
}
