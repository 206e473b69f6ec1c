package passthrough

import (
	"maps"
	"sync"
	"sync/atomic"

	"virtiofsd/internal/fuseabi"
)

// shards is how many parts the tables have, so that queues seldom meet at a lock. A power of two.
const shards = 64

// table knows the inodes by number and by identity. Numbers are never used twice.
type table struct {
	keys [shards]keyShard
	ids  [shards]idShard
	next atomic.Uint64
	fds  *fdCache
}

type keyShard struct {
	mu   sync.RWMutex
	m    map[key]*inode
	most int // entries since m was made
	_    [24]byte
}

type idShard struct {
	mu   sync.RWMutex
	m    map[uint64]*inode
	most int
	_    [24]byte
}

// remove deletes an entry and returns the map, or a smaller one: Go's keep the room of as many entries as they ever had.
func remove[K comparable](m map[K]*inode, k K, most *int) map[K]*inode {
	const worth = 64
	*most = max(*most, len(m))
	delete(m, k)
	if *most < worth || len(m) > *most/4 {
		return m
	}
	*most = len(m)
	small := make(map[K]*inode, len(m))
	maps.Copy(small, m)
	return small
}

func newTable(fds *fdCache) *table {
	t := &table{fds: fds}
	for i := range shards {
		t.keys[i].m, t.ids[i].m = map[key]*inode{}, map[uint64]*inode{}
	}
	t.next.Store(fuseabi.RootID)
	return t
}

func (t *table) keyShard(k key) *keyShard {
	h := (k.ino ^ k.dev<<7 ^ k.mnt<<17) * 0x9e3779b97f4a7c15
	return &t.keys[h>>(64-6)]
}

func (t *table) idShard(id uint64) *idShard { return &t.ids[id%shards] }

// get finds an inode by number and makes the caller a user of it; fd is -1 if it has none open.
func (t *table) get(id uint64) (n *inode, fd int) {
	s := t.idShard(id)
	s.mu.RLock()
	if n = s.m[id]; n != nil {
		fd = n.use()
	}
	s.mu.RUnlock()
	return n, fd
}

// same reports whether n is the file that was seen. An open descriptor keeps the inode number from being used again; without,
// birth times tell.
func (n *inode) same(id identity) bool {
	return n.typ == id.typ && (n.btime == id.btime || n.state.Load()&fdMask != 0)
}

// find finds an inode by identity and adds a lookup.
func (t *table) find(id identity) *inode {
	s := t.keyShard(id.key)
	s.mu.RLock()
	n := s.m[id.key]
	if n != nil && n.same(id) {
		n.nlookup.Add(1)
	} else {
		n = nil
	}
	s.mu.RUnlock()
	return n
}

// peek finds an inode by identity and makes the caller a user of it.
func (t *table) peek(id identity) (n *inode, fd int) {
	s := t.keyShard(id.key)
	s.mu.RLock()
	if n = s.m[id.key]; n != nil && n.same(id) {
		fd = n.use()
	} else {
		n = nil
	}
	s.mu.RUnlock()
	return n, fd
}

// add puts n into the table with one lookup, unless the file is there already: then that inode gets the lookup and is
// returned.
func (t *table) add(n *inode) *inode {
	s := t.keyShard(n.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.m[n.key]; old != nil && old.same(n.identity) {
		old.nlookup.Add(1)
		return old
	}
	n.nlookup.Store(1)
	if n.id == 0 {
		n.id = t.next.Add(1)
	}
	s.m[n.key] = n
	ids := t.idShard(n.id)
	ids.mu.Lock()
	ids.m[n.id] = n
	ids.mu.Unlock()
	return n
}

// forget takes lookups away, and the inode with the last one. A guest that forgets more than it looked up gets zero; the
// root stays.
func (t *table) forget(id, count uint64) {
	if id == fuseabi.RootID || count == 0 {
		return
	}
	ids := t.idShard(id)
	ids.mu.RLock()
	n := ids.m[id]
	ids.mu.RUnlock()
	if n == nil {
		return
	}
	for {
		have := n.nlookup.Load()
		left := int64(0)
		if count < uint64(max(have, 0)) {
			left = have - int64(count)
		}
		if !n.nlookup.CompareAndSwap(have, left) {
			continue
		}
		if left > 0 {
			return
		}
		break
	}
	s := t.keyShard(n.key)
	s.mu.Lock()
	if n.nlookup.Load() != 0 { // looked up again meanwhile
		s.mu.Unlock()
		return
	}
	ids.mu.Lock()
	gone := ids.m[id] == n
	if gone {
		ids.m = remove(ids.m, id, &ids.most)
	}
	ids.mu.Unlock()
	if s.m[n.key] == n {
		s.m = remove(s.m, n.key, &s.most)
	}
	s.mu.Unlock()
	if gone {
		n.kill(t.fds)
	}
}

// clear forgets everything but the root, which is found at every moment. It holds all locks at once: an inode that is added meanwhile,
// as a guest can have it by an INIT among its requests, is in both maps or in none.
func (t *table) clear(root *inode) {
	for i := range t.keys {
		t.keys[i].mu.Lock()
	}
	var all []*inode
	for i := range t.ids {
		s := &t.ids[i]
		s.mu.Lock()
		for _, n := range s.m {
			if n != root {
				all = append(all, n)
			}
		}
		s.m, s.most = map[uint64]*inode{}, 0
		if root != nil && s == t.idShard(root.id) {
			s.m[root.id] = root
		}
		s.mu.Unlock()
	}
	for i := range t.keys {
		s := &t.keys[i]
		s.m, s.most = map[key]*inode{}, 0
		if root != nil && s == t.keyShard(root.key) {
			s.m[root.key] = root
		}
		s.mu.Unlock()
	}
	for _, n := range all {
		n.kill(t.fds)
	}
}

// len counts the inodes, the root included.
func (t *table) len() int {
	n := 0
	for i := range t.ids {
		t.ids[i].mu.RLock()
		n += len(t.ids[i].m)
		t.ids[i].mu.RUnlock()
	}
	return n
}
