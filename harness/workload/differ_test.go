package workload

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
	"virtiofsd/internal/testenv"
)

// publicEnv is local, with a helper program that other users may start.
func publicEnv(t *testing.T) *Env {
	t.Helper()
	testenv.Need(t, "root")
	e := local(t)
	require.NoError(t, os.Chmod(filepath.Dir(e.LocalDir), 0o755))
	inMemory(t, e.LocalDir, "size=512m,mode=755") // a disk would be asked to sync
	b, err := os.ReadFile(e.Self)
	require.NoError(t, err)
	e.Self = filepath.Join(e.LocalDir, "self")
	require.NoError(t, os.WriteFile(e.Self, b, 0o755))
	return e
}

func inMemory(t *testing.T, dir, options string) {
	t.Helper()
	testenv.Need(t, "root")
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

// share makes a directory count as a share of e.
func share(t *testing.T, e *Env, options string) {
	t.Helper()
	dir := t.TempDir()
	inMemory(t, dir, options)
	e.Shares.Adopt(guestproto.Mount{Tag: "share", Dir: dir, OK: true})
}

func TestDifferOfALocalFileSystemAndItself(t *testing.T) {
	ops := 6000
	if testenv.Long() {
		ops = 200_000
	}
	facts := call[guestproto.Differ](t, publicEnv(t), guestproto.CallDiffer, guestproto.DifferArgs{Where: here, Seed: 1, Ops: ops, Trace: true})
	assert.Empty(t, facts.Differences)
	assert.Equal(t, ops, facts.Ops)
	for _, op := range differOps {
		assert.NotZero(t, facts.ByOp[op.name], op.name)
	}
	// What never happens is not compared.
	for _, errno := range []string{"", "ENOENT", "EEXIST", "EACCES", "EPERM", "ENOTDIR", "EISDIR", "ENOTEMPTY", "ELOOP", "EBADF", "EINVAL", "ENAMETOOLONG", "ENODATA", "EXDEV", "ENXIO", "EBUSY"} {
		if errno != "EXDEV" { // all is one file system
			assert.NotZero(t, facts.Errnos[errno], "%q of %v", errno, facts.Errnos)
		}
	}
	t.Log(facts.Errnos, facts.Seconds)
}

// Planted differences are found, named and do not lead to others.
func TestDifferFindsDifferences(t *testing.T) {
	find := func(options string, expect ...string) guestproto.Differ {
		e := publicEnv(t)
		share(t, e, options)
		return call[guestproto.Differ](t, e, guestproto.CallDiffer, guestproto.DifferArgs{Seed: 2, Ops: 200, Max: 1, Expect: expect})
	}
	little := find("size=64k")
	assert.NotZero(t, little.Total)
	assert.Len(t, little.Differences, 1, "no more than were asked for")
	for _, d := range little.Differences {
		if !strings.HasSuffix(d.Name, ".n") { // less was written
			assert.Regexp(t, "errno=(ENOSPC|SIGBUS)", d.Share, "%+v", d)
		}
	}
	known := find("size=64k", "write.n", "append.n", "write.errno", "append.errno", "fallocate.errno", "copy.errno")
	assert.NotEmpty(t, known.Known, "a difference that is known is passed over")
	assert.Less(t, known.Total, little.Total)

	e := publicEnv(t)
	share(t, e, "size=64m")
	dir := e.Shares.All()[0].Dir
	stop := make(chan struct{})
	defer close(stop)
	go func() { // somebody changes a mode
		for range time.Tick(10 * time.Millisecond) {
			select {
			case <-stop:
				return
			default:
				_ = os.Chmod(dir+"/differ/tree/p", 0o700) // it may not be there
			}
		}
	}()
	facts := call[guestproto.Differ](t, e, guestproto.CallDiffer, guestproto.DifferArgs{Seed: 3, Ops: 300, Max: 1, Trace: true})
	require.NotEmpty(t, facts.Differences)
	assert.NotEmpty(t, facts.Differences[0].Trace)
}

func TestFsxOnALocalFileSystem(t *testing.T) {
	for _, direct := range []bool{false, true} {
		e := local(t)
		inMemory(t, e.LocalDir, "size=64m")
		facts := call[guestproto.Fsx](t, e, guestproto.CallFsx, guestproto.FsxArgs{Where: here, Seed: 1, Ops: 2500, Direct: direct})
		assert.Empty(t, facts.Mismatch, strings.Join(facts.Trace, "\n"))
		assert.GreaterOrEqual(t, facts.Ops, 2000)
		t.Log(facts.ByOp, facts.Unsupported, facts.Seconds)
	}
}

func TestFsxFindsAWrongByte(t *testing.T) {
	e := local(t)
	inMemory(t, e.LocalDir, "size=64m")
	path := filepath.Join(e.LocalDir, guestproto.CallFsx, "data")
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for range time.Tick(20 * time.Millisecond) {
			select {
			case <-stop:
				return
			default:
			}
			if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
				var b [1]byte
				if _, err := f.ReadAt(b[:], 4000); err == nil {
					b[0] ^= 1
					_, _ = f.WriteAt(b[:], 4000)
				}
				f.Close()
			}
		}
	}()
	facts := call[guestproto.Fsx](t, e, guestproto.CallFsx, guestproto.FsxArgs{Where: here, Seed: 1, Ops: 1_000_000})
	assert.Contains(t, facts.Mismatch, "byte 0xfa0 is")
	assert.NotEmpty(t, facts.Trace)
}
