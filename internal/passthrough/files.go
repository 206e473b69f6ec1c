package passthrough

import (
	"sync"
	"sync/atomic"

	"virtiofsd/internal/sys"
)

// file is an open file or directory. Its descriptor is closed when it was released and no call uses it any more.
type file struct {
	fd         int
	node       uint64
	inode      *inode
	next, prev *file // open files of the same inode; its lock guards them
	quiet      bool  // its file system has nothing to tell when a descriptor is closed
	// appends: the host lets nothing be done but append, and the descriptor has O_APPEND
	// (openToAppend).
	appends bool
	dir     *dirStream   // nil for a file
	state   atomic.Int64 // users; the table is one
}

// put ends a use.
func (f *file) put() {
	if f.state.Add(-1) > 0 {
		return
	}
	if f.dir != nil {
		f.dir.drop()
	}
	sys.Close(f.fd)
}

// fileTable knows open files by the number that the guest was given. Numbers are never used twice.
type fileTable struct {
	shard [shards]fileShard
	next  atomic.Uint64
}

type fileShard struct {
	mu sync.RWMutex
	m  map[uint64]*file
	_  [32]byte
}

func newFileTable() *fileTable {
	t := &fileTable{}
	for i := range t.shard {
		t.shard[i].m = map[uint64]*file{}
	}
	return t
}

// add gives a file its number.
func (t *fileTable) add(f *file) uint64 {
	id := t.next.Add(1)
	f.state.Store(1)
	f.link()
	s := &t.shard[id%shards]
	s.mu.Lock()
	s.m[id] = f
	s.mu.Unlock()
	return id
}

// get finds a file and makes the caller its user until put.
func (t *fileTable) get(id uint64) *file {
	s := &t.shard[id%shards]
	s.mu.RLock()
	f := s.m[id]
	if f != nil {
		f.state.Add(1)
	}
	s.mu.RUnlock()
	return f
}

// link puts a file into its inode's list of open files.
func (f *file) link() {
	n := f.inode
	n.slow.Lock()
	if f.next = n.opened; f.next != nil {
		f.next.prev = f
	}
	n.opened = f
	n.slow.Unlock()
}

// unlink takes it out.
func (f *file) unlink() {
	n := f.inode
	n.slow.Lock()
	switch {
	case f.prev != nil:
		f.prev.next = f.next
	case n.opened == f:
		n.opened = f.next
	}
	if f.next != nil {
		f.next.prev = f.prev
	}
	f.next, f.prev = nil, nil
	n.slow.Unlock()
}

// openFile is any open file of an inode, whose user the caller is until put, or nil.
func (n *inode) openFile() *file {
	n.slow.Lock()
	defer n.slow.Unlock()
	if n.opened != nil {
		n.opened.state.Add(1)
	}
	return n.opened
}

// remove takes a file out of the table; what the table held is the caller's to put.
func (t *fileTable) remove(id uint64) *file {
	s := &t.shard[id%shards]
	s.mu.Lock()
	f := s.m[id]
	delete(s.m, id)
	s.mu.Unlock()
	if f != nil {
		f.unlink()
	}
	return f
}

func (t *fileTable) clear() {
	for i := range t.shard {
		s := &t.shard[i]
		s.mu.Lock()
		old := s.m
		s.m = map[uint64]*file{}
		s.mu.Unlock()
		for _, f := range old {
			f.unlink()
			f.put()
		}
	}
}

func (t *fileTable) len() int {
	n := 0
	for i := range t.shard {
		t.shard[i].mu.RLock()
		n += len(t.shard[i].m)
		t.shard[i].mu.RUnlock()
	}
	return n
}
