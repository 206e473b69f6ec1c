package sys_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
	"virtiofsd/internal/testenv"
)

func ptr[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }

func name(s string) *byte { p, _ := unix.BytePtrFromString(s); return p }

// folder opens a temporary folder.
func folder(t *testing.T) (fd int, path string) {
	path = t.TempDir()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd, path
}

// Each call says what the kernel says: here, that there is no such descriptor or name.
func TestErrorsAreTheKernels(t *testing.T) {
	const bad = -1
	x, missing := name("x"), name("/nowhere/x")
	var (
		st    unix.Statx_t
		plain unix.Stat_t
		fs    unix.Statfs_t
		buf   [64]byte
		off   int64
		lk    unix.Flock_t
		times [2]unix.Timespec
		h     sys.HandleBuffer
		call  sys.SeccompCall
	)
	second := func(_ int, e unix.Errno) unix.Errno { return e }
	_, noHandle := sys.NameToHandle(bad, x, &h)
	for what, e := range map[string]unix.Errno{
		"preadv2":         second(sys.Preadv2(bad, nil, 0, 0)),
		"pwritev2":        second(sys.Pwritev2(bad, nil, 0, 0)),
		"copy_file_range": func() unix.Errno { _, e := sys.CopyFileRange(bad, &off, bad, &off, 1, 0); return e }(),
		"lseek":           func() unix.Errno { _, e := sys.Lseek(bad, 0, 0); return e }(),
		"fsync":           sys.Fsync(bad),
		"fdatasync":       sys.Fdatasync(bad),
		"syncfs":          sys.Syncfs(bad),
		"ftruncate":       sys.Ftruncate(bad, 0),
		"fchmod":          sys.Fchmod(bad, 0),
		"fallocate":       sys.Fallocate(bad, 0, 0, 1),
		"dup":             second(sys.Dup(bad)),
		"close":           sys.Close(bad),
		"flock":           sys.Flock(bad, unix.LOCK_EX),
		"fcntl":           sys.FcntlFlock(bad, unix.F_SETLK, &lk),
		"statx":           sys.Statx(bad, x, 0, 0, &st),
		"statx, itself":   sys.FStatx(bad, 0, &st),
		"fstat":           sys.Fstat(bad, &plain),
		"openat":          second(sys.Openat(bad, x, 0, 0)),
		"openat2":         second(sys.Openat2(bad, x, &unix.OpenHow{})),
		"mkdirat":         sys.Mkdirat(bad, x, 0),
		"mknodat":         sys.Mknodat(bad, x, unix.S_IFREG, 0),
		"unlinkat":        sys.Unlinkat(bad, x, 0),
		"renameat2":       sys.Renameat2(bad, x, bad, x, 0),
		"linkat":          sys.Linkat(bad, x, bad, x, 0),
		"symlinkat":       sys.Symlinkat(x, bad, x),
		"readlinkat":      second(sys.Readlink(bad, buf[:])),
		"fchmodat":        sys.Fchmodat(bad, x, 0),
		"fchownat":        sys.FchownPath(bad, 0, 0),
		"utimensat":       sys.Utimensat(bad, x, &times),
		"faccessat2":      sys.Faccessat2(bad, x, 0, 0),
		"getdents64":      second(sys.Getdents64(bad, buf[:])),
		"fstatfs":         sys.Fstatfs(bad, &fs),
		"name_to_handle":  noHandle,
		"receive":         sys.SeccompReceive(bad, &call),
		"continue":        sys.SeccompContinue(bad, 1),
	} {
		assert.Equal(t, unix.EBADF, e, what)
	}
	for what, e := range map[string]unix.Errno{
		"truncate":    sys.Truncate(missing, 0),
		"getxattr":    second(sys.Getxattr(missing, x, nil)),
		"listxattr":   second(sys.Listxattr(missing, nil)),
		"setxattr":    sys.Setxattr(missing, x, nil, 0),
		"removexattr": sys.Removexattr(missing, x),
	} {
		assert.Equal(t, unix.ENOENT, e, what)
	}
	_, e := sys.SeccompListen(nil)
	assert.Equal(t, unix.EINVAL, e, "a filter without an instruction")
	assert.Equal(t, unix.ESRCH, sys.Interrupt(1<<30))
	onThread(func() { assert.Equal(t, unix.EBADF, sys.PrivateWorkingDirectory(bad)) })
	fd, e := sys.Openat(bad, x, 0, 0)
	assert.Equal(t, []int{-1, int(unix.EBADF)}, []int{fd, int(e)}, "no descriptor is -1, never 0, which is somebody's")
	fd, e = sys.Openat2(bad, x, &unix.OpenHow{})
	assert.Equal(t, []int{-1, int(unix.EBADF)}, []int{fd, int(e)})
}

