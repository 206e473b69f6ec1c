package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/testenv"
)

// booter is a clone of the tree, as far as boot needs it, that an ordinary user may own.
type booter struct {
	tree, share, cache string
	as                 *syscall.Credential
	before             []string // goes before the command lines of run
}

// programs builds what the tree's bin/ holds, once, with the flags of the Makefile.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "boot")
	if err != nil {
		return "", err
	}
	c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", "virtiofsd/cmd/virtiofsd", "virtiofsd/cmd/vfsmatrix", "virtiofsd/cmd/vfsguest")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

// newBooter makes a clone; packages that the machine's cache has are linked, so that they are fetched once only.
func newBooter(t *testing.T, uid int) *booter {
	t.Helper()
	testenv.Need(t, "root", "qemu", "apt")
	dir, err := os.MkdirTemp("", "boot") // t.TempDir is nobody else's
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	b := &booter{tree: filepath.Join(dir, "tree"), share: filepath.Join(dir, "share"), cache: filepath.Join(dir, "cache")}
	require.NoError(t, os.MkdirAll(filepath.Join(b.tree, "vm-images"), 0o755))
	require.NoError(t, os.CopyFS(filepath.Join(b.tree, scenariosDir), os.DirFS("../../"+scenariosDir)))
	require.NoError(t, os.WriteFile(filepath.Join(b.tree, "go.mod"), nil, 0o644))
	bin, err := programs()
	require.NoError(t, err)
	require.NoError(t, os.CopyFS(filepath.Join(b.tree, "bin"), os.DirFS(bin)))
	require.NoError(t, os.Mkdir(b.share, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(b.share, "hello"), []byte("hello\n"), 0o644))
	if ours, err := cache(); err == nil {
		link(t, filepath.Join(ours, "unpacked"), filepath.Join(b.cache, "vfsmatrix", "unpacked"))
	}
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !strings.HasPrefix(p, filepath.Join(b.cache, "vfsmatrix", "unpacked")+"/") {
			err = os.Lchown(p, uid, uid)
		}
		return err
	}))
	b.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid), Groups: []uint32{}}
	return b
}

// link makes to what from is, of hard links where it can.
func link(t *testing.T, from, to string) {
	t.Helper()
	if _, err := os.Stat(from); err != nil {
		return // what is not there is fetched
	}
	require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
	if exec.Command("cp", "-al", from, to).Run() != nil {
		require.NoError(t, os.RemoveAll(to))
		out, err := exec.Command("cp", "-a", from, to).CombinedOutput()
		require.NoError(t, err, string(out))
	}
}

// run runs the command line, from the tree; stdin is its standard input.
func (b *booter) run(t *testing.T, stdin string, argv ...string) (status int, stdout, stderr string) {
	t.Helper()
	argv = append(slices.Clone(b.before), argv...)
	c := exec.Command(argv[0], argv[1:]...)
	c.Dir, c.Stdin = b.tree, strings.NewReader(stdin)
	c.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "HOME=" + b.cache, "XDG_CACHE_HOME=" + b.cache, "TERM=vt100"}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: b.as, Pdeathsig: syscall.SIGKILL}
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	require.NoError(t, c.Start())
	timer := time.AfterFunc(4*time.Minute, func() { _ = c.Process.Kill() })
	defer timer.Stop()
	_ = c.Wait() // the status says it
	t.Logf("%v: %d\n%s%s", argv, c.ProcessState.ExitCode(), out.String(), errs.String())
	return c.ProcessState.ExitCode(), out.String(), errs.String()
}

const bootUser = 1500

func TestBootCommand(t *testing.T) {
	for who, uid := range map[string]int{"root": 0, "user": bootUser} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			b := newBooter(t, uid)
			// The three streams and the status are the command's, and the share is the directory.
			status, out, errs := b.run(t, "from the host\n", "bin/vfsmatrix", "boot", "--share", "../share", "--",
				"sh", "-c", "ls /mnt | head; cat; echo on the guest >&2; echo $PWD >made; exit 7")
			assert.Equal(t, 7, status)
			assert.Equal(t, "hello\nfrom the host\n", out)
			assert.Contains(t, errs, "on the guest\n")
			made, err := os.ReadFile(filepath.Join(b.share, "made"))
			require.NoError(t, err)
			assert.Equal(t, "/mnt\n", string(made))
			st, err := os.Stat(filepath.Join(b.share, "made"))
			require.NoError(t, err)
			assert.EqualValues(t, uid, st.Sys().(*syscall.Stat_t).Uid)
		})
	}
}

