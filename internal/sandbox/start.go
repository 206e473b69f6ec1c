package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/config"
	"virtiofsd/internal/idmap"
	"virtiofsd/internal/seccomp"
	"virtiofsd/internal/sys"
)

// StageEnv is the environment variable by which this program, started by itself, knows what it is.
const StageEnv = "VIRTIOFSD_STAGE"

// What a process that this program started can be.
const (
	stageChild = "child"  // the one that serves
	stageProbe = "probe"  // ends at once: that it could be started is all that was asked
	stageCalls = "calls-" // makes system calls, from the one named behind it on
)

const (
	orderFD  = 3 // the parent's order comes here; its end is the parent's end
	reportFD = 4 // the child's reports go here
	firstFD  = 5 // files handed on
)

// What the parent may say after its order, a word a line.
const (
	wordServe = "serve"
	wordStop  = "stop"
	wordStats = "stats"
)

// Order is what the parent tells its child.
type Order struct {
	Plan    Plan           `json:"plan"`
	Options config.Options `json:"options"`
	// Outer are the parent's namespaces, by kind; Start fills it in.
	Outer map[string]string `json:"outer"`
	// Files is how many files are handed on; Start fills it in.
	Files int `json:"files"`
}

// report is what the child tells its parent, once.
type report struct {
	State *State `json:"state,omitempty"` // it is ready
	Error string `json:"error,omitempty"`
}

// Child is the serving process, seen from its parent.
type Child struct {
	cmd    *exec.Cmd
	order  *os.File
	report *os.File
}

var cloneFlags = map[string]uintptr{
	"user": unix.CLONE_NEWUSER, "mount": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID, "network": unix.CLONE_NEWNET,
	"ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP,
}

// Start executes the parent's steps: it starts this program again in new namespaces, has its ids mapped and gives it the order. It must be
// called from a goroutine locked to a thread that lives as long as the child is to: the child is killed when that thread ends.
func Start(o Order, files ...*os.File) (*Child, error) {
	p := &o.Plan
	self, err := os.Open("/proc/self")
	if err != nil {
		return nil, fmt.Errorf("sandbox: look at ourselves: %w; the daemon needs /proc", err)
	}
	o.Outer, o.Files = namespaces(self), len(files)
	self.Close()
	start := p.Steps[slices.IndexFunc(p.Steps, func(s Step) bool { return s.Op == OpStart })]
	orderR, orderW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(err, orderR.Close(), orderW.Close())
	}
	reportR, reportW := os.NewFile(uintptr(pair[0]), "report"), os.NewFile(uintptr(pair[1]), "report")
	defer orderR.Close()
	defer reportW.Close()

	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"virtiofsd"}
	cmd.Env = append(os.Environ(), StageEnv+"="+stageChild, "GOMAXPROCS=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	cmd.ExtraFiles = append([]*os.File{orderR, reportW}, files...)
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for _, n := range p.Namespaces {
		attr.Cloneflags |= cloneFlags[n]
	}
	if p.NewNamespace("user") {
		if p.Has(OpMapSelf) {
			attr.UidMappings, attr.GidMappings = sysMap(p.UIDMap), sysMap(p.GIDMap)
			attr.GidMappingsEnableSetgroups = p.Setgroups
		}
		// A process that is not mapped to 0 loses its capabilities at exec; ambient ones stay.
		for c := range readNumber("/proc/sys/kernel/cap_last_cap", 40) + 1 {
			attr.AmbientCaps = append(attr.AmbientCaps, uintptr(c))
		}
	}
	cmd.SysProcAttr = attr
	c := &Child{cmd: cmd, order: orderW, report: reportR}
	sys.SetTimerSlack(timerSlack)
	err = cmd.Start()
	sys.SetTimerSlack(sys.DefaultSlack)
	if err != nil {
		c.close()
		return nil, &StepError{start, clean(err)}
	}
	if err := c.begin(&o); err != nil {
		c.Kill()
		return nil, err
	}
	return c, nil
}

