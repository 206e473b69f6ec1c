package workload

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"virtiofsd/harness/guestproto"
)

// notHere are tests which fail on a local file system, too, and why.
var notHere = map[string]string{
	"FcntlFlockLocksFile": "locks twice as the same owner and expects a conflict; go-fuse itself skips it",
}

// posixTest runs go-fuse's posixtest in a process of its own: its tests count descriptors, change directories and may be left hanging.
func (e *Env) posixTest(a guestproto.PosixTestArgs) (guestproto.PosixTest, error) {
	r := guestproto.PosixTest{Checks: []guestproto.Check{}}
	p, err := e.place(a.Where, guestproto.CallPosixTest)
	if err != nil {
		return r, err
	}
	names := a.Tests
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(posixtest.All))
	}
	for i, n := range names {
		if posixtest.All[n] == nil {
			return r, fmt.Errorf("posixtest has no test %q", n)
		}
		if why := notHere[n]; why != "" && len(a.Tests) == 0 {
			r.Checks = append(r.Checks, guestproto.Check{Name: n, Status: guestproto.StatusSkip, Detail: why})
			continue
		}
		if slices.Contains(a.Skip, n) {
			r.Checks = append(r.Checks, guestproto.Check{Name: n, Status: guestproto.StatusSkip, Detail: "the scenario leaves it out"})
			continue
		}
		e.progress(n, int64(i), int64(len(names)))
		// One process a test: one that crashes its process takes no other with it.
		dir := filepath.Join(p.dir, n)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return r, err
		}
		start := time.Now()
		out, err := e.inOwnProcess(nil, nil, "posixtest", n, dir)
		c := verdictOf(n, string(out))
		if c.Status != guestproto.StatusPass && c.Detail == "" {
			c.Detail = fmt.Sprintf("the test's process ended without a word: %v", err)
		}
		c.Seconds = time.Since(start).Seconds()
		r.Checks = append(r.Checks, c)
		if c.Status == guestproto.StatusPass {
			_ = os.RemoveAll(dir) // leftovers tell nothing of a test that passed
		}
		r.Output += string(out)
	}
	r.Output = r.Output[max(0, len(r.Output)-64<<10):]
	return r, nil
}

// verdictOf reads what package testing printed about one test.
func verdictOf(name, out string) guestproto.Check {
	c := guestproto.Check{Name: name, Status: guestproto.StatusFail}
	switch {
	case strings.Contains(out, "--- PASS: "+name+" "):
		c.Status = guestproto.StatusPass
		return c
	case strings.Contains(out, "--- SKIP: "+name+" "):
		c.Status = guestproto.StatusSkip
	}
	c.Detail = testWords(out)
	return c
}

// childPosixTest runs one test of posixtest in this process, and ends it: package testing exits by itself. Its entry for generated
// main programs is used, because RunTests alone runs nothing.
func childPosixTest(args []string, stdout io.Writer) int {
	if len(args) != 2 || posixtest.All[args[0]] == nil {
		fmt.Fprintln(stdout, "want a test of posixtest and a directory")
		return 2
	}
	os.Args = []string{"posixtest", "-test.v"} // package testing reads its flags from there
	testing.Main(func(_, _ string) (bool, error) { return true, nil }, []testing.InternalTest{{
		Name: args[0], F: func(t *testing.T) { posixtest.All[args[0]](t, args[1]) },
	}}, nil, nil)
	return 0
}

// testWords is what a test said, without the framework's lines.
func testWords(out string) string {
	var words []string
	for l := range strings.Lines(out) {
		l = strings.TrimSpace(l)
		if l != "" && l != "PASS" && l != "FAIL" && !strings.HasPrefix(l, "=== ") && !strings.HasPrefix(l, "--- ") {
			words = append(words, l)
		}
	}
	s := strings.Join(words, "; ")
	return s[:min(len(s), 2000)]
}
