package fuse_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
)

// scribe writes down every call, the ends of what changes something among them, and fails each; or
// succeeds, with answers of its own.
type scribe struct {
	*ours
	accept fuseabi.InitFlags // what INIT uses of what is offered
	asked  fuseabi.InitFlags
	resets int
	good   bool
	target string // of a link
}

func (s *scribe) Init(offered fuseabi.InitFlags) fuseabi.InitFlags {
	s.asked = offered
	return s.accept
}
func (s *scribe) NewThread(int) (fuse.Thread, error) { return s, nil }
func (s *scribe) Reset()                             { s.resets++ }
func (s *scribe) Changing()                          { s.got = append(s.got, "change") }
func (s *scribe) Syncfs(node uint64) unix.Errno      { s.got.add("SYNCFS", node); return unix.EIO }
func (s *scribe) Interrupt(unique uint64)            { s.got.add("INTERRUPT", 0, unique) }
func (s *scribe) Tmpfile(c *fuse.Caller, in *fuseabi.CreateIn, _ *fuseabi.CreateOut) unix.Errno {
	s.got.add("TMPFILE", in.NodeId, in.Mode, c.UID, c.GID)
	return unix.ENOENT
}

func (s *scribe) Lookup(parent uint64, name fuse.Name, out *fuseabi.EntryOut) unix.Errno {
	e := s.ours.Lookup(parent, name, out)
	if s.good {
		out.NodeId, e = 0x1122334455667788, 0
	}
	return e
}

func (s *scribe) Readlink(node uint64, buf []byte) (int, unix.Errno) {
	n, e := s.ours.Readlink(node, buf)
	if s.good {
		n, e = copy(buf, s.target), 0
	}
	return n, e
}

func (s *scribe) Read(in *fuseabi.ReadIn, dst []unix.Iovec) (int, unix.Errno) {
	n, e := s.ours.Read(in, dst)
	if s.good {
		n, e = fuseabi.CopyOut(dst, 0, bytes.Repeat([]byte{'r'}, int(in.Size))), 0
	}
	return n, e
}

func (s *scribe) Write(in *fuseabi.WriteIn, src []unix.Iovec) (int, unix.Errno) {
	n, e := s.ours.Write(in, src)
	if s.good {
		n, e = int(fuseabi.Len(src)), 0
	}
	return n, e
}

func (s *scribe) CopyFileRange(in *fuseabi.CopyFileRangeIn) (uint64, unix.Errno) {
	n, e := s.ours.CopyFileRange(in)
	if s.good {
		n, e = in.Len, 0
	}
	return n, e
}

func (s *scribe) Getxattr(node uint64, name fuse.Name, buf []byte) (int, unix.Errno) {
	n, e := s.ours.Getxattr(node, name, buf)
	if s.good && buf == nil {
		n, e = 300, 0
	} else if s.good {
		n, e = copy(buf, "value"), 0
	}
	return n, e
}

func (s *scribe) Readdir(in *fuseabi.ReadIn, plus bool, buf []byte) (int, unix.Errno) {
	n, e := s.ours.Readdir(in, plus, buf)
	if s.good {
		n, e = copy(buf, bytes.Repeat([]byte{'d'}, int(in.Size))), 0
	}
	return n, e
}

// desk is a session of a scribe's with one worker.
type desk struct {
	*scribe
	t   *testing.T
	ses *fuse.Session
	w   *fuse.Worker
}

type deskFS struct{ *scribe }

func (deskFS) Interrupt(int) {}

func newDesk(t *testing.T, flags fuseabi.InitFlags) *desk {
	d := &desk{scribe: &scribe{ours: &ours{}, accept: flags}, t: t}
	d.ses = fuse.NewSession(deskFS{d.scribe}, fuse.SessionConfig{})
	w, err := d.ses.NewHandler(1)
	require.NoError(t, err)
	d.w = w
	d.ask(initRequest(fuseabi.Major, fuseabi.Minor, flags|fuseabi.InitExt), 80)
	d.got = nil
	return d
}

func initRequest(major, minor uint32, flags fuseabi.InitFlags) []byte {
	return encode(fuseabi.OpInit, 0, 1, &fuseabi.InitIn{Major: major, Minor: minor, Flags: uint32(flags), Flags2: uint32(flags >> 32), MaxReadAhead: 1 << 17}, nil, nil)
}

