package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/impl"
	"virtiofsd/harness/qemu"
	"virtiofsd/harness/report"
	"virtiofsd/harness/result"
	"virtiofsd/harness/runner"
	"virtiofsd/harness/scenario"
	"virtiofsd/harness/verdict"
	vmimages "virtiofsd/vm-images"
)

// mustEnv names needs that may not be missing, as in internal/testenv.
const mustEnv = "MATRIX_MUST"

// runFlags are the flags of run.
type runFlags struct {
	impls, kernels []string
	dir            string
	parallel       int
	accel, qemu    string
	must           []string
	shard          string
	filter         string
	resume         string
}

// defaultImpls are run without --impl.
var defaultImpls = []string{"ours", "c"}

// testNeeds are needs that only tests have (internal/testenv): $MATRIX_MUST is for both.
var testNeeds = []string{"apt", "bash", "chromium", "fuse", "gcc", "hugepages", "libvirt", "long", "loop", "mkfs", "pids", "podman", "strace", "subuid", "systemd", "tmpfile", "units"}

// checkMust refuses words that are no need: a misspelt one would let cells be skipped that must not be.
func (b *book) checkMust(must, impls []string) error {
	words := append([]string{"all", "root", "setpriv"}, testNeeds...)
	for _, s := range b.scenarios {
		words = append(words, s.Needs...)
	}
	for _, i := range append(impl.Names(), impls...) {
		name, _, _ := strings.Cut(i, "=")
		words = append(words, name+"-daemon")
	}
	slices.Sort(words)
	for _, w := range must {
		if !slices.Contains(words, w) {
			return usagef("--must %s is no need; it is one of %s", w, strings.Join(slices.Compact(words), ", "))
		}
	}
	return nil
}

// processors is how many cells run at a time where --parallel asks for n.
func processors(n int) (int, error) {
	switch {
	case n < 0:
		return 0, usagef("--parallel %d is below 0", n)
	case n == 0:
		return runtime.NumCPU(), nil
	}
	return n, nil
}

func (a *app) runCmd() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [SCENARIO...]",
		Short: "Run scenarios, judge what was seen, print the table and leave the evidence in a folder",
		Long: `Run each scenario (all, or those named; patterns such as 'a-*' count) with each implementation and each guest kernel that it lists.
The run's folder holds the evidence, report.md and report.html.`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.run(cmd.Context(), cmd.OutOrStdout(), f, args) },
	}
	must := strings.FieldsFunc(os.Getenv(mustEnv), func(r rune) bool { return r == ',' || r == ' ' })
	cmd.Flags().StringSliceVar(&f.impls, "impl", defaultImpls, implHelp)
	cmd.Flags().StringSliceVar(&f.kernels, "kernel", nil, "guest kernels, names or paths; default: all that the scenarios list")
	cmd.Flags().StringVar(&f.shard, "shard", "", "I/N: only every N-th cell, from the I-th on; vfsmatrix merge joins the folders")
	cmd.Flags().StringVar(&f.filter, "filter", "", "only cells SCENARIO/IMPL/KERNEL that fit the pattern, such as 'c-*/ours/*'")
	cmd.Flags().StringVar(&f.resume, "resume", "", "a run (a folder, or latest) that was cut off: cells that it finished are taken over")
	cmd.Flags().StringVar(&f.dir, "dir", "", "the run's folder; default: runs/TIME-ID in the tree")
	cmd.Flags().IntVar(&f.parallel, "parallel", 0, "cells at a time; 0 is as many as there are processors")
	cmd.Flags().StringVar(&f.accel, "accel", "auto", "auto, kvm or tcg")
	cmd.Flags().StringVar(&f.qemu, "qemu", "", qemuHelp+"; default: "+qemu.DefaultBinary)
	cmd.Flags().StringSliceVar(&f.must, "must", must, "needs that may not be missing: their lack is an error instead of a skip; all is every one ($"+mustEnv+")")
	return cmd
}

