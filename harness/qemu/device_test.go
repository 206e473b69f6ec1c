package qemu_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/qemu"
	"virtiofsd/internal/testenv"
	vmimages "virtiofsd/vm-images"
)

// These tests have real QEMU as the front-end and a real kernel as the driver: what a front-end of ours would do as we think it does,
// QEMU does as it does.

const kernel = "6.12" // has one request queue per processor, as all from 6.11 on

func build(t *testing.T, dir, name string) string {
	t.Helper()
	bin := filepath.Join(dir, name)
	c := exec.Command("go", "build", "-o", bin, "virtiofsd/cmd/"+name)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := c.CombinedOutput()
	require.NoError(t, err, string(out))
	return bin
}

// share is a daemon and what the guest and QEMU are told of it.
type share struct {
	qemu.Share
	daemon *frontend.Process
	dir    string
}

func daemonOn(t *testing.T, bin, dir string, s qemu.Share, extra ...string) *share {
	t.Helper()
	at := filepath.Join(dir, s.Tag)
	require.NoError(t, os.Mkdir(at, 0o755))
	s.Socket = filepath.Join(dir, s.Tag+".sock")
	argv, err := frontend.Daemon{Name: "ours", Dialect: "ours", Exec: []string{bin}}.Argv(frontend.Options{
		Share: at, Socket: s.Socket, Sandbox: "namespace", Extra: append([]string{"--log-level=debug"}, extra...),
	})
	require.NoError(t, err)
	p, err := frontend.Spawn(context.Background(), argv, nil, s.Socket)
	require.NoError(t, err)
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s:\n%s", s.Tag, last(p.Log(), 3000))
		}
	})
	return &share{s, p, at}
}

func last(s string, n int) string { return s[max(0, len(s)-n):] }

// work has the guest write, read back and list on the share, and looks at it from the host.
func (s *share) work(t *testing.T, ctx context.Context, vm *qemu.VM, dir string) {
	t.Helper()
	where := guestproto.Where{Share: s.Tag, Dir: dir}
	var b guestproto.BigIO
	require.NoError(t, vm.Call(ctx, guestproto.CallBigIO, guestproto.BigIOArgs{Where: where, Bytes: 3 << 20, Seed: 7}, &b), s.Tag)
	require.Empty(t, b.Errno, "%s: %s", s.Tag, b.Failed)
	assert.Equal(t, b.WroteSHA256, b.ReadSHA256, s.Tag)
	data, err := os.ReadFile(filepath.Join(s.dir, b.Path))
	require.NoError(t, err)
	sum := sha256.Sum256(data)
	assert.Equal(t, b.WroteSHA256, hex.EncodeToString(sum[:]), "%s: as the host sees it", s.Tag)
	var tree guestproto.Tree
	require.NoError(t, vm.Call(ctx, guestproto.CallTree, guestproto.TreeArgs{Where: where, Files: 60, PerDir: 20}, &tree), s.Tag)
	assert.Equal(t, []int{60, 60, 60, 0}, []int{tree.Made, tree.Listed, tree.Removed, tree.Left}, s.Tag)
}

// everywhere has each processor of the guest read a file of its own on the share.
func (s *share) everywhere(t *testing.T, ctx context.Context, vm *qemu.VM, cpus int) {
	t.Helper()
	var x guestproto.Exec
	cmd := fmt.Sprintf("for c in $(seq 0 %d); do taskset $((1<<c)) dd if=/dev/zero of=cpu-$c bs=4096 count=20 conv=fsync; done", cpus-1)
	require.NoError(t, vm.Call(ctx, guestproto.CallExec, guestproto.ExecArgs{Where: guestproto.Where{Share: s.Tag, Dir: "cpus"}, Shell: cmd}, &x))
	require.Zero(t, x.Status, x.Stderr)
}

// writing starts a transfer that takes long, and returns when some of it has reached the host. forget ends the wait for its answer, which
// a guest that is reset will not give: the guest's next call would wait for it.
func (s *share) writing(t *testing.T, ctx context.Context, vm *qemu.VM) (forget func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = vm.Call(ctx, guestproto.CallBigIO, guestproto.BigIOArgs{Where: guestproto.Where{Share: s.Tag, Dir: "long"}, Bytes: 4 << 30, Direct: true}, nil)
	}()
	require.Eventually(t, func() bool {
		st, err := os.Stat(filepath.Join(s.dir, "long", "big"))
		return err == nil && st.Size() > 2<<20
	}, 30*time.Second, 10*time.Millisecond)
	return func() { cancel(); <-ended }
}

// gone asserts that the daemon ended well when its front-end had.
func (s *share) gone(t *testing.T) {
	t.Helper()
	clean, status, err := s.daemon.Exit(15 * time.Second)
	require.NoError(t, err, s.Tag)
	assert.True(t, clean && status == "exit 0", "%s: %s", s.Tag, status)
	for _, f := range []string{s.Socket, s.Socket + ".pid"} {
		_, err := os.Lstat(f)
		assert.ErrorIs(t, err, os.ErrNotExist)
	}
}

