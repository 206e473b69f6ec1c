package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

const portName = guestproto.PortName

// Files in Config.Dir.
const (
	argvFile     = "qemu.argv"
	logFile      = "qemu.log"
	consoleFile  = "console.log"
	messagesFile = "messages.jsonl"
)

func (c Config) path(name string) string { return filepath.Join(c.Dir, name) }

// VM is one running guest. Its methods may be called from several goroutines, but calls to the agent run one at a time.
type VM struct {
	// Accel is the accelerator in use, "tcg" or "kvm"; AccelWhy says why KVM is not used, where auto was asked for.
	Accel    string
	AccelWhy string

	cfg   Config
	start time.Time
	cmd   *exec.Cmd
	qmp   *QMP
	port  net.Conn
	out   *guestproto.Writer

	hellos chan hello
	exited chan struct{} // closed when QEMU was reaped
	done   chan struct{} // closed at the guest's "done"
	mute   chan struct{} // closed when the port's reader ended

	resetting atomic.Bool // between Reset and the next hello

	call sync.Mutex // one call at a time

	mu       sync.Mutex
	nextID   int
	pending  map[int]chan guestproto.Message
	progress string
	agentErr string
	messages *os.File
	output   func(guestproto.Output) // of the session that runs, or nil
	exit     Exit
	shares   int
}

type hello struct {
	facts guestproto.Hello
	after time.Duration
	err   error
}

// Exit says how QEMU ended.
type Exit struct {
	Status  int           // QEMU's exit status, or 128+signal
	Signal  string        // the signal that ended it, or ""
	Done    bool          // the guest said "done" before
	Killed  bool          // we killed QEMU
	Elapsed time.Duration // from exec to the end
}

// Clean reports whether the guest powered off in order.
func (e Exit) Clean() bool { return e.Done && !e.Killed && e.Status == 0 }

func (e Exit) String() string {
	s := fmt.Sprintf("status %d", e.Status)
	if e.Signal != "" {
		s += " (" + e.Signal + ")"
	}
	if e.Killed {
		s += ", killed by us"
	}
	if !e.Done {
		s += ", without the guest's done"
	}
	return s
}

// Argv returns QEMU's argv for a config, with descriptors 3 and 4 for QMP and the agent's port, and for each part a reason.
// Start does the same; this is for people.
func Argv(c Config, accel string) (argv []string, why []string, err error) {
	c, err = c.check()
	if err != nil {
		return nil, nil, err
	}
	argv = append(append(argv, c.Wrap...), c.Binary)
	for _, f := range plan(c, accel, 3, 4) {
		argv = append(argv, f.args...)
		why = append(why, strings.Join(f.args, " ")+": "+f.why)
	}
	return argv, why, nil
}

// Start runs QEMU. It returns when QMP answers, which is after QEMU has connected to the daemons' sockets; the guest is then still
// booting. QEMU is killed when ctx ends, and dies with this process.
func Start(ctx context.Context, c Config) (*VM, error) {
	c, err := c.check()
	if err != nil {
		return nil, err
	}
	for _, f := range []string{c.Kernel, c.Initrd} {
		if _, err := os.Stat(f); err != nil {
			return nil, fmt.Errorf("guest image: %w", err)
		}
	}
	vm := &VM{
		cfg: c, Accel: c.Accel, shares: len(c.Shares),
		hellos: make(chan hello, 16), exited: make(chan struct{}), done: make(chan struct{}), mute: make(chan struct{}),
		pending: map[int]chan guestproto.Message{},
	}
	if vm.Accel == "" || vm.Accel == "auto" {
		var ok bool
		vm.Accel = "tcg"
		if ok, vm.AccelWhy = ProbeKVM(ctx, c.Binary); ok {
			vm.Accel = "kvm"
		}
	}
	if err := vm.exec(ctx); err != nil {
		return nil, err
	}
	// The greeting comes by itself; qmp_capabilities leaves negotiation mode. QEMU reads the monitor only once all its devices
	// are made, so the answer also means that the daemons accepted the connection; one that does not answer keeps it waiting for good.
	bound, cancel := context.WithTimeout(ctx, c.HelloTimeout)
	defer cancel()
	err = vm.qmp.Execute(bound, "qmp_capabilities", nil, nil)
	if err != nil && bound.Err() != nil && ctx.Err() == nil {
		err = vm.failed(ReasonNoHello, fmt.Sprintf("QEMU waits for the vhost-user back-end of a share, for %v now", c.HelloTimeout))
	}
	if err != nil {
		return nil, vm.abandon(err)
	}
	return vm, nil
}