func (a *app) run(ctx context.Context, out io.Writer, f runFlags, names []string) error {
	if !slices.Contains([]string{"auto", "kvm", "tcg"}, f.accel) {
		return usagef("--accel %q is not auto, kvm or tcg", f.accel)
	}
	parallel, err := processors(f.parallel)
	if err != nil {
		return err
	}
	b, err := a.book()
	if err != nil {
		return err
	}
	scenarios, err := b.pick(names)
	if err != nil {
		return err
	}
	part, parts, err := shard(f.shard)
	if err != nil {
		return err
	}
	wanted, err := filter(f.filter)
	if err != nil {
		return err
	}
	if f.resume != "" {
		if f.resume, err = a.runDir(f.resume); err != nil {
			return err
		}
	}
	if err := checkKernels(f.kernels); err != nil {
		return err
	}
	if err := b.checkMust(f.must, f.impls); err != nil {
		return err
	}
	log := a.log()
	if f.qemu, err = a.emulator(ctx, b.root, f.qemu); err != nil {
		return err
	}
	impls, err := findImpls(ctx, b.root, f.impls, a)
	if err != nil {
		return err
	}
	if err := presence(impls, f.must); err != nil {
		return err
	}
	kernels, err := a.kernels(ctx, b.root, f, scenarios)
	if err != nil {
		return err
	}
	if err := checkCells(scenarios, impls, kernels, wanted); err != nil {
		return err
	}
	begun := time.Now()
	record, err := describe(ctx, f, impls, kernels, scenarios, begun)
	if err != nil {
		return err
	}
	dir := f.dir
	if dir == "" {
		dir = filepath.Join(b.root, runsDir, record.ID)
	}
	w, err := result.Create(dir, record)
	if err != nil {
		return err
	}
	judge := func(s *scenario.Scenario, c result.Cell, obs []result.Observation) []result.Record {
		return verdict.JudgeCell(s, b.claims, b.known, c, obs)
	}
	done := map[result.CellID]bool{}
	if f.resume != "" {
		if done, err = takeOver(w, f.resume, record, scenarios, judge); err != nil {
			return err
		}
		fmt.Fprintf(out, "%d cells are taken over from %s\n", len(done), f.resume)
	}
	p := &printer{out: out, tty: isTerminal(out), running: map[string]string{}}
	err = runner.Run(ctx, runner.Config{
		Scenarios: scenarios, Impls: impls, Kernels: kernels, Dir: dir, Writer: w,
		Judge: judge, Only: func(n int, c result.CellID) bool { return n%parts == part-1 && !done[c] && wanted(c) },
		Parallel: parallel, Accel: f.accel, QEMU: f.qemu, Must: f.must, Log: log, Progress: p.event,
	})
	p.finish()
	if err != nil {
		return fmt.Errorf("%w; what there is stands in %s", err, dir)
	}
	if _, err := w.Close(time.Since(begun).Seconds()); err != nil {
		return err
	}
	if f.dir == "" {
		link := filepath.Join(b.root, runsDir, "latest")
		_ = os.Remove(link) // there may be none
		if err := os.Symlink(record.ID, link); err != nil {
			return err
		}
	}
	return tell(out, dir, b)
}

// checkCells refuses a run without cells.
func checkCells(scenarios []*scenario.Scenario, impls []*impl.Impl, kernels map[string]vmimages.Image, wanted func(result.CellID) bool) error {
	var names []string
	for _, i := range impls {
		names = append(names, i.Name)
	}
	has := func(k string) bool { _, ok := kernels[k]; return ok }
	if !slices.ContainsFunc(runner.Cells(scenarios, names, has), wanted) {
		return usagef("no cell fits the scenarios, --impl, --kernel and --filter; vfsmatrix cells lists them")
	}
	return nil
}

