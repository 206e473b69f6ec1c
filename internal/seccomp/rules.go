package seccomp

import (
	bpf "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// Rule allows system calls. A rule without Values and And allows them whatever their arguments are.
type Rule struct {
	Reason string
	Calls  []string
	// Values, if there are any, are those of argument Arg that alone are allowed.
	Arg    uint32
	Values []uint64
	// And are further conditions, all of which have to hold.
	And []bpf.Condition
}

// Config is what the list depends on.
type Config struct {
	Action  string // kill, log or trap: what happens to a call that is not on the list
	Handles bool   // files are opened by export handle
	PID     int    // our own process: the only one that may be signalled, or whose limits may be read
}

// threadFlags are those with which the Go runtime starts a thread (runtime/os_linux.go, cloneFlags).
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD

// namespaceFlags are all that make a namespace.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// noExec is a condition that memory, whose protection is the third argument, cannot be executed: code cannot be brought in.
var noExec = []bpf.Condition{{Argument: 2, Operation: bpf.BitsNotSet, Value: unix.PROT_EXEC}}

// Rules is the allow-list.
func Rules(c Config) []Rule {
	self := []uint64{uint64(c.PID)}
	rules := []Rule{
		{Reason: "Go runtime: memory", Calls: []string{"munmap", "madvise", "mincore", "brk"}},
		{Reason: "Go runtime, guest memory: map and protect, but nothing that could be executed", Calls: []string{"mmap", "mprotect"}, And: noExec},
		{
			Reason: "Go runtime: threads may start, processes and namespaces may not", Calls: []string{"clone"},
			And: []bpf.Condition{{Argument: 0, Operation: bpf.BitsSet, Value: threadFlags}, {Argument: 0, Operation: bpf.BitsNotSet, Value: namespaceFlags}},
		},
		{Reason: "Go runtime: threads", Calls: []string{"futex", "sched_yield", "sched_getaffinity", "set_robust_list", "rseq", "gettid", "getpid", "exit", "exit_group"}},
		{Reason: "Go runtime: signals, preemption among them", Calls: []string{"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"}},
		{Reason: "Go runtime: preemption signals a thread of ours, and no other process", Calls: []string{"tgkill"}, Arg: 0, Values: self},
		{Reason: "Go runtime: time", Calls: []string{"nanosleep", "clock_nanosleep", "clock_gettime", "gettimeofday", "timer_create", "timer_settime", "timer_delete"}},
		{Reason: "Go runtime: names memory it maps; credentials: reads whether it is dumpable, the bounding set, and how capabilities follow ids; monitor: wakes up in time", Calls: []string{"prctl"}, Arg: 0, Values: []uint64{unix.PR_SET_TIMERSLACK, unix.PR_SET_VMA, unix.PR_SET_NAME, unix.PR_GET_DUMPABLE, unix.PR_CAPBSET_READ, unix.PR_GET_SECUREBITS}},
		{Reason: "Go runtime: network poller", Calls: []string{"epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd2", "pipe2"}},
		{Reason: "Go runtime: random numbers and names", Calls: []string{"getrandom", "getrlimit", "uname"}},
		{Reason: "limit of open files: ours, not another process's", Calls: []string{"prlimit64"}, Arg: 0, Values: append([]uint64{0}, self...)},

		{Reason: "front-end: its socket, descriptors in its messages, the log's socket", Calls: []string{"read", "write", "recvmsg", "sendmsg", "recvfrom", "sendto", "accept4", "shutdown", "getsockopt", "setsockopt", "getsockname", "getpeername", "close", "ppoll", "poll"}},
		{Reason: "descriptors: duplicate, and look at", Calls: []string{"dup", "dup3", "fstat", "newfstatat", "fstatat", "fstatfs"}}, // one call: fstatat is its name on arm64
		{
			Reason: "descriptors: duplicate, close-on-exec, flags, record locks; but no signal to a process on input (F_SETOWN), no lease, no pipe size", Calls: []string{"fcntl"}, Arg: 1,
			Values: []uint64{unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_GETLK, unix.F_SETLK, unix.F_SETLKW, unix.F_OFD_GETLK, unix.F_OFD_SETLK, unix.F_OFD_SETLKW, unix.F_GET_SEALS},
		},

		{Reason: "files: look up, open, attributes", Calls: []string{"statx", "openat", "openat2", "readlinkat", "faccessat2", "utimensat", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "truncate", "ftruncate"}},
		{Reason: "files: make, link, rename, remove", Calls: []string{"mkdirat", "mknodat", "symlinkat", "linkat", "unlinkat", "renameat", "renameat2"}},
		{Reason: "files: data", Calls: []string{"preadv", "preadv2", "pwritev", "pwritev2", "pread64", "pwrite64", "readv", "writev", "lseek", "fallocate", "copy_file_range", "fsync", "fdatasync", "syncfs", "sync_file_range", "fadvise64"}},
		{Reason: "files: directories", Calls: []string{"getdents64"}},
		{Reason: "files: locks", Calls: []string{"flock"}},
		{Reason: "files: extended attributes, of nodes that cannot be opened by way of a working directory per thread", Calls: []string{"fgetxattr", "flistxattr", "fsetxattr", "fremovexattr", "getxattr", "lgetxattr", "listxattr", "llistxattr", "setxattr", "lsetxattr", "removexattr", "lremovexattr", "fchdir"}},
		{Reason: "files: a working directory and umask per thread, no namespace", Calls: []string{"unshare"}, Arg: 0, Values: []uint64{unix.CLONE_FS}},
		{Reason: "credentials: a worker creates as the guest's caller", Calls: []string{"setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid", "getgroups", "geteuid", "getegid", "getuid", "getgid", "getresuid", "getresgid", "capget", "capset", "umask"}},
	}
	if c.Handles {
		rules = append(rules, Rule{Reason: "files: export handles (--inode-file-handles)", Calls: []string{"name_to_handle_at", "open_by_handle_at"}})
	}
	return rules
}
