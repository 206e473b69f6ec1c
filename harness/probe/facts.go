package probe

import "virtiofsd/harness/guestproto"

// Proc is what /proc says of every process of the daemon.
type Proc struct {
	Launcher  Process   `json:"launcher"`  // the process that started the daemon: what to compare with
	Processes []Process `json:"processes"` // the daemon's tree, the first process first
	Serving   int       `json:"serving"`   // index in Processes of the one that serves the guest
}

// Process is one process.
type Process struct {
	PID        int               `json:"pid"`
	Comm       string            `json:"comm"`
	Exe        string            `json:"exe,omitempty"`
	Root       string            `json:"root"`       // readlink of /proc/PID/root
	RootIsDir  string            `json:"root_is"`    // what that directory is: "host" (the launcher's root), "share", "other"; by device and inode
	Cwd        string            `json:"cwd"`        // readlink
	CwdIsDir   string            `json:"cwd_is"`     // as RootIsDir
	Namespaces map[string]string `json:"namespaces"` // mnt, pid, net, ipc, uts, cgroup, user → readlink
	UIDMap     string            `json:"uid_map"`    // contents, fields joined by single spaces, lines by ", "
	GIDMap     string            `json:"gid_map"`
	Setgroups  string            `json:"setgroups"` // allow or deny
	Threads    []Thread          `json:"threads"`
}

// Thread is one thread's status.
type Thread struct {
	TID        int    `json:"tid"`
	UID        [4]int `json:"uid"` // real, effective, saved, file system
	GID        [4]int `json:"gid"`
	Groups     []int  `json:"groups"`
	CapInh     uint64 `json:"cap_inh"`
	CapPrm     uint64 `json:"cap_prm"`
	CapEff     uint64 `json:"cap_eff"`
	CapBnd     uint64 `json:"cap_bnd"`
	CapAmb     uint64 `json:"cap_amb"`
	NoNewPrivs int    `json:"no_new_privs"`
	Seccomp    int    `json:"seccomp"` // 0 off, 1 strict, 2 filter
}

// Mounts is the serving process's mount namespace.
type Mounts struct {
	Mounts []Mount `json:"mounts"`
}

// Mount is one line of mountinfo.
type Mount struct {
	ID          int    `json:"id"`
	Parent      int    `json:"parent"`
	Dev         string `json:"dev"`  // major:minor
	Root        string `json:"root"` // within its file system
	Point       string `json:"point"`
	FSType      string `json:"fstype"`
	Options     string `json:"options"` // per mount
	Propagation string `json:"propagation,omitempty"`
}

// FDs are the serving process's descriptors.
type FDs struct {
	FDs []FD `json:"fds"`
}

// FD is one descriptor.
type FD struct {
	FD     int    `json:"fd"`
	Target string `json:"target"` // readlink
	Kind   string `json:"kind"`   // file, dir, socket, pipe, eventfd, memfd, char, other
	Path   bool   `json:"path"`   // O_PATH
	// Leads says where a directory's descriptor leads, by walking ".." from it: "share" (never leaves it), "host" (reaches the
	// launcher's root), "proc", "other"; empty for what is no directory.
	Leads string `json:"leads,omitempty"`
	// Outside: an open file or directory of the host that is not in the share.
	Outside bool `json:"outside,omitempty"`
}

// Owners is the host's view of entries of the share.
type Owners struct {
	Entries []Owner `json:"entries"`
}

// Owner is one entry as lstat shows it on the host.
type Owner struct {
	Path string `json:"path"` // under the directory that the step names
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
	Mode string `json:"mode"` // octal with type bits, such as "0100644"
	Rdev string `json:"rdev,omitempty"`
	// Of regular files, where they were asked for: bytes and their hash.
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// OwnersArgs are the arguments of the probe owners.
type OwnersArgs struct {
	Dir  string `json:"dir"`            // under the share's root
	Hash bool   `json:"hash,omitempty"` // sizes and hashes of regular files, too
}

// SHA256 is a file of the share as the host reads it.
type SHA256 struct {
	Path   string `json:"path"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// SHA256Args are the arguments of the probe sha256.
type SHA256Args struct {
	Path string `json:"path"` // under the share's root
}

// Outside says whether what stands beside the share is as it was.
type Outside struct {
	Entries int      `json:"entries"` // looked at
	Changed []string `json:"changed"` // changed, gone or new
}

// Log is what the daemon wrote.
type Log struct {
	Lines []string `json:"lines"`
	// Trouble are lines of a crash: panics, assertions, sanitizers, backtraces.
	Trouble []string `json:"trouble"`
}

// Exit is how the cell ended.
type Exit struct {
	Status    int      `json:"status"`           // of the daemon's first process; -1 if it was killed by us
	Signal    string   `json:"signal,omitempty"` // that ended it
	Seconds   float64  `json:"seconds"`          // from QEMU's end to the daemon's
	Killed    bool     `json:"killed"`           // it did not end by itself within the bound
	GuestDone bool     `json:"guest_done"`       // the guest said done before it powered off
	QEMU      int      `json:"qemu"`             // QEMU's exit status
	Processes []int    `json:"processes"`        // of the daemon's tree, still there
	Mounts    []string `json:"mounts"`           // new in the launcher's mount namespace
	Files     []string `json:"files"`            // socket, pid file: left beside the share
}

// HostileArgs are the arguments of probe hostile.
type HostileArgs struct {
	Only string `json:"only"` // a regular expression for names of cases; "" is all
}

// Hostile is what became of daemons that were attacked.
type Hostile struct {
	Cases []HostileCase `json:"cases"`
}

// DrivenArgs are the arguments of probe driven.
type DrivenArgs struct {
	Only string `json:"only"` // a regular expression for names of cases; "" is all
}

// Driven is what daemons answered on hosts of other kinds, and to drivers of other kinds (package
// driver). A check that is unsupported is one that the daemon has no option for; one that was
// skipped, one that the machine lacks something for.
type Driven struct {
	Checks []guestproto.Check `json:"checks"`
}

// HostileCase is one rule broken in one way (package hostile).
type HostileCase struct {
	Name      string `json:"name"`
	Side      string `json:"side"` // guest or front-end: who broke it
	Outcome   string `json:"outcome"`
	Withstood bool   `json:"withstood"`
	Detail    string `json:"detail,omitempty"`
}
