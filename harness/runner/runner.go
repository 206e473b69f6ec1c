package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/impl"
	"virtiofsd/harness/probe"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
	vmimages "virtiofsd/vm-images"
)

// Config says what to run.
type Config struct {
	Scenarios []*scenario.Scenario
	Impls     []*impl.Impl
	Kernels   map[string]vmimages.Image // by the scenarios' names of kernels
	Dir       string                    // the run's folder; Writer's
	Writer    *result.Writer
	// Judge is asked once a cell is written; nil leaves the run without records.
	Judge func(*scenario.Scenario, result.Cell, []result.Observation) []result.Record
	// Only says which cells to run, by their number in [Cells]; nil is all.
	Only     func(n int, c result.CellID) bool
	Parallel int           // cells at a time; 0 is 2
	Accel    string        // auto, tcg, kvm
	QEMU     string        // QEMU's program; "" = its default
	HelloIn  time.Duration // bounds the guest's boot; 0 is two minutes
	Work     string        // where work directories are made; "" = the system's temporary directory
	// Must are needs which may not be missing: instead of being skipped, the cell is broken. "all" is every need.
	Must     []string
	Log      *slog.Logger
	Progress func(Event) // may be nil; called from several goroutines, one at a time
}

// Event is a sign of progress.
type Event struct {
	Cell    result.CellID
	Step    string // what begins: "daemon", "guest", a step's name, "end"; "" when the cell is done
	N       int    // cells done
	Total   int    // cells
	Seconds float64
	Done    *result.Cell    // of a cell that is done
	Records []result.Record // of a cell that is done
}

// job is one cell to run.
type job struct {
	s *scenario.Scenario
	i *impl.Impl
	k string
}

// Cells lists the cells of scenarios, implementations and kernels, in the order of a run.
func Cells(scenarios []*scenario.Scenario, impls []string, kernel func(string) bool) []result.CellID {
	var all []result.CellID
	for _, s := range scenarios {
		for _, i := range impls {
			for _, k := range s.Kernels {
				if s.Runs(i) && kernel(k) {
					all = append(all, result.CellID{Scenario: s.ID, Impl: i, Kernel: k})
				}
			}
		}
	}
	return all
}

// Run runs every cell. The error is about the run (a folder that cannot be written, or ctx's end), never about a daemon.
func Run(ctx context.Context, c Config) error {
	if c.Parallel <= 0 {
		c.Parallel = 2
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Work == "" {
		c.Work = os.TempDir()
	}
	if c.HelloIn == 0 {
		c.HelloIn = helloIn
	}
	sweep(c.Work, c.Log)
	names := make([]string, len(c.Impls))
	for i, im := range c.Impls {
		names[i] = im.Name
	}
	cells := Cells(c.Scenarios, names, func(k string) bool { _, ok := c.Kernels[k]; return ok || len(c.Kernels) == 0 })
	if len(cells) == 0 {
		return errors.New("nothing to run: no scenario is for these implementations and kernels")
	}
	var jobs []job
	for n, id := range cells {
		if c.Only != nil && !c.Only(n, id) {
			continue
		}
		s := slices.IndexFunc(c.Scenarios, func(s *scenario.Scenario) bool { return s.ID == id.Scenario })
		jobs = append(jobs, job{c.Scenarios[s], c.Impls[slices.Index(names, id.Impl)], id.Kernel})
	}
	r := &run{Config: c, total: len(jobs), needs: map[string]func() error{}}
	queue := make(chan job)
	errs := make(chan error, c.Parallel)
	for range c.Parallel {
		go func() {
			var first error
			for j := range queue {
				if err := r.cell(ctx, j); err != nil && first == nil {
					first = err
				}
			}
			errs <- first
		}()
	}
feed:
	for _, j := range jobs {
		select {
		case queue <- j:
		case <-ctx.Done():
			break feed
		}
	}
	close(queue)
	var all []error
	for range c.Parallel {
		all = append(all, <-errs)
	}
	if ctx.Err() != nil {
		all = append(all, fmt.Errorf("run was interrupted: %w", context.Cause(ctx)))
	}
	return errors.Join(all...)
}

// run is one Run.
type run struct {
	Config
	total int

	mu    sync.Mutex
	done  int
	needs map[string]func() error
}

func (r *run) progress(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Done != nil {
		r.done++
	}
	e.N, e.Total = r.done, r.total
	if r.Progress != nil {
		r.Progress(e)
	}
}

// cell runs one cell and writes it down.
func (r *run) cell(ctx context.Context, j job) error {
	id := result.CellID{Scenario: j.s.ID, Impl: j.i.Name, Kernel: j.k}
	dir, err := r.Writer.CellDir(id)
	if err != nil {
		return err
	}
	c := &cell{run: r, job: j, id: id, dir: dir, start: time.Now()}
	c.out = result.Cell{CellID: id}
	c.play(ctx)
	if ctx.Err() != nil {
		return nil // an interrupted cell says nothing; Run reports the interruption
	}
	c.out.Seconds = time.Since(c.start).Seconds()
	if err := r.Writer.Cell(c.out, c.seen); err != nil {
		return err
	}
	var records []result.Record
	if r.Judge != nil {
		records = r.Judge(j.s, c.out, c.seen)
		if err := r.Writer.Records(records); err != nil {
			return err
		}
	}
	r.progress(Event{Cell: id, Seconds: c.out.Seconds, Done: &c.out, Records: records})
	return nil
}

// workPrefix begins the name of each work directory.
const workPrefix = "vfsmatrix-"

// workDir makes a work directory and holds its lock as long as the returned file is open.
func workDir(base string) (string, *os.File, error) {
	dir, err := os.MkdirTemp(base, workPrefix)
	if err != nil {
		return "", nil, fmt.Errorf("make a work directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, fmt.Errorf("make the work directory %s: %w", dir, err)
	}
	return dir, f, nil
}

// remove unmounts what a daemon has left below a work directory, and removes the directory. As long as anything is mounted there nothing
// is removed: it may be the host's own files.
func remove(dir string) error {
	below := func() ([]string, error) {
		m, err := probe.CollectMounts(probe.Target{Serving: os.Getpid()})
		if err != nil {
			return nil, err
		}
		var points []string
		for _, one := range m.Mounts {
			if strings.HasPrefix(one.Point, dir+"/") {
				points = append(points, one.Point)
			}
		}
		return points, nil
	}
	points, err := below()
	for _, p := range slices.Backward(points) {
		_ = unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // what stays is seen below
	}
	if err == nil {
		points, err = below()
	}
	if err == nil && len(points) > 0 {
		err = fmt.Errorf("%s is still mounted", strings.Join(points, ", "))
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return os.RemoveAll(dir)
}

// sweep removes work directories whose run has died: nobody holds their lock.
func sweep(base string, log *slog.Logger) {
	dirs, _ := filepath.Glob(filepath.Join(base, workPrefix+"*")) // the pattern is sound
	for _, d := range dirs {
		f, err := os.OpenFile(filepath.Join(d, "lock"), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			if err := remove(d); err != nil {
				log.Warn("cannot remove what a killed run left", "dir", d, "err", err)
			}
		}
		f.Close()
	}
}
