package daemon_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
	"virtiofsd/internal/testenv"
)

// TestMapsLetGoOfTheLaunchersIDs: whatever is mapped, the serving process works as ids of its user
// namespace, which every thread can take again after it has acted for a guest's user; what the
// launcher alone may read is not the guest's, and a guest's user that is not mapped gets EPERM.
func TestMapsLetGoOfTheLaunchersIDs(t *testing.T) {
	const ok = "ok"
	for _, c := range []struct {
		name, args string
		as         bool // started by user 1500
		uid, gid   int  // of every thread, as the host sees them
		secret     string
		makes      map[uint32]string // what comes of guest users who make a directory
		needs      []string
	}{
		{"uids and gids without 0, by root", "--uid-map=:1000:100000:1000: --gid-map=:1000:100000:1000:", false, 100000, 100000, "EACCES", map[uint32]string{0: "100000", 1000: "100000", 1001: "100001", 5000: "EPERM"}, nil},
		{"uids without 0, by root", "--uid-map=:1000:100000:1000:", false, 100000, 0, "EACCES", map[uint32]string{0: "100000", 1000: "EPERM", 5000: "EPERM"}, nil}, // their group is not mapped
		{"gids without 0, by root", "--gid-map=:1000:100000:1000:", false, 0, 100000, ok, map[uint32]string{0: "0", 1000: "EPERM", 5000: "EPERM"}, nil},
		{"uids and gids with 0, by root", "--uid-map=:0:100000:2000: --gid-map=:0:100000:2000:", false, 100000, 100000, "EACCES", map[uint32]string{0: "100000", 1000: "101000", 5000: "EPERM"}, nil},
		{"several ranges without 0, by root", "--uid-map=:2000:200000:10: --uid-map=:1000:100000:1000: --gid-map=:3000:300000:10: --gid-map=:1000:100000:1000:", false, 200000, 300000, "EACCES", map[uint32]string{0: "200000", 1000: "100000", 5000: "EPERM"}, nil},
		{"the own id as another, by root", "--uid-map=:1000:0:1: --gid-map=:1000:0:1:", false, 0, 0, ok, map[uint32]string{0: "0", 1000: "0", 1001: "EPERM"}, nil},
		{"the own id, by a user", "--uid-map=:1000:1500:1: --gid-map=:1000:1500:1:", true, 1500, 1500, "EACCES", map[uint32]string{0: "1500", 1000: "1500", 1001: "EPERM"}, []string{"userns"}},
		{"the own uid alone, by a user", "--uid-map=:1000:1500:1:", true, 1500, 1500, "EACCES", map[uint32]string{0: "1500", 1000: "EPERM"}, []string{"userns"}},
		{"the own id behind a range, by a user", "--uid-map=:2000:100000:10: --uid-map=:1000:1500:1: --gid-map=:2000:100000:10: --gid-map=:1000:1500:1:", true, 1500, 1500, "EACCES", map[uint32]string{0: "1500", 1000: "1500", 2000: "100000", 5000: "EPERM"}, []string{"userns", "newuidmap"}},
		{"a range without 0, by a user", "--uid-map=:1000:100000:1000: --gid-map=:1000:100000:1000:", true, 100000, 100000, "EACCES", map[uint32]string{0: "100000", 1000: "100000", 1001: "100001", 5000: "EPERM"}, []string{"userns", "newuidmap"}},
		{"a range of uids without 0, by a user", "--uid-map=:1000:100000:1000:", true, 100000, 1500, "EACCES", map[uint32]string{0: "100000", 1000: "EPERM", 5000: "EPERM"}, []string{"userns", "newuidmap"}},
		{"a range of gids without 0, by a user", "--gid-map=:1000:100000:1000:", true, 1500, 100000, "EACCES", map[uint32]string{0: "1500", 1000: "EPERM", 1500: "1500", 5000: "EPERM"}, []string{"userns", "newuidmap"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			testenv.Need(t, c.needs...)
			h := newHost(t)
			h.write(t, "share/of-root", "root's", 0o600, 0)
			require.NoError(t, os.Chmod(h.share, 0o777))
			l := launcher{args: c.args}
			if c.as {
				l.as = user()
			}
			d := h.start(t, l)
			f := h.serve(t)
			everyThreadIs(t, d.ServingPID(), c.uid, c.gid)
			f.UID, f.GID = 0, 0
			assert.Equal(t, c.secret, opens(f, "of-root"), "what root alone may read")
			// Twice, and by users who are refused in between: none of it ends the daemon.
			for range 2 {
				for id, want := range c.makes {
					name := fmt.Sprint("dir-", id)
					f.UID, f.GID = id, id
					_, err := f.Mkdir(frontend.RootNode, name, 0o755)
					var st unix.Stat_t
					if err == nil {
						require.NoError(t, unix.Lstat(filepath.Join(h.share, name), &st))
						assert.Equal(t, want, fmt.Sprint(st.Uid), "the owner of what user %d makes", id)
						f.UID, f.GID = 0, 0
						require.NoError(t, os.Remove(filepath.Join(h.share, name)))
						continue
					}
					assert.Equal(t, want, errnoName(err), "user %d makes a directory", id)
				}
			}
		})
	}
}

