package passthrough

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

// flushes knows of the file systems in the share whether close(2) can fail there: a server may be
// told of data only then, and have no room for it. What is mounted below the root counts for
// itself.
type flushes struct {
	root   bool     // the root's own closes quietly
	others sync.Map // key without a file's number: bool
	known  atomic.Int64
}

// mostFileSystems is how many are remembered. Numbers of mounts and devices are used again, so none
// is remembered for ever either: when there are more, all are asked anew.
const mostFileSystems = 256

// quiet reports whether the file system of a file has nothing to tell when a descriptor is closed.
// fd is the file.
func (fs *FS) quiet(k key, fd int) bool {
	k.ino = 0
	if k.mnt == fs.root.mnt && k.dev == fs.root.dev {
		return fs.flushes.root
	}
	if q, ok := fs.flushes.others.Load(k); ok {
		return q.(bool)
	}
	if fs.flushes.known.Add(1) > mostFileSystems {
		fs.flushes.others.Clear()
		fs.flushes.known.Store(1)
	}
	q := closesQuietly(fd)
	fs.flushes.others.Store(k, q)
	return q
}

// closesQuietly names file systems whose close(2) does nothing that an error could come of: no
// flush to a server.
func closesQuietly(fd int) bool {
	var sf unix.Statfs_t
	if sys.Fstatfs(fd, &sf) != 0 {
		return false
	}
	switch int64(sf.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.F2FS_SUPER_MAGIC, 0x2fc12fc1 /* ZFS */ :
		return true
	}
	return false
}