// ask has a request served and returns the answer's status and body.
func (d *desk) ask(raw []byte, room int) (status int32, body []byte) {
	d.t.Helper()
	in, out := fuseabi.Buffer(len(raw)), fuseabi.Buffer(room)
	copy(in, raw)
	n := d.w.Serve(whole(in), whole(out))
	if n == 0 {
		return math.MinInt32, nil
	}
	require.Equal(d.t, n, binary.LittleEndian.Uint32(out))
	require.Equal(d.t, binary.LittleEndian.Uint64(raw[8:]), binary.LittleEndian.Uint64(out[8:]))
	return int32(binary.LittleEndian.Uint32(out[4:])), out[16:n]
}

// silence is the status of what has no answer.
const silence = math.MinInt32

// by makes a request one of user 8's and group 9's.
func by[I any](op fuseabi.Opcode, in *I, tail []byte) []byte {
	raw := encode(op, 5, 77, in, tail, nil)
	h := fuseabi.View[fuseabi.InHeader](raw)
	h.Uid, h.Gid = 8, 9
	return raw
}

// Each operation is one call, with all that the request says and the caller's ids, and the call's
// error is the answer. What may change names or attributes says so before and after.
func TestEachOperationIsOneCall(t *testing.T) {
	d := newDesk(t, 0)
	var noent, nodata int32 = -int32(unix.ENOENT), -int32(unix.ENODATA)
	for _, c := range []struct {
		raw     []byte
		call    string
		status  int32
		changes bool
	}{
		{by(fuseabi.OpLookup, &none{}, z("n")), "LOOKUP 5 [n]", noent, false},
		{by(fuseabi.OpLookup, &none{}, z("..")), "LOOKUP 5 [..]", noent, false},
		{by(fuseabi.OpForget, &fuseabi.ForgetIn{Nlookup: 3}, nil), "FORGET 5 [3]", silence, false},
		{by(fuseabi.OpGetattr, &fuseabi.GetattrIn{Flags_: 1, Fh_: 2}, nil), "GETATTR 5 [1 2]", noent, false},
		{by(fuseabi.OpStatx, &fuseabi.StatxIn{GetattrFlags: 1, Fh: 2, SxFlags: 3, SxMask: 4}, nil), "STATX 5 [1 2 3 4]", noent, false},
		{by(fuseabi.OpSetattr, &fuseabi.SetattrIn{SetAttrInCommon: gofuse.SetAttrInCommon{Valid: 1, Mode: 3}}, nil), "SETATTR 5", noent, true},
		{by(fuseabi.OpReadlink, &none{}, nil), "READLINK 5 []", noent, false},
		{by(fuseabi.OpAccess, &fuseabi.AccessIn{Mask: 6}, nil), "ACCESS 5 [6 8 9]", noent, false},
		{by(fuseabi.OpStatfs, &none{}, nil), "STATFS 5 []", noent, false},
		{by(fuseabi.OpSyncfs, &fuseabi.SyncfsIn{}, nil), "SYNCFS 5 []", -int32(unix.EIO), true},
		{by(fuseabi.OpSymlink, &none{}, z("n", "to")), "SYMLINK 5 [n to 8 9]", noent, true},
		{by(fuseabi.OpMknod, &fuseabi.MknodIn{Mode: 1, Rdev: 2, Umask: 3}, z("n")), "MKNOD 5 [n 1 2 3 8 9]", noent, true},
		{by(fuseabi.OpMkdir, &fuseabi.MkdirIn{Mode: 1, Umask: 2}, z("n")), "MKDIR 5 [n 1 2 8 9]", noent, true},
		{by(fuseabi.OpCreate, &fuseabi.CreateIn{Flags: 1, Mode: 2, Umask: 3, OpenFlags: 1}, z("n")), "CREATE 5 [n 1 2 3 1 8 9]", noent, true},
		{by(fuseabi.OpTmpfile, &fuseabi.CreateIn{Mode: 2}, z("/")), "TMPFILE 5 [2 8 9]", noent, true},
		{by(fuseabi.OpLink, &fuseabi.LinkIn{Oldnodeid: 7}, z("n")), "LINK 5 [n 7]", noent, true},
		{by(fuseabi.OpUnlink, &none{}, z("n")), "UNLINK 5 [n]", noent, true},
		{by(fuseabi.OpRmdir, &none{}, z("n")), "RMDIR 5 [n]", noent, true},
		{by(fuseabi.OpRename, &fuseabi.RenameIn{Newdir: 6}, z("one", "two")), "RENAME 5 [one 6 two 0]", noent, true},
		{by(fuseabi.OpRename2, &fuseabi.Rename2In{Newdir: 6, Flags: 7}, z("one", "two")), "RENAME 5 [one 6 two 7]", noent, true},
		{by(fuseabi.OpOpen, &fuseabi.OpenIn{Flags: 1}, nil), "OPEN 5 [1 0]", noent, true},
		{by(fuseabi.OpOpendir, &fuseabi.OpenIn{Flags: 1}, nil), "OPENDIR 5 [1 0]", noent, false},
		{by(fuseabi.OpRead, &fuseabi.ReadIn{Fh: 1, Offset: 2, Size: 3}, nil), "READ 5 [1 2 3 0 0 0]", noent, false},
		{by(fuseabi.OpWrite, &fuseabi.WriteIn{Fh: 1, Offset: 2, Size: 2}, []byte("ab")), "WRITE 5 [1 2 0 0 0 [97 98]]", noent, true},
		{by(fuseabi.OpFlush, &fuseabi.FlushIn{Fh: 1, LockOwner: 2}, nil), "FLUSH 5 [1 2]", noent, true},
		{by(fuseabi.OpFsync, &fuseabi.FsyncIn{Fh: 1, FsyncFlags: 1}, nil), "FSYNC 5 [1 1 false]", noent, true},
		{by(fuseabi.OpFsyncdir, &fuseabi.FsyncIn{Fh: 1, FsyncFlags: 1}, nil), "FSYNC 5 [1 1 true]", noent, true},
		{by(fuseabi.OpRelease, &fuseabi.ReleaseIn{Fh: 1, Flags: 2, ReleaseFlags: 3, LockOwner: 4}, nil), "RELEASE 5 [1 2 3 4 false]", 0, true},
		{by(fuseabi.OpReleasedir, &fuseabi.ReleaseIn{Fh: 1, Flags: 2, ReleaseFlags: 3, LockOwner: 4}, nil), "RELEASE 5 [1 2 3 4 true]", 0, false},
		{by(fuseabi.OpFallocate, &fuseabi.FallocateIn{Fh: 1, Offset: 2, Length: 3, Mode: 4}, nil), "FALLOCATE 5 [1 2 3 4]", noent, true},
		{by(fuseabi.OpLseek, &fuseabi.LseekIn{Fh: 1, Offset: 2, Whence: 3}, nil), "LSEEK 5 [1 2 3]", noent, false},
		{by(fuseabi.OpCopyFileRange, &fuseabi.CopyFileRangeIn{FhIn: 1, OffIn: 2, NodeIdOut: 3, FhOut: 4, OffOut: 5, Len: 6}, nil), "COPY_FILE_RANGE 5 [1 2 3 4 5 6 0]", noent, true},
		{by(fuseabi.OpCopyFileRange64, &fuseabi.CopyFileRangeIn{FhIn: 1, OffIn: 2, NodeIdOut: 3, FhOut: 4, OffOut: 5, Len: 6}, nil), "COPY_FILE_RANGE 5 [1 2 3 4 5 6 0]", noent, true},
		{by(fuseabi.OpGetlk, &fuseabi.LkIn{Fh: 1, Owner: 2}, nil), "LOCK 5 [31 1 2 {0 0 0 0} 0]", noent, false},
		{by(fuseabi.OpSetlk, &fuseabi.LkIn{Fh: 1, Owner: 2}, nil), "LOCK 5 [32 1 2 {0 0 0 0} 0]", noent, false},
		{by(fuseabi.OpSetlkw, &fuseabi.LkIn{Fh: 1, Owner: 2}, nil), "LOCK 5 [33 1 2 {0 0 0 0} 0]", noent, false},
		{by(fuseabi.OpInterrupt, &fuseabi.InterruptIn{Unique: 42}, nil), "INTERRUPT 0 [42]", silence, false},
		{by(fuseabi.OpReaddir, &fuseabi.ReadIn{Fh: 1, Offset: 2, Size: 300}, nil), "READDIR 5 [1 2 300 false]", noent, false},
		{by(fuseabi.OpReaddirplus, &fuseabi.ReadIn{Fh: 1, Offset: 2, Size: 300}, nil), "READDIR 5 [1 2 300 true]", noent, false},
		{by(fuseabi.OpSetxattr, &fuseabi.SetxattrCompatIn{Size: 2, Flags: 1}, append(z("user.a"), 'x', 'y')), "SETXATTR 5 [user.a [120 121] 1 0]", nodata, true},
		{by(fuseabi.OpGetxattr, &fuseabi.GetxattrIn{Size: 30}, z("user.a")), "GETXATTR 5 [user.a 30]", nodata, false},
		{by(fuseabi.OpGetxattr, &fuseabi.GetxattrIn{}, z("user.a")), "GETXATTR 5 [user.a 0]", nodata, false},
		{by(fuseabi.OpListxattr, &fuseabi.GetxattrIn{Size: 30}, nil), "LISTXATTR 5 [30]", nodata, false},
		{by(fuseabi.OpRemovexattr, &none{}, z("user.a")), "REMOVEXATTR 5 [user.a]", nodata, true},
		{by(fuseabi.OpIoctl, &none{}, make([]byte, 32)), "", -int32(unix.ENOTTY), true},
		{by(fuseabi.Opcode(37), &none{}, make([]byte, 32)), "", -int32(unix.ENOSYS), false}, // BMAP
		{by(fuseabi.Opcode(4000), &none{}, make([]byte, 32)), "", -int32(unix.ENOSYS), false},
	} {
		op := fuseabi.Opcode(binary.LittleEndian.Uint32(c.raw[4:]))
		d.got = nil
		status, body := d.ask(c.raw, 4096)
		assert.Equal(t, c.status, status, "%v", op)
		assert.Empty(t, body, "%v", op)
		calls := slices.Clone(d.got)
		if c.changes {
			require.GreaterOrEqual(t, len(calls), 2, "%v", op)
			assert.Equal(t, []string{"change", "change"}, []string{calls[0], calls[len(calls)-1]}, "%v", op)
			calls = calls[1 : len(calls)-1]
		}
		if c.call == "" {
			assert.Empty(t, calls, "%v", op)
			continue
		}
		require.Len(t, calls, 1, "%v", op)
		if op == fuseabi.OpSetattr {
			assert.Contains(t, calls[0], c.call+" ")
			continue
		}
		assert.Equal(t, c.call, calls[0])
	}
	assert.Zero(t, d.ses.Malformed())
}

