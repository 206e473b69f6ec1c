package mutate

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
)

// Outcome is what became of a test without its defence.
type Outcome string

// The outcomes. Only Red is good.
const (
	Red    Outcome = "red"    // it failed
	Green  Outcome = "GREEN"  // it passed: nobody would see the defence go
	Broken Outcome = "BROKEN" // nothing was learnt: it fails with the defence, too, is not there, or does not build
)

// Result is the outcome of one test without one defence.
type Result struct {
	Defence Defence
	Test    Test
	Outcome Outcome
	Detail  string // the tests that failed, or what is broken
	// Took is the time until a fuzz target failed, from the start of its program on. Zero for tests.
	Took time.Duration
}

// testTimeout is how long the tests of one entry may run. What hangs without its defence is red.
const testTimeout = 2 * time.Minute

// Prove runs each test as the tree is, where it must pass, and then without each of its defences, where it must not. root is the tree's.
// With fuzz above 0 it is the fuzz targets instead: they have that long, one worker, and the corpora of the tree.
func Prove(ctx context.Context, root string, defences []Defence, fuzz time.Duration, tell func(Result)) ([]Result, error) {
	dir, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return nil, fmt.Errorf("make a directory for changed files: %w", err)
	}
	defer os.RemoveAll(dir)
	p := &prover{root: root, dir: dir, fuzz: fuzz, whole: map[Test]string{}}
	var all []Result
	for _, d := range defences {
		tests := d.each(fuzz > 0)
		if len(tests) == 0 {
			continue
		}
		overlay, err := p.without(d)
		if err != nil {
			return all, err
		}
		broken := p.build(ctx, d, overlay)
		for _, t := range tests {
			r := Result{Defence: d, Test: t, Outcome: Broken, Detail: broken}
			if r.Detail == "" {
				r.Detail = p.asItIs(ctx, t)
			}
			switch {
			case r.Detail != "":
			case t.Fuzz:
				r.Outcome, r.Detail, r.Took = p.fuzzed(ctx, t, overlay)
			default:
				r.Outcome, r.Detail = p.test(ctx, t, overlay)
			}
			if err := ctx.Err(); err != nil {
				return all, err
			}
			tell(r)
			all = append(all, r)
		}
	}
	return all, nil
}

type prover struct {
	root, dir string
	fuzz      time.Duration
	whole     map[Test]string // what is wrong with a test in the tree as it is
}

// without writes the changed file and the overlay that puts it in its place.
func (p *prover) without(d Defence) (overlay string, err error) {
	at := filepath.Join(p.root, filepath.FromSlash(d.File))
	src, err := os.ReadFile(at)
	if err != nil {
		return "", fmt.Errorf("defence %q: %w", d.Name, err)
	}
	if src, err = d.Without(src); err != nil {
		return "", err
	}
	changed := filepath.Join(p.dir, path.Base(d.File))
	overlay = filepath.Join(p.dir, "overlay.json")
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{at: changed}})
	if err != nil {
		return "", err
	}
	for name, b := range map[string][]byte{changed: src, overlay: text} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			return "", fmt.Errorf("defence %q: %w", d.Name, err)
		}
	}
	return overlay, nil
}

// run runs the go command. GOFLAGS reaches the go commands that tests start; MATRIX_MUST makes failures of skips.
func (p *prover) run(ctx context.Context, overlay string, args ...string) (out string, ok bool) {
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir = p.root
	c.Env = append(os.Environ(), "MATRIX_MUST=all")
	if overlay != "" {
		c.Env = append(c.Env, strings.TrimSpace("GOFLAGS="+os.Getenv("GOFLAGS")+" -overlay="+overlay))
	}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 10 * time.Second // a process that hangs in the kernel keeps the pipe
	b, err := c.CombinedOutput()
	return string(b), err == nil
}

// build compiles the changed package, so that a mistake in the entry is not taken for a failing test.
func (p *prover) build(ctx context.Context, d Defence, overlay string) (broken string) {
	if out, ok := p.run(ctx, overlay, "build", "-o", os.DevNull, "./"+path.Dir(d.File)); !ok {
		return "does not build: " + lastLine(out)
	}
	return ""
}

// asItIs runs a test with all its defences, once.
func (p *prover) asItIs(ctx context.Context, t Test) string {
	if why, known := p.whole[t]; known {
		return why
	}
	why := ""
	switch o, detail := p.test(ctx, t, ""); {
	case o == Red:
		why = "fails with the defence, too: " + detail
	case o == Broken:
		why = detail
	}
	p.whole[t] = why
	return why
}

