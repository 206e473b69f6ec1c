package passthrough

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/testenv"
)

// CVE-2020-35517: a guest's root made a device node in the share and had the daemon open it, for the host's disk.
func TestDeviceNodesAreNeverOpened(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	g := mount(t, dir, Config{})
	for _, d := range []struct {
		name string
		mode uint32
		dev  uint64
	}{
		{"null", unix.S_IFCHR, unix.Mkdev(1, 3)}, // opening it would succeed
		{"zero", unix.S_IFCHR, unix.Mkdev(1, 5)},
		{"disk", unix.S_IFBLK, unix.Mkdev(7, 0)},
		{"none", unix.S_IFCHR, unix.Mkdev(511, 77)}, // nobody drives it: opening it would be ENXIO
	} {
		n, e := g.mknod(root, d.name, d.mode|0o666, uint32(d.dev))
		require.Zero(t, e)
		assert.EqualValues(t, d.dev, n.Rdev)
		for _, flags := range []uint32{unix.O_RDONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_TRUNC, 3} {
			_, e = g.open(n.NodeId, flags)
			assert.Equal(t, unix.EBADF, e)
			_, e = g.create(root, d.name, flags, 0o644, 0)
			assert.Equal(t, unix.EBADF, e, "CREATE of a name that exists opens it")
		}
		_, e = call(g, fuseabi.OpSyncfs, n.NodeId, &fuseabi.SyncfsIn{}, nil, 0)
		assert.Equal(t, unix.EINVAL, e)
		in := fuseabi.SetattrIn{}
		in.Valid = fuseabi.FattrSize
		for _, in.Size = range []uint64{0, 1} {
			_, e = g.setattr(n.NodeId, in)
			assert.Equal(t, unix.EINVAL, e, "as truncate(2), which opens nothing")
		}
		_, e = g.opendir(n.NodeId)
		assert.Equal(t, unix.ENOTDIR, e)
	}
	// The node is opened by its descriptor, so a device that takes the place of a known file by name is not opened for it.
	require.NoError(t, os.WriteFile(dir+"/file", nil, 0o600))
	file := g.mustLookup(root, "file")
	require.NoError(t, os.Rename(dir+"/null", dir+"/file"))
	_, e := g.open(file, unix.O_RDWR)
	assert.Equal(t, unix.ESTALE, e)
}

// CVE-2022-0358: a user of the guest who is not in a set-group-ID directory's group got a file that runs with that group,
// because the daemon kept its own groups and CAP_FSETID while it created the file.
func TestSetgidIsNotKeptForStrangers(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o777))
	shared := filepath.Join(dir, "shared")
	require.NoError(t, os.Mkdir(shared, 0o777))
	require.NoError(t, os.Chown(shared, 0, 4711))
	require.NoError(t, os.Chmod(shared, 0o777|os.ModeSetgid))
	// The daemon's own groups must not help: they would be the launcher's.
	g := mount(t, dir, Config{})
	d := g.mustLookup(root, "shared")
	for i, c := range []struct {
		g    *guest
		keep bool
	}{
		{g.as(1001, 1001), false},
		{g.as(1001, 1001, 5000), false},
		{g.as(1001, 1001, 4711), true},
		{g.as(1001, 4711), true},
		{g.as(0, 0), true}, // root has CAP_FSETID
	} {
		f, e := c.g.create(d, fmt.Sprint("f", i), unix.O_RDWR|unix.O_EXCL, 0o2755, 0)
		require.Zero(t, e)
		assert.EqualValues(t, 4711, f.Gid, "the directory's group")
		assert.Equal(t, c.g.uid, f.Uid)
		assert.Equal(t, c.keep, f.Mode&unix.S_ISGID != 0, "caller %d:%d %v: mode %o", c.g.uid, c.g.gid, c.g.groups, f.Mode)
		sub, e := c.g.mkdir(d, fmt.Sprint("d", i), 0o755, 0)
		require.Zero(t, e)
		assert.NotZero(t, sub.Mode&unix.S_ISGID, "directories inherit the bit")
		assert.EqualValues(t, 4711, sub.Gid)
	}
}

