package selftest

import (
	"time"

	"virtiofsd/harness/selftest/faultd"
)

// Plant is a fault and who must find it.
type Plant struct {
	Fault    string // of package faultd
	Scenario string // of testdata
	Claim    string // that has to fail; "" for an honest daemon
	// Also are claims, or patterns of path.Match, that the fault may break as well.
	Also []string
	// Patience bounds the guest's boot where the fault is that nobody answers; 0 is the runner's own bound.
	Patience time.Duration
	// Agent makes the fault one of the guest's agent: no claim may hold on what such a guest says.
	Agent bool
}

// everything stands for a fault after which the guest can say no more.
var everything = []string{"*/*"}

// Plants is the table.
func Plants() []Plant {
	const sandbox, files, links, readonly, maps = "a-sandbox", "a-files", "e-links", "a-readonly", "a-maps"
	return []Plant{
		{Fault: faultd.None, Scenario: sandbox},
		{Fault: faultd.None, Scenario: readonly},
		{Fault: faultd.None, Scenario: maps},
		{Fault: faultd.NoneTraced, Scenario: sandbox},
		{Fault: faultd.NoneTraced, Scenario: files},
		{Fault: faultd.NoneTraced, Scenario: links},

		{Fault: "never-ready", Scenario: sandbox, Claim: "start/ready"},
		{Fault: "exits-early", Scenario: sandbox, Claim: "start/ready"},
		{Fault: "exits-silently", Scenario: sandbox, Claim: "start/ready"},
		{Fault: "leaves-at-connect", Scenario: sandbox, Claim: "start/ready", Also: everything},
		{Fault: "deaf", Scenario: readonly, Claim: "start/ready", Also: everything, Patience: 20 * time.Second},
		{Fault: "sandbox-late", Scenario: sandbox, Claim: "start/sandbox-before-guest", Also: []string{"privilege/parent"}},

		{Fault: "no-sandbox", Scenario: sandbox, Claim: "containment/root", Also: []string{"containment/namespace-*", "containment/one-mount", "containment/mount-nosuid-nodev", "containment/descriptors"}},
		{Fault: "chroots", Scenario: sandbox, Claim: "containment/namespace-mount", Also: []string{"lifecycle/no-socket-left", "containment/namespace-*", "containment/one-mount", "containment/mount-nosuid-nodev", "containment/descriptors"}},
		{Fault: "shares-the-parent", Scenario: sandbox, Claim: "containment/root", Also: []string{"containment/descriptors", "containment/host-symlink"}},
		{Fault: "shares-net", Scenario: sandbox, Claim: "containment/namespace-net"},
		{Fault: "shares-pid", Scenario: sandbox, Claim: "containment/namespace-pid"},
		{Fault: "shares-ipc", Scenario: sandbox, Claim: "containment/namespace-ipc-uts-cgroup"},
		{Fault: "shares-uts", Scenario: sandbox, Claim: "containment/namespace-ipc-uts-cgroup"},
		{Fault: "shares-cgroup", Scenario: sandbox, Claim: "containment/namespace-ipc-uts-cgroup"},
		{Fault: "mounts-plainly", Scenario: sandbox, Claim: "containment/mount-nosuid-nodev"},
		{Fault: "keeps-the-old-root", Scenario: sandbox, Claim: "containment/one-mount", Also: []string{"containment/mount-nosuid-nodev"}},
		{Fault: "keeps-a-descriptor", Scenario: sandbox, Claim: "containment/descriptors"},
		{Fault: "writes-beside", Scenario: sandbox, Claim: "containment/outside-unchanged"},
		{Fault: "follows-links", Scenario: links, Claim: "containment/host-symlink", Also: []string{"containment/symlink", "containment/outside-unchanged"}},
		{Fault: "writable", Scenario: readonly, Claim: "containment/mount-readonly"},

		{Fault: "keeps-groups", Scenario: sandbox, Claim: "privilege/groups"},
		{Fault: "keeps-groups-in-a-thread", Scenario: sandbox, Claim: "privilege/groups"},
		{Fault: "keeps-sys-admin", Scenario: sandbox, Claim: "privilege/capabilities", Also: []string{"privilege/bounding"}},
		{Fault: "keeps-capabilities", Scenario: sandbox, Claim: "privilege/capabilities", Also: []string{"privilege/no-read-search", "privilege/parent"}},
		{Fault: "keeps-bounding", Scenario: sandbox, Claim: "privilege/bounding"},
		{Fault: "parent-keeps-capabilities", Scenario: sandbox, Claim: "privilege/parent"},
		{Fault: "no-new-privs-unset", Scenario: sandbox, Claim: "privilege/no-new-privs", Also: []string{"privilege/seccomp"}},
		{Fault: "no-seccomp", Scenario: sandbox, Claim: "privilege/seccomp"},
		{Fault: "keeps-read-search", Scenario: sandbox, Claim: "privilege/no-read-search"},
		{Fault: "forgets-maps", Scenario: maps, Claim: "privilege/not-host-root", Also: []string{"containment/namespace-user"}},

		{Fault: "squashes-owners", Scenario: files, Claim: "identity/owner-in-guest", Also: []string{"identity/*", "semantics/attributes"}},
		{Fault: "creates-as-itself", Scenario: files, Claim: "identity/owner-on-host", Also: []string{"identity/*"}},
		{Fault: "adds-setgid", Scenario: files, Claim: "identity/setgid-file", Also: []string{"identity/*"}},
		{Fault: "ignores-modes", Scenario: files, Claim: "identity/owner-in-guest", Also: []string{"identity/setgid-directory"}},
		{Fault: "makes-plain-nodes", Scenario: files, Claim: "identity/device-nodes"},

		{Fault: "hangs", Scenario: files, Claim: "semantics/tree", Also: everything},
		{Fault: "corrupts-data", Scenario: files, Claim: "semantics/big-io"},
		{Fault: "loses-names", Scenario: files, Claim: "semantics/readdir", Also: []string{"semantics/*"}},
		{Fault: "pretends-rename", Scenario: files, Claim: "semantics/rename", Also: []string{"semantics/tree", "semantics/rename-flags"}},
		{Fault: "pretends-truncate", Scenario: files, Claim: "semantics/truncate"},
		{Fault: "pretends-chmod", Scenario: files, Claim: "semantics/attributes", Also: []string{"identity/*"}},
		{Fault: "pretends-xattr", Scenario: files, Claim: "semantics/xattr"},
		{Fault: "pretends-link", Scenario: files, Claim: "semantics/hard-link", Also: []string{"identity/*"}},
		{Fault: "pretends-times", Scenario: files, Claim: "semantics/times"},
		{Fault: "empty-statfs", Scenario: files, Claim: "semantics/statfs"},
		{Fault: "refuses-fsync", Scenario: files, Claim: "durability/fsync", Also: []string{"semantics/big-io"}},
		{Fault: "refuses-syncfs", Scenario: files, Claim: "durability/syncfs"},

		{Fault: "ends-with-1", Scenario: readonly, Claim: "lifecycle/exit-status"},
		{Fault: "stays", Scenario: sandbox, Claim: "lifecycle/exit-status", Also: []string{"lifecycle/no-socket-left"}},
		{Fault: "leaves-a-process", Scenario: sandbox, Claim: "lifecycle/no-process-left", Also: []string{"privilege/parent", "privilege/groups"}},
		{Fault: "leaves-the-socket", Scenario: sandbox, Claim: "lifecycle/no-socket-left"},
		{Fault: "leaves-a-mount", Scenario: sandbox, Claim: "lifecycle/no-mount-left"},
		{Fault: "crashes-in-the-log", Scenario: sandbox, Claim: "lifecycle/quiet-log"},

		{Fault: faultd.AgentDoesNothing, Scenario: files, Claim: "semantics/tree", Agent: true},
	}
}
