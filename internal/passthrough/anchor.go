package passthrough

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

// Files that a guest was told of by READDIRPLUS are known by parent and name at first: most are
// never used, and a way to each would take longer than the listing. They get one when the guest
// lists no more, some at a time, so that its requests are not held up.
const (
	anchorSoon  = 20 * time.Millisecond // after the last of them was listed
	anchorLate  = time.Second           // after the first was, at most
	anchorPause = time.Millisecond
	anchorStep  = 64   // files
	anchorLook  = 4096 // numbers of inodes
)

// anchoring is the work that is left of it.
type anchoring struct {
	wanted atomic.Bool  // there may be files without a way to them
	listed atomic.Int64 // when the last of them was listed
	first  time.Duration
	shard  int // where it goes on: a shard of the slots, and a chunk of that
	chunk  int
}

// anchorLater has files looked for that have only a name.
func (fs *FS) anchorLater() {
	a, now := &fs.anchoring, sys.Clock()
	a.listed.Store(int64(now))
	if !a.wanted.Load() && !a.wanted.Swap(true) {
		fs.background.after(anchorSoon, func() {
			a.first = now
			fs.anchorNow()
		})
	}
}

// anchorNow begins with the work, unless the guest is still listing.
func (fs *FS) anchorNow() {
	a, now := &fs.anchoring, sys.Clock()
	if now-time.Duration(a.listed.Load()) < anchorSoon && now-a.first < anchorLate {
		fs.background.after(anchorSoon, fs.anchorNow)
		return
	}
	a.wanted.Store(false) // what is listed from now on is for the next time
	a.shard, a.chunk = 0, 0
	fs.anchorSome()
}

// anchorSome gives some files a way to them that does not depend on their names.
func (fs *FS) anchorSome() {
	a := &fs.anchoring
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
