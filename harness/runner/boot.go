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
	Accel    string // auto, tcg, kvm
	QEMU     string // QEMU's program; "" = its default
	Log      *slog.Logger
	Session  qemu.Session
}

// mountPoint is where a person finds the share.
const mountPoint = "/mnt"

// Boot starts the daemon, boots the guest, mounts the share at /mnt, runs the session there, and takes all down again. It returns the status
// of the session's program; the error is about anything else, such as a daemon that refuses to start or ends badly.
func Boot(ctx context.Context, b BootConfig) (status int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sweep(os.TempDir(), b.Log)
	c := &cell{run: &run{Config: Config{Log: b.Log}}, job: job{s: b.Scenario, i: b.Impl}, share: b.Share}
	if c.work, c.lock, err = workDir(os.TempDir()); err != nil {
		return 0, err
	}
	defer c.clean()
	c.dir = filepath.Join(c.work, "logs")
	c.socket = filepath.Join(c.work, "run", "vhost.sock")
	for _, d := range []string{c.dir, filepath.Dir(c.socket)} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return 0, err
		}
	}
	if u := c.user(); u != nil || b.Scenario.Launch.Wrap != nil { // the wrapper may change to ids that only it knows
		if err := os.Chmod(filepath.Dir(c.socket), 0o777|os.ModeSticky); err != nil {
			return 0, err
		}
	}
	if err := c.startDaemon(ctx); err != nil {
		return 0, err
	}
	defer c.daemon.Kill()
	g := b.Scenario.Guest
	vm, err := qemu.Start(ctx, qemu.Config{
		Binary: b.QEMU, Accel: b.Accel, Kernel: b.Image.Kernel, Initrd: b.Image.Initrd, MemMiB: g.MemMiB, CPUs: g.CPUs,
		Shares: []qemu.Share{{Socket: c.socket, Tag: shareTag, RequestQueues: g.RequestQueues, QueueSize: g.QueueSize, NoMount: true}},
		Dir:    c.dir, NoTranscript: true, HelloTimeout: helloIn, Logger: b.Log,
	})
	if err != nil {
		return 0, c.told(err)
	}
	defer vm.Kill()
	served, unserved := context.WithCancelCause(ctx) // a guest whose daemon is gone waits for it without end
	defer unserved(nil)
	go func() {
		select {
		case <-c.daemon.Done():
			unserved(errors.New("the daemon is gone"))
		case <-served.Done():
		}
	}()
	if _, _, err := vm.Hello(served); err != nil {
		return 0, c.told(err)
	}
	var m guestproto.Mount
	if err := vm.Call(served, guestproto.CallMount, guestproto.MountArgs{Tag: shareTag, Dir: mountPoint, Options: g.MountOptions}, &m); err != nil {
		return 0, c.told(err)
	}
	if !m.OK {
		return 0, c.told(fmt.Errorf("the guest cannot mount the share: %s", m.Errno))
	}
	b.Session.Dir = mountPoint
	if status, err = vm.Session(served, b.Session); err != nil {
		return status, c.told(err)
	}
	bound, cancelOff := context.WithTimeoutCause(ctx, powerOffIn, fmt.Errorf("no end within %v", powerOffIn))
	defer cancelOff()
	if _, err := vm.PowerOff(bound); err != nil {
		return status, c.told(err)
	}
	bound, cancelExit := context.WithTimeoutCause(ctx, exitIn, fmt.Errorf("it still runs %v after QEMU", exitIn))
	defer cancelExit()
	if _, err := c.daemon.Wait(bound); err != nil {
		return status, err
	}
	return status, c.told(nil)
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
