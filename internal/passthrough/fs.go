package passthrough

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

// FS is a shared directory. It implements fuse.Filesystem.
type FS struct {
	cfg    Config
	log    *slog.Logger
	root   *inode
	rootFD int // O_PATH
	proc   int // O_PATH directory of /proc/self/fd
	nodes  *table
	fds    *fdCache
	files  *fileTable

	flushes flushes                    // which file systems have work to do when a descriptor is closed
	old     struct{ read, write bool } // preadv2(2) or pwritev2(2) is refused

	mounts     mounts
	anchoring  anchoring
	background background
	stale      atomic.Int64 // requests that named an inode which nothing leads to any more

	flags   atomic.Uint64 // negotiated
	changes changes
	lookout lookout
	held    atomic.Int64 // directories that keep what they have read
	ttl     struct {
		sec  uint64
		nsec uint32
	}
	waits   waits
	records records
}

var _ fuse.Filesystem = (*FS)(nil)

// maxBudget is the most descriptors that are kept for inodes if no budget is given.
const maxBudget = 1 << 16

// New makes a file system of the directory rootFD (O_PATH, or any descriptor). procSelfFD is an O_PATH descriptor of this
// process's /proc/self/fd. Both stay the caller's, and have to stay open. The process's umask becomes 0: a guest says itself
// which bits a new file gets.
func New(rootFD, procSelfFD int, cfg Config) (*FS, error) {
	fs := &FS{cfg: cfg, log: cfg.Logger, rootFD: rootFD, proc: procSelfFD}
	if fs.log == nil {
		fs.log = slog.New(slog.DiscardHandler)
	}
	if (cfg.PosixACL || cfg.SecurityLabel || cfg.XattrMap != nil) && !cfg.Xattr {
		return nil, errors.New("access control lists, security labels and attribute maps need extended attributes: add --xattr")
	}
	if cfg.PosixACL && (cfg.TranslateUID != nil || cfg.TranslateGID != nil) {
		return nil, errors.New("access control lists hold ids, which are not translated inside them: drop --posix-acl or --translate-uid and --translate-gid")
	}
	budget := cfg.FDBudget
	if budget <= 0 {
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			return nil, fmt.Errorf("read RLIMIT_NOFILE: %w", err)
		}
		budget = int(min(lim.Cur/2, maxBudget))
	}
	unix.Umask(0)
	fs.fds = newFDCache(budget)
	if fs.waits.max = maxWaits; cfg.LockWaits > 0 {
		fs.waits.max = min(cfg.LockWaits, maxWaits)
	}
	fs.records.max = int64(max(budget/lockOwnerShare, 16))
	if cfg.Flock || cfg.PosixLock {
		sys.PrepareInterrupt()
	}
	fs.nodes = newTable(fs.fds)
	fs.nodes.slots.shrunk = cfg.Shrunk
	fs.files = newFileTable()
	fs.mounts.m, fs.mounts.rootFD = map[uint64]*submount{}, -1
	fs.fds.again = fs.canReopen
	fs.fds.expel = func(n *inode) {
		if fd := fs.nodes.remove(n, true); fd >= 0 {
			sys.Close(fd)
		}
	}
	ttl := cfg.Cache.timeout()
	fs.ttl.sec, fs.ttl.nsec = uint64(ttl/1e9), uint32(ttl%1e9)

	var st unix.Statx_t
	if e := sys.FStatx(rootFD, identityMask, &st); e != 0 {
		return nil, fmt.Errorf("read the shared directory's attributes: %w", e)
	}
	fs.root = newInode(identify(&st), nil, nil)
	fs.root.id = fuseabi.RootID
	fs.mounts.root = fs.root.mnt
	if !fs.root.isDir() {
		return nil, fmt.Errorf("share a directory: %w", unix.ENOTDIR)
	}
	fs.root.state.Store(oneUser) // for ever, so that it is never closed
	fs.root.setFD(rootFD)
	fs.nodes.add(fs.root)

	fs.flushes.root = closesQuietly(rootFD)
	fs.probeVectors()
	if cfg.InodeFileHandles != HandlesNever {
		if err := fs.probeHandles(); err == nil {
			fs.log.Debug("files are found again by export handle")
		} else if cfg.InodeFileHandles == HandlesMandatory {
			return nil, fmt.Errorf("open the shared directory by export handle: %w; give the daemon CAP_DAC_READ_SEARCH (--modcaps=+dac_read_search) or use --inode-file-handles=prefer", err)
		} else {
			fs.log.Debug("files are found again by parent and name: no export handles", "why", err)
		}
	}
	return fs, nil
}

