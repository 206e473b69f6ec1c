package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/impl"
)

// User is whom the daemon runs as.
type User struct {
	UID, GID int
	Groups   []int
}

// Spec says what to start.
type Spec struct {
	Impl    *impl.Impl
	Options impl.Options
	As      *User    // nil: as we are
	Wrap    []string // goes before the daemon's command line
	// Argv is the whole command line, as it is, instead of what Impl, Options and Wrap make. Start does not wait then: who knows the
	// command line knows by what to tell that the daemon is ready.
	Argv []string
	Cwd  string // the daemon's working directory; "" is /
	// Dir gets daemon.argv and daemon.log.
	Dir string
	Env []string // added to a small environment
	// Etc are files to bind over others for this daemon only: target → source, such as "/etc/subuid" → a file of the run.
	Etc map[string]string
	// ReadyIn bounds the wait for the socket; 0 is 20 s.
	ReadyIn time.Duration
	// Fds are passed as descriptors 3 and up; nil leaves a number out.
	Fds []*os.File
}

// Names of files in Spec.Dir.
const (
	ArgvFile = "daemon.argv"
	LogFile  = "daemon.log"
)

// Exit says how the daemon's first process ended.
type Exit struct {
	Status int    // exit status, or 128+signal
	Signal string // that ended it, or ""
	Killed bool   // by us, because it did not end in time
	At     time.Time
}

// RefusedError is a daemon that did not get ready.
type RefusedError struct {
	Exit Exit
	Hung bool   // it neither ended nor made its socket in time
	Last string // the last line that it wrote
}

func (e *RefusedError) Error() string {
	last := e.Last
	if last == "" {
		last = "it wrote nothing"
	}
	if e.Hung {
		return "daemon was not ready in time: " + last
	}
	return fmt.Sprintf("daemon ended with status %d before it was ready: %s", e.Exit.Status, last)
}

// Daemon is one that was started.
type Daemon struct {
	Argv  []string      // as executed
	Ready time.Duration // from its start until the socket was seen, wrapper included; 0 where there was none to wait for

	spec  Spec
	cmd   *exec.Cmd
	began time.Time
	log   *logWriter
	done  chan struct{}

	launcher int // the thread that started it, in the mount namespace that it was started from

	mu   sync.Mutex
	exit Exit
	seen map[int]string // pid → start time, of every process of the tree that was seen
}

// logWriter writes the daemon's output to a file and keeps the last line.
type logWriter struct {
	mu   sync.Mutex
	f    *os.File
	last []byte
}

func (l *logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = append(l.last, p...)
	if n := len(l.last); n > 8<<10 {
		l.last = l.last[n-4<<10:]
	}
	return l.f.Write(p)
}

func (l *logWriter) lastLine() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := strings.TrimSpace(string(l.last))
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// Start starts the daemon and waits until it is ready. It is killed when ctx ends.
func Start(ctx context.Context, s Spec) (*Daemon, error) {
	argv := s.Argv
	if argv == nil {
		of, err := s.Impl.Argv(s.Options)
		if err != nil {
			return nil, err
		}
		argv = append(append([]string{}, s.Wrap...), of...)
	}
	if s.Cwd == "" {
		s.Cwd = "/"
	}
	if s.ReadyIn == 0 {
		s.ReadyIn = 20 * time.Second
	}
	f, err := os.Create(filepath.Join(s.Dir, LogFile))
	if err != nil {
		return nil, fmt.Errorf("make the daemon's log: %w", err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, ArgvFile), []byte(strings.Join(argv, "\n")+"\n"), 0o644); err != nil {
		f.Close()
		return nil, fmt.Errorf("record the daemon's argv: %w", err)
	}
	d := &Daemon{Argv: argv, spec: s, log: &logWriter{f: f}, done: make(chan struct{}), seen: map[int]string{}}
	d.cmd = exec.Command(argv[0], argv[1:]...)
	d.cmd.Dir = s.Cwd
	d.cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/"}, s.Env...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log // one pipe: not a descriptor of a file of the host
	d.cmd.ExtraFiles = s.Fds
	d.cmd.WaitDelay = 3 * time.Second // a process that kept the pipe does not keep us
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if s.As != nil {
		c := &syscall.Credential{Uid: uint32(s.As.UID), Gid: uint32(s.As.GID), Groups: []uint32{}}
		for _, g := range s.As.Groups {
			c.Groups = append(c.Groups, uint32(g))
		}
		d.cmd.SysProcAttr.Credential = c
	}
	started := make(chan error)
	onOwnThread(func() { d.reap(started) })
	if err := <-started; err != nil {
		f.Close()
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() {
		select {
		case <-ctx.Done():
			d.kill()
		case <-d.done:
		}
	}()
	if s.Argv != nil {
		return d, nil
	}
	if err := d.ready(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// onOwnThread runs f in a goroutine on a thread of its own, which ends with it. It is never the process's first thread: that one cannot
// end, and what /proc says of the process is what it says of that thread.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread() // never unlocked
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		running := make(chan struct{})
		go func() { // elsewhere, as long as we stay here
			runtime.LockOSThread()
			close(running)
			f()
		}()
		<-running
		runtime.UnlockOSThread()
	}()
}

// reap starts the daemon and waits for it on the calling thread, which is nobody else's: PDEATHSIG belongs to the thread that forks, and so
// does the private mount namespace with the daemon's files of /etc.
func (d *Daemon) reap(started chan<- error) {
	if err := privateFiles(d.spec.Etc); err != nil {
		started <- err
		return
	}
	d.began = time.Now()
	if err := d.cmd.Start(); err != nil {
		started <- err
		return
	}
	d.launcher = unix.Gettid()
	started <- nil
	_ = d.cmd.Wait() // the process state says it all
	e := Exit{At: time.Now()}
	if ws, ok := d.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Status, e.Signal = 128+int(ws.Signal()), unix.SignalName(ws.Signal())
	} else {
		e.Status = d.cmd.ProcessState.ExitCode()
	}
	d.mu.Lock()
	e.Killed = d.exit.Killed
	d.exit = e
	d.mu.Unlock()
	d.log.f.Close()
	close(d.done)
}