// longEnv asks for the long form of the test: every number of queues with every size, a reset in the middle of I/O, a second machine.
const longEnv = "MATRIX_LONG"

func TestDevicesInQEMU(t *testing.T) {
	testenv.Need(t, "root", "qemu", "apt")
	long := os.Getenv(longEnv) != ""
	dir, err := os.MkdirTemp("", "qemu") // t.TempDir may be too long for a socket's path
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	images, err := vmimages.Ensure(ctx, vmimages.Dirs{
		Cache: filepath.Join(cache, "vfsmatrix"), Out: filepath.Join(dir, "out"), Guest: build(t, dir, "vfsguest"),
	}, []string{kernel}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	bin := build(t, dir, "virtiofsd")

	const cpus = 4
	shapes := [][2]int{{1, 1024}, {4, 128}}
	if long {
		shapes = [][2]int{{1, 128}, {1, 1024}, {2, 128}, {2, 1024}, {4, 128}, {4, 1024}}
	}
	var shares []*share
	for _, s := range shapes {
		shares = append(shares, daemonOn(t, bin, dir, qemu.Share{Tag: fmt.Sprintf("q%d-s%d", s[0], s[1]), RequestQueues: s[0], QueueSize: s[1]}))
	}
	again := daemonOn(t, bin, dir, qemu.Share{Tag: "again", RequestQueues: 2}, "--keep-listening")
	all := append(shares, again)
	cfg := qemu.Config{HelloTimeout: 3 * time.Minute, Kernel: images[kernel].Kernel, Initrd: images[kernel].Initrd, CPUs: cpus, MemMiB: 512}
	boot := func(name string, shares ...*share) *qemu.VM {
		t.Helper()
		c := cfg
		c.Dir = filepath.Join(dir, name)
		require.NoError(t, os.Mkdir(c.Dir, 0o755))
		for _, s := range shares {
			c.Shares = append(c.Shares, s.Share)
		}
		vm, err := qemu.Start(ctx, c)
		require.NoError(t, err)
		t.Cleanup(vm.Kill)
		h, after, err := vm.Hello(ctx)
		require.NoError(t, err)
		t.Logf("%s: guest %s says hello after %v", name, h.Release, after.Round(time.Millisecond))
		return vm
	}
	vm := boot("first", all...)
	for _, s := range all {
		s.work(t, ctx, vm, "work")
		s.everywhere(t, ctx, vm, cpus)
	}

	if long {
		// The reset button in the middle of I/O: QEMU stops the rings and starts them for the next kernel, over the same connections.
		forget := shares[3].writing(t, ctx, vm)
		resetAt := time.Now()
		require.NoError(t, vm.Reset(ctx))
		_, _, err = vm.Hello(ctx)
		require.NoError(t, err)
		t.Logf("hello again %v after the reset", time.Since(resetAt).Round(time.Millisecond))
		forget()
		for _, s := range all {
			s.work(t, ctx, vm, "after-reset")
		}
	}

	// Two devices are unplugged, one of them in use: their daemons end, the others serve on.
	require.NoError(t, vm.Call(ctx, guestproto.CallUnmount, guestproto.MountArgs{Tag: shares[0].Tag}, nil))
	for i, s := range shares[:2] {
		require.NoError(t, vm.Unplug(ctx, i))
		s.gone(t)
	}
	again.work(t, ctx, vm, "after-unplug")
	// Plugged in again, as a new device with a new daemon, which the guest's driver needs a moment for.
	fresh := daemonOn(t, bin, dir, qemu.Share{Tag: "fresh", RequestQueues: 2, QueueSize: 256})
	_, err = vm.Plug(ctx, fresh.Share)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		var m guestproto.Mount
		return vm.Call(ctx, guestproto.CallMount, guestproto.MountArgs{Tag: fresh.Tag}, &m) == nil && m.OK
	}, 20*time.Second, 100*time.Millisecond)
	fresh.work(t, ctx, vm, "plugged")

	// The guest is killed in the middle of I/O.
	forget := again.writing(t, ctx, vm)
	vm.Kill()
	forget()
	fresh.gone(t)
	for _, s := range shares[2:] {
		s.gone(t)
	}
	for _, s := range shares {
		for q := 1; q <= s.RequestQueues; q++ {
			assert.Regexp(t, fmt.Sprintf(`queue ends.* queue=%d `, q), s.daemon.Log(), "%s: every queue served something", s.Tag)
		}
	}

	if long {
		// The next machine finds the daemon that keeps listening.
		vm = boot("second", again)
		again.work(t, ctx, vm, "second")
		exit, err := vm.PowerOff(ctx)
		require.NoError(t, err)
		assert.True(t, exit.Clean(), exit.String())
	}
	_, _, err = again.daemon.Exit(0)
	assert.ErrorIs(t, err, frontend.ErrRunning)
	again.daemon.Leave()
	again.gone(t)
	for _, s := range append(all, fresh) {
		for _, bad := range []string{"panic", "defect", "queue stopped", "request refused", "message refused"} {
			assert.False(t, strings.Contains(s.daemon.Log(), bad), "%s: %s", s.Tag, bad)
		}
	}
}