// takeOver copies the finished cells of a run that was cut off, in dir, into the new one. Cells of another program or kernel are left.
func takeOver(w *result.Writer, dir string, now result.Run, scenarios []*scenario.Scenario, judge func(*scenario.Scenario, result.Cell, []result.Observation) []result.Record) (map[result.CellID]bool, error) {
	old, err := result.Read(os.DirFS(dir))
	if err != nil && !errors.Is(err, result.ErrBroken) {
		return nil, err
	}
	same := func(a, b []result.Identity, name string) bool {
		find := func(l []result.Identity) int {
			return slices.IndexFunc(l, func(i result.Identity) bool { return i.Name == name })
		}
		i, j := find(a), find(b)
		return i >= 0 && j >= 0 && a[i].SHA256 == b[j].SHA256
	}
	done := map[result.CellID]bool{}
	for _, c := range old.Cells {
		s := slices.IndexFunc(scenarios, func(s *scenario.Scenario) bool { return s.ID == c.Scenario })
		if s < 0 || c.Status == result.CellBroken || !same(old.Impls, now.Impls, c.Impl) || !same(old.Kernels, now.Kernels, c.Kernel) {
			continue
		}
		into, err := w.CellDir(c.CellID)
		if err != nil {
			return nil, err
		}
		if err := os.CopyFS(into, os.DirFS(filepath.Join(dir, filepath.FromSlash(c.Dir())))); err != nil {
			return nil, fmt.Errorf("take over %s: %w", c.CellID, err)
		}
		if err := w.Cell(c, old.Observations[c.CellID]); err != nil {
			return nil, err
		}
		if err := w.Records(judge(scenarios[s], c, old.Observations[c.CellID])); err != nil {
			return nil, err
		}
		done[c.CellID] = true
	}
	return done, nil
}

// tell prints a run's table, writes its report, and says by its error what the run came to.
func tell(out io.Writer, dir string, b *book) error {
	stored, err := result.Read(os.DirFS(dir))
	if err != nil {
		return err
	}
	if err := report.Table(out, stored, isTerminal(out)); err != nil {
		return err
	}
	pages, err := report.Page(stored, b.claims, b.areas, b.scenarios, b.known)
	if err != nil {
		return err
	}
	var junit bytes.Buffer
	if err := report.JUnit(&junit, stored); err != nil {
		return err
	}
	pages["junit.xml"] = junit.Bytes()
	for _, name := range sortedKeys(pages) {
		if err := os.WriteFile(filepath.Join(dir, name), pages[name], 0o644); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		fmt.Fprintf(out, "report: %s\n", filepath.Join(dir, name))
	}
	return summary(stored)
}

// summary is nil where all is as expected.
func summary(s *result.Stored) error {
	failed, errored, judged, lacks := 0, 0, false, ""
	for _, r := range s.Records {
		switch {
		case r.Verdict == result.Error:
			errored++
		case r.Bad():
			failed++
		case r.Verdict != result.Skip:
			judged = true
		case r.Skip != result.SkipInexpressible && lacks == "": // which is so on every machine, and nothing to mend
			lacks = fmt.Sprintf("%s: %s", r.CellID, r.Because)
		}
	}
	switch {
	case failed > 0:
		return errNotExpected
	case errored > 0:
		return fmt.Errorf("the harness or the machine failed at %d claims: see the list above", errored)
	case !judged && lacks != "":
		return fmt.Errorf("nothing could be judged: every cell was skipped, such as %s", lacks)
	}
	return nil
}

// findImpls finds each implementation; what is missing stays in the list and becomes a recorded cell.
func findImpls(ctx context.Context, root string, names []string, a *app) ([]*impl.Impl, error) {
	dirs, err := implDirs(root, a.log())
	if err != nil {
		return nil, err
	}
	var all []*impl.Impl
	for _, n := range names {
		i, err := impl.Find(ctx, n, dirs)
		if err != nil {
			return nil, usageError{err}
		}
		all = append(all, i)
	}
	return all, nil
}

