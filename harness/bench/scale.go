package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// Point is what one item costs where there are so many.
type Point struct {
	What   string  `json:"what"`
	Unit   string  `json:"unit"`
	N      int     `json:"n"`
	Daemon string  `json:"daemon"`
	Round  int     `json:"round"`
	Value  float64 `json:"value"`
	Bad    string  `json:"error,omitempty"`
}

// What a Point tells.
const (
	scaleLookup  = "LOOKUP of each of n names, p50"
	scaleKnown   = "memory per known inode, of n"
	scaleKept    = "memory kept for each after FORGET, of n"
	scaleAgain   = "memory per known inode, of n that are looked up again after that"
	scaleReaddir = "READDIRPLUS of n entries, per entry"
	scaleQueues  = "GETATTR on n queues, depth 16 on each, per request"
)

// scaleOrder is the order of the report.
var scaleOrder = []string{scaleLookup, scaleKnown, scaleKept, scaleAgain, scaleReaddir, scaleQueues}

// MaxScale is the largest number of names: what fileName has digits for.
const MaxScale = 1_000_000

// Scale measures what an item costs, for 1000 names and each tenfold up to largest, and for 1 to 8 queues. What grows with the number of
// items and no faster shows as a constant. Each size has a fresh process.
func Scale(ctx context.Context, o Options, largest int) (*Report, error) {
	b, r, err := newBed(o)
	if err != nil {
		return nil, err
	}
	defer b.close()
	var sizes []int
	for n := 1000; n <= min(largest, MaxScale); n *= 10 {
		sizes = append(sizes, n)
		b.Progress(fmt.Sprintf("make %d names", n))
		if err := makeNames(filepath.Join(b.share, scaleDir(n)), n); err != nil {
			return nil, fmt.Errorf("prepare the share: %w", err)
		}
	}
	if err := writeBig(filepath.Join(b.share, bigName), 1<<20); err != nil {
		return nil, fmt.Errorf("prepare the share: %w", err)
	}
	r.Rounds = b.Rounds
	for round := range b.Rounds {
		began := time.Now()
		turn := func(f func(fe.Daemon)) error {
			for i := range b.Daemons {
				f(b.Daemons[(i+round)%len(b.Daemons)])
			}
			return ctx.Err()
		}
		for _, n := range sizes {
			if err := turn(func(d fe.Daemon) { r.Points = append(r.Points, b.names(ctx, d, round, n)...) }); err != nil {
				return nil, err
			}
		}
		for _, n := range []int{1, 2, 4, 8} {
			if err := turn(func(d fe.Daemon) { r.Points = append(r.Points, b.queues(ctx, d, round, n)) }); err != nil {
				return nil, err
			}
		}
		b.Progress(fmt.Sprintf("round %d of %d: %.1f s", round+1, b.Rounds, time.Since(began).Seconds()))
	}
	return r, nil
}

func scaleDir(n int) string { return fmt.Sprintf("names-%d", n) }

// names measures LOOKUP and memory, then READDIRPLUS.
func (b *bed) names(ctx context.Context, d fe.Daemon, round, n int) []Point {
	point := func(what, unit string) Point {
		return Point{What: what, Unit: unit, N: n, Daemon: d.Name, Round: round}
	}
	all := []Point{point(scaleLookup, "µs"), point(scaleKnown, "B"), point(scaleKept, "B"), point(scaleAgain, "B"), point(scaleReaddir, "µs")}
	look, list := all[:4], all[4:]
	bad := func(p []Point, err error) {
		for i := range p {
			p[i].Bad = err.Error()
		}
	}
	s, err := b.begin(ctx, d, 1)
	if err != nil {
		bad(all, err)
		return all
	}
	defer s.end()
	values, err := b.lookAll(s, n)
	for i := range look {
		look[i].Value = values[i]
	}
	if err != nil {
		bad(look, err)
	}
	j, err := readdirJob(scaleDir(n), n, true)(s, nil)
	if err == nil {
		m := s.run(j, limit{time: b.Time}, b.hist)
		if err = m.err; err == nil {
			list[0].Value = us(int64(m.onClock)) / float64(m.items)
		}
	}
	if err != nil {
		bad(list, err)
	}
	return all
}

