package fuse_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
)

// decoded is how a request was understood: the operation, its node, and every field that it depends on, in words.
type decoded []string

func (d *decoded) add(op string, node uint64, what ...any) {
	*d = append(*d, fmt.Sprintf("%s %d %v", op, node, what))
}

// ours writes down what this package's decoder hands to the file system.
type ours struct {
	fuse.Thread // nil: what is not below is not compared
	got         decoded
}

func (o *ours) Init(fuseabi.InitFlags) fuseabi.InitFlags { return 0 }
func (o *ours) NewThread(int) (fuse.Thread, error)       { return o, nil }
func (o *ours) Reset()                                   {}
func (o *ours) Abort()                                   {}
func (o *ours) Changing()                                {}
func (o *ours) Ahead() bool                              { return false }
func (o *ours) Tidy() bool                               { return false }
func (o *ours) Close()                                   {}

// Interrupt is both the file system's and the thread's in this double role; neither is compared.
type oursFS struct{ *ours }

func (oursFS) Interrupt(int) {}

func (oursFS) Init(offered fuseabi.InitFlags) fuseabi.InitFlags {
	return offered & fuseabi.CreateSuppGroup
}

func (o *ours) Lookup(parent uint64, name fuse.Name, _ *fuseabi.EntryOut) unix.Errno {
	o.got.add("LOOKUP", parent, name.String())
	return unix.ENOENT
}
func (o *ours) Forget(node, n uint64) { o.got.add("FORGET", node, n) }
func (o *ours) Getattr(in *fuseabi.GetattrIn, _ *fuseabi.AttrOut) unix.Errno {
	o.got.add("GETATTR", in.NodeId, in.Flags_, in.Fh_)
	return unix.ENOENT
}
func (o *ours) Statx(in *fuseabi.StatxIn, _ *fuseabi.StatxOut) unix.Errno {
	o.got.add("STATX", in.NodeId, in.GetattrFlags, in.Fh, in.SxFlags, in.SxMask)
	return unix.ENOENT
}
func (o *ours) Setattr(c *fuse.Caller, in *fuseabi.SetattrIn, _ *fuseabi.AttrOut) unix.Errno {
	o.got.add("SETATTR", in.NodeId, in.SetAttrInCommon, c.UID, c.GID)
	return unix.ENOENT
}
func (o *ours) Readlink(node uint64, _ []byte) (int, unix.Errno) {
	o.got.add("READLINK", node)
	return 0, unix.ENOENT
}
func (o *ours) Access(c *fuse.Caller, node uint64, mask uint32) unix.Errno {
	o.got.add("ACCESS", node, mask, c.UID, c.GID)
	return unix.ENOENT
}
func (o *ours) Statfs(node uint64, _ *fuseabi.StatfsOut) unix.Errno {
	o.got.add("STATFS", node)
	return unix.ENOENT
}
func (o *ours) Symlink(c *fuse.Caller, parent uint64, name, target fuse.Name, _ *fuseabi.EntryOut) unix.Errno {
	o.got.add("SYMLINK", parent, name.String(), target.String(), c.UID, c.GID)
	return unix.ENOENT
}
func (o *ours) Mknod(c *fuse.Caller, in *fuseabi.MknodIn, name fuse.Name, _ *fuseabi.EntryOut) unix.Errno {
	o.got.add("MKNOD", in.NodeId, name.String(), in.Mode, in.Rdev, in.Umask, c.UID, c.GID)
	return unix.ENOENT
}
func (o *ours) Mkdir(c *fuse.Caller, in *fuseabi.MkdirIn, name fuse.Name, _ *fuseabi.EntryOut) unix.Errno {
	o.got.add("MKDIR", in.NodeId, name.String(), in.Mode, in.Umask, c.UID, c.GID)
	return unix.ENOENT
}
func (o *ours) Create(c *fuse.Caller, in *fuseabi.CreateIn, name fuse.Name, _ *fuseabi.CreateOut) unix.Errno {
	o.got.add("CREATE", in.NodeId, name.String(), in.Flags, in.Mode, in.Umask, in.OpenFlags, c.UID, c.GID)
	return unix.ENOENT
}
func (o *ours) Link(node, newParent uint64, newName fuse.Name, _ *fuseabi.EntryOut) unix.Errno {
	o.got.add("LINK", newParent, newName.String(), node)
	return unix.ENOENT
}
func (o *ours) Unlink(parent uint64, name fuse.Name) unix.Errno {
	o.got.add("UNLINK", parent, name.String())
	return unix.ENOENT
}
func (o *ours) Rmdir(parent uint64, name fuse.Name) unix.Errno {
	o.got.add("RMDIR", parent, name.String())
	return unix.ENOENT
}
func (o *ours) Rename(_ *fuse.Caller, parent uint64, name fuse.Name, newParent uint64, newName fuse.Name, flags uint32) unix.Errno {
	o.got.add("RENAME", parent, name.String(), newParent, newName.String(), flags)
	return unix.ENOENT
}
func (o *ours) Open(in *fuseabi.OpenIn, _ *fuseabi.OpenOut) unix.Errno {
	o.got.add("OPEN", in.NodeId, in.Flags, in.Mode)
	return unix.ENOENT
}
func (o *ours) Opendir(in *fuseabi.OpenIn, _ *fuseabi.OpenOut) unix.Errno {
	o.got.add("OPENDIR", in.NodeId, in.Flags, in.Mode)
	return unix.ENOENT
}
func (o *ours) Read(in *fuseabi.ReadIn, dst []unix.Iovec) (int, unix.Errno) {
	o.got.add("READ", in.NodeId, in.Fh, in.Offset, in.Size, in.ReadFlags, in.LockOwner, in.Flags)
	return 0, unix.ENOENT
}
func (o *ours) Write(in *fuseabi.WriteIn, src []unix.Iovec) (int, unix.Errno) {
	data := make([]byte, in.Size)
	n := fuseabi.CopyIn(data, src, 0)
	o.got.add("WRITE", in.NodeId, in.Fh, in.Offset, in.WriteFlags, in.LockOwner, in.Flags, data[:n])
	return 0, unix.ENOENT
}
func (o *ours) Flush(in *fuseabi.FlushIn) unix.Errno {
	o.got.add("FLUSH", in.NodeId, in.Fh, in.LockOwner)
	return unix.ENOENT
}
func (o *ours) Fsync(in *fuseabi.FsyncIn, dir bool) unix.Errno {
	o.got.add("FSYNC", in.NodeId, in.Fh, in.FsyncFlags, dir)
	return unix.ENOENT
}
func (o *ours) Release(in *fuseabi.ReleaseIn, dir bool) unix.Errno {
	o.got.add("RELEASE", in.NodeId, in.Fh, in.Flags, in.ReleaseFlags, in.LockOwner, dir)
	return 0
}
func (o *ours) Fallocate(in *fuseabi.FallocateIn) unix.Errno {
	o.got.add("FALLOCATE", in.NodeId, in.Fh, in.Offset, in.Length, in.Mode)
	return unix.ENOENT
}
func (o *ours) Lseek(in *fuseabi.LseekIn, _ *fuseabi.LseekOut) unix.Errno {
	o.got.add("LSEEK", in.NodeId, in.Fh, in.Offset, in.Whence)
	return unix.ENOENT
}
func (o *ours) CopyFileRange(in *fuseabi.CopyFileRangeIn) (uint64, unix.Errno) {
	o.got.add("COPY_FILE_RANGE", in.NodeId, in.FhIn, in.OffIn, in.NodeIdOut, in.FhOut, in.OffOut, min(in.Len, 1<<31), in.Flags)
	return 0, unix.ENOENT
}
func (o *ours) Lock(_ *fuse.Caller, in *fuseabi.LkIn, _ *fuseabi.LkOut) unix.Errno {
	o.got.add("LOCK", in.NodeId, in.Opcode, in.Fh, in.Owner, in.Lk, in.LkFlags)
	return unix.ENOENT
}
func (o *ours) Readdir(in *fuseabi.ReadIn, plus bool, _ []byte) (int, unix.Errno) {
	o.got.add("READDIR", in.NodeId, in.Fh, in.Offset, in.Size, plus)
	return 0, unix.ENOENT
}
func (o *ours) Getxattr(node uint64, name fuse.Name, buf []byte) (int, unix.Errno) {
	o.got.add("GETXATTR", node, name.String(), len(buf))
	return 0, unix.ENODATA
}
func (o *ours) Listxattr(node uint64, buf []byte) (int, unix.Errno) {
	o.got.add("LISTXATTR", node, len(buf))
	return 0, unix.ENODATA
}
func (o *ours) Setxattr(node uint64, name fuse.Name, value []byte, flags, ext uint32) unix.Errno {
	o.got.add("SETXATTR", node, name.String(), value, flags, ext)
	return unix.ENODATA
}
func (o *ours) Removexattr(node uint64, name fuse.Name) unix.Errno {
	o.got.add("REMOVEXATTR", node, name.String())
	return unix.ENODATA
}

