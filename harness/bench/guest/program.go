package guest

import (
	"archive/tar"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"virtiofsd/harness/bench"
)

// Program is what is run in the guest, in the root of the share.
type Program struct {
	Name string `json:"name"`
	What string `json:"what"`
	Unit string `json:"unit"` // of the figure that decides: s, ops or bytes a second

	needs  string   // a program of kernels.toml; "" is one of the guest's own
	before string   // a command line of the shell, off the clock
	run    []string // its arguments; of one of the guest's own, the whole command line
	lines  int      // that it has to write; -1 = any
	fio    []string // of a job of fio, instead of run
}

// What the share holds.
const (
	dirs, perDir = 40, 25
	files        = dirs * perDir
	dataMiB      = 64
)

// Programs are all that can be run, in the order of a run.
func Programs() []Program {
	fio := func(name, what, unit string, args ...string) Program {
		return Program{Name: "fio-" + name, What: what, Unit: unit, needs: "fio", fio: append([]string{"--name=" + name}, args...)}
	}
	busybox := func(name, what, before string, lines int, argv ...string) Program {
		return Program{Name: name, What: what, Unit: "s", before: before, lines: lines, run: append([]string{"/bin/busybox"}, argv...)}
	}
	file := fmt.Sprintf("a file of %d MiB", dataMiB)
	small := fmt.Sprintf("%d small files", files)
	return []Program{
		fio("randread-4k", "fio, 4k at random places of "+file, "ops", "--rw=randread", "--bs=4k"),
		fio("randwrite-4k", "fio, 4k to random places of "+file, "ops", "--rw=randwrite", "--bs=4k", "--overwrite=1"),
		fio("read-1m", "fio, "+file+" in blocks of 1 MiB", "bytes", "--rw=read", "--bs=1m"),
		fio("write-1m", "fio, over "+file+" in blocks of 1 MiB", "bytes", "--rw=write", "--bs=1m", "--overwrite=1"),
		busybox("tar-x", "tar -x of "+small+", the archive in the guest's memory", "mkdir untar && cp tree.tar /tmp", -1, "tar", "-xf", "/tmp/tree.tar", "-C", "untar"),
		busybox("tar-c", "tar -c of "+small+" into the share", "", -1, "tar", "-cf", "back.tar", "tree"),
		{Name: "git-status", What: "git status in a work tree of " + small, Unit: "s", needs: "git", before: gitAt + " -C work status", run: []string{"-C", "work", "status", "--porcelain"}},
		busybox("find", "find among "+small, "", files, "find", "tree", "-type", "f"),
		busybox("du", "du of "+small, "", 1, "du", "-s", "tree"),
		busybox("cp-r", "cp -r of "+small, "", 0, "cp", "-r", "tree", "copy"),
		busybox("rm-r", "rm -r of "+small, "", 0, "rm", "-r", "gone"),
	}
}

// Chosen are the programs whose name fits; nil fits all.
func Chosen(only *regexp.Regexp) (all []Program) {
	for _, p := range Programs() {
		if only == nil || only.MatchString(p.Name) {
			all = append(all, p)
		}
	}
	return all
}

// gitAt runs git in the guest. The first status is not measured: it writes down how the guest sees the files, which is not how the host did.
const gitAt = programsAt + "/git/ld-linux-x86-64.so.2 --library-path " + programsAt + "/git " + programsAt + "/git/git"

// fioArgs are what all jobs have. With passes instead of time_based fio opens, and has the kernel forget, its file anew before each.
func fioArgs(d time.Duration) []string {
	return []string{
		"--output-format=json", "--eta=never", "--thread", "--ioengine=psync", "--direct=0", "--invalidate=1",
		"--clocksource=clock_gettime", // not the processor's counter, see clock
		"--filename=data", fmt.Sprintf("--size=%dm", dataMiB), "--loops=1000000", fmt.Sprintf("--runtime=%dms", d.Milliseconds()),
	}
}

// makeTemplate makes what each share is a copy of: the tree and its archive, as many files to remove, a file for fio, a work tree of git, and the
// programs themselves.
func (b *bed) makeTemplate(ctx context.Context) error {
	for _, name := range []string{"tree", "gone"} {
		if err := makeTree(filepath.Join(b.template, name)); err != nil {
			return err
		}
	}
	if err := archive(filepath.Join(b.template, "tree.tar"), filepath.Join(b.template, "tree")); err != nil {
		return err
	}
	for name, p := range b.fetched {
		if err := p.Install(filepath.Join(b.template, "programs", name)); err != nil {
			return err
		}
	}
	if b.fetched["fio"] != nil {
		data := make([]byte, 1<<20)
		f, err := os.Create(filepath.Join(b.template, "data"))
		if err != nil {
			return err
		}
		defer f.Close()
		for n := range dataMiB {
			fill(rand.NewPCG(uint64(n), 1), data)
			if _, err := f.Write(data); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	git := b.fetched["git"]
	if git == nil {
		return nil
	}
	work := filepath.Join(b.template, "work")
	if err := makeTree(work); err != nil {
		return err
	}
	env := []string{"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"}
	for _, args := range [][]string{
		{"init", "-q", "--template=", "-b", "main"}, {"add", "-A"},
		{"-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "maintenance.auto=false", "commit", "-q", "-m", "the tree"},
	} {
		argv := append(git.Argv(filepath.Join(b.template, "programs", "git")), args...)
		if err := run(ctx, env, work, argv...); err != nil {
			return fmt.Errorf("git %s: %w", args[0], err)
		}
	}
	return nil
}

// fill makes bytes that do not compress.
func fill(from *rand.PCG, b []byte) {
	for i := range b {
		b[i] = byte(from.Uint64())
	}
}

// makeTree makes small files, of 4 KiB on the average, the same every time.
func makeTree(dir string) error {
	from := rand.NewPCG(7, 7)
	sizes := rand.New(from)
	for d := range dirs {
		sub := filepath.Join(dir, fmt.Sprintf("dir%02d", d))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		for f := range perDir {
			b := make([]byte, min(32<<10, int(sizes.ExpFloat64()*4096)))
			fill(from, b)
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file%02d.c", f)), b, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// archive writes a directory's contents to a tar file.
func archive(file, dir string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

// measures are the samples in the words of package bench, which compares them.
func (r *Report) measures() *bench.Report {
	m := &bench.Report{Rounds: r.Rounds, Daemons: r.Daemons, Variants: r.Variants}
	for _, p := range r.Programs {
		m.Work = append(m.Work, p.workload())
	}
	for _, s := range r.Samples {
		one := bench.Sample{Workload: s.Program, Daemon: s.Daemon, Round: s.Round, Bad: s.Bad, Ops: 1, P50: s.Seconds, CPU: s.CPU}
		if f := s.FIO; f != nil {
			one.Ops, one.P50, one.P99, one.CPU = f.Ops, f.P50, f.P99, s.CPU/float64(max(1, f.Ops))
			if one.Rate = f.IOPS; r.unit(s.Program) == "bytes" {
				one.Rate = f.Bytes
			}
		}
		m.Samples = append(m.Samples, one)
	}
	return m
}

func (r *Report) unit(program string) string {
	for _, p := range r.Programs {
		if p.Name == program {
			return p.Unit
		}
	}
	return ""
}

func (p Program) workload() bench.Workload {
	w := bench.Workload{Name: p.Name, What: p.What, Measure: bench.Rate, Unit: p.Unit}
	if p.Unit == "s" {
		w.Measure = bench.Latency
	}
	return w
}
