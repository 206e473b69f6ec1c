package passthrough

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/probe"
	"virtiofsd/harness/workload"
	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/testenv"
)

// Linux's FUSE is the same for virtio-fs and for /dev/fuse: with the latter this package's file system is mounted on the host, and
// programs work on it as they would in a guest, at once and without one.

// kernelMount mounts the share of a directory with cfg, served by a few workers, and returns the mount point.
func kernelMount(t testing.TB, cfg Config, dir string) string {
	t.Helper()
	return faultyMount(t, cfg, dir, func(fuseabi.Opcode) unix.Errno { return 0 })
}

// faultyMount is kernelMount of a file system that fails as fault says.
func faultyMount(t testing.TB, cfg Config, dir string, fault func(fuseabi.Opcode) unix.Errno) string {
	t.Helper()
	return servedMount(t, cfg, dir, func(w *fuse.Worker, in, out []byte) uint32 {
		h := fuseabi.View[fuseabi.InHeader](in)
		if e := fault(fuseabi.Opcode(h.Opcode)); e != 0 {
			answer := fuseabi.OutHeader{Length: uint32(fuseabi.OutHeaderSize), Status: -int32(e), Unique: h.Unique}
			return uint32(copy(out, fuseabi.Bytes(&answer)))
		}
		return serveWhole(w, in, out)
	})
}

// serveWhole has a worker answer one request.
func serveWhole(w *fuse.Worker, in, out []byte) uint32 {
	seg := func(b []byte) []unix.Iovec {
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(len(b))
		return []unix.Iovec{v}
	}
	return w.Serve(seg(in), seg(out))
}

// servedMount is kernelMount of a file system whose requests are answered by serve.
func servedMount(t testing.TB, cfg Config, dir string, serve func(w *fuse.Worker, in, out []byte) uint32) string {
	t.Helper()
	testenv.Need(t, "root", "fuse")
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	cfg.Lookout = true
	fs, err := New(openFD(t, dir), openFD(t, "/proc/self/fd"), cfg)
	require.NoError(t, err)
	ses := fuse.NewSession(fs, fuse.SessionConfig{})
	at := t.TempDir()
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", dev)
	require.NoError(t, unix.Mount("share", at, "fuse", 0, options))
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			runtime.LockOSThread()
			w, err := ses.NewHandler(1)
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Close()
			serveDevice(t, dev, w, serve)
		})
	}
	t.Cleanup(func() {
		syncFS(at)
		for range 100 {
			// By force: a mount namespace that somebody else made in the meantime has a copy of the mount, and without it the
			// connection would last as long as that.
			if err = unix.Unmount(at, unix.MNT_FORCE); err != unix.EBUSY {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("unmount: %v", err)
			unix.Unmount(at, unix.MNT_DETACH)
		}
		ses.Interrupt(1)
		workers.Wait()
		unix.Close(dev)
		fs.Close()
	})
	sendPoll(t, at)
	return at
}

// sendPoll has the kernel ask, and be told, that POLL is not answered: it asks once. Package os adds what it opens to the runtime's epoll in a
// call that the runtime does not know to block; were that to ask, nothing could stop the world, nor this process's servers answer.
func sendPoll(t testing.TB, at string) {
	t.Helper()
	name := at + "/polled"
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == unix.EROFS {
		return
	}
	require.NoError(t, err)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	require.NoError(t, err)
	unix.Close(fd)
	require.NoError(t, unix.Unlink(name))
}

// syncFS has the kernel write what it delays. Errors are the tests' own to look for.
func syncFS(dir string) {
	if fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
		_ = unix.Syncfs(fd)
		unix.Close(fd)
	}
}

// serveDevice serves requests from /dev/fuse until the file system is unmounted.
func serveDevice(t testing.TB, dev int, w *fuse.Worker, serve func(w *fuse.Worker, in, out []byte) uint32) {
	in, out := fuseabi.Buffer(fuse.MaxWrite+8192), fuseabi.Buffer(fuse.MaxWrite+8192)
	for {
		n, err := unix.Read(dev, in)
		switch {
		case err == unix.EINTR, err == unix.ENOENT: // interrupted before it was sent
			continue
		case err == unix.ENODEV, err == unix.ECONNABORTED: // unmounted, by force
			return
		case err != nil:
			t.Errorf("read /dev/fuse: %v", err)
			return
		}
		if used := serve(w, in[:n], out); used > 0 {
			if _, err := unix.Write(dev, out[:used]); err != nil && err != unix.ENOENT { // nobody waits any more
				t.Errorf("answer %s with %d bytes: %v", fuseabi.Opcode(fuseabi.View[fuseabi.InHeader](in).Opcode), used, err)
			}
		}
		for w.Idle() { // as a queue's leader does
		}
	}
}

