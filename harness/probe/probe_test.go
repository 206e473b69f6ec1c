package probe

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The process that runs the tests is as good a daemon as any.
func self(t *testing.T) Target {
	return Target{Launcher: os.Getpid(), Tree: []int{os.Getpid()}, Serving: os.Getpid(), Share: t.TempDir()}
}

func TestProcOfOurselves(t *testing.T) {
	p, err := CollectProc(self(t))
	require.NoError(t, err)
	require.Len(t, p.Processes, 1)
	me := p.Processes[p.Serving]
	assert.Equal(t, "host", me.RootIsDir)
	assert.Equal(t, "other", me.CwdIsDir)
	assert.Equal(t, p.Launcher.Namespaces, me.Namespaces)
	assert.Len(t, me.Namespaces, 7)
	assert.GreaterOrEqual(t, len(me.Threads), 2, "a Go program has several threads")
	for _, th := range me.Threads {
		assert.Equal(t, os.Geteuid(), th.UID[1])
		assert.Equal(t, 0, th.Seccomp)
	}
	groups, err := os.Getgroups()
	require.NoError(t, err)
	assert.Len(t, me.Threads[0].Groups, len(groups))
}

func TestProcOfNobodyIsAnError(t *testing.T) {
	target := self(t)
	target.Tree = nil
	_, err := CollectProc(target)
	assert.Error(t, err)
	target.Tree, target.Serving = []int{1 << 30}, 1<<30
	_, err = CollectProc(target)
	assert.Error(t, err)
}

func TestStatusMustBeWhole(t *testing.T) {
	_, err := parseStatus("Pid:\t5\nUid:\t1\t2\t3\t4\n")
	assert.ErrorContains(t, err, "missing")
	_, err = parseStatus("Pid:\tx\n")
	assert.ErrorContains(t, err, "Pid")
}

func TestFDsTellWhereTheyLead(t *testing.T) {
	target := self(t)
	inside := filepath.Join(target.Share, "f")
	require.NoError(t, os.WriteFile(inside, nil, 0o644))
	find := func(path string, flags int) FD {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		all, err := CollectFDs(target)
		require.NoError(t, err)
		for _, f := range all.FDs {
			if f.FD == fd {
				return f
			}
		}
		t.Fatalf("descriptor %d of %s not seen", fd, path)
		return FD{}
	}
	f := find(inside, unix.O_RDONLY)
	assert.Equal(t, "file", f.Kind)
	assert.False(t, f.Outside)
	f = find("/etc/passwd", unix.O_PATH)
	assert.True(t, f.Outside)
	assert.True(t, f.Path)
	f = find("/etc", unix.O_RDONLY|unix.O_DIRECTORY)
	assert.Equal(t, "host", f.Leads)
	assert.True(t, f.Outside)
	f = find(target.Share, unix.O_PATH|unix.O_DIRECTORY)
	assert.Equal(t, "host", f.Leads, "no sandbox: the share's descriptor leads out")
	assert.False(t, f.Outside)
	f = find("/dev/null", unix.O_RDONLY)
	assert.Equal(t, "char", f.Kind)
}

func TestOutsideSeesEveryChange(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"same", "changed", "gone", "chmod"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, n), []byte(n), 0o644))
	}
	before, err := TakeSnapshot(dir)
	require.NoError(t, err)
	o, err := CollectOutside(dir, before)
	require.NoError(t, err)
	assert.Empty(t, o.Changed)
	assert.Equal(t, 5, o.Entries)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "changed"), []byte("other"), 0o644))
	require.NoError(t, os.Remove(filepath.Join(dir, "gone")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644))
	require.NoError(t, os.Chmod(filepath.Join(dir, "chmod"), 0o600))
	o, err = CollectOutside(dir, before)
	require.NoError(t, err)
	assert.Len(t, o.Changed, 5, "four entries and the directory: %v", o.Changed)
}

func TestOwnersAndHash(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o640))
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "l")))
	o, err := CollectOwners(dir, OwnersArgs{Dir: "../.."})
	require.NoError(t, err, "an argument does not lead out")
	require.Len(t, o.Entries, 2)
	assert.Equal(t, Owner{Path: "f", UID: os.Getuid(), GID: os.Getgid(), Mode: "0100640"}, o.Entries[0])
	assert.Equal(t, "0120777", o.Entries[1].Mode)
	o, err = CollectOwners(dir, OwnersArgs{Hash: true})
	require.NoError(t, err)
	assert.EqualValues(t, 1, o.Entries[0].Size)
	assert.Equal(t, "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", o.Entries[0].SHA256)
	assert.Empty(t, o.Entries[1].SHA256, "no link is followed")
	h, err := CollectSHA256(dir, SHA256Args{Path: "f"})
	require.NoError(t, err)
	assert.Equal(t, "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", h.SHA256)
	_, err = CollectSHA256(dir, SHA256Args{Path: "none"})
	assert.Error(t, err)
}

func TestLogFindsTrouble(t *testing.T) {
	l := CollectLog([]byte("ready\npanic: boom\n\ngoroutine 1 [running]:\nbye"))
	assert.Len(t, l.Lines, 5)
	assert.Equal(t, []string{"panic: boom", "goroutine 1 [running]:"}, l.Trouble)
}

func TestNewMounts(t *testing.T) {
	before, err := MountPoints(os.Getpid())
	require.NoError(t, err)
	got, err := NewMounts(os.Getpid(), before)
	require.NoError(t, err)
	assert.Empty(t, got)
	got, err = NewMounts(os.Getpid(), before[1:])
	require.NoError(t, err)
	assert.Equal(t, before[:1], got)
}
