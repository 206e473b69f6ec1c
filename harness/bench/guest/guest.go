package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"virtiofsd/harness/bench"
	"virtiofsd/harness/frontend"
	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/impl"
	"virtiofsd/harness/qemu"
	"virtiofsd/harness/runner"
	"virtiofsd/harness/scenario"
	vmimages "virtiofsd/vm-images"
)

// Options say what to measure. Zero values are the defaults of a full run.
type Options struct {
	Impls    []*impl.Impl
	Variants map[string]string   // an implementation that is another one with Extra options: what it is a variant of
	Extra    map[string][]string // further options of a daemon, by name
	Only     *regexp.Regexp      // programs by name; nil = all
	Rounds   int                 // 0 = 3
	Time     time.Duration       // of each run of fio; 0 = 5 s
	Image    vmimages.Image      // of the guest
	Cache    vmimages.Dirs       // where fio and git are, or are fetched to
	Accel    string              // auto, kvm, tcg
	QEMU     string              // QEMU's program; "" = its default
	Dir      string              // where the share is made; "" = the directory for temporary files
	Idle     bench.Idle          // "" = bench.Awake
	Log      *slog.Logger
	Progress func(string) // a line for each program; may be nil
}

// Sample is one program with one daemon in one round.
type Sample struct {
	Program string  `json:"program"`
	Daemon  string  `json:"daemon"`
	Round   int     `json:"round"`
	Seconds float64 `json:"seconds"`         // on the guest's clock
	CPU     float64 `json:"cpu_s"`           // processor time of the daemon's tree
	FIO     *FIO    `json:"fio,omitempty"`   // what fio says
	Bad     string  `json:"error,omitempty"` // why there are no figures
}

// Report is everything that was measured.
type Report struct {
	Started  string            `json:"started"`
	Host     map[string]string `json:"host"`
	Kernel   string            `json:"kernel"`           // the guest's
	Accel    string            `json:"accel"`            // kvm or tcg
	NoKVM    string            `json:"no_kvm,omitempty"` // why tcg, where auto was asked for
	Versions map[string]string `json:"versions"`         // of daemons and of fetched programs
	Rounds   int               `json:"rounds"`
	Daemons  []string          `json:"daemons"`
	Variants map[string]string `json:"variants,omitempty"` // as in Options
	Options  map[string]string `json:"options,omitempty"`  // of variants
	Programs []Program         `json:"programs"`
	Samples  []Sample          `json:"samples"`
}

// guestMiB has room for the programs and what they keep.
const guestMiB = 1024

// bed is where daemons are measured.
type bed struct {
	Options
	dir, template string
	fetched       map[string]*vmimages.Program
}

// Run measures. A daemon that fails a program gets a Sample with the error, and the run goes on.
func Run(ctx context.Context, o Options) (*Report, error) {
	o.Rounds, o.Time = cmp.Or(o.Rounds, 3), cmp.Or(o.Time, 5*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	r := &Report{
		Started: time.Now().UTC().Format(time.RFC3339), Kernel: o.Image.Version, Rounds: o.Rounds, Versions: map[string]string{}, Programs: Chosen(o.Only),
		Variants: o.Variants, Options: map[string]string{},
	}
	if len(r.Programs) == 0 {
		return nil, fmt.Errorf("no program fits %s", o.Only)
	}
	if o.Accel == "" || o.Accel == "auto" {
		var ok bool
		o.Accel = "tcg"
		if ok, r.NoKVM = qemu.ProbeKVM(ctx, cmp.Or(o.QEMU, qemu.DefaultBinary)); ok {
			o.Accel, r.NoKVM = "kvm", ""
		}
	}
	r.Accel = o.Accel
	b := &bed{Options: o, fetched: map[string]*vmimages.Program{}}
	for _, p := range r.Programs {
		if p.needs == "" || b.fetched[p.needs] != nil {
			continue
		}
		f, err := vmimages.EnsureProgram(ctx, o.Cache, p.needs, o.Log)
		if err != nil {
			return nil, err
		}
		b.fetched[p.needs], r.Versions[p.needs] = f, f.Version
	}
	for _, i := range o.Impls {
		r.Daemons = append(r.Daemons, i.Name)
		r.Versions[i.Name] = i.Version
		if o.Variants[i.Name] != "" {
			r.Options[i.Name] = strings.Join(o.Extra[i.Name], " ")
		}
	}
	var err error
	if b.dir, err = os.MkdirTemp(o.Dir, "vfsbench"); err != nil {
		return nil, fmt.Errorf("make a directory for the share: %w", err)
	}
	defer os.RemoveAll(b.dir)
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return nil, err
	}
	r.Host = bench.Host(b.dir)
	how, release := o.Idle.Keep()
	defer release()
	r.Host["idle"] = how
	b.template = filepath.Join(b.dir, "template")
	if err := b.makeTemplate(ctx); err != nil {
		return nil, fmt.Errorf("make the share: %w", err)
	}
	for round := range o.Rounds {
		for n := range o.Impls {
			i := o.Impls[(n+round)%len(o.Impls)]
			b.turn(ctx, r, i, round)
			if ctx.Err() != nil {
				return r, context.Cause(ctx)
			}
		}
	}
	if !slices.ContainsFunc(r.Samples, func(s Sample) bool { return s.Bad == "" }) {
		return r, fmt.Errorf("nothing could be measured: %s", r.Samples[0].Bad)
	}
	return r, nil
}

