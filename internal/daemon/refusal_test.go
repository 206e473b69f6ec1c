package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/testenv"
)

// TestWrongCombinationsAreRefused starts the daemon in ways that cannot work: one line that names the remedy, the right status, and
// nothing left behind.
func TestWrongCombinationsAreRefused(t *testing.T) {
	testenv.Need(t, "root", "userns", "newuidmap")
	const (
		range_  = "--uid-map=:0:100000:65536: --gid-map=:0:100000:65536:"
		without = "setpriv --bounding-set=-"
	)
	for _, tc := range []struct {
		name   string
		l      launcher
		status int
		says   []string
		before func(h *host)
	}{
		{name: "maps with chroot", l: launcher{args: "--sandbox=chroot " + range_}, status: 2, says: []string{"--uid-map", "--sandbox=namespace"}},
		{name: "a range that the user does not have", l: launcher{as: user(), args: "--uid-map=:0:500000:65536: --gid-map=:0:500000:65536:"}, status: 1, says: []string{"/etc/subuid", "add a line"}},
		{name: "a range that is too small", l: launcher{as: user(), args: "--uid-map=:0:100000:70000: --gid-map=:0:100000:70000:"}, status: 1, says: []string{"/etc/subuid"}},
		{name: "maps that overlap", l: launcher{as: user(), args: "--uid-map=:0:100000:100: --uid-map=:50:101000:100: --gid-map=:0:100000:100:"}, status: 2, says: []string{"--uid-map"}},
		{name: "no newuidmap", l: launcher{as: user(), wrap: "env PATH=/nowhere", args: range_}, status: 1, says: []string{"newuidmap", "uidmap"}},
		{name: "no_new_privs before newuidmap", l: launcher{as: user(), wrap: "setpriv --no-new-privs", args: range_}, status: 1, says: []string{"no_new_privs"}},
		{name: "one id mapped by the caller, chroot", l: launcher{as: user(), wrap: "unshare -Ur", args: "--sandbox=chroot"}, status: 1, says: []string{"--no-fail-setgroups", "newgidmap"}},
		{name: "one id mapped by the caller, pivot_root", l: launcher{as: user(), wrap: "unshare -Ur", args: "--sandbox=pivot_root"}, status: 1, says: []string{"--no-fail-setgroups"}},
		{name: "--no-fail-setgroups with many ids, and no way to drop groups", l: launcher{wrap: without + "setgid --groups=4 --", args: "--sandbox=chroot --no-fail-setgroups"}, status: 1, says: []string{"cannot be dropped: CAP_SETGID is missing", "newgidmap"}},
		{name: "own ids that the caller's namespace does not map", l: launcher{as: user(), wrap: "unshare -U --map-users=100000,1000,1000 --map-groups=100000,1000,1000 --keep-caps", args: "--sandbox=chroot"}, status: 1, says: []string{"own ids are not mapped", "--map-root-user"}},
		{name: "own ids that read as another's", l: launcher{as: user(), wrap: "unshare -U --map-users=100000,60000,6000 --map-groups=100000,60000,6000 --keep-caps", args: "--sandbox=none"}, status: 1, says: []string{"own ids are not mapped"}},
		{name: "own ids that are not mapped, namespace", l: launcher{as: user(), wrap: "unshare -U --map-users=100000,1000,1000 --map-groups=100000,1000,1000 --keep-caps"}, status: 1, says: []string{"own ids are not mapped"}},
		{name: "chroot by a user", l: launcher{as: user(), args: "--sandbox=chroot"}, status: 1, says: []string{"CAP_SYS_CHROOT", "--sandbox=namespace"}},
		{name: "chroot without its capability", l: launcher{wrap: without + "sys_chroot --", args: "--sandbox=chroot"}, status: 1, says: []string{"CAP_SYS_CHROOT"}},
		{name: "pivot_root by a user", l: launcher{as: user(), args: "--sandbox=pivot_root"}, status: 1, says: []string{"CAP_SYS_ADMIN"}},
		{name: "pivot_root without its capability", l: launcher{wrap: without + "sys_admin --", args: "--sandbox=pivot_root"}, status: 1, says: []string{"CAP_SYS_ADMIN"}},
		{name: "an unknown option", l: launcher{args: "--frobnicate"}, status: 2, says: []string{"--frobnicate", "--help"}},
		{name: "an unknown mode", l: launcher{args: "--sandbox=jail"}, status: 2, says: []string{"namespace, pivot_root, chroot, none"}},
		{name: "no share", l: launcher{}, status: 1, says: []string{"shared directory", "--shared-dir"}, before: func(h *host) { h.share = filepath.Join(h.dir, "gone") }},
		{name: "no folder for the socket", l: launcher{}, status: 1, says: []string{"folder", "--socket-path"}, before: func(h *host) { h.socket = filepath.Join(h.dir, "gone", "s") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t)
			before := entries(t, h.dir)
			if tc.before != nil {
				tc.before(h)
			}
			last, status := h.refused(t, tc.l)
			assert.Equal(t, tc.status, status, last)
			for _, s := range tc.says {
				assert.Contains(t, last, s)
			}
			log, err := os.ReadFile(filepath.Join(h.dir, "daemon.log"))
			require.NoError(t, err)
			assert.Equal(t, 1, strings.Count(string(log), "ERROR"), "one line tells: %s", log)
			assert.Equal(t, before, entries(t, h.dir), "something is left")
		})
	}
}

// entries are the names in a folder, without what the launcher of the tests writes there.
func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range list {
		if !strings.HasPrefix(e.Name(), "daemon.") {
			names = append(names, e.Name())
		}
	}
	return names
}
