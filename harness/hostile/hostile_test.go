package hostile_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/hostile"
	"virtiofsd/internal/testenv"
)

// daemon is cmd/virtiofsd, built once for all tests of this package.
var daemon frontend.Daemon

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hostile-bin")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := testenv.Build(dir, "virtiofsd"); err != nil {
		panic(err)
	}
	daemon = frontend.Daemon{Name: "ours", Dialect: "ours", Exec: []string{filepath.Join(dir, "virtiofsd")}}
	return m.Run()
}

func c() frontend.Daemon {
	return frontend.Daemon{Name: "c", Dialect: "c", Exec: []string{testenv.QEMUVirtiofsd}}
}

// harmless are the front-end's cases that our daemon answers with success or not at all. It refuses all others: a front-end whose mistake
// is accepted goes on believing.
var harmless = regexp.MustCompile(`^(connect-and-leave|leave-in-flight|header-cut|payload-(cut|missing)|unknown-flags|features-none|enable-before-setup|stop-before-start|` +
	`addr-overlap|call-is-a-full-eventfd|slot-remove-in-use|table-again-while-running|ring-memory-vanishes|config-size|owner-twice|reset-(owner|device)-while-running|random-messages)$`)

func TestOurDaemonWithstandsEverything(t *testing.T) {
	testenv.Need(t, "root")
	cases := hostile.Cases()
	require.Greater(t, len(cases), 150)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "case") // t.TempDir may be too long for a socket's path
			require.NoError(t, err)
			defer os.RemoveAll(dir)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			r := hostile.RunCase(ctx, daemon, c, dir)
			assert.True(t, r.Pass, "%s %s\n%s", r.Outcome, r.Detail, r.Log)
			if c.Side == hostile.FrontEnd && !harmless.MatchString(c.Name) {
				assert.Contains(t, []hostile.Outcome{hostile.ErrorReply, hostile.Closed}, r.Outcome, "the front-end is told")
			}
			// Both are survived, but what should not be done is to be seen before it is tried.
			assert.NotContains(t, r.Log, "defect", "a panic of ours ended a request")
			if !strings.Contains(c.Name, "vanish") {
				assert.NotContains(t, r.Log, "vanished", "memory that nobody gave was touched")
			}
		})
	}
}

// The cases are able to find something: they find what the C daemon is known for. It gives the root up after more FORGETs than LOOKUPs;
// where a thread still holds it then, an assertion fails instead.
func TestCasesFindKnownFaults(t *testing.T) {
	testenv.Need(t, "root", "c-daemon")
	results, err := hostile.Run(context.Background(), []frontend.Daemon{c()}, regexp.MustCompile(`^(header-20|forget-root-1000|desc-loop|unique-0|name-parent|opcode-unknown)$`), nil)
	require.NoError(t, err)
	want := map[string][]hostile.Outcome{
		"header-20": {hostile.Died}, "forget-root-1000": {hostile.RootLost, hostile.Died}, "desc-loop": {hostile.Died}, "unique-0": {hostile.Died},
		"name-parent": {hostile.ErrorReply}, "opcode-unknown": {hostile.RootLost},
	}
	require.Len(t, results, len(want))
	for _, r := range results {
		assert.Contains(t, want[r.Case], r.Outcome, "%s: %s\n%s", r.Case, r.Detail, r.Log)
	}
}

func TestCasesAreWellDescribed(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range hostile.Cases() {
		assert.NotEmpty(t, c.Rule, c.Name)
		assert.NotEmpty(t, c.Side, c.Name)
		assert.NotNil(t, c.Attack, c.Name)
		assert.False(t, seen[c.Name], "%s twice", c.Name)
		assert.Regexp(t, `^[a-z0-9]+(-[a-z0-9]+)*$`, c.Name)
		seen[c.Name] = true
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	hostile.WriteTable(&b, []hostile.Result{
		{Case: "one", Side: hostile.Guest, Daemon: "ours", Outcome: hostile.OK, Pass: true},
		{Case: "one", Side: hostile.Guest, Daemon: "c", Outcome: hostile.Died},
		{Case: "two", Side: hostile.Guest, Daemon: "ours", Outcome: hostile.ErrorReply, Detail: "EINVAL", Pass: true},
		{Case: "two", Side: hostile.Guest, Daemon: "c", Outcome: hostile.Completed0, Pass: true},
		{Case: "three", Side: hostile.FrontEnd, Daemon: "ours", Outcome: hostile.ErrorReply, Pass: true},
		{Case: "three", Side: hostile.FrontEnd, Daemon: "c", Outcome: hostile.ErrorReply, Pass: true},
	})
	assert.NotContains(t, b.String(), "error", "what passes is none")
	for _, want := range []string{"✗ died", "EINVAL", "refused", "3 OF 3", "2 OF 3"} {
		assert.Contains(t, b.String(), want)
	}
}