// turn measures one daemon in one round.
func (b *bed) turn(ctx context.Context, r *Report, i *impl.Impl, round int) {
	say := func(format string, a ...any) {
		b.Progress(fmt.Sprintf("round %d of %d, %s: ", round+1, b.Rounds, i.Name) + fmt.Sprintf(format, a...))
	}
	began := time.Now()
	g, err := b.up(ctx, i)
	if err == nil {
		defer g.Kill()
		say("the guest is up in %.1f s", time.Since(began).Seconds())
	}
	for _, p := range r.Programs {
		s := Sample{Program: p.Name, Daemon: i.Name, Round: round}
		if err == nil { // a guest that is gone stays so
			err = b.sample(g, p, &s)
		}
		if err != nil && s.Bad == "" {
			s.Bad = err.Error()
		}
		r.Samples = append(r.Samples, s)
		say("%s", s.text(p))
		if ctx.Err() != nil {
			return
		}
	}
	if err == nil {
		if err := g.Down(); err != nil {
			b.Log.Warn("the guest does not end in order", "daemon", i.Name, "round", round+1, "err", err)
		}
	}
}

// programsAt is where the guest has the programs, in its memory.
const programsAt = "/root/programs"

// up gives a daemon a fresh share, boots a guest on it, and takes the programs into the guest's memory.
func (b *bed) up(ctx context.Context, i *impl.Impl) (*runner.Guest, error) {
	share := filepath.Join(b.dir, "share")
	if err := os.RemoveAll(share); err != nil {
		return nil, fmt.Errorf("remove the last round's share: %w", err)
	}
	if err := run(ctx, nil, "", "cp", "-a", b.template, share); err != nil {
		return nil, fmt.Errorf("copy the share: %w", err)
	}
	s := &scenario.Scenario{
		ID: "bench", Options: scenario.Options{Sandbox: "namespace", Extra: b.Extra[i.Name]}, Guest: scenario.Guest{MemMiB: guestMiB},
	}
	g, err := runner.Up(ctx, runner.BootConfig{
		Share: share, Scenario: s, Impl: i, Image: b.Image, Accel: b.Accel, QEMU: b.QEMU, Log: b.Log, Append: clock(b.Accel),
	})
	if err != nil {
		return nil, err
	}
	if err := shell(g, "mkdir -p "+programsAt+"; ! test -d programs || cp -r programs/. "+programsAt); err != nil {
		g.Kill()
		return nil, fmt.Errorf("copy the programs: %w", err)
	}
	return g, nil
}

// clock has an emulated guest read its time from a device, which counts the host's time. Its processor's counter may go a hundred times as fast
// as it believes: that is found out at boot, and an emulator that has to wait for the host in that moment spoils it.
func clock(accel string) []string {
	if accel == "kvm" {
		return nil
	}
	return []string{"clocksource=hpet"}
}

// sample runs one program. The error is about the guest; what is wrong with the program's run is s.Bad.
func (b *bed) sample(g *runner.Guest, p Program, s *Sample) error {
	if err := shell(g, strings.Join([]string{cmp.Or(p.before, "true"), "sync", "echo 3 >/proc/sys/vm/drop_caches"}, " && ")); err != nil {
		s.Bad = "before it: " + err.Error()
		return alive(err)
	}
	time.Sleep(100 * time.Millisecond) // until the daemon has forgotten what the guest has
	pids := g.Daemon()
	before, began := cpu(pids), time.Now()
	x, err := g.Exec(guestproto.ExecArgs{Where: guestproto.Where{Dir: "."}, Argv: b.argv(p), TimeoutS: 600})
	took := time.Since(began).Seconds()
	if err != nil {
		s.Bad = err.Error()
		return alive(err)
	}
	s.Seconds, s.CPU = x.Seconds, (cpu(pids) - before).Seconds()
	switch {
	case x.Status != 0:
		s.Bad = (&statusError{x}).Error()
	case x.Seconds > 1.05*took || x.Seconds < took/2-0.5: // the answer takes its time, too
		s.Bad = fmt.Sprintf("the guest's clock says %.2f s, the host's %.2f s", x.Seconds, took)
	case p.fio != nil:
		if s.FIO, err = parseFIO([]byte(x.Stdout)); err != nil {
			s.Bad = err.Error()
		} else {
			s.Seconds = s.FIO.Seconds
		}
	case p.lines >= 0 && strings.Count(x.Stdout, "\n") != p.lines:
		s.Bad = fmt.Sprintf("it writes %d lines, not %d: %.80q", strings.Count(x.Stdout, "\n"), p.lines, x.Stdout)
	}
	return nil
}

// alive passes the errors after which the guest is gone.
func alive(err error) error {
	var status *statusError
	var call *qemu.CallError
	if errors.As(err, &status) || errors.As(err, &call) {
		return nil
	}
	return err
}

// argv is a program's command line in the guest.
func (b *bed) argv(p Program) []string {
	if p.needs == "" {
		return p.run
	}
	argv := b.fetched[p.needs].Argv(filepath.Join(programsAt, p.needs))
	if p.fio != nil {
		return append(append(argv, fioArgs(b.Time)...), p.fio...)
	}
	return append(argv, p.run...)
}

func cpu(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		sum += frontend.ProcessCPU(pid)
	}
	return sum
}

// statusError is a program that did not end well.
type statusError struct{ guestproto.Exec }

func (e *statusError) Error() string {
	said := strings.TrimSpace(e.Stderr)
	return fmt.Sprintf("status %d: %s", e.Status, said[strings.LastIndexByte(said, '\n')+1:])
}

// shell runs a command line of the guest's shell in the share.
func shell(g *runner.Guest, line string) error {
	x, err := g.Exec(guestproto.ExecArgs{Where: guestproto.Where{Dir: "."}, Shell: line, TimeoutS: 600})
	if err == nil && x.Status != 0 {
		err = &statusError{x}
	}
	return err
}

// run runs a program of the host.
func run(ctx context.Context, env []string, dir string, argv ...string) error {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env, c.Dir = append(os.Environ(), env...), dir
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.200s", argv[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}