// abandon ends a VM that did not start and says why.
func (vm *VM) abandon(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		select { // QEMU closed the monitor: it is about to exit
		case <-vm.exited:
		case <-time.After(5 * time.Second):
		}
	}
	select {
	case <-vm.exited:
		err = vm.gone()
	default:
	}
	vm.Kill()
	return err
}

func (vm *VM) exec(ctx context.Context) (err error) {
	c := vm.cfg
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
		if err != nil && vm.messages != nil {
			vm.messages.Close()
		}
	}()
	qmp, qmpFile, err := socketPair("qmp")
	if err != nil {
		return err
	}
	files = append(files, qmpFile)
	port, portFile, err := socketPair("guest port")
	if err != nil {
		qmp.Close()
		return err
	}
	files = append(files, portFile)
	log, err := os.Create(c.path(logFile))
	if err != nil {
		return fmt.Errorf("make qemu's log: %w", err)
	}
	files = append(files, log)
	transcript := c.path(messagesFile)
	if c.NoTranscript {
		transcript = os.DevNull
	}
	if vm.messages, err = os.Create(transcript); err != nil {
		return fmt.Errorf("make the guest's transcript: %w", err)
	}
	argv, _, err := Argv(c, vm.Accel)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path(argvFile), []byte(strings.Join(argv, "\n")+"\n"), 0o644); err != nil {
		return fmt.Errorf("record qemu's argv: %w", err)
	}

	vm.cmd = exec.Command(argv[0], argv[1:]...)
	vm.cmd.Stdout, vm.cmd.Stderr = log, log
	vm.cmd.ExtraFiles = []*os.File{qmpFile, portFile}
	// Own process group: a ^C at the terminal reaches us first, and we end the guest in order.
	vm.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go vm.reap(started)
	if err := <-started; err != nil {
		qmp.Close()
		port.Close()
		return fmt.Errorf("start %s: %w", argv[0], err)
	}
	vm.qmp, vm.port, vm.out = newQMP(qmp), port, guestproto.NewWriter(port)
	go vm.listen()
	go func() {
		select {
		case <-ctx.Done():
			vm.Kill()
		case <-vm.exited:
		}
	}()
	return nil
}

// reap starts QEMU and waits for it on one locked thread: Pdeathsig fires when the thread that forked ends.
func (vm *VM) reap(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	vm.start = time.Now()
	if err := vm.cmd.Start(); err != nil {
		started <- err
		return
	}
	started <- nil
	err := vm.cmd.Wait()
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.exit.Elapsed = time.Since(vm.start)
	if ws, ok := vm.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		vm.exit.Status, vm.exit.Signal = 128+int(ws.Signal()), unix.SignalName(ws.Signal())
	} else {
		vm.exit.Status = vm.cmd.ProcessState.ExitCode()
	}
	vm.cfg.Logger.Debug("qemu ended", "status", vm.exit.Status, "err", err)
	close(vm.exited)
}

func socketPair(what string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair for %s: %w", what, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), what), os.NewFile(uintptr(fds[1]), what)
	defer ours.Close() // FileConn dups
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socket pair for %s: %w", what, err)
	}
	return conn, theirs, nil
}

// listen reads the agent's port until it ends.
func (vm *VM) listen() {
	defer close(vm.mute)
	defer vm.messages.Close()
	r := guestproto.NewReader[guestproto.Message](io.TeeReader(vm.port, vm.messages))
	for {
		m, err := r.Next()
		switch {
		case errors.Is(err, guestproto.ErrLine):
			vm.cfg.Logger.Warn("guest sent no message", "err", err)
			continue
		case err != nil:
			return
		}
		vm.take(m)
	}
}