// What works, works, and no descriptor is inherited by a program that is started.
func TestDescriptorsAreClosedOnExec(t *testing.T) {
	testenv.Need(t, "root")
	dir, _ := folder(t)
	closed := func(fd int) bool {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		require.NoError(t, err)
		return flags&unix.FD_CLOEXEC != 0
	}
	fd, e := sys.Openat(dir, name("f"), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	require.Zero(t, e)
	assert.Positive(t, fd)
	assert.True(t, closed(fd))
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	require.NoError(t, err)
	assert.Equal(t, unix.O_RDWR, flags&unix.O_ACCMODE)
	two, e := sys.Dup(fd)
	require.Zero(t, e)
	assert.True(t, closed(two))
	assert.Zero(t, sys.Close(two))
	assert.Equal(t, unix.EBADF, sys.Close(two))

	how, e := sys.Openat2(dir, name("f"), &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC})
	require.Zero(t, e)
	assert.Zero(t, sys.Close(how))

	// By its handle, which is the same by its name and by its descriptor.
	var handle sys.HandleBuffer
	byName, e := sys.NameToHandle(dir, name("f"), &handle)
	require.Zero(t, e)
	byFD, e := sys.NameToHandle(fd, nil, &handle)
	require.Zero(t, e)
	ofDir, e := sys.NameToHandle(dir, nil, &handle)
	require.Zero(t, e)
	assert.True(t, byName.Equal(byFD))
	assert.False(t, byName.Equal(ofDir))
	assert.False(t, byName.Equal(nil))
	var noHandle *sys.ExportHandle
	assert.False(t, noHandle.Equal(nil), "none is of no file")
	again, e := sys.OpenByHandle(dir, byName, unix.O_RDONLY)
	require.Zero(t, e)
	assert.True(t, closed(again))
	var a, b unix.Stat_t
	require.Zero(t, sys.Fstat(fd, &a))
	require.Zero(t, sys.Fstat(again, &b))
	assert.Equal(t, a.Ino, b.Ino)
	assert.Zero(t, sys.Close(again))
	write, e := sys.OpenByHandle(dir, byName, unix.O_WRONLY)
	require.Zero(t, e)
	flags, err = unix.FcntlInt(uintptr(write), unix.F_GETFL, 0)
	require.NoError(t, err)
	assert.Equal(t, unix.O_WRONLY, flags&unix.O_ACCMODE)
	assert.Zero(t, sys.Close(write))
	fresh, e := sys.Openat(dir, name("gone"), unix.O_CREAT|unix.O_RDWR, 0o600)
	require.Zero(t, e)
	gone, e := sys.NameToHandle(fresh, nil, &handle)
	require.Zero(t, e)
	require.Zero(t, sys.Close(fresh))
	require.Zero(t, sys.Unlinkat(dir, name("gone"), 0))
	none, e := sys.OpenByHandle(dir, gone, unix.O_RDONLY)
	assert.Equal(t, []int{-1, int(unix.ESTALE)}, []int{none, int(e)})
	assert.Zero(t, sys.Close(fd))
}

// A thread's own working directory is no other's.
func TestWorkingDirectoryOfOneThread(t *testing.T) {
	dir, path := folder(t)
	before, err := os.Getwd()
	require.NoError(t, err)
	onThread(func() {
		assert.Zero(t, sys.PrivateWorkingDirectory(dir))
		var buf [4096]byte
		n, err := unix.Getcwd(buf[:])
		assert.NoError(t, err)
		assert.Equal(t, path, unix.ByteSliceToString(buf[:n]))
	})
	var now [4096]byte
	n, err := unix.Getcwd(now[:])
	require.NoError(t, err)
	assert.Equal(t, before, unix.ByteSliceToString(now[:n]))
}