// What the file system says is what the guest reads.
func TestAnswersAreWhatTheFileSystemSays(t *testing.T) {
	d := newDesk(t, 0)
	d.good = true
	le := binary.LittleEndian
	status, body := d.ask(by(fuseabi.OpLookup, &none{}, z("n")), 16+128)
	assert.Zero(t, status)
	require.Len(t, body, 128)
	assert.EqualValues(t, 0x1122334455667788, le.Uint64(body))
	assert.Equal(t, make([]byte, 120), body[8:])

	status, body = d.ask(by(fuseabi.OpRead, &fuseabi.ReadIn{Size: 5}, nil), 100)
	assert.Zero(t, status)
	assert.Equal(t, "rrrrr", string(body))
	status, body = d.ask(by(fuseabi.OpWrite, &fuseabi.WriteIn{Size: 3}, []byte("abcd")), 24)
	assert.Zero(t, status)
	assert.Equal(t, []byte{3, 0, 0, 0, 0, 0, 0, 0}, body)
	status, body = d.ask(by(fuseabi.OpReaddir, &fuseabi.ReadIn{Size: 5}, nil), 100)
	assert.Zero(t, status)
	assert.Equal(t, "ddddd", string(body))
	status, body = d.ask(by(fuseabi.OpGetxattr, &fuseabi.GetxattrIn{}, z("user.a")), 24)
	assert.Zero(t, status)
	assert.Equal(t, []byte{44, 1, 0, 0, 0, 0, 0, 0}, body)
	status, body = d.ask(by(fuseabi.OpGetxattr, &fuseabi.GetxattrIn{Size: 30}, z("user.a")), 46)
	assert.Zero(t, status)
	assert.Equal(t, "value", string(body))

	// The older answer has 32 bits, so no more is asked of the file system.
	status, body = d.ask(by(fuseabi.OpCopyFileRange, &fuseabi.CopyFileRangeIn{Len: 1<<33 + 5}, nil), 24)
	assert.Zero(t, status)
	assert.EqualValues(t, 1<<31, le.Uint32(body))
	status, body = d.ask(by(fuseabi.OpCopyFileRange64, &fuseabi.CopyFileRangeIn{Len: 1<<33 + 5}, nil), 24)
	assert.Zero(t, status)
	assert.EqualValues(t, 1<<33+5, le.Uint64(body))

	// A target that fills its room may be part of one, unless none is longer.
	d.target = "to/what"
	status, body = d.ask(by(fuseabi.OpReadlink, &none{}, nil), 16+8)
	assert.Zero(t, status)
	assert.Equal(t, "to/what", string(body))
	status, body = d.ask(by(fuseabi.OpReadlink, &none{}, nil), 16+7)
	assert.Equal(t, -int32(unix.ENAMETOOLONG), status)
	assert.Empty(t, body)
	d.target = string(bytes.Repeat([]byte{'t'}, 4095))
	for _, room := range []int{4095, 4096, 8000} {
		status, body = d.ask(by(fuseabi.OpReadlink, &none{}, nil), 16+room)
		assert.Zero(t, status, room)
		assert.Len(t, body, 4095)
	}
	status, _ = d.ask(by(fuseabi.OpReadlink, &none{}, nil), 16+4094)
	assert.Equal(t, -int32(unix.ENAMETOOLONG), status)
	assert.Zero(t, d.ses.Malformed())
}