// The other ways of a user: a range of /etc/subuid, which is there for this test only, and a user namespace around the daemon.
func TestBootModesOfAUser(t *testing.T) {
	testenv.Need(t, "userns", "newuidmap")
	for mode, owners := range map[string][2]int{"C": {bootUser, 100004}, "D": {bootUser, -1}} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			b := newBooter(t, bootUser)
			var binds []string
			for name, line := range map[string]string{
				"passwd": "matrix:x:1500:1500::/:/bin/sh\n", "group": "matrix:x:1500:\n", "subuid": "matrix:100000:65536\n", "subgid": "matrix:100000:65536\n",
			} {
				old, err := os.ReadFile("/etc/" + name)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(filepath.Join(b.tree, name), append(old, line...), 0o644))
				binds = append(binds, "mount --bind "+name+" /etc/"+name)
			}
			require.NoError(t, os.Chmod(b.share, 0o777))
			b.as = nil
			b.before = []string{"unshare", "--mount", "sh", "-c", strings.Join(binds, "&&") + ` && exec setpriv --reuid 1500 --regid 1500 --clear-groups "$@"`, "sh"}
			status, out, errs := b.run(t, "", "bin/vfsmatrix", "boot", "--share", "../share", "--mode", mode, "--",
				"sh", "-c", "stat -c %u hello; touch roots; touch theirs; chown 5 theirs; chmod 600 theirs")
			assert.Equal(t, "0\n", out, errs)
			for i, name := range []string{"roots", "theirs"} {
				st, err := os.Stat(filepath.Join(b.share, name))
				require.NoError(t, err)
				if owners[i] >= 0 {
					assert.EqualValues(t, owners[i], st.Sys().(*syscall.Stat_t).Uid, name)
				}
			}
			assert.Equal(t, 0, status)
			assert.Equal(t, mode == "D", strings.Contains(errs, "chown: "), "one id has nobody to give a file to")
		})
	}
}

// A shell, on a terminal that script(1) makes, as a user in mode E; what is typed is the shell's.
func TestBootShell(t *testing.T) {
	b := newBooter(t, bootUser)
	status, out, _ := b.run(t, "tty; stty size; echo $((6*7)) >answer; kill -9 $$\n",
		"script", "-qec", "stty rows 33 cols 99; bin/vfsmatrix boot --share ../share --mode E", "/dev/null")
	assert.Equal(t, 137, status)
	assert.Contains(t, out, "33 99")
	answer, err := os.ReadFile(filepath.Join(b.share, "answer"))
	require.NoError(t, err)
	assert.Equal(t, "42\n", string(answer))
}

// A guest whose daemon dies is given up, and the daemon's last line told.
func TestBootTellsOfADaemonThatDies(t *testing.T) {
	b := newBooter(t, 0)
	mortal := filepath.Join(b.tree, "bin", "mortal")
	require.NoError(t, os.WriteFile(mortal, []byte(`#!/bin/sh
case $1 in --version) exec `+b.tree+`/bin/virtiofsd --version;; esac
(while ! [ -e `+b.share+`/die ]; do sleep 0.1; done; kill -9 $$) &
exec `+b.tree+`/bin/virtiofsd "$@"
`), 0o755))
	status, out, errs := b.run(t, "", "bin/vfsmatrix", "boot", "--share", "../share", "--impl", "mortal=bin/mortal", "--", "sh", "-c", "echo begun; sleep 2; touch die; while ls; do :; done >/dev/null")
	assert.Equal(t, exitHarness, status)
	assert.Equal(t, "begun\n", out)
	assert.Contains(t, errs, "the daemon ended with status 137: ")
}

func TestBootRefuses(t *testing.T) {
	b := newBooter(t, bootUser)
	for _, tc := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"--share", "../nowhere"}, exitUsage, "is not a directory"},
		{[]string{"--share", "../share", "ls"}, exitUsage, "stands after --"},
		{[]string{"--share", "../share", "--mode", "F"}, exitUsage, "is not A, B, C, D, E or a scenario"},
		{[]string{"--share", "../share", "--mode", "A"}, exitHarness, "remedy: run as root"},
		{[]string{"--share", "../share", "--mode", "C"}, exitHarness, "remedy: as root, usermod --add-subuids"},
		{[]string{"--share", "../share", "--qemu", "no-such-qemu"}, exitUsage, "name one that is there"},
		{[]string{"--share", "../share", "--option=--nonsense"}, exitHarness, "--nonsense"},
	} {
		status, out, errs := b.run(t, "", append([]string{"bin/vfsmatrix", "boot"}, tc.args...)...)
		assert.Equal(t, tc.status, status, tc.args)
		assert.Empty(t, out)
		assert.Contains(t, errs, tc.says, tc.args)
		assert.Equal(t, 1, strings.Count(errs, "vfsmatrix: "), errs)
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "vfsmatrix-*"))
	require.NoError(t, err)
	for _, d := range left {
		st, err := os.Stat(d)
		if err == nil {
			assert.NotEqualValues(t, bootUser, st.Sys().(*syscall.Stat_t).Uid, fmt.Sprintf("%s is left", d))
		}
	}
}
