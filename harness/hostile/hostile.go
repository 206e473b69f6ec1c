package hostile

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
)

// Outcome is what became of a daemon after one case.
type Outcome string

// The outcomes, from good to bad. The zero value is invalid.
const (
	OK          Outcome = "ok"           // it answered with success, and that is right or harmless
	ErrorReply  Outcome = "refused"      // it answered with an errno, or refused the message
	Completed0  Outcome = "completed 0"  // it gave the request back with length 0
	RingStopped Outcome = "ring stopped" // it signalled VRING_ERR for a ring that cannot be interpreted; the others serve on
	Closed      Outcome = "closed"       // it ended the connection and exited on its own terms
	Ignored     Outcome = "ignored"      // no answer to something that has none; all goes on
	BadReply    Outcome = "bad reply"    // the reply contradicts itself or its request
	NeverDone   Outcome = "never done"   // the request stays outstanding; all else goes on
	RootLost    Outcome = "root lost"    // requests are answered, but the root is not there any more, in a new session neither
	QueueDead   Outcome = "queue dead"   // the queue serves nothing more
	AllDead     Outcome = "all dead"     // no queue serves anything more, or the process cannot be ended politely
	Died        Outcome = "died"         // the process ended: by a signal, a panic, an assertion, or with an error of its own
	Kept        Outcome = "kept"         // a thread kept ids or groups of the caller that it had worked for
	Escaped     Outcome = "escaped"      // something outside the share changed or was shown
	Failed      Outcome = "case failed"  // the harness could not do the case
)

// Side says who breaks the rule.
type Side string

// The sides.
const (
	Guest    Side = "guest"
	FrontEnd Side = "front-end"
)

// Case is one rule broken in one way.
type Case struct {
	Name string
	Side Side
	// Rule is the rule broken, with its source.
	Rule string
	// Config changes how the device is brought up.
	Config frontend.Config
	// Prepare changes the host's side of the share before the daemon starts.
	Prepare func(share string) error
	// Launch makes the words before the daemon's command line: a program that executes it in other circumstances. dir is the case's own.
	Launch func(dir string) ([]string, error)
	// Attack does it. For a guest's case the device runs and the session is open; for a front-end's case only NoDevice decides.
	Attack func(*Env) (Outcome, string)
	// NoDevice: the case makes its own connections.
	NoDevice bool
	// NoSession: INIT is not sent before.
	NoSession bool
	// EndsSession: the case ends or disturbs the session, so that it has to be opened again before anything is served.
	EndsSession bool
	// RingMayStop: after this no device can know what the ring holds, so it may stop it, with VRING_ERR.
	RingMayStop bool
	// MayStay: the request cannot be given back, so it may stay outstanding.
	MayStay bool
	// MayClose: the guest is honest, its memory is not there any more; the connection may end.
	MayClose bool
}

// Result is what one case did to one daemon.
type Result struct {
	Case    string  `json:"case"`
	Side    Side    `json:"side"`
	Daemon  string  `json:"daemon"`
	Outcome Outcome `json:"outcome"`
	Detail  string  `json:"detail,omitempty"`
	Pass    bool    `json:"pass"`
	Log     string  `json:"log,omitempty"` // the daemon's last lines; Run keeps them where it did not pass
}

// Env is what an attack works with.
type Env struct {
	Ctx     context.Context
	Proc    *frontend.Process
	Share   string // host path
	Base    string // its parent, where nothing may change
	Dev     *frontend.Device
	FUSE    *frontend.FUSE
	Session frontend.InitReply
	Queue   *frontend.Queue
	Config  frontend.Config

	cleanup []func()
}

// Defer runs f after the case.
func (e *Env) Defer(f func()) { e.cleanup = append(e.cleanup, f) }

// patience is how long one answer, or the end of a process, may take. Daemons answer within a millisecond; the machine may be very busy.
const patience = 5 * time.Second

// secret stands beside the share; no reply may hold it.
const secret = "not for the guest\n"

