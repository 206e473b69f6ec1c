package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/config"
	"virtiofsd/internal/fuse"
	"virtiofsd/internal/passthrough"
	"virtiofsd/internal/sandbox"
	"virtiofsd/internal/vhostuser"
)

// Exit statuses.
const (
	exitOK    = 0
	exitError = 1 // at run time
	exitUsage = 2
)

// Main is the daemon: it runs the command line and returns the exit status. It must be called from the main goroutine, locked to its
// thread, before anything else has opened a descriptor.
func Main(args []string, stdout, stderr io.Writer) int {
	switch isChild, isProbe := sandbox.Stage(); {
	case isChild:
		return child()
	case isProbe:
		return exitOK
	}
	fail := func(status int, err error) int {
		fmt.Fprintf(stderr, "[%s ERROR virtiofsd] %v\n", time.Now().UTC().Format("2006-01-02T15:04:05Z"), err)
		return status
	}
	o, err := config.Parse(args)
	switch {
	case err == nil && o.PrintCapabilities, o.PrintCapabilities:
		fmt.Fprint(stdout, config.Capabilities())
		return exitOK
	case err != nil:
		return fail(exitUsage, err)
	case o.Help:
		fmt.Fprint(stdout, config.Usage())
		return exitOK
	case o.Version:
		fmt.Fprintf(stdout, "virtiofsd %s (%s)\n", config.Version, runtime.Version())
		return exitOK
	}
	if o.PrintPlan || o.Check { // they need no socket, and a check no directory either
		if o.FD < 0 && o.SocketPath == "" {
			o.FD = 0
		}
		if o.Check && o.SharedDir == "" {
			o.SharedDir = "/"
		}
	}
	if err := o.Validate(); err != nil {
		return fail(exitUsage, err)
	}
	if !o.PrintPlan && !o.Check {
		closeStray(o.FD, o.ReportFD)
	}
	if err := run(o, stdout); err != nil {
		var status statusError
		if errors.As(err, &status) {
			return int(status)
		}
		return fail(exitError, err)
	}
	return exitOK
}

// statusError is the exit status of a child which has said itself what was wrong.
type statusError int

func (s statusError) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func run(o config.Options, stdout io.Writer) error {
	dir, err := filepath.Abs(o.SharedDir)
	if err != nil {
		return fmt.Errorf("find the current directory: %w", err)
	}
	if st, err := os.Stat(dir); err != nil {
		return fmt.Errorf("shared directory %s: %w; create it or correct --shared-dir", o.SharedDir, clean(err))
	} else if !st.IsDir() {
		return fmt.Errorf("shared directory %s is not a directory; correct --shared-dir", o.SharedDir)
	}
	if o.SharedDir, err = filepath.EvalSymlinks(dir); err != nil {
		return fmt.Errorf("shared directory: %w", err)
	}
	facts, err := sandbox.Gather(o.Check || len(o.UIDMap)+len(o.GIDMap) > 0)
	if err != nil {
		return err
	}
	if o.Check {
		return show(sandbox.Check(o, facts), o.JSON, stdout)
	}
	plan, err := sandbox.Make(o, facts)
	if err != nil {
		return err
	}
	if o.PrintPlan {
		return show(plan, o.JSON, stdout)
	}
	if _, err := fsConfig(o, 0, nil); err != nil {
		return err
	}

	log := newLog(o.LogLevel, os.Getenv("RUST_LOG"), o.Syslog)
	// From here on there are files to remove: signals are no longer the end.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer stop()
	var pid *pidFile
	var listener *vhostuser.Listener
	if o.FD >= 0 {
		listener, err = vhostuser.ListenFD(o.FD)
	} else {
		if err := folder(o.SocketPath); err != nil {
			return err
		}
		if pid, err = newPidFile(o.SocketPath); err != nil {
			return err
		}
		listener, err = vhostuser.Listen(o.SocketPath, o.SocketGroup)
	}
	defer pid.remove()
	if err != nil {
		return err
	}
	if o.SocketPath != "" {
		defer os.Remove(o.SocketPath)
	}
	defer listener.Close()
	if _, err := raiseNofile(o, log); err != nil {
		return err
	}
	return parent(ctx, o, plan, listener, log)
}

// clean takes the path, which the message has already, out of a file system error.
func clean(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

func folder(socket string) error {
	dir := filepath.Dir(socket)
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return fmt.Errorf("socket %s: the folder %s does not exist; create it or correct --socket-path", socket, dir)
	}
	return nil
}

