package daemon_test

import (
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

// TestWhatRemainsOfADirectoryMovedOut has the host move a directory that the guest knows out of the
// share, to a folder beside it. What the guest can do to it and below it from then on is as with
// any process that has a directory open; it is the table of SECURITY.md. Its new parent is never
// reached.
func TestWhatRemainsOfADirectoryMovedOut(t *testing.T) {
	testenv.Need(t, "root", "userns")
	const open = "attributes ok, read ok, write ok, open ok, look up ok, create ok, list ok, remove ok"
	const landlocked = "attributes ok, read ok, write ok, open EACCES, look up ok, create EACCES, list EACCES, remove EACCES"
	for _, c := range []struct {
		name string
		l    launcher
		want string
	}{
		{"none", launcher{args: "--sandbox=none --inode-file-handles=prefer"}, open},
		{"none, Landlock", launcher{args: "--sandbox=none --landlock=on"}, landlocked},
		{"chroot", launcher{args: "--sandbox=chroot --inode-file-handles=prefer"}, open},
		{"chroot, Landlock", launcher{args: "--sandbox=chroot --landlock=on"}, landlocked},
		// Where the share is a mount of its own, Landlock takes what no longer hangs below the
		// mount's root for what is in it (security/landlock/fs.c).
		{"pivot_root", launcher{args: "--sandbox=pivot_root --inode-file-handles=prefer"}, open},
		{"pivot_root, Landlock", launcher{args: "--sandbox=pivot_root --landlock=on"}, open},
		{"namespace", launcher{args: "--inode-file-handles=prefer"}, open},
		{"namespace, Landlock", launcher{args: "--landlock=on"}, open},
		{"namespace, by a user, Landlock", launcher{as: user(), args: "--landlock=on"}, open},
		{"namespace, by a user", launcher{as: user(), args: "--landlock=off"}, open},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			for _, dir := range []string{"share/d/sub", "outside"} {
				require.NoError(t, os.MkdirAll(filepath.Join(h.dir, dir), 0o777))
			}
			h.write(t, "share/d/f", "shared", 0o666, 0)
			h.write(t, "share/d/old", "", 0o666, 0)
			h.write(t, "outside/sibling", "of the host", 0o600, 0)
			for _, name := range []string{"share/d", "share/d/sub", "share/d/f", "share/d/old", "outside"} {
				require.NoError(t, os.Chown(filepath.Join(h.dir, name), userID, userID))
			}
			h.start(t, c.l)
			f := h.serve(t)
			if c.l.as != nil {
				f.UID, f.GID = userID, userID
			}
			d, err := f.Lookup(frontend.RootNode, "d")
			require.NoError(t, err)
			e, err := f.Lookup(d.Node, "f")
			require.NoError(t, err)
			fh, err := f.Open(e.Node, unix.O_RDWR)
			require.NoError(t, err)
			require.NoError(t, os.Rename(filepath.Join(h.share, "d"), filepath.Join(h.dir, "outside", "d")))

			var remains []string
			try := func(what string, err error) { remains = append(remains, what+" "+errnoName(err)) }
			_, err = f.Getattr(d.Node)
			try("attributes", err)
			_, err = f.Read(e.Node, fh, 0, 10)
			try("read", err)
			_, err = f.Write(e.Node, fh, 0, []byte("x"))
			try("write", err)
			_, err = f.Open(e.Node, unix.O_RDONLY)
			try("open", err)
			_, err = f.Lookup(d.Node, "sub")
			try("look up", err)
			_, _, err = f.Create(d.Node, "new", unix.O_RDWR, 0o644)
			try("create", err)
			_, err = f.Opendir(d.Node)
			try("list", err)
			try("remove", f.Unlink(d.Node, "old"))
			assert.Equal(t, c.want, strings.Join(remains, ", "))

			// No name leads to its new parent, or to what is beside it.
			var outside unix.Stat_t
			require.NoError(t, unix.Stat(filepath.Join(h.dir, "outside"), &outside))
			if up, err := f.Lookup(d.Node, ".."); err == nil {
				assert.NotEqual(t, outside.Ino, up.Attr.Ino, "the parent")
			}
			for _, name := range []string{"../sibling", "..", "sibling"} {
				if got, err := f.Lookup(d.Node, name); err == nil && name != ".." {
					assert.Fail(t, fmt.Sprintf("%q leads to %+v", name, got))
				}
			}
			_, err = f.Lookup(frontend.RootNode, "d")
			assert.Equal(t, "ENOENT", errnoName(err))
			// Forgotten, it is gone.
			require.NoError(t, f.Forget(d.Node, 1))
			require.Eventually(t, func() bool { _, err := f.Getattr(d.Node); return err != nil }, 5e9, 1e7)
		})
	}
}

