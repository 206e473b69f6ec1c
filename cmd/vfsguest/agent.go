package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/workload"
)

// portWait bounds the wait for the virtio-serial port after its driver is there.
const portWait = 20 * time.Second

type agent struct {
	port    *os.File
	in      chan request
	out     *guestproto.Writer
	modules []string
	shares  workload.Shares
	holding workload.Holding
}

func (a *agent) run() error {
	if err := mountBase(); err != nil {
		return err
	}
	var err error
	if a.modules, err = loadModules("/lib/modules"); err != nil {
		return err
	}
	if a.port, err = openPort(portWait); err != nil {
		return err
	}
	a.out = guestproto.NewWriter(a.port)
	if _, err := a.port.WriteString("\n"); err != nil { // ends what a guest before a reset may have left half-written
		return fmt.Errorf("write the guest port: %w", err)
	}
	for _, m := range mountsAsked(readString("/proc/cmdline")) {
		got := a.shares.Mount(m)
		if !got.OK {
			fmt.Printf("vfsguest: mount %s: %s\n", got.Tag, got.Errno)
		}
	}
	h := workload.Hello(&a.shares, a.modules)
	if err := a.send(guestproto.Message{Kind: guestproto.KindHello}, h); err != nil {
		return err
	}
	fmt.Printf("vfsguest: ready at %.2f s\n", h.Uptime)
	return a.serve()
}

// send completes and writes a message.
func (a *agent) send(m guestproto.Message, facts any) error {
	m.T = workload.Uptime()
	if facts != nil {
		b, err := json.Marshal(facts)
		if err != nil {
			m.Error = strings.TrimSpace(m.Error + " encode facts: " + err.Error())
		}
		m.Facts = b
	}
	return a.out.Write(m)
}

// request is a line of the port.
type request struct {
	guestproto.Request
	err error
}

// listen reads the port, so that a session hears of input while its program runs.
func (a *agent) listen() {
	r := guestproto.NewReader[guestproto.Request](a.port)
	for {
		q, err := r.Next()
		a.in <- request{q, err}
		if err != nil && !errors.Is(err, guestproto.ErrLine) {
			return
		}
	}
}

// serve answers calls until poweroff.
func (a *agent) serve() error {
	a.in = make(chan request)
	go a.listen()
	for {
		r := <-a.in
		q, err := r.Request, r.err
		if errors.Is(err, guestproto.ErrLine) {
			if err := a.send(guestproto.Message{Kind: guestproto.KindLog, Error: err.Error()}, nil); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("the host closed the guest port: %w", err)
		}
		if q.Call == guestproto.CallInput { // for a session that has just ended
			continue
		}
		if q.Call == guestproto.CallPowerOff {
			done := guestproto.Message{Kind: guestproto.KindDone, ID: q.ID, Call: q.Call}
			if err := a.shares.UnmountAll(); err != nil {
				done.Error = err.Error()
				fmt.Printf("vfsguest: %v\n", err)
			}
			return a.send(done, nil)
		}
		facts, err := a.call(q)
		m := guestproto.Message{Kind: guestproto.KindResult, ID: q.ID, Call: q.Call}
		if err != nil {
			m.Error = err.Error()
			fmt.Printf("vfsguest: %s: %.200v\n", q.Call, err)
		}
		if err := a.send(m, facts); err != nil {
			return err
		}
	}
}

// call runs one call; a panic or a fault on mapped memory becomes its error.
func (a *agent) call(q guestproto.Request) (facts any, err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if p := recover(); p != nil {
			facts, err = nil, fmt.Errorf("agent panicked: %v\n%s", p, debug.Stack())
		}
	}()
	if q.Call == guestproto.CallSession {
		return a.session(q)
	}
	env := &workload.Env{
		Shares: &a.shares,
		Progress: func(step string, done, total int64) {
			_ = a.send(guestproto.Message{Kind: guestproto.KindProgress, ID: q.ID, Call: q.Call}, // the result will tell
				guestproto.Progress{Step: step, Done: done, Total: total})
		},
		Modules: a.modules, Holding: &a.holding,
	}
	return workload.Run(env, q.Call, q.Args)
}

// fatal tells whoever listens why the agent gives up.
func (a *agent) fatal(err error) {
	fmt.Printf("vfsguest: fatal: %v\n", err)
	if a.out != nil {
		_ = a.send(guestproto.Message{Kind: guestproto.KindLog, Error: err.Error()}, nil) // it is on the console, too
	}
}

// mountBase gives the guest what every program expects.
func mountBase() error {
	for _, m := range []struct{ src, dir, fs, data string }{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"devtmpfs", "/dev", "devtmpfs", ""},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777"},
	} {
		if err := unix.Mount(m.src, m.dir, m.fs, 0, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s at %s: %w", m.fs, m.dir, err)
		}
	}
	return nil
}

// loadModules loads the image's modules in the order of its list.
func loadModules(dir string) ([]string, error) {
	var loaded []string
	for name := range strings.FieldsSeq(readString(filepath.Join(dir, "list"))) {
		f, err := os.Open(filepath.Join(dir, name+".ko"))
		if err != nil {
			return loaded, fmt.Errorf("load module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return loaded, fmt.Errorf("load module %s: %w", name, err)
		}
		loaded = append(loaded, name)
	}
	return loaded, nil
}

// openPort waits for the port by its name. The name's attribute may show a moment after the port.
func openPort(wait time.Duration) (*os.File, error) {
	for end := time.Now().Add(wait); ; time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if readString(n) != guestproto.PortName {
				continue
			}
			// A blocking descriptor: writes wait until the host has taken them, so that "done" is out before the power is off.
			dev := "/dev/" + filepath.Base(filepath.Dir(n))
			fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err == nil {
				return os.NewFile(uintptr(fd), dev), nil
			}
			if time.Now().After(end) {
				return nil, fmt.Errorf("open the guest port %s: %w", dev, err)
			}
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("no virtio-serial port %s within %v", guestproto.PortName, wait)
		}
	}
}

// mountsAsked reads the vfs.mount words of the kernel command line.
func mountsAsked(cmdline string) []guestproto.MountArgs {
	var out []guestproto.MountArgs
	for w := range strings.FieldsSeq(cmdline) {
		if v, ok := strings.CutPrefix(w, "vfs.mount="); ok {
			tag, opts, _ := strings.Cut(v, ":")
			out = append(out, guestproto.MountArgs{Tag: tag, Options: opts})
		}
	}
	return out
}

// readString returns a file's content without blanks around it, "" if it cannot be read.
func readString(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
