package guestproto

// The calls a guest serves. Each constant's comment names its argument and fact types. All argument types embed [Where].
const (
	CallInfo        = "info"        // InfoArgs → Info: mounts, kernel log, virtio-fs devices, now
	CallPosixTest   = "posixtest"   // PosixTestArgs → PosixTest: go-fuse's posixtest, one verdict per test
	CallBasics      = "basics"      // BasicsArgs → Basics: one check per file-system feature
	CallBigIO       = "bigio"       // BigIOArgs → BigIO: big sequential writes and reads with sha256
	CallTree        = "tree"        // TreeArgs → Tree: many files made, listed, renamed, removed
	CallContainment = "containment" // ContainmentArgs → Containment: ways out of the share, tried
	CallIdentity    = "identity"    // IdentityArgs → Identity: owners and modes of what several users make
	CallDurability  = "durability"  // DurabilityArgs → Durability: fsync family and a full file system
	CallExec        = "exec"        // ExecArgs → Exec: run a program of the guest (busybox)
	CallWalk        = "walk"        // WalkArgs → Walk: the tree as the guest sees it, with attributes and sha256
	CallDiffer      = "differ"      // DifferArgs → Differ: random operations on the share and on a local tmpfs, compared
	CallChurn       = "churn"       // ChurnArgs → Churn: random operations of several users at once, while the host changes the same names
	CallFsx         = "fsx"         // FsxArgs → Fsx: random data operations on one file against a model in memory
	CallReadonly    = "readonly"    // ReadonlyArgs → Readonly: one check per kind of change, on a share that allows none
	CallHold        = "hold"        // HoldArgs → Hold: take hold of directories and files of the share, in each way that lasts
	CallHeld        = "held"        // HeldArgs → Held: one check per thing held, after the host has renamed or removed it
	CallMount       = "mount"       // MountArgs → Mount: mount a tag (after a hot-plug), or again with other options
	CallUnmount     = "unmount"     // MountArgs → Mount: unmount a tag
	CallSleep       = "sleep"       // SleepArgs → nothing: time for the host to do something
	CallPanic       = "panic"       // nothing → Error: the agent panics in the call on purpose (tests of the harness)
	CallPowerOff    = "poweroff"    // nothing → done: unmount all, power off

	// For people, and so no step of a scenario (not among Calls): a program of the guest joined to the host's own streams.
	CallSession = "session" // SessionArgs → SessionEnd: output messages until the program ends
	CallInput   = "input"   // Input, to the session that runs; no answer
)

// Calls lists every call name that a guest serves.
func Calls() []string {
	return []string{
		CallInfo, CallPosixTest, CallBasics, CallBigIO, CallTree, CallContainment, CallIdentity, CallDurability, CallExec,
		CallWalk, CallDiffer, CallChurn, CallFsx, CallReadonly, CallHold, CallHeld, CallMount, CallUnmount, CallSleep, CallPanic, CallPowerOff,
	}
}

// Where says on which share and in which directory of it a call works.
type Where struct {
	// Share is the tag; "" is the first share of the kernel command line.
	Share string `json:"share,omitempty"`
	// Dir is a directory under the share's root, made if missing; "" is a directory named after the call.
	Dir string `json:"dir,omitempty"`
	// Local works on a tmpfs of the guest instead of a share: the control experiment.
	Local bool `json:"local,omitempty"`
}

// Status is the outcome of one check in the guest.
type Status string

// The statuses of a [Check].
const (
	StatusPass        Status = "pass"
	StatusFail        Status = "fail"        // the share behaved otherwise than a local file system does
	StatusSkip        Status = "skip"        // the check itself declined, Detail says why
	StatusUnsupported Status = "unsupported" // the share refused the operation as not supported (ENOSYS, EOPNOTSUPP), honestly
)

// Check is one thing looked at.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Detail is one line: what was seen and what was expected. Empty for a pass.
	Detail string `json:"detail,omitempty"`
	// Errno is the symbolic errno that the operation under test ended with, "" for success.
	Errno string `json:"errno,omitempty"`
	// Seconds the check took.
	Seconds float64 `json:"seconds"`
}

