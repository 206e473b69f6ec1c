package mutants

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Outcome is what became of a mutant, as one letter.
type Outcome byte

// The outcomes.
const (
	Unknown   Outcome = '.' // it was not run yet
	Killed    Outcome = 'k'
	TimedOut  Outcome = 't' // and so was killed
	Survived  Outcome = 's'
	Unreached Outcome = 'n' // by any test, so it survived
	Nothing   Outcome = 'e' // it survived, and the list says why nobody could see it
	Unbuilt   Outcome = 'x' // it does not compile beside the others, and counts for nothing
)

// Runner runs the mutants of one package.
type Runner struct {
	Root    string
	Package *Package
	State   *State             // what is known already; it is added to
	Reasons map[*Mutant]string // of mutants that change nothing, from [Match]
	Jobs    int
	Slowest time.Duration // tests that take longer are not used
	Grace   time.Duration // how much longer than three times as long tests may run with a mutant; 0 is 5 s
	Sample  int           // run that many of the mutants that are not known yet; 0 is all
	Only    *regexp.Regexp
	Save    func() error // keeps the state
	Tell    func(string)

	dir, bin string
	tests    []*test
}

// test is a test of the package, as it runs with no mutant on.
type test struct {
	name    string
	took    time.Duration
	reaches []byte
}

// Run runs the mutants of which the state does not know the outcome.
func (r *Runner) Run(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("mutants of %s: a mutated daemon must be kept in namespaces of its own; run as root", r.Package.Name)
	}
	hash, err := testHash(r.Root, r.Package.Name)
	if err != nil {
		return err
	}
	known := r.State.of(r.Package, r.Reasons, hash)
	var todo []int
	for i, m := range r.Package.Mutants {
		if r.Only != nil && !r.Only.MatchString(m.String()) {
			continue
		}
		o := known.get(m)
		_, listed := r.Reasons[m]
		switch {
		case r.Package.Unbuilt(m):
			known.set(m, Unbuilt)
		case listed && (o == Survived || o == Unreached):
			known.set(m, Nothing)
		case o == Unknown:
			todo = append(todo, i)
		}
	}
	all := len(todo)
	if r.Sample > 0 && r.Sample < len(todo) {
		rand.New(rand.NewPCG(18, 18)).Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
		todo = todo[:r.Sample]
		slices.Sort(todo)
	}
	if len(todo) == 0 {
		return r.Save()
	}
	if r.dir, err = os.MkdirTemp("", "mutants"); err != nil {
		return fmt.Errorf("mutants of %s: %w", r.Package.Name, err)
	}
	defer os.RemoveAll(r.dir)
	if err := os.Chmod(r.dir, 0o755); err != nil { // tests have other users, too
		return fmt.Errorf("mutants of %s: %w", r.Package.Name, err)
	}
	if err := r.build(ctx); err != nil {
		return err
	}
	if err := r.baseline(ctx); err != nil {
		return err
	}
	r.Tell(fmt.Sprintf("%s: %d mutants, %d not known, %d to run; %d tests", r.Package.Name, len(r.Package.Mutants), all, len(todo), len(r.tests)))
	work := make(chan int)
	var mu sync.Mutex // over the state, and what is told
	var wg sync.WaitGroup
	var failure error
	done, began, saved := 0, time.Now(), time.Now()
	for range max(1, r.Jobs) {
		wg.Go(func() {
			for i := range work {
				m := r.Package.Mutants[i]
				o, by, err := r.one(ctx, i+1, func(s string) { mu.Lock(); defer mu.Unlock(); r.Tell(s) })
				mu.Lock()
				switch {
				case ctx.Err() != nil:
				case err != nil:
					failure = err
				default:
					done++
					_, listed := r.Reasons[m]
					switch {
					case listed && (o == Survived || o == Unreached):
						o, by = Nothing, "changes nothing"
					case o == Survived:
						by = "SURVIVED"
					case o == Unreached:
						by = "SURVIVED, no test reaches it"
					}
					known.set(m, o)
					left := time.Since(began) / time.Duration(done) * time.Duration(len(todo)-done)
					r.Tell(fmt.Sprintf("[%d/%d, %v left] %s: %s", done, len(todo), left.Round(time.Second), m, by))
					if time.Since(saved) > 10*time.Second {
						if err := r.Save(); err != nil {
							failure = err
						}
						saved = time.Now()
					}
				}
				mu.Unlock()
			}
		})
	}
	for _, i := range todo {
		mu.Lock()
		stop := failure != nil || ctx.Err() != nil
		mu.Unlock()
		if stop {
			break
		}
		work <- i
	}
	close(work)
	wg.Wait()
	if failure == nil {
		failure = ctx.Err()
	}
	if err := r.Save(); err != nil {
		return err
	}
	return failure
}

