package passthrough

import (
	"bytes"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

// A guest that reads a directory with READDIRPLUS asks for the next part as soon as it has got one. So the attributes of the entries that come
// next are looked at before it asks: by the worker, that would poll until then, and where the guest reads fast and there is a lot to read, by a
// thread besides (lookout). What was seen counts for aheadLife, and only while no request that may have changed attributes has been carried
// out, or begun, since: a guest takes what it is told for newer than what it knew.
const (
	aheadStep   = 4 // entries looked at between two looks at the ring
	aheadLife   = 2 * time.Millisecond
	aheadSlow   = 100 * time.Microsecond // a step that takes longer waits for a disk, or for a processor
	aheadPain   = 3                      // slow steps after which the worker looks ahead no more in a directory, and vain calls after which no one is called
	aheadCall   = 32                     // entries that make it worth to wake a thread up
	aheadBeside = 16                     // entries that are looked at while somebody else is at the next one
	aheadSpin   = 20                     // then, looks at whether that is done, a microsecond or so, until it is looked at twice
)

// changes tells those who look ahead of changes. Most requests find nobody who does, and write nothing.
//
// Bit 0 says that somebody has looked since the last change, the other bits count the changes that somebody had looked before.
type changes struct{ word atomic.Uint64 }

// looking is called before a look. What it returns is what now has to return when what was seen is told.
//
// A change that is not over by then finds bit 0 set at its end, unless another change has counted itself meanwhile, which does as well.
func (c *changes) looking() uint64 {
	w := c.word.Load()
	if w&1 == 0 {
		w = c.word.Or(1)
	}
	return w >> 1
}

func (c *changes) now() uint64 { return c.word.Load() >> 1 }

// watched reports whether somebody has looked since the last change.
func (c *changes) watched() bool { return c.word.Load()&1 != 0 }

// Changing implements fuse.Thread. It is called before and after a change.
func (t *thread) Changing() {
	if w := t.fs.changes.word.Load(); w&1 != 0 {
		t.fs.changes.word.CompareAndSwap(w, w+1)
	}
}

// preview is a part of a directory's list, and what is seen of its entries before the guest asks for them. Entries are looked at in their order,
// each by who takes it first.
type preview struct {
	names  []byte // struct linux_dirent64, one behind the other: nobody writes here as long as anybody looks
	sights []sight
	taken  atomic.Int32 // entries that somebody has looked at, or is looking at

	helped atomic.Bool // the lookout has the preview, and what is below
	most   int         // entries that it may take
	f      *file       // the directory
}

// sight is an entry, and what is seen of it.
type sight struct {
	at      uint16      // where in names
	done    atomic.Bool // what follows is there
	changes uint64
	when    time.Duration
	st      unix.Statx_t // Mask 0: nothing was seen
}

// takenAll is more entries than there are.
const takenAll = direntBuffer

// look takes the next entry, if there is one before the limit, and looks at it.
func (p *preview) look(c *changes, fd, limit int) bool {
	i := p.taken.Load()
	if int(i) >= min(limit, len(p.sights)) {
		return false
	}
	if !p.taken.CompareAndSwap(i, i+1) {
		return true
	}
	s := &p.sights[i]
	name := p.names[s.at+19:]
	s.st.Mask = 0
	if end := bytes.IndexByte(name, 0); end > 0 && !dots(name[:end]) { // "." and ".." are nobody's to look at
		s.changes, s.when = c.looking(), sys.Clock()
		if sys.Statx(fd, &name[0], unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, identityMask, &s.st) != 0 {
			s.st.Mask = 0 // it is asked again
		}
	}
	s.done.Store(true)
	return true
}

// foresight is what a directory that is being read has of all this.
type foresight struct {
	*preview          // of buf's entries and some before them; nil for none
	spare    *preview // nobody's; may be nil
	read     int      // entries of the preview that the guest was told of
	passed   int      // entries of the directory that it was, since it began
	told     int      // how many of them had been looked at before, since the last call
	called   bool
	want     int           // entries that the last READDIRPLUS took
	slow     int           // steps of the worker that took long
	vain     int           // calls in a row that came to little
	asked    time.Duration // when the last READDIRPLUS came
	pace     time.Duration // from an entry to the next, what the guest does with it included; 0 where that is not known
}

// begin notes that a READDIRPLUS has come.
func (f *foresight) begin() {
	now := sys.Clock()
	if f.pace = 0; f.want > 0 {
		f.pace = max((now-f.asked)/time.Duration(f.want), 1)
	}
	f.asked = now
}

// forget drops what was seen, and what there was to be seen.
func (d *dirStream) forget() {
	p := d.preview
	if p == nil {
		return
	}
	d.preview = nil
	p.taken.Store(takenAll)
	if p.helped.Load() { // the lookout may be in the middle of an entry: the memory is its own from now on
		d.mem = nil
		return
	}
	d.spare = p
}

// cover makes a preview of the entries in buf.
func (d *dirStream) cover() {
	p := d.spare
	if p == nil {
		p = &preview{}
	}
	n := 0
	for at := 0; at < len(d.buf); n++ {
		at += reclen(d.buf[at:])
	}
	if cap(p.sights) < n {
		p.sights = make([]sight, n)
	}
	p.names, p.sights = d.buf, p.sights[:n]
	at := 0
	for i := range p.sights {
		s := &p.sights[i]
		s.at = uint16(at)
		s.done.Store(false)
		at += reclen(d.buf[at:])
	}
	p.taken.Store(0)
	d.preview, d.spare, d.read = p, nil, 0
}

// ahead is how many of the entries that the guest was not told of have been looked at, or are being.
func (f *foresight) ahead() int {
	if f.preview == nil {
		return 0
	}
	return max(min(int(f.taken.Load()), len(f.sights))-f.read, 0)
}

// seen is what was seen of the next entry, or nil: then it is the caller's to look at. fd is the directory, p.
func (f *foresight) seen(fs *FS, p *inode, fd int) *sight {
	if f.preview == nil {
		return nil
	}
	s := &f.sights[f.read]
	if !s.done.Load() {
		if f.taken.CompareAndSwap(int32(f.read), int32(f.read+1)) {
			return nil
		}
		for n := 0; !s.done.Load(); { // another is at it
			if f.look(&fs.changes, fd, f.read+aheadBeside) {
				continue
			}
			if n++; n == aheadSpin {
				return nil
			}
			sys.Relax()
		}
	}
	if s.st.Mask == 0 || s.changes != fs.changes.now() || f.asked-s.when > aheadLife || p.toldSince(s.when) {
		return nil
	}
	f.told++
	return s
}

// Ahead implements fuse.Thread.
func (t *thread) Ahead() (more bool) {
	if !t.fs.looksAhead() {
		return false
	}
	f := t.fs.files.get(t.listed)
	if f == nil {
		t.listed = 0
		return false
	}
	defer f.put()
	d := f.dir
	if !d.mu.TryLock() {
		return false
	}
	defer d.mu.Unlock()
	if d.slow >= aheadPain {
		return false
	}
	began := sys.Clock()
	if len(d.buf) == 0 && d.mem != nil {
		_ = d.fill(f.fd)
	}
	if d.preview == nil {
		d.cover()
	}
	for range aheadStep {
		if !d.look(&t.fs.changes, f.fd, d.read+d.want) {
			return false
		}
	}
	if sys.Clock()-began > aheadSlow {
		d.slow++
	}
	return true
}

// looksAhead reports whether a guest may be told of what was seen before it asked: one that believes nothing for any time shall not have to
// believe this.
func (fs *FS) looksAhead() bool { return fs.ttl.sec != 0 || fs.ttl.nsec != 0 }

// call has the lookout look at the entries that are not read yet, if there are many and it is at nothing else. room is what the guest has for
// this reply, in bytes.
func (d *dirStream) call(fs *FS, f *file, room int) {
	if !fs.cfg.Lookout || !fs.looksAhead() || d.vain >= aheadPain ||
		d.passed < aheadCall/2 && room < aheadCall*2*fuseabi.DirentplusSize { // it may want no more than this
		return
	}
	if d.preview == nil {
		d.cover()
	}
	most := len(d.sights)
	if d.pace > 0 { // what is not asked for soon would have been looked at in vain
		most = min(most, d.read+int(aheadLife/2/d.pace))
	}
	if most-max(d.read, int(d.taken.Load())) < aheadCall || d.helped.Load() {
		return
	}
	d.most, d.f = most, f
	if !fs.lookout.call(d.preview, &fs.changes) {
		return
	}
	if d.called {
		if d.vain++; d.told >= aheadCall/2 {
			d.vain = 0
		}
	}
	d.called, d.told = true, 0
}

// lookout is a thread that looks at the entries of one directory at a time while a worker tells the guest of those before them.
type lookout struct {
	job   atomic.Pointer[preview]
	word  atomic.Uint32 // counts calls; it sleeps on this
	end   atomic.Bool
	start sync.Once
	ended chan struct{} // nil for a thread that was never wanted
}

// call hands a preview over, unless there is another already.
func (l *lookout) call(p *preview, c *changes) bool {
	p.f.state.Add(1)
	p.helped.Store(true)
	if !l.job.CompareAndSwap(nil, p) {
		p.helped.Store(false)
		p.f.put()
		return false
	}
	l.start.Do(func() {
		l.ended = make(chan struct{})
		go l.run(c)
	})
	l.word.Add(1)
	sys.Wake(&l.word)
	return true
}

// close ends the thread. Nobody calls it any more.
func (l *lookout) close() {
	l.end.Store(true)
	l.word.Add(1)
	sys.Wake(&l.word)
	l.start.Do(func() {})
	if l.ended != nil {
		<-l.ended
	}
}

func (l *lookout) run(c *changes) {
	runtime.LockOSThread() // it sleeps in the kernel, and wakes up without Go's scheduler
	defer close(l.ended)
	for {
		word := l.word.Load()
		p := l.job.Load()
		if p == nil {
			if l.end.Load() {
				return
			}
			sys.SleepWhile(&l.word, word)
			continue
		}
		f := p.f
		for p.look(c, f.fd, p.most) {
		}
		l.job.Store(nil)
		p.helped.Store(false)
		f.put()
	}
}