// Hello is what the agent knows once it is ready to serve.
type Hello struct {
	Release string  `json:"release"` // uname -r
	Version string  `json:"version"` // uname -v
	Machine string  `json:"machine"` // uname -m
	Cmdline string  `json:"cmdline"` // of the kernel
	CPUs    int     `json:"cpus"`
	MemMiB  int     `json:"mem_mib"`
	Uptime  float64 `json:"uptime"` // seconds from kernel start to this message
	// Modules are the kernel modules that the agent loaded, in order; empty where all is built in.
	Modules []string `json:"modules"`
	Mounts  []Mount  `json:"mounts"`
	Devices []Device `json:"devices"`
	// Busybox says whether the image has a shell for exec.
	Busybox bool `json:"busybox"`
}

// Mount is one attempt to mount a tag, and what the kernel says about the mount.
type Mount struct {
	Tag     string `json:"tag"`
	Dir     string `json:"dir"`               // where it is mounted
	Options string `json:"options,omitempty"` // as asked for
	OK      bool   `json:"ok"`
	Errno   string `json:"errno,omitempty"` // why not
	// Effective are the options of /proc/self/mountinfo (mount and super-block options, comma-separated).
	Effective string `json:"effective,omitempty"`
	// Dev is major:minor of the mount.
	Dev string `json:"dev,omitempty"`
}

// Device is one virtio-fs device that the guest's kernel found.
type Device struct {
	Name string `json:"name"` // virtio0 …
	// Tag as /sys/fs/virtiofs shows it (Linux ≥ 6.9), or "".
	Tag    string `json:"tag,omitempty"`
	Driver string `json:"driver,omitempty"` // "virtiofs" once bound
	// Features are the negotiated virtio feature bits, lowest first, as the string of 0 and 1 of /sys.
	Features string `json:"features"`
	// RequestQueues counts the device's request interrupts in /proc/interrupts, -1 if they cannot be told.
	RequestQueues int `json:"request_queues"`
}

// InfoArgs asks for the last KernelLogLines lines of the kernel log (0: 200).
type InfoArgs struct {
	KernelLogLines int `json:"kernel_log_lines,omitempty"`
}

// Info is the guest's state now.
type Info struct {
	Hello
	ProcMounts string   `json:"proc_mounts"`
	KernelLog  []string `json:"kernel_log"`
	// KernelTrouble are the lines of the whole kernel log that tell of a fault: BUG, WARNING, Oops, hung task, virtio-fs errors.
	KernelTrouble []string `json:"kernel_trouble"`
}

// PosixTestArgs selects posixtest's tests by name; none is all.
type PosixTestArgs struct {
	Where
	Tests []string `json:"tests,omitempty"`
	Skip  []string `json:"skip,omitempty"` // tests that are only recorded as left out
}

// PosixTest has one check per sub-test of github.com/hanwen/go-fuse/v2/posixtest.
type PosixTest struct {
	Checks []Check `json:"checks"`
	// Output is the tests' own log, bounded to its last 64 KiB.
	Output string `json:"output,omitempty"`
}

// BasicsArgs selects checks by name; none is all.
type BasicsArgs struct {
	Where
	Tests []string `json:"tests,omitempty"`
}

// Basics has one check per file-system feature.
type Basics struct {
	Checks []Check `json:"checks"`
}

// BigIOArgs sizes the transfer. Bytes 0 is 128 MiB, Block 0 is 1 MiB. Seed makes the data: the same seed gives the same bytes.
type BigIOArgs struct {
	Where
	Name  string `json:"name,omitempty"` // file's name, "" is "big"
	Bytes int64  `json:"bytes,omitempty"`
	Block int    `json:"block,omitempty"`
	Seed  int64  `json:"seed,omitempty"`
	// ReadOnly reads and hashes an existing file, which the host made, and writes nothing.
	ReadOnly bool `json:"read_only,omitempty"`
	// Direct uses O_DIRECT.
	Direct bool `json:"direct,omitempty"`
}

// BigIO says what was written and read. The file is left for the host to hash: Path is under the share's root.
type BigIO struct {
	Path        string  `json:"path"`
	Bytes       int64   `json:"bytes"`
	WroteSHA256 string  `json:"wrote_sha256,omitempty"`
	ReadSHA256  string  `json:"read_sha256"` // after dropping the guest's caches
	WriteS      float64 `json:"write_s,omitempty"`
	FsyncS      float64 `json:"fsync_s,omitempty"`
	ReadS       float64 `json:"read_s"`
	Errno       string  `json:"errno,omitempty"` // of the step that failed
	Failed      string  `json:"failed,omitempty"`
}

