package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// Env is what a call needs of the agent.
type Env struct {
	Shares *Shares
	// Progress reports a sign of life; it may be called often, and passes on at most one report a second.
	Progress func(step string, done, total int64)
	Modules  []string // for Info
	// LocalDir is where Where.Local works; "" is /tmp/local.
	LocalDir string
	// Self is the program that Child is part of; "" is /proc/self/exe.
	Self string

	// Holding is what lasts from the call hold to the call held.
	Holding *Holding

	lastProgress time.Time
}

// progress passes on a report, at most one a second.
func (e *Env) progress(step string, done, total int64) {
	if e.Progress == nil || time.Since(e.lastProgress) < time.Second {
		return
	}
	e.lastProgress = time.Now()
	e.Progress(step, done, total)
}

func (e *Env) self() string {
	if e.Self == "" {
		return "/proc/self/exe"
	}
	return e.Self
}

func (e *Env) localDir() string {
	if e.LocalDir == "" {
		return "/tmp/local"
	}
	return e.LocalDir
}

// place is a [guestproto.Where] resolved.
type place struct {
	root string // mount point of the share, or the local directory
	dir  string // where the call works, under root
	rel  string // dir relative to root
}

// place makes the call's directory.
func (e *Env) place(w guestproto.Where, call string) (place, error) {
	var p place
	switch {
	case w.Local:
		p.root = e.localDir()
		if err := os.MkdirAll(p.root, 0o755); err != nil {
			return p, err
		}
	default:
		m, err := e.Shares.find(w.Share)
		if err != nil {
			return p, err
		}
		p.root = m.Dir
	}
	p.rel = w.Dir
	if p.rel == "" {
		p.rel = call
	}
	p.rel = filepath.Clean("/" + p.rel)[1:]
	p.dir = filepath.Join(p.root, p.rel)
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return p, fmt.Errorf("make the call's directory: %w", err)
	}
	return p, nil
}

// Run carries out one call and returns its facts.
func Run(e *Env, call string, raw json.RawMessage) (any, error) {
	switch call {
	case guestproto.CallInfo:
		return with(raw, e.info)
	case guestproto.CallPosixTest:
		return with(raw, e.posixTest)
	case guestproto.CallBasics:
		return with(raw, e.basics)
	case guestproto.CallBigIO:
		return with(raw, e.bigIO)
	case guestproto.CallTree:
		return with(raw, e.tree)
	case guestproto.CallContainment:
		return with(raw, e.containment)
	case guestproto.CallIdentity:
		return with(raw, e.identity)
	case guestproto.CallDurability:
		return with(raw, e.durability)
	case guestproto.CallExec:
		return with(raw, e.exec)
	case guestproto.CallWalk:
		return with(raw, e.walk)
	case guestproto.CallDiffer:
		return with(raw, e.differ)
	case guestproto.CallChurn:
		return with(raw, e.churn)
	case guestproto.CallFsx:
		return with(raw, e.fsx)
	case guestproto.CallReadonly:
		return with(raw, e.readonly)
	case guestproto.CallHold:
		return with(raw, e.hold)
	case guestproto.CallHeld:
		return with(raw, e.held)
	case guestproto.CallMount:
		return with(raw, func(a guestproto.MountArgs) (guestproto.Mount, error) { return e.Shares.Mount(a), nil })
	case guestproto.CallUnmount:
		return with(raw, func(a guestproto.MountArgs) (guestproto.Mount, error) { return e.Shares.Unmount(a.Tag) })
	case guestproto.CallSleep:
		return with(raw, func(a guestproto.SleepArgs) (struct{}, error) {
			time.Sleep(time.Duration(a.Seconds * float64(time.Second)))
			return struct{}{}, nil
		})
	case guestproto.CallPanic:
		panic("as asked for")
	}
	return nil, fmt.Errorf("unknown call %q", call)
}

// with decodes the arguments, strictly: a misspelt argument would silently weaken a probe.
func with[A, F any](raw json.RawMessage, f func(A) (F, error)) (any, error) {
	var a A
	if len(raw) > 0 {
		d := json.NewDecoder(strings.NewReader(string(raw)))
		d.DisallowUnknownFields()
		if err := d.Decode(&a); err != nil {
			return nil, fmt.Errorf("decode arguments: %w", err)
		}
	}
	facts, err := f(a)
	if err != nil {
		return nil, err
	}
	return facts, nil
}

// errnoName returns the symbolic name of the errno in err, "" for nil, and the error's text if it holds none.
func errnoName(err error) string {
	if err == nil {
		return ""
	}
	var no unix.Errno
	if errors.As(err, &no) {
		if n := unix.ErrnoName(no); n != "" {
			return n
		}
		return fmt.Sprintf("errno %d", int(no))
	}
	return err.Error()
}

// Uptime is the time since the kernel started, in seconds.
func Uptime() float64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return -1
	}
	return float64(ts.Sec) + float64(ts.Nsec)/1e9
}