// privateFiles gives the calling thread a mount namespace in which the files are bound over their targets.
func privateFiles(files map[string]string) error {
	if len(files) == 0 {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("private mount namespace for %d files: %w", len(files), err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for target, source := range files {
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s over %s: %w", source, target, err)
		}
	}
	return nil
}

// ready waits for the socket.
func (d *Daemon) ready(ctx context.Context) error {
	bound := time.After(d.spec.ReadyIn)
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for {
		select {
		case <-d.done:
			return &RefusedError{Exit: d.Exit(), Last: d.log.lastLine()}
		case <-ctx.Done():
			d.kill()
			return fmt.Errorf("wait for the daemon: %w", context.Cause(ctx))
		case <-bound:
			last := d.log.lastLine()
			d.kill()
			return &RefusedError{Exit: d.Exit(), Hung: true, Last: last}
		case <-tick.C:
			if len(d.spec.Fds) > 0 { // a listening socket was given: there is nothing to wait for but life
				return nil
			}
			if st, err := os.Lstat(d.spec.Options.SocketPath); err == nil && st.Mode()&os.ModeSocket != 0 {
				d.Ready = time.Since(d.began)
				return nil
			}
		}
	}
}

// PID is the first process: the daemon's parent, or the wrapper's.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Launcher is the thread that started the daemon, by whose namespaces the daemon's are judged. It lives as long as the daemon.
func (d *Daemon) Launcher() int { return d.launcher }

// Socket is the path of the listening socket.
func (d *Daemon) Socket() string { return d.spec.Options.SocketPath }

// LastLine is the last line that the daemon wrote.
func (d *Daemon) LastLine() string { return d.log.lastLine() }

// Log is the whole of what it wrote.
func (d *Daemon) Log() ([]byte, error) { return os.ReadFile(filepath.Join(d.spec.Dir, LogFile)) }

// Done is closed when the first process has ended.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Exit is how it ended, once Done is closed.
func (d *Daemon) Exit() Exit {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.exit
}

// Tree lists the daemon's live processes, the first process first, children after parents. Zombies are left out.
func (d *Daemon) Tree() []int {
	var out []int
	var visit func(pid int)
	visit = func(pid int) {
		state, start := procStat(pid)
		if state == 0 || state == 'Z' || state == 'X' {
			return
		}
		out = append(out, pid)
		d.mu.Lock()
		d.seen[pid] = start
		d.mu.Unlock()
		for _, c := range children(pid) {
			visit(c)
		}
	}
	select {
	case <-d.done:
		return nil
	default:
		visit(d.PID())
	}
	return out
}

// ServingPID is the process that serves the guest: the youngest of the tree, as every daemon's sandbox forks towards it.
func (d *Daemon) ServingPID() int {
	t := d.Tree()
	if len(t) == 0 {
		return 0
	}
	return t[len(t)-1]
}

// children reads the child processes of all threads of a process (proc(5), /proc/PID/task/TID/children).
func children(pid int) []int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is sound
	var out []int
	for _, l := range lists {
		b, err := os.ReadFile(l)
		if err != nil {
			continue // the thread has just ended
		}
		for f := range strings.FieldsSeq(string(b)) {
			if c, err := strconv.Atoi(f); err == nil {
				out = append(out, c)
			}
		}
	}
	return out
}

// procStat returns a process's state letter and start time, 0 if it is gone.
func procStat(pid int) (state byte, start string) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, ""
	}
	// Fields after the command, which is in parentheses and may hold anything: state is the 3rd, starttime the 22nd.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return 0, ""
	}
	return f[0][0], f[19]
}

// Left lists processes of the tree, as far as Tree has seen them, that are still there.
func (d *Daemon) Left() []int {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := []int{}
	for pid, was := range d.seen {
		if state, start := procStat(pid); state != 0 && state != 'Z' && start == was {
			out = append(out, pid)
		}
	}
	return out
}

// Wait waits until the first process has ended, or ctx has.
func (d *Daemon) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-d.done:
		return d.Exit(), nil
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for the daemon's end: %w", context.Cause(ctx))
	}
}

// Stop asks the daemon to end (TERM), and kills its tree when ctx ends before it does.
func (d *Daemon) Stop(ctx context.Context) Exit {
	d.Tree()
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may just have ended
	select {
	case <-d.done:
	case <-ctx.Done():
	}
	d.kill()
	return d.Exit()
}

// Kill kills the whole tree at once.
func (d *Daemon) Kill() { d.kill() }

// kill kills what lives of the tree and waits for the first process.
func (d *Daemon) kill() {
	d.Tree()
	select {
	case <-d.done:
	default:
		d.mu.Lock()
		d.exit.Killed = true
		d.mu.Unlock()
		_ = syscall.Kill(-d.PID(), syscall.SIGKILL) // the group may have gone
		_ = d.cmd.Process.Kill()
	}
	for _, pid := range d.Left() {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			continue // a process of another user that we may not kill: Left will tell
		}
	}
	<-d.done
}

// Leftovers lists what the daemon left beside its socket: the socket itself and Rust's pid file.
func (d *Daemon) Leftovers() []string {
	out := []string{}
	for _, p := range []string{d.Socket(), d.Socket() + ".pid"} {
		if _, err := os.Lstat(p); err == nil {
			out = append(out, p)
		}
	}
	return out
}