// Names are checked before anything is done: none is empty, endless, longer than 255 bytes, or
// leads somewhere.
func TestNamesAreChecked(t *testing.T) {
	long := string(bytes.Repeat([]byte{'n'}, 256))
	var inval, toolong int32 = -int32(unix.EINVAL), -int32(unix.ENAMETOOLONG)
	for _, c := range []struct {
		name   string
		status int32
		lookup int32 // of LOOKUP alone
	}{
		{"", inval, inval}, {"a/b", inval, inval}, {"/", inval, inval}, {".", inval, 0}, {"..", inval, 0}, {long, toolong, toolong},
		{"...", 0, 0}, {".a", 0, 0}, {"a.", 0, 0}, {"a", 0, 0}, {"..a", 0, 0}, {"ab", 0, 0}, {".\xff", 0, 0}, {long[1:], 0, 0},
	} {
		d := newDesk(t, 0)
		for _, raw := range [][]byte{
			by(fuseabi.OpLookup, &none{}, z(c.name)),
			by(fuseabi.OpSymlink, &none{}, z(c.name, "to")),
			by(fuseabi.OpMknod, &fuseabi.MknodIn{}, z(c.name)),
			by(fuseabi.OpMkdir, &fuseabi.MkdirIn{}, z(c.name)),
			by(fuseabi.OpCreate, &fuseabi.CreateIn{}, z(c.name)),
			by(fuseabi.OpLink, &fuseabi.LinkIn{}, z(c.name)),
			by(fuseabi.OpUnlink, &none{}, z(c.name)),
			by(fuseabi.OpRmdir, &none{}, z(c.name)),
			by(fuseabi.OpRename, &fuseabi.RenameIn{}, z(c.name, "b")),
			by(fuseabi.OpRename, &fuseabi.RenameIn{}, z("b", c.name)),
			by(fuseabi.OpRename2, &fuseabi.Rename2In{}, z(c.name, "b")),
		} {
			op, want := fuseabi.Opcode(binary.LittleEndian.Uint32(raw[4:])), c.status
			if op == fuseabi.OpLookup {
				want = c.lookup
			}
			d.got = nil
			before := d.ses.Malformed()
			status, _ := d.ask(raw, 4096)
			calls := slices.DeleteFunc(slices.Clone(d.got), func(s string) bool { return s == "change" })
			if want == 0 {
				assert.Equal(t, -int32(unix.ENOENT), status, "%v %q", op, c.name)
				assert.Len(t, calls, 1)
			} else {
				assert.Equal(t, want, status, "%v %q", op, c.name)
				assert.Empty(t, calls, "%v %q", op, c.name)
			}
			assert.Equal(t, want == inval, d.ses.Malformed() > before, "%v %q: counted", op, c.name)
		}
	}
	// Those of attributes and of links' targets are other names.
	d := newDesk(t, 0)
	target := bytes.Repeat([]byte{'t'}, 4096)
	for _, c := range []struct {
		raw    []byte
		status int32
	}{
		{by(fuseabi.OpSymlink, &none{}, append(z("n"), append(target[1:], 0)...)), -int32(unix.ENOENT)},
		{by(fuseabi.OpSymlink, &none{}, append(z("n"), append(bytes.Clone(target), 0)...)), toolong},
		{by(fuseabi.OpSymlink, &none{}, z("n", "")), inval},
		{by(fuseabi.OpGetxattr, &fuseabi.GetxattrIn{Size: 1}, z("")), inval},
		{by(fuseabi.OpGetxattr, &fuseabi.GetxattrIn{Size: 1}, z(long)), toolong},
		{by(fuseabi.OpRemovexattr, &none{}, z(long)), toolong},
		{by(fuseabi.OpRemovexattr, &none{}, []byte("endless")), inval},
		{by(fuseabi.OpSetxattr, &fuseabi.SetxattrCompatIn{}, z(long)), toolong},
		{by(fuseabi.OpTmpfile, &fuseabi.CreateIn{}, []byte("endless")), inval},
		{by(fuseabi.OpTmpfile, &fuseabi.CreateIn{}, z(long)), toolong},
		{by(fuseabi.OpRename2, &fuseabi.Rename2In{Flags: 8}, z("a", "b")), inval},
		{by(fuseabi.OpRename2, &fuseabi.Rename2In{Flags: 9}, z("a", "b")), inval},
	} {
		d.got = nil
		status, _ := d.ask(c.raw, 4096)
		assert.Equal(t, c.status, status, "%.60q", c.raw)
	}
}

