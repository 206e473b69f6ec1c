package report

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/launch"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
	"virtiofsd/harness/verdict"
)

// Adopt makes the run in runDir the evidence from which the pages of the tree are made:
// docs/evidence is replaced. Copied are run.json, and of each cell what became of it, its command
// line and the observations, without what no rule reads (logs, the kernel's messages). The records
// are judged anew, by the claims and rules of the tree; so adopting docs/evidence itself brings it
// up to date with them. Cells of scenarios that the tree does not have are left out. Other files of
// docs/evidence (benchmarks, the self-test, mutants) stay as they are.
//
// Paths of the machine become words: {work} is a cell's work directory, {share}, {outside} and {socket} what is in it, {run} the run's
// folder; paths in the tree become relative, and what else looks like somebody's machine becomes {path}. A broken run is not adopted.
func Adopt(runDir, root string) error {
	runDir, err := filepath.Abs(runDir)
	if err != nil {
		return fmt.Errorf("adopt the run: %w", err)
	}
	if root, err = filepath.Abs(root); err != nil {
		return fmt.Errorf("adopt the run: %w", err)
	}
	run, err := result.Read(os.DirFS(runDir))
	if err != nil {
		return fmt.Errorf("adopt the run: %w", err)
	}
	target := filepath.Join(root, filepath.FromSlash(evidenceDir))
	fresh := target + ".new"
	if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(filepath.Dir(fresh), 0o755)); err != nil {
		return fmt.Errorf("adopt the run: %w", err)
	}
	defer os.RemoveAll(fresh)
	b, err := loadWith(root, run)
	if err != nil {
		return err
	}
	n := newNormaliser(run, runDir, root)
	if err := b.copyRun(runDir, fresh); err != nil {
		return fmt.Errorf("adopt the run: %w", err)
	}
	if err := n.walk(fresh); err != nil {
		return fmt.Errorf("adopt the run: %w", err)
	}
	// Whatever else lies there (benchmarks, the self-test, mutants) was measured apart, and stays.
	kept, err := os.ReadDir(target)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("adopt the run: %w", err)
	}
	for _, k := range kept {
		if k.IsDir() || k.Name() == result.RunFile || k.Name() == result.ResultsFile {
			continue
		}
		if err := os.Rename(filepath.Join(target, k.Name()), filepath.Join(fresh, k.Name())); err != nil {
			return fmt.Errorf("adopt the run: %w", err)
		}
	}
	if err := errors.Join(os.RemoveAll(target), os.Rename(fresh, target)); err != nil {
		return fmt.Errorf("adopt the run: %w", err)
	}
	return nil
}

// AdoptBeside adopts the scenarios of a run and keeps the evidence of all others: what is new or
// has changed is measured alone. run.json says which scenarios were measured by which run.
func AdoptBeside(runDir, root string) error {
	dir, err := os.MkdirTemp("", "vfsadopt-")
	if err != nil {
		return fmt.Errorf("adopt the run: %w", err)
	}
	defer os.RemoveAll(dir)
	joined, err := beside(runDir, root, dir)
	if err != nil {
		return fmt.Errorf("adopt the run beside the evidence: %w", err)
	}
	return Adopt(joined, root)
}

// beside makes a run of the evidence and of a run whose scenarios replace the evidence's.
func beside(runDir, root, dir string) (string, error) {
	runDir, err := filepath.Abs(runDir)
	if err != nil {
		return "", err
	}
	if root, err = filepath.Abs(root); err != nil {
		return "", err
	}
	old := filepath.Join(root, filepath.FromSlash(evidenceDir))
	if old == runDir {
		return "", errors.New("it is the evidence itself; remedy: adopt it without --beside")
	}
	there, err := result.Read(os.DirFS(old))
	if err != nil {
		return "", err
	}
	run, err := result.Read(os.DirFS(runDir))
	if err != nil {
		return "", err
	}
	if len(run.Beside) > 0 {
		return "", fmt.Errorf("%s holds more than one run", runDir)
	}
	// Paths of the machine become words by what this run says of it.
	fresh := filepath.Join(dir, "fresh")
	if err := os.CopyFS(fresh, os.DirFS(runDir)); err != nil {
		return "", err
	}
	if err := newNormaliser(run, runDir, root).walk(fresh); err != nil {
		return "", err
	}
	if run, err = result.Read(os.DirFS(fresh)); err != nil {
		return "", err
	}
	replaced := func(scenario string) bool { return slices.Contains(run.Scenarios, scenario) }
	all := there.Run
	all.Scenarios = slices.DeleteFunc(all.Scenarios, replaced)
	for i := range all.Beside {
		all.Beside[i].Scenarios = slices.DeleteFunc(all.Beside[i].Scenarios, replaced)
	}
	all.Beside = append(slices.DeleteFunc(all.Beside, func(r result.Run) bool { return len(r.Scenarios) == 0 }), run.Run)
	joined := filepath.Join(dir, "joined")
	w, err := result.Create(joined, all)
	if err != nil {
		return "", err
	}
	for _, from := range []struct {
		*result.Stored
		dir  string
		from func(scenario string) bool
	}{
		{there, old, func(s string) bool { return !replaced(s) }},
		{run, fresh, replaced},
	} {
		for _, c := range from.Cells {
			if !from.from(c.Scenario) {
				continue
			}
			cell := filepath.FromSlash(c.Dir())
			if err := os.CopyFS(filepath.Join(joined, cell), os.DirFS(filepath.Join(from.dir, cell))); err != nil {
				return "", err
			}
			if err := w.Cell(c, from.Observations[c.CellID]); err != nil {
				return "", err
			}
		}
		kept := slices.DeleteFunc(from.Records, func(r result.Record) bool { return !from.from(r.Scenario) })
		if err := w.Records(kept); err != nil {
			return "", err
		}
	}
	_, err = w.Close(there.End.Seconds + run.End.Seconds)
	return joined, err
}

