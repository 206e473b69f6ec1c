package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// LandlockABI is the version of Landlock that the kernel has, 0 for none: too old, not built in, or not among its security modules
// (landlock_create_ruleset(2)).
func LandlockABI() int {
	v, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return 0
	}
	return int(v)
}

// LandlockRuleset makes a rule set that refuses all that attr names. An older kernel takes the newer struct as long as the fields
// that it does not know are 0.
func LandlockRuleset(attr *unix.LandlockRulesetAttr) (fd int, e unix.Errno) {
	r, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr), 0)
	return int(r), e
}

// landlockPathBeneath is struct landlock_path_beneath_attr, which is packed (linux/landlock.h).
type landlockPathBeneath [12]byte

// LandlockAllow excepts what lies under a directory from a rule set, for the given rights.
func LandlockAllow(ruleset, dir int, access uint64) unix.Errno {
	var a landlockPathBeneath
	*(*uint64)(unsafe.Pointer(&a[0])) = access
	*(*int32)(unsafe.Pointer(&a[8])) = int32(dir)
	_, _, e := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&a)), 0, 0, 0)
	return e
}
