package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/idmap"
	"virtiofsd/internal/sys"
)

// Facts are what a plan depends on: who runs the daemon, and what this host lets him do.
type Facts struct {
	UID    uint32   `json:"uid"` // effective, in our user namespace
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups"` // supplementary
	// Mixed: real, saved and effective ids are not alike. Unmapped: they have no number in our user
	// namespace, and read as another's.
	Mixed    bool `json:"mixed_ids"`
	Unmapped bool `json:"unmapped_ids"`

	Effective Caps `json:"effective"`
	Bounding  Caps `json:"bounding"`
	LastCap   uint `json:"last_cap"` // highest capability that the kernel knows

	// Of the user namespace we are in. The initial one maps all 2^32-1 ids to themselves.
	UIDMap          idmap.Map `json:"uid_map"`
	GIDMap          idmap.Map `json:"gid_map"`
	SetgroupsDenied bool      `json:"setgroups_denied"`

	NoNewPrivs bool `json:"no_new_privs"`
	Seccomp    bool `json:"seccomp"`  // the kernel has system call filters
	Landlock   int  `json:"landlock"` // version of Landlock's interface, 0 for none

	Newuidmap string      `json:"newuidmap"` // path, "" where there is none
	Newgidmap string      `json:"newgidmap"`
	SubUID    []idmap.Sub `json:"subuid"` // the caller's ranges
	SubGID    []idmap.Sub `json:"subgid"`

	// UserNamespaces is "" where the caller may make one, otherwise what forbids it.
	UserNamespaces string `json:"user_namespaces"`
	// ShareHoldsProc: the share is the root directory, by whatever name, or /proc itself.
	ShareHoldsProc bool `json:"share_holds_proc"`
	// Rooms are what bounds the number of threads, if anything does.
	Rooms []Room `json:"rooms,omitempty"`
	// NoPivotRoot: pivot_root(2) is refused although the caller has the capability for it, as docker's filter does.
	NoPivotRoot bool `json:"no_pivot_root"`
	// Fatal are system calls for which the caller's filter ends the process.
	Fatal    []string `json:"fatal_calls,omitempty"`
	filtered bool
}

// Gather reads the facts of the calling process, which is to share a directory. What it cannot read counts as absent. Whether user namespaces can be made is tried, which
// takes some milliseconds, where the caller has to make one: without CAP_SYS_ADMIN, or if maps says that ids are to be mapped.
func Gather(share string, maps bool) (Facts, error) {
	f := Facts{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	groups, err := os.Getgroups()
	if err != nil {
		return f, fmt.Errorf("read supplementary groups: %w", err)
	}
	for _, g := range groups {
		f.Groups = append(f.Groups, uint32(g))
	}
	if err := f.readStatus(); err != nil {
		return f, err
	}
	f.LastCap = uint(readNumber("/proc/sys/kernel/cap_last_cap", 40))
	if f.UIDMap, err = readMap("/proc/self/uid_map"); err != nil {
		return f, err
	}
	if f.GIDMap, err = readMap("/proc/self/gid_map"); err != nil {
		return f, err
	}
	f.Unmapped = !f.Initial() && !sys.IDsAreMapped()
	b, _ := os.ReadFile("/proc/self/setgroups")
	f.SetgroupsDenied = strings.TrimSpace(string(b)) == "deny"
	f.Newuidmap, _ = exec.LookPath("newuidmap")
	f.Newgidmap, _ = exec.LookPath("newgidmap")
	f.SubUID = subIDs("/etc/subuid", f.UID)
	f.SubGID = subIDs("/etc/subgid", f.UID)
	if f.filtered {
		f.Fatal = fatalCalls()
	}
	if !slices.Contains(f.Fatal, "landlock_create_ruleset") {
		f.Landlock = sys.LandlockABI()
	}
	if st, err := os.Stat(share); err == nil {
		for _, above := range []string{"/", "/proc"} {
			if is, err := os.Stat(above); err == nil && os.SameFile(st, is) {
				f.ShareHoldsProc = true
			}
		}
	}
	if !slices.Contains(f.Fatal, "open_tree") && !slices.Contains(f.Fatal, "pivot_root") {
		f.NoPivotRoot = f.Has(SysAdmin) && sys.PivotRootFiltered()
	}
	f.Rooms = rooms(maps || f.UID != 0 || !f.Initial())
	if maps || !f.Has(SysAdmin) {
		f.UserNamespaces = f.userNamespaces()
	}
	return f, nil
}

func (f *Facts) readStatus() error {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("read our own status: %w; the daemon needs /proc", err)
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch name {
		case "Uid", "Gid":
			ids := strings.Fields(value)
			f.Mixed = f.Mixed || slices.ContainsFunc(ids, func(id string) bool { return id != ids[0] })
		case "CapEff":
			n, _ := strconv.ParseUint(value, 16, 64)
			f.Effective = Caps(n)
		case "CapBnd":
			n, _ := strconv.ParseUint(value, 16, 64)
			f.Bounding = Caps(n)
		case "NoNewPrivs":
			f.NoNewPrivs = value == "1"
		case "Seccomp":
			f.Seccomp, f.filtered = true, value == "2"
		}
	}
	return nil
}

