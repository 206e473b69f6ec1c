package passthrough

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/testenv"
)

// A guest's programs see errors of the host's file system as they are, and go on when it does. The host's file system is this package's
// own on another mount, with delayed writes, so that they fail when they are asked for.
func TestErrorsOfTheHost(t *testing.T) {
	var bad atomic.Uint64 // opcode and errno
	host := faultyMount(t, Config{Writeback: true, Xattr: true}, tmpfs(t), func(op fuseabi.Opcode) unix.Errno {
		if b := bad.Load(); b>>32 == uint64(op) {
			return unix.Errno(uint32(b))
		}
		return 0
	})
	at := kernelMount(t, Config{Cache: CacheNever, Xattr: true}, host)
	fails := func(op fuseabi.Opcode, e unix.Errno, f func() error) {
		t.Helper()
		require.NoError(t, f(), "%s before", op)
		bad.Store(uint64(op)<<32 | uint64(e))
		err := f()
		bad.Store(0)
		assert.ErrorIs(t, err, e, "%s", op)
		assert.NoError(t, f(), "%s afterwards", op)
	}
	i := 0
	fresh := func() string { i++; return fmt.Sprint(at, "/new", i) }
	require.NoError(t, os.WriteFile(at+"/f", []byte("text"), 0o644))
	for _, e := range []unix.Errno{unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EROFS} {
		fails(fuseabi.OpMkdir, e, func() error { return unix.Mkdir(fresh(), 0o755) })
		fails(fuseabi.OpSymlink, e, func() error { return unix.Symlink("x", fresh()) })
		fails(fuseabi.OpMknod, e, func() error { return unix.Mknod(fresh(), unix.S_IFIFO|0o600, 0) })
		fails(fuseabi.OpCreate, e, func() error {
			fd, err := unix.Open(fresh(), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
			return errors.Join(err, unix.Close(max(fd, -1)))
		})
		fails(fuseabi.OpSetattr, e, func() error { return unix.Chmod(at+"/f", 0o600) })
		fails(fuseabi.OpSetxattr, e, func() error { return unix.Setxattr(at+"/f", "user.a", []byte("b"), 0) })
		fails(fuseabi.OpOpen, e, func() error { _, err := os.ReadFile(at + "/f"); return err })
		fails(fuseabi.OpStatfs, e, func() error { return unix.Statfs(at, &unix.Statfs_t{}) })
	}
	fails(fuseabi.OpRead, unix.EIO, func() error {
		b, err := os.ReadFile(at + "/f")
		if err == nil && string(b) != "text" {
			return fmt.Errorf("read %q", b)
		}
		return err
	})

	// What is not on disk is said once to each who has the file open (errseq_t), and to nobody twice.
	var fds [3]int
	for i := range fds {
		fd, err := unix.Open(at+"/f", unix.O_RDWR|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		fds[i] = fd
	}
	_, err := unix.Pwrite(fds[0], []byte("lost"), 0)
	require.NoError(t, err)
	bad.Store(uint64(fuseabi.OpWrite)<<32 | uint64(unix.EIO))
	for i, sync := range []func(int) error{unix.Fsync, unix.Fdatasync, unix.Fsync} {
		assert.ErrorIs(t, sync(fds[i]), unix.EIO, "first, by descriptor %d", i)
	}
	for i, fd := range fds {
		assert.NoError(t, unix.Fsync(fd), "once more, by descriptor %d", i)
	}
	bad.Store(0)
	_, err = unix.Pwrite(fds[1], []byte("kept"), 0)
	require.NoError(t, err)
	for _, fd := range fds {
		assert.NoError(t, unix.Fsync(fd))
	}
	b, err := os.ReadFile(at + "/f")
	require.NoError(t, err)
	assert.Equal(t, "kept", string(b))
	dir, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(dir)
	fails(fuseabi.OpFsyncdir, unix.EIO, func() error { return unix.Fsync(dir) })
}

// smallDisk mounts an ext4 of 8 MiB with few inodes.
func smallDisk(t *testing.T) string {
	t.Helper()
	testenv.Need(t, "root", "loop", "mkfs")
	image := filepath.Join(tmpfs(t), "image")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 8<<20))
	run := func(argv ...string) {
		t.Helper()
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		require.NoError(t, err, "%s: %s", argv, out)
	}
	run("mkfs.ext4", "-q", "-m", "0", "-N", "64", "-O", "^has_journal", image)
	dir := publicDir(t)
	run("mount", "-o", "loop", image, dir)
	t.Cleanup(func() { assert.NoError(t, exec.Command("umount", "-l", dir).Run()) })
	return dir
}

