package seccomp

import "golang.org/x/sys/unix"

// Rule allows system calls. A call without Args is allowed whatever its arguments are.
type Rule struct {
	Reason string
	Calls  []string
	// Args, if not empty, are values of one argument that alone are allowed.
	Arg    uint32
	Values []uint64
	// Mask makes Values the bits that must all be set.
	Mask bool
}

// threadFlags are those of pthread_create as the Go runtime uses it (runtime/os_linux.go, cloneFlags).
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD

// Rules is the allow-list.
func Rules() []Rule {
	return []Rule{
		{Reason: "Go runtime: memory", Calls: []string{"mmap", "munmap", "madvise", "mprotect", "mincore", "brk"}},
		{Reason: "Go runtime: threads may start, processes and namespaces may not", Calls: []string{"clone"}, Arg: 0, Values: []uint64{threadFlags}, Mask: true},
		{Reason: "Go runtime: threads", Calls: []string{"futex", "sched_yield", "sched_getaffinity", "set_robust_list", "rseq", "gettid", "getpid", "exit", "exit_group", "arch_prctl"}},
		{Reason: "Go runtime: signals, preemption among them", Calls: []string{"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "tgkill", "restart_syscall"}},
		{Reason: "Go runtime: time", Calls: []string{"nanosleep", "clock_nanosleep", "clock_gettime", "gettimeofday", "timer_create", "timer_settime", "timer_delete"}},
		{Reason: "Go runtime: names memory it maps", Calls: []string{"prctl"}, Arg: 0, Values: []uint64{unix.PR_SET_VMA, unix.PR_SET_NAME, unix.PR_GET_DUMPABLE, unix.PR_CAPBSET_READ}},
		{Reason: "Go runtime: network poller", Calls: []string{"epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd2", "pipe2"}},
		{Reason: "Go runtime: random numbers and limits", Calls: []string{"getrandom", "getrlimit", "prlimit64", "uname"}},

		{Reason: "front-end: its socket, descriptors in its messages, the log's socket", Calls: []string{"read", "write", "recvmsg", "sendmsg", "recvfrom", "sendto", "accept4", "shutdown", "getsockopt", "setsockopt", "getsockname", "getpeername", "close", "ppoll", "poll"}},
		{Reason: "descriptors: duplicate, close-on-exec, locks", Calls: []string{"fcntl", "dup", "dup3", "fstat", "newfstatat", "fstatfs"}},

		{Reason: "files: look up, open, attributes", Calls: []string{"statx", "openat", "openat2", "readlinkat", "faccessat2", "utimensat", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "ftruncate"}},
		{Reason: "files: make, link, rename, remove", Calls: []string{"mkdirat", "mknodat", "symlinkat", "linkat", "unlinkat", "renameat", "renameat2"}},
		{Reason: "files: data", Calls: []string{"preadv", "preadv2", "pwritev", "pwritev2", "pread64", "pwrite64", "readv", "writev", "lseek", "fallocate", "copy_file_range", "fsync", "fdatasync", "syncfs", "sync_file_range", "fadvise64"}},
		{Reason: "files: directories", Calls: []string{"getdents64"}},
		{Reason: "files: locks", Calls: []string{"flock"}},
		{Reason: "files: extended attributes, of nodes that cannot be opened by way of a working directory per thread", Calls: []string{"fgetxattr", "flistxattr", "fsetxattr", "fremovexattr", "getxattr", "lgetxattr", "listxattr", "llistxattr", "setxattr", "lsetxattr", "removexattr", "lremovexattr", "fchdir"}},
		{Reason: "files: export handles", Calls: []string{"name_to_handle_at", "open_by_handle_at"}},
		{Reason: "files: a working directory and umask per thread, no namespace", Calls: []string{"unshare"}, Arg: 0, Values: []uint64{unix.CLONE_FS}},
		{Reason: "credentials: a worker creates as the guest's caller", Calls: []string{"setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid", "getgroups", "geteuid", "getegid", "getuid", "getgid", "getresuid", "getresgid", "capget", "capset", "umask"}},
	}
}
