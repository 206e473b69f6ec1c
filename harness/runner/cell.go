package runner

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"virtiofsd/harness/driver"
	"virtiofsd/harness/frontend"
	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/hostile"
	"virtiofsd/harness/impl"
	"virtiofsd/harness/launch"
	"virtiofsd/harness/probe"
	"virtiofsd/harness/qemu"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
)

// Bounds of a cell's parts. They are generous: a guest without acceleration beside another one on two cores is slow, and only a
// part that hangs should meet its bound.
const (
	helloIn    = 120 * time.Second
	stepIn     = 240 * time.Second
	powerOffIn = 60 * time.Second
	exitIn     = 15 * time.Second // from QEMU's end to the daemon's
)

// shareTag is the virtio-fs tag that guests see.
const shareTag = "share"

// cell is one cell being run.
type cell struct {
	*run
	job
	id    result.CellID
	dir   string // in the run's folder
	start time.Time
	out   result.Cell
	seen  []result.Observation

	work, share, outside, socket string
	lock                         *os.File // says that work is in use; a file that nobody refers to is closed by the collector
	secret                       string
	before                       probe.Snapshot
	mounts                       []string    // of ours, before
	spec                         launch.Spec // of the daemon
	daemon                       *launch.Daemon
	vm                           *qemu.VM
	stuck                        string // why no further guest step can be taken
}

func (c *cell) broken(format string, args ...any) {
	c.out.Status, c.out.Reason = result.CellBroken, oneLine(fmt.Sprintf(format, args...))
}

func (c *cell) skip(word result.SkipWord, reason string) {
	c.out.Status, c.out.Skip, c.out.Reason = result.CellSkipped, word, oneLine(reason)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// play runs the cell from beginning to end; c.out says what became of it.
func (c *cell) play(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx) // whatever happens, what was started ends with it
	defer cancel()
	if !c.admitted() {
		return
	}
	defer c.clean()
	if err := c.prepare(); err != nil {
		c.broken("prepare the cell: %v", err)
		return
	}
	if !c.launch(ctx) {
		return
	}
	defer c.daemon.Kill()
	c.settle(ctx)
	c.steps(ctx, scenario.AtStarted)
	if !c.boot(ctx) {
		return
	}
	c.steps(ctx, scenario.AtMounted)
	c.end(ctx)
	if c.out.Status == "" {
		c.out.Status = result.CellRan
	}
}

// admitted checks what can be known before anything is made.
func (c *cell) admitted() bool {
	if c.i.Missing != "" {
		c.skip(result.SkipImpl, c.i.Missing)
		return false
	}
	needs := slices.Clone(c.s.Needs)
	if c.s.Launch.As != "" && c.s.Launch.As != "root" {
		needs = append(needs, "root")
	}
	if c.s.Launch.Capabilities != nil {
		needs = append(needs, "setpriv")
	}
	for _, n := range needs {
		err := c.need(n)
		switch {
		case err == nil:
		case c.must(n):
			c.broken("the scenario needs %s, which must not be missing here: %v", n, err)
			return false
		default:
			c.skip(result.SkipNeed, fmt.Sprintf("%s: %v", n, err))
			return false
		}
	}
	_, err := c.i.Argv(c.options())
	var no *impl.InexpressibleError
	if errors.As(err, &no) {
		c.skip(result.SkipInexpressible, no.Error())
		return false
	}
	return true
}

func (c *cell) options() impl.Options {
	return impl.Options{SharedDir: c.share, SocketPath: c.socket, Options: c.s.Options}
}

// prepare makes the work directory: share, sentinels, plants.
func (c *cell) prepare() error {
	var err error
	if c.work, c.lock, err = workDir(c.Work); err != nil {
		return err
	}
	work := c.work
	c.share, c.outside, c.socket = filepath.Join(work, "share"), filepath.Join(work, "outside"), filepath.Join(work, "run", "vhost.sock")
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return err
	}
	c.secret = fmt.Sprintf("secret-%x", b)
	for _, d := range []string{c.share, c.outside, filepath.Dir(c.socket), filepath.Join(c.outside, "dir")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	// The sentinels are readable by all: only the sandbox keeps the guest from them.
	for _, f := range []string{"sentinel", "dir/sentinel"} {
		if err := os.WriteFile(filepath.Join(c.outside, f), []byte(c.secret), 0o666); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(c.outside, f), 0o666); err != nil {
			return err
		}
	}
	for _, p := range c.s.Plant {
		if err := c.plant(p); err != nil {
			return fmt.Errorf("plant %s: %w", p.Path, err)
		}
	}
	owner, mode := c.s.Share, c.s.Share.Mode
	if mode == 0 {
		mode = 0o755
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(c.share, owner.UID, owner.GID); err != nil {
			return err
		}
		// The daemon may run as an id of a range that only the scenario's wrapper knows.
		if err := os.Chmod(filepath.Dir(c.socket), 0o777|fs.ModeSticky); err != nil {
			return err
		}
	}
	if err := os.Chmod(c.share, fileMode(mode)); err != nil {
		return err
	}
	if c.before, err = probe.TakeSnapshot(c.outside); err != nil {
		return err
	}
	c.mounts, err = probe.MountPoints(os.Getpid())
	return err
}