// presence refuses a run without a daemon that has to be there.
func presence(impls []*impl.Impl, must []string) error {
	for _, i := range impls {
		word := i.Name + "-daemon"
		if i.Missing != "" && (i.Name == "ours" || slices.Contains(must, word) || slices.Contains(must, "all")) {
			return fmt.Errorf("implementation %s must be there: %s", i.Name, i.Missing)
		}
	}
	return nil
}

// kernels makes the images that the scenarios need. A kernel given on the command line which no scenario lists is run with all of them.
func (a *app) kernels(ctx context.Context, root string, f runFlags, scenarios []*scenario.Scenario) (map[string]vmimages.Image, error) {
	var want []string
	for _, s := range scenarios {
		for _, k := range s.Kernels {
			if (len(f.kernels) == 0 || slices.Contains(f.kernels, k)) && !slices.Contains(want, k) {
				want = append(want, k)
			}
		}
	}
	for _, k := range f.kernels {
		if !slices.Contains(want, k) {
			want = append(want, k)
			for _, s := range scenarios {
				s.Kernels = append(s.Kernels, k)
			}
		}
	}
	dirs, err := imageDirs(root)
	if err != nil {
		return nil, err
	}
	images, err := vmimages.Ensure(ctx, dirs, want, a.log())
	if err != nil {
		return nil, err
	}
	// A path is no name for a folder.
	for k, img := range images {
		if strings.ContainsRune(k, '/') {
			short := filepath.Base(filepath.Dir(img.Kernel))
			delete(images, k)
			images[short] = img
			for _, s := range scenarios {
				s.Kernels = slices.DeleteFunc(append(s.Kernels, short), func(n string) bool { return n == k })
			}
		}
	}
	return images, nil
}

// describe pins what takes part.
func describe(ctx context.Context, f runFlags, impls []*impl.Impl, kernels map[string]vmimages.Image, scenarios []*scenario.Scenario, begun time.Time) (result.Run, error) {
	var b [3]byte
	if _, err := rand.Read(b[:]); err != nil {
		return result.Run{}, err
	}
	r := result.Run{
		ID: begun.UTC().Format("20060102T150405Z") + "-" + hex.EncodeToString(b[:]), Started: begun.UTC().Format(time.RFC3339),
		Tool: result.Identity{Name: "vfsmatrix", Version: runtime.Version()}, Host: host(ctx, f),
	}
	for _, i := range impls {
		r.Impls = append(r.Impls, result.Identity{Name: i.Name, Version: i.Version, SHA256: i.SHA256, Path: i.Path, Missing: i.Missing})
	}
	for _, k := range sortedKeys(kernels) {
		i := kernels[k]
		r.Kernels = append(r.Kernels, result.Identity{Name: k, Version: strings.TrimSpace(i.Version + " " + i.Package + " " + i.PackageVersion), SHA256: i.SHA256, Path: i.Kernel})
	}
	for _, s := range scenarios {
		r.Scenarios = append(r.Scenarios, s.ID)
	}
	return r, nil
}

func host(ctx context.Context, f runFlags) map[string]string {
	h := map[string]string{"cpus": fmt.Sprint(runtime.NumCPU()), "arch": runtime.GOARCH, "uid": fmt.Sprint(os.Geteuid())}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h["kernel"] = unix.ByteSliceToString(u.Release[:])
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		h["memory_mib"] = fmt.Sprint(si.Totalram * uint64(si.Unit) >> 20)
	}
	bin := f.qemu
	if bin == "" {
		bin = qemu.DefaultBinary
	}
	if out, err := exec.CommandContext(ctx, bin, "--version").Output(); err == nil {
		line, _, _ := strings.Cut(string(out), "\n")
		h["qemu"] = strings.TrimPrefix(line, "QEMU emulator version ")
	}
	h["accel"] = f.accel
	if f.accel == "auto" {
		if ok, why := qemu.ProbeKVM(ctx, bin); ok {
			h["accel"] = "kvm"
		} else {
			h["accel"] = "tcg (kvm: " + why + ")"
		}
	}
	return h
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// printer shows progress: a line for each cell that is done, and on a terminal one line that tells what goes on.
type printer struct {
	out io.Writer
	tty bool

	mu      sync.Mutex
	running map[string]string // cell → step
	status  bool              // a status line stands on the terminal
}