// A full disk is an error where something was to be written, and room again is room again.
func TestFullDisk(t *testing.T) {
	for _, writeback := range []bool{false, true} {
		t.Run(fmt.Sprintf("writeback=%v", writeback), func(t *testing.T) {
			at := kernelMount(t, Config{Writeback: writeback}, smallDisk(t))
			fd, err := unix.Open(at+"/big", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
			require.NoError(t, err)
			defer unix.Close(fd)
			block := bytes.Repeat([]byte("0123456789abcdef"), 1<<12)
			good := int64(0)
			for err == nil && good < 16<<20 {
				var n int
				n, err = unix.Pwrite(fd, block, good)
				good += int64(max(n, 0))
				if err == nil && good%(1<<20) == 0 {
					err = unix.Fsync(fd)
				}
			}
			require.ErrorIs(t, err, unix.ENOSPC)
			assert.Less(t, good, int64(9<<20))
			if !writeback { // what was acknowledged is there
				got := make([]byte, len(block))
				for off := int64(0); off+int64(len(block)) <= good; off += int64(len(block)) {
					n, err := unix.Pread(fd, got, off)
					require.NoError(t, err)
					require.True(t, n == len(block) && bytes.Equal(got, block), "at %d", off)
				}
			}
			assert.ErrorIs(t, unix.Fallocate(fd, 0, good, 4<<20), unix.ENOSPC)
			_ = unix.Fsync(fd) // may tell of the same pages
			require.NoError(t, unix.Ftruncate(fd, 0))
			// Pages that the kernel wrote back by itself meanwhile are told of once more, and only once.
			if err = unix.Fsync(fd); writeback && err == unix.ENOSPC {
				err = unix.Fsync(fd)
			}
			require.NoError(t, err)
			n, err := unix.Pwrite(fd, block, 0)
			require.NoError(t, err)
			assert.Equal(t, len(block), n)
			assert.NoError(t, unix.Fsync(fd))

			made := 0
			for err = nil; err == nil && made < 100; made++ {
				err = unix.Mknod(fmt.Sprint(at, "/node", made), unix.S_IFREG|0o644, 0)
			}
			assert.ErrorIs(t, err, unix.ENOSPC, "no inodes are left")
			require.NoError(t, unix.Unlink(at+"/node0"))
			// The inode is free when the kernel has forgotten the node: it says so when it gets round to it.
			assert.Eventually(t, func() bool { return unix.Mkdir(at+"/dir", 0o755) == nil }, 10*time.Second, 10*time.Millisecond)
		})
	}
}

// Whoever creates whatever, in whatever directory, under whatever umask: owner, group, mode and ACL are those of a local file system.
func TestOwnersOnTheKernel(t *testing.T) {
	for _, name := range []string{"auto-acl", "never", "writeback"} {
		t.Run(name, func(t *testing.T) {
			cfg := kernelConfigs[name]
			at := kernelMount(t, cfg, tmpfs(t))
			facts := onKernel[guestproto.Identity](t, at, guestproto.CallIdentity, guestproto.IdentityArgs{})
			made := map[string]int{}
			for _, o := range facts.Created {
				if strings.HasPrefix(o.Parent, "acl") && !cfg.PosixACL {
					continue // they have to be switched on
				}
				assert.True(t, o.Same, "%+v", o)
				if o.Share.Errno == "" {
					made[o.Parent]++
					made[o.Kind]++
					made[fmt.Sprint("uid ", o.As.UID)]++
				}
			}
			for _, what := range []string{"plain", "setgid", "setgid2", "sticky", "file", "dir", "symlink", "fifo", "socket", "tmpfile", "link", "char", "block",
				"setgidfile", "uid 0", "uid 1001", "uid 1002", "uid 70001"} {
				assert.NotZero(t, made[what], what)
			}
			if cfg.PosixACL {
				assert.NotZero(t, made["acl"])
				assert.NotZero(t, made["acl-setgid"])
			}
		})
	}
}

const limitedEnv = "PASSTHROUGH_LIMITED"

// limited runs the test in a process of its own as a user, with as few descriptors and a fresh file system in memory, owned by the
// user and filled by prepare. It reports whether this is that process, and where the file system is.
func limited(t *testing.T, user, nofile int, prepare func(dir string)) (dir string, inside bool) {
	t.Helper()
	if dir = os.Getenv(limitedEnv); dir != "" {
		lim := unix.Rlimit{Cur: uint64(nofile), Max: uint64(nofile)}
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &lim))
		return dir, true
	}
	testenv.Need(t, "root")
	self := publicSelf(t)
	dir = publicDir(t)
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755,size=100%,nr_inodes=0"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	require.NoError(t, os.Chown(dir, user, user))
	prepare(dir)
	c := exec.Command(self, "-test.v", "-test.timeout", "2h", "-test.run", "^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
	c.Env = append(os.Environ(), limitedEnv+"="+dir, "TMPDIR="+dir)
	c.Dir = dir
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(user), Gid: uint32(user), Groups: []uint32{}}}
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name())
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "_test.go:") {
			t.Log(strings.TrimSpace(line))
		}
	}
	return dir, false
}