// clean removes the work directory, where there is one.
func (c *cell) clean() {
	if c.lock == nil {
		return
	}
	if err := remove(c.work); err != nil { // the next run's sweep tries again
		c.Log.Warn("cannot remove a cell's work directory", "err", err)
	}
	c.lock.Close()
}

// user is whom the scenario's launcher is, nil for ourselves.
func (c *cell) user() *launch.User {
	l := c.s.Launch
	if l.As == "" && l.UID == 0 && l.GID == 0 && len(l.Groups) == 0 {
		return nil
	}
	return &launch.User{UID: l.UID, GID: l.GID, Groups: l.Groups}
}

// launch starts the daemon; false means that the cell is over.
func (c *cell) launch(ctx context.Context) bool {
	c.progress(Event{Cell: c.id, Step: "daemon"})
	err := c.startDaemon(ctx)
	var refused *launch.RefusedError
	switch {
	case errors.As(err, &refused):
		c.refused(refused)
		return false
	case err != nil:
		c.broken("%v", err)
		return false
	}
	c.out.Argv = c.daemon.Argv
	if err := c.repro(); err != nil {
		c.broken("write repro.sh: %v", err)
		return false
	}
	return true
}

// startDaemon starts the daemon as the scenario's launcher does.
func (c *cell) startDaemon(ctx context.Context) error {
	i, etc, err := c.reachable()
	if err != nil {
		return fmt.Errorf("prepare the daemon's files: %w", err)
	}
	if err := c.accounts(etc); err != nil {
		return fmt.Errorf("prepare the daemon's accounts: %w", err)
	}
	c.spec = launch.Spec{Impl: i, Options: c.options(), As: c.user(), Wrap: c.wrap(), Dir: c.dir, Etc: etc}
	if c.s.Launch.Capabilities != nil {
		c.spec.As = nil // setpriv changes the user, too: the bounding set must shrink before
	}
	c.daemon, err = launch.Start(ctx, c.spec)
	return err
}

func (c *cell) anotherSocket() string {
	return filepath.Join(filepath.Dir(c.socket), "another.sock")
}

// another starts a second daemon on the same share, with a socket and a folder of its own.
func (c *cell) another(ctx context.Context) (*launch.Daemon, error) {
	spec := c.spec
	spec.Options.SocketPath = c.anotherSocket()
	spec.Dir = filepath.Join(c.dir, "another")
	if err := os.MkdirAll(spec.Dir, 0o755); err != nil {
		return nil, err
	}
	return launch.Start(ctx, spec)
}

// settle waits until the daemon's processes sleep and do not change any more: the socket may be there before the sandbox is. Nobody has
// connected yet, so a daemon that waits for that stays as it is, and is seen so.
func (c *cell) settle(ctx context.Context) {
	const quiet, most, tick = 400 * time.Millisecond, 10 * time.Second, 40 * time.Millisecond
	last, since := "", time.Now()
	for begun := since; time.Since(begun) < most && time.Since(since) < quiet && ctx.Err() == nil; time.Sleep(tick) {
		if now, asleep := c.fingerprint(); now != last || !asleep {
			last, since = now, time.Now()
		}
	}
}

// fingerprint is what of the daemon's processes changes while a sandbox is entered, and whether all their threads sleep: on a busy machine
// one that wants to go on may have to wait for long.
func (c *cell) fingerprint() (state string, asleep bool) {
	var b strings.Builder
	asleep = true
	for _, pid := range c.daemon.Tree() {
		proc := fmt.Sprintf("/proc/%d/", pid)
		for _, link := range []string{"ns/mnt", "ns/pid", "ns/user", "ns/net", "root", "exe"} {
			to, _ := os.Readlink(proc + link) // "" is a state, too
			b.WriteString(to + " ")
		}
		status, _ := os.ReadFile(proc + "status")
		for line := range strings.Lines(string(status)) {
			if name, _, _ := strings.Cut(line, ":"); slices.Contains([]string{"Uid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Threads"}, name) {
				b.WriteString(line)
			}
		}
		threads, _ := filepath.Glob(proc + "task/*/status") // the pattern is sound
		for _, t := range threads {
			status, _ := os.ReadFile(t) // it may have ended
			if len(status) > 0 && !bytes.Contains(status, []byte("\nState:\tS")) {
				asleep = false
			}
		}
	}
	return b.String(), asleep
}

