package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/sandbox"
	"virtiofsd/internal/seccomp"
)

// prisoner is a serving process that was taken over, in all that it has but the filter: each attempt is made in a copy of it, which puts
// the filter on first or does not.
type prisoner struct {
	Outside
	*sandbox.Entered
	plan   sandbox.Plan
	filter bool // of the attempt under way
}

// attempt is one way out. try returns nil where something outside was reached, an errno where the kernel refused, or [nothing].
type attempt struct {
	name, does string
	try        func(*prisoner) error
	// exec is what it means that a program was started, where try starts one: it ends with status 77.
	exec error
}

// nothing is what a call that was carried out has led to: nothing outside.
type nothing string

func (n nothing) Error() string { return string(n) }

const ran = 77 // exit status of a program that an attempt has started, if that matters

// attack waits for a file "go" in the share, makes all attempts twice, and writes results a line each.
func (x *prisoner) attack(w io.Writer) {
	for {
		var st unix.Stat_t
		if unix.Fstatat(x.Root, "go", &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // a copy of the process has one thread, and no collector
	deployed := x.filter
	for _, filter := range x.Filter {
		if filter && !deployed {
			continue
		}
		x.filter = filter
		for _, a := range attempts() {
			if len(x.Only) > 0 && !slices.Contains(x.Only, a.name) {
				continue
			}
			r := x.copy(a)
			for range 3 {
				if r.End == Hung { // a lock of Go's runtime was held when the process was copied
					r = x.copy(a)
				}
			}
			b, _ := json.Marshal(r)
			fmt.Fprintf(w, "insider: %s\n", b)
		}
	}
	fmt.Fprintln(w, "insider: end")
}

// stumble makes calls that are not on the filter's list, and says what came of them.
func (x *prisoner) stumble(w io.Writer) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	fmt.Fprintln(w, "insider: socket", err)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETSIG, int(unix.SIGUSR1))
	fmt.Fprintln(w, "insider: fcntl", err)
	for range 1000 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0) // on the list
		_, _ = unix.Getpgid(0)
	}
	unix.Close(fd)
	fmt.Fprintln(w, "insider: end", err)
}

// copy makes an attempt in a copy of this process.
func (x *prisoner) copy(a attempt) Result {
	r := Result{Name: a.name, Filter: x.filter}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return Result{Name: a.name, End: Hung, Why: err.Error()}
	}
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		x.child(a, p[1])
	}
	unix.Close(p[1])
	defer unix.Close(p[0])
	if errno != 0 {
		return Result{Name: a.name, End: Hung, Why: errno.Error()}
	}
	var ws unix.WaitStatus
	for range 8000 {
		if got, err := unix.Wait4(int(pid), &ws, unix.WNOHANG|unix.WALL, nil); got == int(pid) || err != nil && err != unix.EINTR {
			break
		}
		time.Sleep(time.Millisecond)
		ws = 0x7f // stopped: not ended
	}
	switch {
	case ws == 0x7f:
		_ = unix.Kill(int(pid), unix.SIGKILL)
		_, _ = unix.Wait4(int(pid), &ws, unix.WALL, nil)
		r.End, r.Why = Hung, "no answer"
	case ws.Signaled() && ws.Signal() == unix.SIGSYS:
		r.End, r.Why = Killed, "SIGSYS"
	case ws.Signaled():
		r.End, r.Why = Hung, unix.SignalName(ws.Signal())
	case ws.ExitStatus() == ran && a.exec == nil:
		r.End, r.Why = Out, "a program of the host's ran"
	case ws.ExitStatus() == ran:
		r.End, r.Why = Nothing, a.exec.Error()
	case ws.ExitStatus() != 0:
		r.End, r.Why = Nothing, "a program without more rights"
	default:
		b := make([]byte, 4096)
		n, _ := unix.Read(p[0], b)
		if json.Unmarshal(b[:max(n, 0)], &r) != nil {
			r.End, r.Why = Hung, fmt.Sprintf("status %d without an answer", ws.ExitStatus())
		}
	}
	return r
}

// child runs in the copy, on its only thread.
func (x *prisoner) child(a attempt, w int) {
	r := Result{Name: a.name, Filter: x.filter, End: Refused}
	if x.filter {
		if err := seccomp.Install(seccomp.Config{Action: "kill", Handles: x.plan.Handles, PID: os.Getpid()}); err != nil {
			r.End, r.Why = Hung, err.Error()
		}
	}
	if r.End == Refused {
		err := a.try(x)
		var no nothing
		var errno unix.Errno
		switch {
		case err == nil:
			r.End = Out
		case errors.As(err, &no):
			r.End, r.Why = Nothing, string(no)
		case errors.As(err, &errno):
			r.Why = unix.ErrnoName(errno)
		default:
			r.End, r.Why = Hung, err.Error()
		}
	}
	b, _ := json.Marshal(r)
	_, _ = unix.Write(w, b)
	unix.Exit(0)
}

