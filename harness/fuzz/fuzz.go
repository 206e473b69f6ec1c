package fuzz

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// Config says what to fuzz.
type Config struct {
	Daemons   []fe.Daemon
	Sandboxes []string      // in turns; the zero value is namespace and none
	Time      time.Duration // for all daemons together
	Sessions  int           // the most sessions a daemon; 0 is no bound
	Steps     int           // of a session; 0 is 150
	Seed      uint64
	Dir       string // where replay files go, if anything is found
	Logger    *slog.Logger
}

// Report is what became of one daemon.
type Report struct {
	Daemon   string
	Sessions int
	Steps    int // that ran, those of minimising not counted
	Took     time.Duration
	Findings []Recorded
}

// Recorded is a finding with its replay file.
type Recorded struct {
	Finding
	Sandbox string
	Steps   int // of the session as it was found
	Left    int // of the minimised one
	File    string
	Again   bool // it came again in each session that was run to make it smaller
}

// Run fuzzes the daemons in turns, a session each. What was found once is left out of later sessions of that daemon, so that more can be
// found; the same seed draws the same sessions for a daemon that behaves the same.
func Run(ctx context.Context, cfg Config) ([]Report, error) {
	if len(cfg.Sandboxes) == 0 {
		cfg.Sandboxes = []string{"namespace", "none"}
	}
	if cfg.Steps == 0 {
		cfg.Steps = 150
	}
	dir, err := workDir()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	defer unix.Umask(unix.Umask(0))
	reports := make([]Report, len(cfg.Daemons))
	mute := make([]map[string]bool, len(cfg.Daemons))
	for i, d := range cfg.Daemons {
		reports[i].Daemon, mute[i] = d.Name, map[string]bool{}
	}
	until := time.Now().Add(cfg.Time)
	for n := 0; time.Now().Before(until) && (cfg.Sessions == 0 || n < cfg.Sessions); n++ {
		sandbox := cfg.Sandboxes[n%len(cfg.Sandboxes)]
		for i, d := range cfg.Daemons {
			if ctx.Err() != nil {
				return reports, ctx.Err()
			}
			r := &reports[i]
			began := time.Now()
			steps := Generate(rand.New(rand.NewPCG(cfg.Seed, uint64(n))), cfg.Steps, mute[i])
			found, ran, log, err := Execute(ctx, d, sandbox, dir, steps)
			if err != nil {
				return reports, fmt.Errorf("session %d of %s: %w", n, d.Name, err)
			}
			r.Sessions++
			r.Steps += ran
			r.Took += time.Since(began)
			if found == nil {
				continue
			}
			cfg.Logger.Info("found", "daemon", d.Name, "sandbox", sandbox, "session", n, "finding", found.String())
			if operations[found.Do].breaks {
				mute[i][found.Do] = true
			}
			if slices.ContainsFunc(r.Findings, func(old Recorded) bool { return old.Signature() == found.Signature() }) {
				continue
			}
			small, again := Minimise(ctx, d, sandbox, dir, steps[:min(ran, len(steps))], *found, 40)
			rec := Recorded{Finding: *found, Sandbox: sandbox, Steps: ran, Left: len(small), Again: again}
			rec.File, err = save(cfg, d, sandbox, rec, small, log)
			if err != nil {
				return reports, err
			}
			r.Findings = append(r.Findings, rec)
		}
	}
	return reports, nil
}

// workDir is where shares are made: in memory, as requests to sync would wait for everybody's disk.
func workDir() (string, error) {
	base := "/dev/shm"
	if st, err := os.Stat(base); err != nil || !st.IsDir() {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "vfsfuzz")
	if err != nil {
		return "", fmt.Errorf("make a directory for the shares: %w", err)
	}
	return dir, nil
}

func save(cfg Config, d fe.Daemon, sandbox string, rec Recorded, steps []Step, log string) (string, error) {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return "", fmt.Errorf("make the folder of replays: %w", err)
	}
	name := filepath.Join(cfg.Dir, d.Name+"-"+strings.ReplaceAll(rec.Signature(), " ", "-")+".replay")
	f, err := os.Create(name)
	if err != nil {
		return "", fmt.Errorf("make a replay: %w", err)
	}
	defer f.Close()
	r := Replay{Head: Head{Sandbox: sandbox, Daemon: d.Name, Finding: rec.Signature(), Detail: rec.Detail, Seed: cfg.Seed}, Steps: steps}
	if err := r.Write(f); err != nil {
		return "", err
	}
	return name, os.WriteFile(strings.TrimSuffix(name, ".replay")+".log", []byte(log), 0o644)
}

// Minimise leaves steps out as long as the same finding comes, in at most so many sessions. again is whether it came at all.
func Minimise(ctx context.Context, d fe.Daemon, sandbox, dir string, steps []Step, want Finding, sessions int) (small []Step, again bool) {
	try := func(steps []Step) bool {
		if sessions == 0 || ctx.Err() != nil {
			return false
		}
		sessions--
		found, _, _, err := Execute(ctx, d, sandbox, dir, steps)
		return err == nil && found != nil && found.Signature() == want.Signature()
	}
	small = steps
	if n := len(steps); n > 1 && want.Do != "end" && try(steps[n-1:]) {
		return steps[n-1:], true
	}
	if !try(steps) {
		return steps, false
	}
	for size := (len(small) + 1) / 2; size >= 1 && sessions > 0; {
		shorter := false
		for at := 0; at < len(small) && sessions > 0; {
			rest := slices.Concat(small[:at], small[min(at+size, len(small)):])
			if len(rest) > 0 && try(rest) {
				small, shorter = rest, true
			} else {
				at += size
			}
		}
		if size == 1 && !shorter {
			break
		}
		size = max(1, size/2)
	}
	return small, true
}

// RunReplay runs a replay against a daemon.
func RunReplay(ctx context.Context, d fe.Daemon, r Replay) (*Finding, string, error) {
	dir, err := workDir()
	if err != nil {
		return nil, "", err
	}
	defer os.RemoveAll(dir)
	defer unix.Umask(unix.Umask(0))
	found, _, log, err := Execute(ctx, d, r.Sandbox, dir, r.Steps)
	return found, log, err
}

// WriteTable prints what was found, and how much was done.
func WriteTable(w io.Writer, reports []Report) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"daemon", "finding", "sandbox", "steps", "what was seen"})
	for _, r := range reports {
		for _, f := range r.Findings {
			again := ""
			if !f.Again {
				again = " (not again)"
			}
			detail := f.Detail
			if len(detail) > 110 {
				detail = detail[:110] + "…"
			}
			t.AppendRow(table.Row{r.Daemon, f.Signature() + again, f.Sandbox, f.Left, detail})
		}
	}
	t.Render()
	for _, r := range reports {
		rate := 0.0
		if r.Took > 0 {
			rate = float64(r.Steps) / r.Took.Seconds()
		}
		fmt.Fprintf(w, "%s: %d findings; %d sessions, %d steps, %.0f steps/s\n", r.Daemon, len(r.Findings), r.Sessions, r.Steps, rate)
	}
}