// Whatever a name is, nothing outside of the share changes and nothing of it is seen.
func TestNamesDoNotLeaveTheShare(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "share")
	require.NoError(t, os.MkdirAll(dir+"/sub", 0o755))
	require.NoError(t, os.WriteFile(top+"/secret", []byte("secret"), 0o644))
	g := mount(t, dir, Config{Xattr: true})
	f, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	before := tree(t, top)

	// All of them lead to files of this test: where the check of names is gone, what they name is lost.
	for _, name := range []string{"..", ".", "", "../secret", "sub/..", "sub/../../secret", top + "/secret", "./f", "f/", strings.Repeat("../", 40) + top[1:] + "/secret"} {
		for what, e := range map[string]unix.Errno{
			"lookup":  func() unix.Errno { _, e := g.lookup(root, name); return e }(),
			"mkdir":   func() unix.Errno { _, e := g.mkdir(root, name, 0o755, 0); return e }(),
			"mknod":   func() unix.Errno { _, e := g.mknod(root, name, unix.S_IFREG|0o644, 0); return e }(),
			"symlink": func() unix.Errno { _, e := g.symlink(root, name, "x"); return e }(),
			"link":    func() unix.Errno { _, e := g.link(f.NodeId, root, name); return e }(),
			"create":  func() unix.Errno { _, e := g.create(root, name, unix.O_RDWR, 0o644, 0); return e }(),
			"unlink":  g.unlink(root, name),
			"rmdir":   g.rmdir(root, name),
			"from":    g.rename(root, name, root, "stolen", 0),
			"to":      g.rename(root, "f", root, name, 0),
			"swap":    g.rename(root, "f", root, name, unix.RENAME_EXCHANGE),
		} {
			if what == "lookup" && (name == "." || name == "..") { // TestLookupOfDots
				assert.Zero(t, e)
				continue
			}
			assert.Equal(t, unix.EINVAL, e, "%s of %q", what, name)
		}
	}
	long := strings.Repeat("n", 256)
	_, e = g.lookup(root, long)
	assert.Equal(t, unix.ENAMETOOLONG, e)
	_, e = g.create(root, long, unix.O_RDWR, 0o644, 0)
	assert.Equal(t, unix.ENAMETOOLONG, e)
	_, e = want[fuseabi.EntryOut](g, fuseabi.OpLookup, root, &none{}, []byte("no end"))
	assert.Equal(t, unix.EINVAL, e)
	_, e = g.create(root, strings.Repeat("n", 255), unix.O_RDWR, 0o644, 0)
	assert.Zero(t, e)
	assert.Zero(t, g.unlink(root, strings.Repeat("n", 255)))
	assert.Equal(t, before, tree(t, top))

	// Links that lead out are the guest's kernel to follow, in the guest; here they are never followed.
	l, e := g.symlink(root, "out", "../secret")
	require.Zero(t, e)
	up, e := g.symlink(root, "up", "..")
	require.Zero(t, e)
	_, e = g.open(l.NodeId, unix.O_RDONLY)
	assert.Equal(t, unix.ELOOP, e)
	_, e = g.create(root, "out", unix.O_RDWR|unix.O_TRUNC, 0o644, 0)
	assert.Equal(t, unix.ELOOP, e)
	_, e = g.lookup(up.NodeId, "secret")
	assert.Equal(t, unix.ENOTDIR, e)
	_, e = g.opendir(up.NodeId)
	assert.Equal(t, unix.ENOTDIR, e)
	_, e = g.link(l.NodeId, root, "hard-link-of-link")
	require.Zero(t, e)
	h, e := g.lookup(root, "hard-link-of-link")
	require.Zero(t, e)
	assert.EqualValues(t, unix.S_IFLNK, h.Mode&unix.S_IFMT)
	in := fuseabi.SetattrIn{}
	in.Valid, in.Mode = fuseabi.FattrMode, 0o777
	_, e = g.setattr(l.NodeId, in)
	assert.Equal(t, unix.EOPNOTSUPP, e)
	assert.Equal(t, unix.EPERM, g.setxattr(l.NodeId, "user.a", []byte("x"), 0))
	b, err := os.ReadFile(top + "/secret")
	require.NoError(t, err)
	assert.Equal(t, "secret", string(b))
	for _, en := range g.readdir(root, true, 4096) {
		if en.name == ".." {
			var st unix.Stat_t
			require.NoError(t, unix.Stat(dir, &st))
			assert.Equal(t, st.Ino, en.dirent.Ino, "the number of what is above the share is not told")
		}
	}
}