// TestMain lets the test program be other processes: one that works on a mount (in this process it could stop the garbage
// collector, and so the servers, by a page fault), or one with other ids.
func TestMain(m *testing.M) {
	testenv.QuickExits()
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "child": // of a workload
			os.Exit(workload.Child(os.Args[2], os.Args[3:], os.Stdin, os.Stdout, os.Stderr))
		case "workload":
			os.Exit(childWorkload(os.Args[2], os.Args[3], os.Args[4]))
		}
	}
	os.Exit(m.Run())
}

// childWorkload runs one of the guest's calls with a directory for a share and another for the guest's own.
func childWorkload(share, local, call string) int {
	shares := &workload.Shares{}
	shares.Adopt(guestproto.Mount{Tag: "share", Dir: share, OK: true})
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	e := &workload.Env{Shares: shares, LocalDir: local, Self: self}
	var args json.RawMessage
	if err := json.NewDecoder(os.Stdin).Decode(&args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	facts, err := workload.Run(e, call, args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(facts); err != nil {
		return 1
	}
	return 0
}

// onKernel runs one of the guest's calls on a mount.
func onKernel[F any](t *testing.T, at, call string, args any) (facts F) {
	t.Helper()
	raw, err := json.Marshal(args)
	require.NoError(t, err)
	self := publicSelf(t)
	c := exec.Command(self, "workload", at, tmpfs(t), call)
	c.Stdin = strings.NewReader(string(raw))
	var errs strings.Builder
	c.Stderr = &errs
	out, err := c.Output()
	require.NoError(t, err, errs.String())
	require.NoError(t, json.Unmarshal(out, &facts))
	return facts
}

// publicSelf is a copy of this program that other users may start: go test keeps its own in a private directory.
func publicSelf(t *testing.T) string {
	t.Helper()
	dir := publicDir(t)
	self, err := os.Executable()
	require.NoError(t, err)
	b, err := os.ReadFile(self)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/self", b, 0o755))
	return dir + "/self"
}

// publicDir is a directory which other users can reach.
func publicDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

// tmpfs mounts a file system in memory.
func tmpfs(t testing.TB) string {
	t.Helper()
	dir := publicDir(t)
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512m,mode=755"))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	return dir
}

// What takes seconds is for every day; these are for whoever wants to know better: make test-long.
var (
	ops  = flag.Int("ops", 0, "operations of each random test; 0: 600, or 100,000 in the long form")
	seed = flag.Int64("seed", 7, "what they are drawn from")
)

func randomOps() int {
	if *ops == 0 && testenv.Long() {
		return 100_000
	}
	return cmp.Or(*ops, 600)
}

// The options under which a guest's programs must see no difference to a local file system.
var kernelConfigs = map[string]Config{
	"auto":      {Xattr: true, KillprivV2: true},
	"locks":     {Xattr: true, Flock: true, PosixLock: true},
	"auto-acl":  {Xattr: true, PosixACL: true, Flock: true, PosixLock: true, KillprivV2: true},
	"always":    {Xattr: true, KillprivV2: true, Cache: CacheAlways},
	"metadata":  {Xattr: true, Cache: CacheMetadata, AllowMmap: true, NoReaddirplus: true},
	"never":     {Xattr: true, Cache: CacheNever, AllowMmap: true, AllowDirectIO: true, InodeFileHandles: HandlesNever, FDBudget: 64},
	"writeback": {Xattr: true, Writeback: true, KillprivV2: true, Flock: true, PosixLock: true},
}

// known are differences that no daemon can avoid. With HANDLE_KILLPRIV_V2 the guest's kernel turns a chown(2) to nobody (-1, -1) of a file
// with set-id bits into an empty SETATTR without asking who may do so (fs/fuse/dir.c, fuse_setattr), the same that it sends before
// fallocate(2) of somebody who may write: the bits go, where a local file system says EPERM to who is not the owner. Without it
// ATOMIC_O_TRUNC cannot be offered, and a truncate(2) of an empty file to nothing is what an open(2) with O_TRUNC is: both move the
// file's times (fuse_do_setattr).
func known(cfg Config) []string {
	if cfg.KillprivV2 {
		return []string{"chown-to-nobody.errno"}
	}
	return []string{"truncate-to-0.mtime"}
}

// mayLack is what a share has only on request (posix-acl), or the file system beneath it lacks (zero-range: tmpfs).
var mayLack = []string{"posix-acl", "zero-range"}

func TestPosixOnTheKernel(t *testing.T) {
	for name, cfg := range kernelConfigs {
		t.Run(name, func(t *testing.T) {
			at := kernelMount(t, cfg, tmpfs(t))
			args := guestproto.PosixTestArgs{}
			if !testenv.Long() && name != "auto-acl" { // a process a test takes its time
				args.Tests = []string{"FstatDeleted", "ReadDirConsistency", "AppendWrite"}
			}
			facts := onKernel[guestproto.PosixTest](t, at, guestproto.CallPosixTest, args)
			for _, c := range facts.Checks {
				if c.Status == guestproto.StatusFail {
					t.Errorf("%s: %s", c.Name, c.Detail)
				}
			}
			basics := onKernel[guestproto.Basics](t, at, guestproto.CallBasics, guestproto.BasicsArgs{})
			for _, c := range basics.Checks {
				if c.Status == guestproto.StatusFail {
					t.Errorf("%s: %s", c.Name, c.Detail)
				}
				if c.Status == guestproto.StatusUnsupported && !slices.Contains(mayLack, c.Name) {
					t.Errorf("%s is not supported: %s", c.Name, c.Detail)
				}
			}
		})
	}
}

func TestNoDifferenceOnTheKernel(t *testing.T) {
	for name, cfg := range kernelConfigs {
		t.Run(name, func(t *testing.T) {
			at := kernelMount(t, cfg, tmpfs(t))
			args := guestproto.DifferArgs{Seed: *seed, Ops: randomOps(), Trace: true, Max: 5, Expect: known(cfg)}
			facts := onKernel[guestproto.Differ](t, at, guestproto.CallDiffer, args)
			for _, d := range facts.Differences {
				t.Errorf("%d %s: %s\n  share %s\n  local %s\n   %s", d.N, d.Name, d.Op, d.Share, d.Local, strings.Join(d.Trace, "\n   "))
			}
			t.Log(facts.Ops, facts.Seconds, facts.Total, facts.Known)
		})
	}
}

// The host changes the same names meanwhile, with links among them that lead nowhere: the processes of this test would follow others.
func TestChangesUnderneathOnTheKernel(t *testing.T) {
	for name, cfg := range kernelConfigs {
		t.Run(name, func(t *testing.T) {
			dir := tmpfs(t)
			at := kernelMount(t, cfg, dir)
			seconds := 2.0
			if testenv.Long() {
				seconds = 120
			}
			changes := probe.StartChanges(dir, "churn/tree", *seed, "/nothing/there")
			facts := onKernel[guestproto.Churn](t, at, guestproto.CallChurn, guestproto.ChurnArgs{Seed: *seed, Seconds: seconds})
			made := changes.Stop()
			for _, s := range facts.Strange {
				t.Error(s)
			}
			require.Zero(t, facts.Strangers)
			require.NotZero(t, facts.Ops)
			require.NotZero(t, made)
			t.Log(facts.Ops, made, facts.Errnos)
		})
	}
}

func TestFsxOnTheKernel(t *testing.T) {
	for name, cfg := range kernelConfigs {
		t.Run(name, func(t *testing.T) {
			at := kernelMount(t, cfg, tmpfs(t))
			facts := onKernel[guestproto.Fsx](t, at, guestproto.CallFsx, guestproto.FsxArgs{Seed: *seed, Ops: randomOps()})
			if facts.Mismatch != "" {
				t.Errorf("%s\n   %s", facts.Mismatch, strings.Join(facts.Trace, "\n   "))
			}
			t.Log(facts.ByOp, facts.Unsupported, facts.Seconds)
		})
	}
}
