package passthrough

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/testenv"
)

// foresee has the worker be idle until there is no more to be done.
func (g *guest) foresee() {
	done := make(chan struct{})
	g.w.calls <- func(w *fuse.Worker) {
		defer close(done)
		for w.Idle() {
		}
	}
	<-done
}

// listing is a directory whose first part a guest has read, and whose worker has looked ahead.
func listing(t *testing.T, cache Cache) (g *guest, fh uint64, first []entry) {
	t.Helper()
	g, fh, first = part(t, 4096, Config{Cache: cache})
	g.foresee()
	return g, fh, first
}

// watched is a directory whose first part a guest has read, and whose other entries the lookout has looked at.
func watched(t *testing.T) (g *guest, fh uint64, first []entry) {
	t.Helper()
	g, fh, first = part(t, 12<<10, Config{Lookout: true})
	g.watch()
	return g, fh, first
}

func part(t *testing.T, room int, cfg Config) (g *guest, fh uint64, first []entry) {
	t.Helper()
	g = mount(t, populated(t), cfg)
	fh, e := g.opendir(root)
	require.Zero(t, e)
	f := g.fs.files.get(fh)
	f.dir.slow = -files // on a busy machine steps take long
	f.put()
	first, e = g.readdirAt(root, fh, 0, true, room)
	require.Zero(t, e)
	require.Greater(t, len(first), 10)
	require.Less(t, len(first), files/2)
	return g, fh, first
}

const files = 200

// populated is a directory of so many files.
func populated(t *testing.T) string {
	t.Helper()
	testenv.Need(t, "root") // to own what the guest's root makes
	dir := t.TempDir()
	for i := range files {
		require.NoError(t, os.WriteFile(fmt.Sprint(dir, "/f", i), []byte("x"), 0o644))
	}
	return dir
}

// watch waits for the lookout to be at nothing.
func (g *guest) watch() {
	require.Eventually(g.t, func() bool { return g.fs.lookout.job.Load() == nil }, time.Minute, 100*time.Microsecond)
}

