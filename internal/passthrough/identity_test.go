package passthrough

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/testenv"
)

// disk mounts a new ext4 of 64 MiB.
func disk(t *testing.T, mkfs ...string) string {
	t.Helper()
	testenv.Need(t, "root", "loop", "mkfs")
	image := filepath.Join(tmpfs(t), "image")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 64<<20))
	dir := publicDir(t)
	for _, argv := range [][]string{append(append([]string{"mkfs.ext4", "-q", "-O", "^has_journal"}, mkfs...), image), {"mount", "-o", "loop", image, dir}} {
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		require.NoError(t, err, "%s: %s", argv, out)
	}
	t.Cleanup(func() { assert.NoError(t, exec.Command("umount", "-l", dir).Run()) })
	return dir
}

// overlay mounts an overlayfs whose lower layer has what fill made.
func overlay(t *testing.T, fill func(lower string)) string {
	t.Helper()
	testenv.Need(t, "root")
	layers, dir := tmpfs(t), publicDir(t)
	for _, name := range []string{"lower", "upper", "work"} {
		require.NoError(t, os.Mkdir(layers+"/"+name, 0o755))
	}
	fill(layers + "/lower")
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", layers)
	require.NoError(t, unix.Mount("overlay", dir, "overlay", 0, options))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// onEach runs a test on file systems of several kinds, each with and without export handles.
func onEach(t *testing.T, test func(t *testing.T, dir string, h Handles)) {
	for name, dir := range map[string]func(*testing.T) string{
		"tmpfs":              func(t *testing.T) string { return tmpfs(t) },
		"ext4":               func(t *testing.T) string { return disk(t) },
		"ext4 without birth": func(t *testing.T) string { return disk(t, "-I", "128") },
		"overlay":            func(t *testing.T) string { return overlay(t, func(string) {}) },
	} {
		for how, h := range map[string]Handles{"descriptors": HandlesNever, "handles": HandlesPrefer} {
			t.Run(name+" "+how, func(t *testing.T) { test(t, dir(t), h) })
		}
	}
}

// anchored waits until each inode that the guest knows has a way to it besides its name.
func (g *guest) anchored() {
	g.t.Helper()
	require.Eventually(g.t, func() bool {
		all := true
		for i := range g.fs.nodes.keys {
			s := &g.fs.nodes.keys[i]
			s.mu.Lock()
			for _, n := range s.m {
				all = all && n.anchored()
			}
			s.mu.Unlock()
		}
		return all
	}, 10*time.Second, time.Millisecond)
}

// entryNode is the number by which a READDIRPLUS names an entry.
func (g *guest) entryNode(dir uint64, name string) uint64 {
	g.t.Helper()
	for _, en := range g.readdir(dir, true, 65536) {
		if en.name == name {
			require.NotZero(g.t, en.node, name)
			return en.node
		}
	}
	require.Fail(g.t, "not listed: "+name)
	return 0
}

// What a guest knows stays what it is, whatever the host does to its names: a process may have the
// directory as its working directory, or the file open for its path only, or mounted elsewhere.
func TestWhatIsKnownOutlivesItsName(t *testing.T) {
	onEach(t, func(t *testing.T, dir string, h Handles) {
		for _, far := range []bool{false, true} {
			for _, listed := range []bool{false, true} {
				g := mount(t, dir, Config{InodeFileHandles: h, FDBudget: 200})
				top := dir + "/" + fmt.Sprint("top-", far, listed)
				require.NoError(t, os.MkdirAll(top+"/d/inner", 0o755))
				require.NoError(t, os.Mkdir(top+"/elsewhere", 0o755))
				for _, name := range []string{"/d/file", "/moved", "/linked", "/replaced"} {
					require.NoError(t, os.WriteFile(top+name, []byte(name), 0o644))
				}
				require.NoError(t, os.Link(top+"/linked", top+"/link"))
				know := g.mustLookup
				if listed {
					know = g.entryNode
				}
				at := g.mustLookup(root, filepath.Base(top))
				d, moved, linked, replaced := know(at, "d"), know(at, "moved"), know(at, "linked"), know(at, "replaced")
				file := know(d, "file")
				if listed {
					g.anchored()
				}
				if far { // others push the descriptors out, if any are to go
					many := dir + "/" + fmt.Sprint("many-", listed)
					require.NoError(t, os.Mkdir(many, 0o755))
					node := g.mustLookup(root, filepath.Base(many))
					for i := range 1500 {
						name := fmt.Sprint(i)
						require.NoError(t, os.WriteFile(many+"/"+name, nil, 0o644))
						_, e := g.getattr(g.mustLookup(node, name))
						require.Zero(t, e)
					}
				}
				require.NoError(t, os.Rename(top+"/d", top+"/elsewhere/e"))
				require.NoError(t, os.Rename(top+"/moved", top+"/elsewhere/moved-too"))
				require.NoError(t, os.Remove(top+"/linked"))
				require.NoError(t, os.WriteFile(top+"/other", []byte("other"), 0o644))
				require.NoError(t, os.Rename(top+"/replaced", top+"/elsewhere/was-replaced"))
				require.NoError(t, os.Rename(top+"/other", top+"/replaced"))

				read := func(node uint64) string {
					t.Helper()
					fh, e := g.open(node, unix.O_RDONLY)
					require.Zero(t, e)
					b, e := g.read(node, fh, 0, 100)
					require.Zero(t, e)
					require.Zero(t, g.release(node, fh))
					return string(b)
				}
				if far && !g.fs.mountHasHandles(g.fs.mounts.root) { // files beyond the budget are all that is lost, directories are not
					_, e := g.getattr(d)
					require.Zero(t, e, "a directory")
				} else {
					for name, node := range map[string]uint64{"/moved": moved, "/linked": linked, "/replaced": replaced, "/d/file": file} {
						a, e := g.getattr(node)
						require.Zero(t, e, "%s, far %v, listed %v", name, far, listed)
						require.EqualValues(t, len(name), a.Size)
						require.Equal(t, name, read(node), "the file itself, and not what has its name now")
					}
				}
				names := map[string]uint64{}
				for _, en := range g.readdir(d, true, 65536) {
					names[en.name] = en.node
				}
				require.Contains(t, names, "inner")
				require.Contains(t, names, "file")
				_, e := g.create(d, "made", unix.O_RDWR, 0o644, 0)
				require.Zero(t, e)
				require.FileExists(t, top+"/elsewhere/e/made")
				g.mustLookup(d, "inner")
			}
		}
	})
}

// A directory, and a file, that the host removes are still there for who has them: without names,
// as on a local file system.
func TestWhatIsKnownOutlivesItsLastName(t *testing.T) {
	onEach(t, func(t *testing.T, dir string, h Handles) {
		g := mount(t, dir, Config{InodeFileHandles: h})
		require.NoError(t, os.Mkdir(dir+"/d", 0o755))
		require.NoError(t, os.WriteFile(dir+"/f", []byte("text"), 0o644))
		d, f := g.mustLookup(root, "d"), g.mustLookup(root, "f")
		require.NoError(t, os.Remove(dir+"/d"))
		require.NoError(t, os.Remove(dir+"/f"))
		_, e := g.getattr(d)
		assert.Zero(t, e)
		_, e = g.create(d, "x", unix.O_RDWR, 0o644, 0)
		assert.Equal(t, unix.ENOENT, e)
		a, e := g.getattr(f)
		if !g.fs.mountHasHandles(g.fs.mounts.root) {
			require.Zero(t, e)
			assert.Zero(t, a.Nlink)
			assert.EqualValues(t, 4, a.Size)
		} else { // nothing keeps a file that only a handle leads to
			assert.Equal(t, unix.ESTALE, e)
		}
	})
}

// An overlayfs copies a file up when it is written to, with a new birth time, and here a new device
// number: it is the same file to who has it.
func TestCopiedUpFilesAreTheSame(t *testing.T) {
	dir := overlay(t, func(lower string) {
		for i := range 10 {
			require.NoError(t, os.WriteFile(fmt.Sprint(lower, "/l", i), []byte("low"), 0o644))
		}
	})
	for _, c := range []struct {
		file   string
		listed bool
		open   bool
	}{{file: "l7"}, {file: "l8", listed: true}, {file: "l9", open: true}} {
		g := mount(t, dir, Config{})
		know := g.mustLookup
		if c.listed {
			know = g.entryNode
		}
		n := know(root, c.file)
		g.anchored()
		var fh uint64
		if c.open {
			var e unix.Errno
			fh, e = g.open(n, unix.O_RDONLY)
			require.Zero(t, e)
		}
		f, err := os.OpenFile(dir+"/"+c.file, os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteString("er")
		require.NoError(t, err)
		require.NoError(t, f.Close())
		a, e := g.getattr(n)
		require.Zero(t, e, "%+v", c)
		assert.EqualValues(t, 5, a.Size)
		assert.Equal(t, n, g.mustLookup(root, c.file))
		if !c.open {
			fh, e = g.open(n, unix.O_RDONLY)
			require.Zero(t, e)
			b, e := g.read(n, fh, 0, 10)
			require.Zero(t, e)
			assert.Equal(t, "lower", string(b))
		}
		assert.Zero(t, g.release(n, fh))
	}
}

// Without birth times, as on an ext4 of inodes of 128 bytes, a number may mean another file after a
// while: not to the guest.
func TestNumbersWithoutBirthTimesMeanOneFile(t *testing.T) {
	for how, h := range map[string]Handles{"descriptors": HandlesNever, "handles": HandlesPrefer} {
		t.Run(how, func(t *testing.T) {
			dir := disk(t, "-I", "128")
			g := mount(t, dir, Config{InodeFileHandles: h, FDBudget: 1})
			require.NoError(t, os.WriteFile(dir+"/f", []byte("1"), 0o644))
			f, e := g.lookup(root, "f")
			require.Zero(t, e)
			if n := g.fs.nodes.slots.get(f.NodeId); n.hasFD() { // which keeps the number
				require.True(t, n.evict())
				g.fs.fds.remove(n)
			}
			var st unix.Stat_t
			for i := 0; st.Ino != f.Attr.Ino; i++ {
				require.Less(t, i, 100, "the number is not used again")
				require.NoError(t, os.RemoveAll(dir+"/f"))
				require.NoError(t, os.WriteFile(dir+"/f", []byte("22"), 0o644))
				require.NoError(t, unix.Stat(dir+"/f", &st))
			}
			a, e := g.getattr(f.NodeId)
			assert.Equal(t, unix.ESTALE, e, "size %d", a.Size)
			again, e := g.lookup(root, "f")
			require.Zero(t, e)
			assert.NotEqual(t, f.NodeId, again.NodeId)
			assert.EqualValues(t, 2, again.Attr.Size)
			assert.Equal(t, again.NodeId, g.mustLookup(root, "f"))
		})
	}
}

// What a guest knows of a file system below the share does not keep the host from unmounting it for
// longer than a moment, if export handles lead back to it.
func TestSubmountsCanBeUnmounted(t *testing.T) {
	testenv.Need(t, "root")
	dir := tmpfs(t)
	require.NoError(t, os.MkdirAll(dir+"/sub/mount", 0o755))
	require.NoError(t, unix.Mount("tmpfs", dir+"/sub/mount", "tmpfs", 0, ""))
	mounted := true
	t.Cleanup(func() {
		if mounted {
			unix.Unmount(dir+"/sub/mount", unix.MNT_DETACH)
		}
	})
	require.NoError(t, os.Mkdir(dir+"/sub/mount/d", 0o755))
	require.NoError(t, os.WriteFile(dir+"/sub/mount/d/f", []byte("text"), 0o644))
	g := mount(t, dir, Config{InodeFileHandles: HandlesPrefer})
	sub := g.mustLookup(root, "sub")
	top := g.mustLookup(sub, "mount")
	d := g.mustLookup(top, "d")
	f := g.mustLookup(d, "f")
	for range 2 { // they are found again
		for _, n := range []uint64{top, d, f} {
			_, e := g.getattr(n)
			require.Zero(t, e)
		}
		require.Eventually(t, func() bool { return g.fs.fds.open.Load() <= 2 }, 10*time.Second, 10*time.Millisecond, "the root and sub")
	}
	fh, e := g.open(f, unix.O_RDONLY)
	require.Zero(t, e)
	time.Sleep(3 * settle)
	assert.Equal(t, unix.EBUSY, unix.Unmount(dir+"/sub/mount", 0), "an open file keeps it, as on a local file system")
	require.Zero(t, g.release(f, fh))
	require.Eventually(t, func() bool { return unix.Unmount(dir+"/sub/mount", 0) == nil }, 10*time.Second, 50*time.Millisecond)
	mounted = false
	for _, n := range []uint64{d, f} {
		_, e = g.getattr(n)
		assert.Equal(t, unix.ESTALE, e)
	}
}

// A guest that makes and removes files without ever forgetting one takes no descriptors from
// others, nor memory without bound.
func TestUnlinkedFilesAreBounded(t *testing.T) {
	for how, h := range map[string]Handles{"descriptors": HandlesNever, "handles": HandlesPrefer} {
		t.Run(how, func(t *testing.T) {
			const budget = 512
			dir := tmpfs(t)
			g := mount(t, dir, Config{InodeFileHandles: h, FDBudget: budget})
			require.NoError(t, os.WriteFile(dir+"/other", nil, 0o644))
			other := g.mustLookup(root, "other")
			opened, e := g.create(root, "opened", unix.O_RDWR, 0o644, 0)
			require.Zero(t, e)
			require.Zero(t, g.unlink(root, "opened"))
			var first, last uint64
			for i := range 10 * budget {
				f, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
				require.Zero(t, e)
				require.Zero(t, g.release(f.NodeId, f.Fh))
				require.Zero(t, g.unlink(root, "f"))
				if i == 0 {
					first = f.NodeId
				}
				last = f.NodeId
			}
			stats := g.fs.Stats()
			assert.LessOrEqual(t, stats.CachedFDs, int64(2*budget))
			assert.LessOrEqual(t, stats.Inodes, 2*budget)
			_, e = g.getattr(last)
			assert.Zero(t, e, "a few are kept, as a guest may have them open for their paths")
			_, e = g.getattr(first)
			assert.Equal(t, unix.ESTALE, e)
			g.forget(first, 1)
			_, e = g.getattr(opened.NodeId)
			assert.Zero(t, e, "an open file stays what it is")
			_, e = g.getattr(other)
			assert.Zero(t, e)
		})
	}
}

// Names that the host has changed can lead in a circle, which is gone round once and no more.
func TestParentsInACircle(t *testing.T) {
	g := mount(t, t.TempDir(), Config{InodeFileHandles: HandlesNever})
	require.NoError(t, os.MkdirAll(g.dir+"/a", 0o755))
	a := g.fs.nodes.slots.get(g.mustLookup(root, "a"))
	loop := newInode(identity{key: key{ino: 1}, btime: 1, typ: unix.S_IFDIR}, a, z("b"))
	g.fs.nodes.add(loop)
	require.True(t, a.evict())
	g.fs.fds.remove(a)
	a.rename(loop, z("a"))
	_, e := g.getattr(a.id)
	assert.Equal(t, unix.ESTALE, e)
	for _, n := range []*inode{a, loop} {
		depth := 0
		for p := n; p != nil; p = p.parent {
			depth++
			require.Less(t, depth, 4, "still a circle")
		}
	}
	assert.NotZero(t, g.fs.Stats().Stale)
}

// A file system below the share that does not answer holds up nobody who works on others, whose
// descriptors are few.
func TestHungFileSystemHoldsUpNoOther(t *testing.T) {
	var hang atomic.Bool
	back := make(chan struct{})
	hung := faultyMount(t, Config{Cache: CacheNever}, tmpfs(t), func(fuseabi.Opcode) unix.Errno {
		if hang.Load() {
			<-back
		}
		return 0
	})
	dir := tmpfs(t)
	require.NoError(t, os.Mkdir(dir+"/sub", 0o755))
	require.NoError(t, unix.Mount(hung, dir+"/sub", "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(dir+"/sub", unix.MNT_DETACH) })
	for i := range 100 {
		require.NoError(t, os.WriteFile(fmt.Sprint(dir, "/sub/", i), nil, 0o644))
		require.NoError(t, os.WriteFile(fmt.Sprint(dir, "/", i), nil, 0o644))
	}
	for how, h := range map[string]Handles{"descriptors": HandlesNever, "handles": HandlesPrefer} {
		g := mount(t, dir, Config{InodeFileHandles: h, FDBudget: 1})
		sub := g.mustLookup(root, "sub")
		for i := range 100 {
			g.mustLookup(sub, strconv.Itoa(i))
		}
		hang.Store(true)
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer runtime.Goexit()
			for i := range 100 {
				n := g.mustLookup(root, strconv.Itoa(i))
				fh, e := g.open(n, unix.O_RDONLY)
				if assert.Zero(t, e) {
					g.release(n, fh)
				}
			}
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			assert.Fail(t, "files of another file system wait for the one that hangs", how)
		}
		hang.Store(false)
		select {
		case back <- struct{}{}:
		default:
		}
		<-done
	}
}

// A file that has no name left is found by any open file of it, whichever was opened first, and
// without going through all open files.
func TestOpenFilesLeadToTheirInode(t *testing.T) {
	g := mount(t, t.TempDir(), Config{InodeFileHandles: HandlesNever})
	f, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	files := []uint64{f.Fh}
	for range 3 {
		fh, e := g.open(f.NodeId, unix.O_RDONLY)
		require.Zero(t, e)
		files = append(files, fh)
	}
	require.Zero(t, g.unlink(root, "f"))
	n := g.fs.nodes.slots.get(f.NodeId)
	for _, i := range []int{1, 0, 3, 2} {
		require.True(t, n.evict())
		g.fs.fds.remove(n)
		_, e := g.getattr(f.NodeId)
		require.Zero(t, e)
		require.Zero(t, g.release(f.NodeId, files[i]))
	}
	assert.Nil(t, n.opened)
	require.True(t, n.evict())
	g.fs.fds.remove(n)
	_, e = g.getattr(f.NodeId)
	assert.Equal(t, unix.ESTALE, e)
}
