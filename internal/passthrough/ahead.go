package passthrough

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

// A guest that reads a directory with READDIRPLUS asks for the next part as soon as it has got one, and until then the worker would poll.
// It looks at the attributes of the entries that come next instead. What it has seen counts for aheadLife, and only while no request
// that may have changed attributes has been carried out, or begun, since: a guest takes what it is told for newer than what it knew.
const (
	aheadStep = 4  // entries looked at between two looks at the ring
	aheadMost = 64 // entries
	aheadLife = 2 * time.Millisecond
	aheadSlow = 100 * time.Microsecond // a step that takes longer waits for a disk, or for a processor
	aheadPain = 3                      // slow steps after which there is no more looking ahead in a directory
)

// ahead tells those who look ahead of changes. Most requests find nobody who does, and write nothing.
type ahead struct {
	armed atomic.Bool // somebody has looked since the last change
	epoch atomic.Uint64
}

// Changing implements fuse.Thread. It is called before and after a change. Whoever looks ahead reads the epoch, arms, and then looks: a change
// that was not over by then finds it armed at its end, unless another has disarmed it, which counts as well.
func (t *thread) Changing() {
	if a := &t.fs.ahead; a.armed.Load() && a.armed.Swap(false) {
		a.epoch.Add(1)
	}
}

// foresight is what is known of a directory's next entries.
type foresight struct {
	seen  []unix.Statx_t // of the first entries of buf that are not read yet, less those at the front that are
	at    int            // how many those are
	upTo  int            // bytes of buf to the first entry that was not looked at
	epoch uint64
	since time.Duration // when the first was looked at
	want  int           // entries that the last request took
	slow  int           // slow steps
}

// forget drops what was seen.
func (f *foresight) forget() { f.seen, f.at, f.upTo = f.seen[:0], 0, 0 }

// review drops what may not be true any more.
func (f *foresight) review(fs *FS) {
	if f.at < len(f.seen) && (f.epoch != fs.ahead.epoch.Load() || sys.Clock()-f.since > aheadLife) {
		f.forget()
	}
}

// first is what was seen of the next entry, or nil. "." and ".." are nobody's to look at.
func (f *foresight) first() *unix.Statx_t {
	if f.at == len(f.seen) || f.seen[f.at].Mask == 0 {
		return nil
	}
	return &f.seen[f.at]
}

// pass goes on to the entry behind the next, which is reclen bytes long.
func (f *foresight) pass(reclen int) {
	if f.at++; f.at >= len(f.seen) {
		f.forget()
		return
	}
	f.upTo -= reclen
}

// Ahead implements fuse.Thread.
func (t *thread) Ahead() (more bool) {
	if t.fs.ttl.sec == 0 && t.fs.ttl.nsec == 0 {
		return false // a guest that believes nothing for any time shall not have to believe this
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
	d.review(t.fs)
	began := sys.Clock()
	if len(d.seen) == 0 {
		d.epoch, d.since = t.fs.ahead.epoch.Load(), began
	}
	t.fs.ahead.armed.Store(true)
	if len(d.buf) == 0 && d.mem != nil {
		if k, e := sys.Getdents64(f.fd, d.mem); e == 0 && k > 0 {
			d.buf = d.mem[:k]
		}
	}
	if d.seen == nil {
		d.seen = make([]unix.Statx_t, 0, aheadMost)
	}
	for range aheadStep {
		if d.upTo >= len(d.buf) || len(d.seen)-d.at >= d.want || len(d.seen) == cap(d.seen) {
			return false
		}
		de := d.buf[d.upTo:]
		d.upTo += int(binary.NativeEndian.Uint16(de[16:]))
		d.seen = append(d.seen, unix.Statx_t{})
		name := de[19:]
		if end := bytes.IndexByte(name, 0); end <= 0 || dots(name[:end]) {
			continue
		}
		if st := &d.seen[len(d.seen)-1]; sys.Statx(f.fd, &name[0], unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, identityMask, st) != 0 {
			st.Mask = 0 // it is asked again
		}
	}
	if sys.Clock()-began > aheadSlow {
		d.slow++
	}
	return true
}