func (vm *VM) take(m guestproto.Message) {
	switch m.Kind {
	case guestproto.KindHello:
		h := hello{after: time.Since(vm.start)}
		h.err = json.Unmarshal(m.Facts, &h.facts)
		if m.Error != "" {
			h.err = &GuestError{Reason: ReasonAgent, Detail: m.Error, Console: vm.LastConsoleLine()}
		}
		vm.hellos <- h
	case guestproto.KindResult:
		vm.mu.Lock()
		c := vm.pending[m.ID]
		delete(vm.pending, m.ID)
		vm.mu.Unlock()
		if c == nil {
			vm.cfg.Logger.Warn("guest answered a call that nobody waits for", "id", m.ID, "call", m.Call)
			return
		}
		c <- m
	case guestproto.KindProgress:
		var p guestproto.Progress
		if json.Unmarshal(m.Facts, &p) == nil {
			vm.mu.Lock()
			vm.progress = fmt.Sprintf("%s: %s (%d of %d)", m.Call, p.Step, p.Done, p.Total)
			vm.mu.Unlock()
			vm.cfg.Logger.Debug("guest progress", "call", m.Call, "step", p.Step, "done", p.Done, "total", p.Total)
		}
	case guestproto.KindLog:
		var l guestproto.Log
		_ = json.Unmarshal(m.Facts, &l) // an empty text is all right: Error tells
		if m.Error != "" {
			vm.mu.Lock()
			vm.agentErr = m.Error
			vm.mu.Unlock()
		}
		vm.cfg.Logger.Debug("guest log", "text", l.Text, "error", m.Error)
	case guestproto.KindOutput:
		var o guestproto.Output
		vm.mu.Lock()
		output := vm.output
		vm.mu.Unlock()
		if output != nil && json.Unmarshal(m.Facts, &o) == nil {
			output(o)
		}
	case guestproto.KindDone:
		vm.mu.Lock()
		vm.exit.Done = true
		vm.mu.Unlock()
		select {
		case <-vm.done:
		default:
			close(vm.done)
		}
	default:
		vm.cfg.Logger.Warn("guest sent a message of unknown kind", "kind", m.Kind)
	}
}

// Hello waits for the agent's next hello (the first one, or after a Reset the next), at most Config.HelloTimeout. The duration is
// that from exec of QEMU.
func (vm *VM) Hello(ctx context.Context) (*guestproto.Hello, time.Duration, error) {
	t := time.NewTimer(vm.cfg.HelloTimeout)
	defer t.Stop()
	select {
	case h := <-vm.hellos:
		if h.err != nil {
			return nil, h.after, h.err
		}
		if vm.resetting.CompareAndSwap(true, false) {
			if err := vm.onReboot(ctx, "shutdown"); err != nil {
				return nil, h.after, err
			}
		}
		return &h.facts, h.after, nil
	case <-vm.exited:
		<-vm.mute
		select { // it may have said hello and gone
		case h := <-vm.hellos:
			return &h.facts, h.after, h.err
		default:
		}
		return nil, 0, vm.gone()
	case <-t.C:
		return nil, 0, vm.failed(ReasonNoHello, fmt.Sprintf("no hello within %v", vm.cfg.HelloTimeout))
	case <-ctx.Done():
		return nil, 0, vm.failed(ReasonNoHello, context.Cause(ctx).Error())
	}
}

// Call runs one call in the guest. args may be nil; facts may be nil, or a pointer to the call's facts. It returns a *CallError
// when the agent could not carry it out, a *GuestError when the guest died over it, and ctx's error with the last sign of life when time ran out.
func (vm *VM) Call(ctx context.Context, call string, args, facts any) error {
	vm.call.Lock()
	defer vm.call.Unlock()
	req := guestproto.Request{Call: call}
	if args != nil {
		b, err := json.Marshal(args)
		if err != nil {
			return fmt.Errorf("guest call %s: encode arguments: %w", call, err)
		}
		req.Args = b
	}
	c := make(chan guestproto.Message, 1)
	vm.mu.Lock()
	vm.nextID++
	req.ID = vm.nextID
	vm.pending[req.ID] = c
	vm.progress = ""
	vm.mu.Unlock()
	defer func() {
		vm.mu.Lock()
		delete(vm.pending, req.ID)
		vm.mu.Unlock()
	}()
	if err := vm.out.Write(req); err != nil {
		select {
		case <-vm.exited:
			return fmt.Errorf("guest call %s: %w", call, vm.gone())
		case <-time.After(time.Second):
			return fmt.Errorf("guest call %s: %w", call, err)
		}
	}
	var m guestproto.Message
	select {
	case m = <-c:
	case <-vm.exited:
		<-vm.mute
		select {
		case m = <-c:
		default:
			return fmt.Errorf("guest call %s: %w", call, vm.gone())
		}
	case <-ctx.Done():
		vm.mu.Lock()
		p := vm.progress
		vm.mu.Unlock()
		if p == "" {
			p = "no sign of progress"
		}
		return fmt.Errorf("guest call %s: %w; %s; last console line: %s", call, context.Cause(ctx), p, vm.LastConsoleLine())
	}
	if m.Error != "" {
		return &CallError{Call: call, Text: m.Error}
	}
	if facts != nil {
		if err := json.Unmarshal(m.Facts, facts); err != nil {
			return fmt.Errorf("guest call %s: decode facts: %w", call, err)
		}
	}
	return nil
}

