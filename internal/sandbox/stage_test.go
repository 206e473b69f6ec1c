//go:build !cgo

package sandbox

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/config"
	"virtiofsd/internal/idmap"
	"virtiofsd/internal/testenv"
)

func init() { Begin() }

// TestMain is the serving process, too, when Start starts this program again.
func TestMain(m *testing.M) {
	switch child, probe := Stage(); {
	case child:
		os.Exit(served())
	case probe:
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// served enters the sandbox, tells what it saw there on the file that was handed on, and waits for
// words of its parent.
func served() int {
	in, ctx, err := Receive()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	log := slog.New(slog.NewTextHandler(in.Files[0], nil))
	entered, err := Enter(&in.Order, in.HandOver, log)
	if err != nil {
		in.Report(nil, err)
		return 4
	}
	say := func(format string, a ...any) { fmt.Fprintf(in.Files[0], format+"\n", a...) }
	look := func(what, path string) {
		fd, err := unix.Openat(entered.Root, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		say("%s: %v", what, err)
	}
	look("file", "file")
	look("absolute", "/etc/passwd")
	look("above", "../secret")
	fd, err := unix.Openat(entered.Root, "made", unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	say("make: %v", err)
	unix.Close(fd)
	var st unix.Stat_t
	say("own descriptors: %t", unix.Fstatat(entered.SelfFD, "0", &st, unix.AT_SYMLINK_NOFOLLOW) == nil)
	if !in.Report(&entered.State, nil) || in.Report(nil, errors.New("again")) {
		return 5
	}
	in.Wait(ctx)
	say("serving: %t", ctx.Err() == nil)
	for {
		select {
		case <-in.Stats():
			say("counters")
		case <-ctx.Done():
			say("stopped")
			return 7
		}
	}
}

// stage starts a serving process by options, on a share with a file beside a secret.
func stage(t *testing.T, change func(*Facts, *Order), args ...string) (c *Child, p Plan, said func(lines int) []string, dir string, err error) {
	t.Helper()
	dir, err = os.MkdirTemp("", "stage")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	share := filepath.Join(dir, "share")
	require.NoError(t, os.Mkdir(share, 0o777))
	require.NoError(t, os.Chmod(share, 0o777))
	require.NoError(t, os.WriteFile(filepath.Join(share, "file"), nil, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "secret"), nil, 0o644))
	o, err := config.Parse(append([]string{"--shared-dir=" + share, "--socket-path=" + dir + "/s"}, args...))
	require.NoError(t, err)
	f, err := Gather(share, len(o.UIDMap) > 0)
	require.NoError(t, err)
	p, err = Make(o, f)
	require.NoError(t, err)
	order := Order{Plan: p, Options: o}
	if change != nil {
		change(&f, &order)
	}
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { r.Close() })
	c, err = Start(order, w)
	w.Close()
	said = func(lines int) (all []string) {
		r.SetReadDeadline(time.Now().Add(20 * time.Second))
		var text strings.Builder
		for b := make([]byte, 1); strings.Count(text.String(), "\n") < lines; {
			n, err := r.Read(b)
			text.Write(b[:n])
			if err != nil {
				assert.Equal(t, io.EOF, err)
				break
			}
		}
		return strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	}
	return c, p, said, dir, err
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// The serving process is where the plan says, sees the share and nothing else, and does what its
// parent says.
func TestStageIsAsPlanned(t *testing.T) {
	testenv.Need(t, "root", "userns")
	runtime.LockOSThread() // the child lives as long as its thread does
	defer runtime.UnlockOSThread()
	const none, denied = "no such file or directory", "permission denied"
	every := []string{"cgroup", "ipc", "mount", "network", "pid", "uts"}
	for name, c := range map[string]struct {
		args     []string
		news     []string
		absolute string // what becomes of a path from the root
		made     string
		uid      uint32
	}{
		"namespace":               {nil, every, none, "<nil>", 0},
		"namespace, read-only":    {[]string{"--readonly"}, every, none, "read-only file system", 0},
		"namespace, with a map":   {[]string{"--uid-map=:0:100000:65536:", "--gid-map=:0:100000:65536:"}, append([]string{"user"}, every...), none, "<nil>", 0},
		"namespace, a map from 1": {[]string{"--uid-map=:1:100000:65535:", "--gid-map=:1:100000:65535:"}, append([]string{"user"}, every...), none, "<nil>", 1},
		"chroot":                  {[]string{"--sandbox=chroot"}, []string{"mount"}, none, "<nil>", 0},
		"none":                    {[]string{"--sandbox=none"}, []string{"mount"}, denied, "<nil>", 0},
		"none, without Landlock":  {[]string{"--sandbox=none", "--landlock=off"}, []string{"mount"}, "<nil>", "<nil>", 0},
		"no filter":               {[]string{"--seccomp=none"}, every, none, "<nil>", 0},
	} {
		child, plan, said, _, err := stage(t, nil, c.args...)
		require.NoError(t, err, name)
		state, err := child.Ready(quiet())
		if !assert.NoError(t, err, name) {
			child.Kill()
			continue
		}
		lines := said(5)
		assert.Equal(t, []string{"file: <nil>", "absolute: " + c.absolute}, lines[:2], name)
		if slices.Contains(c.args, "--landlock=off") {
			assert.Equal(t, "above: <nil>", lines[2], name)
		} else {
			assert.Contains(t, []string{"above: " + none, "above: " + denied}, lines[2], name)
		}
		assert.Equal(t, []string{"make: " + c.made, "own descriptors: true"}, lines[3:], name)

		slices.Sort(state.New)
		want := append([]string{}, c.news...)
		slices.Sort(want)
		assert.Equal(t, want, state.New, name)
		assert.Equal(t, plan.Mode, state.Mode, name)
		assert.Equal(t, []uint32{c.uid, c.uid, c.uid, c.uid}, state.Thread.UID, name)
		assert.Empty(t, state.Thread.Groups, name)
		assert.Equal(t, plan.Keep, state.Thread.Permitted, name)
		assert.Equal(t, plan.Keep, state.Thread.Effective, name)
		assert.Equal(t, plan.Keep, state.Thread.Bounding, name)
		assert.Zero(t, state.Thread.Ambient|state.Thread.Inherit, name)
		assert.Equal(t, 1, state.Thread.NoNewPrivs, name)
		filter := 2
		if slices.Contains(c.args, "--seccomp=none") {
			filter = 0
		}
		assert.Equal(t, filter, state.Thread.Seccomp, name)
		assert.Equal(t, !slices.Contains(c.args, "--landlock=off"), state.Landlock, name)
		if plan.Mode == "namespace" {
			require.NotEmpty(t, state.Mounts, name)
			assert.Equal(t, "/", state.Mounts[0].Point, name)
			assert.Equal(t, []string{"lo"}, state.Interfaces, name)
			assert.Equal(t, 1, state.PID, name)
			assert.Contains(t, state.Mounts[0].Options, "nosuid,nodev")
			assert.Equal(t, slices.Contains(c.args, "--readonly"), strings.HasPrefix(state.Mounts[0].Options, "ro"), name)
		}
		if slices.Contains(c.news, "user") {
			assert.Equal(t, plan.UIDMap, state.UIDMap, name)
			assert.Equal(t, plan.GIDMap, state.GIDMap, name)
			assert.Equal(t, "allow", state.Setgroups, name)
		} else {
			assert.Equal(t, idmap.Map{{Inside: 0, Outside: 0, Count: 1<<32 - 1}}, state.UIDMap, name)
		}

		child.Serve()
		assert.Equal(t, []string{"serving: true"}, said(1), name)
		child.Stats()
		assert.Equal(t, []string{"counters"}, said(1), name)
		child.Stop()
		assert.Equal(t, []string{"stopped"}, said(1), name)
		assert.Equal(t, 7, child.Wait(), name)
		assert.Zero(t, child.Signal(), name)
	}
}

// A serving process that is stopped before it was let serve ends; one that is killed says by which
// signal; and none outlives its parent's end.
func TestStageEnds(t *testing.T) {
	testenv.Need(t, "root")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	child, _, said, _, err := stage(t, nil)
	require.NoError(t, err)
	_, err = child.Ready(quiet())
	require.NoError(t, err)
	said(5)
	child.Stop()
	assert.Equal(t, []string{"serving: false", "stopped"}, said(2))
	assert.Equal(t, 7, child.Wait())

	child, _, _, _, err = stage(t, nil, "--sandbox=none")
	require.NoError(t, err)
	_, err = child.Ready(quiet())
	require.NoError(t, err)
	require.NoError(t, child.cmd.Process.Signal(unix.SIGKILL))
	assert.Equal(t, 128+9, child.Wait())
	assert.EqualValues(t, unix.SIGKILL, child.Signal())

	child, _, _, _, err = stage(t, nil, "--sandbox=none")
	require.NoError(t, err)
	_, err = child.Ready(quiet())
	require.NoError(t, err)
	child.order.Close() // as the kernel closes it when the parent dies
	assert.Equal(t, 137, child.Wait(), "it ends by itself")

	child, _, _, _, err = stage(t, nil, "--sandbox=none")
	require.NoError(t, err)
	child.Kill()
	assert.Equal(t, 128+9, child.Wait())
}

// What cannot be reached is told with the step, and nothing serves.
func TestStageThatFailsIsTold(t *testing.T) {
	testenv.Need(t, "root", "userns")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for want, c := range map[string]struct {
		args   []string
		change func(*Order)
	}{
		"not as planned: the user namespace is the caller's": {nil, func(o *Order) {
			o.Plan.Steps = slices.DeleteFunc(o.Plan.Steps, func(s Step) bool { return s.Op == OpMapSelf })
			o.Plan.Namespaces = append(o.Plan.Namespaces, "no such")
			o.Plan.Namespaces[len(o.Plan.Namespaces)-1] = "time"
		}},
		"no such file or directory": {[]string{"--sandbox=chroot"}, func(o *Order) { o.Plan.SharedDir += "/none" }},
		"not as planned: the system call filter is not on": {nil, func(o *Order) {
			i := slices.IndexFunc(o.Plan.Steps, func(s Step) bool { return s.Op == OpSeccomp })
			v := slices.IndexFunc(o.Plan.Steps, func(s Step) bool { return s.Op == OpVerify })
			o.Plan.Steps[i], o.Plan.Steps[v] = o.Plan.Steps[v], o.Plan.Steps[i] // looked at before it is there
		}},
		"not as planned: capabilities": {nil, func(o *Order) {
			o.Plan.Steps = slices.DeleteFunc(o.Plan.Steps, func(s Step) bool { return s.Op == OpCaps })
		}},
		"not as planned: no_new_privs is not set": {[]string{"--seccomp=none", "--landlock=off"}, func(o *Order) {
			o.Plan.Steps = slices.DeleteFunc(o.Plan.Steps, func(s Step) bool { return s.Op == OpNoNewPrivs })
		}},
		"not as planned: the bounding set has": {nil, func(o *Order) {
			o.Plan.Steps = slices.DeleteFunc(o.Plan.Steps, func(s Step) bool { return s.Op == OpBounding })
		}},
	} {
		child, _, _, _, err := stage(t, func(_ *Facts, o *Order) { c.change(o) }, c.args...)
		require.NoError(t, err, want)
		state, err := child.Ready(quiet())
		if strings.Contains(want, "user namespace") {
			want = "not as planned: the time namespace is the caller's"
		}
		assert.ErrorContains(t, err, want)
		assert.Nil(t, state)
		assert.Equal(t, 4, child.Wait(), want)
	}
	// A process that says nothing.
	child, _, _, _, err := stage(t, func(_ *Facts, o *Order) { o.Plan.Steps = []Step{{Op: OpStart}} }, "--sandbox=none")
	require.NoError(t, err)
	require.NoError(t, child.cmd.Process.Signal(unix.SIGKILL))
	_, err = child.Ready(quiet())
	assert.EqualError(t, err, "sandbox: the serving process ended before it was ready: signal: killed")
	// An order that is none.
	cmd := exec.Command("/proc/self/exe")
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd.Env = append(os.Environ(), StageEnv+"="+stageChild)
	cmd.ExtraFiles = []*os.File{r, w}
	require.NoError(t, w.Close())
	_, w2, err := os.Pipe()
	require.NoError(t, err)
	cmd.ExtraFiles[1] = w2
	out, err := cmd.CombinedOutput()
	assert.Error(t, err)
	assert.Equal(t, "sandbox: read the parent's order: EOF\n", string(out))
}

// The log says which calls are not on the list, and they work.
func TestStageLogsCalls(t *testing.T) {
	testenv.Need(t, "root")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	child, _, _, _, err := stage(t, nil, "--seccomp=log", "--sandbox=none")
	require.NoError(t, err)
	_, err = child.Ready(quiet())
	require.NoError(t, err)
	child.Serve()
	child.Stop()
	assert.Equal(t, 7, child.Wait())
}

// A parent gives up all but what it needs, on all of its threads.
func TestStageSheds(t *testing.T) {
	testenv.Need(t, "root")
	if os.Getenv("SANDBOX_TEST_SHED") != "" {
		err := Shed(Of(Chown), true)
		b, _ := os.ReadFile("/proc/self/status")
		s, e := parseStatus(b)
		fmt.Printf("%v %v %v|%v|%v|%v %v %d\n", err, e, s.Groups, s.Permitted, s.Effective, s.Bounding, s.Ambient, s.NoNewPrivs)
		os.Exit(0)
	}
	cmd := exec.Command("setpriv", "--groups=4,5", os.Args[0], "-test.run=^TestStageSheds$")
	cmd.Env = append(os.Environ(), "SANDBOX_TEST_SHED=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, "<nil> <nil> []|chown|chown|chown none 1\n", string(out))
}
