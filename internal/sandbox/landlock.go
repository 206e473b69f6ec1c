package sandbox

import (
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

// minLandlock is the oldest version that we use: the first one refuses every rename and link between directories.
const minLandlock = 2

// landlockAttr is all that a version of Landlock can refuse (linux/landlock.h, Documentation/userspace-api/landlock.rst).
func landlockAttr(abi int) unix.LandlockRulesetAttr {
	a := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1 | unix.LANDLOCK_ACCESS_FS_REFER}
	if abi >= 3 {
		a.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 4 {
		a.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if abi >= 5 {
		a.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= 6 {
		// Not LANDLOCK_SCOPE_SIGNAL: until a fix of 6.15 it forbids threads of one process to signal each other, which the runtime does.
		a.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
	}
	return a
}

// Rights on the share, and on what is read of /proc/self to verify.
const (
	landlockRead  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	landlockNever = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

// landlock refuses to this process all files but those under the share, and TCP. What it does not govern are attributes, ownership and
// extended attributes of what can be named: they need a wall that hides names.
func (e *Entered) landlock(readonly bool) error {
	attr := landlockAttr(sys.LandlockABI())
	rules, errno := sys.LandlockRuleset(&attr)
	if errno != 0 {
		return fmt.Errorf("make a rule set: %w", errno)
	}
	defer unix.Close(rules)
	share := attr.Handled_access_fs &^ landlockNever
	if readonly {
		share = landlockRead
	}
	if errno := sys.LandlockAllow(rules, e.Root, share); errno != 0 {
		return fmt.Errorf("allow the share: %w", errno)
	}
	if errno := sys.LandlockAllow(rules, int(e.self.Fd()), landlockRead); errno != 0 {
		return fmt.Errorf("allow our own /proc/self: %w", errno)
	}
	return all(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(rules), 0, 0)
}

// landlocked tries whether Landlock refuses what it should: to write the name of one of our own threads, that task lists. Without it the kernel
// allows that to any process (fs/proc/base.c, proc_tid_comm_permission).
func landlocked(task *os.File, tid string) bool {
	fd, err := unix.Openat(int(task.Fd()), path.Join(tid, "comm"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err == unix.EACCES
}
