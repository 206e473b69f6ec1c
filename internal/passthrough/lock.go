package passthrough

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

// Bounds on what a guest may have of locks. Beyond them it gets ENOLCK.
const (
	// maxWaits is how many requests may wait for a lock at once, but for Config.LockWaits: each
	// occupies a worker, of which a queue has 64.
	maxWaits = 48
	// lockOwnerShare is the part of the descriptor budget that owners of record locks may use, one descriptor each.
	lockOwnerShare = 4
)

// record is a record lock's owner in one file: an open file description, as the kernel knows the owner of an open file
// description lock (F_OFD_SETLK in fcntl(2)) by nothing else.
type record struct {
	fd    int
	fh    uint64 // by which the guest made it
	pid   uint32 // the guest's process, for F_GETLK
	users int    // calls under way, and one while it is in the table
}

type recordKey struct{ node, owner uint64 }

// records are the owners of record locks. The zero value has none.
type records struct {
	count atomic.Int64 // so that who has no locks takes no mutex
	max   int64
	mu    sync.Mutex
	m     map[recordKey]*record
}

// get finds an owner, and makes the caller its user until put.
func (r *records) get(k recordKey) *record {
	if r.count.Load() == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.m[k]
	if o != nil {
		o.users++
	}
	return o
}

// add puts an owner in, unless another was faster: that is returned. Either way the caller is its user.
func (r *records) add(k recordKey, o *record) *record {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.m[k]; old != nil {
		defer sys.Close(o.fd) // when the mutex is free
		o = old
	} else {
		if r.m == nil {
			r.m = map[recordKey]*record{}
		}
		r.m[k] = o
		o.users = 1
		r.count.Add(1)
	}
	o.users++
	return o
}

// ofNode finds the owners of locks on a file, and makes the caller their user, until put of each: a
// file system may not answer for long what is asked of it, and then it is asked without the mutex.
func (r *records) ofNode(node uint64) (all []*record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, o := range r.m {
		if k.node == node {
			o.users++
			all = append(all, o)
		}
	}
	return all
}

// put ends a use. The last one closes the description, which gives its locks up.
func (r *records) put(o *record) {
	r.mu.Lock()
	o.users--
	last := o.users == 0
	r.mu.Unlock()
	if last {
		sys.Close(o.fd)
	}
}

// drop takes out the owners that are meant.
func (r *records) drop(meant func(recordKey, *record) bool) {
	if r.count.Load() == 0 {
		return
	}
	var fds []int
	r.mu.Lock()
	for k, o := range r.m {
		if !meant(k, o) {
			continue
		}
		delete(r.m, k)
		r.count.Add(-1)
		if o.users--; o.users == 0 {
			fds = append(fds, o.fd)
		}
	}
	r.mu.Unlock()
	for _, fd := range fds {
		sys.Close(fd)
	}
}

// Lock implements fuse.Thread. Without locks offered in INIT, Linux does not ask: locks hold within the guest.
func (t *thread) Lock(c *fuse.Caller, in *fuseabi.LkIn, out *fuseabi.LkOut) unix.Errno {
	flock := in.LkFlags&fuseabi.LkFlock != 0
	if flock && !t.fs.has(fuseabi.FlockLocks) || !flock && !t.fs.has(fuseabi.PosixLocks) {
		return unix.ENOSYS
	}
	f, e := t.openFile(in.Fh)
	if e != 0 {
		return e
	}
	defer f.put()
	wait := fuseabi.Opcode(in.Opcode) == fuseabi.OpSetlkw
	if flock {
		return t.flock(c, f, in, wait, out)
	}
	lk, e := recordLock(&in.Lk)
	if e != 0 {
		return e
	}
	t.lk = lk
	if out != nil {
		return t.getlk(f, in, out)
	}
	return t.setlk(c, f, in, wait)
}

// flock locks a whole file. Its owner is the guest's open file description, which is ours as well, so that the lock goes with it.
func (t *thread) flock(c *fuse.Caller, f *file, in *fuseabi.LkIn, wait bool, out *fuseabi.LkOut) unix.Errno {
	if out != nil {
		return unix.EINVAL
	}
	how := 0
	switch in.Lk.Typ {
	case unix.F_RDLCK:
		how = unix.LOCK_SH
	case unix.F_WRLCK:
		how = unix.LOCK_EX
	case unix.F_UNLCK:
		return again(func() unix.Errno { return sys.Flock(f.fd, unix.LOCK_UN) })
	default:
		return unix.EINVAL
	}
	e := again(func() unix.Errno { return sys.Flock(f.fd, how|unix.LOCK_NB) })
	if e == unix.EAGAIN && wait {
		t.closeAll() // it may be for days
		e = t.fs.waits.wait(t.queue, c.Unique, func() unix.Errno { return sys.Flock(f.fd, how) })
	}
	return e
}

