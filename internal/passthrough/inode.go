package passthrough

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

// key tells files apart that exist at the same time.
type key struct {
	mnt, dev, ino uint64
}

// identity is what statx(2) tells of which file it is. A number is used again when its file is
// gone. A birth time tells such files apart where the file system keeps it, but some change it:
// overlayfs does when it copies a file up, and of SMB it can be set.
type identity struct {
	key
	btime int64 // nanoseconds; 0: not kept
	typ   uint16
}

// identityMask is what statx has to fill in for identify.
const identityMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

func identify(st *unix.Statx_t) identity {
	id := identity{key: key{st.Mnt_id, unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino}, typ: st.Mode & unix.S_IFMT}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.btime = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return id
}

// Layout of inode.state.
const (
	fdMask  = 1<<32 - 1 // descriptor plus one, 0: none open
	oneUser = 1 << 32   // calls and open files that keep the descriptor open
	dead    = 1 << 63   // not in the table any more: the last user closes the descriptor
	users   = dead - 1 - fdMask
)

// inode is a file that the guest knows. What keeps it the same file, whatever its names are by now,
// is an open descriptor, an export handle, or an open file of the guest's. Without any of them
// there are only a parent and a name, which the host may change at any time.
type inode struct {
	key
	typ     uint16
	btime   atomic.Int64 // as in identity; follows the file as long as a descriptor is open
	id      uint64
	nlookup atomic.Int64
	state   atomic.Uint64
	handle  atomic.Pointer[sys.ExportHandle] // nil for none
	hot     atomic.Bool                      // used since the descriptor cache last looked

	nameless atomic.Bool // the name below was removed: the next lookup by another one is welcome

	class uint8 // the list of the descriptor cache that has it; the cache's lock guards this and place
	place int32 // in that list

	slow   sync.Mutex // guards the fields below, and is held during no system call
	parent *inode     // nil for the root and files without a name that is known
	name   []byte     // with NUL
	opened *file      // the first of the guest's open files of it

	told atomic.Uint32 // stamp of what the guest was told last of the file, or of a name in it; 0: nothing, or while nobody looked ahead
}

// newInode makes an inode that is in no table yet. The name is copied.
func newInode(id identity, parent *inode, name []byte) *inode {
	n := &inode{key: id.key, typ: id.typ, parent: parent, name: slices.Clone(name)}
	n.btime.Store(id.btime)
	return n
}

// hasFD reports whether a descriptor is open.
func (n *inode) hasFD() bool { return n.state.Load()&fdMask != 0 }

// anchored reports whether there is a way to the file that does not depend on its name.
func (n *inode) anchored() bool { return n.hasFD() || n.handle.Load() != nil }

// whether is the answer to a question that statx(2) cannot always answer.
type whether uint8

const (
	no whether = iota
	unsure
	yes
)

// same reports whether n is the file that was just seen with that identity. An open descriptor
// keeps the number from being used again. Without one, an equal birth time means the same file, and
// a different or missing one leaves it to the export handles.
func (n *inode) same(id identity) whether {
	switch btime := n.btime.Load(); {
	case n.key != id.key || n.typ != id.typ:
		return no
	case n.hasFD():
		if btime != id.btime {
			n.btime.Store(id.btime)
		}
		return yes
	case btime == id.btime && btime != 0:
		return yes
	case n.handle.Load() != nil:
		return unsure
	}
	return no
}

// tell notes that the guest is told of what was seen at that time, and reports whether that is news: whether it was told of nothing that was
// seen later, or in the same microsecond.
func (n *inode) tell(when time.Duration) bool {
	for at := stamp(when); ; {
		told := n.told.Load()
		if notAfter(at, told) {
			return false
		}
		if n.told.CompareAndSwap(told, at) {
			return true
		}
	}
}

// toldSince reports whether the guest was told of anything that was seen after that time.
func (n *inode) toldSince(when time.Duration) bool {
	return notAfter(stamp(when), n.told.Load())
}

// stamp is a time as inodes note it, in microseconds. It goes round in 72 minutes.
func stamp(when time.Duration) uint32 { return max(uint32(when/time.Microsecond), 1) }

// notAfter reports whether a stamp is no later than told, which may be none. Where stamps are half an hour apart it may be wrong, and a file is
// looked at again.
func notAfter(at, told uint32) bool { return told != 0 && int32(at-told) <= 0 }

// is reports whether n is that file for sure.
func (n *inode) is(id identity) bool { return n.same(id) == yes }

func (n *inode) isDir() bool { return n.typ == unix.S_IFDIR }
func (n *inode) isReg() bool { return n.typ == unix.S_IFREG }

// use keeps the inode's descriptor from being closed until drop, and returns it, or -1 if none is open. That goes for an inode that is not
// in the table any more as well.
func (n *inode) use() int { return int(n.state.Add(oneUser)&fdMask) - 1 }

// drop ends a use.
func (n *inode) drop(c *fdCache) {
	if v := n.state.Add(^uint64(oneUser - 1)); v&dead != 0 && v&users == 0 {
		if fd := n.takeFD(c); fd >= 0 {
			sys.Close(fd)
		}
	}
}

// kill marks the inode as gone from the table. It returns a descriptor that the caller has to close, or -1.
func (n *inode) kill(c *fdCache) int {
	if v := n.state.Or(dead) | dead; v&users == 0 {
		return n.takeFD(c)
	}
	return -1
}

// takeFD takes the descriptor from a dead inode without users, once.
func (n *inode) takeFD(c *fdCache) int {
	for {
		v := n.state.Load()
		if v&fdMask == 0 || v&users != 0 {
			return -1
		}
		if n.state.CompareAndSwap(v, v&^fdMask) {
			c.remove(n)
			return int(v&fdMask) - 1
		}
	}
}

// evict closes the descriptor of an inode that nobody uses, and reports whether it did.
func (n *inode) evict() bool {
	v := n.state.Load()
	if v&(users|dead) != 0 || v&fdMask == 0 || !n.state.CompareAndSwap(v, v&^fdMask) {
		return false
	}
	sys.Close(int(v&fdMask) - 1)
	return true
}

// setFD publishes a newly opened descriptor. The caller holds slow or has the inode to itself, and
// is a user.
func (n *inode) setFD(fd int) {
	n.state.Add(uint64(fd) + 1)
}
