package fuseabi

import (
	"encoding/binary"
	"reflect"
	"testing"

	gofusefuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// kernelSizes are sizeof(struct fuse_…) as a C compiler gives them for linux/fuse.h (7.38; STATX: 7.39), without the
// header that go-fuse puts in front of request structures.
var kernelSizes = []struct {
	structure string
	request   bool
	size      int
	got       int
}{
	{"fuse_in_header", false, 40, Size[InHeader]()},
	{"fuse_out_header", false, 16, Size[OutHeader]()},
	{"fuse_init_in", true, 64, Size[InitIn]()},
	{"fuse_init_out", false, 64, Size[InitOut]()},
	{"fuse_forget_in", true, 8, Size[ForgetIn]()},
	{"fuse_forget_one", false, 16, Size[ForgetOne]()},
	{"fuse_batch_forget_in", true, 8, Size[BatchForgetIn]()},
	{"fuse_getattr_in", true, 16, Size[GetattrIn]()},
	{"fuse_setattr_in", true, 88, Size[SetattrIn]()},
	{"fuse_mknod_in", true, 16, Size[MknodIn]()},
	{"fuse_mkdir_in", true, 8, Size[MkdirIn]()},
	{"fuse_rename_in", true, 8, Size[RenameIn]()},
	{"fuse_rename2_in", true, 16, Size[Rename2In]()},
	{"fuse_link_in", true, 8, Size[LinkIn]()},
	{"fuse_open_in", true, 8, Size[OpenIn]()},
	{"fuse_create_in", true, 16, Size[CreateIn]()},
	{"fuse_read_in", true, 40, Size[ReadIn]()},
	{"fuse_write_in", true, 40, Size[WriteIn]()},
	{"fuse_release_in", true, 24, Size[ReleaseIn]()},
	{"fuse_fsync_in", true, 16, Size[FsyncIn]()},
	{"fuse_flush_in", true, 24, Size[FlushIn]()},
	{"fuse_setxattr_in", true, 16, Size[SetxattrIn]()},
	{"fuse_setxattr_in before SETXATTR_EXT", true, 8, Size[SetxattrCompatIn]()},
	{"fuse_getxattr_in", true, 8, Size[GetxattrIn]()},
	{"fuse_access_in", true, 8, Size[AccessIn]()},
	{"fuse_fallocate_in", true, 32, Size[FallocateIn]()},
	{"fuse_lseek_in", true, 24, Size[LseekIn]()},
	{"fuse_copy_file_range_in", true, 56, Size[CopyFileRangeIn]()},
	{"fuse_lk_in", true, 48, Size[LkIn]()},
	{"fuse_interrupt_in", true, 8, Size[InterruptIn]()},
	{"fuse_ioctl_in", true, 32, Size[IoctlIn]()},
	{"fuse_syncfs_in", true, 8, Size[SyncfsIn]()},
	{"fuse_statx_in", true, 24, Size[StatxIn]()},
	{"fuse_attr", false, 88, Size[Attr]()},
	{"fuse_attr_out", false, 104, Size[AttrOut]()},
	{"fuse_entry_out", false, 128, Size[EntryOut]()},
	{"fuse_open_out", false, 16, Size[OpenOut]()},
	{"fuse_entry_out and fuse_open_out", false, 144, Size[CreateOut]()},
	{"fuse_write_out", false, 8, Size[WriteOut]()},
	{"fuse_statfs_out", false, 80, Size[StatfsOut]()},
	{"fuse_getxattr_out", false, 8, Size[GetxattrOut]()},
	{"fuse_lseek_out", false, 8, Size[LseekOut]()},
	{"fuse_lk_out", false, 24, Size[LkOut]()},
	{"fuse_file_lock", false, 24, Size[FileLock]()},
	{"fuse_statx_out", false, 288, Size[StatxOut]()},
	{"fuse_copy_file_range_out", false, 8, Size[CopyFileRangeOut]()},
	{"fuse_dirent", false, 24, Size[Dirent]()},
	{"fuse_direntplus", false, 152, Size[Direntplus]()},
}

func TestSizesAreTheKernels(t *testing.T) {
	for _, k := range kernelSizes {
		want := k.size
		if k.request {
			want += InHeaderSize
		}
		assert.Equal(t, want, k.got, "struct %s", k.structure)
	}
	assert.Equal(t, InHeaderSize, Size[InHeader]())
	assert.Equal(t, OutHeaderSize, Size[OutHeader]())
	assert.Equal(t, DirentSize, Size[Dirent]())
	assert.Equal(t, DirentplusSize, Size[Direntplus]())
	assert.Equal(t, ForgetOneSize, Size[ForgetOne]())
}

// Offsets of linux/fuse.h, of every field that stands behind one of another size or was added later.
func TestOffsetsAreTheKernels(t *testing.T) {
	offset := func(v any, path ...string) int {
		typ, at := reflect.TypeOf(v), uintptr(0)
		for _, name := range path {
			f, ok := typ.FieldByName(name)
			require.True(t, ok, "%s has no field %s", typ, name)
			// A promoted field's Offset counts from the structure it is embedded in.
			at += f.Offset
			for i := range len(f.Index) - 1 {
				at += typ.FieldByIndex(f.Index[:i+1]).Offset
			}
			typ = f.Type
		}
		return int(at)
	}
	for _, k := range []struct {
		v    any
		path string
		want int
	}{
		{InHeader{}, "Unique", 8},
		{InHeader{}, "NodeId", 16},
		{InHeader{}, "Uid", 24},
		{InHeader{}, "Pid", 32},
		{InHeader{}, "TotalExtlen", 36},
		{InitIn{}, "Flags2", 40 + 16},
		{InitOut{}, "MaxBackground", 16},
		{InitOut{}, "MaxWrite", 20},
		{InitOut{}, "TimeGran", 24},
		{InitOut{}, "MaxPages", 28},
		{InitOut{}, "Flags2", 32},
		{SetattrIn{}, "LockOwner", 40 + 24},
		{SetattrIn{}, "Ctimensec", 40 + 64},
		{SetattrIn{}, "Mode", 40 + 68},
		{CreateIn{}, "Umask", 40 + 8},
		{ReadIn{}, "Size", 40 + 16},
		{ReadIn{}, "ReadFlags", 40 + 20},
		{ReadIn{}, "LockOwner", 40 + 24},
		{ReadIn{}, "Flags", 40 + 32},
		{WriteIn{}, "Size", 40 + 16},
		{WriteIn{}, "WriteFlags", 40 + 20},
		{WriteIn{}, "Flags", 40 + 32},
		{MknodIn{}, "Rdev", 40 + 4},
		{MknodIn{}, "Umask", 40 + 8},
		{SetxattrIn{}, "SetXAttrFlags", 40 + 8},
		{LkIn{}, "Owner", 40 + 8},
		{LkIn{}, "Lk", 40 + 16},
		{LkIn{}, "LkFlags", 40 + 40},
		{FallocateIn{}, "Mode", 40 + 24},
		{CopyFileRangeIn{}, "NodeIdOut", 40 + 16},
		{CopyFileRangeIn{}, "Len", 40 + 40},
		{CopyFileRangeIn{}, "Flags", 40 + 48},
		{Attr{}, "Atimensec", 48},
		{Attr{}, "Mode", 60},
		{Attr{}, "Nlink", 64},
		{Attr{}, "Rdev", 76},
		{Attr{}, "Blksize", 80},
		{EntryOut{}, "Attr", 40},
		{Dirent{}, "NameLen", 16},
		{Dirent{}, "Type", 20},
		{Direntplus{}, "Dirent", 128},
		{ReleaseIn{}, "ReleaseFlags", 40 + 12},
		{ReleaseIn{}, "LockOwner", 40 + 16},
		{FlushIn{}, "LockOwner", 40 + 16},
		{LseekIn{}, "Whence", 40 + 16},
		{StatxIn{}, "Fh", 40 + 8},
	} {
		assert.Equal(t, k.want, offset(k.v, k.path), "%T.%s", k.v, k.path)
	}
	// SETATTR's ids are an embedded pair in go-fuse.
	in := Buffer(Size[SetattrIn]())
	binary.LittleEndian.PutUint32(in[40+76:], 4711)
	binary.LittleEndian.PutUint32(in[40+80:], 815)
	v := View[SetattrIn](in)
	assert.Equal(t, []uint32{4711, 815}, []uint32{v.Owner.Uid, v.Owner.Gid})
}

// go-fuse keeps its own list of flags: two hands wrote the same header.
func TestInitFlagsAgreeWithGoFuse(t *testing.T) {
	for want, flags := range map[uint64]InitFlags{
		gofusefuse.CAP_ASYNC_READ: AsyncRead, gofusefuse.CAP_POSIX_LOCKS: PosixLocks, gofusefuse.CAP_ATOMIC_O_TRUNC: AtomicOTrunc,
		gofusefuse.CAP_EXPORT_SUPPORT: ExportSupport, gofusefuse.CAP_BIG_WRITES: BigWrites, gofusefuse.CAP_DONT_MASK: DontMask,
		gofusefuse.CAP_FLOCK_LOCKS: FlockLocks, gofusefuse.CAP_IOCTL_DIR: HasIoctlDir, gofusefuse.CAP_AUTO_INVAL_DATA: AutoInvalData,
		gofusefuse.CAP_READDIRPLUS: DoReaddirplus, gofusefuse.CAP_READDIRPLUS_AUTO: ReaddirplusAuto, gofusefuse.CAP_ASYNC_DIO: AsyncDIO,
		gofusefuse.CAP_WRITEBACK_CACHE: WritebackCache, gofusefuse.CAP_NO_OPEN_SUPPORT: NoOpenSupport,
		gofusefuse.CAP_PARALLEL_DIROPS: ParallelDirops, gofusefuse.CAP_HANDLE_KILLPRIV: HandleKillpriv,
		gofusefuse.CAP_POSIX_ACL: PosixACL, gofusefuse.CAP_ABORT_ERROR: AbortError, gofusefuse.CAP_MAX_PAGES: MaxPages,
		gofusefuse.CAP_CACHE_SYMLINKS: CacheSymlinks, gofusefuse.CAP_NO_OPENDIR_SUPPORT: NoOpendirSupport,
		gofusefuse.CAP_EXPLICIT_INVAL_DATA: ExplicitInvalData, gofusefuse.CAP_MAP_ALIGNMENT: MapAlignment,
		gofusefuse.CAP_SUBMOUNTS: Submounts, gofusefuse.CAP_HANDLE_KILLPRIV_V2: HandleKillprivV2,
		gofusefuse.CAP_SETXATTR_EXT: SetxattrExt, gofusefuse.CAP_INIT_EXT: InitExt, gofusefuse.CAP_SECURITY_CTX: SecurityCtx,
		gofusefuse.CAP_HAS_INODE_DAX: HasInodeDAX, gofusefuse.CAP_CREATE_SUPP_GROUP: CreateSuppGroup,
		gofusefuse.CAP_HAS_EXPIRE_ONLY: HasExpireOnly, gofusefuse.CAP_DIRECT_IO_ALLOW_MMAP: DirectIOAllowMmap,
		gofusefuse.CAP_PASSTHROUGH: Passthrough, gofusefuse.CAP_NO_EXPORT_SUPPORT: NoExportSupport,
		gofusefuse.CAP_HAS_RESEND: HasResend, gofusefuse.CAP_ALLOW_IDMAP: AllowIdmap, gofusefuse.CAP_OVER_IO_URING: OverIOUring,
		gofusefuse.CAP_REQUEST_TIMEOUT: RequestTimeoutFlag,
	} {
		assert.Equal(t, InitFlags(want), flags, flags.String())
	}
	assert.Equal(t, "ASYNC_READ|INIT_EXT|ALLOW_IDMAP|bit63", (AsyncRead | InitExt | AllowIdmap | 1<<63).String())
	assert.Empty(t, InitFlags(0).String())
}

func TestOpcodeNames(t *testing.T) {
	assert.Equal(t, "LOOKUP", OpLookup.String())
	assert.Equal(t, "COPY_FILE_RANGE_64", OpCopyFileRange64.String())
	assert.Equal(t, "opcode 7", Opcode(7).String())
	assert.Equal(t, "opcode 4294967295", Opcode(1<<32-1).String())
	for op := range OpcodeEnd {
		silent := op == OpForget || op == OpBatchForget || op == OpInterrupt || op == OpNotifyReply
		assert.Equal(t, silent, op.NoReply(), op.String())
	}
}

// extension builds one of struct fuse_ext_header's kind; size lies if lie is not zero.
func extension(typ uint32, body []byte, lie uint32) []byte {
	size := uint32(8 + len(body))
	if lie != 0 {
		size = lie
	}
	b := binary.LittleEndian.AppendUint32(nil, size)
	b = binary.LittleEndian.AppendUint32(b, typ)
	b = append(b, body...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

func groups(announced uint32, gids ...uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, announced)
	for _, g := range gids {
		b = binary.LittleEndian.AppendUint32(b, g)
	}
	return b
}

func label(size uint32, name, value string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, size)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = append(b, name...)
	b = append(b, value...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestExtensions(t *testing.T) {
	var e Extensions
	both := append(extension(1, label(5, "security.selinux\x00", "label"), 0), extension(ExtGroups, groups(2, 4, 1001), 0)...)
	require.NoError(t, e.Parse(both))
	assert.Equal(t, []uint32{4, 1001}, e.Groups)
	require.Len(t, e.Secctx, 1)
	assert.Equal(t, "security.selinux\x00", string(e.Secctx[0].Name))
	assert.Equal(t, "label", string(e.Secctx[0].Value))

	require.NoError(t, e.Parse(append(extension(2, append(label(1, "a\x00", "x"), label(0, "b\x00", "")...), 0), extension(77, []byte("future"), 0)...)))
	require.Len(t, e.Secctx, 2)
	assert.Empty(t, e.Groups, "what was parsed before is forgotten")
	assert.Equal(t, "b\x00", string(e.Secctx[1].Name))
	assert.Empty(t, e.Secctx[1].Value)

	require.NoError(t, e.Parse(nil))
	assert.Empty(t, e.Secctx)

	tooMany := make([]uint32, 33)
	for name, b := range map[string][]byte{
		"shorter than a header":         {8, 0, 0, 0, 32},
		"size 0":                        extension(ExtGroups, groups(0), 1)[:8],
		"size below its header":         extension(ExtGroups, groups(0), 7),
		"size beyond the request":       extension(ExtGroups, groups(1, 4), 4096),
		"size 2^32-1":                   extension(ExtGroups, groups(1, 4), 1<<32-1),
		"groups without a number":       extension(ExtGroups, nil, 0),
		"more groups than sent":         extension(ExtGroups, groups(3, 4), 0),
		"2^32-1 groups":                 extension(ExtGroups, groups(1<<32-1, 4), 0),
		"more groups than taken":        extension(ExtGroups, groups(33, tooMany...), 0),
		"label without end of name":     extension(1, label(0, "security.selinu_", ""), 0),
		"label longer than the request": extension(1, label(200, "security.selinux\x00", "label"), 0),
		"label of 2^32-1 bytes":         extension(1, label(1<<32-1, "a\x00", "label"), 0),
		"fewer labels than announced":   extension(3, label(1, "a\x00", "x"), 0),
		"more labels than taken":        extension(31, label(1, "a\x00", "x"), 0),
	} {
		assert.Error(t, e.Parse(b), name)
	}
}

// FuzzExtensions: whatever the guest appends, parsing neither panics nor points outside of what was appended.
func FuzzExtensions(f *testing.F) {
	f.Add(extension(ExtGroups, groups(1, 1001), 0))
	f.Add(extension(1, label(5, "security.selinux\x00", "label"), 0))
	f.Add(extension(2, append(label(1, "a\x00", "x"), label(9, "b\x00", "")...), 0))
	f.Add([]byte{255, 255, 255, 255, 32, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Extensions
		own := append([]byte(nil), b...)
		if err := e.Parse(own[:len(own):len(own)]); err != nil {
			return
		}
		total := len(e.Groups) * 4
		for _, c := range e.Secctx {
			require.NotEmpty(t, c.Name)
			require.Zero(t, c.Name[len(c.Name)-1])
			total += len(c.Name) + len(c.Value)
		}
		require.LessOrEqual(t, total, len(b))
		require.LessOrEqual(t, len(e.Groups), 32)
		require.LessOrEqual(t, len(e.Secctx), 4)

		// Written anew from what was understood, it is understood the same.
		anew := extension(ExtGroups, groups(uint32(len(e.Groups)), e.Groups...), 0)
		var labels []byte
		for _, c := range e.Secctx {
			labels = append(labels, label(uint32(len(c.Value)), string(c.Name), string(c.Value))...)
		}
		anew = append(anew, extension(uint32(len(e.Secctx)), labels, 0)...)
		var again Extensions
		require.NoError(t, again.Parse(anew))
		require.Equal(t, len(e.Groups), len(again.Groups))
		require.Equal(t, len(e.Secctx), len(again.Secctx))
		for i := range e.Groups {
			require.Equal(t, e.Groups[i], again.Groups[i])
		}
		for i := range e.Secctx {
			require.Equal(t, string(e.Secctx[i].Name), string(again.Secctx[i].Name))
			require.Equal(t, string(e.Secctx[i].Value), string(again.Secctx[i].Value))
		}
	})
}