// TreeArgs sizes the tree: Files 0 is 10,000; PerDir 0 is 1,000.
type TreeArgs struct {
	Where
	Files  int `json:"files,omitempty"`
	PerDir int `json:"per_dir,omitempty"`
	// Keep leaves the renamed tree for the host to count, instead of removing it.
	Keep bool `json:"keep,omitempty"`
}

// Tree counts what each phase did and saw. All is well when Made = Listed = Renamed = ListedAfter = Removed = Files,
// Left is 0 and Wrong is empty.
type Tree struct {
	Files       int                `json:"files"`
	Made        int                `json:"made"`
	Listed      int                `json:"listed"`
	Renamed     int                `json:"renamed"`
	ListedAfter int                `json:"listed_after"`
	Removed     int                `json:"removed"`
	Left        int                `json:"left"`
	Wrong       []string           `json:"wrong"` // the first 20 surprises: missing, double or foreign names, errnos
	Seconds     map[string]float64 `json:"seconds"`
}

// ContainmentArgs names what the host has prepared.
type ContainmentArgs struct {
	Where
	// Secret is the content of the sentinel file which the host planted outside the share.
	Secret string `json:"secret"`
	// Outside are absolute host paths of the sentinel (or of its directory): targets for links that the guest makes.
	Outside []string `json:"outside"`
	// UpPath is a relative path that leads from the share's root to the sentinel on the host, such as "../outside/sentinel".
	UpPath string `json:"up_path,omitempty"`
	// HostLinks are names under Dir of symbolic links that the host made and that point out of the share.
	HostLinks []string `json:"host_links,omitempty"`
	// HostRace is the name under Dir of an entry which the host keeps exchanging between a directory and a symbolic link to the
	// sentinel's directory, with SentinelName in both; the guest opens it for RaceSeconds.
	HostRace     string  `json:"host_race,omitempty"`
	SentinelName string  `json:"sentinel_name,omitempty"`
	RaceSeconds  float64 `json:"race_seconds,omitempty"`
	// Forbidden are names under Dir of files that the host made and that nobody here may read.
	Forbidden []string `json:"forbidden,omitempty"`
}

// Containment is what the attempts gave.
type Containment struct {
	Attempts []Attempt `json:"attempts"`
	// SentinelRead is true when any attempt saw Secret.
	SentinelRead bool `json:"sentinel_read"`
	// Escaped names the attempts that reached, or seem to have reached, something outside the share.
	Escaped []string `json:"escaped"`
	// RaceOpens counts the successful opens of the race, all inside.
	RaceOpens int `json:"race_opens"`
}

// Attempt is one way out, tried.
type Attempt struct {
	Name    string `json:"name"`
	Errno   string `json:"errno,omitempty"`
	Saw     string `json:"saw,omitempty"` // file type, first bytes, link target: what came back
	Escaped bool   `json:"escaped,omitempty"`
	Note    string `json:"note,omitempty"`
}

// Cred is an identity in the guest.
type Cred struct {
	UID    int   `json:"uid"`
	GID    int   `json:"gid"`
	Groups []int `json:"groups,omitempty"`
}

// IdentityArgs lists the identities that make files; none is a default set: root, two users, one of them with supplementary
// groups, and ids above 65535.
type IdentityArgs struct {
	Where
	Creds []Cred `json:"creds,omitempty"`
	// SkipNodes leaves device nodes out.
	SkipNodes bool `json:"skip_nodes,omitempty"`
}

// Identity has one entry per creation. Files are left for the host to look at, under Dir.
type Identity struct {
	Dir     string      `json:"dir"` // under the share's root
	Created []Ownership `json:"created"`
	// Differ counts entries whose view on the share is not that on the guest's tmpfs.
	Differ int `json:"differ"`
}

// Ownership is what one creation gave on the share, and the same on a tmpfs of the guest (the control).
type Ownership struct {
	Path   string `json:"path"` // under Identity.Dir
	Kind   string `json:"kind"` // file dir symlink fifo socket char block tmpfile link
	As     Cred   `json:"as"`
	Umask  string `json:"umask"`
	Parent string `json:"parent"` // plain, setgid, sticky, acl: what is special about the directory
	Share  View   `json:"share"`
	Local  View   `json:"local"`
	Same   bool   `json:"same"`
}