// RunCase runs one case against one daemon. dir is a new, empty directory for it.
func RunCase(ctx context.Context, d frontend.Daemon, c Case, dir string) (res Result) {
	res = Result{Case: c.Name, Side: c.Side, Daemon: d.Name}
	fail := func(err error) Result {
		res.Outcome, res.Detail = Failed, err.Error()
		return res
	}
	base := filepath.Join(dir, "base")
	share := filepath.Join(base, "share")
	if err := populate(base, share); err != nil {
		return fail(err)
	}
	if c.Prepare != nil {
		if err := c.Prepare(share); err != nil {
			return fail(err)
		}
	}
	before, err := snapshot(base)
	if err != nil {
		return fail(err)
	}
	socket := filepath.Join(dir, "s")
	argv, err := d.Argv(frontend.Options{Share: share, Socket: socket})
	if err != nil {
		return fail(err)
	}
	if c.Launch != nil {
		launcher, err := c.Launch(dir)
		if err != nil {
			return fail(err)
		}
		argv = append(launcher, argv...)
	}
	proc, err := frontend.Spawn(ctx, argv, []string{"GOTRACEBACK=all"}, socket)
	if err != nil {
		return fail(err)
	}
	defer proc.Kill()

	e := &Env{Ctx: ctx, Proc: proc, Share: share, Base: base}
	e.Config = c.Config
	e.Config.Socket, e.Config.Timeout = socket, patience
	defer func() {
		for _, f := range e.cleanup {
			f()
		}
	}()
	res.Outcome, res.Detail, err = attack(e, c)
	if err != nil {
		return fail(err)
	}
	after, err := snapshot(base)
	if err != nil {
		return fail(err)
	}
	if after != before {
		res.Outcome, res.Detail = Escaped, strings.TrimSpace("the share's parent changed; "+res.Detail)
	}
	res.Pass = passes(c, res.Outcome)
	res.Log = tail(proc.Log(), 2000)
	return res
}

func passes(c Case, o Outcome) bool {
	switch o {
	case OK, ErrorReply, Ignored, Completed0:
		return true
	case Closed:
		return c.Side == FrontEnd || c.MayClose
	case RingStopped:
		return c.RingMayStop
	case NeverDone:
		return c.MayStay
	}
	return false
}

func attack(e *Env, c Case) (Outcome, string, error) {
	if !c.NoDevice {
		if err := e.bringUp(c); err != nil {
			return "", "", err
		}
	}
	out, detail := c.Attack(e)
	if out == Escaped || out == Failed {
		return out, detail, nil
	}
	if c.Side == Guest {
		if bad, why := e.stillServes(c, out); bad != "" {
			out, detail = bad, strings.TrimSpace(why+" "+detail)
		}
	}
	if e.Dev != nil {
		e.Dev.Close()
		e.Dev = nil
	}
	for _, f := range e.cleanup {
		f()
	}
	e.cleanup = nil
	if out == Died {
		return out, detail, nil
	}
	if bad, why := e.endsWell(); bad == Died || bad != "" && out != QueueDead {
		out, detail = bad, strings.TrimSpace(why+" "+detail)
	}
	return out, detail, nil
}

func (e *Env) bringUp(c Case) error {
	cfg := e.Config
	cfg.RequestQueues, cfg.FewerQueues = 2, true
	d, err := frontend.Connect(e.Ctx, cfg)
	if err != nil {
		return err
	}
	e.use(d)
	if c.NoSession {
		return nil
	}
	e.Session, err = e.FUSE.Init(0)
	return err
}

func (e *Env) use(d *frontend.Device) {
	e.Dev, e.Queue = d, d.Queues[1]
	e.FUSE = frontend.NewFUSE(d)
	e.FUSE.Timeout = patience
}

// stillServes is what every guest's breach must leave intact.
func (e *Env) stillServes(c Case, so Outcome) (Outcome, string) {
	var same, other error
	if last := len(e.Dev.Queues) - 1; last > 1 {
		other = e.serves(c, last)
	} else {
		other = e.hiprio()
	}
	if so != RingStopped {
		same = e.serves(c, 1)
	}
	var errno unix.Errno
	switch {
	case same == nil && other == nil:
		return "", ""
	case errors.Is(same, frontend.ErrGone) || errors.Is(other, frontend.ErrGone) || !e.Dev.Alive():
		return e.departed()
	case same == nil && so == RingStopped:
		return AllDead, "another queue: " + other.Error()
	case errors.As(same, &errno):
		return RootLost, same.Error()
	case same != nil && other != nil:
		return AllDead, "GETATTR: " + same.Error()
	case other != nil:
		return QueueDead, "another queue: " + other.Error()
	case errors.Is(same, frontend.ErrRingStopped) && c.RingMayStop:
		return RingStopped, ""
	}
	return QueueDead, "GETATTR on the same queue: " + same.Error()
}

