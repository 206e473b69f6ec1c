package runner

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/impl"
	"virtiofsd/harness/launch"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
	"virtiofsd/internal/testenv"
	vmimages "virtiofsd/vm-images"
)

// holdEnv makes the test's own program a run that holds a work directory in the folder named, until it is killed.
const holdEnv = "RUNNER_TEST_HOLD"

// TestMain makes the test's program a daemon, too: started with a socket's path, it listens there and does nothing else.
func TestMain(m *testing.M) {
	if path, ok := strings.CutPrefix(os.Args[min(1, len(os.Args)-1)], "--socket-path="); ok {
		l, err := net.Listen("unix", path)
		if err != nil {
			println(err.Error())
			os.Exit(1)
		}
		time.Sleep(time.Minute)
		l.Close()
		return
	}
	base := os.Getenv(holdEnv)
	if base == "" {
		os.Exit(m.Run())
	}
	dir, lock, err := workDir(base)
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
	_, _ = os.Stdout.WriteString(dir + "\n")
	time.Sleep(time.Minute)
	lock.Close()
}

var quiet = slog.New(slog.DiscardHandler)

// TestSweepAfterAKilledRun: what a run leaves that was killed is removed by the next one, and what a living one has is not.
func TestSweepAfterAKilledRun(t *testing.T) {
	base := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdEnv+"="+base)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer cmd.Process.Kill()
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	dir := strings.TrimSpace(line)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "left"), nil, 0o600))

	sweep(base, quiet)
	assert.FileExists(t, filepath.Join(dir, "left"), "a living run's work directory was removed")

	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	sweep(base, quiet)
	assert.NoDirExists(t, dir)
}

// TestTheLockOutlivesTheGarbageCollector: a lock that only a forgotten file holds is let go by the collector, under a cell that runs.
func TestTheLockOutlivesTheGarbageCollector(t *testing.T) {
	c := &cell{run: &run{Config: Config{Work: t.TempDir(), Log: quiet}}, job: job{s: &scenario.Scenario{}}}
	require.NoError(t, c.prepare())
	for range 3 {
		runtime.GC()
	}
	sweep(c.Work, quiet)
	assert.DirExists(t, c.share)
	c.clean()
	assert.NoDirExists(t, c.work)
}

