package selftest

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/impl"
	"virtiofsd/harness/result"
	"virtiofsd/harness/runner"
	"virtiofsd/harness/scenario"
	"virtiofsd/harness/selftest/faultd"
	"virtiofsd/harness/verdict"
	vmimages "virtiofsd/vm-images"
)

//go:embed testdata/*.toml
var testdata embed.FS

// Scenarios are the self-test's own.
func Scenarios(claims []claim.Claim) ([]*scenario.Scenario, error) {
	return scenario.Load(testdata, "testdata", claims)
}

// Config says what to run.
type Config struct {
	Program string // a program that hands over to faultd.Main where faultd.Is
	Daemon  string // the real daemon
	Claims  []claim.Claim
	// Image is the guest's; Liar is one whose agent is Program.
	Image, Liar vmimages.Image
	Dir         string  // gets the runs' folders
	Plants      []Plant // those of Pick
	Parallel    int
	Accel       string
	QEMU        string
	Must        []string
	Log         *slog.Logger
	Progress    func(Outcome) // may be nil
}

// Outcome is what became of one plant.
type Outcome struct {
	Plant
	Caught  bool
	Saw     string   // what the claim's probe reported, or what is wrong
	Others  []string // other claims that failed, all of which may
	Seconds float64
}

// Kernel is the scenarios' name of the only guest kernel.
const Kernel = "6.12"

// Run runs the plants and says of each whether it was caught. The error is about the run, not about a plant.
func Run(ctx context.Context, c Config) ([]Outcome, error) {
	scenarios, err := Scenarios(c.Claims)
	if err != nil {
		return nil, err
	}
	bin, err := os.MkdirTemp("", "vfsfaults-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the faulty daemons: %w", err)
	}
	defer os.RemoveAll(bin)
	if err := errors.Join(link(c.Daemon, filepath.Join(bin, faultd.Daemon)), os.Chmod(bin, 0o755)); err != nil {
		return nil, err
	}
	plants := slices.Clone(c.Plants)
	impls := map[string]*impl.Impl{}
	for _, p := range plants {
		if impls[p.Fault] != nil {
			continue
		}
		at := filepath.Join(bin, faultd.Prefix+p.Fault)
		if err := link(c.Program, at); err != nil {
			return nil, err
		}
		i, err := impl.Find(ctx, p.Fault+"="+at, impl.Dirs{})
		if err != nil {
			return nil, err
		}
		if i.Missing != "" {
			return nil, fmt.Errorf("the daemon with the fault %s cannot be run: %s", p.Fault, i.Missing)
		}
		impls[p.Fault] = i
	}
	var all []Outcome
	// One run for those who share the guest's image and the bound on its boot.
	for n := 0; len(plants) > 0; n++ {
		first := plants[0]
		same := func(p Plant) bool { return p.Patience == first.Patience && p.Agent == first.Agent }
		var now []Plant
		for _, p := range plants {
			if same(p) {
				now = append(now, p)
			}
		}
		plants = slices.DeleteFunc(plants, same)
		out, err := c.run(ctx, filepath.Join(c.Dir, fmt.Sprintf("run-%d", n)), scenarios, now, impls)
		all = append(all, out...)
		if err != nil {
			return all, err
		}
	}
	slices.SortStableFunc(all, func(a, b Outcome) int { return place(a.Plant) - place(b.Plant) })
	return all, nil
}

// place is a plant's place in the table.
func place(p Plant) int {
	return slices.IndexFunc(Plants(), func(q Plant) bool { return q.Fault == p.Fault && q.Scenario == p.Scenario })
}

func link(target, at string) error {
	abs, err := filepath.Abs(target)
	if err == nil {
		_, err = os.Stat(abs)
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", target, err)
	}
	return os.Symlink(abs, at)
}

// Pick returns the plants of the faults named, by patterns of path.Match; of none, all. Each pattern has to fit one.
func Pick(patterns []string) ([]Plant, error) {
	if len(patterns) == 0 {
		return Plants(), nil
	}
	for _, o := range patterns {
		if !slices.ContainsFunc(Plants(), func(p Plant) bool { return matches(o, p.Fault) }) {
			return nil, fmt.Errorf("there is no fault %q; vfsmatrix selftest --list shows them", o)
		}
	}
	return slices.DeleteFunc(Plants(), func(p Plant) bool {
		return !slices.ContainsFunc(patterns, func(o string) bool { return matches(o, p.Fault) })
	}), nil
}

func matches(pattern, s string) bool {
	ok, err := path.Match(pattern, s)
	return err == nil && ok
}