// theirs writes down what go-fuse's decoder hands to its file system.
type theirs struct {
	gofuse.RawFileSystem
	got decoded
}

type cancel = <-chan struct{}

func (o *theirs) Lookup(_ cancel, h *gofuse.InHeader, name string, _ *gofuse.EntryOut) gofuse.Status {
	o.got.add("LOOKUP", h.NodeId, name)
	return gofuse.ENOENT
}
func (o *theirs) Forget(node, n uint64) { o.got.add("FORGET", node, n) }
func (o *theirs) GetAttr(_ cancel, in *gofuse.GetAttrIn, _ *gofuse.AttrOut) gofuse.Status {
	o.got.add("GETATTR", in.NodeId, in.Flags_, in.Fh_)
	return gofuse.ENOENT
}
func (o *theirs) Statx(_ cancel, in *gofuse.StatxIn, _ *gofuse.StatxOut) gofuse.Status {
	o.got.add("STATX", in.NodeId, in.GetattrFlags, in.Fh, in.SxFlags, in.SxMask)
	return gofuse.ENOENT
}
func (o *theirs) SetAttr(_ cancel, in *gofuse.SetAttrIn, _ *gofuse.AttrOut) gofuse.Status {
	o.got.add("SETATTR", in.NodeId, in.SetAttrInCommon, in.InHeader.Uid, in.InHeader.Gid)
	return gofuse.ENOENT
}
func (o *theirs) Readlink(_ cancel, h *gofuse.InHeader) ([]byte, gofuse.Status) {
	o.got.add("READLINK", h.NodeId)
	return nil, gofuse.ENOENT
}
func (o *theirs) Access(_ cancel, in *gofuse.AccessIn) gofuse.Status {
	o.got.add("ACCESS", in.NodeId, in.Mask, in.Uid, in.Gid)
	return gofuse.ENOENT
}
func (o *theirs) StatFs(_ cancel, h *gofuse.InHeader, _ *gofuse.StatfsOut) gofuse.Status {
	o.got.add("STATFS", h.NodeId)
	return gofuse.ENOENT
}
func (o *theirs) Symlink(_ cancel, h *gofuse.InHeader, target, name string, _ *gofuse.EntryOut) gofuse.Status {
	o.got.add("SYMLINK", h.NodeId, name, target, h.Uid, h.Gid)
	return gofuse.ENOENT
}
func (o *theirs) Mknod(_ cancel, in *gofuse.MknodIn, name string, _ *gofuse.EntryOut) gofuse.Status {
	o.got.add("MKNOD", in.NodeId, name, in.Mode, in.Rdev, in.Umask, in.Uid, in.Gid)
	return gofuse.ENOENT
}
func (o *theirs) Mkdir(_ cancel, in *gofuse.MkdirIn, name string, _ *gofuse.EntryOut) gofuse.Status {
	o.got.add("MKDIR", in.NodeId, name, in.Mode, in.Umask, in.Uid, in.Gid)
	return gofuse.ENOENT
}
func (o *theirs) Create(_ cancel, in *gofuse.CreateIn, name string, _ *gofuse.CreateOut) gofuse.Status {
	o.got.add("CREATE", in.NodeId, name, in.Flags, in.Mode, in.Umask, in.OpenFlags, in.Uid, in.Gid)
	return gofuse.ENOENT
}
func (o *theirs) Link(_ cancel, in *gofuse.LinkIn, name string, _ *gofuse.EntryOut) gofuse.Status {
	o.got.add("LINK", in.NodeId, name, in.Oldnodeid)
	return gofuse.ENOENT
}
func (o *theirs) Unlink(_ cancel, h *gofuse.InHeader, name string) gofuse.Status {
	o.got.add("UNLINK", h.NodeId, name)
	return gofuse.ENOENT
}
func (o *theirs) Rmdir(_ cancel, h *gofuse.InHeader, name string) gofuse.Status {
	o.got.add("RMDIR", h.NodeId, name)
	return gofuse.ENOENT
}
func (o *theirs) Rename(_ cancel, in *gofuse.RenameIn, name, newName string) gofuse.Status {
	o.got.add("RENAME", in.NodeId, name, in.Newdir, newName, in.Flags)
	return gofuse.ENOENT
}
func (o *theirs) Open(_ cancel, in *gofuse.OpenIn, _ *gofuse.OpenOut) gofuse.Status {
	o.got.add("OPEN", in.NodeId, in.Flags, in.Mode)
	return gofuse.ENOENT
}
func (o *theirs) OpenDir(_ cancel, in *gofuse.OpenIn, _ *gofuse.OpenOut) gofuse.Status {
	o.got.add("OPENDIR", in.NodeId, in.Flags, in.Mode)
	return gofuse.ENOENT
}
func (o *theirs) Read(_ cancel, in *gofuse.ReadIn, _ []byte) (gofuse.ReadResult, gofuse.Status) {
	o.got.add("READ", in.NodeId, in.Fh, in.Offset, in.Size, in.ReadFlags, in.LockOwner, in.Flags)
	return nil, gofuse.ENOENT
}
func (o *theirs) Writev(cancel, *gofuse.WriteIn, [][]byte) (uint32, gofuse.Status) {
	return 0, gofuse.ENOSYS
}
func (o *theirs) Write(_ cancel, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	// go-fuse takes all that is there for data, whatever the size says.
	o.got.add("WRITE", in.NodeId, in.Fh, in.Offset, in.WriteFlags, in.LockOwner, in.Flags, data[:min(int(in.Size), len(data))])
	return 0, gofuse.ENOENT
}
func (o *theirs) Flush(_ cancel, in *gofuse.FlushIn) gofuse.Status {
	o.got.add("FLUSH", in.NodeId, in.Fh, in.LockOwner)
	return gofuse.ENOENT
}
func (o *theirs) Fsync(_ cancel, in *gofuse.FsyncIn) gofuse.Status {
	o.got.add("FSYNC", in.NodeId, in.Fh, in.FsyncFlags, false)
	return gofuse.ENOENT
}
func (o *theirs) FsyncDir(_ cancel, in *gofuse.FsyncIn) gofuse.Status {
	o.got.add("FSYNC", in.NodeId, in.Fh, in.FsyncFlags, true)
	return gofuse.ENOENT
}
func (o *theirs) Release(_ cancel, in *gofuse.ReleaseIn) {
	o.got.add("RELEASE", in.NodeId, in.Fh, in.Flags, in.ReleaseFlags, in.LockOwner, false)
}
func (o *theirs) ReleaseDir(in *gofuse.ReleaseIn) {
	o.got.add("RELEASE", in.NodeId, in.Fh, in.Flags, in.ReleaseFlags, in.LockOwner, true)
}
func (o *theirs) Fallocate(_ cancel, in *gofuse.FallocateIn) gofuse.Status {
	o.got.add("FALLOCATE", in.NodeId, in.Fh, in.Offset, in.Length, in.Mode)
	return gofuse.ENOENT
}
func (o *theirs) Lseek(_ cancel, in *gofuse.LseekIn, _ *gofuse.LseekOut) gofuse.Status {
	o.got.add("LSEEK", in.NodeId, in.Fh, in.Offset, in.Whence)
	return gofuse.ENOENT
}
func (o *theirs) CopyFileRange(_ cancel, in *gofuse.CopyFileRangeIn) (uint32, gofuse.Status) {
	o.got.add("COPY_FILE_RANGE", in.NodeId, in.FhIn, in.OffIn, in.NodeIdOut, in.FhOut, in.OffOut, min(in.Len, 1<<31), in.Flags)
	return 0, gofuse.ENOENT
}
func (o *theirs) lock(in *gofuse.LkIn) gofuse.Status {
	o.got.add("LOCK", in.NodeId, in.Opcode, in.Fh, in.Owner, in.Lk, in.LkFlags)
	return gofuse.ENOENT
}
func (o *theirs) GetLk(_ cancel, in *gofuse.LkIn, _ *gofuse.LkOut) gofuse.Status { return o.lock(in) }
func (o *theirs) SetLk(_ cancel, in *gofuse.LkIn) gofuse.Status                  { return o.lock(in) }
func (o *theirs) SetLkw(_ cancel, in *gofuse.LkIn) gofuse.Status                 { return o.lock(in) }
func (o *theirs) ReadDir(_ cancel, in *gofuse.ReadIn, _ *gofuse.DirEntryList) gofuse.Status {
	o.got.add("READDIR", in.NodeId, in.Fh, in.Offset, in.Size, false)
	return gofuse.ENOENT
}
func (o *theirs) ReadDirPlus(_ cancel, in *gofuse.ReadIn, _ *gofuse.DirEntryList) gofuse.Status {
	o.got.add("READDIR", in.NodeId, in.Fh, in.Offset, in.Size, true)
	return gofuse.ENOENT
}
func (o *theirs) GetXAttr(_ cancel, h *gofuse.InHeader, name string, dest []byte) (uint32, gofuse.Status) {
	o.got.add("GETXATTR", h.NodeId, name, min(len(dest), 1<<16))
	return 0, gofuse.ENODATA
}
func (o *theirs) ListXAttr(_ cancel, h *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	o.got.add("LISTXATTR", h.NodeId, min(len(dest), 1<<16))
	return 0, gofuse.ENODATA
}
func (o *theirs) SetXAttr(_ cancel, in *gofuse.SetXAttrIn, name string, data []byte) gofuse.Status {
	o.got.add("SETXATTR", in.NodeId, name, data[:min(int(in.Size), len(data))], in.Flags, 0)
	return gofuse.ENODATA
}
func (o *theirs) RemoveXAttr(_ cancel, h *gofuse.InHeader, name string) gofuse.Status {
	o.got.add("REMOVEXATTR", h.NodeId, name)
	return gofuse.ENODATA
}

