package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// Options say what to measure and for how long. Zero values are the defaults of a full run.
type Options struct {
	Daemons  []fe.Daemon
	Variants map[string]string   // a daemon that is another one with Extra options: what it is a variant of
	Only     *regexp.Regexp      // workloads by name; nil = all
	Rounds   int                 // 0 = 7
	Time     time.Duration       // of each workload in each round; 0 = 1 s
	Dir      string              // where the share is made; "" = the directory for temporary files
	Sandbox  string              // "" = namespace
	Idle     Idle                // "" = Awake
	Extra    map[string][]string // further options of a daemon, by name
	Progress func(string)        // a line for each daemon and round; may be nil
}

// Sample is one workload of one daemon in one round.
type Sample struct {
	Workload string  `json:"workload"`
	Daemon   string  `json:"daemon"`
	Round    int     `json:"round"`
	Ops      int     `json:"ops"`
	Rate     float64 `json:"rate"`   // units a second, see Workload.Unit
	P50      float64 `json:"p50_us"` // latency of an operation, µs
	P99      float64 `json:"p99_us"` //
	CPU      float64 `json:"cpu_us"` // processor time of the daemon's tree for an operation, µs
	Kicks    float64 `json:"kicks"`  // for an operation
	Waits    float64 `json:"waits"`  // of the front-end, for an operation
	Bad      string  `json:"error,omitempty"`
}

// State is what a process costs, once a round.
type State struct {
	Daemon   string  `json:"daemon"`
	Round    int     `json:"round"`
	ReadyMS  float64 `json:"ready_ms"`      // from exec until the socket is there
	IdleCPU  float64 `json:"idle_cpu"`      // share of one processor while connected and silent
	RestRSS  float64 `json:"rest_rss_mib"`  // of the whole tree, session open
	RestAnon float64 `json:"rest_anon_mib"` //
	Known    int     `json:"known"`         // names looked up before it was stopped or refused
	Refused  string  `json:"refused,omitempty"`
	PerInode float64 `json:"bytes_per_inode"` // anonymous memory for a known inode
	Kept     float64 `json:"bytes_kept"`      // of that, after FORGET
}

// Start is one start of a daemon as a scenario's launcher does it, with nobody connecting.
type Start struct {
	Scenario string  `json:"scenario"`
	Daemon   string  `json:"daemon"`
	Round    int     `json:"round"`
	ReadyMS  float64 `json:"ready_ms"`      // from the launcher's exec, its wrapper included, until the socket is there
	Why      string  `json:"why,omitempty"` // it was not started, or refused
}

// Report is everything that was measured.
type Report struct {
	Started  string            `json:"started"`
	Host     map[string]string `json:"host"`
	Rounds   int               `json:"rounds"`
	FloorUS  []float64         `json:"floor_us"` // p50 of each round, eventfd there and back
	Daemons  []string          `json:"daemons"`
	Variants map[string]string `json:"variants,omitempty"` // as in Options
	Options  map[string]string `json:"options,omitempty"`  // of variants
	Work     []Workload        `json:"workloads"`
	Samples  []Sample          `json:"samples"`
	States   []State           `json:"states"`
	Calls    []Calls           `json:"system_calls,omitempty"`
	Points   []Point           `json:"scale,omitempty"`
	Starts   []Start           `json:"starts,omitempty"`
	Replies  []Reply           `json:"first_replies,omitempty"`
	Contests []Contest         `json:"contests,omitempty"`
}

// bed is where daemons are measured.
type bed struct {
	Options
	dir, share string
	hist       *hdrhistogram.Histogram
	unmounts   []func() // of what is mounted in the share
	release    func()   // lets processors be idle as they like
	begun      int      // processes
}