// recordLock is the kernel's form of the wire's lock: the wire has the last byte, OFFSET_MAX for the end of any file.
func recordLock(w *fuseabi.FileLock) (unix.Flock_t, unix.Errno) {
	lk := unix.Flock_t{Type: int16(w.Typ), Whence: unix.SEEK_SET, Start: int64(w.Start)}
	if w.Start > math.MaxInt64 || w.End > math.MaxInt64 || w.End < w.Start || w.Typ > unix.F_UNLCK {
		return lk, unix.EINVAL
	}
	if w.End != math.MaxInt64 {
		lk.Len = int64(w.End-w.Start) + 1
	}
	return lk, 0
}

func (t *thread) setlk(c *fuse.Caller, f *file, in *fuseabi.LkIn, wait bool) unix.Errno {
	k := recordKey{f.node, in.Owner}
	r := &t.fs.records
	if in.Lk.Typ == unix.F_UNLCK && in.Lk.Start == 0 && in.Lk.End == math.MaxInt64 {
		r.drop(func(have recordKey, _ *record) bool { return have == k })
		return 0
	}
	o := r.get(k)
	if o == nil {
		if in.Lk.Typ == unix.F_UNLCK {
			return 0
		}
		fd, e := t.describe(f)
		if e != 0 {
			return e
		}
		o = r.add(k, &record{fd: fd, fh: in.Fh, pid: in.Lk.Pid})
	}
	defer r.put(o)
	e := again(func() unix.Errno { return sys.FcntlFlock(o.fd, unix.F_OFD_SETLK, &t.lk) })
	if e == unix.EACCES { // fcntl(2) lets it mean the same
		e = unix.EAGAIN
	}
	if e == unix.EAGAIN && wait {
		t.closeAll()
		lk := t.lk
		e = t.fs.waits.wait(t.queue, c.Unique, func() unix.Errno { return sys.FcntlFlock(o.fd, unix.F_OFD_SETLKW, &lk) })
	}
	return e
}

// describe makes an open file description for a record lock's owner. A lock needs it open for reading or writing as the lock is;
// as an owner may have several of the guest's descriptors, both are tried for first.
func (t *thread) describe(f *file) (int, unix.Errno) {
	if t.fs.records.count.Load() >= t.fs.records.max {
		return -1, unix.ENOLCK
	}
	fd, e := -1, unix.EROFS
	if !t.fs.cfg.Readonly {
		fd, e = t.openReal(f.fd, unix.O_RDWR|unix.O_NONBLOCK)
	}
	switch e {
	case unix.EACCES, unix.EPERM, unix.EROFS, unix.ETXTBSY:
		mode, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
		if err != nil {
			return -1, unix.EBADF
		}
		fd, e = t.openReal(f.fd, mode&(unix.O_ACCMODE|unix.O_APPEND)|unix.O_NONBLOCK)
	}
	if e == unix.EMFILE || e == unix.ENFILE {
		e = unix.ENOLCK
	}
	return fd, e
}

func (t *thread) getlk(f *file, in *fuseabi.LkIn, out *fuseabi.LkOut) unix.Errno {
	if in.Lk.Typ == unix.F_UNLCK {
		return unix.EINVAL
	}
	fd := f.fd
	if o := t.fs.records.get(recordKey{f.node, in.Owner}); o != nil {
		defer t.fs.records.put(o)
		fd = o.fd
	}
	if e := again(func() unix.Errno { return sys.FcntlFlock(fd, unix.F_OFD_GETLK, &t.lk) }); e != 0 {
		return e
	}
	out.Lk = in.Lk
	out.Lk.Typ, out.Lk.Pid = uint32(t.lk.Type), 0
	if t.lk.Type == unix.F_UNLCK {
		return 0
	}
	out.Lk.Start, out.Lk.End = uint64(t.lk.Start), math.MaxInt64
	if t.lk.Len != 0 {
		out.Lk.End = uint64(t.lk.Start + t.lk.Len - 1)
	}
	out.Lk.Pid = t.holder(f.node)
	return 0
}