func (c *cell) refused(e *launch.RefusedError) {
	c.out.Status, c.out.Reason = result.CellRefused, oneLine(e.Last)
	if e.Hung {
		c.out.Reason = oneLine(e.Error())
	}
	status := e.Exit.Status
	c.out.Exit = &status
	b, err := os.ReadFile(filepath.Join(c.dir, launch.ArgvFile))
	if err == nil {
		c.out.Argv = strings.Split(strings.TrimSpace(string(b)), "\n")
	}
	if log, err := os.ReadFile(filepath.Join(c.dir, launch.LogFile)); err == nil {
		c.note(scenario.ProbeLog, scenario.ProbeLog, result.Host, probe.CollectLog(log), nil)
	}
}

// boot starts the guest and waits until it has tried to mount the share; false means that the cell is over.
func (c *cell) boot(ctx context.Context) bool {
	c.progress(Event{Cell: c.id, Step: "guest"})
	img, ok := c.Kernels[c.k]
	if !ok {
		c.broken("no guest image of kernel %s", c.k)
		return false
	}
	g := c.s.Guest
	vm, err := qemu.Start(ctx, qemu.Config{
		Binary: c.QEMU, Accel: c.Accel, Kernel: img.Kernel, Initrd: img.Initrd, MemMiB: g.MemMiB, CPUs: g.CPUs,
		Shares: []qemu.Share{{Socket: c.socket, Tag: shareTag, RequestQueues: g.RequestQueues, QueueSize: g.QueueSize, MountOptions: g.MountOptions}},
		Dir:    c.dir, HelloTimeout: c.HelloIn, Logger: c.Log,
	})
	var hello *guestproto.Hello
	if err == nil {
		c.vm = vm
		var after time.Duration
		hello, after, err = vm.Hello(ctx)
		c.out.Boot = after.Seconds()
	}
	if err == nil && mounted(hello) {
		c.note("hello", "hello", result.Guest, hello, nil)
		return true
	}
	// Did the daemon leave? It may take a moment to die of what broke the guest.
	select {
	case <-c.daemon.Done():
		if c.vm != nil {
			c.vm.Kill()
		}
		if qemusFault(err, c.daemon.Exit()) {
			c.broken("%v", err)
			return false
		}
		c.refused(&launch.RefusedError{Exit: c.daemon.Exit(), Last: c.daemon.LastLine()})
		return false
	case <-time.After(time.Second):
	}
	if err != nil {
		if c.vm == nil && !strings.Contains(err.Error(), "vhost") {
			c.broken("%v", err)
			return false
		}
		var ge *qemu.GuestError
		if !errors.As(err, &ge) || ge.Reason == qemu.ReasonPanic || ge.Reason == qemu.ReasonAgent {
			c.broken("%v", err)
			return false
		}
		c.stuck = oneLine(err.Error())
	} else {
		c.note("hello", "hello", result.Guest, hello, nil)
		c.stuck = "the guest could not mount the share: " + hello.Mounts[0].Errno
	}
	return true
}

// qemusFault reports whether QEMU gave up by itself, or the guest's kernel died, for a reason that is not the share's: the daemon then ended
// in order, as it does when its front-end leaves.
func qemusFault(err error, daemon launch.Exit) bool {
	var ge *qemu.GuestError
	if errors.As(err, &ge) && ge.Reason == qemu.ReasonPanic {
		return true
	}
	return errors.As(err, &ge) && ge.Reason == qemu.ReasonExited && ge.Console == "" && daemon.Status == 0 && !aboutShare.MatchString(ge.Detail)
}

// aboutShare are words of QEMU's messages about the share's device and its socket.
var aboutShare = regexp.MustCompile(`(?i)vhost|virtio|chardev|connect|fs[0-9]`)

func mounted(h *guestproto.Hello) bool { return len(h.Mounts) == 1 && h.Mounts[0].OK }

// steps takes the scenario's steps of a phase.
func (c *cell) steps(ctx context.Context, phase string) {
	for _, s := range c.s.Steps {
		if s.At != phase || s.Probe == scenario.ProbeExit || ctx.Err() != nil {
			continue
		}
		c.progress(Event{Cell: c.id, Step: s.Name})
		if s.Where() == result.Guest {
			facts, err := c.guestStep(ctx, s)
			c.note(s.Name, s.Probe, result.Guest, facts, err)
			continue
		}
		facts, err := c.hostStep(ctx, s)
		c.note(s.Name, s.Probe, result.Host, facts, err)
	}
}

