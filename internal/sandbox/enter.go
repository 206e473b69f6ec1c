package sandbox

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
	"kernel.org/pub/linux/libs/security/libcap/psx"

	"virtiofsd/internal/seccomp"
)

// Entered is what a process inside its sandbox holds on to.
type Entered struct {
	Root   int   // O_PATH descriptor of the share
	SelfFD int   // O_PATH descriptor of our own /proc/self/fd
	State  State // as read back from /proc

	self     *os.File          // our own /proc/self, until the end of Enter
	outer    map[string]string // namespaces of the parent
	handOver func(listener int) error
}

// StepError says which step of a plan failed.
type StepError struct {
	Step Step
	Err  error
}

func (e *StepError) Error() string {
	return fmt.Sprintf("sandbox: %s: %v%s", e.Step.What, e.Err, remedy(e.Step.Op, e.Err))
}

func (e *StepError) Unwrap() error { return e.Err }

// remedy is what helps against the usual refusal of a step.
func remedy(op Op, err error) string {
	switch {
	case op == OpStart && errors.Is(err, unix.EPERM):
		return "; new namespaces are not allowed here: run in a user namespace with capabilities, or use --sandbox=chroot or none"
	case op == OpStart && errors.Is(err, unix.ENOSPC):
		return "; the limit of namespaces is reached: see /proc/sys/user/"
	case op == OpStart && errors.Is(err, unix.EAGAIN):
		return "; there may be no more processes: raise their limit (pids.max of the cgroup, TasksMax=, ulimit -u)"
	case op == OpStart && errors.Is(err, unix.EACCES):
		return "; the daemon starts its own executable a second time: let its user read and execute it"
	case op == OpMapSelf, op == OpMapTools:
		return "; see --uid-map and --gid-map"
	case op == OpProc && errors.Is(err, unix.EPERM):
		return "; the caller's sandbox forbids mounts: use --sandbox=chroot or none without CAP_SYS_ADMIN"
	case op == OpAttach && errors.Is(err, unix.EACCES), op == OpPivot && errors.Is(err, unix.EACCES), op == OpShare && errors.Is(err, unix.EACCES), op == OpChroot && errors.Is(err, unix.EACCES):
		return "; the user that the daemon works as may not enter the directory: map its owner, or open its mode"
	case op == OpPivot && errors.Is(err, unix.EINVAL):
		return "; the current root is an initramfs: use --sandbox=chroot"
	case op == OpGroups && errors.Is(err, unix.EPERM):
		return "; allow setgroups in the user namespace, or give --no-fail-setgroups where one group id is mapped"
	case op == OpLandlock:
		return "; use --landlock=off, knowing what that gives up"
	case op == OpSeccomp:
		return "; the kernel or the container forbids filters: use --seccomp=none, knowing what that gives up"
	}
	return ""
}

// Enter executes the steps of a plan in this process: all but those of the parent. The process must be the one that will serve; threads it
// has, and gets, are inside afterwards. A process in which Enter failed must end: it is half inside. The listener of a filter that logs is
// handed over to whoever watches it.
func Enter(o *Order, handOver func(listener int) error, log *slog.Logger) (*Entered, error) {
	p := &o.Plan
	e := &Entered{Root: -1, SelfFD: -1}
	self, err := os.Open("/proc/self")
	if err != nil {
		return nil, fmt.Errorf("sandbox: look at ourselves: %w; the daemon needs /proc", err)
	}
	defer self.Close()
	e.self, e.outer, e.handOver = self, o.Outer, handOver
	for _, s := range p.Steps {
		do, ok := actions[s.Op]
		if !ok {
			continue // the parent's
		}
		if err := do(e, p, log); err != nil {
			return nil, &StepError{s, err}
		}
		log.Debug("sandbox", "done", s.What)
	}
	return e, nil
}

