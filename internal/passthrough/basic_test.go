package passthrough

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/testenv"
)

const root = fuseabi.RootID

func TestFilesAndDirectories(t *testing.T) {
	dir := t.TempDir()
	g := mount(t, dir, Config{Xattr: true})

	d, e := g.mkdir(root, "d", 0o755, 0o22)
	require.Zero(t, e)
	assert.EqualValues(t, unix.S_IFDIR|0o755, d.Mode)
	f, e := g.create(d.NodeId, "f", unix.O_RDWR|unix.O_EXCL, 0o640, 0)
	require.Zero(t, e)
	assert.EqualValues(t, unix.S_IFREG|0o640, f.Mode)

	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	n, e := g.write(f.NodeId, f.Fh, 5, big, 0, 0)
	require.Zero(t, e)
	assert.Equal(t, len(big), n)
	got, e := g.read(f.NodeId, f.Fh, 5, len(big))
	require.Zero(t, e)
	assert.True(t, bytes.Equal(big, got))
	got, e = g.read(f.NodeId, f.Fh, uint64(len(big)), 4096)
	require.Zero(t, e)
	assert.Equal(t, "bcdef", string(got), "the end of the file")
	onHost, err := os.ReadFile(filepath.Join(dir, "d/f"))
	require.NoError(t, err)
	assert.True(t, bytes.Equal(append(make([]byte, 5), big...), onHost))

	_, e = g.create(d.NodeId, "f", unix.O_RDWR|unix.O_EXCL, 0o640, 0)
	assert.Equal(t, unix.EEXIST, e)
	again, e := g.create(d.NodeId, "f", unix.O_RDWR|unix.O_TRUNC, 0o600, 0)
	require.Zero(t, e)
	assert.Equal(t, f.NodeId, again.NodeId)
	assert.Zero(t, again.Size, "opened with O_TRUNC")
	assert.EqualValues(t, unix.S_IFREG|0o640, again.Mode, "it existed")

	for _, en := range []struct {
		mode uint32
		rdev uint32
	}{{unix.S_IFIFO | 0o600, 0}, {unix.S_IFSOCK | 0o600, 0}} {
		name := fmt.Sprintf("special%o", en.mode)
		s, e := g.mknod(d.NodeId, name, en.mode, en.rdev)
		require.Zero(t, e)
		assert.Equal(t, en.mode, s.Mode)
		_, e = g.open(s.NodeId, unix.O_RDWR)
		assert.Equal(t, unix.EBADF, e, "the guest's own kernel serves these")
	}

	l, e := g.symlink(d.NodeId, "l", "../outside/\xff")
	require.Zero(t, e)
	target, e := call(g, fuseabi.OpReadlink, l.NodeId, &none{}, nil, 4096)
	require.Zero(t, e)
	assert.Equal(t, "../outside/\xff", string(target))
	_, e = call(g, fuseabi.OpReadlink, f.NodeId, &none{}, nil, 4096)
	assert.Equal(t, unix.EINVAL, e)
	_, e = g.open(l.NodeId, unix.O_RDONLY)
	assert.Equal(t, unix.ELOOP, e)

	h, e := g.link(f.NodeId, root, "hard")
	require.Zero(t, e)
	assert.Equal(t, f.NodeId, h.NodeId)
	assert.EqualValues(t, 2, h.Nlink)
	_, e = g.link(d.NodeId, root, "hard-dir")
	assert.Equal(t, unix.EPERM, e)
	_, e = g.link(f.NodeId, root, "hard")
	assert.Equal(t, unix.EEXIST, e)

	assert.Equal(t, unix.ENOTEMPTY, g.rmdir(root, "d"))
	assert.Equal(t, unix.EISDIR, g.unlink(root, "d"))
	assert.Equal(t, unix.ENOTDIR, g.rmdir(root, "hard"))
	assert.Equal(t, unix.EEXIST, g.rename(root, "hard", d.NodeId, "f", unix.RENAME_NOREPLACE))
	require.Zero(t, g.rename(root, "hard", d.NodeId, "l", unix.RENAME_EXCHANGE))
	assert.EqualValues(t, unix.S_IFLNK, func() uint32 { e, _ := g.lookup(root, "hard"); return e.Mode & unix.S_IFMT }())
	require.Zero(t, g.rename(d.NodeId, "f", root, "moved", 0))
	_, e = g.lookup(d.NodeId, "f")
	assert.Equal(t, unix.ENOENT, e)
	a, e := g.getattr(f.NodeId)
	require.Zero(t, e)
	assert.EqualValues(t, 2, a.Nlink)
	assert.Zero(t, g.release(f.NodeId, f.Fh))
	assert.Equal(t, unix.EBADF, g.release(f.NodeId, f.Fh))

	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	sf, e := want[fuseabi.StatfsOut](g, fuseabi.OpStatfs, root, &none{}, nil)
	require.Zero(t, e)
	assert.Equal(t, st.Blocks, sf.Blocks)
	assert.EqualValues(t, st.Bsize, sf.Bsize)
	assert.EqualValues(t, 255, sf.NameLen)
	for _, op := range []fuseabi.Opcode{fuseabi.OpSyncfs} {
		_, e = call(g, op, root, &fuseabi.SyncfsIn{}, nil, 0)
		assert.Zero(t, e)
	}
	_, e = call(g, fuseabi.OpIoctl, root, &fuseabi.IoctlIn{}, nil, 0)
	assert.Equal(t, unix.ENOTTY, e)
	_, e = call(g, fuseabi.OpPoll, root, &none{}, nil, 0)
	assert.Equal(t, unix.ENOSYS, e)
	_, e = call(g, fuseabi.Opcode(4095), root, &none{}, nil, 0)
	assert.Equal(t, unix.ENOSYS, e)
}