// clean takes the name of our own executable out of an error of exec.
func clean(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

func sysMap(m idmap.Map) (s []syscall.SysProcIDMap) {
	for _, r := range m {
		s = append(s, syscall.SysProcIDMap{ContainerID: int(r.Inside), HostID: int(r.Outside), Size: int(r.Count)})
	}
	return s
}

// begin maps ids where tools have to, and sends the order.
func (c *Child) begin(o *Order) error {
	p := &o.Plan
	if i := slices.IndexFunc(p.Steps, func(s Step) bool { return s.Op == OpMapTools }); i >= 0 {
		for _, t := range []struct {
			tool string
			m    idmap.Map
		}{{p.Tools[1], p.GIDMap}, {p.Tools[0], p.UIDMap}} {
			args := []string{strconv.Itoa(c.cmd.Process.Pid)}
			for _, r := range t.m {
				args = append(args, strconv.Itoa(int(r.Inside)), strconv.Itoa(int(r.Outside)), strconv.Itoa(int(r.Count)))
			}
			if out, err := exec.Command(t.tool, args...).CombinedOutput(); err != nil {
				return &StepError{p.Steps[i], fmt.Errorf("%s: %w: %s", t.tool, err, firstLine(out))}
			}
		}
	}
	if err := json.NewEncoder(c.order).Encode(o); err != nil {
		return fmt.Errorf("sandbox: send the child its order: %w", err)
	}
	return nil
}

func firstLine(b []byte) string {
	for i, ch := range b {
		if ch == '\n' {
			return string(b[:i])
		}
	}
	return string(b)
}

// Ready waits until the child is inside its sandbox and listens, and returns what that is like, or says why not. With --seccomp=log it also
// begins to log calls that are not on the list.
func (c *Child) Ready(log *slog.Logger) (*State, error) {
	text, err := c.receive(log)
	if err != nil {
		return nil, fmt.Errorf("sandbox: the serving process's report: %w", err)
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, fmt.Errorf("sandbox: the serving process ended before it was ready: %s", c.state())
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("sandbox: the serving process's report: %w", err)
	}
	if r.Error != "" || r.State == nil {
		return nil, errors.New(r.Error)
	}
	return r.State, nil
}

// receive reads what the child reports to its end. The listener of its filter may come with it, and is watched from then on: the child may
// not get further without.
func (c *Child) receive(log *slog.Logger) (text []byte, err error) {
	buf, rights := make([]byte, 65536), make([]byte, unix.CmsgSpace(4))
	for {
		n, rn, _, _, err := unix.Recvmsg(int(c.report.Fd()), buf, rights, unix.MSG_CMSG_CLOEXEC)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return text, nil
		}
		text = append(text, buf[:n]...)
		if rn == 0 {
			continue
		}
		messages, err := unix.ParseSocketControlMessage(rights[:rn])
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			fds, err := unix.ParseUnixRights(&m)
			if err != nil {
				return nil, err
			}
			for _, fd := range fds {
				go watch(fd, log)
			}
		}
	}
}

// watch logs the calls of the child that are not on the list, until it ends.
func watch(listener int, log *slog.Logger) {
	defer unix.Close(listener)
	err := seccomp.Watch(listener, func(call string, thread int) {
		log.Warn("seccomp: a system call that is not on the list was let through", "call", call, "thread", thread)
	})
	if err != nil {
		log.Error("system calls that are not on the list fail from here on", "err", err) // as the kernel has it when a listener goes
	}
}

func (c *Child) state() string {
	if err := c.cmd.Wait(); err != nil {
		return err.Error()
	}
	return "exit status 0"
}

// Serve lets the child accept a front-end, now that this process has given up its privileges.
func (c *Child) Serve() { _, _ = c.order.WriteString(wordServe + "\n") }

// Stop asks the child to finish what is under way and to end. It needs no right to signal it.
func (c *Child) Stop() { _, _ = c.order.WriteString(wordStop + "\n") }

