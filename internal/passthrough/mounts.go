package passthrough

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

// maxMounts is how many mounts below the root are told apart; files of more have no export handles.
const maxMounts = 64

// settle is how long a descriptor on a mount below the root stays open after its last use, if an
// export handle leads back to it: until it is closed, nobody can unmount the file system.
const settle = time.Second

// submount is a mount below the root that export handles are relative to.
type submount struct {
	parent *inode // where it is: a name in a directory of another mount
	name   []byte
	fd     int // an ordinary descriptor of its root, or -1
	users  int // calls that use fd
	used   bool
	works  bool // handles of it can be opened
}

// mounts are the mounts of the share. The root's is open for good.
type mounts struct {
	mu     sync.Mutex
	root   uint64 // its number
	rootFD int    // -1: no handles
	m      map[uint64]*submount
	open   []*inode // of other mounts, with a descriptor and a handle
	timer  bool     // settle will be called
}

// handleOf makes the export handle of name in directory fd, or of fd itself if that is nil: nil
// where there is none. mnt is the file's mount.
func (fs *FS) handleOf(mnt uint64, fd int, name *byte, buf *sys.HandleBuffer) *sys.ExportHandle {
	if !fs.mountHasHandles(mnt) {
		return nil
	}
	h, e := sys.NameToHandle(fd, name, buf)
	if e != 0 {
		return nil
	}
	return h
}

func (fs *FS) mountHasHandles(mnt uint64) bool {
	m := &fs.mounts
	if m.rootFD < 0 {
		return false
	}
	if mnt == m.root {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	one := m.m[mnt]
	return one != nil && one.works
}

// crossed notes that a name in p leads to the root of another mount, of which fd is an O_PATH
// descriptor.
func (fs *FS) crossed(mnt uint64, p *inode, name []byte, fd int) {
	m := &fs.mounts
	if m.rootFD < 0 {
		return
	}
	m.mu.Lock()
	one := m.m[mnt]
	if one != nil {
		if one.parent != p || !slices.Equal(one.name, name) {
			one.parent, one.name = p, slices.Clone(name)
		}
		m.mu.Unlock()
		return
	}
	full := len(m.m) >= maxMounts
	m.mu.Unlock()
	if full {
		return
	}
	one = &submount{parent: p, name: slices.Clone(name), fd: -1}
	if real, e := fs.openMount(fd); e == 0 {
		var buf sys.HandleBuffer
		if h, e := sys.NameToHandle(real, nil, &buf); e == 0 {
			if again, e := sys.OpenByHandle(real, h, unix.O_PATH); e == 0 {
				sys.Close(again)
				one.works = true
			}
		}
		sys.Close(real)
	}
	m.mu.Lock()
	if m.m[mnt] == nil {
		m.m[mnt] = one
	}
	m.mu.Unlock()
}

// openMount opens the root of a mount as open_by_handle_at(2) needs it.
func (fs *FS) openMount(fd int) (int, unix.Errno) {
	var name [16]byte
	return sys.Openat(fs.proc, fdName(name[:], fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOATIME, 0)
}

// useMount is a descriptor that handles of a mount are relative to. The caller calls doneMount.
func (fs *FS) useMount(mnt uint64) (fd int, e unix.Errno) {
	m := &fs.mounts
	if mnt == m.root {
		return m.rootFD, 0
	}
	m.mu.Lock()
	one := m.m[mnt]
	if one == nil {
		m.mu.Unlock()
		return -1, unix.ESTALE
	}
	if one.fd >= 0 {
		one.users++
		one.used = true
		defer m.mu.Unlock()
		return one.fd, 0
	}
	p, name := one.parent, one.name
	m.mu.Unlock()
	if fd, e = fs.findMount(mnt, p, name); e != 0 {
		return -1, e
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if one.fd >= 0 { // another thread was faster
		sys.Close(fd)
	} else {
		one.fd = fd
	}
	one.users++
	one.used = true
	fs.settleLater()
	return one.fd, 0
}

// findMount opens the root of a mount by where it is.
func (fs *FS) findMount(mnt uint64, p *inode, name []byte) (int, unix.Errno) {
	pfd := p.use()
	defer p.drop(fs.fds)
	if pfd < 0 {
		var e unix.Errno
		if pfd, e = fs.fdOf(p, 0); e != 0 {
			return -1, e
		}
	}
	fd, e := sys.Openat(pfd, &name[0], unix.O_PATH|unix.O_NOFOLLOW, 0)
	if e != 0 {
		return -1, e
	}
	defer sys.Close(fd)
	var st unix.Statx_t
	if e := sys.FStatx(fd, identityMask, &st); e != 0 {
		return -1, e
	}
	if st.Mnt_id != mnt {
		return -1, unix.ESTALE
	}
	return fs.openMount(fd)
}

// doneMount ends a use.
func (fs *FS) doneMount(mnt uint64) {
	m := &fs.mounts
	if mnt == m.root {
		return
	}
	m.mu.Lock()
	if one := m.m[mnt]; one != nil {
		one.users--
	}
	m.mu.Unlock()
}

// pins notes that an inode got a descriptor that keeps its file system from being unmounted.
func (fs *FS) pins(n *inode) {
	m := &fs.mounts
	if n.mnt == m.root || m.rootFD < 0 {
		return
	}
	m.mu.Lock()
	if one := m.m[n.mnt]; one != nil && one.works {
		m.open = append(m.open, n)
		fs.settleLater()
	}
	m.mu.Unlock()
}

// settleLater has settle called. The caller holds mu.
func (fs *FS) settleLater() {
	if m := &fs.mounts; !m.timer {
		m.timer = true
		fs.background.after(settle, fs.settle)
	}
}

// settle closes descriptors on mounts below the root that were not used since it came by last.
func (fs *FS) settle() {
	m := &fs.mounts
	m.mu.Lock()
	all := m.open
	m.open = nil
	m.mu.Unlock()
	stay := all[:0]
	for _, n := range all {
		v := n.state.Load()
		if v&fdMask == 0 || v&dead != 0 {
			continue
		}
		if n.hot.Swap(false) || v&users != 0 || !fs.letGo(n) {
			stay = append(stay, n)
		}
	}
	m.mu.Lock()
	var fds []int
	more := false
	for _, one := range m.m {
		switch {
		case one.fd < 0:
		case one.used || one.users > 0:
			one.used = false
			more = true
		default:
			fds = append(fds, one.fd)
			one.fd = -1
		}
	}
	m.open = append(m.open, stay...)
	m.timer = false
	if more || len(m.open) > 0 {
		fs.settleLater()
	}
	m.mu.Unlock()
	for _, fd := range fds {
		sys.Close(fd)
	}
}

// letGo closes the descriptor of an inode that an export handle leads back to.
func (fs *FS) letGo(n *inode) bool {
	if again := fs.canReopen(n); again != possible || n.handle.Load() == nil {
		return false
	}
	if !n.evict() {
		return false
	}
	fs.fds.remove(n)
	return true
}

// closeMounts gives back all descriptors. Nobody uses the file system any more.
func (fs *FS) closeMounts() {
	m := &fs.mounts
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, one := range m.m {
		if one.fd >= 0 {
			sys.Close(one.fd)
			one.fd = -1
		}
	}
	if m.rootFD >= 0 {
		sys.Close(m.rootFD)
		m.rootFD = -1
	}
}