// copyRun writes what is kept of a run.
func (b *book) copyRun(from, to string) error {
	w, err := result.Create(to, b.run.Run)
	if err != nil {
		return err
	}
	for _, c := range b.run.Cells { // sorted
		s := b.scenario(c.Scenario)
		if s == nil {
			continue
		}
		obs := b.run.Observations[c.CellID]
		if err := w.Records(verdict.JudgeCell(s, b.claims, b.known, c, obs)); err != nil {
			return err
		}
		for i, o := range obs {
			if obs[i].Facts, err = trim(o); err != nil {
				return fmt.Errorf("trim observation %s of %s: %w", o.Step, c.CellID, err)
			}
			obs[i].T = tenths(o.T)
		}
		c.Seconds, c.Boot = tenths(c.Seconds), tenths(c.Boot)
		if err := w.Cell(c, obs); err != nil {
			return err
		}
		argv := filepath.Join(filepath.FromSlash(c.Dir()), launch.ArgvFile)
		text, err := os.ReadFile(filepath.Join(from, argv))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, argv), text, 0o644)
		}
		if err != nil {
			return err
		}
	}
	_, err = w.Close(tenths(b.run.End.Seconds))
	return err
}

func tenths(seconds float64) float64 { return math.Round(seconds*10) / 10 }

// unread are keys of facts that no rule reads, and which are long or differ from run to run.
var unread = map[string][]string{
	guestproto.CallInfo:      {"kernel_log", "proc_mounts"},
	guestproto.CallPosixTest: {"output"},
	"hello":                  {"kernel_log", "proc_mounts"},
}

// trim shortens an observation's facts.
func trim(o result.Observation) (json.RawMessage, error) {
	if len(o.Facts) == 0 {
		return o.Facts, nil
	}
	d := json.NewDecoder(bytes.NewReader(o.Facts))
	d.UseNumber() // capability sets are 64 bits wide
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	facts, ok := v.(map[string]any)
	if !ok {
		return o.Facts, nil
	}
	for _, key := range unread[o.Probe] {
		delete(facts, key)
	}
	for _, c := range list(facts["checks"]) {
		if c, ok := c.(map[string]any); ok {
			delete(c, "seconds")
		}
	}
	if lines := list(facts["lines"]); o.Probe == scenario.ProbeLog && len(lines) > 20 {
		facts["lines"] = lines[len(lines)-20:]
	}
	return json.Marshal(facts)
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

// normaliser replaces a machine's paths by words.
type normaliser struct{ words []replacement }

type replacement struct {
	find *regexp.Regexp
	with string
}

// guestMounts is where guests mount their shares.
const guestMounts = "/mnt/share"

// stop ends a path within JSON or a log line.
const stop = `[^\s"'\\,;()<>=]`

func newNormaliser(run *result.Stored, runDir, root string) *normaliser {
	n := &normaliser{}
	add := func(pattern, with string) {
		n.words = append(n.words, replacement{regexp.MustCompile(pattern), with})
	}
	// The runner's work directories, wherever temporary files are.
	work := `/` + stop + `*?/vfsmatrix-[0-9]+`
	add(work+`/run/vhost\.sock`, "{socket}")
	add(work+`/(share|outside)\b`, "{$1}")
	add(work, "{work}")
	add(regexp.QuoteMeta(runDir), "{run}")
	trees := []string{root}
	for _, i := range slices.Concat(run.Impls, run.Kernels, []result.Identity{run.Tool}) {
		for _, mark := range []string{"/vm-images/", "/bin/virtiofsd", "/bin/vfsmatrix"} {
			if tree, _, ok := strings.Cut(i.Path, mark); ok && tree != "" && !strings.HasPrefix(tree, "/usr") {
				trees = append(trees, tree)
			}
		}
	}
	slices.SortFunc(trees, func(x, y string) int { return cmp.Compare(len(y), len(x)) })
	for _, t := range slices.Compact(trees) {
		add(regexp.QuoteMeta(t)+`/`, "")
		add(regexp.QuoteMeta(t)+`\b`, "{tree}")
	}
	for _, i := range run.Impls {
		if dir := filepath.Dir(i.Path); filepath.IsAbs(dir) && !strings.HasPrefix(dir, "/usr/") {
			add(regexp.QuoteMeta(dir)+`/`, "{bin}/")
		}
	}
	return n
}

func (n *normaliser) apply(b []byte) []byte {
	for _, w := range n.words {
		b = w.find.ReplaceAll(b, []byte(w.with))
	}
	return machine.ReplaceAllFunc(b, func(m []byte) []byte {
		parts := machine.FindSubmatch(m)
		if bytes.HasPrefix(parts[2], []byte(guestMounts)) {
			return m
		}
		return append(parts[1], "{path}"...)
	})
}

// machine is what a path of somebody's machine begins with. Where it is none of the words above (a mount of the host, say), it becomes
// {path}: that it was seen counts, not what it is called.
var machine = regexp.MustCompile(`(^|[\s"'=:(,])(/(?:home|root|Users|work|tmp|mnt|media|opt|srv|var/tmp|var/lib|data|builds?)/` + stop + `+)`)

// walk normalises every file under dir.
func (n *normaliser) walk(dir string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(name, n.apply(b), 0o644)
	})
}
