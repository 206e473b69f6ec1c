package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of this file act on the calling thread alone. Go's own functions of these names act on all.

const keep = ^uintptr(0) // "leave this id as it is"

func setEUID(uid uint32) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep)
	return e
}

func setEGID(gid uint32) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(gid), keep)
	return e
}

func setGroups(groups []uint32) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
	return e
}

func getGroups() ([]uint32, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_GETGROUPS, 0, 0, 0)
	if e != 0 || n == 0 {
		return nil, e
	}
	g := make([]uint32, n)
	n, _, e = unix.RawSyscall(unix.SYS_GETGROUPS, n, uintptr(unsafe.Pointer(&g[0])), 0)
	return g[:n], e
}

// capWords are the three 64-bit sets of capset(2), split as the kernel wants them.
type capWords struct {
	effective, permitted, inheritable uint64
}

func threadCaps() (capWords, unix.Errno) {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if _, _, e := unix.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&h)), uintptr(unsafe.Pointer(&d[0])), 0); e != 0 {
		return capWords{}, e
	}
	join := func(lo, hi uint32) uint64 { return uint64(lo) | uint64(hi)<<32 }
	return capWords{
		join(d[0].Effective, d[1].Effective), join(d[0].Permitted, d[1].Permitted), join(d[0].Inheritable, d[1].Inheritable),
	}, 0
}

// set makes w the thread's capabilities; the arguments of the call lie in c, so that nothing is allocated.
func (c *Creds) setCaps(effective uint64) unix.Errno {
	c.capHeader = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	for i := range c.capData {
		shift := 32 * i
		c.capData[i] = unix.CapUserData{
			Effective: uint32(effective >> shift), Permitted: uint32(c.own.permitted >> shift), Inheritable: uint32(c.own.inheritable >> shift),
		}
	}
	_, _, e := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&c.capHeader)), uintptr(unsafe.Pointer(&c.capData[0])), 0)
	return e
}