// Sizes fit what was sent, and the room for the answer, to the byte.
func TestSizesFitToTheByte(t *testing.T) {
	d := newDesk(t, 0)
	d.good = true
	var inval int32 = -int32(unix.EINVAL)
	data := bytes.Repeat([]byte{'w'}, fuse.MaxWrite+1)
	for what, c := range map[string]struct {
		raw    []byte
		room   int
		status int32
	}{
		"READ of its room":             {by(fuseabi.OpRead, &fuseabi.ReadIn{Size: 50}, nil), 66, 0},
		"READ of more than its room":   {by(fuseabi.OpRead, &fuseabi.ReadIn{Size: 51}, nil), 66, inval},
		"READ of the most":             {by(fuseabi.OpRead, &fuseabi.ReadIn{Size: fuse.MaxWrite}, nil), 16 + fuse.MaxWrite, 0},
		"READ of more than the most":   {by(fuseabi.OpRead, &fuseabi.ReadIn{Size: fuse.MaxWrite + 1}, nil), 17 + fuse.MaxWrite, inval},
		"WRITE of all":                 {by(fuseabi.OpWrite, &fuseabi.WriteIn{Size: 50}, data[:50]), 24, 0},
		"WRITE of more than was sent":  {by(fuseabi.OpWrite, &fuseabi.WriteIn{Size: 51}, data[:50]), 24, inval},
		"WRITE of the most":            {by(fuseabi.OpWrite, &fuseabi.WriteIn{Size: fuse.MaxWrite}, data[:fuse.MaxWrite]), 24, 0},
		"WRITE of more than the most":  {by(fuseabi.OpWrite, &fuseabi.WriteIn{Size: fuse.MaxWrite + 1}, data), 24, inval},
		"READDIR of its room":          {by(fuseabi.OpReaddir, &fuseabi.ReadIn{Size: 50}, nil), 66, 0},
		"READDIR of more":              {by(fuseabi.OpReaddir, &fuseabi.ReadIn{Size: 51}, nil), 66, inval},
		"GETXATTR of its room":         {by(fuseabi.OpGetxattr, &fuseabi.GetxattrIn{Size: 50}, z("a")), 66, 0},
		"GETXATTR of more":             {by(fuseabi.OpGetxattr, &fuseabi.GetxattrIn{Size: 51}, z("a")), 66, inval},
		"GETXATTR of a size":           {by(fuseabi.OpGetxattr, &fuseabi.GetxattrIn{}, z("a")), 24, 0},
		"GETXATTR of a size, no room":  {by(fuseabi.OpGetxattr, &fuseabi.GetxattrIn{}, z("a")), 23, inval},
		"GETATTR without room":         {by(fuseabi.OpGetattr, &fuseabi.GetattrIn{}, nil), 16 + 103, inval},
		"SETXATTR of more than sent":   {by(fuseabi.OpSetxattr, &fuseabi.SetxattrCompatIn{Size: 3}, append(z("a"), 1, 2)), 16, inval},
		"header alone of what is more": {by(fuseabi.OpGetattr, &none{}, nil), 200, inval},
	} {
		before := d.ses.Malformed()
		status, _ := d.ask(c.raw, c.room)
		assert.Equal(t, c.status, status, what)
		assert.Equal(t, c.status == inval, d.ses.Malformed() == before+1, "%s: counted", what)
	}
	before := d.ses.Malformed()
	status, _ := d.ask(by(fuseabi.OpGetattr, &fuseabi.GetattrIn{}, nil), 15)
	assert.EqualValues(t, silence, status, "no room for a header")
	assert.Equal(t, before+1, d.ses.Malformed())

	// An attribute is 64 KiB at most, and what is announced beyond that is no mistake of the
	// protocol's.
	value := append(z("a"), data[:1<<16+1]...)
	status, _ = d.ask(by(fuseabi.OpSetxattr, &fuseabi.SetxattrCompatIn{Size: 1 << 16}, value), 16)
	assert.Equal(t, -int32(unix.ENODATA), status)
	status, _ = d.ask(by(fuseabi.OpSetxattr, &fuseabi.SetxattrCompatIn{Size: 1<<16 + 1}, value), 16)
	assert.Equal(t, -int32(unix.E2BIG), status)

	// With SETXATTR_EXT there are two words more, of which one is handed on.
	d = newDesk(t, fuseabi.SetxattrExt)
	status, _ = d.ask(by(fuseabi.OpSetxattr, &fuseabi.SetxattrIn{Size: 2, Flags: 1, SetXAttrFlags: 3}, append(z("user.a"), 'x', 'y')), 16)
	assert.Equal(t, -int32(unix.ENODATA), status)
	assert.Contains(t, d.got, "SETXATTR 5 [user.a [120 121] 1 3]")
	status, _ = d.ask(by(fuseabi.OpSetxattr, &fuseabi.SetxattrCompatIn{}, z("abcdef")), 16)
	assert.Equal(t, inval, status)
}

