package fuseabi

import (
	"fmt"
	"strings"
)

// Protocol versions. MinMinor is the oldest that we talk: 7.27 is what virtio-fs began with (Linux 5.4).
const (
	Major    = 7
	Minor    = 45
	MinMinor = 27
	RootID   = 1
)

// InitFlags are the bits of INIT's flags (low word) and flags2 (high word).
type InitFlags uint64

// INIT flags (linux/fuse.h, "INIT request/reply flags").
const (
	AsyncRead          InitFlags = 1 << 0
	PosixLocks         InitFlags = 1 << 1
	AtomicOTrunc       InitFlags = 1 << 3
	ExportSupport      InitFlags = 1 << 4
	BigWrites          InitFlags = 1 << 5
	DontMask           InitFlags = 1 << 6
	FlockLocks         InitFlags = 1 << 10
	HasIoctlDir        InitFlags = 1 << 11
	AutoInvalData      InitFlags = 1 << 12
	DoReaddirplus      InitFlags = 1 << 13
	ReaddirplusAuto    InitFlags = 1 << 14
	AsyncDIO           InitFlags = 1 << 15
	WritebackCache     InitFlags = 1 << 16
	NoOpenSupport      InitFlags = 1 << 17
	ParallelDirops     InitFlags = 1 << 18
	HandleKillpriv     InitFlags = 1 << 19
	PosixACL           InitFlags = 1 << 20
	AbortError         InitFlags = 1 << 21
	MaxPages           InitFlags = 1 << 22
	CacheSymlinks      InitFlags = 1 << 23
	NoOpendirSupport   InitFlags = 1 << 24
	ExplicitInvalData  InitFlags = 1 << 25
	MapAlignment       InitFlags = 1 << 26
	Submounts          InitFlags = 1 << 27
	HandleKillprivV2   InitFlags = 1 << 28
	SetxattrExt        InitFlags = 1 << 29
	InitExt            InitFlags = 1 << 30
	SecurityCtx        InitFlags = 1 << 32
	HasInodeDAX        InitFlags = 1 << 33
	CreateSuppGroup    InitFlags = 1 << 34
	HasExpireOnly      InitFlags = 1 << 35
	DirectIOAllowMmap  InitFlags = 1 << 36
	Passthrough        InitFlags = 1 << 37
	NoExportSupport    InitFlags = 1 << 38
	HasResend          InitFlags = 1 << 39
	AllowIdmap         InitFlags = 1 << 40
	OverIOUring        InitFlags = 1 << 41
	RequestTimeoutFlag InitFlags = 1 << 42
)

var initFlagNames = map[InitFlags]string{
	AsyncRead: "ASYNC_READ", PosixLocks: "POSIX_LOCKS", AtomicOTrunc: "ATOMIC_O_TRUNC", ExportSupport: "EXPORT_SUPPORT",
	BigWrites: "BIG_WRITES", DontMask: "DONT_MASK", FlockLocks: "FLOCK_LOCKS", HasIoctlDir: "HAS_IOCTL_DIR",
	AutoInvalData: "AUTO_INVAL_DATA", DoReaddirplus: "DO_READDIRPLUS", ReaddirplusAuto: "READDIRPLUS_AUTO",
	AsyncDIO: "ASYNC_DIO", WritebackCache: "WRITEBACK_CACHE", NoOpenSupport: "NO_OPEN_SUPPORT",
	ParallelDirops: "PARALLEL_DIROPS", HandleKillpriv: "HANDLE_KILLPRIV", PosixACL: "POSIX_ACL", AbortError: "ABORT_ERROR",
	MaxPages: "MAX_PAGES", CacheSymlinks: "CACHE_SYMLINKS", NoOpendirSupport: "NO_OPENDIR_SUPPORT",
	ExplicitInvalData: "EXPLICIT_INVAL_DATA", MapAlignment: "MAP_ALIGNMENT", Submounts: "SUBMOUNTS",
	HandleKillprivV2: "HANDLE_KILLPRIV_V2", SetxattrExt: "SETXATTR_EXT", InitExt: "INIT_EXT", SecurityCtx: "SECURITY_CTX",
	HasInodeDAX: "HAS_INODE_DAX", CreateSuppGroup: "CREATE_SUPP_GROUP", HasExpireOnly: "HAS_EXPIRE_ONLY",
	DirectIOAllowMmap: "DIRECT_IO_ALLOW_MMAP", Passthrough: "PASSTHROUGH", NoExportSupport: "NO_EXPORT_SUPPORT",
	HasResend: "HAS_RESEND", AllowIdmap: "ALLOW_IDMAP", OverIOUring: "OVER_IO_URING", RequestTimeoutFlag: "REQUEST_TIMEOUT",
}

// String lists the flags' names from the lowest bit up; bits without a name stand as numbers.
func (f InitFlags) String() string {
	var words []string
	for bit := range 64 {
		b := InitFlags(1) << bit
		if f&b == 0 {
			continue
		}
		if n, ok := initFlagNames[b]; ok {
			words = append(words, n)
		} else {
			words = append(words, fmt.Sprintf("bit%d", bit))
		}
	}
	return strings.Join(words, "|")
}

// FATTR bits: which fields SETATTR sets.
const (
	FattrMode        = 1 << 0
	FattrUID         = 1 << 1
	FattrGID         = 1 << 2
	FattrSize        = 1 << 3
	FattrAtime       = 1 << 4
	FattrMtime       = 1 << 5
	FattrFH          = 1 << 6
	FattrAtimeNow    = 1 << 7
	FattrMtimeNow    = 1 << 8
	FattrLockOwner   = 1 << 9
	FattrCtime       = 1 << 10
	FattrKillSuidGid = 1 << 11
)

// FOPEN bits: what OPEN, OPENDIR and CREATE answer.
const (
	FopenDirectIO             = 1 << 0
	FopenKeepCache            = 1 << 1
	FopenCacheDir             = 1 << 3
	FopenNoflush              = 1 << 5
	FopenParallelDirectWrites = 1 << 6
)

// Flags of single requests.
const (
	GetattrFH           = 1 << 0 // GetAttrIn.Flags: Fh is valid
	OpenKillSuidGid     = 1 << 0 // OpenIn.Mode, CreateIn.OpenFlags
	ReadLockOwner       = 1 << 1 // ReadIn.ReadFlags
	WriteCache          = 1 << 0 // WriteIn.WriteFlags: delayed write from the page cache
	WriteLockOwner      = 1 << 1
	WriteKillSuidGid    = 1 << 2
	ReleaseFlush        = 1 << 0
	ReleaseFlockUnlock  = 1 << 1
	FsyncFdatasync      = 1 << 0 // FsyncIn.FsyncFlags
	SetxattrACLKillSgid = 1 << 0 // SetXAttrIn.SetXAttrFlags
	AttrSubmount        = 1 << 0 // Attr.Flags
	LkFlock             = 1 << 0 // LkIn.LkFlags
)

// Extension types (linux/fuse.h, enum fuse_ext_type). Types up to MaxNrSecctx are the number of security contexts.
const (
	MaxNrSecctx = 31
	ExtGroups   = 32
)