var actions = map[Op]func(*Entered, *Plan, *slog.Logger) error{
	OpTakeIDs: func(_ *Entered, p *Plan, _ *slog.Logger) error { return takeIDs(p) },
	OpPrivate: func(*Entered, *Plan, *slog.Logger) error {
		err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
		if err == unix.EINVAL {
			return fmt.Errorf("%w: / is no mount point, as in a chroot of the caller: say --sandbox=chroot, or have / bound on itself before the chroot", err)
		}
		return err
	},
	OpProc: func(e *Entered, p *Plan, _ *slog.Logger) (err error) {
		e.SelfFD, err = procView(p.NewNamespace("mount"))
		return err
	},
	OpProcPlain: func(e *Entered, _ *Plan, _ *slog.Logger) (err error) {
		e.SelfFD, err = unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	},
	OpAttach: func(_ *Entered, p *Plan, _ *slog.Logger) error { return attach(p) },
	OpPivot:  func(_ *Entered, p *Plan, _ *slog.Logger) error { return pivot(p) },
	OpChroot: func(_ *Entered, p *Plan, _ *slog.Logger) error {
		if err := unix.Chroot(p.SharedDir); err != nil {
			return err
		}
		return unix.Chdir("/")
	},
	OpShare: func(e *Entered, p *Plan, _ *slog.Logger) (err error) {
		dir := "/"
		if !p.Has(OpPivot) && !p.Has(OpChroot) {
			dir = p.SharedDir
			if err := unix.Chdir(dir); err != nil { // a working directory is a way out, too
				return err
			}
		}
		e.Root, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	},
	OpGroups: func(*Entered, *Plan, *slog.Logger) error { return dropGroups() },
	OpTryGroups: func(_ *Entered, _ *Plan, log *slog.Logger) error {
		if err := dropGroups(); err != nil {
			log.Warn("supplementary groups are kept, as --no-fail-setgroups allows", "err", err)
		}
		return nil
	},
	OpBounding: func(_ *Entered, p *Plan, _ *slog.Logger) error { return dropBounding(p.Keep) },
	OpCaps:     func(_ *Entered, p *Plan, _ *slog.Logger) error { return keepCaps(p.Keep) },
	OpNotDumpable: func(*Entered, *Plan, *slog.Logger) error {
		return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	},
	OpNoNewPrivs: func(*Entered, *Plan, *slog.Logger) error { return noNewPrivs() },
	OpLandlock:   func(e *Entered, p *Plan, _ *slog.Logger) error { return e.landlock(p.Readonly) },
	OpSeccomp:    func(e *Entered, p *Plan, log *slog.Logger) error { return e.filter(p, log) },
	OpVerify: func(e *Entered, p *Plan, _ *slog.Logger) (err error) {
		if e.State, err = e.read(); err != nil {
			return err
		}
		return e.check(p)
	},
}

// filter installs the system call filter.
func (e *Entered) filter(p *Plan, log *slog.Logger) error {
	c := seccomp.Config{Action: p.Seccomp, Handles: p.Handles, PID: os.Getpid()}
	if c.Action != "log" {
		return seccomp.Install(c)
	}
	listener, err := seccomp.InstallTold(c)
	if errors.Is(err, seccomp.ErrNoListener) {
		log.Warn("system calls that are not on the list are logged by the kernel alone", "err", err)
		return seccomp.Install(c)
	}
	if err != nil {
		return err
	}
	return e.handOver(listener)
}

// all makes a credential call on every thread.
func all(call, a, b, c uintptr) error {
	_, _, errno := psx.Syscall3(call, a, b, c)
	return errnoErr(errno)
}

func errnoErr(e unix.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}

func noNewPrivs() error {
	_, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	return errnoErr(errno)
}

// takeIDs takes the ids of the plan, group first: afterwards those that the caller had are no more.
// In a user namespace that does not map 0 there is no root that a change of ids would lose
// capabilities with (security/commoncap.c, cap_emulate_setxuid).
func takeIDs(p *Plan) error {
	if err := all(unix.SYS_SETRESGID, uintptr(p.GID), uintptr(p.GID), uintptr(p.GID)); err != nil {
		return fmt.Errorf("setresgid: %w", err)
	}
	if err := all(unix.SYS_SETRESUID, uintptr(p.UID), uintptr(p.UID), uintptr(p.UID)); err != nil {
		return fmt.Errorf("setresuid: %w", err)
	}
	return nil
}

