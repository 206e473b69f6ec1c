package config

import (
	"virtiofsd/internal/idmap"
)

// Version is the daemon's version.
const Version = "0.1.0"

// MinFiles is the least limit of open files to start with: the queues' and the memory's descriptors, and some for the guest.
const MinFiles = 512

// Sandbox modes.
const (
	SandboxNamespace = "namespace"
	SandboxPivotRoot = "pivot_root"
	SandboxChroot    = "chroot"
	SandboxNone      = "none"
)

// Options is a parsed command line.
type Options struct {
	// Actions that print and exit.
	Help, Version, PrintCapabilities, PrintPlan, Check, JSON bool
	Completion                                               string // "", or a shell

	SocketPath  string
	SocketGroup string
	FD          int // a listening socket, -1 for none
	ReadyFD     int // gets a line when a front-end may connect, -1 for none
	SharedDir   string
	Tag         string

	Sandbox         string
	Seccomp         string
	Landlock        string // auto, on, off
	ReportFD        int    // gets what the sandbox reached as JSON, -1 for none
	UIDMap, GIDMap  idmap.Map
	NoFailSetgroups bool
	ModCaps         string
	RlimitNofile    uint64
	RlimitNofileSet bool

	Cache                                     string
	AllowMmap, AllowDirectIO                  bool
	Xattr                                     bool
	XattrMap                                  string
	PosixACL, SecurityLabel                   string // never, auto, always
	Writeback, Readonly, PreserveNoatime      bool
	NoReaddirplus, AnnounceSubmounts          bool
	KillprivV2                                bool
	InodeFileHandles                          string
	TranslateUID, TranslateGID                []string
	SingleUser                                string // "", or "caller", or UID:GID of the guest
	Flock, PosixLock                          bool
	MigrationMode, MigrationOnError           string
	MigrationVerifyHandles, MigrationConfirms bool

	ThreadPoolSize int
	RequestQueues  int
	PollMicros     int
	KeepListening  bool

	LogLevel  string
	LogFormat string // text, json
	Syslog    bool
	StatsFD   int // gets counters, -1 for none
}

// Defaults are the options of an empty command line.
func Defaults() Options {
	return Options{
		FD: -1, ReportFD: -1, ReadyFD: -1, StatsFD: -1, Sandbox: SandboxNamespace, Seccomp: "kill", Landlock: "auto", Cache: "auto", AnnounceSubmounts: true, InodeFileHandles: "never",
		KillprivV2: true, PosixACL: "never", SecurityLabel: "never", LogLevel: "info", LogFormat: "text", RequestQueues: 64, PollMicros: 50,
		MigrationMode: "find-paths", MigrationOnError: "abort",
	}
}

// Workers is how many threads of a queue may serve at once by choice. Two copy faster than one does, and wait for the memory meanwhile: who has
// polling off would rather spare the processor time.
func (o Options) Workers() int {
	switch {
	case o.ThreadPoolSize > 0:
		return o.ThreadPoolSize
	case o.PollMicros == 0:
		return 1
	}
	return 2
}