// A rule set refuses what it names, but for what lies under the directory that is excepted.
func TestLandlockExceptsOneDirectory(t *testing.T) {
	if sys.LandlockABI() == 0 {
		testenv.Lacks(t, "landlock", "the kernel has no Landlock; remedy: lsm=landlock")
	}
	v, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	require.Zero(t, e)
	assert.EqualValues(t, v, sys.LandlockABI())
	_, e = sys.LandlockRuleset(&unix.LandlockRulesetAttr{})
	assert.Equal(t, unix.ENOMSG, e, "a rule set that refuses nothing")
	dir, path := folder(t)
	_, other := folder(t)
	for _, p := range []string{path, other} {
		require.NoError(t, os.WriteFile(filepath.Join(p, "f"), nil, 0o600))
	}
	assert.Equal(t, unix.EBADF, sys.LandlockAllow(-1, dir, unix.LANDLOCK_ACCESS_FS_READ_FILE))
	onThread(func() {
		rules, e := sys.LandlockRuleset(&unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_READ_FILE})
		require.Zero(t, e)
		defer unix.Close(rules)
		assert.Zero(t, sys.LandlockAllow(rules, dir, unix.LANDLOCK_ACCESS_FS_READ_FILE))
		assert.Equal(t, unix.EINVAL, sys.LandlockAllow(rules, dir, unix.LANDLOCK_ACCESS_FS_WRITE_FILE), "a right that the set does not name")
		_, _, e = unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
		assert.Zero(t, e)
		_, _, e = unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(rules), 0, 0)
		assert.Zero(t, e)
		fd, err := unix.Open(filepath.Join(path, "f"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		assert.NoError(t, err)
		unix.Close(fd)
		_, err = unix.Open(filepath.Join(other, "f"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		assert.Equal(t, unix.EACCES, err)
		fd, err = unix.Open(filepath.Join(other, "f"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		assert.NoError(t, err, "writing is not named")
		unix.Close(fd)
	})
}

// A thread that waits for a lock is sent back with EINTR; other calls begin anew.
func TestInterruptEndsAWait(t *testing.T) {
	require.Zero(t, sys.PrepareInterrupt())
	_, path := folder(t)
	file := filepath.Join(path, "lock")
	open := func() int {
		fd, err := unix.Open(file, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		require.NoError(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	holder, waiter := open(), open()
	require.Zero(t, sys.Flock(holder, unix.LOCK_EX))
	tid, done, end := make(chan int), make(chan unix.Errno, 1), make(chan bool)
	defer close(end)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		done <- sys.Flock(waiter, unix.LOCK_EX)
		<-end // the thread stays
	}()
	thread := <-tid
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		assert.Zero(t, sys.Interrupt(thread))
		select {
		case e := <-done:
			assert.Equal(t, unix.EINTR, e)
			return
		default:
		}
		if time.Since(began) > 10*time.Second {
			assert.Zero(t, sys.Flock(holder, unix.LOCK_UN))
			require.Fail(t, "the thread waits on")
		}
	}
}

// The same for calls that do begin anew: reading from a pipe goes on until there is something.
func TestInterruptedReadBeginsAnew(t *testing.T) {
	require.Zero(t, sys.PrepareInterrupt())
	var p [2]int
	require.NoError(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	tid, done := make(chan int), make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		b := make([]byte, 8)
		iov := []unix.Iovec{{Base: &b[0], Len: 8}}
		n, e := sys.Preadv2(p[0], iov, -1, 0)
		if e != 0 {
			n = -int(e)
		}
		done <- n
	}()
	thread := <-tid
	for range 20 {
		assert.Zero(t, sys.Interrupt(thread))
		time.Sleep(time.Millisecond)
	}
	_, err := unix.Write(p[1], []byte("abc"))
	require.NoError(t, err)
	assert.Equal(t, 3, <-done)
	unix.Close(p[0])
	unix.Close(p[1])
}