// userNamespaces tries to make a user namespace: sysctls, security modules, a container's filter and a chroot may all forbid it, and
// only a try shows it. What a sysctl explains is said by its name.
func (f *Facts) userNamespaces() string {
	c := exec.Command("/proc/self/exe")
	c.Env = []string{StageEnv + "=" + stageProbe}
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
	err := c.Run()
	switch {
	case err == nil:
	case readNumber("/proc/sys/user/max_user_namespaces", 1) == 0:
		return "sysctl user.max_user_namespaces is 0"
	case !f.Has(SysAdmin) && readNumber("/proc/sys/kernel/unprivileged_userns_clone", 1) == 0:
		return "sysctl kernel.unprivileged_userns_clone is 0"
	case errors.Is(err, unix.ENOSPC):
		return "the limit of user namespaces is reached (sysctl user.max_user_namespaces)"
	case errors.Is(err, unix.EPERM):
		return "the kernel, a container's filter, a chroot or a security module forbids it: operation not permitted"
	default:
		return "making one fails: " + clean(err).Error()
	}
	// Ubuntu's AppArmor lets everybody make one, but takes all capabilities in it away.
	if !f.Has(SysAdmin) && readNumber("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", 0) == 1 {
		return "sysctl kernel.apparmor_restrict_unprivileged_userns is 1: write an AppArmor profile that allows userns for the daemon"
	}
	return ""
}

func readNumber(path string, otherwise uint64) uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return otherwise
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return otherwise
	}
	return n
}

func readMap(path string) (idmap.Map, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return idmap.Map{{Inside: 0, Outside: 0, Count: 1<<32 - 1}}, nil // a kernel without user namespaces
	}
	if err != nil {
		return nil, fmt.Errorf("read the id map: %w", err)
	}
	return parseMap(b)
}

// parseMap reads the format of /proc/PID/uid_map (user_namespaces(7)).
func parseMap(b []byte) (m idmap.Map, err error) {
	for line := range strings.Lines(string(b)) {
		var r idmap.Range
		if _, err := fmt.Sscan(line, &r.Inside, &r.Outside, &r.Count); err != nil {
			return nil, fmt.Errorf("read the id map's line %q: %w", line, err)
		}
		m = append(m, r)
	}
	return m, nil
}

// subIDs are the ranges that a file in the format of subuid(5) gives to a user, by name or by number. /etc/subgid too is looked up by
// the user.
func subIDs(path string, uid uint32) (subs []idmap.Sub) {
	names := []string{strconv.Itoa(int(uid))}
	if u, err := user.LookupUid(int(uid)); err == nil {
		names = append(names, u.Name)
	}
	entries, err := user.ParseSubIDFileFilter(path, func(s user.SubID) bool { return slices.Contains(names, s.Name) })
	if err != nil {
		return nil
	}
	for _, e := range entries {
		subs = append(subs, idmap.Sub{First: uint32(e.SubID), Count: uint32(e.Count)})
	}
	return subs
}

// Has reports whether a capability is effective.
func (f *Facts) Has(c Cap) bool { return f.Effective.Has(c) }

// Initial reports whether we are in the initial user namespace, as far as its map tells: it maps every id.
func (f *Facts) Initial() bool { return f.UIDMap.Ids() == 1<<32-1 }

// MapIsSingle reports whether exactly one group id is mapped in our user namespace.
func (f *Facts) MapIsSingle() bool { return f.GIDMap.Ids() == 1 }

// Cap is the number of a capability, and Caps a set of them: bit n is capability n.
type (
	Cap  uint
	Caps uint64
)

// Has reports whether the set has a capability.
func (s Caps) Has(c Cap) bool { return s>>c&1 == 1 }

// Of makes a set.
func Of(caps ...Cap) (s Caps) {
	for _, c := range caps {
		s |= 1 << c
	}
	return s
}

// The capabilities that this package speaks of (linux/capability.h).
const (
	Chown         Cap = unix.CAP_CHOWN
	DacOverride   Cap = unix.CAP_DAC_OVERRIDE
	DacReadSearch Cap = unix.CAP_DAC_READ_SEARCH
	Fowner        Cap = unix.CAP_FOWNER
	Fsetid        Cap = unix.CAP_FSETID
	Setgid        Cap = unix.CAP_SETGID
	Setuid        Cap = unix.CAP_SETUID
	Setpcap       Cap = unix.CAP_SETPCAP
	SysChroot     Cap = unix.CAP_SYS_CHROOT
	SysAdmin      Cap = unix.CAP_SYS_ADMIN
	SysResource   Cap = unix.CAP_SYS_RESOURCE
	Mknod         Cap = unix.CAP_MKNOD
	Setfcap       Cap = unix.CAP_SETFCAP
)
