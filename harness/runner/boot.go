package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/impl"
	"virtiofsd/harness/qemu"
	"virtiofsd/harness/scenario"
	vmimages "virtiofsd/vm-images"
)

// BootConfig says which guest to boot on which share, for a person.
type BootConfig struct {
	Share string // the directory, absolute
	// Scenario's launcher, options and guest count; what it needs, plants, does and expects does not.
	Scenario *scenario.Scenario
	Impl     *impl.Impl
	Image    vmimages.Image
	Accel    string   // auto, tcg, kvm
	QEMU     string   // QEMU's program; "" = its default
	Append   []string // more words for the kernel's command line
	Log      *slog.Logger
	Session  qemu.Session // of Boot
}

// mountPoint is where a person finds the share.
const mountPoint = "/mnt"

// Boot starts the daemon, boots the guest, mounts the share at /mnt, runs the session there, and takes all down again. It returns the status
// of the session's program; the error is about anything else, such as a daemon that refuses to start or ends badly.
func Boot(ctx context.Context, b BootConfig) (status int, err error) {
	g, err := Up(ctx, b)
	if err != nil {
		return 0, err
	}
	defer g.Kill()
	b.Session.Dir = mountPoint
	if status, err = g.vm.Session(g.served, b.Session); err != nil {
		return status, g.c.told(err)
	}
	return status, g.Down()
}

// Guest is a guest with a share at /mnt, and the daemon that serves it.
type Guest struct {
	c                   *cell
	vm                  *qemu.VM
	ctx, served         context.Context
	cancel, cancelServe func()
}

// Up starts the daemon, boots the guest and mounts the share at /mnt.
func Up(ctx context.Context, b BootConfig) (_ *Guest, err error) {
	g := &Guest{cancelServe: func() {}}
	g.ctx, g.cancel = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			g.Kill()
		}
	}()
	sweep(os.TempDir(), b.Log)
	c := &cell{run: &run{Config: Config{Log: b.Log}}, job: job{s: b.Scenario, i: b.Impl}, share: b.Share}
	g.c = c
	if c.work, c.lock, err = workDir(os.TempDir()); err != nil {
		return nil, err
	}
	c.dir = filepath.Join(c.work, "logs")
	c.socket = filepath.Join(c.work, "run", "vhost.sock")
	for _, d := range []string{c.dir, filepath.Dir(c.socket)} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	if u := c.user(); u != nil || b.Scenario.Launch.Wrap != nil { // the wrapper may change to ids that only it knows
		if err := os.Chmod(filepath.Dir(c.socket), 0o777|os.ModeSticky); err != nil {
			return nil, err
		}
	}
	if err := c.startDaemon(g.ctx); err != nil {
		return nil, err
	}
	size := b.Scenario.Guest
	g.vm, err = qemu.Start(g.ctx, qemu.Config{
		Binary: b.QEMU, Accel: b.Accel, Kernel: b.Image.Kernel, Initrd: b.Image.Initrd, Append: b.Append, MemMiB: size.MemMiB, CPUs: size.CPUs,
		Shares: []qemu.Share{{Socket: c.socket, Tag: shareTag, RequestQueues: size.RequestQueues, QueueSize: size.QueueSize, NoMount: true}},
		Dir:    c.dir, NoTranscript: true, HelloTimeout: helloIn, Logger: b.Log,
	})
	if err != nil {
		return nil, c.told(err)
	}
	served, unserved := context.WithCancelCause(g.ctx) // a guest whose daemon is gone waits for it without end
	g.served, g.cancelServe = served, func() { unserved(nil) }
	go func() {
		select {
		case <-c.daemon.Done():
			unserved(errors.New("the daemon is gone"))
		case <-served.Done():
		}
	}()
	if _, _, err := g.vm.Hello(served); err != nil {
		return nil, c.told(err)
	}
	var m guestproto.Mount
	if err := g.vm.Call(served, guestproto.CallMount, guestproto.MountArgs{Tag: shareTag, Dir: mountPoint, Options: size.MountOptions}, &m); err != nil {
		return nil, c.told(err)
	}
	if !m.OK {
		return nil, c.told(fmt.Errorf("the guest cannot mount the share: %s", m.Errno))
	}
	return g, nil
}

// Exec runs a program in the guest.
func (g *Guest) Exec(a guestproto.ExecArgs) (guestproto.Exec, error) {
	var x guestproto.Exec
	if err := g.vm.Call(g.served, guestproto.CallExec, a, &x); err != nil {
		return x, g.c.told(err)
	}
	return x, nil
}

// Daemon lists the daemon's live processes.
func (g *Guest) Daemon() []int { return g.c.daemon.Tree() }

// Down powers the guest off and waits for the daemon's end.
func (g *Guest) Down() error {
	bound, cancelOff := context.WithTimeoutCause(g.ctx, powerOffIn, fmt.Errorf("no end within %v", powerOffIn))
	defer cancelOff()
	if _, err := g.vm.PowerOff(bound); err != nil {
		return g.c.told(err)
	}
	bound, cancelExit := context.WithTimeoutCause(g.ctx, exitIn, fmt.Errorf("it still runs %v after QEMU", exitIn))
	defer cancelExit()
	if _, err := g.c.daemon.Wait(bound); err != nil {
		return err
	}
	return g.c.told(nil)
}

// Kill ends what still runs, at once, and removes what was made for it. Each guest ends with it, after [Guest.Down] too.
func (g *Guest) Kill() {
	g.cancelServe()
	if g.vm != nil {
		g.vm.Kill()
	}
	if g.c != nil && g.c.daemon != nil {
		g.c.daemon.Kill()
	}
	if g.c != nil {
		g.c.clean()
	}
	g.cancel()
}

// told is how the daemon ended, if it did in a bad way, which may take it a moment; otherwise err.
func (c *cell) told(err error) error {
	select {
	case <-c.daemon.Done():
	case <-time.After(200 * time.Millisecond):
		return err
	}
	if e := c.daemon.Exit(); e.Status != 0 && !e.Killed {
		return fmt.Errorf("the daemon ended with status %d: %s", e.Status, c.daemon.LastLine())
	}
	return err
}