// Read by the handle of another directory, a list would have that one's names with the attributes of others, and tell the number of what is above
// the share.
func TestDirectoriesAreReadByTheirOwnHandles(t *testing.T) {
	g := mount(t, t.TempDir(), Config{})
	sub, e := g.mkdir(root, "sub", 0o755, 0)
	require.Zero(t, e)
	fh, e := g.opendir(root)
	require.Zero(t, e)
	for _, plus := range []bool{false, true} {
		_, e = g.readdirAt(sub.NodeId, fh, 0, plus, 4096)
		assert.Equal(t, unix.EBADF, e)
		all, e := g.readdirAt(root, fh, 0, plus, 4096)
		require.Zero(t, e)
		assert.Len(t, all, 3)
	}
}

// A directory that turns into a link between lookup and use must not lead out (PEERS do this by name in mode none).
func TestSwappedDirectoriesDoNotLeadOut(t *testing.T) {
	for _, h := range []Handles{HandlesNever, HandlesPrefer} {
		for _, byName := range []bool{false, true} {
			top := t.TempDir()
			dir := filepath.Join(top, "share")
			require.NoError(t, os.MkdirAll(dir+"/d/inner", 0o755))
			require.NoError(t, os.MkdirAll(top+"/outside/inner", 0o755))
			require.NoError(t, os.WriteFile(top+"/outside/secret", nil, 0o644))
			g := mount(t, dir, Config{InodeFileHandles: h})
			d := g.mustLookup(root, "d")
			if byName { // nothing but its name leads to it
				n := g.fs.nodes.slots.get(d)
				require.True(t, n.evict())
				g.fs.fds.remove(n)
				n.handle.Store(nil)
			}
			require.NoError(t, os.Rename(dir+"/d", dir+"/was-d"))
			require.NoError(t, os.Symlink("../outside", dir+"/d"))
			_, e := g.lookup(d, "secret")
			_, made := g.mkdir(d, "made", 0o755, 0)
			assert.NoDirExists(t, top+"/outside/made")
			if byName {
				assert.Equal(t, []unix.Errno{unix.ESTALE, unix.ESTALE}, []unix.Errno{e, made})
			} else {
				assert.Equal(t, []unix.Errno{unix.ENOENT, 0}, []unix.Errno{e, made})
				assert.DirExists(t, dir+"/was-d/made")
			}
			require.NoError(t, os.Remove(dir+"/d"))
			require.NoError(t, os.Rename(dir+"/was-d", dir+"/d"))
			_, e = g.lookup(d, "inner")
			assert.Zero(t, e, "it is there again")
		}
	}
}

func tree(t *testing.T, top string) (all []string) {
	t.Helper()
	require.NoError(t, filepath.Walk(top, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		line := path + " " + info.Mode().String()
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += " " + string(b)
		}
		all = append(all, line)
		return nil
	}))
	return all
}

func TestRootIsNotForgotten(t *testing.T) {
	g := mount(t, t.TempDir(), Config{})
	for _, n := range []uint64{1, 1000, 1 << 63, 1<<64 - 1} {
		g.forget(root, n)
	}
	many := bytes.Repeat([]byte{1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255}, 1000)
	require.Empty(t, g.raw(request(g, fuseabi.OpBatchForget, 0, &fuseabi.BatchForgetIn{Count: 1000}, many), 64))
	_, e := g.getattr(root)
	assert.Zero(t, e)
	_, e = g.mkdir(root, "d", 0o755, 0)
	assert.Zero(t, e)
	assert.Equal(t, unix.ENOENT, g.unlink(root, "none"))
	seen, is := g.fs.nodes.find(identity{g.fs.root.key, g.fs.root.btime.Load(), g.fs.root.typ})
	assert.Same(t, g.fs.root, seen, "seen again, it is the root")
	assert.Equal(t, yes, is)
}