// PowerOff ends the guest in order: its agent unmounts, says done and powers off, and QEMU exits. When ctx ends first, QEMU is
// killed and Exit says so.
func (vm *VM) PowerOff(ctx context.Context) (Exit, error) {
	vm.mu.Lock()
	vm.nextID++
	req := guestproto.Request{ID: vm.nextID, Call: guestproto.CallPowerOff}
	vm.mu.Unlock()
	if err := vm.out.Write(req); err != nil {
		vm.cfg.Logger.Debug("power-off request not sent", "err", err) // Wait tells what became of the guest
	}
	return vm.Wait(ctx)
}

// Wait waits until QEMU is gone. When ctx ends first, it kills QEMU.
func (vm *VM) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-vm.exited:
	case <-ctx.Done():
		console := vm.LastConsoleLine()
		vm.Kill()
		<-vm.exited
		<-vm.mute
		return vm.Exit(), fmt.Errorf("wait for the guest's end: %w; qemu was killed; last console line: %s", context.Cause(ctx), console)
	}
	<-vm.mute
	vm.qmp.conn.Close()
	e := vm.Exit()
	if !e.Done || e.Status != 0 {
		return e, vm.gone()
	}
	return e, nil
}

// Exit returns how QEMU ended; it is meaningful once [VM.Exited] is closed.
func (vm *VM) Exit() Exit {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.exit
}

// Exited is closed when QEMU is gone.
func (vm *VM) Exited() <-chan struct{} { return vm.exited }

// Kill ends QEMU at once, like pulling the plug, and waits for it. It may be called at any time, and more than once.
func (vm *VM) Kill() {
	select {
	case <-vm.exited:
	default:
		vm.mu.Lock()
		vm.exit.Killed = true
		vm.mu.Unlock()
		_ = vm.cmd.Process.Kill() // fails only if it has just been reaped
		<-vm.exited
	}
	if vm.qmp != nil {
		vm.qmp.conn.Close()
		vm.port.Close()
	}
}

// PID is QEMU's process id (the wrapper's, where Config.Wrap does not exec).
func (vm *VM) PID() int { return vm.cmd.Process.Pid }

// QMP gives access to QEMU's monitor.
func (vm *VM) QMP() *QMP { return vm.qmp }

// LastConsoleLine is the last telling line of the guest's console.
func (vm *VM) LastConsoleLine() string {
	_, last := lastWords(tail(vm.cfg.path(consoleFile)))
	return last
}

// failed makes a GuestError of a guest that may still run.
func (vm *VM) failed(r Reason, detail string) error {
	panicked, last := lastWords(tail(vm.cfg.path(consoleFile)))
	if panicked != "" {
		r, detail = ReasonPanic, panicked
	}
	return &GuestError{Reason: r, Detail: detail, Console: last}
}

// gone makes a GuestError of a guest whose QEMU has ended.
func (vm *VM) gone() error {
	vm.mu.Lock()
	agent, exit := vm.agentErr, vm.exit
	vm.mu.Unlock()
	if agent != "" {
		return vm.failed(ReasonAgent, agent)
	}
	detail := exit.String()
	if lines := tail(vm.cfg.path(logFile)); len(lines) > 0 {
		detail += ": " + lines[len(lines)-1]
	}
	return vm.failed(ReasonExited, detail)
}
