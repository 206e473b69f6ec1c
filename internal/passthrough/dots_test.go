package passthrough

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
)

// LOOKUP alone knows "." and "..": as Linux sends them for what is exported by NFS, and Windows'
// driver for the root and along its paths.
func TestLookupOfDots(t *testing.T) {
	for _, h := range []Handles{HandlesNever, HandlesPrefer} {
		g := mount(t, t.TempDir(), Config{InodeFileHandles: h})
		assert.NotZero(t, g.init(^fuseabi.InitFlags(0))&fuseabi.ExportSupport)
		assert.Zero(t, g.init(0)&fuseabi.ExportSupport, "only where it was offered")
		require.NoError(t, os.MkdirAll(g.dir+"/a/b/c", 0o755))
		require.NoError(t, os.WriteFile(g.dir+"/a/f", []byte("12345"), 0o600))
		require.NoError(t, os.Symlink("b", g.dir+"/a/l"))

		var st unix.Stat_t
		require.NoError(t, unix.Stat(g.dir, &st))
		for _, name := range []string{".", ".."} {
			e, errno := g.lookup(root, name)
			require.Zero(t, errno)
			assert.EqualValues(t, root, e.NodeId, "the root is its own parent")
			assert.Equal(t, st.Ino, e.Attr.Ino)
			assert.EqualValues(t, unix.S_IFDIR, e.Mode&unix.S_IFMT)
			g.forget(root, 1)
		}
		a := g.mustLookup(root, "a")
		b := g.mustLookup(a, "b")
		c := g.mustLookup(b, "c")
		f := g.mustLookup(a, "f")
		l := g.mustLookup(a, "l")
		for _, n := range []uint64{a, b, c, f, l} {
			assert.Equal(t, n, g.mustLookup(n, "."), "of whatever type")
		}
		fe, errno := g.lookup(f, ".")
		require.Zero(t, errno)
		assert.EqualValues(t, 5, fe.Attr.Size)
		assert.Equal(t, b, g.mustLookup(c, ".."))
		assert.Equal(t, a, g.mustLookup(b, ".."))
		assert.EqualValues(t, root, g.mustLookup(a, ".."))
		for _, n := range []uint64{f, l} {
			_, errno := g.lookup(n, "..")
			assert.Equal(t, unix.ENOTDIR, errno)
		}
		_, errno = g.lookup(1<<40, ".")
		assert.Equal(t, unix.ESTALE, errno)

		// Each was a lookup, and is forgotten as one.
		for n, count := range map[uint64]uint64{a: 3, b: 3, f: 3} {
			g.forget(n, count-1)
			_, errno := g.getattr(n)
			require.Zero(t, errno)
			g.forget(n, 1)
			_, errno = g.getattr(n)
			assert.Equal(t, unix.ESTALE, errno)
			_, errno = g.lookup(n, ".")
			assert.Equal(t, unix.ESTALE, errno)
		}
		// What was forgotten is found again from below, and is what it was.
		again, errno := g.lookup(c, "..")
		require.Zero(t, errno)
		require.NoError(t, unix.Stat(g.dir+"/a/b", &st))
		assert.Equal(t, st.Ino, again.Attr.Ino)
		assert.Equal(t, c, g.mustLookup(again.NodeId, "c"))
		assert.EqualValues(t, root, g.mustLookup(g.mustLookup(again.NodeId, ".."), ".."))
		assert.Len(t, g.readdir(again.NodeId, true, 4096), 3)
		for _, op := range []unix.Errno{g.rmdir(c, "."), g.rmdir(c, ".."), g.unlink(c, ".."), g.rename(c, "..", root, "x", 0), g.rename(root, "a", c, "..", 0)} {
			assert.Equal(t, unix.EINVAL, op, "in no other request")
		}
	}
}

// A directory that the guest knows may be moved out of the share by the host. What it lies in then
// is no business of the guest's.
func TestParentOutsideTheShareIsNotFound(t *testing.T) {
	for _, h := range []Handles{HandlesNever, HandlesPrefer} {
		top := t.TempDir()
		dir := filepath.Join(top, "share")
		require.NoError(t, os.MkdirAll(dir+"/a/b/c", 0o755))
		require.NoError(t, os.MkdirAll(top+"/outside/deep", 0o755))
		g := mount(t, dir, Config{InodeFileHandles: h})
		a := g.mustLookup(root, "a")
		b := g.mustLookup(a, "b")
		c := g.mustLookup(b, "c")
		for _, n := range []uint64{a, b, c} { // their descriptors are open
			_, e := g.opendir(n)
			require.Zero(t, e)
		}
		known := g.fs.Stats().Inodes
		fds := openDescriptors(t)
		for _, to := range []string{top + "/moved", top + "/outside/moved", top + "/outside/deep/moved"} {
			require.NoError(t, os.Rename(dir+"/a/b", to))
			_, e := g.lookup(b, "..")
			assert.Equal(t, unix.ESTALE, e, "its parent is outside")
			_, e = g.lookup(c, "..")
			assert.Equal(t, unix.ESTALE, e, "its parent is known to the guest, but is not in the share any more")
			require.NoError(t, os.Rename(to, dir+"/a/b"))
			assert.Equal(t, a, g.mustLookup(b, ".."), "it is back")
			assert.Equal(t, b, g.mustLookup(c, ".."))
		}
		require.NoError(t, os.Rename(dir+"/a/b/c", dir+"/c"))
		assert.EqualValues(t, root, g.mustLookup(c, ".."), "it was moved, but not out")
		assert.Equal(t, known, g.fs.Stats().Inodes)
		assert.Equal(t, fds, openDescriptors(t))
	}
}

// Directories that are found from below keep no descriptor for good: as many as a guest likes can
// be.
func TestParentsAreEvicted(t *testing.T) {
	g := mount(t, t.TempDir(), Config{InodeFileHandles: HandlesNever, FDBudget: 1})
	const many = 40 * fdShards
	var parents []uint64
	for range many {
		name := "d" + string(rune('a'+len(parents)%26)) + filepath.Base(t.TempDir()) + string(rune('0'+len(parents)/26))
		require.NoError(t, os.MkdirAll(g.dir+"/"+name+"/in", 0o755))
		d := g.mustLookup(root, name)
		in := g.mustLookup(d, "in")
		_, e := g.opendir(in)
		require.Zero(t, e)
		g.forget(d, 1)
		parents = append(parents, g.mustLookup(in, ".."))
	}
	assert.NotZero(t, g.fs.Stats().Evictions)
	for _, p := range parents {
		_, e := g.lookup(p, "in")
		require.Zero(t, e)
	}
}