// Ways to see that something outside was reached.

func (x *prisoner) rel() string { return strings.TrimPrefix(x.Plain, "/") }

// reads reads the file outside by a path.
func (x *prisoner) reads(dir int, path string, flags int) error {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return err
	}
	return x.readsFD(fd)
}

func (x *prisoner) readsFD(fd int) error {
	b := make([]byte, 100)
	n, err := unix.Read(fd, b)
	if err != nil {
		return err
	}
	if string(b[:n]) != x.Secret {
		return nothing("another file")
	}
	return nil
}

// sees finds the file outside from a directory, by its path from the root.
func (x *prisoner) sees(dir int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, x.rel(), &st, 0); err != nil {
		return err
	}
	if st.Ino != x.PlainIno || st.Dev != x.PlainDev {
		return nothing("another file")
	}
	return nil
}

// climbs follows ".." from a directory to the top and looks for the file outside.
func (x *prisoner) climbs(fd int) error {
	var st, was unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	for range 64 {
		up, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		fd, was = up, st
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if st.Ino == was.Ino && st.Dev == was.Dev {
			break
		}
	}
	return x.sees(fd)
}

// own reports whether a namespace is not the host's.
func (x *prisoner) own(kind string) bool { return x.State.Namespaces[kind] != x.Namespaces[kind] }

// hostRoot reports whether the process may read all files, whatever groups it has.
func (x *prisoner) hostRoot() bool {
	return capabilities()&(1<<unix.CAP_DAC_OVERRIDE) != 0 && !x.own("user")
}

// shared is success where the namespace is the host's, and nothing where it is not.
func (x *prisoner) shared(err error, kind string) error {
	if err == nil && x.own(kind) {
		return nothing("its own " + kind + " namespace's")
	}
	return err
}

// passed is for calls that have to fail even with the privilege, so as to harm nobody: any answer but a refusal is success.
func passed(err error) error {
	switch {
	case err == nil, !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOSYS):
		return nil
	}
	return err
}

