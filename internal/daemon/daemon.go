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
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/config"
	"virtiofsd/internal/fuse"
	"virtiofsd/internal/passthrough"
	"virtiofsd/internal/sandbox"
	"virtiofsd/internal/sys"
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
	o, err := config.Parse(args)
	fail := func(status int, err error) int {
		h := &lineHandler{mu: &sync.Mutex{}, w: stderr, json: o.LogFormat == "json"}
		slog.New(h).Error(err.Error())
		return status
	}
	switch {
	case o.PrintCapabilities:
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
	if o.Completion != "" {
		fmt.Fprint(stdout, config.Completion(o.Completion))
		return exitOK
	}
	given, err := activation()
	if o.FD < 0 && o.SocketPath == "" {
		if err != nil {
			return fail(exitError, err)
		}
		o.FD = given
	}
	if o.PrintPlan || o.Check { // they need no socket, and a check no directory either
		if o.FD < 0 && o.SocketPath == "" {
			o.FD = 0
		}
		if o.Check && o.SharedDir == "" {
			o.SharedDir = "/"
		}
	}
	if err := validate(o); err != nil {
		return fail(exitUsage, err)
	}
	if !o.PrintPlan && !o.Check {
		if err := inherited(o); err != nil {
			return fail(exitError, err)
		}
		closeStray(o.FD, o.ReportFD, o.ReadyFD, o.StatsFD)
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

// validate is what can be told of options without a look at the system.
func validate(o config.Options) error {
	if err := o.Validate(); err != nil {
		return err
	}
	if err := sandbox.CheckModCaps(o.ModCaps); err != nil {
		return err
	}
	_, err := fsConfig(o, 0, nil)
	return err
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
	facts, err := sandbox.Gather(o.SharedDir, o.Check || len(o.UIDMap)+len(o.GIDMap) > 0)
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

	log := newLog(o)
	for _, n := range plan.Notes {
		log.Warn(n)
	}
	if plan.Threads != nil {
		runtime.GOMAXPROCS(1) // the threads are for those who serve
		level := slog.LevelInfo
		if engine(o, plan.Threads).Queues() < o.RequestQueues {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "threads are limited: "+limits(plan.Threads, o))
	}
	tell, err := newReadiness(o)
	if err != nil {
		return err
	}
	if o.ReportFD >= 0 {
		unix.CloseOnExec(o.ReportFD)
	}
	var files []*os.File // for the child, behind the listener
	if o.StatsFD >= 0 {
		files = append(files, adopt("--stats-fd", o.StatsFD))
	}
	// From here on there are files to remove: signals are no longer the end.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer stop()
	ask := make(chan os.Signal, 1)
	signal.Notify(ask, unix.SIGUSR1)
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
		listener, err = vhostuser.Prepare(o.SocketPath, o.SocketGroup)
	}
	defer pid.remove()
	if err != nil {
		return err
	}
	defer listener.Remove()
	defer listener.Close()
	if _, err := raiseNofile(o, log); err != nil {
		return err
	}
	p := parent{o, plan, listener, files, tell, ask, log}
	return p.run(ctx)
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

// parent is the process that the launcher started.
type parent struct {
	config.Options
	plan     sandbox.Plan
	listener *vhostuser.Listener
	files    []*os.File // for the child, behind the listener
	tell     *readiness
	ask      <-chan os.Signal // for counters
	log      *slog.Logger
}

// run starts the process that serves and lives as long as it does.
func (p *parent) run(ctx context.Context) error {
	c, err := sandbox.Start(sandbox.Order{Plan: p.plan, Options: p.Options}, append([]*os.File{p.listener.File()}, p.files...)...)
	if err != nil {
		return err
	}
	for _, f := range p.files {
		f.Close()
	}
	state, err := c.Ready(p.log)
	if err != nil {
		c.Kill()
		return err
	}
	if p.ReportFD >= 0 {
		if err := writeReport(p.ReportFD, state); err != nil {
			c.Kill()
			return err
		}
	}
	if err := p.listener.Bind(); err != nil { // who finds the socket finds a daemon in its sandbox behind it
		c.Kill()
		return err
	}
	p.listener.Close() // only the child accepts: a second front-end is refused once it stops listening
	if err := sandbox.Shed(toRemove(p.SocketPath), p.plan.Bounding); err != nil {
		p.log.Warn("cannot give up the parent's privileges", "err", err)
	}
	c.Serve()
	if err := p.tell.ready(); err != nil {
		c.Kill()
		return err
	}
	debug.FreeOSMemory()
	ended := make(chan int, 1)
	go func() { ended <- c.Wait() }()
	return p.await(ctx, c, ended)
}

// How long the serving process may take to end once it was asked to, and once it was killed. It
// gives requests that are under way 0.8 s itself.
const (
	stopPatience = 5 * time.Second
	killPatience = 2 * time.Second
)

// await waits until the serving process has ended. One that does not do so when it is asked to is
// killed: its threads may be stuck in the front-end's memory, or in a file system of the host, and
// one that cannot even be killed, as it waits in the kernel, is left behind.
func (p *parent) await(ctx context.Context, c *sandbox.Child, ended <-chan int) error {
	asked := ctx.Done()
	var overdue <-chan time.Time
	killed := false
	for {
		select {
		case <-p.ask:
			c.Stats()
		case <-asked:
			asked, overdue = nil, time.After(stopPatience)
			p.tell.stopping()
			c.Stop()
		case <-overdue:
			if killed {
				p.log.Error("the serving process does not end, although it was killed: it waits in the kernel, for a file system of the host or the front-end's memory", "pid", c.PID())
				return statusError(exitError)
			}
			killed, overdue = true, time.After(killPatience)
			p.log.Error("the serving process has not ended within 5 s of being asked to, and is killed: its requests are stuck in the front-end's memory or in a file system of the host")
			c.End()
		case status := <-ended:
			switch s := c.Signal(); {
			case s != 0 && !killed:
				p.log.Error("the serving process was ended by a signal", "signal", s.String(), "hint", hint(s))
			case status == sys.ExitWrongIDs:
				p.log.Error("the serving process has ended itself: a thread could not take its own ids back after it had acted for a guest's user")
			}
			if status != 0 {
				return statusError(status)
			}
			return nil
		}
	}
}

func hint(s syscall.Signal) string {
	if s == unix.SIGSYS {
		return "a system call that the daemon's filter or its caller's forbids: --seccomp=log names those of the daemon's own, the kernel's log has the number (syscall=) of any"
	}
	return "see the kernel's log"
}

// child is the process that serves.
func child() int {
	ask := make(chan os.Signal, 1)
	signal.Notify(ask, unix.SIGUSR1)
	in, ctx, err := sandbox.Receive()
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
	if t := in.Plan.Threads; t != nil && t.Procs < runtime.GOMAXPROCS(0) {
		runtime.GOMAXPROCS(t.Procs)
	}
	log := newLog(o)
	go func() {
		for range ask {
			in.AskStats()
		}
	}()
	err = func() error {
		listener, err := vhostuser.Adopt(int(in.Files[0].Fd()))
		if err != nil {
			return err
		}
		defer listener.Close()
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return err
		}
		entered, err := sandbox.Enter(&in.Order, in.HandOver, log)
		if err != nil {
			return err
		}
		s := server{Options: o, in: entered, threads: in.Plan.Threads, limit: limit.Cur, listener: listener, ask: in.Stats(), log: log, ready: func() {
			log.Info(entered.State.String())
			in.Report(&entered.State, nil)
			in.Wait(ctx)
		}}
		if o.StatsFD >= 0 {
			s.counters = in.Files[1]
		}
		return s.serve(ctx)
	}()
	if err != nil {
		if !in.Report(nil, err) {
			log.Error(err.Error())
		}
		return exitError
	}
	return exitOK
}

// server is what serves, inside the sandbox.
type server struct {
	config.Options
	in       *sandbox.Entered
	limit    uint64           // of open files
	threads  *sandbox.Threads // nil for any number
	listener *vhostuser.Listener
	counters *os.File        // --stats-fd's, or nil
	ask      <-chan struct{} // for counters
	ready    func()          // is called when a front-end may connect
	log      *slog.Logger
}

func (s *server) serve(ctx context.Context) error {
	if s.SingleUser != "" {
		s.TranslateUID, s.TranslateGID = s.SingleUserRules(uint32(os.Geteuid()), uint32(os.Getegid()))
	}
	cfg, err := fsConfig(s.Options, s.limit, s.log)
	if err != nil {
		return err
	}
	transport := s.transport()
	if n := transport.Extras(); n > 0 {
		cfg.LockWaits = lockWaits(n)
	}
	forgot := make(chan struct{}, 1)
	cfg.Shrunk = func() {
		select {
		case forgot <- struct{}{}:
		default:
		}
	}
	tuneCollector()
	go giveBack(ctx, forgot)
	fs, err := passthrough.New(s.in.Root, s.in.SelfFD, cfg)
	if err != nil {
		return fmt.Errorf("open the share: %w", err)
	}
	b := backend{fuse.NewSession(fs, fuse.SessionConfig{Logger: s.log})}
	st := newStats(b.Session, fs, s.limit, s.counters, s.log)
	defer st.close()
	go st.serve(ctx, s.ask)
	s.ready()
	for {
		s.log.Info("Waiting for vhost-user socket connection...")
		conn, err := s.listener.Accept(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		s.log.Info("Client connected, servicing requests")
		refuse := func() {}
		if s.FD >= 0 || s.KeepListening {
			refuse = s.listener.Refuse(conn) // others hold the socket, or we go on: it cannot be closed
		} else {
			s.listener.Close()
		}
		err = vhostuser.Serve(ctx, conn, b, transport, func(q vhostuser.Stats) { st.queues.Store(&q) })
		refuse()
		st.left()
		cfg.Shrunk() // what its device had
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (!s.KeepListening || errors.Is(err, vhostuser.ErrStuck)):
			return err
		case err != nil:
			s.log.Error("the front-end broke the protocol", "err", err)
		default:
			s.log.Info("Client disconnected, shutting down")
		}
		if !s.KeepListening {
			return nil
		}
	}
}

// transport is what the options and the plan say about the device.
func (s *server) transport() vhostuser.Config {
	c := engine(s.Options, s.threads)
	c.Hidden, c.Logger = mostHidden(), s.log
	if s.threads == nil { // otherwise Go has as many as the plan leaves it
		c.Started = sandbox.Processors
	}
	return c
}

func engine(o config.Options, t *sandbox.Threads) vhostuser.Config {
	c := vhostuser.Config{Tag: o.Tag, MaxRequestQueues: o.RequestQueues, Workers: o.Workers(), Poll: time.Duration(o.PollMicros) * time.Microsecond}
	if t != nil {
		c.Threads = t.Workers
	}
	return c
}

// lockWaits is how many requests may wait for a lock where there are so many workers beyond the
// queues' first ones: some are left for others.
func lockWaits(extras int) int { return max(1, extras*3/4) }

// limits says what fewer threads than could be used come to.
func limits(t *sandbox.Threads, o config.Options) string {
	c := engine(o, t)
	return fmt.Sprintf("request queues are offered up to %d, and %d requests may block; %v", c.Queues(), c.Extras(), t)
}

// mostHidden is how many threads may sleep unseen by Go's scheduler: each keeps one of its processors, and is reached by a signal only.
func mostHidden() int {
	if strings.Contains(os.Getenv("GODEBUG"), "asyncpreemptoff=1") {
		return 0
	}
	return runtime.GOMAXPROCS(0)/2 - 1
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
