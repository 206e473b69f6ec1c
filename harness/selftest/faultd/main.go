package faultd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Prefix begins the names under which a program is a faulty daemon: argv[0] is Prefix and the fault's name.
const Prefix = "fault-"

// Daemon is the name of the real daemon's program, or a link to it, in the faulty one's directory.
const Daemon = "daemon"

// tracer is the name under which the program is the tracer: "fault-tracer NAME TID", once more with "detached" at the end.
const tracer = Prefix + "tracer"

// Is reports whether a program that was started with these arguments is to be a faulty daemon, or the agent of a guest.
func Is(args []string) bool {
	return len(args) > 0 && (strings.HasPrefix(filepath.Base(args[0]), Prefix) || isInit(args))
}

// isInit reports whether the program is the first of a guest's: /init of its initramfs (Linux init/main.c, ramdisk_execute_command).
func isInit(args []string) bool { return os.Getpid() == 1 && args[0] == "/init" }

// Main is the faulty daemon, its tracer, the daemon's child that does not end, or the agent of a guest. It returns an exit status only where it does not become
// the real daemon.
func Main(args []string, stderr io.Writer) int {
	runtime.LockOSThread() // credentials, ptrace and exec are a thread's
	name := filepath.Base(args[0])
	var err error
	switch {
	case isInit(args):
		err = Guest()
	case name == tracer && args[len(args)-1] == "detached":
		err = trace(args[1], args[2])
	case name == tracer:
		err = detach(args)
	case name == sleeper:
		time.Sleep(10 * time.Minute)
	default:
		err = become(args, strings.TrimPrefix(name, Prefix))
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return 3
	}
	return 0
}

// exitStatus ends the daemon as the fault wants it.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// become is the daemon of a fault.
func become(args []string, name string) error {
	daemon, err := filepath.EvalSymlinks(filepath.Join(filepath.Dir(args[0]), Daemon))
	if err != nil {
		return fmt.Errorf("find the real daemon: %w", err)
	}
	argv := append([]string{daemon}, args[1:]...)
	if len(args) == 2 && args[1] == "--version" {
		return unix.Exec(daemon, argv, os.Environ())
	}
	f, err := Find(name)
	if err != nil {
		return err
	}
	if f.Args != nil {
		argv = f.Args(argv)
	}
	if f.Before != nil {
		if argv, err = f.Before(argv); err != nil {
			return err
		}
	}
	if f.Enter != nil || f.Leave != nil {
		if err := startTracer(name); err != nil {
			return err
		}
	}
	return fmt.Errorf("become %s: %w", daemon, unix.Exec(daemon, argv, os.Environ()))
}

// self starts this program under another name.
func self(args ...string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Args = args
	return cmd, nil
}

// startTracer returns when the calling thread is traced.
func startTracer(fault string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd, err := self(tracer, fault, strconv.Itoa(unix.Gettid()))
	if err != nil {
		return err
	}
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start the tracer: %w", err)
	}
	w.Close()
	said, err := io.ReadAll(r)
	if err == nil && string(said) != traced {
		err = fmt.Errorf("the tracer says %q", said)
	}
	return err
}

// traced is what the tracer says on descriptor 3 when it traces.
const traced = "traced"

// detach starts the tracer as nobody's child.
func detach(args []string) error {
	cmd, err := self(append(slices.Clone(args), "detached")...)
	if err != nil {
		return err
	}
	cmd.Stderr = os.NewFile(3, "report") // what goes wrong is said to whom waits
	cmd.ExtraFiles = []*os.File{os.NewFile(3, "report")}
	return cmd.Start()
}

// option returns the value of an option that is given as --name=value.
func option(argv []string, name string) string {
	for _, a := range argv {
		if v, ok := strings.CutPrefix(a, name+"="); ok {
			return v
		}
	}
	return ""
}

// replace gives an option another value, or adds it.
func replace(name, value string) func([]string) []string {
	return func(argv []string) []string { return append(without(name)(argv), name+"="+value) }
}

// without takes options away.
func without(names ...string) func([]string) []string {
	return func(argv []string) []string {
		return slices.DeleteFunc(slices.Clone(argv), func(a string) bool {
			return slices.ContainsFunc(names, func(n string) bool { return a == n || strings.HasPrefix(a, n+"=") })
		})
	}
}