// departed tells how a daemon left that has closed its connection.
func (e *Env) departed() (Outcome, string) {
	clean, status, err := e.Proc.Exit(patience)
	switch {
	case err != nil:
		return Closed, "the daemon closed the connection"
	case clean && !crashed(e.Proc.Log()) && status == "exit 0":
		return Closed, "the daemon left"
	}
	return Died, status + ": " + e.Proc.LastLine()
}

// serves asks for the root's attributes on a queue. A session that the case has ended is opened again.
func (e *Env) serves(c Case, queue int) error {
	f := e.FUSE.On(e.Dev.Queues[queue])
	_, err := f.Getattr(frontend.RootNode)
	var errno unix.Errno
	if errors.As(err, &errno) && (c.NoSession || c.EndsSession) {
		if _, err := f.Init(0); err != nil {
			return err
		}
		_, err = f.Getattr(frontend.RootNode)
	}
	return err
}

// hiprio sends a FORGET of a node that was just looked up.
func (e *Env) hiprio() error { return e.FUSE.Forget(1<<40, 1) }

// endsWell: the front-end has left, so the daemon has to exit, with a status of its own and without a trace of a crash.
func (e *Env) endsWell() (Outcome, string) {
	clean, status, err := e.Proc.Exit(patience)
	switch {
	case err != nil:
		return AllDead, "the daemon does not end when its front-end has left"
	case !clean:
		return Died, status + ": " + e.Proc.LastLine()
	case crashed(e.Proc.Log()):
		return Died, status + ": " + crash.FindString(e.Proc.Log())
	}
	return "", ""
}

var crash = regexp.MustCompile(`(?m)(^panic: .*|^fatal error: .*|^unexpected fault address.*|^SIG[A-Z]+: .*|panicked at .*|Assertion .* failed.*|^goroutine \d+ .*)`)

// crashed reports whether a daemon's log shows the end of a program and not a message of its author.
func crashed(log string) bool { return crash.MatchString(log) }

func populate(base, share string) error {
	if err := os.MkdirAll(filepath.Join(share, "dir", "sub"), 0o755); err != nil {
		return err
	}
	for name, data := range map[string]string{
		filepath.Join(base, "secret"):         secret,
		filepath.Join(share, "file"):          strings.Repeat("0123456789abcdef", 4096),
		filepath.Join(share, "dir", "inside"): "inside\n",
	} {
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			return err
		}
	}
	return os.Mkdir(filepath.Join(base, "victim"), 0o755)
}

// snapshot is everything in the share's parent but the share's own contents.
func snapshot(base string) (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(base, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if p == filepath.Join(base, "share") {
			fmt.Fprintln(&b, p)
			return filepath.SkipDir
		}
		fmt.Fprintln(&b, p, info.Mode(), info.Sys() != nil)
		fmt.Fprintln(&b, info.ModTime()) // of a directory, too: what came and went has been there
		if d.IsDir() {
			return nil
		}
		fmt.Fprintln(&b, info.Size())
		if d.Type().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%x\n", sha256.Sum256(data))
		}
		return nil
	})
	return b.String(), err
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

// Run runs all cases (or those whose name matches only) against all daemons, two at a time, and reports each result to
// progress as it comes. Results are ordered by case, then daemon.
func Run(ctx context.Context, daemons []frontend.Daemon, only *regexp.Regexp, progress func(Result)) ([]Result, error) {
	dir, err := os.MkdirTemp("", "hostile")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var cases []Case
	for _, c := range Cases() {
		if only == nil || only.MatchString(c.Name) {
			cases = append(cases, c)
		}
	}
	results := make([]Result, len(cases)*len(daemons))
	slots := make(chan struct{}, 2)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i, c := range cases {
		for j, d := range daemons {
			slots <- struct{}{}
			wg.Add(1)
			go func() {
				defer func() { <-slots; wg.Done() }()
				n := i*len(daemons) + j
				own := filepath.Join(dir, fmt.Sprint(n))
				if err := os.Mkdir(own, 0o755); err != nil {
					results[n] = Result{Case: c.Name, Daemon: d.Name, Outcome: Failed, Detail: err.Error()}
					return
				}
				ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
				defer cancel()
				results[n] = RunCase(ctx, d, c, own)
				if results[n].Pass {
					results[n].Log = ""
				}
				os.RemoveAll(own)
				if progress != nil {
					mu.Lock()
					progress(results[n])
					mu.Unlock()
				}
			}()
		}
	}
	wg.Wait()
	return results, ctx.Err()
}