func TestForgetIsExact(t *testing.T) {
	g := mount(t, t.TempDir(), Config{})
	require.NoError(t, os.WriteFile(g.dir+"/f", nil, 0o600))
	var f uint64
	for range 5 {
		f = g.mustLookup(root, "f")
	}
	g.forget(f, 4)
	_, e := g.getattr(f)
	require.Zero(t, e)
	g.forget(f, 1)
	_, e = g.getattr(f)
	assert.Equal(t, unix.ESTALE, e)
	again := g.mustLookup(root, "f")
	assert.NotEqual(t, f, again, "numbers are not used twice")
	g.forget(again, 1<<64-1)
	g.forget(again, 1)
	g.forget(f, 1)
	g.forget(0, 1)
	g.forget(1<<64-1, 1)
	assert.Equal(t, 1, g.fs.Stats().Inodes)

	// Forgotten while open: the file stays usable until it is released.
	n := g.mustLookup(root, "f")
	fh, e := g.open(n, unix.O_RDWR)
	require.Zero(t, e)
	g.forget(n, 1)
	_, e = g.write(n, fh, 0, []byte("x"), 0, 0)
	assert.Zero(t, e)
	assert.Zero(t, g.release(n, fh))
	assert.Equal(t, 0, g.fs.Stats().OpenFiles)
}

func TestReusedInodeNumbersAreOtherFiles(t *testing.T) {
	g := mount(t, t.TempDir(), Config{InodeFileHandles: HandlesNever})
	// ext4 hands out the number of a removed file soon again, but not while it is open.
	reused := false
	for range 400 {
		require.NoError(t, os.WriteFile(g.dir+"/f", []byte("1"), 0o600))
		a, e := g.lookup(root, "f")
		require.Zero(t, e)
		require.NoError(t, os.Remove(g.dir+"/f"))
		require.NoError(t, os.WriteFile(g.dir+"/f", []byte("22"), 0o600))
		b, e := g.lookup(root, "f")
		require.Zero(t, e)
		assert.NotEqual(t, a.NodeId, b.NodeId)
		old, e := g.getattr(a.NodeId)
		assert.Zero(t, e)
		assert.EqualValues(t, 1, old.Size, "the first file, which has no name any more")
		assert.Zero(t, old.Nlink)
		reused = reused || a.Attr.Ino == b.Attr.Ino
		g.forget(a.NodeId, 1)
		g.forget(b.NodeId, 1)
		require.NoError(t, os.Remove(g.dir+"/f"))
	}
	assert.False(t, reused, "a number that the guest knows means another file")
}

// A guest may send anything at any time: random bodies behind headers that make sense reach deeper than random bytes do.
func TestRandomRequests(t *testing.T) {
	dir := t.TempDir()
	top := filepath.Join(dir, "share")
	require.NoError(t, os.Mkdir(top, 0o755))
	require.NoError(t, os.WriteFile(dir+"/outside", []byte("untouched"), 0o644))
	g := mount(t, top, Config{Xattr: true, KillprivV2: true, Flock: true, PosixLock: true})
	before := openDescriptors(t)
	var all sync.WaitGroup
	workers := []*guest{g, g.another(), g.another()}
	for i, o := range workers {
		all.Add(1)
		go func() {
			defer all.Done()
			r := rand.New(rand.NewPCG(uint64(i), 99))
			for range 4000 {
				o.raw(randomRequest(o, r), r.IntN(3)*200)
			}
		}()
	}
	all.Wait()
	_, e := g.getattr(root)
	assert.Zero(t, e)
	b, err := os.ReadFile(dir + "/outside")
	require.NoError(t, err)
	assert.Equal(t, "untouched", string(b))
	g.init(0)
	assert.Equal(t, Stats{Inodes: 1}.Inodes, g.fs.Stats().Inodes)
	assert.Zero(t, g.fs.Stats().OpenFiles)
	assert.LessOrEqual(t, openDescriptors(t), before+2, "nothing leaks")
	assert.Equal(t, uint32(os.Geteuid()), uint32(unix.Geteuid()))
}