// note records an observation.
func (c *cell) note(step, what string, where result.Where, facts any, err error) {
	o := result.Observation{Step: step, Probe: what, Where: where, T: time.Since(c.start).Seconds()}
	if err == nil {
		o.Facts, err = json.Marshal(facts)
	}
	if err != nil {
		o.Facts, o.Error, o.Gone = nil, oneLine(err.Error()), errors.Is(err, errGone)
	}
	c.seen = append(c.seen, o)
}

// guestStep runs one call in the guest.
func (c *cell) guestStep(ctx context.Context, s scenario.Step) (any, error) {
	if c.stuck != "" {
		return nil, errors.New(c.stuck)
	}
	args, stop, err := c.args(s)
	if err != nil {
		return nil, err
	}
	bound := stepIn
	if s.TimeoutS > 0 {
		bound = time.Duration(s.TimeoutS * float64(time.Second))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("no result within %v", bound))
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	go missDaemon(ctx, c.daemon.Done(), withoutDaemon, giveUp)
	var facts json.RawMessage
	err = c.vm.Call(ctx, s.Probe, args, &facts)
	more := stop()
	var callErr *qemu.CallError
	if err != nil && !errors.As(err, &callErr) {
		c.stuck = fmt.Sprintf("no more since step %s: %v", s.Name, err)
	}
	if err == nil && len(more) > 0 {
		all := map[string]any{}
		if err := json.Unmarshal(facts, &all); err != nil {
			return nil, fmt.Errorf("decode the facts of %s: %w", s.Probe, err)
		}
		maps.Copy(all, more)
		return all, nil
	}
	return facts, err
}

// withoutDaemon is how long a call of a guest whose daemon has ended may still take: most wait for an answer that will not come.
const withoutDaemon = 10 * time.Second

// missDaemon gives a guest's call up when the daemon has ended for as long as patience.
func missDaemon(ctx context.Context, ended <-chan struct{}, patience time.Duration, giveUp context.CancelCauseFunc) {
	select {
	case <-ctx.Done():
		return
	case <-ended:
	}
	select {
	case <-ctx.Done():
	case <-time.After(patience):
		giveUp(fmt.Errorf("the daemon has ended, and the guest waited for it for %v", patience))
	}
}

// errGone is what a probe of the daemon's process finds when there is none.
var errGone = errors.New("the daemon has ended")

// hostStep runs one probe on the host.
func (c *cell) hostStep(ctx context.Context, s scenario.Step) (any, error) {
	raw, err := json.Marshal(c.substitute(s.Args))
	if err != nil {
		return nil, err
	}
	t := probe.Target{Launcher: c.daemon.Launcher(), Tree: c.daemon.Tree(), Serving: c.daemon.ServingPID(), Share: c.share}
	switch s.Probe {
	case scenario.ProbeProc, scenario.ProbeMounts, scenario.ProbeFDs:
		if t.Serving == 0 {
			return nil, errGone
		}
	}
	switch s.Probe {
	case scenario.ProbeProc:
		return probe.CollectProc(t)
	case scenario.ProbeMounts:
		return probe.CollectMounts(t)
	case scenario.ProbeFDs:
		return probe.CollectFDs(t)
	case scenario.ProbeOwners:
		var a probe.OwnersArgs
		if err := json.Unmarshal(raw, &a); err != nil {
			return nil, err
		}
		return probe.CollectOwners(c.share, a)
	case scenario.ProbeSHA256:
		var a probe.SHA256Args
		if err := json.Unmarshal(raw, &a); err != nil {
			return nil, err
		}
		return probe.CollectSHA256(c.share, a)
	case scenario.ProbeOutside:
		return probe.CollectOutside(c.outside, c.before)
	case scenario.ProbeLog:
		b, err := c.daemon.Log()
		if err != nil {
			return nil, err
		}
		return probe.CollectLog(b), nil
	case scenario.ProbeHostile:
		return c.hostile(ctx, raw)
	case scenario.ProbeDriven:
		return c.driven(ctx, raw)
	case scenario.ProbeMoves:
		return c.moves(ctx, raw)
	}
	return nil, fmt.Errorf("no host probe %q", s.Probe)
}

