package passthrough

import (
	"bytes"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/sys"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	maxXattr   = 64 << 10
)

// hostName is the host's name, with NUL, of an attribute that the guest names.
func (t *thread) hostName(name fuse.Name) (*byte, unix.Errno) {
	if t.fs.cfg.XattrMap == nil {
		return name.Ptr(), 0
	}
	host, e := t.fs.cfg.XattrMap.ToHost(t.names[:0], name[:len(name)-1])
	if e != 0 {
		return nil, e
	}
	if len(host) > 255 {
		return nil, unix.ERANGE
	}
	t.names = append(host, 0)
	return &t.names[0], 0
}

// attributes is what all four operations begin with.
func (t *thread) attributes(node uint64, name fuse.Name) (n *inode, path, host *byte, e unix.Errno) {
	if !t.fs.cfg.Xattr {
		return nil, nil, nil, unix.ENOSYS // the guest does not ask again
	}
	if !t.fs.has(fuseabi.PosixACL) && isACL(name[:len(name)-1]) {
		return nil, nil, nil, unix.EOPNOTSUPP
	}
	if host, e = t.hostName(name); e != 0 {
		return nil, nil, nil, e
	}
	n, fd, e := t.node(node)
	if e != 0 {
		return nil, nil, nil, e
	}
	return n, t.fdPath(fd), host, 0
}

func isACL(name []byte) bool {
	return string(name) == aclAccess || string(name) == aclDefault
}

// Getxattr implements fuse.Thread.
func (t *thread) Getxattr(node uint64, name fuse.Name, buf []byte) (int, unix.Errno) {
	n, path, host, e := t.attributes(node, name)
	if e == unix.EPERM && t.fs.cfg.XattrMap != nil { // what the map denies is not there to be read
		return 0, unix.ENODATA
	}
	if e != 0 {
		return 0, e
	}
	size, e := sys.Getxattr(path, host, buf)
	t.put(n)
	return size, e
}

// Setxattr implements fuse.Thread.
func (t *thread) Setxattr(node uint64, name fuse.Name, value []byte, flags, extFlags uint32) unix.Errno {
	if t.fs.cfg.Readonly && t.fs.cfg.Xattr {
		return unix.EROFS
	}
	n, path, host, e := t.attributes(node, name)
	if e != 0 {
		return e
	}
	defer t.put(n)
	if e := sys.Setxattr(path, host, value, int(flags)); e != 0 {
		return e
	}
	if extFlags&fuseabi.SetxattrACLKillSgid != 0 && string(name[:len(name)-1]) == aclAccess {
		return t.clearSgid(n)
	}
	return 0
}

// clearSgid takes the set-group-ID bit away, as setting an access list does for whoever is not in the file's group.
func (t *thread) clearSgid(n *inode) unix.Errno {
	fd := int(n.state.Load()&fdMask) - 1
	if e := sys.FStatx(fd, unix.STATX_MODE, &t.st); e != 0 {
		return e
	}
	if t.st.Mode&unix.S_ISGID == 0 {
		return 0
	}
	return sys.Fchmodat(t.fs.proc, t.fdPath(fd), uint32(t.st.Mode)&07777&^unix.S_ISGID)
}

// Removexattr implements fuse.Thread.
func (t *thread) Removexattr(node uint64, name fuse.Name) unix.Errno {
	if t.fs.cfg.Readonly && t.fs.cfg.Xattr {
		return unix.EROFS
	}
	n, path, host, e := t.attributes(node, name)
	if e != 0 {
		return e
	}
	e = sys.Removexattr(path, host)
	t.put(n)
	return e
}

// Listxattr implements fuse.Thread.
func (t *thread) Listxattr(node uint64, buf []byte) (int, unix.Errno) {
	if !t.fs.cfg.Xattr {
		return 0, unix.ENOSYS
	}
	n, fd, e := t.node(node)
	if e != 0 {
		return 0, e
	}
	defer t.put(n)
	if t.fs.cfg.XattrMap == nil && t.fs.has(fuseabi.PosixACL) {
		return sys.Listxattr(t.fdPath(fd), buf)
	}
	all := make([]byte, maxXattr)
	size, e := sys.Listxattr(t.fdPath(fd), all)
	if e != 0 {
		return 0, e
	}
	out := all[:0:0]
	for list := all[:size]; len(list) > 0; {
		i := bytes.IndexByte(list, 0)
		if i < 0 {
			break
		}
		name := list[:i]
		list = list[i+1:]
		if t.fs.cfg.XattrMap != nil {
			guest, keep := t.fs.cfg.XattrMap.ToGuest(t.names[:0], name)
			if !keep {
				continue
			}
			name = guest
		}
		if isACL(name) && !t.fs.has(fuseabi.PosixACL) {
			continue
		}
		out = append(append(out, name...), 0)
	}
	switch {
	case len(buf) == 0:
		return len(out), 0
	case len(buf) < len(out):
		return 0, unix.ERANGE
	}
	return copy(buf, out), 0
}