// A file of several names is found again though the name that it was known by went, its directory's descriptor is closed, and nobody
// has looked up another one since; and an open one though no name is known at all.
func TestFilesOfSeveralNamesAreFoundAgain(t *testing.T) {
	g := mount(t, t.TempDir(), Config{InodeFileHandles: HandlesNever, FDBudget: 1})
	for _, d := range []string{"d", "e"} {
		require.NoError(t, os.Mkdir(g.dir+"/"+d, 0o755))
	}
	d, e := g.mustLookup(root, "d"), g.mustLookup(root, "e")
	evictAll := func(i int) {
		dir := fmt.Sprint("many", i)
		require.NoError(t, os.Mkdir(g.dir+"/"+dir, 0o755))
		many := g.mustLookup(root, dir)
		for i := range 40 * fdShards {
			name := fmt.Sprint("f", i)
			require.NoError(t, os.WriteFile(g.dir+"/"+dir+"/"+name, nil, 0o600))
			f, errno := g.open(g.mustLookup(many, name), unix.O_RDONLY)
			require.Zero(t, errno)
			require.Zero(t, g.release(0, f))
		}
	}
	for i, opened := range []bool{false, true} {
		one, two := fmt.Sprint("one", i), fmt.Sprint("two", i)
		f, errno := g.create(d, one, unix.O_RDWR, 0o644, 0)
		require.Zero(t, errno)
		_, errno = g.link(f.NodeId, e, two)
		require.Zero(t, errno)
		require.Zero(t, g.unlink(d, one))
		if !opened {
			require.Zero(t, g.release(f.NodeId, f.Fh))
			require.Equal(t, f.NodeId, g.mustLookup(e, two))
		}
		evictAll(i)
		a, errno := g.getattr(f.NodeId)
		require.Zero(t, errno, "opened: %v", opened)
		assert.EqualValues(t, 1, a.Nlink)
	}
	assert.NotZero(t, g.fs.Stats().Evictions)
}