// fresh is the cell's implementation, for daemons without a guest.
func (c *cell) fresh() frontend.Daemon {
	return frontend.Daemon{Name: c.i.Name, Dialect: c.i.Dialect, Exec: append(slices.Clone(c.i.Prefix), c.i.Path), Sandbox: c.s.Options.Sandbox}
}

// driven has daemons of the cell's implementation serve on other hosts, each a new one.
func (c *cell) driven(ctx context.Context, raw []byte) (*probe.Driven, error) {
	var a probe.DrivenArgs
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, err
	}
	only, err := regexp.Compile(a.Only)
	if err != nil {
		return nil, fmt.Errorf("only: %w", err)
	}
	all, err := driver.Run(ctx, c.fresh(), only, filepath.Join(c.work, scenario.ProbeDriven))
	return &probe.Driven{Checks: all}, err
}

// hostile attacks daemons of the cell's implementation, each a new one.
func (c *cell) hostile(ctx context.Context, raw []byte) (*probe.Hostile, error) {
	var a probe.HostileArgs
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, err
	}
	only, err := regexp.Compile(a.Only)
	if err != nil {
		return nil, fmt.Errorf("only: %w", err)
	}
	results, err := hostile.Run(ctx, []frontend.Daemon{c.fresh()}, only, nil)
	if err != nil {
		return nil, err
	}
	facts := &probe.Hostile{Cases: []probe.HostileCase{}}
	for _, r := range results {
		if r.Outcome == hostile.Failed {
			return nil, fmt.Errorf("case %s: %s", r.Case, r.Detail)
		}
		facts.Cases = append(facts.Cases, probe.HostileCase{Name: r.Case, Side: string(r.Side), Outcome: string(r.Outcome), Withstood: r.Pass, Detail: r.Detail})
	}
	return facts, nil
}

// autopsy keeps what the daemon's threads wait for in the cell's folder: a guest that does not end for no reason that is known has met a
// bug which does not show every time.
func (c *cell) autopsy() {
	var b strings.Builder
	for _, pid := range c.daemon.Tree() {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid)) // the pattern is sound
		for _, t := range tasks {
			fmt.Fprintln(&b, t)
			for _, f := range []string{"comm", "wchan", "syscall", "stack"} {
				text, _ := os.ReadFile(filepath.Join(t, f)) // it may have ended, or not be ours to see
				fmt.Fprintf(&b, "  %s: %s\n", f, strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "\n    "))
			}
		}
	}
	if err := os.WriteFile(filepath.Join(c.dir, "threads.txt"), []byte(b.String()), 0o644); err != nil {
		c.Log.Warn("cannot keep what the daemon waits for", "cell", c.id.String(), "err", err)
	}
}

// end powers the guest off, waits for the daemon, takes the last steps and records the exit.
func (c *cell) end(ctx context.Context) {
	c.progress(Event{Cell: c.id, Step: "end"})
	c.daemon.Tree() // what lives now is what must be gone later
	e := probe.Exit{QEMU: -1, Processes: []int{}, Mounts: []string{}, Files: []string{}}
	if c.vm != nil {
		bound, cancel := context.WithTimeoutCause(ctx, powerOffIn, fmt.Errorf("no end within %v", powerOffIn))
		if c.stuck != "" {
			c.vm.Kill()
		}
		exit, err := c.vm.PowerOff(bound)
		cancel()
		if err != nil {
			if c.stuck == "" {
				c.autopsy()
			}
			c.Log.Debug("guest did not power off in order", "cell", c.id.String(), "err", err)
		}
		e.GuestDone, e.QEMU = exit.Done, exit.Status
	}
	since := time.Now()
	bound, cancel := context.WithTimeout(ctx, exitIn)
	exit, err := c.daemon.Wait(bound)
	cancel()
	if err != nil {
		e.Killed, e.Status, e.Seconds = true, -1, time.Since(since).Seconds()
		c.daemon.Kill()
	} else {
		e.Status, e.Signal, e.Seconds = exit.Status, exit.Signal, max(0, exit.At.Sub(since).Seconds())
		// Its other processes end with it, but not at the same instant.
		for range 40 {
			if e.Processes = c.daemon.Left(); len(e.Processes) == 0 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	e.Files = append(e.Files, c.daemon.Leftovers()...)
	for i, f := range e.Files {
		e.Files[i] = filepath.Base(f)
	}
	if e.Mounts, err = probe.NewMounts(os.Getpid(), c.mounts); err == nil {
		e.Mounts = slices.DeleteFunc(e.Mounts, func(m string) bool { return !strings.HasPrefix(m, c.work) })
	}
	c.steps(ctx, scenario.AtEnded)
	c.note(scenario.ProbeExit, scenario.ProbeExit, result.Host, e, err)
}