// lookAll looks each name up once, forgets all and looks them up again: p50 of the first time in µs, and after each the bytes of anonymous
// memory for a name. What was not given back must not grow when it is asked again.
func (b *bed) lookAll(s *session, n int) (values [4]float64, err error) {
	dir, err := s.fuse.Lookup(fe.RootNode, scaleDir(n))
	if err != nil {
		return values, err
	}
	refs := newReferences(n)
	i := 0
	p := &program{s: s}
	look := p.step(fe.Request{Op: fe.OpLookup, Node: dir.Node, Args: fe.Body(nil).Name(fileName(0)), OutArgs: fe.EntrySize},
		func(st *step) { rename(st.args, i) })
	look.after = func() bool { refs.add(node(look.out)); i = (i + 1) % n; return false }
	looks, err := p.job(nil)
	if err != nil {
		return values, err
	}
	p = &program{s: s}
	p.forget(refs)
	p.lane.steps[0].offClock = false // it is the job
	forgets, err := p.job(nil)
	if err != nil {
		return values, err
	}
	_, before := s.proc.Memory()
	for at, step := range []struct {
		j   *job
		ops int
	}{{looks, n}, {forgets, 1}, {looks, n}, {forgets, 1}} {
		err = s.run(step.j, limit{ops: step.ops}, b.hist).err
		if errno := unix.Errno(0); errors.As(err, &errno) {
			s.run(forgets, limit{ops: 1}, b.hist)
			return values, fmt.Errorf("%s after %d names", unix.ErrnoName(errno), i)
		}
		if err != nil {
			return values, err
		}
		if at == 0 {
			values[0] = us(b.hist.ValueAtQuantile(50))
		}
		if step.j == forgets {
			time.Sleep(settles)
		}
		if _, now := s.proc.Memory(); 1+at < len(values) {
			values[1+at] = (float64(now) - float64(before)) / float64(n)
		}
	}
	return values, nil
}

// queues measures GETATTR on n queues at once.
func (b *bed) queues(ctx context.Context, d fe.Daemon, round, n int) Point {
	p := Point{What: scaleQueues, Unit: "µs", N: n, Daemon: d.Name, Round: round}
	s, err := b.begin(ctx, d, n)
	if err != nil {
		p.Bad = err.Error()
		return p
	}
	defer s.end()
	j, err := getattrJob(16*n)(s, nil)
	if err == nil {
		m := s.run(j, limit{time: b.Time / 10}, b.hist) // warm up
		if m.err == nil {
			m = s.run(j, limit{time: b.Time}, b.hist)
		}
		if err = m.err; err == nil {
			p.Value = us(int64(m.elapsed)) / float64(m.ops)
		}
	}
	if err != nil {
		p.Bad = err.Error()
	}
	return p
}

// ScaleTable is the table of what an item costs among n, medians of rounds; of no points, the head alone.
func (r *Report) ScaleTable() [][]string {
	daemons := r.with(func(yield func(string)) {
		for _, p := range r.Points {
			yield(p.Daemon)
		}
	})
	rows := [][]string{append([]string{"cost per item", "n", "unit"}, daemons...)}
	for _, what := range scaleOrder {
		var sizes []int
		unit := ""
		for _, p := range r.Points {
			if p.What == what {
				sizes, unit = append(sizes, p.N), p.Unit
			}
		}
		slices.Sort(sizes)
		for _, n := range slices.Compact(sizes) {
			row := []string{what, fmt.Sprint(n), unit}
			for _, d := range daemons {
				row = append(row, r.cost(what, n, d))
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// cost is the median of the rounds, or why there is none.
func (r *Report) cost(what string, n int, daemon string) string {
	var v []float64
	bad := "-"
	for _, p := range r.Points {
		switch {
		case p.What != what || p.N != n || p.Daemon != daemon:
		case p.Bad != "":
			bad = p.Bad
		default:
			v = append(v, p.Value)
		}
	}
	if len(v) == 0 {
		return bad
	}
	return fmt.Sprintf("%.2f", stat(v).Center)
}