// View is an inode's owner and mode as stat shows them, or the errno of the creation.
type View struct {
	Errno string `json:"errno,omitempty"`
	UID   int    `json:"uid"`
	GID   int    `json:"gid"`
	Mode  string `json:"mode"` // octal, with the type bits, such as "0100644"
	Rdev  string `json:"rdev,omitempty"`
	ACL   string `json:"acl,omitempty"` // hex of system.posix_acl_access, where there is one
}

// DurabilityArgs says how full the share may be made: FillBytes > 0 writes until ENOSPC or that many bytes.
type DurabilityArgs struct {
	Where
	FillBytes int64 `json:"fill_bytes,omitempty"`
}

// Durability says what the fsync family and a full file system answered.
type Durability struct {
	Checks []Check `json:"checks"`
	// Filled is the number of bytes acknowledged (written and fsynced) before the first error.
	Filled     int64  `json:"filled,omitempty"`
	FillErrno  string `json:"fill_errno,omitempty"`  // ENOSPC where the share is full
	FillSHA256 string `json:"fill_sha256,omitempty"` // of the acknowledged bytes of FillPath
	FillPath   string `json:"fill_path,omitempty"`   // left for the host when FillBytes > 0
}

// ExecArgs is a program of the guest, run as root in Dir of the share.
type ExecArgs struct {
	Where
	Argv []string `json:"argv"`
	// Shell, when Argv is empty, is run by busybox sh -c.
	Shell    string  `json:"shell,omitempty"`
	Stdin    string  `json:"stdin,omitempty"`
	As       *Cred   `json:"as,omitempty"`
	TimeoutS float64 `json:"timeout_s,omitempty"` // 0 is 60
}

// Exec is how the program ended. Stdout and Stderr are bounded to their first MiB.
type Exec struct {
	Status  int     `json:"status"` // exit status, or 128+signal
	Signal  string  `json:"signal,omitempty"`
	Stdout  string  `json:"stdout"`
	Stderr  string  `json:"stderr"`
	Seconds float64 `json:"seconds"`
}

// WalkArgs lists a tree. Hash adds the sha256 of regular files.
type WalkArgs struct {
	Where
	Hash bool `json:"hash,omitempty"`
	// Fresh drops pages, names and inodes first: what is seen is what the share holds, not what the guest remembers of it.
	Fresh bool `json:"fresh,omitempty"`
	Max   int  `json:"max,omitempty"` // entries; 0 is 100,000
}

// Walk is the tree, sorted by path.
type Walk struct {
	Entries []Entry `json:"entries"`
	Cut     bool    `json:"cut,omitempty"` // more than Max
}

