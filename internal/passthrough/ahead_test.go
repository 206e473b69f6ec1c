package passthrough

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/testenv"
)

// foresee has the worker look ahead until there is no more to look at.
func (g *guest) foresee() {
	done := make(chan struct{})
	g.w.calls <- func(w *fuse.Worker) {
		defer close(done)
		for w.Ahead() {
		}
	}
	<-done
}

// listing is a directory whose first part a guest has read, and whose worker has looked ahead.
func listing(t *testing.T, cache Cache) (g *guest, fh uint64, first []entry) {
	t.Helper()
	testenv.Need(t, "root") // to own what the guest's root makes
	dir := t.TempDir()
	for i := range 100 {
		require.NoError(t, os.WriteFile(fmt.Sprint(dir, "/f", i), []byte("x"), 0o644))
	}
	g = mount(t, dir, Config{Cache: cache})
	fh, e := g.opendir(root)
	require.Zero(t, e)
	first, e = g.readdirAt(root, fh, 0, true, 4096)
	require.Zero(t, e)
	require.Greater(t, len(first), 10)
	g.foresee()
	return g, fh, first
}

// seenAhead is how many of the directory's next entries were looked at.
func (g *guest) seenAhead(fh uint64) int {
	f := g.fs.files.get(fh)
	defer f.put()
	return len(f.dir.seen) - f.dir.at
}

func TestAheadLooksAtWhatComesNext(t *testing.T) {
	g, fh, first := listing(t, CacheAuto)
	assert.Equal(t, len(first), g.seenAhead(fh), "as much as was asked for, no more")
	told := 1 // the root
	for _, en := range first {
		if en.node != 0 {
			told++
		}
	}
	assert.Equal(t, told, g.fs.Stats().Inodes, "nobody was told of what was looked at, so it is not known")
	_, e := g.readdirAt(root, fh, 0, false, 4096)
	require.Zero(t, e)
	assert.Zero(t, g.seenAhead(fh), "the guest has gone back to the start")
	require.Zero(t, g.releasedir(root, fh))
	g.foresee() // at a handle that is no more
}

// Where the guest is to believe nothing there is nothing to look at, and nothing is kept open by it.
// FORGETs of other directories come all the while, and may be served by the worker that lists.
func TestForgettingDoesNotEndLookingAhead(t *testing.T) {
	g, fh, first := listing(t, CacheAuto)
	other := first[len(first)-1].node
	second, e := g.readdirAt(root, fh, first[len(first)-1].dirent.Off, true, 4096)
	require.Zero(t, e)
	g.forget(other, 1)
	g.foresee()
	assert.Equal(t, len(second), g.seenAhead(fh))
}

func TestAheadNotWithoutACache(t *testing.T) {
	g, fh, _ := listing(t, CacheNever)
	assert.Zero(t, g.seenAhead(fh))
	f := g.fs.files.get(fh)
	f.put()
	assert.EqualValues(t, 1, f.state.Load(), "the table is the directory's only user")
}

// What comes next has changed since the worker looked: the guest, which takes what it is told for newer than what it knew, is told so.
func TestAheadIsNeverBehind(t *testing.T) {
	for name, change := range map[string]func(g *guest, n uint64, path string) unix.Errno{
		"written": func(g *guest, n uint64, _ string) unix.Errno {
			fh, e := g.open(n, unix.O_RDWR)
			if e != 0 {
				return e
			}
			_, e = g.write(n, fh, 0, []byte("more than it was"), 0, 0)
			return e
		},
		"truncated": func(g *guest, n uint64, _ string) unix.Errno {
			in := fuseabi.SetattrIn{}
			in.Valid, in.Size = fuseabi.FattrSize, 77
			_, e := g.setattr(n, in)
			return e
		},
		"removed": func(g *guest, _ uint64, name string) unix.Errno { return g.unlink(root, name) },
		"replaced": func(g *guest, _ uint64, name string) unix.Errno {
			if _, e := g.mkdir(root, "other", 0o755, 0); e != 0 {
				return e
			}
			if e := g.unlink(root, name); e != 0 {
				return e
			}
			return g.rename(root, "other", root, name, 0)
		},
		"linked": func(g *guest, n uint64, _ string) unix.Errno {
			_, e := g.link(n, root, "link")
			return e
		},
		"written on the host": func(g *guest, _ uint64, name string) unix.Errno {
			require.NoError(g.t, os.WriteFile(g.dir+"/"+name, []byte("more than it was"), 0o644))
			time.Sleep(2 * aheadLife)
			return 0
		},
	} {
		for _, who := range []string{"the same worker", "another"} {
			t.Run(name+" by "+who, func(t *testing.T) {
				g, fh, first := listing(t, CacheAuto)
				listed := map[string]bool{}
				for _, en := range first {
					listed[en.name] = true
				}
				by := g
				if who == "another" {
					by = g.another()
				}
				ahead := g.nextNames(fh)
				require.NotEmpty(t, ahead)
				for _, n := range ahead {
					require.False(t, listed[n], n)
				}
				victim := ahead[len(ahead)/2]
				n := by.mustLookup(root, victim)
				g.foresee()
				require.Zero(t, change(by, n, victim))

				second, e := g.readdirAt(root, fh, first[len(first)-1].dirent.Off, true, 4096)
				require.Zero(t, e)
				var st unix.Stat_t
				there := unix.Lstat(g.dir+"/"+victim, &st) == nil
				found := false
				for _, en := range second {
					if en.name == victim {
						found = true
						assert.Equal(t, st.Ino, en.attr.Ino)
						assert.EqualValues(t, st.Size, en.attr.Size)
						assert.Equal(t, st.Mode, en.attr.Mode)
						assert.EqualValues(t, st.Nlink, en.attr.Nlink)
					}
				}
				assert.Equal(t, there, found)
			})
		}
	}
}

// nextNames are those of the directory that were looked at ahead.
func (g *guest) nextNames(fh uint64) (names []string) {
	f := g.fs.files.get(fh)
	defer f.put()
	f.dir.mu.Lock()
	defer f.dir.mu.Unlock()
	b := f.dir.buf[:f.dir.upTo]
	for len(b) > 0 {
		names = append(names, unix.ByteSliceToString(b[19:]))
		b = b[int(b[16])|int(b[17])<<8:]
	}
	return names
}