// build makes the one program that has all mutants.
func (r *Runner) build(ctx context.Context) error {
	replace := map[string]string{}
	for name, text := range r.Package.files {
		at := filepath.Join(r.dir, name)
		if err := os.WriteFile(at, text, 0o600); err != nil {
			return fmt.Errorf("mutants of %s: %w", r.Package.Name, err)
		}
		replace[filepath.Join(r.Root, "internal", r.Package.Name, name)] = at
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	at := filepath.Join(r.dir, "overlay.json")
	if err := os.WriteFile(at, overlay, 0o600); err != nil {
		return fmt.Errorf("mutants of %s: %w", r.Package.Name, err)
	}
	r.bin = filepath.Join(r.dir, r.Package.Name+".test")
	c := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-overlay", at, "-o", r.bin, "./internal/"+r.Package.Name)
	c.Dir = r.Root
	c.Env = append(os.Environ(), "CGO_ENABLED=0") // as the daemon is shipped
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build mutants of %s: %w: %s", r.Package.Name, err, out)
	}
	return nil
}

// inside is a shell's command line that runs a program where it can do no harm: $1 is its temporary
// folder, the rest the program. All processes end with the shell, which is the first of its
// namespace.
const inside = `mount --make-rprivate / && mount -t proc proc /proc && mount --bind "$1" "$1" && mount -t tmpfs shm /dev/shm && mount -o remount,bind,ro / || exit 125
shift; ulimit -d 6000000; "$@"; exit $?`