// compared are the opcodes whose decoding go-fuse does, too, and in a way that can be seen from its RawFileSystem.
var compared = []fuseabi.Opcode{
	fuseabi.OpLookup, fuseabi.OpForget, fuseabi.OpGetattr, fuseabi.OpSetattr, fuseabi.OpReadlink, fuseabi.OpSymlink, fuseabi.OpMknod, fuseabi.OpMkdir,
	fuseabi.OpUnlink, fuseabi.OpRmdir, fuseabi.OpRename, fuseabi.OpLink, fuseabi.OpOpen, fuseabi.OpRead, fuseabi.OpWrite, fuseabi.OpStatfs,
	fuseabi.OpRelease, fuseabi.OpFsync, fuseabi.OpSetxattr, fuseabi.OpGetxattr, fuseabi.OpListxattr, fuseabi.OpRemovexattr, fuseabi.OpFlush,
	fuseabi.OpOpendir, fuseabi.OpReaddir, fuseabi.OpReleasedir, fuseabi.OpFsyncdir, fuseabi.OpGetlk, fuseabi.OpSetlk, fuseabi.OpSetlkw,
	fuseabi.OpAccess, fuseabi.OpCreate, fuseabi.OpBatchForget, fuseabi.OpFallocate, fuseabi.OpReaddirplus, fuseabi.OpRename2, fuseabi.OpLseek,
	fuseabi.OpCopyFileRange, fuseabi.OpStatx,
}