// Nodes that are forgotten come in one request, however it is cut into pieces.
func TestForgetsOfManyNodes(t *testing.T) {
	const n = 600
	list := make([]byte, 0, 16*n)
	var want []string
	for i := range uint64(n) {
		list = binary.LittleEndian.AppendUint64(list, 1000+i)
		list = binary.LittleEndian.AppendUint64(list, i+1)
		var one decoded
		one.add("FORGET", 1000+i, i+1)
		want = append(want, one[0])
	}
	raw := by(fuseabi.OpBatchForget, &fuseabi.BatchForgetIn{Count: n}, list)
	for _, piece := range []int{len(raw), 48, 40, 16, 7, 4096, 48 + 256*16} {
		d := newDesk(t, 0)
		in := fuseabi.Buffer(len(raw))
		copy(in, raw)
		var segs []unix.Iovec
		for b := in; len(b) > 0; b = b[min(piece, len(b)):] {
			segs = append(segs, whole(b[:min(piece, len(b))])...)
		}
		assert.Zero(t, d.w.Serve(segs, nil))
		assert.Equal(t, want, []string(d.got), "in pieces of %d bytes", piece)
		assert.Zero(t, d.ses.Malformed())
	}
	d := newDesk(t, 0)
	d.ask(by(fuseabi.OpBatchForget, &fuseabi.BatchForgetIn{Count: n + 1}, list), 100)
	assert.Empty(t, d.got, "more than were sent: none counts")
	assert.EqualValues(t, 1, d.ses.Malformed())
}