// everyThreadIs looks at the real, effective, saved and file system's ids of every thread, as the
// host sees them.
func everyThreadIs(t *testing.T, pid, uid, gid int) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	require.NoError(t, err)
	require.NotEmpty(t, threads)
	four := func(id int) string { return fmt.Sprintf("%d %d %d %d", id, id, id, id) }
	seen := map[string]bool{}
	for _, status := range threads {
		b, err := os.ReadFile(status)
		require.NoError(t, err)
		for line := range strings.Lines(string(b)) {
			if name, value, _ := strings.Cut(line, ":"); name == "Uid" || name == "Gid" {
				seen[name+" "+strings.Join(strings.Fields(value), " ")] = true
			}
		}
	}
	assert.Equal(t, map[string]bool{"Uid " + four(uid): true, "Gid " + four(gid): true}, seen)
}

// TestIDsThatAreNotAlikeBecomeSo: a real or saved id that is another could be taken by who takes
// the process over.
func TestIDsThatAreNotAlikeBecomeSo(t *testing.T) {
	for _, wrap := range []string{"setpriv --ruid=1500 --", "setpriv --rgid=1500 --clear-groups --"} {
		for _, mode := range []string{"none", "chroot", "pivot_root", "namespace"} {
			h := newHost(t)
			d := h.start(t, launcher{wrap: wrap, args: "--sandbox=" + mode})
			f := h.serve(t)
			everyThreadIs(t, d.ServingPID(), 0, 0)
			require.NoError(t, os.Chmod(h.share, 0o777))
			_, err := f.As(1000, 1000).Mkdir(frontend.RootNode, "dir", 0o755)
			require.NoError(t, err)
		}
	}
}

// TestGroupsAreDroppedWhereSeveralAreMapped: --no-fail-setgroups, which some launchers always give,
// changes nothing there, and one line says so.
func TestGroupsAreDroppedWhereSeveralAreMapped(t *testing.T) {
	testenv.Need(t, "userns", "newuidmap")
	for _, l := range []launcher{
		{as: user(), args: "--uid-map=:0:100000:65536: --gid-map=:0:100000:65536:"},
		{as: user(), wrap: "unshare -Um --map-root-user --map-auto", args: "--sandbox=pivot_root"},
		{as: user(), wrap: "unshare -U --map-root-user --map-auto", args: "--sandbox=chroot"},
		{as: user(), wrap: "unshare -U --map-root-user --map-auto", args: "--sandbox=none"},
	} {
		l.args += " --no-fail-setgroups"
		h := newHost(t)
		require.NoError(t, os.Chmod(h.share, 0o777))
		d := h.start(t, l)
		f := h.serve(t)
		assert.Equal(t, "EACCES", opens(f, "adm"), "what the launcher may read through a group")
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.ServingPID()))
		require.NoError(t, err)
		for _, status := range threads {
			b, err := os.ReadFile(status)
			require.NoError(t, err)
			assert.Regexp(t, `(?m)^Groups:\s*$`, string(b))
		}
		log, err := d.Log()
		require.NoError(t, err)
		assert.Equal(t, 1, strings.Count(string(log), "WARN  virtiofsd] --no-fail-setgroups has no effect"), "%s", log)
	}
}

// opens is what comes of opening a name in the root for reading.
func opens(f *frontend.FUSE, name string) string {
	e, err := f.Lookup(frontend.RootNode, name)
	if err != nil {
		return errnoName(err)
	}
	fh, err := f.Open(e.Node, unix.O_RDONLY)
	if err != nil {
		return errnoName(err)
	}
	f.Release(e.Node, fh)
	return "ok"
}

// errnoName is an error by the name of its errno, "ok" for none.
func errnoName(err error) string {
	var e unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}
