package verdict

import (
	"fmt"
	"slices"
	"strings"
)

// capabilities are the names of linux/capability.h, in the order of their numbers.
var capabilities = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
	NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT
	SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
	MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// Mask is the set of capabilities as the kernel's bits.
func Mask(of []string) (uint64, error) {
	var m uint64
	for _, n := range of {
		i := slices.Index(capabilities, strings.TrimPrefix(n, "CAP_"))
		if i < 0 {
			return 0, fmt.Errorf("unknown capability %q", n)
		}
		m |= 1 << i
	}
	return m, nil
}

// Capabilities names the members of a set.
func Capabilities(m uint64) []string {
	var n []string
	for i := range 64 {
		if m&(1<<i) == 0 {
			continue
		}
		if i < len(capabilities) {
			n = append(n, capabilities[i])
		} else {
			n = append(n, fmt.Sprintf("capability %d", i))
		}
	}
	return n
}

// names says a set in words: all of it, or of a long one the first and how many there are.
func names(m uint64) string {
	n := Capabilities(m)
	switch {
	case len(n) == 0:
		return "no capability"
	case len(n) > 9:
		return fmt.Sprintf("%d capabilities, %s among them", len(n), strings.Join(n[:3], ", "))
	}
	return strings.Join(n, ", ")
}