// program runs the test program. reached is a file for what is reached, "" for none.
func (r *Runner) program(ctx context.Context, limit time.Duration, on int, reached string, args ...string) (out string, status int, took time.Duration, err error) {
	tmp, err := os.MkdirTemp(r.dir, "run")
	if err != nil {
		return "", 0, 0, err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", 0, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := exec.CommandContext(ctx, "sh", append([]string{"-c", inside, "sh", r.dir, r.bin}, args...)...)
	c.Dir = filepath.Join(r.Root, "internal", r.Package.Name)
	c.Env = append(os.Environ(), "TMPDIR="+tmp, "MATRIX_MUST="+os.Getenv("MATRIX_MUST"), envOn+"="+strconv.Itoa(on), envReached+"="+reached)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var b bytes.Buffer
	c.Stdout, c.Stderr = &b, &b
	c.WaitDelay = 5 * time.Second
	began := time.Now()
	err = c.Run()
	took = time.Since(began)
	status = c.ProcessState.ExitCode()
	if status == 125 {
		return "", 0, 0, fmt.Errorf("mutants of %s: no namespaces for the test program: %s", r.Package.Name, b.Bytes())
	}
	if err != nil && c.ProcessState == nil {
		return "", 0, 0, err
	}
	return b.String(), status, took, nil
}

// baseline runs each test by itself, with no mutant on: what it takes, and which mutants it
// reaches.
func (r *Runner) baseline(ctx context.Context) error {
	out, status, _, err := r.program(ctx, time.Minute, 0, "", "-test.list", ".")
	if err != nil || status != 0 {
		return fmt.Errorf("list the tests of %s: %w: %s", r.Package.Name, err, out)
	}
	for _, name := range strings.Fields(out) {
		if !strings.HasPrefix(name, "Test") && !strings.HasPrefix(name, "Fuzz") && !strings.HasPrefix(name, "Example") {
			continue
		}
		t := &test{name: name}
		reached := filepath.Join(r.dir, "reached")
		if err := os.WriteFile(reached, make([]byte, len(r.Package.Mutants)+1), 0o600); err != nil {
			return err
		}
		out, status, took, err := r.program(ctx, 5*time.Minute, 0, reached, "-test.run", "^"+name+"$")
		if err != nil {
			return err
		}
		t.took = took
		if t.reaches, err = os.ReadFile(reached); err != nil {
			return err
		}
		switch {
		case status != 0:
			r.Tell(fmt.Sprintf("%s: %s fails with no mutant on and is not used: %s", r.Package.Name, name, firstFailure(out)))
		case r.Slowest > 0 && took > r.Slowest:
			r.Tell(fmt.Sprintf("%s: %s takes %v and is not used", r.Package.Name, name, took.Round(time.Second)))
		default:
			r.tests = append(r.tests, t)
		}
	}
	return ctx.Err()
}

// batch is how long the tests may take together that run in one process.
const batch = time.Second

// one runs a mutant by the tests that reach it, until one fails.
func (r *Runner) one(ctx context.Context, on int, tell func(string)) (Outcome, string, error) {
	var reach []*test
	for _, t := range r.tests {
		if t.reaches[on] != 0 {
			reach = append(reach, t)
		}
	}
	if len(reach) == 0 {
		return Unreached, "", nil
	}
	slices.SortStableFunc(reach, func(a, b *test) int { return int(a.took - b.took) })
	for len(reach) > 0 {
		n, sum := 0, time.Duration(0)
		for n < len(reach) && (n == 0 || sum+reach[n].took <= batch) {
			sum += reach[n].took
			n++
		}
		o, by, err := r.tried(ctx, on, tell, reach[:n], 3*sum+cmp.Or(r.Grace, 5*time.Second))
		if err != nil || o != Survived {
			return o, by, err
		}
		reach = reach[n:]
	}
	return Survived, "", nil
}

// tried runs some tests with a mutant on; what kills it must pass without it.
func (r *Runner) tried(ctx context.Context, on int, tell func(string), tests []*test, limit time.Duration) (Outcome, string, error) {
	var names []string
	for _, t := range tests {
		names = append(names, t.name)
	}
	for range 3 {
		args := []string{"-test.failfast", "-test.timeout", limit.String(), "-test.run", "^(" + strings.Join(names, "|") + ")$"}
		out, status, _, err := r.program(ctx, limit+5*time.Second, on, "", args...)
		if err != nil || ctx.Err() != nil || status == 0 {
			return Survived, "", err
		}
		o, by, again := Killed, firstFailure(out), names
		if strings.Contains(out, "test timed out") || status < 0 {
			o, by = TimedOut, "time-out"
		} else if m := failed.FindStringSubmatch(out); m != nil {
			again = []string{m[1]}
		}
		_, status, _, err = r.program(ctx, limit+5*time.Second, 0, "", "-test.timeout", limit.String(), "-test.run", "^("+strings.Join(again, "|")+")$")
		if err != nil || status == 0 {
			return o, by, err
		}
		limit *= 2
	}
	tell(fmt.Sprintf("%s: %s: these tests fail by themselves, again and again, so nothing is learnt: %s", r.Package.Name, r.Package.Mutants[on-1], strings.Join(names, " ")))
	return Survived, "", nil
}

var failed = regexp.MustCompile(`(?m)^--- FAIL: (\w+)`)

func firstFailure(out string) string {
	if m := failed.FindStringSubmatch(out); m != nil {
		return m[1]
	}
	for l := range strings.Lines(out) {
		for _, mark := range []string{"panic: ", "fatal error: ", "SIG"} {
			if strings.Contains(l, mark) {
				return strings.TrimSpace(l)
			}
		}
	}
	return "exit"
}