// FuzzDecode gives the same bytes to this package's decoder and to go-fuse's. Where both accept them, they have to mean the same. Ours is
// the stricter of the two: what it accepts, go-fuse's accepts.
func FuzzDecode(f *testing.F) {
	for _, raw := range [][]byte{
		encode(fuseabi.OpLookup, 5, 9, &none{}, z("name"), nil),
		encode(fuseabi.OpRename2, 5, 9, &fuseabi.Rename2In{Newdir: 6, Flags: 1}, z("one", "two"), nil),
		encode(fuseabi.OpRename, 5, 9, &fuseabi.RenameIn{Newdir: 6}, z("one", "two"), nil),
		encode(fuseabi.OpSymlink, 5, 9, &none{}, z("name", "to/what"), nil),
		encode(fuseabi.OpSetxattr, 5, 9, &fuseabi.SetxattrCompatIn{Size: 3, Flags: 1}, append(z("user.a"), 1, 2, 3), nil),
		encode(fuseabi.OpGetxattr, 5, 9, &fuseabi.GetxattrIn{Size: 30}, z("user.a"), nil),
		encode(fuseabi.OpListxattr, 5, 9, &fuseabi.GetxattrIn{}, nil, nil),
		encode(fuseabi.OpWrite, 5, 9, &fuseabi.WriteIn{Fh: 3, Offset: 4, Size: 3}, []byte("abc"), nil),
		encode(fuseabi.OpRead, 5, 9, &fuseabi.ReadIn{Fh: 3, Offset: 4, Size: 300}, nil, nil),
		encode(fuseabi.OpReaddirplus, 5, 9, &fuseabi.ReadIn{Fh: 3, Offset: 4, Size: 300}, nil, nil),
		encode(fuseabi.OpBatchForget, 5, 9, &fuseabi.BatchForgetIn{Count: 2}, make([]byte, 32), nil),
		encode(fuseabi.OpForget, 5, 9, &fuseabi.ForgetIn{Nlookup: 2}, nil, nil),
		encode(fuseabi.OpMkdir, 5, 9, &fuseabi.MkdirIn{Mode: 1, Umask: 2}, z("d"), groups(4)),
		encode(fuseabi.OpCreate, 5, 9, &fuseabi.CreateIn{Flags: 1, Mode: 2, Umask: 3, OpenFlags: 1}, z("d"), groups(4)),
		encode(fuseabi.OpMknod, 5, 9, &fuseabi.MknodIn{Mode: 1, Rdev: 2, Umask: 3}, z("n"), nil),
		encode(fuseabi.OpLink, 5, 9, &fuseabi.LinkIn{Oldnodeid: 7}, z("n"), nil),
		encode(fuseabi.OpSetattr, 5, 9, &fuseabi.SetattrIn{SetAttrInCommon: gofuse.SetAttrInCommon{Valid: 1, Mode: 3}}, nil, nil),
		encode(fuseabi.OpSetlkw, 5, 9, &fuseabi.LkIn{Fh: 1, Owner: 2, Lk: fuseabi.FileLock{Start: 1, End: 2, Typ: 1}}, nil, nil),
		encode(fuseabi.OpCopyFileRange, 5, 9, &fuseabi.CopyFileRangeIn{FhIn: 1, OffIn: 2, NodeIdOut: 3, FhOut: 4, OffOut: 5, Len: 6}, nil, nil),
		encode(fuseabi.OpStatx, 5, 9, &fuseabi.StatxIn{SxMask: 7}, nil, nil),
		encode(fuseabi.OpFallocate, 5, 9, &fuseabi.FallocateIn{Fh: 1, Offset: 2, Length: 3, Mode: 4}, nil, nil),
		encode(fuseabi.OpLseek, 5, 9, &fuseabi.LseekIn{Fh: 1, Offset: 2, Whence: 3}, nil, nil),
		encode(fuseabi.OpRelease, 5, 9, &fuseabi.ReleaseIn{Fh: 1, Flags: 2, ReleaseFlags: 1, LockOwner: 3}, nil, nil),
	} {
		f.Add(raw, uint64(0))
		f.Add(raw, uint64(len(raw)))
	}
	log.SetOutput(io.Discard)                                                // go-fuse tells of each request that it refuses
	offered := fuseabi.BigWrites | fuseabi.InitExt | fuseabi.CreateSuppGroup // extensions are read only where they were agreed upon
	init := encode(fuseabi.OpInit, 0, 1, &fuseabi.InitIn{Major: 7, Minor: 38, Flags: uint32(offered), Flags2: uint32(offered >> 32)}, nil, nil)
	quiet := log.New(io.Discard, "", 0)

	they := &theirs{RawFileSystem: gofuse.NewDefaultRawFileSystem()}
	server := gofuse.NewProtocolServer(they, &gofuse.MountOptions{Logger: quiet, PanicHandler: func(p any) gofuse.Status { panic(p) }})
	n, status := server.HandleRequest([][]byte{init}, [][]byte{make([]byte, 80)})
	require.True(f, status.Ok() && n == 80)

	f.Fuzz(func(t *testing.T, raw []byte, seed uint64) {
		if len(raw) < fuseabi.InHeaderSize {
			return
		}
		raw = bytes.Clone(raw)
		op := fuseabi.Opcode(binary.LittleEndian.Uint32(raw[4:]))
		if !slices.Contains(compared, op) || binary.LittleEndian.Uint64(raw[16:]) == math.MaxUint64 { // a node that go-fuse keeps for itself
			return
		}
		if op == fuseabi.OpWrite || op == fuseabi.OpBatchForget {
			binary.LittleEndian.PutUint16(raw[36:], 0) // no extension belongs there, and ours does not look for one
		}
		extended := binary.LittleEndian.Uint16(raw[36:]) != 0
		binary.LittleEndian.PutUint32(raw, uint32(len(raw))) // go-fuse believes the memory, not the header
		o := &ours{}
		var used uint32
		done := make(chan any, 1)
		out := make([]byte, 1<<17)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			defer func() { done <- recover() }()
			w, err := fuse.NewSession(oursFS{o}, fuse.SessionConfig{}).NewHandler(1)
			require.NoError(t, err)
			cut := cutting(seed % 16)
			if cut == nil {
				cut = whole
			}
			own := fuseabi.Buffer(len(init))
			copy(own, init)
			w.Serve(whole(own), whole(out))
			own = fuseabi.Buffer(len(raw))
			copy(own, raw)
			used = w.Serve(cut(own), whole(out))
		}()
		require.Nil(t, <-done)
		if len(o.got) == 0 {
			return // refused
		}
		they.got = nil
		theirIn := fuseabi.Buffer(len(raw)) // go-fuse lays structures over it
		copy(theirIn, raw)
		_, status := server.HandleRequest([][]byte{theirIn}, [][]byte{make([]byte, 1<<17)})
		switch {
		case len(they.got) == 0 && extended: // it knows fewer extensions
		case op == fuseabi.OpForget || op == fuseabi.OpBatchForget:
			require.Zero(t, used)
			if op == fuseabi.OpBatchForget && len(they.got) > len(o.got) {
				they.got = they.got[:len(o.got)] // go-fuse forgets what is there, however many are announced
			}
			if bytes.Contains(raw, bytes.Repeat([]byte{0xff}, 8)) {
				return // a node that go-fuse keeps for itself
			}
			require.Equal(t, strings.Join(o.got, "\n"), strings.Join(they.got, "\n"))
		case !status.Ok() || len(they.got) == 0:
			require.Fail(t, "go-fuse refuses what ours accepts", "%v: %v", status, o.got)
		default:
			require.Equal(t, strings.Join(o.got, "\n"), strings.Join(they.got, "\n"))
		}
	})
}
