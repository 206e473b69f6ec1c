package bench

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Calls are the system calls of a daemon's processes in one workload.
type Calls struct {
	Workload string             `json:"workload"`
	Daemon   string             `json:"daemon"`
	Per      string             `json:"per,omitempty"` // op, entry or file: what Count counts for
	Count    map[string]float64 `json:"count,omitempty"`
	Bad      string             `json:"error,omitempty"`
}

// Total is the number of calls of all names.
func (c Calls) Total() (sum float64) {
	for _, name := range slices.Sorted(maps.Keys(c.Count)) { // in one order, so that it is rounded one way
		sum += c.Count[name]
	}
	return sum
}

// Text is the total and the names, the most frequent first; what makes less than a twentieth is left out.
func (c Calls) Text() string {
	if c.Bad != "" {
		return c.Bad
	}
	names := make([]string, 0, len(c.Count))
	for name, n := range c.Count {
		if n >= 0.05 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if c.Count[a] != c.Count[b] {
			if c.Count[a] > c.Count[b] {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %.2f", name, c.Count[name])
	}
	return fmt.Sprintf("%.2f: %s", c.Total(), strings.Join(names, ", "))
}

// CallTable is the table of system calls, a row a workload; of no workload, the head alone.
func (r *Report) CallTable() [][]string {
	rows := [][]string{append([]string{"system calls", "per"}, r.Daemons...)}
	for _, c := range r.Calls {
		i := slices.IndexFunc(rows, func(row []string) bool { return row[0] == c.Workload })
		if i < 0 {
			row := make([]string, 2+len(r.Daemons))
			row[0] = c.Workload
			i, rows = len(rows), append(rows, row)
		}
		if c.Per != "" {
			rows[i][1] = c.Per
		}
		rows[i][2+slices.Index(r.Daemons, c.Daemon)] = c.Text()
	}
	return rows
}

// Syscalls counts the system calls of each workload, with what cleans up after a pass, under strace and with a fresh process for each. It measures no time: a traced daemon
// is several times slower, and so sleeps and wakes more often than one that is not.
func Syscalls(ctx context.Context, o Options) (*Report, error) {
	if _, err := exec.LookPath("strace"); err != nil {
		return nil, fmt.Errorf("count system calls: %w; remedy: install strace", err)
	}
	b, r, err := newShare(o)
	if err != nil {
		return nil, err
	}
	defer b.close()
	for _, w := range b.Chosen() {
		for _, d := range b.Daemons {
			s, err := b.begin(ctx, d, w.Queues)
			if err != nil {
				r.Calls = append(r.Calls, Calls{Workload: w.Name, Daemon: d.Name, Bad: err.Error()})
				continue
			}
			c := b.count(ctx, s, w)
			s.end()
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			r.Calls = append(r.Calls, c)
		}
		b.Progress(w.Name)
	}
	return r, nil
}

func (b *bed) count(ctx context.Context, s *session, w Workload) Calls {
	c := Calls{Workload: w.Name, Daemon: s.name, Per: map[string]string{"entries": "entry", "files": "file"}[w.Unit]}
	if c.Per == "" {
		c.Per = "op"
	}
	ops := w.ops
	if ops == 0 {
		ops = 1000
	}
	err := func() error {
		j, err := w.setup(s, rand.New(rand.NewPCG(0, 7)))
		if err != nil {
			return err
		}
		defer s.release(j)
		if err := s.run(j, limit{ops: ops}, b.hist).err; err != nil { // what happens once, such as threads that start, is over
			return err
		}
		t, err := b.trace(ctx, s)
		if err != nil {
			return err
		}
		m := s.run(j, limit{ops: ops}, b.hist)
		if c.Count, err = t.end(); m.err != nil {
			err = m.err
		}
		if err != nil {
			return err
		}
		for name := range c.Count {
			c.Count[name] /= float64(m.items)
		}
		return nil
	}()
	if err != nil {
		c.Count, c.Bad = nil, err.Error()
	}
	return c
}

// tracer is an strace that counts.
type tracer struct {
	cmd  *exec.Cmd
	file string
}

// trace returns once all threads of the daemon are traced.
func (b *bed) trace(ctx context.Context, s *session) (*tracer, error) {
	file := filepath.Join(b.dir, "strace")
	args := []string{"-f", "-q", "-c", "-U", "calls,name", "-o", file}
	for _, pid := range s.pids {
		args = append(args, "-p", strconv.Itoa(pid))
	}
	t := &tracer{exec.CommandContext(ctx, "strace", args...), file}
	var said strings.Builder
	t.cmd.Stderr = &said
	if err := t.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start strace: %w", err)
	}
	for began := time.Now(); !traced(s.pids); time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.end()
			return nil, fmt.Errorf("strace does not attach within 10 s: %s", strings.TrimSpace(said.String()))
		}
	}
	return t, nil
}

// traced reports whether every thread has a tracer.
func traced(pids []int) bool {
	for _, pid := range pids {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err == nil && strings.Contains(string(b), "\nTracerPid:\t0\n") {
				return false
			}
		}
	}
	return true
}

// end detaches and reads the counts.
func (t *tracer) end() (map[string]float64, error) {
	t.cmd.Process.Signal(unix.SIGINT)
	t.cmd.Wait() // ends by that signal
	b, err := os.ReadFile(t.file)
	if err != nil {
		return nil, fmt.Errorf("read what strace counted: %w", err)
	}
	return parseCounts(string(b)), nil
}

// parseCounts reads the table of strace -c -U calls,name: lines of a number and a name, and their sum.
func parseCounts(table string) map[string]float64 {
	counts := map[string]float64{}
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) != 2 || f[1] == "total" {
			continue
		}
		if n, err := strconv.ParseFloat(f[0], 64); err == nil {
			counts[f[1]] += n
		}
	}
	return counts
}
