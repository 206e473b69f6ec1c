package passthrough

import (
	"maps"

	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

// shards is how many parts the tables have, so that queues seldom meet at a lock. A power of two.
const shards = 64

// table knows the inodes by number and by identity.
type table struct {
	keys  [shards]keyShard
	slots slots
	fds   *fdCache
}

type keyShard struct {
	mu   sys.Mutex
	m    map[key]*inode
	most int // entries since m was made
	_    [40]byte
}

// remove deletes an entry, and makes the map anew where it has become small: Go's keep the room of as many entries as they ever had. The
// caller holds mu.
func (s *keyShard) remove(k key) {
	const worth = 64
	s.most = max(s.most, len(s.m))
	delete(s.m, k)
	if s.most >= worth && len(s.m) <= s.most/4 {
		s.most = len(s.m)
		small := make(map[key]*inode, len(s.m))
		maps.Copy(small, s.m)
		s.m = small
	}
}

func newTable(fds *fdCache) *table {
	t := &table{fds: fds}
	for i := range t.keys {
		t.keys[i].m = map[key]*inode{}
	}
	return t
}

func (t *table) keyShard(k key) *keyShard {
	h := (k.ino ^ k.dev<<7 ^ k.mnt<<17) * 0x9e3779b97f4a7c15
	return &t.keys[h>>(64-6)]
}

// get finds an inode by number and makes the caller a user of it; fd is -1 if it has none open.
func (t *table) get(id uint64) (n *inode, fd int) {
	if n = t.slots.get(id); n == nil {
		return nil, -1
	}
	return n, n.use()
}

// find finds an inode by identity, and adds a lookup if it is the file for sure. Otherwise it is
// for the caller to compare export handles, and to call confirm.
func (t *table) find(id identity) (*inode, whether) {
	s := t.keyShard(id.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.m[id.key]
	if n == nil {
		return nil, no
	}
	is := n.same(id)
	switch is {
	case no:
		return nil, no
	case yes:
		n.nlookup.Add(1)
	}
	return n, is
}

// confirm adds a lookup to what find was unsure of, and reports whether that is still known.
func (t *table) confirm(n *inode) bool {
	s := t.keyShard(n.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[n.key] != n {
		return false
	}
	n.nlookup.Add(1)
	return true
}

// peek finds an inode by identity, for sure, and makes the caller a user of it.
func (t *table) peek(id identity) (n *inode, fd int) {
	s := t.keyShard(id.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n = s.m[id.key]; n == nil || n.same(id) != yes {
		return nil, -1
	}
	return n, n.use()
}

// add puts n, which was just seen, into the table with one lookup, unless the file is there
// already: then that inode gets the lookup and is returned.
func (t *table) add(n *inode) *inode {
	s := t.keyShard(n.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.m[n.key]; old != nil {
		is := old.same(identity{n.key, n.btime.Load(), n.typ})
		if is == yes || is == unsure && old.handle.Load().Equal(n.handle.Load()) {
			old.nlookup.Add(1)
			return old
		}
	}
	n.nlookup.Store(1)
	t.slots.put(n)
	s.m[n.key] = n
	return n
}

// forget takes lookups away, and the inode with the last one. A guest that forgets more than it looked up gets zero; the
// root stays. It returns a descriptor that the caller has to close, or -1.
func (t *table) forget(id, count uint64) int {
	if id == fuseabi.RootID || count == 0 {
		return -1
	}
	n := t.slots.get(id)
	if n == nil {
		return -1
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
			return -1
		}
		break
	}
	return t.remove(n, false)
}

// remove takes an inode out that has no lookups left, or whatever it has. It returns a descriptor
// that the caller has to close, or -1.
func (t *table) remove(n *inode, anyway bool) int {
	s := t.keyShard(n.key)
	s.mu.Lock()
	if n.nlookup.Load() != 0 && !anyway { // looked up again meanwhile
		s.mu.Unlock()
		return -1
	}
	gone := t.slots.remove(n)
	if s.m[n.key] == n {
		s.remove(n.key)
	}
	s.mu.Unlock()
	if gone {
		return n.kill(t.fds)
	}
	return -1
}

// clear forgets everything but the root, which is found at every moment. It holds all locks at once: an inode that is added meanwhile, as a
// guest can have it by an INIT among its requests, is known by both, number and identity, or by none.
func (t *table) clear(root *inode) {
	for i := range t.keys {
		t.keys[i].mu.Lock()
	}
	gone := t.slots.clear()
	for i := range t.keys {
		s := &t.keys[i]
		s.m, s.most = map[key]*inode{}, 0
		if s == t.keyShard(root.key) {
			s.m[root.key] = root
		}
		s.mu.Unlock()
	}
	for _, n := range gone {
		if fd := n.kill(t.fds); fd >= 0 {
			sys.Close(fd)
		}
	}
}

// len counts the inodes, the root included.
func (t *table) len() int { return t.slots.len() }