func TestUnlinkedFilesLiveOn(t *testing.T) {
	for _, h := range []Handles{HandlesNever, HandlesPrefer} {
		g := mount(t, t.TempDir(), Config{InodeFileHandles: h, FDBudget: 1})
		require.NoError(t, os.WriteFile(g.dir+"/a", []byte("data"), 0o600))
		require.NoError(t, os.WriteFile(g.dir+"/b", []byte("victim"), 0o600))
		require.NoError(t, os.Mkdir(g.dir+"/d", 0o700))
		a, b, d := g.mustLookup(root, "a"), g.mustLookup(root, "b"), g.mustLookup(root, "d")
		require.Zero(t, g.rename(root, "a", root, "b", 0))
		require.Zero(t, g.unlink(root, "b"))
		require.Zero(t, g.rmdir(root, "d"))
		for i := range 200 { // others need descriptors
			require.NoError(t, os.WriteFile(fmt.Sprintf("%s/other%d", g.dir, i), nil, 0o600))
			_, e := g.getattr(g.mustLookup(root, fmt.Sprintf("other%d", i)))
			require.Zero(t, e)
		}
		for _, n := range []uint64{a, b, d} {
			at, e := g.getattr(n)
			require.Zero(t, e, "a process may have it as its working directory, or open for its path only")
			assert.Zero(t, at.Nlink)
		}
		_, e := g.create(d, "x", unix.O_RDWR, 0o600, 0)
		assert.Equal(t, unix.ENOENT, e)
	}
}

