package daemon_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/launch"
	"virtiofsd/internal/sandbox"
	"virtiofsd/internal/testenv"
	"virtiofsd/internal/vhostuser"
)

// into is a wrapper that puts what it starts into a cgroup.
func into(dir string, then ...string) []string {
	return append([]string{"sh", "-c", `echo $$ >"$0"/cgroup.procs; exec "$@"`, dir}, then...)
}

// someUser is a user whose processes nobody else makes.
func someUser() *launch.User {
	id := 1<<20 + os.Getpid()
	return &launch.User{UID: id, GID: id}
}

// lock is the body of SETLK and SETLKW on a whole file.
func lock(fh, owner uint64, kind uint32) []byte {
	b := make([]byte, 48)
	binary.LittleEndian.PutUint64(b, fh)
	binary.LittleEndian.PutUint64(b[8:], owner)
	binary.LittleEndian.PutUint64(b[24:], math.MaxInt64)
	binary.LittleEndian.PutUint32(b[32:], kind)
	return b
}

// TestThreadsAreBounded: where the host allows few threads, a guest whose requests block gets fewer
// of them served at once, or ENOLCK for waiting locks. The daemon lives, answers other requests,
// and goes on as before when the locks are given up.
func TestThreadsAreBounded(t *testing.T) {
	testenv.Need(t, "root")
	const waiting = 60
	alone := someUser()
	nproc := []string{"prlimit", "--nproc=40:40", "--"}
	for _, c := range []struct {
		name   string
		as     *launch.User
		wrap   func(*testing.T) []string
		queues int
	}{
		{"a cgroup, one queue", nil, func(t *testing.T) []string { return into(testenv.Cgroup(t, 40)) }, 1},
		{"a cgroup, three queues", nil, func(t *testing.T) []string { return into(testenv.Cgroup(t, 40)) }, 3},
		{"the least", nil, func(t *testing.T) []string { return into(testenv.Cgroup(t, 33)) }, 1},
		{"the cgroup above", nil, func(t *testing.T) []string {
			dir := filepath.Join(testenv.Cgroup(t, 40), "below")
			require.NoError(t, os.Mkdir(dir, 0o755))
			t.Cleanup(func() {
				assert.Eventually(t, func() bool { return os.Remove(dir) == nil }, 5*time.Second, 10*time.Millisecond)
			})
			return into(dir)
		}, 2},
		{"a user's processes", alone, func(*testing.T) []string { return nproc }, 2},
		{"a user's processes, none", alone, func(*testing.T) []string { return nproc }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			args := "--posix-lock"
			if strings.HasSuffix(c.name, "none") {
				args += " --sandbox=none"
			}
			owner := userID
			if c.as != nil {
				owner = c.as.UID
			}
			for _, p := range []string{h.dir, h.share, filepath.Join(h.share, "file")} {
				require.NoError(t, os.Chown(p, owner, owner))
			}
			wrap := c.wrap(t)
			s := h.spec(t, launcher{as: c.as, args: args})
			s.Wrap = wrap
			d, err := launch.Start(context.Background(), s)
			require.NoError(t, err)
			t.Cleanup(d.Kill)
			dev, err := frontend.Connect(t.Context(), frontend.Config{Socket: h.socket, RequestQueues: c.queues})
			require.NoError(t, err)
			t.Cleanup(dev.Close)
			f := frontend.NewFUSE(dev)
			f.UID, f.GID = uint32(owner), uint32(owner)
			_, err = f.Init(1 << 1) // FUSE_POSIX_LOCKS
			require.NoError(t, err)
			e, err := f.Lookup(frontend.RootNode, "file")
			require.NoError(t, err)
			fh, err := f.Open(e.Node, unix.O_RDWR)
			require.NoError(t, err)
			set := func(op frontend.Opcode, owner uint64, kind uint32) frontend.Request {
				return frontend.Request{Op: op, Node: e.Node, Args: lock(fh, owner, kind)}
			}
			r, err := f.Do(set(frontend.OpSetlk, 1, unix.F_WRLCK))
			require.NoError(t, err)
			require.Zero(t, r.Error)

			var all []*frontend.Pending
			for i := range waiting {
				f.Queue = dev.Request(i % c.queues) // not On, as numbers of requests are not to come twice
				p, err := f.Start(set(frontend.OpSetlkw, uint64(100+i), unix.F_RDLCK))
				require.NoError(t, err)
				f.Queue.Publish()
				all = append(all, p)
			}
			for i := range 300 { // on all queues: they go on
				f.Queue = dev.Request(i % c.queues)
				_, err := f.Getattr(frontend.RootNode)
				require.NoError(t, err)
			}
			list(t, f)
			log, err := d.Log()
			require.NoError(t, err)
			assert.Contains(t, string(log), "threads are limited: ")
			r, err = f.Do(set(frontend.OpSetlk, 1, unix.F_UNLCK))
			require.NoError(t, err)
			require.Zero(t, r.Error)
			granted := 0
			for _, p := range all {
				r, err := f.Finish(p)
				require.NoError(t, err)
				if r.Error != unix.ENOLCK {
					require.Zero(t, r.Error)
					granted++
				}
			}
			assert.Positive(t, granted)
			assert.Less(t, granted, waiting)
			t.Logf("%d of %d waited", granted, waiting)
			dev.Close()
			assert.Zero(t, d.Stop(t.Context()).Status)
		})
	}
}

// list has the runtime use what threads it likes: it allocates, and collects.
func list(t *testing.T, f *frontend.FUSE) {
	t.Helper()
	for i := range 400 {
		_, err := f.Mkdir(frontend.RootNode, fmt.Sprint("d", i), 0o755)
		require.NoError(t, err)
	}
	fh, err := f.Opendir(frontend.RootNode)
	require.NoError(t, err)
	n, off := 0, uint64(0)
	for {
		entries, err := f.Readdirplus(frontend.RootNode, fh, off, 65536)
		require.NoError(t, err)
		if len(entries) == 0 {
			break
		}
		n += len(entries)
		off = entries[len(entries)-1].Off
	}
	assert.Greater(t, n, 400)
}

// TestTooFewThreads: the daemon does not start where it could not serve, --check says so before,
// and either says what to raise.
func TestTooFewThreads(t *testing.T) {
	const least = 24
	for _, c := range []struct {
		name, by, remedy string
		as               *launch.User
		wrap             func(*testing.T) []string
	}{
		{"a cgroup", "/pids.max leaves ", "TasksMax=", nil, func(t *testing.T) []string { return into(testenv.Cgroup(t, least)) }},
		{"a user's processes", "the limit of 24 processes (RLIMIT_NPROC) leaves ", "ulimit -u", someUser(), func(*testing.T) []string { return []string{"prlimit", "--nproc=24:24", "--"} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			s := h.spec(t, launcher{as: c.as})
			s.Wrap = c.wrap(t)
			_, err := launch.Start(context.Background(), s)
			var r *launch.RefusedError
			require.ErrorAs(t, err, &r)
			assert.Equal(t, 1, r.Exit.Status)
			for _, say := range []string{c.by, fmt.Sprintf("the daemon needs %d", least), c.remedy} {
				assert.Contains(t, r.Last, say)
			}
			cmd := exec.Command(s.Wrap[0], append(s.Wrap[1:], s.Impl.Path, "--check", "--shared-dir", h.share)...)
			if c.as != nil {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(c.as.UID), Gid: uint32(c.as.GID)}}
			}
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.Contains(t, string(out), c.by)
			assert.NotContains(t, string(out), ": works")
		})
	}
	assert.Equal(t, vhostuser.MinThreads, sandbox.LeastWorkers)
}
