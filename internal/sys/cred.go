package sys

import (
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Capabilities that matter while acting for somebody else.
const (
	capDACOverride   = 1 << unix.CAP_DAC_OVERRIDE
	capDACReadSearch = 1 << unix.CAP_DAC_READ_SEARCH
	capFsetid        = 1 << unix.CAP_FSETID
	capSetgid        = 1 << unix.CAP_SETGID
	capSetuid        = 1 << unix.CAP_SETUID
)

// secbitNoSetuidFixup is SECBIT_NO_SETUID_FIXUP (linux/securebits.h).
const secbitNoSetuidFixup = 1 << 2

// ExitWrongIDs is the exit status of a daemon that could not take its own ids back.
const ExitWrongIDs = 70

// noID is what the calls take for "leave as it is", and what a guest sends for an id that its mount does not map.
const noID = ^uint32(0)

// Creds switches the credentials of one thread and switches them back. It is made on that thread, which stays locked to
// its goroutine, and every method is called there.
//
// While switched, a thread keeps what it has of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, and nothing else: permission was checked by the guest's
// kernel, which knows all groups and access lists; but whether a set-group-ID bit survives is decided here, so CAP_FSETID
// must not be there (CVE-2022-0358).
//
// Id 0 means the daemon itself: a guest's root acts as whoever the daemon runs as, and is never switched to.
type Creds struct {
	uid, gid  uint32
	groups    []uint32
	own       capWords
	canGroups bool
	// Leaving uid 0 clears the effective set, and coming back fills it, unless the launcher has
	// said otherwise (SECBIT_NO_SETUID_FIXUP).
	fixup     bool
	fullOnUID bool // coming back restores exactly the own effective set

	switchedUID, switchedGID, switchedGroups, switchedCaps bool

	capHeader unix.CapUserHeader
	capData   [2]unix.CapUserData
}

// NewCreds reads the calling thread's credentials.
func NewCreds() (*Creds, error) {
	c := &Creds{}
	var e unix.Errno
	if c.own, e = threadCaps(); e != 0 {
		return nil, fmt.Errorf("read the thread's capabilities: %w", e)
	}
	if c.groups, e = getGroups(); e != 0 {
		return nil, fmt.Errorf("read the thread's supplementary groups: %w", e)
	}
	c.uid, c.gid = uint32(unix.Geteuid()), uint32(unix.Getegid())
	// Without these capabilities nothing is ever switched. With them the first switch must not be
	// the one that cannot be undone.
	if c.own.effective&(capSetuid|capSetgid) != 0 && (setEGID(c.gid) != 0 || setEUID(c.uid) != 0) {
		return nil, fmt.Errorf("the thread's own ids, %d and %d, cannot be taken again: they are not mapped in its user namespace", c.uid, c.gid)
	}
	// A user namespace may deny setgroups to whoever has CAP_SETGID in it: only trying tells.
	c.canGroups = c.own.effective&capSetgid != 0 && setGroups(c.groups) == 0
	bits, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_GET_SECUREBITS, 0, 0)
	c.fixup = c.uid == 0 && e == 0 && bits&secbitNoSetuidFixup == 0
	c.fullOnUID = c.fixup && c.own.effective == c.own.permitted
	return c, nil
}

// UID and GID are the thread's own effective ids.
func (c *Creds) UID() uint32 { return c.uid }

// GID is the thread's own effective group id.
func (c *Creds) GID() uint32 { return c.gid }

// Become lets the thread act with a caller's ids and supplementary groups until Restore. It returns EPERM, and leaves
// the thread as it was, for ids that the thread may not take: no capability for it, or not mapped in its user namespace.
func (c *Creds) Become(uid, gid uint32, groups []uint32) unix.Errno {
	if uid == noID || gid == noID {
		return unix.EPERM
	}
	if uid == 0 && (gid == 0 || gid == c.gid) {
		return 0
	}
	if gid != 0 && gid != c.gid {
		if e := setEGID(gid); e != 0 {
			return refused(e)
		}
		c.switchedGID = true
	}
	if uid == 0 {
		return 0
	}
	if c.canGroups && !slices.Equal(groups, c.groups) {
		if e := setGroups(groups); e != 0 {
			c.Restore()
			return refused(e)
		}
		c.switchedGroups = true
	}
	effective := c.own.effective
	if uid != c.uid {
		if e := setEUID(uid); e != 0 {
			c.Restore()
			return refused(e)
		}
		c.switchedUID = true
		if c.fixup {
			effective = 0
		}
	}
	if want := c.own.effective & (capDACOverride | capDACReadSearch); want != effective {
		c.switchedCaps = true
		if e := c.setCaps(want); e != 0 {
			c.Restore()
			return refused(e)
		}
	}
	return 0
}

// DropFsetid takes CAP_FSETID from the thread until Restore, so that the kernel clears set-user-ID and set-group-ID bits on
// write and truncate as it does for an ordinary user.
func (c *Creds) DropFsetid() unix.Errno {
	if c.own.effective&capFsetid == 0 {
		return 0
	}
	if e := c.setCaps(c.own.effective &^ capFsetid); e != 0 {
		return e
	}
	c.switchedCaps = true
	return 0
}

// DropAll takes all effective capabilities from the thread until Restore, for an honest access(2).
func (c *Creds) DropAll() unix.Errno {
	if c.own.effective == 0 && !c.switchedCaps {
		return 0
	}
	c.switchedCaps = true
	return c.setCaps(0)
}

// Restore gives the thread its own credentials back; where nothing was switched it costs nothing. A thread that
// cannot be restored would serve the next request with a guest user's rights or a guest user with ours: the process is
// killed at once instead.
func (c *Creds) Restore() {
	if c.switchedUID {
		c.must(setEUID(c.uid))
		c.switchedUID = false
		c.switchedCaps = !c.fullOnUID && (c.switchedCaps || c.uid == 0)
	}
	if c.switchedCaps {
		c.must(c.setCaps(c.own.effective))
		c.switchedCaps = false
	}
	if c.switchedGroups {
		c.must(setGroups(c.groups))
		c.switchedGroups = false
	}
	if c.switchedGID {
		c.must(setEGID(c.gid))
		c.switchedGID = false
	}
}

// Switched reports whether the thread acts for somebody else at the moment.
func (c *Creds) Switched() bool {
	return c.switchedUID || c.switchedGID || c.switchedGroups || c.switchedCaps
}

// must ends the process by a bare system call: a signal would not do, for the first process of a pid namespace does not
// even get its own SIGKILL.
func (c *Creds) must(e unix.Errno) {
	for e != 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, ExitWrongIDs, 0, 0)
	}
}

// refused turns what the kernel says of an id outside the user namespace (EINVAL) into what a user understands.
func refused(e unix.Errno) unix.Errno {
	if e == unix.EINVAL {
		return unix.EPERM
	}
	return e
}

// IDsAreMapped reports whether the process's ids have numbers in its user namespace. The kernel
// shows those that have none as the overflow id, 65534, which may be mapped as well, to somebody
// else: so a thread without capabilities, which dies of it, tries to take its own.
func IDsAreMapped() bool {
	mapped := make(chan bool)
	go func() {
		runtime.LockOSThread()
		c := &Creds{uid: uint32(unix.Geteuid()), gid: uint32(unix.Getegid())}
		own, e := threadCaps()
		c.own = own
		mapped <- e == 0 && c.setCaps(0) == 0 && setEGID(c.gid) == 0 && setEUID(c.uid) == 0
	}()
	return <-mapped
}