// parent starts the process that serves and lives as long as it does.
func parent(ctx context.Context, o config.Options, plan sandbox.Plan, l *vhostuser.Listener, log *slog.Logger) error {
	c, err := sandbox.Start(sandbox.Order{Plan: plan, Options: o}, l.File())
	if err != nil {
		return err
	}
	state, err := c.Ready()
	if err != nil {
		c.Kill()
		return err
	}
	if o.ReportFD >= 0 {
		if err := writeReport(o.ReportFD, state); err != nil {
			c.Kill()
			return err
		}
	}
	l.Close() // only the child accepts: a second front-end is refused once it stops listening
	if err := sandbox.Shed(toRemove(o.SocketPath), plan.Bounding); err != nil {
		log.Warn("cannot give up the parent's privileges", "err", err)
	}
	c.Serve()
	go func() {
		<-ctx.Done()
		c.Stop()
	}()
	debug.FreeOSMemory()
	status := c.Wait()
	if s := c.Signal(); s != 0 {
		log.Error("the serving process was ended by a signal", "signal", s.String(), "hint", hint(s))
	}
	if status != 0 {
		return statusError(status)
	}
	return nil
}

func hint(s syscall.Signal) string {
	if s == unix.SIGSYS {
		return "a system call that the filter forbids: find it with --seccomp=log and the kernel's audit log"
	}
	return "see the kernel's log"
}

// child is the process that serves.
func child() int {
	in, ctx, err := sandbox.Receive(1)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitError
	}
	o := in.Options
	if !in.Plan.Handles {
		o.InodeFileHandles = "never" // they cannot be opened, and the filter knows it
	}
	// Signals come by way of the parent; sent here directly they have the same effect, which the init process of a pid namespace
	// has to ask for.
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer stop()
	log := newLog(o.LogLevel, os.Getenv("RUST_LOG"), o.Syslog)
	err = func() error {
		listener, err := vhostuser.ListenFD(int(in.Files[0].Fd()))
		if err != nil {
			return err
		}
		defer listener.Close()
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return err
		}
		entered, err := sandbox.Enter(&in.Order, log)
		if err != nil {
			return err
		}
		return serve(ctx, o, entered, limit.Cur, listener, log, func() {
			log.Info(entered.State.String())
			in.Report(&entered.State, nil)
			in.Wait(ctx)
		})
	}()
	if err != nil {
		if !in.Report(nil, err) {
			log.Error(err.Error())
		}
		return exitError
	}
	return exitOK
}

// serve runs inside the sandbox. ready is called when a front-end may connect.
func serve(ctx context.Context, o config.Options, in *sandbox.Entered, limit uint64, l *vhostuser.Listener, log *slog.Logger, ready func()) error {
	// A queue's leader that polls keeps a processor of Go's busy: there have to be more of them than can poll at once, or whoever
	// wakes up finds none. The kernel shares the real processors out.
	runtime.GOMAXPROCS(max(8, 2*runtime.NumCPU()))
	if o.SingleUser != "" {
		o.TranslateUID, o.TranslateGID = o.SingleUserRules(uint32(os.Geteuid()), uint32(os.Getegid()))
	}
	cfg, err := fsConfig(o, limit, log)
	if err != nil {
		return err
	}
	fs, err := passthrough.New(in.Root, in.SelfFD, cfg)
	if err != nil {
		return fmt.Errorf("open the share: %w", err)
	}
	b := backend{fuse.NewSession(fs, fuse.SessionConfig{Logger: log})}
	ready()
	for {
		log.Info("Waiting for vhost-user socket connection...")
		conn, err := l.Accept(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		log.Info("Client connected, servicing requests")
		refuse := func() {}
		if o.FD >= 0 || o.KeepListening {
			refuse = l.Refuse(conn) // others hold the socket, or we go on: it cannot be closed
		} else {
			l.Close()
		}
		err = vhostuser.Serve(ctx, conn, b, vhostuser.Config{
			Tag: o.Tag, MaxRequestQueues: o.RequestQueues, Workers: o.ThreadPoolSize,
			Poll: time.Duration(o.PollMicros) * time.Microsecond, Logger: log,
		}, nil)
		refuse()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (!o.KeepListening || errors.Is(err, vhostuser.ErrStuck)):
			return err
		case err != nil:
			log.Error("the front-end broke the protocol", "err", err)
		default:
			log.Info("Client disconnected, shutting down")
		}
		if !o.KeepListening {
			return nil
		}
	}
}

// backend makes a FUSE session a device of the transport.
type backend struct{ *fuse.Session }

func (b backend) NewHandler(queue int) (vhostuser.Handler, error) {
	w, err := b.Session.NewHandler(queue)
	if err != nil {
		return nil, err
	}
	return w, nil
}