// apart keeps mounts of an attempt that works from the attempts to come.
func (x *prisoner) apart() {
	if !x.filter {
		_ = unix.Unshare(unix.CLONE_NEWNS)
		_ = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
}

// raw is a system call with what must not be carried out by every thread, or what no package wraps.
func raw(nr uintptr, args ...any) (uintptr, error) {
	var a [6]uintptr
	for i, arg := range args {
		switch v := arg.(type) {
		case int:
			a[i] = uintptr(v)
		case uint64:
			a[i] = uintptr(v)
		case []byte:
			a[i] = reflect.ValueOf(v).Pointer()
		case []*byte:
			a[i] = reflect.ValueOf(v).Pointer()
		default:
			panic(fmt.Sprintf("argument %T", arg))
		}
	}
	r, _, e := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	runtime.KeepAlive(args)
	if e != 0 {
		return r, e
	}
	return r, nil
}

func cstring(s string) []byte { return append([]byte(s), 0) }

// here makes the share the working directory.
func (x *prisoner) here() error { return unix.Fchdir(x.Root) }

// jail is the escape from chroot by those who may chroot again: a root below the working directory leaves it outside of the root.
func (x *prisoner) jail() error {
	if err := x.here(); err != nil {
		return err
	}
	if err := unix.Mkdir("jail", 0o700); err != nil && err != unix.EEXIST {
		return err
	}
	if err := unix.Chroot("jail"); err != nil {
		return err
	}
	for range 64 {
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
	return x.reads(unix.AT_FDCWD, x.rel(), 0)
}

// mounts mounts a file system on a directory of the share, by the old interface.
func (x *prisoner) mounts(source, kind string, flags uintptr) error {
	if err := x.here(); err != nil {
		return err
	}
	x.apart()
	if err := unix.Mkdir("mnt", 0o700); err != nil && err != unix.EEXIST {
		return err
	}
	if err := unix.Mount(source, "mnt", kind, flags, ""); err != nil {
		return err
	}
	if kind == "proc" {
		return x.reads(unix.AT_FDCWD, "mnt/1/root/"+x.rel(), 0)
	}
	if kind == "" { // a bind of the root
		return x.reads(unix.AT_FDCWD, "mnt/"+x.rel(), 0)
	}
	return nil
}

// detach takes the root's mount away and looks at what is below.
func (x *prisoner) detach() error {
	x.apart()
	if err := unix.Unmount("/", unix.MNT_DETACH); err != nil {
		return err
	}
	for range 64 {
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
	return x.reads(unix.AT_FDCWD, x.rel(), 0)
}

// enters joins a namespace of the victim.
func (x *prisoner) enters(kind string, flag int) error {
	fd, err := unix.PidfdOpen(x.Victim, 0)
	if err != nil {
		return err
	}
	if err := unix.Setns(fd, flag); err != nil {
		return err
	}
	if kind == "mount" {
		return x.reads(unix.AT_FDCWD, x.Plain, 0)
	}
	if !x.own(kind) {
		return nothing("it was in that already")
	}
	return nil
}

func (x *prisoner) connects(family, kind int, to unix.Sockaddr) error {
	fd, err := unix.Socket(family, kind, 0)
	if err != nil {
		return err
	}
	switch err = unix.Connect(fd, to); {
	case err == nil && kind == unix.SOCK_DGRAM:
		return unix.Sendto(fd, []byte("out"), 0, nil)
	case family == unix.AF_VSOCK && (err == unix.ECONNRESET || err == unix.ECONNREFUSED):
		return nil
	}
	return err
}

// program is a least program, of the machine code that is for this architecture.
func program(amd64, arm64 []byte) []byte {
	code, machine := amd64, byte(62)
	if runtime.GOARCH == "arm64" {
		code, machine = arm64, 183
	}
	h := make([]byte, 120) // an ELF header and one program header (elf(5))
	copy(h, "\x7fELF\x02\x01\x01")
	h[16], h[18], h[20] = 2, machine, 1
	h[24], h[26] = 120, 0x40 // entry 0x400078
	h[32], h[52], h[54], h[56] = 64, 64, 56, 1
	h[64], h[68] = 1, 5 // to be loaded, readable and executable
	h[82], h[90] = 0x40, 0x40
	h[96], h[104] = byte(120+len(code)), byte(120+len(code))
	h[113] = 0x10
	return append(h, code...)
}

// Ender ends with status ran.
func Ender() []byte {
	return program(
		[]byte{0xbf, ran, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05},                // mov edi, ran; mov eax, exit; syscall
		[]byte{0xa0, 0x09, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0, 0, 0xd4}) // mov x0, ran; mov x8, exit; svc 0
}

// Rooted ends with status ran if it is root, and with another one if it is not.
func Rooted() []byte {
	return program(
		// mov eax, geteuid; syscall; lea edi, [rax+ran]; mov eax, exit; syscall
		[]byte{0xb8, 107, 0, 0, 0, 0x0f, 0x05, 0x8d, 0x78, ran, 0xb8, 60, 0, 0, 0, 0x0f, 0x05},
		// mov x8, geteuid; svc 0; add x0, x0, ran; mov x8, exit; svc 0
		[]byte{0xe8, 0x15, 0x80, 0xd2, 0x01, 0, 0, 0xd4, 0x00, 0x34, 0x01, 0x91, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0, 0, 0xd4})
}

func execs(fd int, path string, flags int) error {
	arg := []*byte{&cstring("x")[0], nil}
	_, err := raw(unix.SYS_EXECVEAT, fd, cstring(path), arg, []*byte{nil}, flags)
	return err
}

// userNamespace makes one and tries from there what it gives capabilities for.
func (x *prisoner) userNamespace() error {
	if err := unix.Unshare(unix.CLONE_NEWUSER | unix.CLONE_NEWNS); err != nil {
		return err
	}
	x.filter = true // it is apart already
	for _, again := range []func() error{
		x.jail, func() error { return x.mounts("/", "", unix.MS_BIND|unix.MS_REC) }, func() error { return x.mounts("proc", "proc", 0) },
		x.byHandle, x.detach,
	} {
		if err := again(); err == nil {
			return nil
		}
	}
	return nothing("a user namespace, and no way out of it")
}

func (x *prisoner) byHandle() error {
	dir, err := unix.Openat(x.Root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	fd, err := unix.OpenByHandleAt(dir, unix.NewFileHandle(x.HandleType, x.Handle), unix.O_RDONLY)
	if err != nil {
		return err
	}
	return x.readsFD(fd)
}

// capabilities reads the effective set of this thread.
func capabilities() (set uint64) {
	h, d := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	_ = unix.Capget(&h, &d[0])
	return uint64(d[0].Effective) | uint64(d[1].Effective)<<32
}

// attempts are all ways that are tried. Each was seen to work where the walls are missing, or says so in the page made from the results.
func attempts() []attempt {
	proc := func(x *prisoner, path string) string {
		return strings.NewReplacer("VICTIM", strconv.Itoa(x.Victim), "PLAIN", x.rel()).Replace(path)
	}
	path := func(p string) func(*prisoner) error {
		return func(x *prisoner) error { return x.reads(unix.AT_FDCWD, proc(x, p), 0) }
	}
	fromView := func(p string) func(*prisoner) error { // from the descriptor of /proc/self/fd
		return func(x *prisoner) error { return x.reads(x.SelfFD, proc(x, p), 0) }
	}
	setns := func(kind string, flag int) attempt {
		return attempt{name: "setns-" + kind, does: "join the " + kind + " namespace of a process outside", try: func(x *prisoner) error { return x.enters(kind, flag) }}
	}
	opens := func(p string, flags int) func(*prisoner) error {
		return func(x *prisoner) error {
			_, err := unix.Open(p, flags|unix.O_CLOEXEC, 0)
			return err
		}
	}
	return []attempt{
		// Files by their names.
		{name: "open-path", does: "read a file of the host by its path", try: path("/PLAIN")},
		{name: "stat-path", does: "see a file of the host by its path", try: func(x *prisoner) error { return x.sees(x.rootDir()) }},
		{name: "open-proc-1-root", does: "read it through /proc/1/root", try: path("/proc/1/root/PLAIN")},
		{name: "open-proc-victim-root", does: "read it through /proc/PID/root of a process outside", try: path("/proc/VICTIM/root/PLAIN")},
		{name: "open-proc-victim-fd", does: "read it through /proc/PID/fd of a process outside", try: path("/proc/VICTIM/fd/3")},
		{name: "open-proc-self-root", does: "read it through /proc/self/root", try: path("/proc/self/root/PLAIN")},
		{name: "symlink", does: "make a symbolic link to it in the share and follow that", try: func(x *prisoner) error {
			_ = unix.Unlinkat(x.Root, "link", 0)
			if err := unix.Symlinkat(x.Plain, x.Root, "link"); err != nil {
				return err
			}
			return x.reads(x.Root, "link", 0)
		}},
		{name: "hard-link", does: "link it into the share", try: func(x *prisoner) error {
			_ = unix.Unlinkat(x.Root, "linked", 0)
			return unix.Linkat(unix.AT_FDCWD, x.Plain, x.Root, "linked", 0)
		}},
		{name: "rename-in", does: "move a file of the host into the share", try: func(x *prisoner) error {
			return unix.Renameat(unix.AT_FDCWD, x.doomed("move"), x.Root, "moved")
		}},
		{name: "create", does: "make a file on the host beside the share", try: func(x *prisoner) error {
			_, err := unix.Open(filepath.Join(x.Dir, fmt.Sprintf("made-%t", x.filter)), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
			return err
		}},
		{name: "remove", does: "remove a file of the host", try: func(x *prisoner) error { return unix.Unlinkat(unix.AT_FDCWD, x.doomed("remove"), 0) }},
		{name: "write", does: "write to a file of the host", try: func(x *prisoner) error { return opens(x.doomed("write"), unix.O_WRONLY)(x) }},
		{name: "truncate", does: "truncate a file of the host", try: func(x *prisoner) error { return unix.Truncate(x.doomed("write"), 1) }},
		{name: "chmod", does: "change the mode of a file of the host", try: func(x *prisoner) error { return unix.Fchmodat(unix.AT_FDCWD, x.doomed("write"), 0o666, 0) }},
		{name: "touch", does: "change the times of a file of the host", try: func(x *prisoner) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, x.doomed("write"), []unix.Timespec{{Sec: 1}, {Sec: 1}}, 0)
		}},
		{name: "setxattr", does: "give a file of the host an extended attribute", try: func(x *prisoner) error { return unix.Setxattr(x.doomed("write"), "user.insider", []byte("x"), 0) }},
		{name: "core-pattern", does: "open /proc/sys/kernel/core_pattern for writing", try: opens("/proc/sys/kernel/core_pattern", unix.O_WRONLY)},
		{name: "open-device", does: "open a device of the host by its path", try: opens("/dev/null", unix.O_RDWR)},
		{name: "mknod", does: "make a device node in the share and open it", try: func(x *prisoner) error {
			_ = unix.Unlinkat(x.Root, "node", 0)
			if err := unix.Mknodat(x.Root, "node", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
				return err
			}
			_, err := unix.Openat(x.Root, "node", unix.O_RDWR|unix.O_CLOEXEC, 0)
			return err
		}},
		{name: "group-file", does: "read a file of the share by way of the launcher's group", try: func(x *prisoner) error {
			if x.hostRoot() {
				return nothing("root's to read anyway")
			}
			fd, err := unix.Openat(x.Root, "adm", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},

		// Directories that are at hand.
		{name: "climb-share", does: "follow `..` from the descriptor of the share", try: func(x *prisoner) error { return x.climbs(x.Root) }},
		{name: "climb-working-directory", does: "follow `..` from the working directory", try: func(x *prisoner) error {
			fd, err := unix.Open(".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return x.climbs(fd)
		}},
		{name: "climb-proc", does: "follow `..` from the descriptor of /proc/self/fd", try: func(x *prisoner) error { return x.climbs(x.SelfFD) }},
		{name: "climb-others", does: "follow `..` from every other descriptor", try: func(x *prisoner) error {
			last := error(unix.ENOTDIR)
			for fd := range 1024 {
				if fd == x.Root || fd == x.SelfFD {
					continue
				}
				switch err := x.climbs(fd); err {
				case nil:
					return nil
				case unix.EBADF, unix.ENOTDIR:
				default:
					last = err
				}
			}
			return last
		}},
		{name: "view-1-root", does: "read a file of the host from the descriptor of /proc/self/fd, through ../../1/root", try: fromView("../../1/root/PLAIN")},
		{name: "view-victim-root", does: "the same through ../../PID/root of a process outside", try: fromView("../../VICTIM/root/PLAIN")},
		{name: "view-root", does: "the same through ../root", try: fromView("../root/PLAIN")},
		{name: "view-sysctl", does: "open ../../sys/kernel/core_pattern for writing, from there", try: func(x *prisoner) error {
			_, err := unix.Openat(x.SelfFD, "../../sys/kernel/core_pattern", unix.O_WRONLY|unix.O_CLOEXEC, 0)
			return err
		}},
		{name: "handle", does: "open a file of the host by its export handle, from the share", try: func(x *prisoner) error { return x.byHandle() }},
		{name: "handle-foreign-mount", does: "open a directory of another mount by its export handle, from descriptor 0", try: func(x *prisoner) error {
			fd, err := unix.OpenByHandleAt(0, unix.NewFileHandle(x.MountType, x.MountHandle), unix.O_RDONLY)
			if err != nil {
				return err
			}
			var st unix.Stat_t
			return unix.Fstatat(fd, "null", &st, 0)
		}},
		{name: "name-to-handle", does: "ask for the export handle of a file of the host", try: func(x *prisoner) error {
			_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, x.Plain, 0)
			return err
		}},

		// Roots and mounts.
		{name: "chroot", does: "chroot below the working directory and follow `..`", try: func(x *prisoner) error { return x.jail() }},
		{name: "pivot-root", does: "pivot_root", try: func(x *prisoner) error {
			if err := x.here(); err != nil {
				return err
			}
			x.apart()
			return passed(unix.PivotRoot(".", "."))
		}},
		{name: "umount-root", does: "detach the root's mount and look below", try: func(x *prisoner) error { return x.detach() }},
		{name: "mount-tmpfs", does: "mount a tmpfs", try: func(x *prisoner) error { return x.mounts("tmpfs", "tmpfs", 0) }},
		{name: "mount-proc", does: "mount a proc and read a file of the host through it", try: func(x *prisoner) error { return x.mounts("proc", "proc", 0) }},
		{name: "mount-sysfs", does: "mount a sysfs", try: func(x *prisoner) error { return x.mounts("sysfs", "sysfs", 0) }},
		{name: "mount-cgroup", does: "mount the control groups", try: func(x *prisoner) error { return x.mounts("cgroup2", "cgroup2", 0) }},
		{name: "mount-devtmpfs", does: "mount the devices", try: func(x *prisoner) error { return x.mounts("devtmpfs", "devtmpfs", 0) }},
		{name: "bind-root", does: "bind the root into the share", try: func(x *prisoner) error { return x.mounts("/", "", unix.MS_BIND|unix.MS_REC) }},
		{name: "remount", does: "take nodev and nosuid off the share's mount", try: func(x *prisoner) error {
			x.apart()
			return unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV})
		}},
		{name: "open-tree", does: "copy the root's mount", try: func(x *prisoner) error {
			fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
			if err != nil {
				return err
			}
			return x.reads(fd, x.rel(), 0)
		}},
		{name: "move-mount", does: "move the share's mount", try: func(x *prisoner) error {
			x.apart()
			return passed(unix.MoveMount(unix.AT_FDCWD, "/", unix.AT_FDCWD, "/", 0))
		}},
		{name: "fsopen", does: "make a proc by the new interface of mount", try: func(x *prisoner) error {
			_, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
			return err
		}},

		// Namespaces.
		{name: "unshare-mount", does: "make a mount namespace", try: func(*prisoner) error { return unix.Unshare(unix.CLONE_NEWNS) }},
		{name: "unshare-network", does: "make a network namespace", try: func(*prisoner) error { return unix.Unshare(unix.CLONE_NEWNET) }},
		{name: "unshare-user", does: "make a user namespace, and use its capabilities", try: func(x *prisoner) error { return x.userNamespace() }},
		{name: "clone-user", does: "start a process in a user namespace", try: func(*prisoner) error {
			pid, err := raw(unix.SYS_CLONE, int(unix.SIGCHLD)|unix.CLONE_NEWUSER)
			if err == nil && pid == 0 {
				unix.Exit(0)
			}
			if err == nil {
				return nothing("a user namespace, and no way out of it")
			}
			return err
		}},
		setns("mount", unix.CLONE_NEWNS), setns("user", unix.CLONE_NEWUSER), setns("network", unix.CLONE_NEWNET), setns("pid", unix.CLONE_NEWPID),
		setns("ipc", unix.CLONE_NEWIPC), setns("uts", unix.CLONE_NEWUTS), setns("cgroup", unix.CLONE_NEWCGROUP),

		// Other processes.
		{name: "kill", does: "signal a process outside", try: func(x *prisoner) error { return unix.Kill(x.Victim, 0) }},
		{name: "kill-parent", does: "signal the daemon's parent", try: func(*prisoner) error {
			parent := grandparent()
			if parent <= 0 {
				return unix.ESRCH
			}
			return unix.Kill(parent, 0)
		}},
		{name: "tgkill", does: "signal a thread outside", try: func(x *prisoner) error { return unix.Tgkill(x.Victim, x.Victim, 0) }},
		{name: "pidfd-signal", does: "signal a process outside through a pidfd", try: func(x *prisoner) error {
			fd, err := unix.PidfdOpen(x.Victim, 0)
			if err != nil {
				return err
			}
			return unix.PidfdSendSignal(fd, 0, nil, 0)
		}},
		{name: "pidfd-getfd", does: "take a descriptor of a process outside", try: func(x *prisoner) error {
			fd, err := unix.PidfdOpen(x.Victim, 0)
			if err != nil {
				return err
			}
			got, err := unix.PidfdGetfd(fd, 3, 0)
			if err != nil {
				return err
			}
			return x.readsFD(got)
		}},
		{name: "ptrace", does: "trace a process outside", try: func(x *prisoner) error {
			_, err := raw(unix.SYS_PTRACE, unix.PTRACE_SEIZE, x.Victim, 0, 0)
			return err
		}},
		{name: "process-vm-readv", does: "read the memory of a process outside", try: func(x *prisoner) error {
			b := make([]byte, 8)
			iov := unix.Iovec{Base: &b[0]}
			iov.SetLen(len(b))
			_, err := unix.ProcessVMReadv(x.Victim, []unix.Iovec{iov}, []unix.RemoteIovec{{Base: uintptr(x.VictimAddr), Len: len(b)}}, 0)
			return err
		}},
		{name: "proc-mem", does: "open /proc/PID/mem of a process outside", try: func(x *prisoner) error {
			return opens(fmt.Sprintf("/proc/%d/mem", x.Victim), unix.O_RDONLY)(x)
		}},
		{name: "prlimit", does: "read the limits of a process outside", try: func(x *prisoner) error {
			var l unix.Rlimit
			return unix.Prlimit(x.Victim, unix.RLIMIT_CORE, nil, &l)
		}},
		{name: "setpriority", does: "change the priority of a process outside", try: func(x *prisoner) error { return unix.Setpriority(unix.PRIO_PROCESS, x.Victim, 0) }},
		{name: "sched-setaffinity", does: "move a process outside to another processor", try: func(x *prisoner) error {
			var set unix.CPUSet
			for cpu := range 1024 {
				set.Set(cpu)
			}
			return unix.SchedSetaffinity(x.Victim, &set)
		}},
		{name: "fork", does: "leave a process behind that outlives the daemon", try: func(x *prisoner) error {
			pid, err := raw(unix.SYS_CLONE, int(unix.SIGCHLD))
			if err == nil && pid == 0 {
				unix.Exit(0)
			}
			return x.shared(err, "pid")
		}},

		// Programs and code.
		{name: "exec", does: "start a program of the host", try: func(*prisoner) error {
			return syscall.Exec("/bin/sh", []string{"sh", "-c", fmt.Sprintf("exit %d", ran)}, nil)
		}},
		{name: "exec-share", does: "start a program that the guest wrote into the share", exec: nothing("new code, behind the same walls"), try: func(x *prisoner) error {
			_ = unix.Unlinkat(x.Root, "program", 0)
			fd, err := unix.Openat(x.Root, "program", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o755)
			if err != nil {
				return err
			}
			if _, err := unix.Pwritev(fd, [][]byte{Ender()}, 0); err != nil {
				return err
			}
			unix.Close(fd)
			return execs(x.Root, "program", 0)
		}},
		{name: "exec-memory", does: "start a program from memory", exec: nothing("new code, behind the same walls"), try: func(*prisoner) error {
			fd, err := unix.MemfdCreate("program", unix.MFD_CLOEXEC)
			if err != nil {
				return err
			}
			if _, err := unix.Write(fd, Ender()); err != nil {
				return err
			}
			return execs(fd, "", unix.AT_EMPTY_PATH)
		}},
		{name: "set-id", does: "start a set-user-id program of root's that lies in the share", try: func(x *prisoner) error {
			if os.Geteuid() == 0 {
				return nothing("it is uid 0 already, in its user namespace")
			}
			return execs(x.Root, "set-id", 0)
		}},
		{name: "map-code", does: "map memory that can be executed", try: func(*prisoner) error {
			if _, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
				return err
			}
			return nothing("new code, behind the same walls")
		}},
		{name: "personality", does: "switch the randomisation of addresses off", try: func(*prisoner) error {
			if _, err := raw(unix.SYS_PERSONALITY, 0x0040000); err != nil { // ADDR_NO_RANDOMIZE
				return err
			}
			return nothing("its own addresses")
		}},

		// Privilege.
		{name: "capset", does: "raise capabilities", try: func(*prisoner) error {
			h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			d := [2]unix.CapUserData{}
			d[0].Permitted = uint32(capabilities()) | 1<<unix.CAP_SYS_ADMIN
			d[0].Effective = d[0].Permitted
			d[1].Permitted = uint32(capabilities() >> 32)
			d[1].Effective = d[1].Permitted
			return unix.Capset(&h, &d[0])
		}},
		{name: "setuid", does: "regain capabilities by becoming uid 0", try: func(x *prisoner) error {
			_, _ = raw(unix.SYS_SETRESUID, -1, 1, -1) // who is 0 already comes back to it
			if _, err := raw(unix.SYS_SETRESUID, -1, 0, -1); err != nil {
				return err
			}
			if sandbox.Caps(capabilities())&^x.plan.Keep != 0 {
				return nil
			}
			return nothing("uid 0 without more capabilities")
		}},
		{name: "setgroups", does: "join the launcher's group again, and read a file of the share by it", try: func(x *prisoner) error {
			if x.hostRoot() {
				return nothing("root's to read anyway")
			}
			if _, err := raw(unix.SYS_SETGROUPS, 1, []byte{byte(x.Group), 0, 0, 0}); err != nil {
				return err
			}
			fd, err := unix.Openat(x.Root, "adm", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{name: "ambient", does: "raise an inheritable and ambient capability", try: func(*prisoner) error {
			h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			d := [2]unix.CapUserData{}
			if err := unix.Capget(&h, &d[0]); err != nil {
				return err
			}
			d[0].Inheritable |= 1 << unix.CAP_SYS_ADMIN
			if err := unix.Capset(&h, &d[0]); err != nil {
				return err
			}
			return unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_SYS_ADMIN, 0, 0)
		}},
		{name: "securebits", does: "change the secure bits", try: func(*prisoner) error { return unix.Prctl(unix.PR_SET_SECUREBITS, 0, 0, 0, 0) }},
		{name: "keyctl", does: "put a key into the ring of the caller's user", try: func(x *prisoner) error {
			id, err := unix.AddKey("user", "virtiofsd-insider", []byte("x"), unix.KEY_SPEC_USER_KEYRING)
			if err == nil {
				_, _ = unix.KeyctlInt(unix.KEYCTL_REVOKE, id, 0, 0, 0)
			}
			return x.shared(err, "user")
		}},
		{name: "keyring", does: "read the keys of the session", try: func(x *prisoner) error {
			_, err := unix.KeyctlBuffer(unix.KEYCTL_READ, unix.KEY_SPEC_SESSION_KEYRING, make([]byte, 64), 0)
			return err
		}},

		// The kernel.
		{name: "bpf", does: "load a program into the kernel", try: func(*prisoner) error {
			code := []byte{0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0} // r0 = 0; exit
			licence := cstring("GPL")
			attr := make([]byte, 48) // union bpf_attr of BPF_PROG_LOAD (linux/bpf.h)
			attr[0], attr[4] = unix.BPF_PROG_TYPE_SOCKET_FILTER, 2
			pointer(attr[8:], code)
			pointer(attr[16:], licence)
			_, err := raw(unix.SYS_BPF, unix.BPF_PROG_LOAD, attr, len(attr))
			runtime.KeepAlive(code)
			runtime.KeepAlive(licence)
			return err
		}},
		{name: "io-uring", does: "make a ring of io_uring", try: func(*prisoner) error {
			if _, err := raw(unix.SYS_IO_URING_SETUP, 1, make([]byte, 120)); err != nil {
				return err
			}
			return nothing("what a ring does is done with the process's rights")
		}},
		{name: "perf", does: "count what another processor does", try: func(*prisoner) error {
			_, err := unix.PerfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: 112, Config: unix.PERF_COUNT_SW_CPU_CLOCK}, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
			return err
		}},
		{name: "userfaultfd", does: "handle its own page faults", try: func(*prisoner) error {
			if _, err := raw(unix.SYS_USERFAULTFD, unix.O_CLOEXEC); err != nil {
				return err
			}
			return nothing("its own memory")
		}},
		{name: "fanotify", does: "watch the files of the host", try: func(*prisoner) error {
			_, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY)
			return err
		}},
		{name: "init-module", does: "load a module", try: func(*prisoner) error { return passed(unix.InitModule([]byte("no module"), "")) }},
		{name: "delete-module", does: "unload a module", try: func(*prisoner) error { return passed(unix.DeleteModule("no-such-module", 0)) }},
		{name: "kexec", does: "load another kernel", try: func(*prisoner) error { _, err := raw(unix.SYS_KEXEC_LOAD, 0, 17, 0, 0); return passed(err) }},
		{name: "reboot", does: "change how the machine is rebooted", try: func(*prisoner) error { return passed(unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_ON)) }},
		{name: "swapon", does: "switch a swap space on", try: func(*prisoner) error { _, err := raw(unix.SYS_SWAPON, 0, 0); return passed(err) }},
		{name: "acct", does: "switch process accounting on", try: func(*prisoner) error { return passed(unix.Acct("/no/such/file")) }},
		{name: "quotactl", does: "switch quotas on", try: func(x *prisoner) error { _, err := raw(unix.SYS_QUOTACTL_FD, x.Root, 0x800002<<8, 0, 0); return err }},
		{name: "adjtimex", does: "change the clock", try: func(*prisoner) error {
			_, err := unix.Adjtimex(&unix.Timex{Modes: 0x4000, Tick: 1})
			return passed(err)
		}},
		{name: "sethostname", does: "set the host's name", try: func(x *prisoner) error {
			var u unix.Utsname
			if err := unix.Uname(&u); err != nil {
				return err
			}
			return x.shared(unix.Sethostname([]byte(unix.ByteSliceToString(u.Nodename[:]))), "uts")
		}},
		{name: "syslog", does: "read the kernel's log", try: func(*prisoner) error {
			_, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, make([]byte, 100))
			return err
		}},
		{name: "tiocsti", does: "type into the launcher's terminal", try: func(*prisoner) error {
			last := error(nil)
			for fd := range 3 {
				if last = unix.IoctlSetPointerInt(fd, unix.TIOCSTI, ' '); last == nil {
					break
				}
			}
			return last
		}},

		// The network, and other ways to talk.
		{name: "tcp", does: "connect to a TCP port of the host", try: func(x *prisoner) error {
			return x.connects(unix.AF_INET, unix.SOCK_STREAM, &unix.SockaddrInet4{Port: x.TCP, Addr: [4]byte{127, 0, 0, 1}})
		}},
		{name: "udp", does: "send to a UDP port of the host", try: func(x *prisoner) error {
			return x.connects(unix.AF_INET, unix.SOCK_DGRAM, &unix.SockaddrInet4{Port: x.UDP, Addr: [4]byte{127, 0, 0, 1}})
		}},
		{name: "netlink", does: "list the host's network interfaces", try: func(x *prisoner) error {
			_, err := syscall.NetlinkRIB(syscall.RTM_GETLINK, unix.AF_UNSPEC)
			return x.shared(err, "network")
		}},
		{name: "packet", does: "listen to the host's network", try: func(x *prisoner) error {
			_, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
			return x.shared(err, "network")
		}},
		{name: "vsock", does: "connect to the machine that this one runs in", try: func(x *prisoner) error {
			return x.connects(unix.AF_VSOCK, unix.SOCK_STREAM, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: 1})
		}},
		{name: "unix-abstract", does: "connect to an abstract socket of the host", try: func(x *prisoner) error {
			return x.connects(unix.AF_UNIX, unix.SOCK_STREAM, &unix.SockaddrUnix{Name: x.Abstract})
		}},
		{name: "unix-path", does: "connect to a socket of the host by its path", try: func(x *prisoner) error {
			return x.connects(unix.AF_UNIX, unix.SOCK_STREAM, &unix.SockaddrUnix{Name: x.Path})
		}},
		{name: "alg", does: "use the kernel's ciphers", try: func(*prisoner) error {
			if _, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0); err != nil {
				return err
			}
			return nothing("a socket")
		}},
		{name: "shared-memory", does: "find a segment of System V shared memory of the host", try: func(x *prisoner) error { _, err := raw(unix.SYS_SHMGET, x.Shm, 0, 0); return err }},
		{name: "message-queue", does: "open a message queue of the host", try: func(x *prisoner) error {
			_, err := raw(unix.SYS_MQ_OPEN, cstring(x.MQ), unix.O_RDONLY, 0, 0)
			return err
		}},
	}
}

// rootDir opens the root directory; an error shows at its use.
func (x *prisoner) rootDir() int {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// doomed is a file of the host which one attempt, with the filter or without, may change.
func (x *prisoner) doomed(what string) string {
	return filepath.Join(x.Dir, fmt.Sprintf("doomed-%s-%t", what, x.filter))
}

// pointer writes the address of a slice's array.
func pointer(to, of []byte) {
	p := uint64(reflect.ValueOf(of).Pointer())
	for i := range 8 {
		to[i] = byte(p >> (8 * i))
	}
}

// daemonParent is the parent of the process that is copied, which the copies cannot ask for.
var daemonParent = os.Getppid()

func grandparent() int { return daemonParent }
