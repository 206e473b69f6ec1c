package workload

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// execKeep bounds what is kept of a program's output, in bytes.
const execKeep = 1 << 20

// bounded keeps the first execKeep bytes.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := execKeep - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (e *Env) exec(a guestproto.ExecArgs) (guestproto.Exec, error) {
	var r guestproto.Exec
	p, err := e.place(a.Where, guestproto.CallExec)
	if err != nil {
		return r, err
	}
	argv := a.Argv
	if len(argv) == 0 {
		argv = []string{"/bin/busybox", "sh", "-c", a.Shell}
	}
	wait := 60 * time.Second
	if a.TimeoutS > 0 {
		wait = time.Duration(a.TimeoutS * float64(time.Second))
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bounded
	c.Dir, c.Stdin, c.Stdout, c.Stderr = p.dir, bytes.NewReader([]byte(a.Stdin)), &out, &errs
	c.Env = []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "SHARE=" + p.root, "TERM=linux"}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: credential(a.As)}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = time.Second
	start := time.Now()
	err = c.Run()
	r.Seconds, r.Stdout, r.Stderr = time.Since(start).Seconds(), out.String(), errs.String()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return r, errors.New("the program did not end in time and was killed; stderr: " + r.Stderr)
	case errors.As(err, &exit) || err == nil:
		r.Status = c.ProcessState.ExitCode()
		if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			r.Status, r.Signal = 128+int(ws.Signal()), unix.SignalName(ws.Signal())
		}
		return r, nil
	}
	return r, err
}

// credential is what a child process gets for an identity; nil for root as it is.
func credential(c *guestproto.Cred) *syscall.Credential {
	if c == nil {
		return nil
	}
	s := &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID), Groups: []uint32{}}
	for _, g := range c.Groups {
		s.Groups = append(s.Groups, uint32(g))
	}
	return s
}

// inOwnProcess runs a named child of this program with an identity, gives it stdin, and returns its stdout.
func (e *Env) inOwnProcess(as *guestproto.Cred, stdin []byte, name string, args ...string) ([]byte, error) {
	c := exec.Command(e.self(), append([]string{"child", name}, args...)...)
	var out, errs bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(stdin), &out, &errs
	c.SysProcAttr = &syscall.SysProcAttr{Credential: credential(as)}
	c.Env = append(os.Environ(), "GOMAXPROCS=2")
	if err := c.Run(); err != nil {
		return out.Bytes(), errors.New("child " + name + ": " + err.Error() + ": " + errs.String())
	}
	return out.Bytes(), nil
}