// fuzzed fuzzes the changed program. It runs in a directory of its own, as an input that fails is written where the program runs.
func (p *prover) fuzzed(ctx context.Context, t Test, overlay string) (Outcome, string, time.Duration) {
	dir, err := os.MkdirTemp(p.dir, "fuzz")
	if err != nil {
		return Broken, err.Error(), 0
	}
	bin := filepath.Join(dir, "fuzz.test")
	if out, ok := p.run(ctx, overlay, "test", "-c", "-fuzz", ".", "-vet=off", "-o", bin, t.Package); !ok {
		return Broken, "does not build: " + lastLine(out), 0
	}
	corpus := filepath.Join("testdata", "fuzz", t.Run)
	if from := filepath.Join(p.root, t.Package, corpus); exists(from) {
		if err := os.CopyFS(filepath.Join(dir, corpus), os.DirFS(from)); err != nil {
			return Broken, err.Error(), 0
		}
	}
	c := exec.CommandContext(ctx, bin, "-test.run", "^$", "-test.fuzz", "^"+t.Run+"$", "-test.fuzztime", p.fuzz.String(),
		"-test.fuzzminimizetime", "10x", "-test.parallel", "1", "-test.fuzzcachedir", filepath.Join(dir, "cache"))
	c.Dir = dir
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	began := time.Now()
	out, err := c.CombinedOutput()
	took := time.Since(began)
	inputs := "few inputs" // it tells every three seconds
	if n := executions.FindAllStringSubmatch(string(out), -1); len(n) > 0 {
		inputs = n[len(n)-1][1] + " inputs"
	}
	switch {
	case err == nil, strings.Contains(string(out), "context deadline exceeded") && !strings.Contains(string(out), "Failing input"):
		return Green, "not in " + inputs, took // go may take the end of the time for a failure
	case !failed.Match(out):
		return Broken, lastLine(string(out)), took
	case strings.Contains(string(out), "failure while testing seed corpus"):
		return Red, "by an input of the corpus", took
	}
	return Red, "by an input that was drawn, after " + inputs, took
}

var executions = regexp.MustCompile(`execs: (\d+)`)

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

func (p *prover) test(ctx context.Context, t Test, overlay string) (Outcome, string) {
	run := t.Run
	if t.Fuzz {
		run = "^" + run + "$"
	}
	out, ok := p.run(ctx, overlay, "test", t.Package, "-run", run, "-count=1", "-vet=off", "-timeout", testTimeout.String())
	switch {
	case strings.Contains(out, "no tests to run") || strings.Contains(out, "no test files"):
		return Broken, "there is no such test"
	case ok:
		return Green, ""
	case strings.Contains(out, "[build failed]") || strings.Contains(out, "[setup failed]"):
		return Broken, "does not build: " + lastLine(out)
	}
	var names []string
	for _, m := range failed.FindAllStringSubmatch(out, -1) {
		// A test is not told beside its subtests.
		names = append(slices.DeleteFunc(names, func(n string) bool { return n == m[1] || strings.HasPrefix(m[1], n+"/") }), m[1])
	}
	if len(names) == 0 {
		return Red, lastLine(out) // a crash, or a test that hung
	}
	return Red, strings.Join(names, " ")
}

// lastLine is the most telling line of the go command's output: the first of an error, panic or signal, or else the last.
func lastLine(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for _, l := range lines {
		for _, mark := range []string{"panic: ", "fatal error: ", ".go:"} {
			if strings.Contains(l, mark) {
				return strings.TrimSpace(l)
			}
		}
	}
	return lines[len(lines)-1]
}

// WriteTable prints defence × test, how many are not red, and how long fuzz targets took.
func WriteTable(out io.Writer, all []Result) {
	t := table.NewWriter()
	t.SetOutputMirror(out)
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"layer", "without what", "test", "is", "after", ""})
	t.SetColumnConfigs([]table.ColumnConfig{{Number: 2, WidthMax: 60}, {Number: 3, WidthMax: 60}, {Number: 6, WidthMax: 60}})
	bad := 0
	for _, r := range all {
		if r.Outcome != Red {
			bad++
		}
		after := ""
		if r.Took > 0 {
			after = fmt.Sprintf("%.1f s", r.Took.Seconds())
		}
		t.AppendRow(table.Row{r.Defence.Layer, r.Defence.Name, r.Test, r.Outcome, after, r.Detail})
	}
	t.Render()
	fmt.Fprintf(out, "%d defences taken out one by one: %d of %d tests are red\n", count(all), len(all)-bad, len(all))
}

func count(all []Result) int {
	seen := map[string]bool{}
	for _, r := range all {
		seen[r.Defence.Name] = true
	}
	return len(seen)
}