func randomRequest(g *guest, r *rand.Rand) []byte {
	op := fuseabi.Opcode(r.IntN(int(fuseabi.OpcodeEnd) + 2))
	for op == fuseabi.OpSetlkw || op == fuseabi.OpInit || op == fuseabi.OpDestroy { // these end or block sessions by design
		op = fuseabi.Opcode(r.IntN(int(fuseabi.OpcodeEnd)))
	}
	tail := make([]byte, r.IntN(160))
	for i := range tail {
		switch r.IntN(4) {
		case 0:
			tail[i] = byte(r.IntN(256))
		case 1:
			tail[i] = byte(r.IntN(8))
		}
	}
	if r.IntN(2) == 0 {
		tail = append(make([]byte, r.IntN(9)*8), z([]string{"a", "b", "c", "..", "d/e", "user.x"}[r.IntN(6)], "b")...)
	}
	req := request(g, op, uint64(r.IntN(12)), &none{}, tail)
	h := fuseabi.View[fuseabi.InHeader](req)
	switch r.IntN(12) {
	case 0:
		h.Length = uint32(r.IntN(400))
	case 1:
		h.TotalExtlen = uint16(r.IntN(20))
	case 2:
		h.Uid, h.Gid = r.Uint32(), r.Uint32()
	case 3:
		req = req[:r.IntN(len(req))]
	}
	return req
}

// TestReadonlyShare: the mount of a read-only share is one that the kernel guards, but not in every sandbox; each request that changes
// something is refused by itself.
func TestReadonlyShare(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(dir+"/sub", 0o755))
	require.NoError(t, os.WriteFile(dir+"/file", []byte("content"), 0o644))
	g := mount(t, dir, Config{Readonly: true, Xattr: true})
	file := g.mustLookup(root, "file")
	fh, e := g.open(file, unix.O_RDONLY)
	require.Zero(t, e, "reading is what it is for")
	before := tree(t, dir)
	attributes := fuseabi.SetattrIn{}
	attributes.Valid, attributes.Mode = fuseabi.FattrMode, 0o777
	fallocate := fuseabi.FallocateIn{Fh: fh, Length: 1 << 20}
	for what, e := range map[string]unix.Errno{
		"open to write":    func() unix.Errno { _, e := g.open(file, unix.O_WRONLY); return e }(),
		"open to both":     func() unix.Errno { _, e := g.open(file, unix.O_RDWR); return e }(),
		"open to truncate": func() unix.Errno { _, e := g.open(file, unix.O_RDONLY|unix.O_TRUNC); return e }(),
		"write":            func() unix.Errno { _, e := g.write(file, fh, 0, []byte("x"), 0, 0); return e }(),
		"fallocate":        func() unix.Errno { _, e := want[none](g, fuseabi.OpFallocate, file, &fallocate, nil); return e }(),
		"create":           func() unix.Errno { _, e := g.create(root, "new", unix.O_RDWR, 0o644, 0); return e }(),
		"mkdir":            func() unix.Errno { _, e := g.mkdir(root, "new", 0o755, 0); return e }(),
		"mknod":            func() unix.Errno { _, e := g.mknod(root, "new", unix.S_IFREG|0o644, 0); return e }(),
		"symlink":          func() unix.Errno { _, e := g.symlink(root, "new", "x"); return e }(),
		"link":             func() unix.Errno { _, e := g.link(file, root, "new"); return e }(),
		"unlink":           g.unlink(root, "file"),
		"rmdir":            g.rmdir(root, "sub"),
		"rename":           g.rename(root, "file", root, "new", 0),
		"setattr":          func() unix.Errno { _, e := g.setattr(file, attributes); return e }(),
		"setxattr":         g.setxattr(file, "user.a", []byte("x"), 0),
		"removexattr":      g.removexattr(file, "user.a"),
	} {
		assert.Equal(t, unix.EROFS, e, what)
	}
	assert.Equal(t, before, tree(t, dir))
}