// TestSweepLeavesTheRest: only directories with a lock that nobody holds are a dead run's.
func TestSweepLeavesTheRest(t *testing.T) {
	base := t.TempDir()
	for _, d := range []string{"vfsmatrix-unlocked", "others"} {
		require.NoError(t, os.Mkdir(filepath.Join(base, d), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(base, "others", "lock"), nil, 0o600))
	sweep(base, quiet)
	assert.DirExists(t, filepath.Join(base, "vfsmatrix-unlocked"))
	assert.DirExists(t, filepath.Join(base, "others"))
}

// TestRemoveDoesNotReachThroughAMount: a daemon may have left the host's files mounted below a cell's work directory.
func TestRemoveDoesNotReachThroughAMount(t *testing.T) {
	testenv.Need(t, "root")
	precious, dir := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(precious, "file"), nil, 0o600))
	at := filepath.Join(dir, "work", "share")
	require.NoError(t, os.MkdirAll(at, 0o755))
	require.NoError(t, unix.Mount(precious, at, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	require.NoError(t, unix.Mount("none", filepath.Join(at), "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })

	require.NoError(t, remove(filepath.Join(dir, "work")))
	assert.NoDirExists(t, filepath.Join(dir, "work"))
	assert.FileExists(t, filepath.Join(precious, "file"))
}

// program is a stand-in for a daemon that speaks the Rust dialect.
func program(t *testing.T, body string) *impl.Impl {
	t.Helper()
	p := filepath.Join(t.TempDir(), "daemon")
	require.NoError(t, os.WriteFile(p, []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	return &impl.Impl{Name: "fake", Dialect: impl.DialectRust, Path: p}
}

// runOne runs one cell without a guest image and returns the stored run.
func runOne(t *testing.T, c Config, s scenario.Scenario, i *impl.Impl) (result.Cell, error) {
	t.Helper()
	s.ID, s.Kernels = "a-test", []string{"none"}
	c.Scenarios, c.Impls, c.Kernels = []*scenario.Scenario{&s}, []*impl.Impl{i}, map[string]vmimages.Image{"none": {Kernel: os.Args[0], Initrd: os.Args[0]}}
	c.Dir, c.Work = filepath.Join(t.TempDir(), "run"), t.TempDir()
	var err error
	c.Writer, err = result.Create(c.Dir, result.Run{ID: "r"})
	require.NoError(t, err)
	runErr := Run(t.Context(), c)
	if runErr == nil {
		_, err = c.Writer.Close(1)
		require.NoError(t, err)
	}
	left, err := filepath.Glob(filepath.Join(c.Work, "*"))
	require.NoError(t, err)
	assert.Empty(t, left, "the cell left something in the work directory")
	stored, err := result.Read(os.DirFS(c.Dir))
	require.NoError(t, err)
	require.Len(t, stored.Cells, 1)
	return stored.Cells[0], runErr
}

// TestWordsOfNeedAndMust: a missing need skips a cell, unless it must not be missing.
func TestWordsOfNeedAndMust(t *testing.T) {
	s := scenario.Scenario{Needs: []string{"no-such-tool-anywhere"}}
	never := program(t, "exit 9")
	for _, c := range []struct {
		must   []string
		status result.CellStatus
		skip   result.SkipWord
		says   string
	}{
		{nil, result.CellSkipped, result.SkipNeed, "no-such-tool-anywhere: "},
		{[]string{"qemu"}, result.CellSkipped, result.SkipNeed, "install the package no-such-tool-anywhere"},
		{[]string{"no-such-tool-anywhere"}, result.CellBroken, "", "must not be missing here"},
		{[]string{"all"}, result.CellBroken, "", "must not be missing here"},
	} {
		cell, err := runOne(t, Config{Must: c.must}, s, never)
		require.NoError(t, err)
		assert.Equal(t, c.status, cell.Status, "must %v", c.must)
		assert.Equal(t, c.skip, cell.Skip)
		assert.Contains(t, cell.Reason, c.says)
	}
}

func TestNeedsThatAreMet(t *testing.T) {
	r := &run{Config: Config{QEMU: "sh"}, needs: map[string]func() error{}}
	assert.NoError(t, r.need("sh"))
	assert.NoError(t, r.need("qemu"), "the program that was given")
	r.QEMU = "no-such-qemu"
	assert.NoError(t, r.need("qemu"), "an answer is remembered for the run")
	r.needs = map[string]func() error{}
	assert.ErrorContains(t, r.need("qemu"), "install the package qemu-system-x86")
	assert.ErrorContains(t, r.need("no-such"), "install the package no-such")
}

// TestCellsThatDoNotStart each say why.
func TestCellsThatDoNotStart(t *testing.T) {
	cell, err := runOne(t, Config{}, scenario.Scenario{}, &impl.Impl{Name: "gone", Missing: "not installed"})
	require.NoError(t, err)
	assert.Equal(t, result.CellSkipped, cell.Status)
	assert.Equal(t, result.SkipImpl, cell.Skip)

	cell, err = runOne(t, Config{}, scenario.Scenario{Options: scenario.Options{Sandbox: "pivot_root"}}, program(t, "exit 9"))
	require.NoError(t, err)
	assert.Equal(t, result.CellSkipped, cell.Status)
	assert.Equal(t, result.SkipInexpressible, cell.Skip)
	assert.Contains(t, cell.Reason, "--sandbox=pivot_root")

	cell, err = runOne(t, Config{}, scenario.Scenario{}, program(t, "echo first; echo 'cannot share this' >&2; exit 3"))
	require.NoError(t, err)
	assert.Equal(t, result.CellRefused, cell.Status)
	assert.Equal(t, "cannot share this", cell.Reason)
	require.NotNil(t, cell.Exit)
	assert.Equal(t, 3, *cell.Exit)
	assert.NotEmpty(t, cell.Argv)

	cell, err = runOne(t, Config{}, scenario.Scenario{Plant: []scenario.Plant{{Path: "x", Kind: "moon"}}}, program(t, "exit 9"))
	require.NoError(t, err)
	assert.Equal(t, result.CellBroken, cell.Status)
	assert.Contains(t, cell.Reason, `plant x: unknown kind "moon"`)
}

func TestReady(t *testing.T) {
	ready := func(s scenario.Scenario, i *impl.Impl) (time.Duration, string) {
		s.ID = "a-ready"
		after, why, err := Ready(t.Context(), &s, i, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		return after, why
	}
	after, why := ready(scenario.Scenario{}, &impl.Impl{Name: "fake", Dialect: impl.DialectRust, Path: os.Args[0]})
	assert.Empty(t, why)
	assert.Positive(t, after)

	after, why = ready(scenario.Scenario{}, program(t, "echo 'not here' >&2; exit 3"))
	assert.Zero(t, after)
	assert.Contains(t, why, "not here")
	_, why = ready(scenario.Scenario{Options: scenario.Options{Sandbox: "pivot_root"}}, program(t, "exit 9"))
	assert.Contains(t, why, "--sandbox=pivot_root")

	_, _, err := Ready(t.Context(), &scenario.Scenario{ID: "a-ready", Plant: []scenario.Plant{{Path: "x", Kind: "moon"}}}, program(t, "exit 9"), slog.New(slog.DiscardHandler))
	assert.ErrorContains(t, err, "moon")
}

// TestAGuestThatCannotBeStartedIsOurError and no verdict about the daemon, which is ended all the same.
func TestAGuestThatCannotBeStartedIsOurError(t *testing.T) {
	listen := &impl.Impl{Name: "fake", Dialect: impl.DialectRust, Path: os.Args[0]}
	cell, err := runOne(t, Config{QEMU: "no-such-qemu"}, scenario.Scenario{}, listen)
	require.NoError(t, err)
	assert.Equal(t, result.CellBroken, cell.Status, cell.Reason)
	assert.Contains(t, cell.Reason, "no-such-qemu")
}

// TestAnInterruptedRunIsBroken: no cell is written for what was not finished, and the folder is never taken for a success.
func TestAnInterruptedRunIsBroken(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	dir, work := filepath.Join(t.TempDir(), "run"), t.TempDir()
	w, err := result.Create(dir, result.Run{ID: "r"})
	require.NoError(t, err)
	begun := time.Now()
	err = Run(ctx, Config{
		Scenarios: []*scenario.Scenario{{ID: "a-one", Kernels: []string{"k"}}, {ID: "a-two", Kernels: []string{"k"}}},
		Impls:     []*impl.Impl{program(t, "exec sleep 60")}, Kernels: map[string]vmimages.Image{"k": {}}, Parallel: 1,
		Dir: dir, Writer: w, Work: work,
		Progress: func(e Event) {
			if e.Step == "daemon" {
				cancel(errors.New("by the test"))
			}
		},
	})
	assert.ErrorContains(t, err, "run was interrupted: by the test")
	assert.Less(t, time.Since(begun), 10*time.Second)
	stored, err := result.Read(os.DirFS(dir))
	assert.ErrorIs(t, err, result.ErrBroken)
	assert.Empty(t, stored.Cells)
	left, err := filepath.Glob(filepath.Join(work, "*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestNothingToRun(t *testing.T) {
	s := []*scenario.Scenario{{ID: "a-x", Impls: []string{"c"}, Kernels: []string{"k"}}}
	err := Run(t.Context(), Config{Scenarios: s, Impls: []*impl.Impl{{Name: "ours"}}, Work: t.TempDir()})
	assert.ErrorContains(t, err, "nothing to run")
}

// TestTheLauncher is what goes before the daemon's command line.
// A guest whose daemon has ended may wait for ever; what it does quickly all the same counts.
func TestCallsOfAGuestWithoutDaemonAreGivenUp(t *testing.T) {
	ended := make(chan struct{})
	ctx, giveUp := context.WithCancelCause(t.Context())
	go missDaemon(ctx, ended, 20*time.Millisecond, giveUp)
	time.Sleep(50 * time.Millisecond)
	require.NoError(t, ctx.Err(), "the daemon lives")
	close(ended)
	<-ctx.Done()
	assert.ErrorContains(t, context.Cause(ctx), "the daemon has ended")

	done, finish := context.WithCancelCause(t.Context())
	finish(nil)
	missDaemon(done, ended, time.Hour, func(error) { t.Error("the call was over") })
}

func TestTheLauncher(t *testing.T) {
	c := &cell{run: &run{}, job: job{s: &scenario.Scenario{Launch: scenario.Launch{
		UID: 1000, GID: 100, Groups: []int{4, 5}, Capabilities: []string{"CAP_SETUID", "CHOWN"}, Wrap: []string{"bwrap", "--bind", "{share}"},
	}}}, share: "/w/share"}
	assert.Equal(t, strings.Fields("setpriv --bounding-set=-all,+setuid,+chown --inh-caps=-all --reuid=1000 --regid=100 --groups=4,5 -- bwrap --bind /w/share"), c.wrap())
	c.s.Launch = scenario.Launch{UID: 1, Capabilities: []string{"none"}}
	assert.Equal(t, strings.Fields("setpriv --bounding-set=-all --inh-caps=-all --reuid=1 --regid=0 --clear-groups --"), c.wrap())
	c.s.Launch = scenario.Launch{}
	assert.Empty(t, c.wrap())
	assert.Nil(t, c.user())
	c.s.Launch.Groups = []int{4}
	assert.Equal(t, &launch.User{Groups: []int{4}}, c.user())
}

func TestSubstitute(t *testing.T) {
	c := &cell{share: "/s", outside: "/o", socket: "/k", secret: "z"}
	got, err := json.Marshal(c.substitute(map[string]any{"a": []any{"{outside}/x", 1, map[string]any{"b": "{share}{socket}{secret}"}}}))
	require.NoError(t, err)
	assert.JSONEq(t, `{"a":["/o/x",1,{"b":"/s/kz"}]}`, string(got))
	assert.NotNil(t, c.substitute(nil))
}

// TestAccounts: the machine's files stay as they are; copies get the lines.
func TestAccounts(t *testing.T) {
	for _, f := range []string{"/etc/subuid", "/etc/subgid"} {
		if _, err := os.Stat(f); err != nil {
			testenv.Need(t, "newuidmap")
		}
	}
	before, err := os.ReadFile("/etc/passwd")
	require.NoError(t, err)
	c := &cell{run: &run{}, work: t.TempDir(), job: job{s: &scenario.Scenario{Launch: scenario.Launch{As: "alice", UID: 1234, GID: 1235, SubUID: "100000:65536"}}}}
	etc := map[string]string{}
	require.NoError(t, c.accounts(etc))
	passwd, err := os.ReadFile(etc["/etc/passwd"])
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(string(passwd), strings.TrimRight(string(before), "\n")))
	assert.Contains(t, string(passwd), "\nalice:x:1234:1235:")
	subuid, err := os.ReadFile(etc["/etc/subuid"])
	require.NoError(t, err)
	assert.Contains(t, string(subuid), "alice:100000:65536\n")
	assert.NotContains(t, etc, "/etc/subgid", "none was asked for")
	after, err := os.ReadFile("/etc/passwd")
	require.NoError(t, err)
	assert.Equal(t, before, after)
}