// newBed makes an empty share, and a report without measures.
func newBed(o Options) (*bed, *Report, error) {
	if o.Rounds == 0 {
		o.Rounds = 7
	}
	if o.Time == 0 {
		o.Time = time.Second
	}
	if o.Sandbox == "" {
		o.Sandbox = "namespace"
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	dir, err := os.MkdirTemp(o.Dir, "vfsbench")
	if err != nil {
		return nil, nil, fmt.Errorf("make a directory for the share: %w", err)
	}
	idle, release := o.Idle.Keep()
	b := &bed{Options: o, dir: dir, release: release, share: filepath.Join(dir, "share"), hist: hdrhistogram.New(1, int64(10*time.Second), 3)}
	if err := os.Mkdir(b.share, 0o755); err != nil {
		b.close()
		return nil, nil, fmt.Errorf("make the share: %w", err)
	}
	r := &Report{Started: time.Now().UTC().Format(time.RFC3339), Host: Host(dir), Variants: o.Variants, Options: map[string]string{}}
	r.Host["idle"] = idle
	for _, d := range o.Daemons {
		r.Daemons = append(r.Daemons, d.Name)
		if o.Variants[d.Name] != "" {
			r.Options[d.Name] = strings.Join(o.Extra[d.Name], " ")
		}
	}
	return b, r, nil
}

func (b *bed) close() {
	for _, unmount := range b.unmounts {
		unmount()
	}
	b.release()
	os.RemoveAll(b.dir)
}

// Chosen are the workloads that Only fits.
func (o Options) Chosen() (all []Workload) {
	for _, w := range Workloads() {
		if o.Only == nil || o.Only.MatchString(w.Name) {
			all = append(all, w)
		}
	}
	return all
}

// WantsState says that processes are looked at too, not only workloads.
func (o Options) WantsState() bool { return o.Only == nil || o.Only.MatchString("state") }

// newShare is newBed with what the chosen workloads work on.
func newShare(o Options) (*bed, *Report, error) {
	b, r, err := newBed(o)
	if err != nil {
		return nil, nil, err
	}
	if err := b.prepareShare(); err != nil {
		b.close()
		return nil, nil, err
	}
	return b, r, nil
}

// Run measures. A daemon that fails a workload gets a Sample with the error, and the run goes on.
func Run(ctx context.Context, o Options) (*Report, error) {
	b, r, err := newShare(o)
	if err != nil {
		return nil, err
	}
	defer b.close()
	r.Rounds, r.Work = b.Rounds, o.Chosen()
	for round := range b.Rounds {
		if err := floor(min(b.Time, 500*time.Millisecond), b.hist); err != nil {
			return nil, err
		}
		r.FloorUS = append(r.FloorUS, us(b.hist.ValueAtQuantile(50)))
		began := time.Now()
		if err := r.round(ctx, b, round); err != nil {
			return r, fmt.Errorf("round %d: %w", round+1, err)
		}
		b.Progress(fmt.Sprintf("round %d of %d: %.1f s", round+1, b.Rounds, time.Since(began).Seconds()))
	}
	return r, nil
}

func us(ns int64) float64 { return float64(ns) / 1000 }

// errOneQueue says that a daemon does not offer several queues.
var errOneQueue = errors.New("one queue")

// begin starts a fresh process of a daemon and opens a session with so many request queues (0 = 1).
func (b *bed) begin(ctx context.Context, d fe.Daemon, queues int) (_ *session, err error) {
	queues = max(1, queues)
	b.begun++
	socket := filepath.Join(b.dir, fmt.Sprintf("%s-%d", d.Name, b.begun)) // another still runs: C's daemon locks a file of that name
	argv, err := d.Argv(fe.Options{Share: b.share, Socket: socket, Sandbox: b.Sandbox, Extra: b.Extra[d.Name]})
	if err != nil {
		return nil, err
	}
	proc, err := fe.Spawn(ctx, argv, nil, socket)
	if err != nil {
		return nil, err
	}
	s := &session{name: d.Name, share: b.share, proc: proc}
	defer func() {
		if err != nil {
			s.end()
		}
	}()
	s.dev, err = fe.Connect(ctx, fe.Config{Socket: socket, QueueSize: 1024, RequestQueues: queues, FewerQueues: true, Memory: []uint64{4 << 20, 256 << 20}})
	if err != nil {
		return nil, fmt.Errorf("%w (daemon: %s)", err, proc.LastLine())
	}
	switch n := len(s.dev.Queues) - 1; {
	case queues > 1 && (n == 1 || !s.dev.HasProtocol(fe.ProtocolMQ)):
		return nil, errOneQueue
	case n < queues:
		return nil, fmt.Errorf("%d queues", n)
	}
	s.fuse = fe.NewFUSE(s.dev)
	if _, err := s.fuse.Init(0); err != nil {
		return nil, err
	}
	s.pids = proc.Tree()
	return s, nil
}

func (s *session) end() {
	if s.dev != nil {
		s.dev.Close()
	}
	s.proc.Kill()
}

// cpu is the processor time of the daemon's processes up to now.
func (s *session) cpu() (sum time.Duration) {
	for _, pid := range s.pids {
		sum += fe.ProcessCPU(pid)
	}
	return sum
}

// round starts a fresh process of each daemon and has all run one workload after the other, in turns.
func (r *Report) round(ctx context.Context, b *bed, round int) error {
	var all []*session
	daemon := map[*session]fe.Daemon{}
	for _, d := range b.Daemons {
		s, err := b.begin(ctx, d, 1)
		if err != nil {
			return fmt.Errorf("%s: %w", d.Name, err)
		}
		defer s.end()
		all = append(all, s)
		daemon[s] = d
	}
	// Who begins changes with every workload and every round.
	turn := round
	each := func(f func(s *session) error) error {
		turn++
		for i := range all {
			s := all[(i+turn)%len(all)]
			if err := f(s); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		return ctx.Err()
	}
	state := b.WantsState()
	states := map[*session]*State{}
	if state {
		time.Sleep(100 * time.Millisecond) // until they have come to rest
		for _, s := range all {
			rss, anon := s.proc.Memory()
			st := &State{Daemon: s.name, Round: round, ReadyMS: float64(s.proc.Ready) / 1e6, RestRSS: mib(rss), RestAnon: mib(anon)}
			states[s] = st
			st.IdleCPU = -float64(s.cpu())
		}
		time.Sleep(b.Time) // all at once: they do nothing
		for _, s := range all {
			states[s].IdleCPU = (states[s].IdleCPU + float64(s.cpu())) / float64(b.Time)
		}
	}
	for _, w := range r.Work {
		err := each(func(s *session) error {
			if w.Queues > 1 { // a process of its own, so that more queues change nothing for the other workloads
				many, err := b.begin(ctx, daemon[s], w.Queues)
				if err != nil {
					r.Samples = append(r.Samples, Sample{Workload: w.Name, Daemon: s.name, Round: round, Bad: err.Error()})
					return nil
				}
				defer many.end()
				s = many
			}
			r.Samples = append(r.Samples, s.sample(w, b.Time, round, b.hist))
			if !s.dev.Alive() {
				return fmt.Errorf("%s: the daemon is gone: %s", w.Name, s.proc.LastLine())
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if !state {
		return nil
	}
	return each(func(s *session) error {
		one, err := b.begin(ctx, daemon[s], 1) // with no memory left from other work
		if err != nil {
			return err
		}
		defer one.end()
		if err := one.memory(states[s]); err != nil {
			return err
		}
		r.States = append(r.States, *states[s])
		return nil
	})
}

// sample measures one workload.
func (s *session) sample(w Workload, d time.Duration, round int, hist *hdrhistogram.Histogram) Sample {
	sample := Sample{Workload: w.Name, Daemon: s.name, Round: round}
	j, err := w.setup(s, rand.New(rand.NewPCG(uint64(round), 7)))
	if err == nil {
		m := s.run(j, limit{time: d / 10}, hist) // warm up
		if m.err == nil {
			m = s.run(j, limit{time: d}, hist)
		}
		err = m.err
		sample.fill(w, j, m)
		s.release(j)
	}
	if err != nil {
		sample.Bad = err.Error()
	}
	return sample
}

func mib(n uint64) float64 { return float64(n) / (1 << 20) }

func (s *Sample) fill(w Workload, j *job, m measured) {
	if m.ops == 0 {
		return
	}
	ops := float64(m.ops)
	s.Ops = m.ops
	seconds := m.elapsed.Seconds()
	if w.Depth == 1 {
		seconds = m.onClock.Seconds()
	}
	n := float64(m.items)
	if w.Unit == "bytes" {
		n *= float64(j.bytes)
	}
	s.Rate = n / seconds
	s.P50, s.P99 = us(m.hist.ValueAtQuantile(50)), us(m.hist.ValueAtQuantile(99))
	s.CPU = us(int64(m.cpu)) / ops
	s.Kicks, s.Waits = float64(m.kicks)/ops, float64(m.calls)/ops
}

// release gives the descriptors of a job back. Its buffers stay: the guest of a round is not used again.
func (s *session) release(j *job) {
	for _, l := range j.lanes {
		for _, st := range l.steps {
			st.queue.Release(st.chain)
		}
	}
	if j.close != nil {
		j.close()
	}
}

// settles is for how long a daemon that has nothing to do any more may take to give memory back.
const settles = 1800 * time.Millisecond

// memory looks many names up, sees what each costs, and forgets them again.
func (s *session) memory(st *State) error {
	dir, err := s.fuse.Lookup(fe.RootNode, manyName)
	if err != nil {
		return err
	}
	_, before := s.proc.Memory()
	nodes := make([]uint64, 0, many)
	for i := range many {
		e, err := s.fuse.Lookup(dir.Node, fileName(i))
		var errno unix.Errno
		if errors.As(err, &errno) {
			st.Refused = unix.ErrnoName(errno)
			break
		}
		if err != nil {
			return err
		}
		nodes = append(nodes, e.Node)
	}
	st.Known = len(nodes)
	_, full := s.proc.Memory()
	for _, n := range nodes {
		if err := s.fuse.Forget(n, 1); err != nil {
			return err
		}
	}
	time.Sleep(settles)
	_, after := s.proc.Memory()
	n := float64(max(1, len(nodes)))
	st.PerInode, st.Kept = (float64(full)-float64(before))/n, (float64(after)-float64(before))/n
	return nil
}

// Host describes the machine, without its name.
func Host(dir string) map[string]string {
	h := map[string]string{"cpus": fmt.Sprint(runtime.NumCPU()), "go": runtime.Version()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h["kernel"] = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				h["cpu"] = strings.TrimSpace(v)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		h["load"] = strings.Fields(string(b))[0]
	}
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) == nil {
		h["file system"] = fmt.Sprintf("%#x", fs.Type)
	}
	return h
}