// dropGroups drops supplementary groups on all threads. Having none already is as good as having dropped them.
func dropGroups() error {
	if g, err := unix.Getgroups(); err == nil && len(g) == 0 {
		return nil
	}
	return all(unix.SYS_SETGROUPS, 0, 0, 0)
}

func dropBounding(keep Caps) error {
	var drop []cap.Value
	for c := range cap.MaxBits() {
		if !keep.Has(Cap(c)) {
			drop = append(drop, c)
		}
	}
	return cap.DropBound(drop...)
}

// keepCaps reduces effective and permitted capabilities of all threads to those of keep that are there, and clears the others.
func keepCaps(keep Caps) error {
	// Clearing the ambient set cannot fail but on kernels that have none.
	if err := cap.ResetAmbient(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	have, want := cap.GetProc(), cap.NewSet()
	for c := range cap.MaxBits() {
		if on, _ := have.GetFlag(cap.Permitted, c); on && keep.Has(Cap(c)) {
			if err := errors.Join(want.SetFlag(cap.Permitted, true, c), want.SetFlag(cap.Effective, true, c)); err != nil {
				return err
			}
		}
	}
	if same, err := have.Cf(want); err == nil && same == 0 {
		return nil // a process without capabilities need not be able to call capset
	}
	return want.SetProc()
}

// procView makes a mount of our own /proc/self/fd that is attached nowhere: it is its own root, so ".." stays inside. That takes a mount
// namespace in which we may mount. Where this process has none of its own (private), one thread makes one and dies; threads share
// descriptors.
func procView(private bool) (fd int, err error) {
	clone := func() {
		fd, err = unix.OpenTree(unix.AT_FDCWD, "/proc/self/fd", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			err = fmt.Errorf("copy the mount of /proc/self/fd: %w", err)
		}
	}
	if private {
		clone()
		return fd, err
	}
	tid := make(chan int, 1)
	go func() {
		defer func() { tid <- unix.Gettid() }()
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err = unix.Unshare(unix.CLONE_NEWNS); err != nil {
			err = fmt.Errorf("make a mount namespace: %w", err)
			return
		}
		clone()
	}()
	// Until the kernel has torn its mount namespace down, the thread is there, with all the rights that it had.
	gone := fmt.Sprintf("/proc/self/task/%d", <-tid)
	for range 1000 {
		if unix.Access(gone, unix.F_OK) != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return fd, err
}

// attach makes the share a mount of its own, submounts included, and puts it where pivot will find it.
func attach(p *Plan) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, p.SharedDir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("copy the mount of %s: %w", p.SharedDir, err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if p.Readonly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("set the mount's flags: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, p.mountPoint(), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the mount at %s: %w", p.mountPoint(), err)
	}
	return nil
}

// mountPoint is where the share is mounted before it becomes the root: on itself, but a mount on / could not be the new root.
func (p *Plan) mountPoint() string {
	if p.SharedDir == "/" {
		return "/proc"
	}
	return p.SharedDir
}

// pivot makes the share's mount the root. The old root is stacked upon it (pivot_root(2), "pivot_root(".", ".")") and detached.
func pivot(p *Plan) error {
	if err := unix.Chdir(p.mountPoint()); err != nil {
		return fmt.Errorf("enter %s: %w", p.mountPoint(), err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	return unix.Chdir("/")
}

// Shed gives up the supplementary groups, where the kernel lets us, and the capabilities of this process but keep, and sets
// no_new_privs: what the parent does before its child serves.
func Shed(keep Caps, bounding bool) error {
	if err := dropGroups(); err != nil && !errors.Is(err, unix.EPERM) {
		return err
	}
	if bounding {
		if err := dropBounding(keep); err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return errors.Join(keepCaps(keep), noNewPrivs())
}
