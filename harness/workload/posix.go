package workload

import (
	"bytes"
	"encoding/json"
	"flag"
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
		e.progress(n, int64(i), int64(len(names)))
		// One process a test: one that crashes its process takes no other with it.
		dir := filepath.Join(p.dir, n)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return r, err
		}
		start := time.Now()
		out, err := e.inOwnProcess(nil, nil, "posixtest", n, dir)
		c := guestproto.Check{Name: n, Status: guestproto.StatusFail}
		last := bytes.TrimSpace(out[bytes.LastIndexByte(bytes.TrimSpace(out), '\n')+1:])
		if json.Unmarshal(last, &c) != nil {
			c.Detail = fmt.Sprintf("the test's process ended without a verdict: %v", err)
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

// childPosixTest runs one test of posixtest in this process: package testing's output, then a [guestproto.Check] as one line of JSON.
func childPosixTest(args []string, stdout io.Writer) int {
	if len(args) != 2 || posixtest.All[args[0]] == nil {
		fmt.Fprintln(stdout, "want a test of posixtest and a directory")
		return 2
	}
	testing.Init()
	if err := flag.CommandLine.Parse([]string{"-test.v", "-test.timeout=0"}); err != nil {
		fmt.Fprintln(stdout, err)
		return 2
	}
	c := guestproto.Check{Name: args[0], Status: guestproto.StatusFail}
	// The framework prints to os.Stdout, which is our stdout; what it says of the test becomes the check's detail.
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Fprintln(stdout, err)
		return 1
	}
	old := os.Stdout
	os.Stdout = w
	said := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(r, 64<<10)) // a pipe of our own
		_, _ = io.Copy(io.Discard, r)
		said <- b
	}()
	testing.RunTests(func(_, _ string) (bool, error) { return true, nil }, []testing.InternalTest{{
		Name: args[0],
		F: func(t *testing.T) {
			t.Cleanup(func() {
				switch {
				case t.Skipped():
					c.Status = guestproto.StatusSkip
				case !t.Failed():
					c.Status = guestproto.StatusPass
				}
			})
			posixtest.All[args[0]](t, args[1])
		},
	}})
	w.Close()
	os.Stdout = old
	text := <-said
	stdout.Write(text)
	if c.Status != guestproto.StatusPass {
		c.Detail = testWords(string(text))
	}
	if err := json.NewEncoder(stdout).Encode(c); err != nil {
		return 1
	}
	return 0
}

// testWords is what a test said, without the framework's lines.
func testWords(out string) string {
	var words []string
	for l := range strings.Lines(out) {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "=== ") && !strings.HasPrefix(l, "--- ") {
			words = append(words, l)
		}
	}
	s := strings.Join(words, "; ")
	return s[:min(len(s), 2000)]
}