func TestReaddir(t *testing.T) {
	dir := t.TempDir()
	names := []string{".", ".."}
	for i := range 300 {
		name := fmt.Sprintf("%03d-%s", i, strings.Repeat("n", i%250))
		names = append(names, name)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
	sort.Strings(names)
	g := mount(t, dir, Config{})
	for _, plus := range []bool{false, true} {
		for _, size := range []int{520, 4096, 1 << 20} {
			var got []string
			for _, en := range g.readdir(root, plus, size) {
				got = append(got, en.name)
				if en.name == "." || en.name == ".." {
					assert.Zero(t, en.node, "no lookup is counted for these")
					assert.EqualValues(t, unix.DT_DIR, en.dirent.Type)
					continue
				}
				if plus {
					assert.NotZero(t, en.node)
					assert.EqualValues(t, len(en.name), en.attr.Size)
				}
				assert.EqualValues(t, unix.DT_REG, en.dirent.Type)
			}
			sort.Strings(got)
			assert.Equal(t, names, got, "plus %v, buffers of %d", plus, size)
		}
	}
	// Each READDIRPLUS counted a lookup of each: three for each file.
	assert.Equal(t, 301, g.fs.Stats().Inodes)
	for _, en := range g.readdir(root, true, 4096) {
		if en.node != 0 {
			g.forget(en.node, 3)
		}
	}
	assert.Equal(t, 301, g.fs.Stats().Inodes)
	for _, en := range g.readdir(root, false, 4096) {
		if en.name[0] != '.' {
			n := g.mustLookup(root, en.name)
			g.forget(n, 2)
		}
	}
	assert.Equal(t, 1, g.fs.Stats().Inodes)

	// Offsets of entries are good for coming back to, in any order.
	fh, e := g.opendir(root)
	require.Zero(t, e)
	first, e := g.readdirAt(root, fh, 0, false, 4096)
	require.Zero(t, e)
	_, e = g.readdirAt(root, fh, first[len(first)-1].dirent.Off, false, 4096)
	require.Zero(t, e)
	back, e := g.readdirAt(root, fh, first[0].dirent.Off, false, 4096)
	require.Zero(t, e)
	assert.Equal(t, first[1].name, back[0].name)
	_, e = g.readdirAt(root, fh, 0, false, 20)
	assert.Equal(t, unix.EINVAL, e, "room for no entry")
	_, e = g.read(root, fh, 0, 10)
	assert.Equal(t, unix.EISDIR, e)
	_, e = g.readdirAt(root, fh+1, 0, false, 4096)
	assert.Equal(t, unix.EBADF, e)
}

func TestSetattr(t *testing.T) {
	testenv.Need(t, "root")
	g := mount(t, t.TempDir(), Config{})
	f, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	a, e := g.setattr(f.NodeId, fuseabi.SetattrIn{SetAttrInCommon: setattrCommon(fuseabi.FattrUID|fuseabi.FattrGID, 0, 1234, 4321)})
	require.Zero(t, e)
	assert.Equal(t, []uint32{1234, 4321}, []uint32{a.Uid, a.Gid})
	in := fuseabi.SetattrIn{}
	in.Valid, in.Mode = fuseabi.FattrMode, unix.S_IFREG|0o4751
	a, e = g.setattr(f.NodeId, in)
	require.Zero(t, e)
	assert.EqualValues(t, unix.S_IFREG|0o4751, a.Mode)
	in = fuseabi.SetattrIn{}
	in.Valid, in.Size = fuseabi.FattrSize, 12345
	a, e = g.setattr(f.NodeId, in)
	require.Zero(t, e)
	assert.EqualValues(t, 12345, a.Size)
	in.Size = 1 << 63
	_, e = g.setattr(f.NodeId, in)
	assert.Equal(t, unix.EFBIG, e, "as for what is beyond any file's end")
	in = fuseabi.SetattrIn{}
	in.Valid, in.Atime, in.Atimensec, in.Mtime, in.Mtimensec = fuseabi.FattrAtime|fuseabi.FattrMtime, 1, 2, ^uint64(0), 999999999
	a, e = g.setattr(f.NodeId, in)
	require.Zero(t, e)
	assert.Equal(t, []uint64{1, ^uint64(0)}, []uint64{a.Atime, a.Mtime}, "times before 1970 too")
	assert.Equal(t, []uint32{2, 999999999}, []uint32{a.Atimensec, a.Mtimensec})
	in.Valid, in.Atimensec = fuseabi.FattrAtime, unix.UTIME_NOW
	a, e = g.setattr(f.NodeId, in)
	require.Zero(t, e)
	assert.EqualValues(t, 1, a.Atime, "a number of nanoseconds does not mean now")
	assert.EqualValues(t, 999999999, a.Atimensec)
	l, e := g.symlink(root, "l", "f")
	require.Zero(t, e)
	a, e = g.setattr(l.NodeId, fuseabi.SetattrIn{SetAttrInCommon: setattrCommon(fuseabi.FattrUID, 0, 77, 0)})
	require.Zero(t, e)
	assert.EqualValues(t, 77, a.Uid)
	in = fuseabi.SetattrIn{}
	in.Valid, in.Atime = fuseabi.FattrAtime, 99
	a, e = g.setattr(l.NodeId, in)
	require.Zero(t, e)
	assert.EqualValues(t, 99, a.Atime)
	in.Valid, in.Size = fuseabi.FattrSize, 0
	_, e = g.setattr(l.NodeId, in)
	assert.Equal(t, unix.EINVAL, e)
	fa, e := g.getattr(f.NodeId)
	require.Zero(t, e)
	assert.EqualValues(t, 1234, fa.Uid, "the link's own owner and times were set, not its target's")
	assert.EqualValues(t, 12345, fa.Size)
	_, e = g.setattr(g.mustLookup(root, "l"), fuseabi.SetattrIn{SetAttrInCommon: setattrCommon(fuseabi.FattrMode, 0o777, 0, 0)})
	assert.Equal(t, unix.EOPNOTSUPP, e)
}

func setattrCommon(valid, mode, uid, gid uint32) (s fuseabiSetattrCommon) {
	s.Valid, s.Mode = valid, mode
	s.Owner.Uid, s.Owner.Gid = uid, gid
	return s
}

func TestExtendedAttributes(t *testing.T) {
	g := mount(t, t.TempDir(), Config{Xattr: true})
	f, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	require.Zero(t, g.setxattr(f.NodeId, "user.a", []byte("value"), 0))
	assert.Equal(t, unix.EEXIST, g.setxattr(f.NodeId, "user.a", []byte("value"), unix.XATTR_CREATE))
	assert.Equal(t, unix.ENODATA, g.setxattr(f.NodeId, "user.b", []byte("value"), unix.XATTR_REPLACE))
	got, e := g.getxattr(f.NodeId, "user.a", 0)
	require.Zero(t, e)
	assert.EqualValues(t, 5, got[0])
	got, e = g.getxattr(f.NodeId, "user.a", 5)
	require.Zero(t, e)
	assert.Equal(t, "value", string(got))
	_, e = g.getxattr(f.NodeId, "user.a", 4)
	assert.Equal(t, unix.ERANGE, e)
	_, e = g.getxattr(f.NodeId, "user.none", 4)
	assert.Equal(t, unix.ENODATA, e)
	list, e := g.listxattr(f.NodeId, 100)
	require.Zero(t, e)
	assert.Equal(t, "user.a\x00", string(list))
	list, e = g.listxattr(f.NodeId, 0)
	require.Zero(t, e)
	assert.EqualValues(t, 7, list[0])
	_, e = g.listxattr(f.NodeId, 6)
	assert.Equal(t, unix.ERANGE, e)
	require.Zero(t, g.removexattr(f.NodeId, "user.a"))
	assert.Equal(t, unix.ENODATA, g.removexattr(f.NodeId, "user.a"))

	l, e := g.symlink(root, "l", "f")
	require.Zero(t, e)
	assert.Equal(t, unix.EPERM, g.setxattr(l.NodeId, "user.a", []byte("v"), 0), "of the link, not of what it leads to")
	_, err := unix.Getxattr(g.dir+"/f", "user.a", nil)
	assert.Equal(t, unix.ENODATA, err)

	off := mount(t, t.TempDir(), Config{})
	assert.Equal(t, unix.ENOSYS, off.setxattr(root, "user.a", []byte("v"), 0))
	_, e = off.getxattr(root, "user.a", 10)
	assert.Equal(t, unix.ENOSYS, e)
}

func TestMappedAttributes(t *testing.T) {
	m, err := ParseXattrMap(":map:trusted.:user.virtiofs.:")
	require.NoError(t, err)
	g := mount(t, t.TempDir(), Config{Xattr: true, XattrMap: m})
	f, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	require.Zero(t, g.setxattr(f.NodeId, "trusted.overlay.opaque", []byte("y"), 0))
	require.Zero(t, g.setxattr(f.NodeId, "user.plain", []byte("z"), 0))
	buf := make([]byte, 10)
	n, err := unix.Getxattr(g.dir+"/f", "user.virtiofs.trusted.overlay.opaque", buf)
	require.NoError(t, err)
	assert.Equal(t, "y", string(buf[:n]))
	got, e := g.getxattr(f.NodeId, "trusted.overlay.opaque", 10)
	require.Zero(t, e)
	assert.Equal(t, "y", string(got))
	assert.Equal(t, unix.EPERM, g.setxattr(f.NodeId, "user.virtiofs.trusted.overlay.opaque", []byte("n"), 0))
	_, e = g.getxattr(f.NodeId, "user.virtiofs.trusted.overlay.opaque", 10)
	assert.Equal(t, unix.ENODATA, e, "what is denied is not there to be read")
	list, e := g.listxattr(f.NodeId, 200)
	require.Zero(t, e)
	names := strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00")
	sort.Strings(names)
	assert.Equal(t, []string{"trusted.overlay.opaque", "user.plain"}, names)
	require.Zero(t, g.removexattr(f.NodeId, "trusted.overlay.opaque"))
}

func TestHolesCopiesAndSpace(t *testing.T) {
	g := mount(t, t.TempDir(), Config{})
	f, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	falloc := func(mode uint32, off, n uint64) unix.Errno {
		_, e := call(g, fuseabi.OpFallocate, f.NodeId, &fuseabi.FallocateIn{Fh: f.Fh, Offset: off, Length: n, Mode: mode}, nil, 0)
		return e
	}
	require.Zero(t, falloc(0, 0, 1<<20))
	a, _ := g.getattr(f.NodeId)
	assert.EqualValues(t, 1<<20, a.Size)
	require.Zero(t, falloc(unix.FALLOC_FL_KEEP_SIZE, 0, 2<<20))
	_, e = g.write(f.NodeId, f.Fh, 0, bytes.Repeat([]byte{1}, 1<<20), 0, 0)
	require.Zero(t, e)
	if e := falloc(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 65536, 65536); e != unix.EOPNOTSUPP {
		require.Zero(t, e)
		seek := func(off uint64, whence uint32) (uint64, unix.Errno) {
			out, e := want[fuseabi.LseekOut](g, fuseabi.OpLseek, f.NodeId, &fuseabi.LseekIn{Fh: f.Fh, Offset: off, Whence: whence}, nil)
			return out.Offset, e
		}
		off, e := seek(0, unix.SEEK_HOLE)
		require.Zero(t, e)
		assert.EqualValues(t, 65536, off)
		off, e = seek(65536, unix.SEEK_DATA)
		require.Zero(t, e)
		assert.EqualValues(t, 131072, off)
		_, e = seek(4<<20, unix.SEEK_DATA)
		assert.Equal(t, unix.ENXIO, e)
		_, e = seek(0, 99)
		assert.Equal(t, unix.EINVAL, e)
	}
	assert.Equal(t, unix.EINVAL, falloc(0, 1<<63, 1))
	assert.Equal(t, unix.EOPNOTSUPP, falloc(0x8000, 0, 1))

	c, e := g.create(root, "copy", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	in := fuseabi.CopyFileRangeIn{FhIn: f.Fh, OffIn: 10, NodeIdOut: c.NodeId, FhOut: c.Fh, OffOut: 3, Len: 1000}
	w, e := want[fuseabi.WriteOut](g, fuseabi.OpCopyFileRange, f.NodeId, &in, nil)
	require.Zero(t, e)
	assert.EqualValues(t, 1000, w.Size)
	w64, e := want[fuseabi.CopyFileRangeOut](g, fuseabi.OpCopyFileRange64, f.NodeId, &in, nil)
	require.Zero(t, e)
	assert.EqualValues(t, 1000, w64.BytesCopied)
	a, _ = g.getattr(c.NodeId)
	assert.EqualValues(t, 1003, a.Size)
	in.Flags = 1
	_, e = want[fuseabi.WriteOut](g, fuseabi.OpCopyFileRange, f.NodeId, &in, nil)
	assert.Equal(t, unix.EINVAL, e)
	// Of a long range a part is copied, so that nobody has to wait for all of it.
	require.NoError(t, os.Truncate(filepath.Join(g.dir, "copy"), 65<<20))
	long, e := g.create(root, "long", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	in = fuseabi.CopyFileRangeIn{FhIn: c.Fh, NodeIdOut: long.NodeId, FhOut: long.Fh, Len: 1 << 40}
	for _, part := range []uint64{64 << 20, 1 << 20, 0} {
		w64, e = want[fuseabi.CopyFileRangeOut](g, fuseabi.OpCopyFileRange64, c.NodeId, &in, nil)
		require.Zero(t, e)
		assert.EqualValues(t, part, w64.BytesCopied)
		in.OffIn, in.OffOut = in.OffIn+part, in.OffOut+part
	}
	for _, op := range []fuseabi.Opcode{fuseabi.OpFsync, fuseabi.OpFsync} {
		_, e = call(g, op, f.NodeId, &fuseabi.FsyncIn{Fh: f.Fh}, nil, 0)
		assert.Zero(t, e)
		_, e = call(g, op, f.NodeId, &fuseabi.FsyncIn{Fh: f.Fh, FsyncFlags: 1}, nil, 0)
		assert.Zero(t, e)
	}
	fh, _ := g.opendir(root)
	_, e = call(g, fuseabi.OpFsyncdir, root, &fuseabi.FsyncIn{Fh: fh}, nil, 0)
	assert.Zero(t, e)
	_, e = call(g, fuseabi.OpFlush, f.NodeId, &fuseabi.FlushIn{Fh: f.Fh}, nil, 0)
	assert.Zero(t, e)
}

func TestTmpfile(t *testing.T) {
	testenv.Need(t, "tmpfile")
	g := mount(t, t.TempDir(), Config{})
	tmp, e := want[fuseabi.CreateOut](g, fuseabi.OpTmpfile, root, &fuseabi.CreateIn{Flags: unix.O_RDWR | unix.O_TMPFILE, Mode: unix.S_IFREG | 0o600}, z("/"))
	require.Zero(t, e)
	assert.Zero(t, tmp.Nlink)
	_, e = g.write(tmp.NodeId, tmp.Fh, 0, []byte("abc"), 0, 0)
	require.Zero(t, e)
	a, e := g.getattr(tmp.NodeId)
	require.Zero(t, e)
	assert.EqualValues(t, 3, a.Size)
	l, e := g.link(tmp.NodeId, root, "named")
	require.Zero(t, e)
	assert.Equal(t, tmp.NodeId, l.NodeId)
	b, err := os.ReadFile(g.dir + "/named")
	require.NoError(t, err)
	assert.Equal(t, "abc", string(b))
}

func TestStatx(t *testing.T) {
	g := mount(t, t.TempDir(), Config{})
	f, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	var st unix.Statx_t
	require.NoError(t, unix.Statx(unix.AT_FDCWD, g.dir+"/f", 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st))
	out, e := want[fuseabi.StatxOut](g, fuseabi.OpStatx, f.NodeId, &fuseabi.StatxIn{SxMask: unix.STATX_BASIC_STATS | unix.STATX_BTIME}, nil)
	require.Zero(t, e)
	assert.EqualValues(t, st.Ino, out.Ino)
	assert.EqualValues(t, st.Btime.Sec, out.Btime.Sec)
	assert.EqualValues(t, st.Btime.Nsec, out.Btime.Nsec)
	assert.EqualValues(t, st.Mode, out.Mode)
	assert.EqualValues(t, unix.STATX_BASIC_STATS|unix.STATX_BTIME, out.Mask)
	out, e = want[fuseabi.StatxOut](g, fuseabi.OpStatx, f.NodeId, &fuseabi.StatxIn{SxMask: unix.STATX_BASIC_STATS, GetattrFlags: fuseabi.GetattrFH, Fh: f.Fh}, nil)
	require.Zero(t, e)
	assert.EqualValues(t, st.Ino, out.Ino)
}

func TestAppendIsSaidWithEachWrite(t *testing.T) {
	g := mount(t, t.TempDir(), Config{Writeback: true})
	f, e := g.create(root, "f", unix.O_WRONLY|unix.O_APPEND, 0o644, 0)
	require.Zero(t, e)
	_, e = g.write(f.NodeId, f.Fh, 0, []byte("abc"), unix.O_APPEND, 0)
	require.Zero(t, e)
	_, e = g.write(f.NodeId, f.Fh, 0, []byte("def"), unix.O_APPEND, 0)
	require.Zero(t, e)
	_, e = g.write(f.NodeId, f.Fh, 0, []byte("X"), unix.O_APPEND, fuseabi.WriteCache)
	require.Zero(t, e)
	b, e := g.read(f.NodeId, f.Fh, 0, 10)
	require.Zero(t, e, "with writeback the guest reads what it writes a part of")
	assert.Equal(t, "Xbcdef", string(b))
}

// An empty file of tmpfs keeps its times where truncate(2) leaves it empty, and not where ftruncate(2) or open(2) does (fs/open.c,
// do_truncate).
func TestTruncationOfAnEmptyFile(t *testing.T) {
	dir := tmpfs(t)
	path := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(path, nil, 0o644))
	old := time.Unix(1000000000, 0)
	for _, atomic := range []bool{true, false} {
		g := mount(t, dir, Config{KillprivV2: atomic}) // without it ATOMIC_O_TRUNC is not offered, and opening may be what truncates
		n := g.mustLookup(root, "f")
		fh, e := g.open(n, unix.O_RDWR)
		require.Zero(t, e)
		for name, c := range map[string]struct {
			size, fh uint64
			valid    uint32
			moves    bool
		}{
			"by name":                 {0, 0, 0, !atomic},
			"by name, to another":     {5, 0, 0, true},
			"by an open file":         {0, fh, fuseabi.FattrFH, true},
			"by name, set-id cleared": {0, 0, fuseabi.FattrKillSuidGid, !atomic},
		} {
			name = fmt.Sprint(name, ", atomic ", atomic)
			require.NoError(t, os.Truncate(path, 0))
			require.NoError(t, os.Chtimes(path, old, old))
			in := fuseabi.SetattrIn{}
			in.Valid, in.Size, in.Fh = fuseabi.FattrSize|c.valid, c.size, c.fh
			_, e := g.setattr(n, in)
			require.Zero(t, e, name)
			st, err := os.Stat(path)
			require.NoError(t, err)
			assert.EqualValues(t, c.size, st.Size(), name)
			assert.Equal(t, c.moves, !st.ModTime().Equal(old), name)
		}
	}
}
