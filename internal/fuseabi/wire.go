package fuseabi

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Structures that go-fuse exports. Those ending in "In" start with the request's header.
type (
	InHeader        = fuse.InHeader
	OutHeader       = fuse.OutHeader
	InitIn          = fuse.InitIn
	InitOut         = fuse.InitOut
	ForgetIn        = fuse.ForgetIn
	GetattrIn       = fuse.GetAttrIn
	SetattrIn       = fuse.SetAttrIn
	MknodIn         = fuse.MknodIn
	MkdirIn         = fuse.MkdirIn
	Rename2In       = fuse.RenameIn
	LinkIn          = fuse.LinkIn
	OpenIn          = fuse.OpenIn
	CreateIn        = fuse.CreateIn
	ReadIn          = fuse.ReadIn
	WriteIn         = fuse.WriteIn
	ReleaseIn       = fuse.ReleaseIn
	FsyncIn         = fuse.FsyncIn
	FlushIn         = fuse.FlushIn
	SetxattrIn      = fuse.SetXAttrIn
	GetxattrIn      = fuse.GetXAttrIn
	AccessIn        = fuse.AccessIn
	FallocateIn     = fuse.FallocateIn
	LseekIn         = fuse.LseekIn
	CopyFileRangeIn = fuse.CopyFileRangeIn
	LkIn            = fuse.LkIn
	InterruptIn     = fuse.InterruptIn
	IoctlIn         = fuse.IoctlIn
	StatxIn         = fuse.StatxIn

	Attr        = fuse.Attr
	AttrOut     = fuse.AttrOut
	EntryOut    = fuse.EntryOut
	OpenOut     = fuse.OpenOut
	CreateOut   = fuse.CreateOut
	WriteOut    = fuse.WriteOut
	StatfsOut   = fuse.StatfsOut
	GetxattrOut = fuse.GetXAttrOut
	LseekOut    = fuse.LseekOut
	LkOut       = fuse.LkOut
	StatxOut    = fuse.StatxOut
	FileLock    = fuse.FileLock
)

// RenameIn is the body of RENAME (struct fuse_rename_in) behind its header.
type RenameIn struct {
	InHeader
	Newdir uint64
}

// SetxattrCompatIn is SETXATTR's form when SETXATTR_EXT was not negotiated.
type SetxattrCompatIn struct {
	InHeader
	Size, Flags uint32
}

// BatchForgetIn is struct fuse_batch_forget_in behind its header; Count ForgetOnes follow.
type BatchForgetIn struct {
	InHeader
	Count, Dummy uint32
}

// ForgetOne is struct fuse_forget_one.
type ForgetOne struct {
	NodeID, Nlookup uint64
}

// SyncfsIn is struct fuse_syncfs_in behind its header.
type SyncfsIn struct {
	InHeader
	Padding uint64
}

// CopyFileRangeOut is COPY_FILE_RANGE_64's answer.
type CopyFileRangeOut struct {
	BytesCopied uint64
}

// Dirent is struct fuse_dirent without its name.
type Dirent struct {
	Ino, Off uint64
	NameLen  uint32
	Type     uint32
}

// Direntplus is struct fuse_direntplus without its name.
type Direntplus struct {
	EntryOut
	Dirent
}

// Sizes in bytes.
const (
	InHeaderSize   = 40
	OutHeaderSize  = 16
	DirentSize     = 24
	DirentplusSize = 152
	ForgetOneSize  = 16

	// InitIn before 7.36 ended behind Flags.
	InitInCompatSize = InHeaderSize + 16
	// InitOutCompatSize22 is what a 7.22 and older kernel reads.
	InitOutCompatSize22 = 24
)

// Secctx is one security context: an extended attribute to put on what is created.
type Secctx struct {
	Name  []byte // with its NUL
	Value []byte
}

// Extensions are what may follow a creating request's names (struct fuse_ext_header). Slices point into the parsed bytes.
type Extensions struct {
	Groups   []uint32 // supplementary groups of the caller
	Secctx   []Secctx
	groupBuf [32]uint32
	ctxBuf   [4]Secctx
}

// Errors of Extensions.Parse.
var (
	ErrExtension = errors.New("extension is longer than the request, or malformed")
	ErrTooMany   = errors.New("more supplementary groups or security contexts than the protocol's senders send")
)

// Reset forgets what was parsed.
func (e *Extensions) Reset() { e.Groups, e.Secctx = e.groupBuf[:0], e.ctxBuf[:0] }

// Parse reads extensions: each has a header of size (including itself) and type, and a multiple of 8 bytes. Unknown types
// are skipped, as linux/fuse.h asks for. At most 32 groups and 4 contexts are taken; Linux sends one of each.
func (e *Extensions) Parse(b []byte) error {
	e.Reset()
	for len(b) > 0 {
		if len(b) < 8 {
			return ErrExtension
		}
		size, typ := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		if size < 8 || uint64(size) > uint64(len(b)) {
			return ErrExtension
		}
		body := b[8:size]
		switch {
		case typ <= MaxNrSecctx:
			if err := e.parseSecctx(body, int(typ)); err != nil {
				return err
			}
		case typ == ExtGroups:
			if len(body) < 4 {
				return ErrExtension
			}
			n := binary.LittleEndian.Uint32(body)
			body = body[4:]
			if uint64(n)*4 > uint64(len(body)) {
				return ErrExtension
			}
			if n > uint32(len(e.groupBuf)-len(e.Groups)) {
				return ErrTooMany
			}
			for i := range n {
				e.Groups = append(e.Groups, binary.LittleEndian.Uint32(body[4*i:]))
			}
		}
		b = b[min(align8(int(size)), len(b)):]
	}
	return nil
}

func (e *Extensions) parseSecctx(b []byte, n int) error {
	if n > len(e.ctxBuf)-len(e.Secctx) {
		return ErrTooMany
	}
	for range n {
		if len(b) < 8 {
			return ErrExtension
		}
		size := binary.LittleEndian.Uint32(b)
		nul := bytes.IndexByte(b[8:], 0)
		if nul < 0 {
			return ErrExtension
		}
		end := 8 + nul + 1
		if uint64(size) > uint64(len(b)-end) {
			return ErrExtension
		}
		e.Secctx = append(e.Secctx, Secctx{Name: b[8:end:end], Value: b[end : end+int(size)]})
		b = b[min(align8(end+int(size)), len(b)):]
	}
	return nil
}

func align8(n int) int { return (n + 7) &^ 7 }

// Align8 rounds up to the alignment of directory entries and extensions.
func Align8(n int) int { return align8(n) }
