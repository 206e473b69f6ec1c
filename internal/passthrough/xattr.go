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
	guest := name[:len(name)-1]
	host := []byte(guest)
	if m := t.fs.cfg.XattrMap; m != nil {
		var e unix.Errno
		if host, e = m.ToHost(t.names[:0], guest); e != 0 {
			return nil, e
		}
		if len(host) > 255 {
			return nil, unix.ERANGE
		}
		t.names = append(host, 0)
	}
	if !t.served(guest, host) {
		return nil, unix.EOPNOTSUPP
	}
	if t.fs.cfg.XattrMap == nil {
		return name.Ptr(), 0
	}
	return &t.names[0], 0
}

// served reports whether an attribute is a guest's to look at and to change, by its name in the
// guest and on the host.
//
// Whoever has an attribute of "system." guards it himself: NFS its access lists, CIFS and NTFS
// their security descriptors. The guest's kernel asks nobody before it sends such a request
// (fs/xattr.c, xattr_permission), as it leaves that to the file system, and sends no supplementary
// groups along, nor, since idmapped mounts (ALLOW_IDMAP), the caller at all. With the daemon's own
// rights a guest's user would change what he does not own. So none is served but POSIX access
// lists, where they were negotiated: those the guest's kernel knows, and guards.
func (t *thread) served(guest, host []byte) bool {
	if isACL(guest) || bytes.HasPrefix(host, []byte("system.")) {
		return isACL(guest) && (isACL(host) || !bytes.HasPrefix(host, []byte("system."))) && t.fs.has(fuseabi.PosixACL)
	}
	return true
}

// attributes is what all four operations begin with.
func (t *thread) attributes(node uint64, name fuse.Name) (n *inode, path, host *byte, e unix.Errno) {
	if !t.fs.cfg.Xattr {
		return nil, nil, nil, unix.ENOSYS // the guest does not ask again
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
	if t.list == nil {
		t.list = make([]byte, 2*maxXattr)
	}
	size, e := sys.Listxattr(t.fdPath(fd), t.list[:maxXattr])
	if e != 0 {
		return 0, e
	}
	out := t.list[maxXattr:maxXattr] // a map can make names longer, and this another list
	for list := t.list[:size]; len(list) > 0; {
		i := bytes.IndexByte(list, 0)
		if i < 0 {
			break
		}
		host := list[:i]
		list = list[i+1:]
		guest := host
		if m := t.fs.cfg.XattrMap; m != nil {
			var keep bool
			if guest, keep = m.ToGuest(t.names[:0], host); !keep {
				continue
			}
		}
		if t.served(guest, host) {
			out = append(append(out, guest...), 0)
		}
	}
	switch {
	case len(buf) == 0:
		return len(out), 0
	case len(buf) < len(out):
		return 0, unix.ERANGE
	}
	return copy(buf, out), 0
}
