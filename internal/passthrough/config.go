package passthrough

import (
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// Cache says how long a guest may believe what it was told (virtiofsd's --cache).
type Cache int

// Cache policies. The timeouts are those of the Rust virtiofsd.
const (
	CacheAuto     Cache = iota // names and attributes for a second, data until the next open finds it changed
	CacheNever                 // nothing
	CacheMetadata              // names, attributes and directories for a day, no data
	CacheAlways                // everything for a day
)

func (c Cache) timeout() time.Duration {
	switch c {
	case CacheNever:
		return 0
	case CacheAuto:
		return time.Second
	}
	return 24 * time.Hour
}

// Handles says whether export handles (name_to_handle_at) find files again whose descriptor was closed.
type Handles int

// Uses of export handles. They need CAP_DAC_READ_SEARCH.
const (
	HandlesPrefer    Handles = iota // where they work
	HandlesNever                    // parent and name only
	HandlesMandatory                // refuse to start, or to look up, where they do not work
)

// Translator maps ids between guest and host (virtiofsd's --translate-uid and --translate-gid). An id that may not be used
// is an error number for the guest.
type Translator interface {
	ToHost(id uint32) (uint32, unix.Errno)
	ToGuest(id uint32) (uint32, unix.Errno)
}

// XattrMapper renames extended attributes between guest and host (virtiofsd's --xattrmap). Names come and go without NUL;
// results are appended to dst.
type XattrMapper interface {
	// ToHost makes the host's name of an attribute that the guest names, or an error number for the guest.
	ToHost(dst, guest []byte) ([]byte, unix.Errno)
	// ToGuest makes the guest's name of an attribute that the host lists; keep is false for one to hide.
	ToGuest(dst, host []byte) (guest []byte, keep bool)
}

// Config is what the file system does beyond the obvious. The zero value is a writable share with cache auto, without
// extended attributes, locks, or writeback.
type Config struct {
	Cache     Cache
	AllowMmap bool // with CacheNever and CacheMetadata: allow shared mappings (DIRECT_IO_ALLOW_MMAP)
	Writeback bool // the guest delays writes
	Readonly  bool // EROFS for whatever changes something

	Xattr         bool        // extended attributes
	XattrMap      XattrMapper // nil: names are the same on both sides
	PosixACL      bool        // access control lists; needs Xattr
	SecurityLabel bool        // labels for what is created; needs Xattr
	KillprivV2    bool        // we clear set-user-ID and set-group-ID bits whenever data changes, not the guest

	AnnounceSubmounts bool
	NoReaddirplus     bool
	AllowDirectIO     bool // keep O_DIRECT of the guest's open
	PreserveNoatime   bool // keep O_NOATIME of the guest's open
	Flock, PosixLock  bool // locks hold between guests and on the host

	TranslateUID, TranslateGID Translator // nil: ids are the same on both sides

	Lookout bool // a thread besides the workers may look at a directory's entries before the guest asks for them

	InodeFileHandles Handles
	LockWaits        int // most requests that may wait for a lock at once, 0 for the default
	FDBudget         int // most O_PATH descriptors to keep open; 0: half of RLIMIT_NOFILE, at most 65536

	// Shrunk is called when many inodes were forgotten, with locks held; nil: nobody wants to know.
	Shrunk func()

	Logger *slog.Logger // nil: no log
}