func (p *printer) event(e runner.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := e.Cell.String()
	if e.Done == nil {
		p.running[id] = e.Step
		if p.tty {
			p.clear()
			var now []string
			for _, c := range sortedKeys(p.running) {
				now = append(now, c+" "+p.running[c])
			}
			fmt.Fprintf(p.out, "\r\x1b[K[%d/%d] %s", e.N, e.Total, strings.Join(now, " | "))
			p.status = true
		}
		return
	}
	delete(p.running, id)
	p.clear()
	count := map[string]int{}
	for _, r := range e.Records {
		word := string(r.Verdict)
		if r.Verdict == result.Fail && r.Known != "" {
			word = "known"
		}
		count[word]++
	}
	var words []string
	for _, v := range []string{"pass", "fail", "known", "skip", "error"} {
		if count[v] > 0 {
			words = append(words, fmt.Sprintf("%d %s", count[v], v))
		}
	}
	line := fmt.Sprintf("[%*d/%d] %-32s %-8s %4.0f s  %s", len(fmt.Sprint(e.Total)), e.N, e.Total, id, e.Done.Status, e.Seconds, strings.Join(words, ", "))
	if e.Done.Reason != "" {
		line += " (" + shorten(e.Done.Reason, 160) + ")"
	}
	fmt.Fprintln(p.out, line)
}

func (p *printer) clear() {
	if p.status {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.status = false
	}
}

func (p *printer) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func (a *app) judge() *cobra.Command {
	return &cobra.Command{
		Use: "judge [RUN]", Short: "Judge a stored run again, by the claims and rules of today; default: the newest run", Args: takes(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.book()
			if err != nil {
				return err
			}
			dir, err := a.runDir(strings.Join(args, ""))
			if err != nil {
				return err
			}
			s, err := result.Read(os.DirFS(dir))
			if err != nil && !errors.Is(err, result.ErrBroken) {
				return err
			}
			if err != nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%v: what there is of it is judged, and is no success\n", err)
			}
			broken := err
			s.Records = rejudge(b, s)
			if err := report.Table(cmd.OutOrStdout(), s, isTerminal(cmd.OutOrStdout())); err != nil {
				return err
			}
			if broken != nil {
				return broken
			}
			return summary(s)
		},
	}
}

// rejudge judges the cells of a stored run whose scenarios the tree still has.
func rejudge(b *book, s *result.Stored) []result.Record {
	var all []result.Record
	for _, c := range s.Cells {
		for _, sc := range b.scenarios {
			if sc.ID == c.Scenario {
				all = append(all, verdict.JudgeCell(sc, b.claims, b.known, c, s.Observations[c.CellID])...)
			}
		}
	}
	return all
}

func (a *app) docs() *cobra.Command {
	var check, beside bool
	var adopt string
	cmd := &cobra.Command{
		Use: "docs", Short: "Write the generated pages from claims, scenarios and docs/evidence", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := a.tree()
			if err != nil {
				return err
			}
			if beside && adopt == "" {
				return usagef("--beside says how to --adopt a run")
			}
			if adopt != "" {
				dir, err := a.runDir(adopt)
				if err != nil {
					return err
				}
				do := report.Adopt
				if beside {
					do = report.AdoptBeside
				}
				if err := do(dir, root); err != nil {
					return err
				}
			}
			if !check {
				return report.Write(root)
			}
			if err := report.Check(root); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), err)
				return errNotExpected
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "write nothing: say which pages are not what the tree would generate")
	cmd.Flags().StringVar(&adopt, "adopt", "", "make this run (a folder, or latest) the evidence first")
	cmd.Flags().BoolVar(&beside, "beside", false, "with --adopt: keep the evidence of scenarios that the run does not have")
	cmd.MarkFlagsMutuallyExclusive("check", "adopt")
	return cmd
}