// TestWhatIsMountedLater: a mount that the host makes below the share while it is served appears
// with the flags that the host gave it, in every mode, and --readonly holds for it, too.
func TestWhatIsMountedLater(t *testing.T) {
	testenv.Need(t, "root", "userns")
	for _, l := range []launcher{{args: "--sandbox=none"}, {args: "--sandbox=chroot"}, {args: "--sandbox=pivot_root"}, {}, {as: user()}} {
		for _, readonly := range []bool{false, true} {
			h := newHost(t)
			h.etc = nil // a launcher with files of its own has a mount namespace, too
			require.NoError(t, unix.Mount(h.share, h.share, "", unix.MS_BIND, ""))
			t.Cleanup(func() { unix.Unmount(h.share, unix.MNT_DETACH) })
			require.NoError(t, unix.Mount("", h.share, "", unix.MS_SHARED, ""))
			later := filepath.Join(h.share, "later")
			require.NoError(t, os.Mkdir(later, 0o755))
			if readonly {
				l.args += " --readonly"
			}
			d := h.start(t, l)
			f := h.serve(t)
			require.NoError(t, unix.Mount("later", later, "tmpfs", 0, "mode=0777"))
			t.Cleanup(func() { unix.Unmount(later, unix.MNT_DETACH) })
			require.NoError(t, os.WriteFile(filepath.Join(later, "f"), []byte("mounted"), 0o666))
			require.NoError(t, os.Chmod(filepath.Join(later, "f"), 0o666))
			if l.as != nil {
				f.UID, f.GID = userID, userID
			}
			dir, err := f.Lookup(frontend.RootNode, "later")
			require.NoError(t, err)
			assert.Equal(t, "ok", opensIn(f, dir.Node, "f"), "%+v", l)
			mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", d.ServingPID()))
			require.NoError(t, err)
			for line := range strings.Lines(string(mounts)) {
				if fields := strings.Fields(line); strings.HasSuffix(fields[4], "/later") && strings.Contains(line, "tmpfs later") {
					assert.NotContains(t, fields[5], "nosuid", "%+v", l)
				}
			}
			_, _, err = f.Create(dir.Node, "new", unix.O_RDWR, 0o644)
			want := "ok"
			if readonly {
				want = "EROFS"
			}
			assert.Equal(t, want, errnoName(err), "%+v", l)
			e, err := f.Lookup(dir.Node, "f")
			require.NoError(t, err)
			_, err = f.Open(e.Node, unix.O_WRONLY)
			assert.Equal(t, want, errnoName(err), "%+v", l)
			assert.Equal(t, want, errnoName(f.Unlink(dir.Node, "f")), "%+v", l)
			if readonly {
				assert.FileExists(t, filepath.Join(later, "f"))
			}
			d.Kill()
		}
	}
}

// opensIn is what comes of opening a name in a directory for reading.
func opensIn(f *frontend.FUSE, dir uint64, name string) string {
	e, err := f.Lookup(dir, name)
	if err == nil {
		_, err = f.Open(e.Node, unix.O_RDONLY)
	}
	return errnoName(err)
}