// Data that somebody without CAP_FSETID changes does not go on running with its owner's ids. The guest says who that is, by flags that
// HANDLE_KILLPRIV_V2 brought.
func TestDataChangesClearSetIDBits(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	g := mount(t, dir, Config{KillprivV2: true})
	for name, change := range map[string]func(node uint64) unix.Errno{
		"write": func(node uint64) unix.Errno {
			fh, e := g.open(node, unix.O_RDWR)
			require.Zero(t, e)
			_, e = g.write(node, fh, 0, []byte("x"), 0, fuseabi.WriteKillSuidGid)
			return e
		},
		"open": func(node uint64) unix.Errno {
			in := fuseabi.OpenIn{Flags: unix.O_RDWR | unix.O_TRUNC, Mode: fuseabi.OpenKillSuidGid}
			_, e := want[fuseabi.OpenOut](g, fuseabi.OpOpen, node, &in, nil)
			return e
		},
		"truncate": func(node uint64) unix.Errno {
			in := fuseabi.SetattrIn{}
			in.Valid, in.Size = fuseabi.FattrSize|fuseabi.FattrKillSuidGid, 1
			_, e := g.setattr(node, in)
			return e
		},
	} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte("#!"), 0o755))
		require.NoError(t, os.Chmod(path, 0o755|os.ModeSetuid|os.ModeSetgid))
		require.Zero(t, change(g.mustLookup(root, name)), name)
		st, err := os.Stat(path)
		require.NoError(t, err)
		assert.Zero(t, st.Mode()&(os.ModeSetuid|os.ModeSetgid), name)
	}
}

// TestTruncationByOpenIsNotOfferedWhereBitsWouldStay: without HANDLE_KILLPRIV_V2 the guest's kernel clears set-id bits where it truncates
// by SETATTR, but not where OPEN does it.
func TestTruncationByOpenIsNotOfferedWhereBitsWouldStay(t *testing.T) {
	with, without := mount(t, t.TempDir(), Config{KillprivV2: true}), mount(t, t.TempDir(), Config{})
	const all = ^fuseabi.InitFlags(0)
	assert.NotZero(t, with.init(all)&fuseabi.AtomicOTrunc)
	assert.Zero(t, without.init(all)&fuseabi.AtomicOTrunc)
	assert.Zero(t, with.init(all&^fuseabi.HandleKillprivV2)&fuseabi.AtomicOTrunc, "a guest that does not know it")
}

// What a guest makes may be something else before it is looked up: the answer is never of another type, which a guest's kernel takes for an
// I/O error.
func TestMadeIsOfTheTypeThatWasAskedFor(t *testing.T) {
	dir := t.TempDir()
	g := mount(t, dir, Config{})
	x, other := dir+"/x", dir+"/other"
	require.NoError(t, os.WriteFile(other, nil, 0o644))
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, x, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE) // there may be none
			}
		}
	}()
	exchanged := 0
	for n := 0; n < 20_000 && exchanged < 20; n++ {
		made, e := g.mkdir(root, "x", 0o755, 0)
		switch e {
		case 0:
			require.EqualValues(t, unix.S_IFDIR, made.Mode&unix.S_IFMT)
			g.forget(made.NodeId, 1)
		case unix.ESTALE:
			exchanged++
		default:
			require.Contains(t, []unix.Errno{unix.EEXIST, unix.ENOENT}, e)
		}
		_, _, _ = os.Remove(x), os.Remove(other), os.WriteFile(other, nil, 0o644) // as far as the exchanges let us
	}
	close(quit)
	<-done
	t.Log(exchanged, "were exchanged in between")
	require.NotZero(t, exchanged, "nothing was tried")
}

// A guest can replay INIT on two queues at once, among other requests. No session may come out of it without its root, nor with a file that
// is known by its identity and not by its number, which would be stale for good.
func TestSessionsThatBeginTogetherKeepTheRoot(t *testing.T) {
	g := mount(t, t.TempDir(), Config{})
	table := g.fs.nodes
	ino := uint64(1 << 40)
	for range 400 {
		var all sync.WaitGroup
		for i := range 3 {
			all.Go(func() {
				for range 3 {
					switch i {
					case 0:
						for range 10 {
							ino++
							table.add(&inode{key: key{ino: ino}, typ: unix.S_IFREG})
						}
					default:
						table.clear(g.fs.root)
					}
				}
			})
		}
		all.Wait()
		_, e := g.getattr(root)
		require.Zero(t, e, "the root")
		known := 0
		for i := range table.keys {
			known += len(table.keys[i].m)
			for _, n := range table.keys[i].m {
				require.Same(t, n, table.slots.get(n.id), "known by identity only")
			}
		}
		require.Equal(t, known, table.len(), "known by number only")
	}
}