// run runs plants that belong together.
func (c Config) run(ctx context.Context, dir string, scenarios []*scenario.Scenario, plants []Plant, impls map[string]*impl.Impl) ([]Outcome, error) {
	w, err := result.Create(dir, result.Run{ID: filepath.Base(dir), Started: time.Now().UTC().Format(time.RFC3339)})
	if err != nil {
		return nil, err
	}
	var use []*scenario.Scenario
	var daemons []*impl.Impl
	for _, s := range scenarios {
		s := *s
		s.Impls = nil
		for _, p := range plants {
			if p.Scenario == s.ID {
				s.Impls = append(s.Impls, p.Fault)
			}
		}
		if len(s.Impls) > 0 {
			use = append(use, &s)
		}
	}
	for _, p := range plants {
		if i := impls[p.Fault]; !slices.Contains(daemons, i) {
			daemons = append(daemons, i)
		}
	}
	image := c.Image
	if plants[0].Agent {
		image = c.Liar
	}
	var all []Outcome
	done := func(e runner.Event) {
		if e.Done == nil {
			return
		}
		i := slices.IndexFunc(plants, func(p Plant) bool { return p.Fault == e.Cell.Impl && p.Scenario == e.Cell.Scenario })
		o := judge(plants[i], e.Done, e.Records)
		o.Seconds = e.Seconds
		all = append(all, o)
		if c.Progress != nil {
			c.Progress(o)
		}
	}
	err = runner.Run(ctx, runner.Config{
		Scenarios: use, Impls: daemons, Kernels: map[string]vmimages.Image{Kernel: image}, Dir: dir, Writer: w,
		Judge: func(s *scenario.Scenario, cell result.Cell, obs []result.Observation) []result.Record {
			return verdict.JudgeCell(s, c.Claims, nil, cell, obs)
		},
		Parallel: c.Parallel, Accel: c.Accel, QEMU: c.QEMU, Must: c.Must, Log: c.Log, HelloIn: plants[0].Patience, Progress: done,
	})
	if err != nil {
		return all, err
	}
	_, err = w.Close(0)
	return all, err
}

// judge says whether a plant was caught. cell may be nil.
func judge(p Plant, cell *result.Cell, records []result.Record) Outcome {
	o := Outcome{Plant: p}
	if cell != nil && (cell.Status == result.CellSkipped || cell.Status == result.CellBroken) {
		o.Saw = fmt.Sprintf("the cell was %s: %s", cell.Status, cell.Reason)
		return o
	}
	if p.Agent {
		return agent(o, records)
	}
	var wrong []string
	seen := p.Claim == ""
	for _, r := range records {
		switch {
		case r.Verdict == result.Error:
			wrong = append(wrong, fmt.Sprintf("error of the harness at %s: %s", r.Claim, r.Because))
		case r.Claim == p.Claim && r.Verdict == result.Fail:
			seen, o.Saw = true, r.Because
		case r.Claim == p.Claim:
			wrong = append(wrong, fmt.Sprintf("%s is %s: %s", r.Claim, r.Verdict, r.Because))
		case r.Verdict == result.Fail && slices.ContainsFunc(p.Also, func(a string) bool { return matches(a, r.Claim) }):
			o.Others = append(o.Others, r.Claim)
		case r.Verdict == result.Fail:
			wrong = append(wrong, fmt.Sprintf("%s fails as well: %s", r.Claim, r.Because))
		}
	}
	if !seen && len(wrong) == 0 {
		wrong = append(wrong, "the claim "+p.Claim+" was not judged")
	}
	if len(records) == 0 {
		wrong = append(wrong, "nothing was judged")
	}
	if len(wrong) > 0 {
		o.Saw = strings.Join(wrong, "; ")
		return o
	}
	o.Caught = true
	if p.Claim == "" {
		o.Saw = fmt.Sprintf("%d claims hold", len(records))
	}
	return o
}

// agent judges a guest that did nothing: what is judged by its words alone must not hold. An error of the harness is right here: facts
// that say nothing are nobody's fault but ours.
func agent(o Outcome, records []result.Record) Outcome {
	var believed []string
	for _, r := range records {
		switch {
		case r.Claim == o.Claim:
			o.Saw = r.Because
			o.Caught = r.Verdict == result.Fail || r.Verdict == result.Error
		case r.Verdict == result.Pass && slices.ContainsFunc([]string{"semantics/*", "identity/*", "durability/*"}, func(a string) bool { return matches(a, r.Claim) }):
			believed = append(believed, r.Claim)
		}
	}
	if len(believed) > 0 {
		o.Caught, o.Saw = false, "believed: "+strings.Join(believed, ", ")
	}
	return o
}