func (fs *FS) probeHandles() error {
	var name [16]byte
	fd, e := sys.Openat(fs.proc, fdName(name[:], fs.rootFD), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if e != 0 {
		return fmt.Errorf("open it: %w", e)
	}
	var buf sys.HandleBuffer
	h, e := sys.NameToHandle(fd, nil, &buf)
	if e == 0 {
		var again int
		if again, e = sys.OpenByHandle(fd, h, unix.O_PATH); e == 0 {
			sys.Close(again)
		}
	}
	if e != 0 {
		sys.Close(fd)
		return e
	}
	fs.mounts.rootFD = fd
	return nil
}

// Init implements fuse.Filesystem.
func (fs *FS) Init(offered fuseabi.InitFlags) fuseabi.InitFlags {
	fs.Reset()
	want := fuseabi.AsyncRead | fuseabi.AtomicOTrunc | fuseabi.HasIoctlDir | fuseabi.AsyncDIO | fuseabi.ParallelDirops |
		fuseabi.CreateSuppGroup | fuseabi.AllowIdmap | fuseabi.AutoInvalData | fuseabi.ExportSupport
	if fs.cfg.Cache != CacheNever && !fs.cfg.NoReaddirplus {
		want |= fuseabi.DoReaddirplus | fuseabi.ReaddirplusAuto
	}
	if fs.cfg.Cache == CacheAlways {
		want |= fuseabi.CacheSymlinks
	}
	if fs.cfg.Writeback {
		want |= fuseabi.WritebackCache
	}
	if fs.cfg.PosixACL {
		want |= fuseabi.PosixACL | fuseabi.DontMask | fuseabi.SetxattrExt
	}
	if fs.cfg.SecurityLabel {
		want |= fuseabi.SecurityCtx
	}
	if fs.cfg.KillprivV2 && !fs.movesCapabilities() && offered&fuseabi.HandleKillprivV2 != 0 {
		want |= fuseabi.HandleKillprivV2
	} else {
		// The guest's kernel clears set-id bits when it truncates by SETATTR, but not when OPEN is to truncate (fs/fuse/file.c,
		// fuse_send_open): somebody else's set-user-ID program would keep its bit with new content.
		want &^= fuseabi.AtomicOTrunc
	}
	if fs.cfg.AnnounceSubmounts {
		want |= fuseabi.Submounts
	}
	if fs.cfg.Flock {
		want |= fuseabi.FlockLocks
	}
	if fs.cfg.PosixLock {
		want |= fuseabi.PosixLocks
	}
	if fs.cfg.AllowMmap {
		want |= fuseabi.DirectIOAllowMmap
	}
	if fs.cfg.TranslateUID != nil || fs.cfg.TranslateGID != nil {
		want &^= fuseabi.AllowIdmap
	}
	got := want & offered
	fs.flags.Store(uint64(got))
	return got
}

// movesCapabilities reports whether the attribute map keeps security.capability by another name, which the host's kernel does
// not remove when data changes: then that is the guest's to do.
func (fs *FS) movesCapabilities() bool {
	if fs.cfg.XattrMap == nil {
		return false
	}
	const name = "security.capability"
	host, e := fs.cfg.XattrMap.ToHost(nil, []byte(name))
	return e == 0 && string(host) != name
}

func (fs *FS) has(f fuseabi.InitFlags) bool { return fuseabi.InitFlags(fs.flags.Load())&f != 0 }

// Reset implements fuse.Filesystem.
func (fs *FS) Reset() {
	fs.waits.cancelAll()
	fs.records.drop(func(recordKey, *record) bool { return true })
	fs.files.clear()
	fs.nodes.clear(fs.root)
}

// Interrupt implements fuse.Filesystem.
func (fs *FS) Interrupt(queue int) {
	if queue == 0 { // workers of all queues serve the high-priority one
		fs.waits.cancelAll()
		return
	}
	fs.waits.cancelQueue(queue)
}

// Close gives back the descriptors that the file system opened for itself. No thread may use it any more.
func (fs *FS) Close() error {
	fs.lookout.close()
	fs.background.close()
	fs.Reset()
	fs.closeMounts()
	return nil
}

// Stats are figures of the moment.
type Stats struct {
	Inodes, OpenFiles int   // known to the guest, the root included; open files and directories
	CachedFDs         int64 // O_PATH descriptors
	Budget            int64 // how many of those there should be at most
	Evictions         int64 // descriptors closed because of the budget
	Stale             int64 // requests that named an inode which nothing led to any more
}

// Stats reads the figures.
func (fs *FS) Stats() Stats {
	return Stats{fs.nodes.len(), fs.files.len(), fs.fds.open.Load(), fs.fds.budget(), fs.fds.evictions.Load(), fs.stale.Load()}
}

// fdName writes a descriptor's number and a NUL to buf and returns its start.
func fdName(buf []byte, fd int) *byte {
	i := len(buf) - 1
	buf[i] = 0
	for {
		i--
		buf[i] = byte('0' + fd%10)
		if fd /= 10; fd == 0 {
			return &buf[i]
		}
	}
}