// CVE-2020-10717: a guest that opens without end used up the descriptors of the host. It comes to the process's own limit, gets an
// error for one more, and what it has goes on: even then names are looked up and new ones made, with descriptors that were cached.
func TestDescriptorsRunOut(t *testing.T) {
	dir, inside := limited(t, 0, 256, func(dir string) {
		for i := range 400 {
			require.NoError(t, os.WriteFile(fmt.Sprint(dir, "/f", i), []byte(strconv.Itoa(i)), 0o644))
		}
	})
	if !inside {
		return
	}
	for _, h := range []Handles{HandlesPrefer, HandlesNever} {
		g := mount(t, dir, Config{InodeFileHandles: h})
		type open struct{ node, fh uint64 }
		var all []open
		refused := 0
		for i := range 400 {
			n := g.mustLookup(root, fmt.Sprint("f", i))
			fh, e := g.open(n, unix.O_RDWR)
			if e != 0 {
				require.Equal(t, unix.EMFILE, e)
				refused++
				continue
			}
			all = append(all, open{n, fh})
		}
		assert.Greater(t, len(all), 100)
		assert.NotZero(t, refused)
		for i, o := range all {
			b, e := g.read(o.node, o.fh, 0, 10)
			require.Zero(t, e)
			require.Equal(t, strconv.Itoa(i), string(b))
		}
		require.Zero(t, g.release(all[0].node, all[0].fh))
		require.Zero(t, g.release(all[1].node, all[1].fh))
		last := g.mustLookup(root, "f399")
		fh, e := g.open(last, unix.O_RDWR)
		require.Zero(t, e, "there is room again")
		for _, o := range append(all[2:], open{last, fh}) {
			require.Zero(t, g.release(o.node, o.fh))
		}
		for i := range 400 {
			n := g.mustLookup(root, fmt.Sprint("f", i))
			fh, e := g.open(n, unix.O_RDWR)
			require.Zero(t, e)
			require.Zero(t, g.release(n, fh))
		}
	}
}

