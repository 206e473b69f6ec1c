package report

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/launch"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
)

// Adopt makes the run in runDir the evidence from which the pages of the tree are made: docs/evidence is replaced. Copied are run.json,
// the records (sorted), and of each cell what became of it, its command line, and the observations that a record rests on, without
// what no rule reads (logs, the kernel's messages). A stored copy can still be judged again. The benchmark (bench.json) stays as it is.
//
// Paths of the machine become words: {work} is a cell's work directory, {share}, {outside} and {socket} what is in it, {run} the run's
// folder; paths in the tree become relative. An error names a path that is none of these and looks like somebody's machine. A broken
// run is not adopted.
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
	n := newNormaliser(run, runDir, root)
	if err := copyRun(run, runDir, fresh, n); err != nil {
		return fmt.Errorf("adopt the run: %w", err)
	}
	if err := n.walk(fresh); err != nil {
		return fmt.Errorf("adopt the run: %w", err)
	}
	// The benchmark is a run of its own, and stays.
	kept := filepath.Join(root, filepath.FromSlash(benchFile))
	if err := os.Rename(kept, filepath.Join(fresh, filepath.Base(kept))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("adopt the run: %w", err)
	}
	if err := errors.Join(os.RemoveAll(target), os.Rename(fresh, target)); err != nil {
		return fmt.Errorf("adopt the run: %w", err)
	}
	return nil
}

// copyRun writes what is kept of a run.
func copyRun(run *result.Stored, runDir, to string, n *normaliser) error {
	w, err := result.Create(to, run.Run)
	if err != nil {
		return err
	}
	used := map[string]bool{} // references of the records' evidence
	for _, r := range run.Records {
		for _, e := range r.Evidence {
			used[e] = true
		}
	}
	for _, c := range run.Cells {
		var keep []result.Observation
		for _, o := range run.Observations[c.CellID] {
			if !used[c.Dir()+"/"+result.ObservationsFile+"#"+o.Step] {
				continue
			}
			if o.Facts, err = trim(o); err != nil {
				return fmt.Errorf("trim observation %s of %s: %w", o.Step, c.CellID, err)
			}
			o.T = float64(int(o.T*10)) / 10
			keep = append(keep, o)
		}
		if err := w.Cell(c, keep); err != nil {
			return err
		}
		argv := filepath.Join(filepath.FromSlash(c.Dir()), launch.ArgvFile)
		b, err := os.ReadFile(filepath.Join(runDir, argv))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, argv), b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	records := slices.Clone(run.Records)
	slices.SortStableFunc(records, func(x, y result.Record) int {
		return cmp.Or(cmp.Compare(x.CellID.String(), y.CellID.String()), cmp.Compare(x.Claim, y.Claim))
	})
	if err := w.Records(records); err != nil {
		return err
	}
	_, err = w.Close(run.End.Seconds)
	return err
}

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
		if dir := filepath.Dir(i.Path); i.Path != "" && !strings.HasPrefix(dir, "/usr/") {
			add(regexp.QuoteMeta(dir)+`/`, "{bin}/")
		}
	}
	return n
}

func (n *normaliser) apply(b []byte) []byte {
	for _, w := range n.words {
		b = w.find.ReplaceAll(b, []byte(w.with))
	}
	return b
}

// machine is what a path of somebody's machine begins with.
var machine = regexp.MustCompile(`(?:^|[\s"'=:(,])(/(?:home|root|Users|work|tmp|var/tmp|var/lib|data|builds?)/` + stop + `+)`)

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
		b = n.apply(b)
		if m := machine.FindSubmatch(b); m != nil {
			rel, _ := filepath.Rel(dir, name) // both are absolute
			return fmt.Errorf("%s would hold the path %s of this machine; remedy: teach harness/report/adopt.go a word for it", rel, m[1])
		}
		return os.WriteFile(name, b, 0o644)
	})
}
