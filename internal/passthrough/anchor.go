package passthrough

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

// Files that a guest was told of by READDIRPLUS are known by parent and name at first: most are never used, and a way to each would take longer
// than the listing. They get one soon afterwards, some at a time, so that the guest's requests are not held up.
const (
	anchorSoon  = 3 * time.Millisecond // after the first of them was listed
	anchorPause = time.Millisecond
	anchorStep  = 64   // files
	anchorLook  = 4096 // numbers of inodes
)

// anchoring is the work that is left of it.
type anchoring struct {
	wanted atomic.Bool // there may be files without a way to them
	shard  int         // where it goes on: a shard of the slots, and a chunk of that
	chunk  int
}

// anchorLater has files looked for that have only a name.
func (fs *FS) anchorLater() {
	if !fs.anchoring.wanted.Load() && !fs.anchoring.wanted.Swap(true) {
		fs.background.after(anchorSoon, func() {
			fs.anchoring.shard, fs.anchoring.chunk = 0, 0
			fs.anchorSome()
		})
	}
}

// anchorSome gives some files a way to them that does not depend on their names.
func (fs *FS) anchorSome() {
	a := &fs.anchoring
	if a.shard == 0 && a.chunk == 0 {
		a.wanted.Store(false) // what is listed from now on is for the next time
	}
	var buf sys.HandleBuffer
	found, looked := 0, 0
	for a.shard < slotShards {
		more := fs.nodes.slots.chunk(a.shard, a.chunk, func(n *inode) {
			looked++
			if !n.anchored() {
				found++
				fs.anchor(n, &buf)
			}
		})
		looked++
		if a.chunk++; !more {
			a.shard, a.chunk = a.shard+1, 0
		}
		if found >= anchorStep || looked >= anchorLook {
			break
		}
	}
	if a.shard < slotShards && (fs.mounts.rootFD >= 0 || fs.fds.open.Load() < fs.fds.budget()) {
		fs.background.after(anchorPause, fs.anchorSome)
		return
	}
	a.shard, a.chunk = 0, 0
	if a.wanted.Load() {
		fs.background.after(anchorPause, fs.anchorSome)
	}
}

// anchor gives a file a way to it, by its name. That may fail: then it has none, as before.
func (fs *FS) anchor(n *inode, buf *sys.HandleBuffer) {
	n.slow.Lock()
	p, name := n.parent, n.name
	n.slow.Unlock()
	if p == nil || n.mnt != fs.mounts.root {
		return
	}
	pfd := p.use()
	defer p.drop(fs.fds)
	if pfd < 0 {
		var e unix.Errno
		if pfd, e = fs.fdOf(p, 0); e != 0 {
			return
		}
	}
	n.use()
	defer n.drop(fs.fds)
	var st unix.Statx_t
	if h := fs.handleOf(n.mnt, pfd, &name[0], buf); h != nil {
		// The name may lead elsewhere by now, or may have when the handle was made.
		if sys.Statx(pfd, &name[0], unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, identityMask, &st) == 0 && n.is(identify(&st)) {
			n.handle.CompareAndSwap(nil, h)
		}
		return
	}
	if fs.fds.open.Load() >= fs.fds.budget() {
		return
	}
	fd, e := sys.Openat(pfd, &name[0], unix.O_PATH|unix.O_NOFOLLOW, 0)
	if e != 0 {
		return
	}
	if sys.FStatx(fd, identityMask, &st) != 0 || !n.is(identify(&st)) {
		sys.Close(fd)
		return
	}
	fs.publish(n, fd)
}