// Entry is one inode of a [Walk].
type Entry struct {
	Path   string `json:"path"` // under Where.Dir
	View          // owner, mode, device
	Ino    uint64 `json:"ino"`
	Nlink  uint64 `json:"nlink"`
	Size   int64  `json:"size"`
	MTime  string `json:"mtime"` // seconds.nanoseconds
	Target string `json:"target,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// DifferArgs sizes the differential workload: Ops operations drawn from Seed by Users identities.
type DifferArgs struct {
	Where
	Seed  int64 `json:"seed"`
	Ops   int   `json:"ops"`             // 0 is 2,000
	Max   int   `json:"max,omitempty"`   // differences to report, 0 is 20
	Skip  []int `json:"skip,omitempty"`  // numbers of operations to leave out: to shrink a finding
	Trace bool  `json:"trace,omitempty"` // with the last 20 operations before each difference
	// Expect lists names of known differences to pass over (see Difference.Name).
	Expect []string `json:"expect,omitempty"`
	// NoTrusted uses user attributes for trusted ones, which the host asks CAP_SYS_ADMIN for.
	NoTrusted bool `json:"no_trusted,omitempty"`
}

// Differ is the outcome: Ops done, and what differed.
type Differ struct {
	Ops         int            `json:"ops"`
	Seconds     float64        `json:"seconds"`
	Differences []Difference   `json:"differences"`
	Total       int            `json:"total"` // of differences, those beyond Max too
	Known       map[string]int `json:"known,omitempty"`
	ByOp        map[string]int `json:"by_op"`  // how often each operation ran
	Errnos      map[string]int `json:"errnos"` // how often each outcome was seen locally
}

// Difference is one operation whose result on the share is not that of the tmpfs.
type Difference struct {
	N     int      `json:"n"`    // the operation's number
	Name  string   `json:"name"` // operation and what differed, such as "rename.errno"
	Op    string   `json:"op"`   // in words, enough to repeat it by hand
	Share string   `json:"share"`
	Local string   `json:"local"`
	Trace []string `json:"trace,omitempty"`
}

// ChurnArgs sizes the workload: the processes of [DifferArgs] draw operations from Seed for so many seconds (0 is 10), all at once, in the
// directory "tree" of Where.Dir.
type ChurnArgs struct {
	Where
	Seed    int64   `json:"seed"`
	Seconds float64 `json:"seconds,omitempty"`
	// Secret is how a file outside of the share begins, to which the host makes links; "" looks for nothing.
	Secret    string `json:"secret,omitempty"`
	NoTrusted bool   `json:"no_trusted,omitempty"` // as in DifferArgs
}

// Churn is what came of it.
type Churn struct {
	Ops     int            `json:"ops"`
	Seconds float64        `json:"seconds"`
	ByOp    map[string]int `json:"by_op"`
	Errnos  map[string]int `json:"errnos"` // how often each result was seen, "" is success
	// Strangers counts results that no file system gives to such operations; Strange are the first of them.
	Strangers int      `json:"strangers"`
	Strange   []string `json:"strange"`
	// HostChanges is how often the host changed something meanwhile; the host fills it in.
	HostChanges int `json:"host_changes"`
}

// FsxArgs sizes the data checker: Ops operations on a file of at most MaxBytes.
type FsxArgs struct {
	Where
	Seed     int64 `json:"seed"`
	Ops      int   `json:"ops"`                 // 0 is 2,000
	MaxBytes int   `json:"max_bytes,omitempty"` // 0 is 256 KiB
	NoMmap   bool  `json:"no_mmap,omitempty"`   // cache=never without allow-mmap refuses shared maps
	Direct   bool  `json:"direct,omitempty"`    // O_DIRECT for read and write
}

// Fsx is the outcome. Mismatch is empty when every byte read was the byte written.
type Fsx struct {
	Ops         int            `json:"ops"`
	Seconds     float64        `json:"seconds"`
	ByOp        map[string]int `json:"by_op"`
	Unsupported []string       `json:"unsupported,omitempty"` // operations that the share refuses
	Mismatch    string         `json:"mismatch,omitempty"`
	Trace       []string       `json:"trace,omitempty"` // the last operations before the mismatch
	Path        string         `json:"path"`            // left for the host, under the share's root
	SHA256      string         `json:"sha256"`          // of the final content
	Size        int64          `json:"size"`
}

// ReadonlyArgs says where the host put something: Where.Dir has to hold "file" with Content and mode 0666, "dir" and "dir/inner", and
// "link", a symbolic link to file.
type ReadonlyArgs struct {
	Where
	Content string `json:"content"`
}

// Readonly has one check per kind of change, and some of what has to work.
type Readonly struct {
	Checks []Check `json:"checks"`
}

// MountArgs is a tag and mount options.
type MountArgs struct {
	Tag     string `json:"tag"`
	Options string `json:"options,omitempty"`
	Dir     string `json:"dir,omitempty"` // where to; "" is /mnt/TAG
}

// SessionArgs is a program of the guest, run as root in Dir. With a terminal, all it writes is Stdout.
type SessionArgs struct {
	Argv     []string  `json:"argv"`
	Dir      string    `json:"dir"`
	Terminal *Terminal `json:"terminal,omitempty"` // nil: pipes
}

// Terminal is what the program is to believe of the terminal.
type Terminal struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
	Term string `json:"term,omitempty"` // $TERM
}

// SessionEnd is how the program ended: its exit status, 128+signal, 127 or 126 where it could not be started.
type SessionEnd struct {
	Status int `json:"status"`
}

// Input goes to the program: bytes, the end of them, or the terminal's new size.
type Input struct {
	Data []byte    `json:"data,omitempty"`
	EOF  bool      `json:"eof,omitempty"`
	Size *Terminal `json:"size,omitempty"`
}

// The streams of an [Output].
const (
	Started = 0 // no data: the program runs, and takes input
	Stdout  = 1
	Stderr  = 2
)

// Output is the Facts of an output message.
type Output struct {
	Stream int    `json:"stream"`
	Data   []byte `json:"data,omitempty"`
}

// SleepArgs is how long.
type SleepArgs struct {
	Seconds float64 `json:"seconds"`
}
