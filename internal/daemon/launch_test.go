package daemon_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/impl"
	"virtiofsd/harness/launch"
	"virtiofsd/harness/scenario"
	"virtiofsd/internal/daemon"
	"virtiofsd/internal/sandbox"
	"virtiofsd/internal/testenv"
)

// build makes the daemon as it is shipped, static, whatever the tests are built with, where every user can read it.
var build = sync.OnceValues(func() (string, error) { return compile("virtiofsd", "build", "virtiofsd/cmd/virtiofsd") })

// buildInsider makes the same with a serving process that turns hostile.
var buildInsider = sync.OnceValues(func() (string, error) { return compile("insider", "test", "-c", "virtiofsd/internal/daemon") })

var compiled []string // folders to remove

func compile(name, verb string, args ...string) (string, error) {
	dir, err := os.MkdirTemp("", "vfsd")
	if err != nil {
		return "", err
	}
	compiled = append(compiled, dir)
	bin := filepath.Join(dir, name)
	c := exec.Command("go", append([]string{verb, "-trimpath", "-o", bin}, args...)...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, os.Chmod(dir, 0o755)
}

func TestMain(m *testing.M) {
	if calls := os.Getenv(outerEnv); calls != "" {
		fmt.Fprintln(os.Stderr, underFilter(calls, os.Args[1:]))
		os.Exit(1)
	}
	if os.Getenv(daemon.InsiderEnv) != "" || os.Getenv(sandbox.StageEnv) != "" {
		os.Exit(daemon.InsiderMain())
	}
	status := m.Run()
	for _, dir := range compiled {
		os.RemoveAll(dir)
	}
	os.Exit(status)
}

// host is a host's side of one daemon: a share, what is beside it, and users.
type host struct {
	dir, share, socket string
	etc                map[string]string
}

// User 1500 of the tests, who has 65536 subordinate ids and is in group adm.
const (
	userID  = 1500
	groupID = 4
)

func user() *launch.User { return &launch.User{UID: userID, GID: userID, Groups: []int{groupID}} }

// newHost makes a folder that user 1500 owns, with a share and, hard-linked into it, a file that group adm may read.
func newHost(t *testing.T) *host {
	t.Helper()
	testenv.Need(t, "root")
	dir, err := os.MkdirTemp("", "vfsh") // t.TempDir may be too long for a socket's path
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &host{dir: dir, share: filepath.Join(dir, "share"), socket: filepath.Join(dir, "s"), etc: map[string]string{}}
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.Mkdir(h.share, 0o755))
	h.write(t, "secret", "of the host", 0o600, 0)
	h.write(t, "share/adm", "for administrators", 0o640, groupID)
	h.write(t, "share/file", "shared", 0o644, 0)
	for _, p := range []string{dir, h.share, filepath.Join(h.share, "file")} {
		require.NoError(t, os.Chown(p, userID, userID))
	}
	for name, line := range map[string]string{
		"passwd": "matrix:x:1500:1500::/:/bin/sh\n", "group": "matrix:x:1500:\n", "subuid": "matrix:100000:65536\n", "subgid": "matrix:100000:65536\n",
	} {
		old, _ := os.ReadFile("/etc/" + name)
		h.write(t, "etc-"+name, string(old)+line, 0o644, 0)
		if _, err := os.Stat("/etc/" + name); err == nil {
			h.etc["/etc/"+name] = filepath.Join(dir, "etc-"+name)
		}
	}
	return h
}

func (h *host) write(t *testing.T, name, content string, mode os.FileMode, gid int) {
	t.Helper()
	p := filepath.Join(h.dir, name)
	require.NoError(t, os.WriteFile(p, []byte(content), mode))
	require.NoError(t, os.Chmod(p, mode))
	require.NoError(t, os.Chown(p, 0, gid))
}

// launcher is who starts the daemon, and how.
type launcher struct {
	as   *launch.User
	wrap string
	args string
	fds  []*os.File
}

func (h *host) spec(t *testing.T, l launcher) launch.Spec {
	t.Helper()
	bin, err := build()
	require.NoError(t, err)
	return launch.Spec{
		Impl:    &impl.Impl{Name: "ours", Dialect: impl.DialectOurs, Path: bin},
		Options: impl.Options{SharedDir: h.share, SocketPath: h.socket, Options: scenario.Options{Extra: strings.Fields(l.args)}},
		As:      l.as, Wrap: strings.Fields(l.wrap), Dir: h.dir, Etc: h.etc, Fds: l.fds,
	}
}

// start starts a daemon and ends it with the test.
func (h *host) start(t *testing.T, l launcher) *launch.Daemon {
	t.Helper()
	d, err := launch.Start(context.Background(), h.spec(t, l)) // not t's: its end would kill what is to end by itself
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		d.Stop(ctx)
		if t.Failed() {
			log, _ := d.Log()
			t.Logf("the daemon's log:\n%s", log)
		}
	})
	return d
}

// refused starts a daemon that must not start, and returns its last words and status.
func (h *host) refused(t *testing.T, l launcher) (last string, status int) {
	t.Helper()
	d, err := launch.Start(t.Context(), h.spec(t, l))
	if err == nil {
		d.Kill()
		require.FailNow(t, "it started", l.args)
	}
	var r *launch.RefusedError
	require.ErrorAs(t, err, &r)
	require.False(t, r.Hung, "it hangs")
	return r.Last, r.Exit.Status
}

// serve connects a front-end and opens a session: from then on the daemon is inside its sandbox, whatever it was at the start.
func (h *host) serve(t *testing.T) *frontend.FUSE {
	t.Helper()
	d, err := frontend.Connect(t.Context(), frontend.Config{Socket: h.socket})
	require.NoError(t, err)
	t.Cleanup(d.Close)
	f := frontend.NewFUSE(d)
	_, err = f.Init(0)
	require.NoError(t, err)
	return f
}
