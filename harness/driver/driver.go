package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/guestproto"
)

// Case is one kind of host, or of driver.
type Case struct {
	Name string // its checks are called so, with a hyphen and what was looked at
	Does string // one sentence
	run  func(*env) error
}

// Cases are all cases.
func Cases() []Case { return slices.Concat(driverCases, fileSystemCases, limitCases) }

// patience bounds one answer; the machine may be very busy.
const patience = 10 * time.Second

// env is one case with one daemon.
type env struct {
	ctx    context.Context
	daemon frontend.Daemon
	name   string
	dir    string // of the case, empty
	share  string // in it
	checks []guestproto.Check

	proc    *frontend.Process
	cleanup []func() error
}

// Run carries out the cases whose names match (nil: all) with one daemon. Directories and mounts
// are made below dir, and gone afterwards.
func Run(ctx context.Context, d frontend.Daemon, only *regexp.Regexp, dir string) ([]guestproto.Check, error) {
	checks := []guestproto.Check{}
	for _, c := range Cases() {
		if only != nil && !only.MatchString(c.Name) {
			continue
		}
		e := &env{ctx: ctx, daemon: d, name: c.Name, dir: filepath.Join(dir, c.Name)}
		e.share = filepath.Join(e.dir, "share")
		err := os.MkdirAll(e.share, 0o755)
		if err == nil {
			err = c.run(e)
		}
		if err = errors.Join(err, e.end()); err != nil {
			return nil, fmt.Errorf("case %s: %w", c.Name, err)
		}
		checks = append(checks, e.checks...)
	}
	return checks, ctx.Err()
}

// later has something undone at the end of the case, the last first.
func (e *env) later(f func() error) { e.cleanup = append(e.cleanup, f) }

func (e *env) end() error {
	var all []error
	for _, f := range slices.Backward(e.cleanup) {
		all = append(all, f())
	}
	e.cleanup = nil
	if err := errors.Join(all...); err != nil {
		return err // what may still be mounted is not removed
	}
	return os.RemoveAll(e.dir)
}

// declined is what the machine lacks for a check.
type declined string

func (d declined) Error() string { return string(d) }

// inexpressible is what the daemon has no option for.
type inexpressible string

func (i inexpressible) Error() string { return string(i) }

// check notes what came of looking at one thing: nil is right.
func (e *env) check(what string, err error) {
	c := guestproto.Check{Name: e.name + "-" + what, Status: guestproto.StatusPass}
	var no declined
	var none inexpressible
	switch {
	case errors.As(err, &no):
		c.Status, c.Detail = guestproto.StatusSkip, no.Error()
	case errors.As(err, &none):
		c.Status, c.Detail = guestproto.StatusUnsupported, none.Error()
	case err != nil:
		c.Status, c.Detail = guestproto.StatusFail, strings.ReplaceAll(err.Error(), e.dir+"/", "")
	}
	e.checks = append(e.checks, c)
}

// want is an error unless err is the errno; 0 is success.
func want(what string, err error, no unix.Errno) error {
	switch {
	case no == 0 && err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case no != 0 && !errors.Is(err, no):
		got := "success"
		if err != nil {
			got = err.Error()
		}
		return fmt.Errorf("%s: got %s, want %s", what, got, unix.ErrnoName(no))
	}
	return nil
}

// options are words of the daemon's command line, by dialect; a dialect that is not there has no
// way to say it.
type options map[string][]string

// start starts the daemon on the case's share, and opens a session as Linux does. within goes
// before its command line. A daemon that does not come so far fails the check "starts", and the
// client is nil.
func (e *env) start(extra options, within ...string) (*frontend.FUSE, error) {
	words, ok := extra[e.daemon.Dialect]
	if extra != nil && !ok {
		e.check("starts", inexpressible("the daemon has no option for it"))
		return nil, nil
	}
	socket := filepath.Join(e.dir, "s")
	argv, err := e.daemon.Argv(frontend.Options{Share: e.share, Socket: socket, Extra: words})
	if err != nil {
		return nil, err
	}
	f, err := e.connect(append(within, argv...), socket)
	if err == nil {
		_, err = f.Init(0)
	}
	e.check("starts", err)
	if err != nil {
		return nil, nil
	}
	return f, nil
}

func (e *env) connect(argv []string, socket string) (*frontend.FUSE, error) {
	var err error
	if e.proc, err = frontend.Spawn(e.ctx, argv, nil, socket); err != nil {
		return nil, err
	}
	e.later(func() error {
		e.proc.Leave()
		for range 50 { // its namespace goes with its last process, and holds mounts until then
			if len(e.proc.Tree()) == 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		return os.RemoveAll(socket)
	})
	d, err := frontend.Connect(e.ctx, frontend.Config{Socket: socket, Timeout: patience})
	if err != nil {
		return nil, err
	}
	e.later(func() error { d.Close(); return nil })
	return frontend.NewFUSE(d), nil
}

// lives is an error unless the daemon serves on.
func (e *env) lives(f *frontend.FUSE) error {
	if _, err := f.Getattr(frontend.RootNode); err != nil {
		if clean, status, gone := e.proc.Exit(time.Second); gone == nil {
			return fmt.Errorf("the daemon ended (%s, clean %v): %s", status, clean, e.proc.LastLine())
		}
		return fmt.Errorf("GETATTR: %w", err)
	}
	return nil
}
