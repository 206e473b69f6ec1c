package archtest

// This is policy: do not change this data to fix a build. A new package gets its place here first, with a thought about what it may see.

// daemonOrder lists the daemon's packages from the ground up: a package may import those before it, never one behind it.
var daemonOrder = []string{
	"internal/fuseabi",
	"internal/vhostabi",
	"internal/idmap",
	"internal/config",
	"internal/sys",
	"internal/guestmem",
	"internal/virtqueue",
	"internal/vhostuser",
	"internal/fuse",
	"internal/passthrough",
	"internal/seccomp",
	"internal/sandbox",
	"internal/daemon",
}

// harnessOrder lists the harness's packages in layers: a package may import those of its own layer and of the layers before it.
var harnessOrder = [][]string{
	{"harness/claim", "harness/scenario", "harness/result", "harness/guestproto"},
	{"vm-images"},
	{"harness/probe", "harness/workload"},
	{"harness/verdict", "harness/impl", "harness/launch", "harness/qemu", "harness/frontend", "harness/winfs"},
	{"harness/hostile", "harness/driver", "harness/bench", "harness/fuzz", "harness/mutate", "harness/mutants"},
	{"harness/runner"},
	{"harness/selftest", "harness/selftest/faultd", "harness/bench/guest"},
	{"harness/report"},
}

// sharedWithHarness are the only packages of the daemon which the harness may import: formats, no behaviour.
// What the harness knows of a daemon, it learns from outside.
var sharedWithHarness = []string{"internal/fuseabi", "internal/vhostabi"}

// unsafeDirs are the only directories with files (named *_unsafe.go) that may import unsafe.
var unsafeDirs = []string{"internal/fuseabi", "internal/guestmem", "internal/sys", "harness/frontend"}

// daemonModules are the only third-party modules that cmd/virtiofsd may link: what is inside the sandbox with the guest's
// requests has to stay small enough to read.
var daemonModules = []string{
	"golang.org/x/sys",
	"golang.org/x/net", // golang.org/x/net/bpf: the assembler under go-seccomp-bpf
	"github.com/hanwen/go-fuse/v2",
	"github.com/spf13/pflag",
	"github.com/elastic/go-seccomp-bpf",
	"github.com/moby/sys/user",
	"github.com/moby/sys/mountinfo",
	"github.com/coreos/go-systemd/v22",
	"kernel.org/pub/linux/libs/security/libcap/cap",
	"kernel.org/pub/linux/libs/security/libcap/psx",
}

// exits are the calls that end the process or read its command line; libraries return errors instead.
var exits = map[string][]string{
	"os":  {"Exit"},
	"log": {"Fatal", "Fatalf", "Fatalln", "Panic", "Panicf", "Panicln"},
}