// seenAhead is how many of the directory's next entries were looked at.
func (g *guest) seenAhead(fh uint64) int {
	f := g.fs.files.get(fh)
	defer f.put()
	return f.dir.ahead()
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

// Where the guest is to believe nothing there is nothing to look at, and nothing is kept open by it.
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
		for _, who := range []string{"the same worker", "another", "one that did not look"} {
			t.Run(name+" by "+who, func(t *testing.T) {
				look := (*guest).foresee
				start := func(t *testing.T) (*guest, uint64, []entry) { return listing(t, CacheAuto) }
				if who == "one that did not look" {
					start, look = watched, (*guest).watch
				}
				g, fh, first := start(t)
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
				victim := ahead[len(ahead)/4]
				n := by.mustLookup(root, victim)
				look(g)
				require.Zero(t, change(by, n, victim))

				second, e := g.readdirAt(root, fh, first[len(first)-1].dirent.Off, true, 32<<10)
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

// What a guest has learnt by a request of its own is not taken back by a list that was looked at before: nothing but the host has changed
// anything. It is a matter of aheadLife, so it is tried some times.
func TestAheadTakesNothingBack(t *testing.T) {
	rewrite := func(g *guest, name string) {
		require.NoError(g.t, os.WriteFile(g.dir+"/"+name, []byte("more than it was"), 0o644))
	}
	replace := func(g *guest, name string) {
		require.NoError(g.t, os.WriteFile(g.dir+"/new", []byte("new"), 0o644))
		require.NoError(g.t, os.Rename(g.dir+"/new", g.dir+"/"+name))
	}
	for name, c := range map[string]struct {
		cfg    Config
		change func(g *guest, name string)
		learn  func(g *guest, name string, n uint64) // by which the guest knows what there is now
	}{
		"LOOKUP":                        {Config{}, rewrite, func(g *guest, name string, _ uint64) { g.mustLookup(root, name) }},
		"LOOKUP finds another":          {Config{}, replace, func(g *guest, name string, _ uint64) { g.mustLookup(root, name) }},
		"LOOKUP finds another, handles": {Config{InodeFileHandles: HandlesMandatory}, replace, func(g *guest, name string, _ uint64) { g.mustLookup(root, name) }},
		"LOOKUP finds nothing": {Config{}, func(g *guest, name string) { require.NoError(g.t, os.Remove(g.dir+"/"+name)) }, func(g *guest, name string, _ uint64) {
			_, e := g.lookup(root, name)
			require.Equal(g.t, unix.ENOENT, e)
		}},
		"GETATTR": {Config{}, rewrite, func(g *guest, _ string, n uint64) {
			out, e := g.getattr(n)
			require.Zero(g.t, e)
			require.EqualValues(g.t, 16, out.Size)
		}},
		"STATX": {Config{}, rewrite, func(g *guest, _ string, n uint64) {
			out, e := want[fuseabi.StatxOut](g, fuseabi.OpStatx, n, &fuseabi.StatxIn{SxMask: unix.STATX_BASIC_STATS}, nil)
			require.Zero(g.t, e)
			require.EqualValues(g.t, 16, out.Size)
		}},
		"the number is used again": {Config{}, func(g *guest, name string) {
			require.NoError(g.t, os.Remove(g.dir+"/"+name))
			require.NoError(g.t, os.WriteFile(g.dir+"/other", []byte("another file altogether"), 0o600))
		}, func(g *guest, _ string, _ uint64) {
			n := g.mustLookup(root, "other")
			for range 2 { // the second opens its descriptor
				_, e := g.getattr(n)
				require.Zero(g.t, e)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g := mount(t, populated(t), c.cfg)
			g.w.busy = true
			by := g.another() // who lists does nothing else meanwhile, or would not look ahead
			for range 20 {
				fh, first, victim := g.between()
				n := by.mustLookup(root, victim)
				g.foresee()
				c.change(by, victim)
				c.learn(by, victim, n)
				second, e := g.readdirAt(root, fh, first[len(first)-1].dirent.Off, true, 4096)
				require.Zero(t, e)
				var st unix.Stat_t
				there := unix.Lstat(g.dir+"/"+victim, &st) == nil
				for _, en := range second {
					if en.name == victim {
						require.True(t, there, "it is gone")
						require.Equal(t, st.Ino, en.attr.Ino)
						require.EqualValues(t, st.Size, en.attr.Size)
					}
				}
				require.Zero(t, g.releasedir(root, fh))
			}
		})
	}
}

// between has the guest read the first part of the root, with nothing looked at ahead, and returns a name of the next part.
func (g *guest) between() (fh uint64, first []entry, victim string) {
	g.t.Helper()
	fh, e := g.opendir(root)
	require.Zero(g.t, e)
	f := g.fs.files.get(fh)
	defer f.put()
	f.dir.slow = -files
	first, e = g.readdirAt(root, fh, 0, true, 4096)
	require.Zero(g.t, e)
	for b := f.dir.buf; victim == "" || victim[0] != 'f'; b = b[reclen(b):] {
		victim = unix.ByteSliceToString(b[19:])
	}
	return fh, first, victim
}

// A file that is replaced between look and telling has a handle of its own, not its successor's.
func TestHandleIsOfWhatWasSeen(t *testing.T) {
	g := mount(t, populated(t), Config{InodeFileHandles: HandlesMandatory})
	g.w.busy = true
	for range 20 {
		fh, first, victim := g.between()
		g.foresee()
		require.NoError(t, os.WriteFile(g.dir+"/new", []byte("new"), 0o644))
		require.NoError(t, os.Rename(g.dir+"/"+victim, g.dir+"/moved"))
		require.NoError(t, os.Rename(g.dir+"/new", g.dir+"/"+victim))
		second, e := g.readdirAt(root, fh, first[len(first)-1].dirent.Off, true, 4096)
		require.Zero(t, e)
		assert.True(t, slices.ContainsFunc(second, func(en entry) bool { return en.name == victim }), "it is another, but is there")
		_, e = g.getattr(g.mustLookup(root, "moved"))
		require.Zero(t, e)
	}
}

// The lookout looks at all that has been read from the directory, and the guest is told the same as of what nobody looked at.
func TestLookout(t *testing.T) {
	g, fh, first := watched(t)
	assert.Equal(t, files+2, len(first)+g.seenAhead(fh))
	told := g.fs.Stats().Inodes
	all := first
	for {
		more, e := g.readdirAt(root, fh, all[len(all)-1].dirent.Off, true, 12<<10)
		require.Zero(t, e)
		if len(more) == 0 {
			break
		}
		all = append(all, more...)
	}
	assert.Less(t, told, files, "nobody was told of what was looked at, so it is not known")
	assert.Equal(t, files+1, g.fs.Stats().Inodes, "and the root")
	var st unix.Stat_t
	names := map[string]bool{}
	for _, en := range all {
		names[en.name] = true
		if dots([]byte(en.name)) {
			continue
		}
		require.NoError(t, unix.Lstat(g.dir+"/"+en.name, &st))
		assert.Equal(t, st.Ino, en.attr.Ino, en.name)
		assert.EqualValues(t, st.Size, en.attr.Size, en.name)
	}
	assert.Len(t, names, files+2)
	g.fs.Close()
	_, open := <-g.fs.lookout.ended
	assert.False(t, open, "its thread has ended")
}

// Several guests' threads read directories, from the start and from the middle, while the lookout reads ahead of one of them and files change.
func TestLookoutBesideOthers(t *testing.T) {
	g, fh, _ := watched(t)
	var readers, writer sync.WaitGroup
	over := make(chan struct{})
	writer.Go(func() {
		w := g.another()
		n := w.mustLookup(root, "f0")
		for size := uint64(0); ; size++ {
			select {
			case <-over:
				return
			default:
			}
			in := fuseabi.SetattrIn{}
			in.Valid, in.Size = fuseabi.FattrSize, size%4096
			_, e := w.setattr(n, in)
			assert.Zero(t, e)
		}
	})
	for i := range 4 {
		w := g.another()
		readers.Go(func() {
			own := fh // which two of them share
			if i%2 == 0 {
				var e unix.Errno
				own, e = w.opendir(root)
				assert.Zero(t, e)
			}
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for range 50 {
				names, off := map[string]bool{}, uint64(0)
				for {
					plus := rng.IntN(4) > 0
					more, e := w.readdirAt(root, own, off, plus, 1<<(11+rng.IntN(5)))
					if assert.Zero(t, e); len(more) == 0 {
						break
					}
					for _, en := range more {
						names[en.name] = true
						if plus && !dots([]byte(en.name)) {
							assert.Equal(t, en.dirent.Ino, en.attr.Ino)
						}
					}
					off = more[len(more)-1].dirent.Off
				}
				assert.Len(t, names, files+2)
			}
		})
	}
	readers.Wait()
	close(over)
	writer.Wait()
}

// A guest that begins to read any number of directories, and does not go on, has only so much memory kept for it. It can go on all the same.
func TestOnlySoManyListsAreKept(t *testing.T) {
	g, fh, first := part(t, 4096, Config{})
	all := map[uint64]bool{fh: true}
	for range mostHeld + 9 {
		fh, e := g.opendir(root)
		require.Zero(t, e)
		again, e := g.readdirAt(root, fh, 0, true, 4096)
		require.Zero(t, e)
		require.Len(t, again, len(first))
		all[fh] = true
	}
	assert.EqualValues(t, mostHeld, g.fs.held.Load())
	for fh := range all {
		names := map[string]bool{}
		for part := first; len(part) > 0; {
			for _, en := range part {
				assert.False(t, names[en.name], en.name)
				names[en.name] = true
			}
			var e unix.Errno
			part, e = g.readdirAt(root, fh, part[len(part)-1].dirent.Off, true, 4096)
			require.Zero(t, e)
		}
		assert.Len(t, names, files+2)
	}
	assert.Zero(t, g.fs.held.Load(), "all were read to their ends")
	for fh := range all {
		_, e := g.readdirAt(root, fh, 0, true, 4096)
		require.Zero(t, e)
		assert.EqualValues(t, 1, g.fs.held.Load())
		require.Zero(t, g.releasedir(root, fh))
		assert.Zero(t, g.fs.held.Load(), "released")
	}
}

// pending is a directory that the lookout was called for, and has not looked at yet: it begins with begin.
func pending(t *testing.T) (g *guest, fh uint64, d *dirStream, begin func()) {
	t.Helper()
	g = mount(t, populated(t), Config{Lookout: true})
	g.fs.lookout.start.Do(func() {})
	fh, e := g.opendir(root)
	require.Zero(t, e)
	_, e = g.readdirAt(root, fh, 0, true, 12<<10)
	require.Zero(t, e)
	f := g.fs.files.get(fh)
	defer f.put()
	require.NotNil(t, g.fs.lookout.job.Load())
	return g, fh, f.dir, func() {
		l := &g.fs.lookout
		l.ended = make(chan struct{})
		l.end.Store(true)
		go l.run(&g.fs.changes)
		<-l.ended
	}
}

// A guest may close a directory at any time: its descriptor is then closed by who looks last.
func TestLookoutKeepsItsDirectoryOpen(t *testing.T) {
	g, fh, _, begin := pending(t)
	f := g.fs.files.get(fh)
	f.put()
	require.Zero(t, g.releasedir(root, fh))
	assert.EqualValues(t, 1, f.state.Load(), "the lookout is the only user")
	_, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFD, 0)
	require.NoError(t, err)
	begin()
	assert.Zero(t, f.state.Load())
	_, err = unix.FcntlInt(uintptr(f.fd), unix.F_GETFD, 0)
	assert.ErrorIs(t, err, unix.EBADF)
}

// What the lookout may be reading is not written to: a guest that goes back to the start gets other memory.
func TestLookoutReadsWhatNobodyWrites(t *testing.T) {
	g, fh, d, begin := pending(t)
	p, names := d.preview, string(d.names)
	_, e := g.readdirAt(root, fh, 0, false, 4096)
	require.Zero(t, e)
	assert.NotSame(t, p, d.spare)
	clear(d.mem)
	assert.Equal(t, names, string(p.names))
	taken := p.taken.Load()
	begin()
	assert.Equal(t, taken, p.taken.Load(), "it looks at nothing that nobody asks for any more")
}

// Who is called in vain, or would be, is not called.
func TestLookoutIsNotCalledForNothing(t *testing.T) {
	_, _, d, begin := pending(t)
	f, p := d.f, d.preview
	fs := &FS{cfg: Config{Lookout: true}}
	fs.ttl.sec = 1
	fs.lookout.start.Do(func() {})
	begin()
	called := func() bool {
		was := fs.lookout.job.Swap(nil)
		if was != nil {
			was.helped.Store(false)
			was.f.put()
		}
		return was != nil
	}
	again := func() { // with all entries to be looked at
		d.read, d.buf, d.told, d.called = 0, p.names, aheadCall, true
		d.taken.Store(0)
	}
	again()
	d.call(fs, f, 4096)
	require.True(t, called())

	again()
	d.pace = aheadLife / aheadCall
	d.call(fs, f, 4096)
	assert.False(t, called(), "the guest is so slow that it would be for too few entries")
	d.pace = aheadLife / 4 / aheadCall
	d.call(fs, f, 4096)
	assert.True(t, called())
	assert.Equal(t, 2*aheadCall, d.most, "as many as are asked for in half of the time that they count")
	d.pace = 0

	again()
	d.passed = 2
	d.call(fs, f, 4096)
	assert.False(t, called(), "a guest may want no more than the first entries")
	d.passed = files

	again()
	d.taken.Store(int32(len(d.sights) - aheadCall + 1))
	d.call(fs, f, 4096)
	assert.False(t, called(), "there are not many")

	for i := range 2 * aheadPain {
		again()
		d.told = i % 2 * aheadCall
		d.call(fs, f, 4096)
		assert.True(t, called(), "one call of two has come to something")
	}
	for i := range 2 * aheadPain {
		again()
		d.told = 0
		d.call(fs, f, 4096)
		assert.Equal(t, i < aheadPain, called(), i)
	}
}

// nextNames are those of the directory that were looked at ahead.
func (g *guest) nextNames(fh uint64) (names []string) {
	f := g.fs.files.get(fh)
	defer f.put()
	f.dir.mu.Lock()
	defer f.dir.mu.Unlock()
	b := f.dir.buf
	for range f.dir.ahead() {
		names = append(names, unix.ByteSliceToString(b[19:]))
		b = b[int(b[16])|int(b[17])<<8:]
	}
	return names
}
