package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// Exit statuses of a program that could not be started, as shells have them.
const (
	notExecutable = 126
	notFound      = 127
)

// session runs a program of the guest for a person on the host. Nothing that it started outlives it: the share is to be unmounted.
func (a *agent) session(q guestproto.Request) (guestproto.SessionEnd, error) {
	var s guestproto.SessionArgs
	if err := json.Unmarshal(q.Args, &s); err != nil || len(s.Argv) == 0 {
		return guestproto.SessionEnd{}, fmt.Errorf("decode arguments: %v of %s", err, q.Args)
	}
	os.Setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
	if _, err := os.Lstat("/bin/ls"); err != nil { // a name for each of busybox's programs
		if out, err := exec.Command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
			return guestproto.SessionEnd{}, fmt.Errorf("install busybox: %w: %s", err, out)
		}
	}
	output := func(stream int) io.Writer {
		return writer(func(p []byte) error {
			return a.send(guestproto.Message{Kind: guestproto.KindOutput, ID: q.ID, Call: q.Call}, guestproto.Output{Stream: stream, Data: p})
		})
	}
	c := exec.Command(s.Argv[0], s.Argv[1:]...)
	c.Dir = s.Dir
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "USER=root", `PS1=guest:\w\$ `}
	c.WaitDelay = time.Second // for output that a program left behind may hold open
	p := program{Cmd: c}
	var err error
	if s.Terminal != nil {
		err = p.terminal(s.Terminal, output(guestproto.Stdout))
	} else {
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		c.Stdout, c.Stderr = output(guestproto.Stdout), output(guestproto.Stderr)
		p.stdin, err = c.StdinPipe()
	}
	if err == nil {
		err = c.Start()
	}
	if p.slave != nil {
		p.slave.Close()
	}
	if err != nil {
		status := notExecutable
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			status = notFound
		}
		fmt.Fprintf(output(guestproto.Stderr), "vfsguest: %v\n", err)
		return guestproto.SessionEnd{Status: status}, nil
	}
	if _, err := output(guestproto.Started).Write(nil); err != nil {
		return guestproto.SessionEnd{}, err
	}
	ended := make(chan struct{})
	go func() {
		_ = c.Wait() // the process state says it all
		p.finish()
		close(ended)
	}()
	if err := a.feed(&p, ended); err != nil {
		return guestproto.SessionEnd{}, err
	}
	_ = unix.Kill(-1, unix.SIGKILL) // as PID 1: all but ourselves; there may be none
	status := c.ProcessState.ExitCode()
	if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		status = 128 + int(ws.Signal())
	}
	return guestproto.SessionEnd{Status: status}, nil
}

type writer func([]byte) error

func (w writer) Write(p []byte) (int, error) { return len(p), w(p) }

// program is a session's program with its streams.
type program struct {
	*exec.Cmd
	stdin  io.WriteCloser // a pipe, or the terminal's master
	master *os.File
	slave  *os.File
	output chan struct{} // closed when all that was written to the terminal is passed on
}

// terminal gives the program a terminal of its own (pts(4)).
func (p *program) terminal(t *guestproto.Terminal, out io.Writer) error {
	if err := os.MkdirAll("/dev/pts", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", 0, "ptmxmode=0666"); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount devpts: %w", err)
	}
	var err error
	if p.master, err = os.OpenFile("/dev/pts/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return err
	}
	p.stdin = p.master
	if err := p.resize(t); err != nil {
		return err
	}
	if err := unix.IoctlSetPointerInt(int(p.master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock the terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(int(p.master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("name the terminal: %w", err)
	}
	if p.slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return err
	}
	p.Stdin, p.Stdout, p.Stderr = p.slave, p.slave, p.slave
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if t.Term != "" {
		p.Env = append(p.Env, "TERM="+t.Term)
	}
	p.output = make(chan struct{})
	go func() {
		defer close(p.output)
		_, _ = io.Copy(out, p.master) // ends with EIO when nobody has the terminal open any more
	}()
	return nil
}

func (p *program) resize(t *guestproto.Terminal) error {
	return unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: t.Rows, Col: t.Cols})
}

// finish is called when the program has ended: what it wrote is passed on, and whoever feeds it is let go.
func (p *program) finish() {
	if p.output != nil {
		select {
		case <-p.output:
		case <-time.After(time.Second): // a program that it left behind has the terminal open
		}
	}
	_ = p.stdin.Close() // a pipe that Wait has closed, or the master
}

// feed passes input on until the program has ended. One that takes none holds up nobody but its own input.
func (a *agent) feed(p *program, ended <-chan struct{}) error {
	inputs := make(chan guestproto.Input)
	defer close(inputs)
	go func() {
		for in := range inputs {
			if len(in.Data) > 0 {
				_, _ = p.stdin.Write(in.Data) // the program may have closed it
			}
			switch {
			case in.Size != nil && p.master != nil:
				_ = p.resize(in.Size)
			case in.EOF && p.master == nil:
				_ = p.stdin.Close()
			case in.EOF:
				_, _ = p.stdin.Write([]byte{4}) // VEOF, at the beginning of a line
			}
		}
	}()
	for {
		select {
		case <-ended:
			return nil
		case r := <-a.in:
			if r.err != nil {
				return fmt.Errorf("the host closed the guest port: %w", r.err)
			}
			var in guestproto.Input
			if r.Call != guestproto.CallInput || json.Unmarshal(r.Args, &in) != nil {
				continue // nothing else comes while a call runs
			}
			select {
			case inputs <- in:
			case <-ended:
				return nil
			}
		}
	}
}