// Stats asks the child to tell its counters.
func (c *Child) Stats() { _, _ = c.order.WriteString(wordStats + "\n") }

// Kill ends the child at once and reaps it.
func (c *Child) Kill() {
	_ = c.cmd.Process.Kill()
	c.close() // its end of life, if we may not signal it
	_ = c.cmd.Wait()
}

// End kills the child and leaves it to Wait. It takes no capability: the child's user is this
// process's, or the child's user namespace is one that this process has made.
func (c *Child) End() { _ = c.cmd.Process.Kill() }

// PID is the child's process id.
func (c *Child) PID() int { return c.cmd.Process.Pid }

func (c *Child) close() {
	c.order.Close()
	c.report.Close()
}

// Wait returns the child's exit status: its code, or 128 and the signal's number as shells have it.
func (c *Child) Wait() int {
	_ = c.cmd.Wait()
	ws, _ := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// Signal is how the child ended, 0 for not by one.
func (c *Child) Signal() syscall.Signal {
	if ws, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return ws.Signal()
	}
	return 0
}

// Inside is the parent, seen from the child.
type Inside struct {
	Order
	Files  []*os.File
	report *os.File
	once   sync.Once
	serve  chan struct{}
	stats  chan struct{}
}

// Stage says what this process is to this program, and takes the mark off the environment.
func Stage() (child, probe bool) {
	is := os.Getenv(StageEnv)
	os.Unsetenv(StageEnv)
	first, calls := strings.CutPrefix(is, stageCalls)
	if calls {
		makeCalls(first)
	}
	return is == stageChild, is == stageProbe || calls
}

// Receive waits for the parent's order. The returned context ends when the parent asks for it, and the process when the parent has gone.
func Receive() (*Inside, context.Context, error) {
	unix.CloseOnExec(orderFD)
	unix.CloseOnExec(reportFD)
	in := &Inside{report: os.NewFile(reportFD, "report"), serve: make(chan struct{}), stats: make(chan struct{}, 1)}
	order := bufio.NewReader(os.NewFile(orderFD, "order"))
	line, err := order.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &in.Order)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("sandbox: read the parent's order: %w", err)
	}
	for i := range in.Order.Files {
		unix.CloseOnExec(firstFD + i)
		in.Files = append(in.Files, os.NewFile(uintptr(firstFD+i), "handed on"))
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for {
			word, err := order.ReadString('\n')
			switch {
			case err != nil:
				unix.Exit(137) // the parent was killed: so are we
			case word == wordServe+"\n":
				close(in.serve)
			case word == wordStop+"\n":
				cancel()
			case word == wordStats+"\n":
				in.AskStats()
			}
		}
	}()
	return in, ctx, nil
}

// Wait waits until the parent lets this process serve, or ctx ends.
func (in *Inside) Wait(ctx context.Context) {
	select {
	case <-in.serve:
	case <-ctx.Done():
	}
}

// AskStats asks for what Stats returns.
func (in *Inside) AskStats() {
	select {
	case in.stats <- struct{}{}:
	default: // asked already
	}
}

// Stats gets a value whenever somebody asks for the counters.
func (in *Inside) Stats() <-chan struct{} { return in.stats }

// HandOver gives the parent the listener of this process's filter.
func (in *Inside) HandOver(listener int) error {
	defer unix.Close(listener)
	if err := unix.Sendmsg(int(in.report.Fd()), []byte{'\n'}, unix.UnixRights(listener), nil, 0); err != nil {
		return fmt.Errorf("hand the filter's listener over: %w", err)
	}
	return nil
}

// Report tells the parent, once, that we are ready and in which state, or why not. It returns false where it has done so before.
func (in *Inside) Report(s *State, err error) (told bool) {
	in.once.Do(func() {
		told = true
		r := report{State: s}
		if err != nil {
			r.Error = err.Error()
		}
		_ = json.NewEncoder(in.report).Encode(r)
		in.report.Close()
	})
	return told
}
