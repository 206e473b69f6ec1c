package passthrough

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
)

// attributes are what both requests say of a file.
func (g *guest) attributes(node uint64, statx bool) (ino, size uint64, e unix.Errno) {
	if statx {
		out, e := want[fuseabi.StatxOut](g, fuseabi.OpStatx, node, &fuseabi.StatxIn{SxMask: unix.STATX_BASIC_STATS}, nil)
		if e != 0 {
			return 0, 0, e
		}
		return out.Ino, out.Size, 0
	}
	out, e := g.getattr(node)
	if e != 0 {
		return 0, 0, e
	}
	return out.Ino, out.Size, 0
}

// What was listed is looked at by its name at first: that must be the file, and not what has its
// name by now.
func TestAttributesByName(t *testing.T) {
	for _, statx := range []bool{false, true} {
		g := mount(t, t.TempDir(), Config{InodeFileHandles: HandlesNever})
		g.fs.background.close() // which would give them descriptors
		file := func(name, data string) (path string) {
			path = g.dir + "/" + name
			require.NoError(t, os.WriteFile(path, []byte(data), 0o600))
			return path
		}
		file("once", "1")
		once := g.entryNode(root, "once")
		before := g.fs.fds.open.Load()
		_, size, e := g.attributes(once, statx)
		require.Zero(t, e)
		assert.EqualValues(t, 1, size)
		assert.Equal(t, before, g.fs.fds.open.Load(), "it was opened for one look")
		file("once", "22")
		_, size, e = g.attributes(once, statx)
		require.Zero(t, e)
		assert.EqualValues(t, 2, size)
		assert.Equal(t, before+1, g.fs.fds.open.Load(), "what is looked at again is worth a descriptor")

		file("replaced", "1")
		replaced := g.entryNode(root, "replaced")
		require.NoError(t, os.Rename(file("other", "22"), g.dir+"/replaced"))
		_, _, e = g.attributes(replaced, statx)
		assert.Equal(t, unix.ESTALE, e)

		file("link", "1")
		link := g.entryNode(root, "link")
		require.NoError(t, os.Rename(g.dir+"/link", g.dir+"/moved"))
		require.NoError(t, os.Symlink("moved", g.dir+"/link"))
		_, _, e = g.attributes(link, statx)
		assert.Equal(t, unix.ESTALE, e, "a link leads to it, which is nobody's way")

		gone := uint64(1 << 40)
		_, _, e = g.attributes(gone, statx)
		assert.Equal(t, unix.ESTALE, e)
	}
}

// A guest that goes down a path finds what is there, whether it is looked at or opened at once.
func TestGoingDownAPath(t *testing.T) {
	g := mount(t, t.TempDir(), Config{InodeFileHandles: HandlesNever})
	const depth = 12
	path := strings.Repeat("d/", depth)
	require.NoError(t, os.MkdirAll(g.dir+"/"+path, 0o755))
	require.NoError(t, os.WriteFile(g.dir+"/"+path+"file", []byte("1"), 0o600))
	require.NoError(t, os.Symlink("d", g.dir+"/d/d/d/link"))
	require.NoError(t, os.Symlink("/", g.dir+"/d/d/d/out"))
	down := func(names ...string) (e unix.Errno) {
		node := uint64(root)
		path := g.dir
		for i, name := range names {
			var out *fuseabi.EntryOut
			if out, e = g.lookup(node, name); e != 0 {
				assert.Equal(t, len(names)-1, i, "%v at %s", e, path)
				return e
			}
			path += "/" + name
			var st unix.Stat_t
			require.NoError(t, unix.Lstat(path, &st))
			assert.Equal(t, st.Ino, out.Attr.Ino, path)
			assert.Equal(t, st.Mode, out.Attr.Mode, path)
			node = out.NodeId
		}
		return 0
	}
	all := strings.Split(strings.TrimSuffix(path, "/"), "/")
	before := g.fs.fds.open.Load()
	open := func() int { return int(g.fs.fds.open.Load() - before) }
	require.Zero(t, down(all[:4]...))
	assert.Equal(t, 4, open())
	g.init(0)
	require.Zero(t, down(append(all, "file")...))
	assert.Equal(t, depth+1, open())
	require.Zero(t, down(append(all, "file")...))
	assert.Equal(t, depth+1, open())

	g.init(0)
	assert.Equal(t, unix.ENOENT, down("d", "d", "d", "missing"))
	assert.Equal(t, unix.ENAMETOOLONG, down("d", "d", "d", strings.Repeat("x", 300)))
	g.init(0)
	assert.Zero(t, down("d", "d", "d", "link"), "a symbolic link is not followed")
	g.init(0)
	assert.Zero(t, down("d", "d", "d", "out"))
	g.init(0)
	assert.Equal(t, unix.ENOTDIR, down(append(all, "file", "below")...))
}