// A guest that walks far more files than there are descriptors sees no error, and what it forgets is given back.
func TestManyFilesFewDescriptors(t *testing.T) {
	const perDir = 500
	dirs, nofile := 2, 96
	if testenv.Long() {
		dirs, nofile = 2000, 1024
	}
	for _, c := range []struct {
		name    string
		user    int
		handles Handles
	}{{"root-prefer", 0, HandlesPrefer}, {"root-never", 0, HandlesNever}, {"user-never", 1001, HandlesNever}, {"user-prefer", 1001, HandlesPrefer}} {
		t.Run(c.name, func(t *testing.T) {
			dir, inside := limited(t, c.user, nofile, func(dir string) {
				for d := range dirs {
					top := fmt.Sprint(dir, "/d", d)
					require.NoError(t, os.Mkdir(top, 0o755))
					for f := range perDir {
						require.NoError(t, os.WriteFile(fmt.Sprint(top, "/f", f), []byte{byte(f)}, 0o644))
					}
				}
			})
			if !inside {
				return
			}
			g := mount(t, dir, Config{InodeFileHandles: c.handles})
			g.w.plain = true
			before := heap()
			nodes := make([]uint64, 0, dirs*perDir)
			tops := make([]uint64, dirs)
			for d := range dirs {
				tops[d] = g.mustLookup(root, fmt.Sprint("d", d))
				if d%2 == 0 {
					for f := range perDir {
						nodes = append(nodes, g.mustLookup(tops[d], fmt.Sprint("f", f)))
					}
					continue
				}
				listed := make([]uint64, perDir)
				for _, en := range g.readdir(tops[d], true, 65536) {
					if f, err := strconv.Atoi(strings.TrimPrefix(en.name, "f")); err == nil {
						listed[f] = en.node
					}
				}
				require.NotContains(t, listed, uint64(0))
				nodes = append(nodes, listed...)
			}
			known := heap()
			for i, n := range nodes {
				if a, e := g.getattr(n); e != 0 || a.Size != 1 {
					t.Fatalf("getattr of %d: %v, size %d", i, e, a.Size)
				}
				if i%37 == 0 {
					open, err := os.ReadDir("/proc/self/fd")
					require.NoError(t, err)
					require.Less(t, len(open), nofile-16, "room is made before there is none")
				}
			}
			for i, n := range slices.Backward(nodes) { // the other way round: what is cached helps least
				fh, e := g.open(n, unix.O_RDONLY)
				if e != 0 {
					t.Fatalf("open %d: %v", i, e)
				}
				b, e := g.read(n, fh, 0, 10)
				if e != 0 || len(b) != 1 || b[0] != byte(i%perDir) {
					t.Fatalf("read %d: %v, %v", i, e, b)
				}
				if e := g.release(n, fh); e != 0 {
					t.Fatalf("release %d: %v", i, e)
				}
			}
			assert.Equal(t, len(nodes)+dirs+1, g.fs.Stats().Inodes)
			assert.NotZero(t, g.fs.Stats().Evictions)
			used := heap()
			for _, n := range append(nodes, tops...) {
				g.forget(n, 1)
			}
			after := heap()
			assert.Equal(t, 1, g.fs.Stats().Inodes)
			assert.LessOrEqual(t, g.fs.Stats().CachedFDs, int64(1))
			n := int64(len(nodes))
			t.Logf("%d files, %d descriptors, %d evictions: %d bytes a file looked up, %d used, %d after all were forgotten",
				n, nofile, g.fs.Stats().Evictions, (known-before)/n, (used-before)/n, (after-before)/n)
			const fixed = 1 << 20 // buffers of the session and the test
			assert.Less(t, used-before, 900*n+fixed)
			assert.Less(t, after-before, 50*n+fixed)
		})
	}
}

// heap is how many bytes live.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