// INIT's answer, field by field.
func TestInitIsAnswered(t *testing.T) {
	const offered = fuseabi.InitExt | fuseabi.MaxPages | fuseabi.BigWrites | fuseabi.AsyncRead | fuseabi.SecurityCtx | fuseabi.CreateSuppGroup
	begin := func(raw []byte, accept fuseabi.InitFlags) (*desk, int32, *fuseabi.InitOut) {
		d := &desk{scribe: &scribe{ours: &ours{}, accept: accept}, t: t}
		d.ses = fuse.NewSession(deskFS{d.scribe}, fuse.SessionConfig{})
		w, err := d.ses.NewHandler(1)
		require.NoError(t, err)
		d.w = w
		status, body := d.ask(raw, 16+64)
		if len(body) == 0 {
			return d, status, nil
		}
		require.Len(t, body, 64)
		own := fuseabi.Buffer(64)
		copy(own, body)
		return d, status, fuseabi.View[fuseabi.InitOut](own)
	}
	ready := func(d *desk) bool {
		status, _ := d.ask(by(fuseabi.OpStatfs, &none{}, nil), 4096)
		return status == -int32(unix.ENOENT)
	}

	d, status, out := begin(initRequest(7, 38, offered), fuseabi.SecurityCtx|fuseabi.PosixLocks)
	assert.Zero(t, status)
	flags := fuseabi.InitExt | fuseabi.MaxPages | fuseabi.BigWrites | fuseabi.SecurityCtx // what was offered and is used, and no more
	assert.Equal(t, fuseabi.InitFlags(offered), d.asked)
	assert.Equal(t, flags, d.ses.Flags())
	want := fuseabi.InitOut{Major: 7, Minor: 38, MaxReadAhead: 1 << 17, Flags: uint32(flags & (1<<32 - 1)), Flags2: uint32(flags >> 32),
		MaxBackground: 65535, CongestionThreshold: 49149, MaxWrite: 1 << 20, MaxPages: 256, TimeGran: 1}
	assert.Equal(t, want, *out)
	assert.True(t, ready(d))

	d, _, _ = begin(initRequest(7, 38, fuseabi.AsyncRead|fuseabi.SecurityCtx), ^fuseabi.InitFlags(0))
	assert.Equal(t, fuseabi.AsyncRead, d.asked, "without INIT_EXT the second word of flags says nothing")
	assert.Equal(t, fuseabi.AsyncRead, d.ses.Flags())

	// Before 7.36 the request has 16 bytes, and what lies behind is not part of it.
	short := initRequest(7, 31, offered)[:40+16]
	binary.LittleEndian.PutUint32(short, 40+16)
	d, status, out = begin(short, ^fuseabi.InitFlags(0))
	assert.Zero(t, status)
	assert.EqualValues(t, 31, out.Minor)
	assert.Equal(t, fuseabi.InitFlags(offered&(1<<32-1)), d.asked)

	_, status, out = begin(initRequest(7, 99, 0), 0)
	assert.Zero(t, status)
	assert.EqualValues(t, fuseabi.Minor, out.Minor, "no newer than ours")
	d, status, out = begin(initRequest(8, 0, 0), 0)
	assert.Zero(t, status)
	assert.Equal(t, fuseabi.InitOut{Major: 7, Minor: fuseabi.Minor}, *out, "it tries again with ours")
	assert.False(t, ready(d))
	d, status, _ = begin(initRequest(7, 27, 0), 0)
	assert.Zero(t, status)
	assert.True(t, ready(d))
	for _, v := range [][2]uint32{{7, 26}, {6, 40}} {
		d, status, _ = begin(initRequest(v[0], v[1], 0), 0)
		assert.Equal(t, -int32(unix.EPROTO), status)
		assert.False(t, ready(d))
	}

	// Nothing but DESTROY is served before INIT, and nothing after DESTROY.
	d, _, _ = begin(initRequest(7, 38, offered), offered)
	status, _ = d.ask(by(fuseabi.OpDestroy, &none{}, nil), 16)
	assert.Zero(t, status)
	assert.Equal(t, 1, d.resets)
	assert.Zero(t, d.ses.Flags())
	before := d.ses.Malformed()
	status, _ = d.ask(by(fuseabi.OpStatfs, &none{}, nil), 4096)
	assert.Equal(t, -int32(unix.EIO), status)
	assert.Equal(t, before+1, d.ses.Malformed())
}