// holder is the guest's process that alone holds the lock t.lk, or 0: a host's process has no number in the guest. To the
// kernel the owners are open file descriptions; the one for which nothing stands in the way is the holder.
func (t *thread) holder(node uint64) (pid uint32) {
	r := &t.fs.records
	for _, o := range r.ofNode(node) {
		if pid == 0 {
			t.lk.Type, t.lk.Pid = unix.F_WRLCK, 0
			if sys.FcntlFlock(o.fd, unix.F_OFD_GETLK, &t.lk) == 0 && t.lk.Type == unix.F_UNLCK {
				pid = o.pid
			}
		}
		r.put(o)
	}
	return pid
}

// unlockOwner is what closing a file does to record locks: POSIX has all of the owner's locks on it go, by whichever
// descriptor they were made.
func (fs *FS) unlockOwner(node, owner uint64) {
	k := recordKey{node, owner}
	fs.records.drop(func(have recordKey, _ *record) bool { return have == k })
}

// releaseLocks is what the last close of an open file does. Owners that are processes have gone by FLUSH before; owners that
// are the open file itself (the guest's F_OFD_SETLK) go here, of which nobody is told otherwise.
func (fs *FS) releaseLocks(fh uint64) {
	fs.records.drop(func(_ recordKey, o *record) bool { return o.fh == fh })
}

// again repeats a call that was interrupted for no reason of ours.
func again(f func() unix.Errno) (e unix.Errno) {
	for e = unix.EINTR; e == unix.EINTR; {
		e = f()
	}
	return e
}

// waits are requests that wait for a lock inside the kernel, each on its thread. They end by a signal to that thread.
// Linux's virtio-fs driver sends no INTERRUPT (fs/fuse/virtio_fs.c leaves it out), so that there a process which waits cannot
// even be killed; what always ends waiting is the end of the session, or of the holder's.
type waits struct {
	mu    sync.Mutex
	m     map[uint64]*waiter
	max   int
	early [64]uint64 // requests interrupted before they came to wait, oldest overwritten
	next  int
}

type waiter struct {
	tid       int
	queue     int
	cancelled atomic.Bool
	done      chan struct{}
}

// wait registers the calling thread, and calls block, which has to return EINTR after a signal, until it returns something else or
// the wait is cancelled.
func (w *waits) wait(queue int, unique uint64, block func() unix.Errno) unix.Errno {
	me := &waiter{tid: unix.Gettid(), queue: queue, done: make(chan struct{})}
	w.mu.Lock()
	if len(w.m) >= w.max || w.m[unique] != nil {
		w.mu.Unlock()
		return unix.ENOLCK
	}
	for i, u := range w.early {
		if u == unique && u != 0 {
			w.early[i] = 0
			w.mu.Unlock()
			return unix.EINTR
		}
	}
	if w.m == nil {
		w.m = map[uint64]*waiter{}
	}
	w.m[unique] = me
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.m, unique)
		w.mu.Unlock()
		close(me.done)
	}()
	for !me.cancelled.Load() {
		if e := block(); e != unix.EINTR {
			return e
		}
	}
	return unix.EINTR
}

// cancel ends one wait, or the one that is about to begin.
func (w *waits) cancel(unique uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if me := w.m[unique]; me != nil {
		me.end()
		return
	}
	w.early[w.next%len(w.early)] = unique
	w.next++
}

// cancelAll ends all waits.
func (w *waits) cancelAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.early[:])
	for _, me := range w.m {
		me.end()
	}
}

// cancelQueue ends the waits of requests that came by one queue.
func (w *waits) cancelQueue(queue int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, me := range w.m {
		if me.queue == queue {
			me.end()
		}
	}
}

// end has the waiter return. A signal that arrives just before the thread blocks is lost, hence more than one.
func (w *waiter) end() {
	if w.cancelled.Swap(true) {
		return
	}
	go func() {
		pause := time.Millisecond
		for {
			sys.Interrupt(w.tid)
			select {
			case <-w.done:
				return
			case <-time.After(pause):
				pause = min(2*pause, 100*time.Millisecond)
			}
		}
	}()
}

// Interrupt implements fuse.Thread: only waits for locks can be interrupted.
func (t *thread) Interrupt(unique uint64) {
	if t.fs.has(fuseabi.FlockLocks | fuseabi.PosixLocks) {
		t.fs.waits.cancel(unique)
	}
}
