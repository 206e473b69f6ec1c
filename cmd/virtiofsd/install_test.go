package main_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/testenv"
)

// installed is what launchers, managers and shells look for, below PREFIX.
var installed = []string{
	"bin/virtiofsd",
	"lib/systemd/system/virtiofsd@.service",
	"lib/systemd/system/virtiofsd@.socket",
	"lib/systemd/user/virtiofsd@.service",
	"lib/systemd/user/virtiofsd@.socket",
	"libexec/virtiofsd",
	"share/bash-completion/completions/virtiofsd",
	"share/fish/vendor_completions.d/virtiofsd.fish",
	"share/man/man1/virtiofsd.1",
	"share/qemu/vhost-user/40-virtiofsd.json",
	"share/zsh/site-functions/_virtiofsd",
}

func tree(t *testing.T, root string) (all []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, strings.TrimPrefix(p, root+"/"))
		}
		return err
	}))
	return all
}

func making(t *testing.T, args ...string) {
	t.Helper()
	c := exec.Command("make", append([]string{"-s", "-C", "../.."}, args...)...)
	out, err := c.CombinedOutput()
	require.NoError(t, err, string(out))
}

func TestInstall(t *testing.T) {
	dest := t.TempDir()
	making(t, "install", "DESTDIR="+dest, "PREFIX=/usr")
	usr := filepath.Join(dest, "usr")
	assert.Equal(t, installed, tree(t, usr))
	for _, f := range installed {
		b, err := os.ReadFile(filepath.Join(usr, f))
		require.NoError(t, err)
		assert.NotEmpty(t, b, f)
		assert.NotRegexp(t, `@[A-Z]+@`, string(b[:min(len(b), 4096)]), f)
	}

	// libvirt's look-up (src/qemu/qemu_vhost_user.c): all files of the folder by name, the first of type fs counts, and one broken
	// file ends it. Debian 12 has 50-qemu-virtiofsd.json there, Debian 13 50-virtiofsd.json.
	b, err := os.ReadFile(filepath.Join(usr, "share/qemu/vhost-user/40-virtiofsd.json"))
	require.NoError(t, err)
	var found struct{ Type, Binary string }
	require.NoError(t, json.Unmarshal(b, &found))
	assert.Equal(t, "fs", found.Type)
	assert.Equal(t, "/usr/libexec/virtiofsd", found.Binary, "the path that AppArmor's profiles for libvirt allow")
	out, err := exec.Command(filepath.Join(dest, found.Binary), "--print-capabilities").Output()
	require.NoError(t, err)
	assert.True(t, json.Valid(out), string(out))

	t.Run("units", func(t *testing.T) {
		testenv.Need(t, "units")
		for _, manager := range []string{"system", "user"} {
			// verify wants the program of ExecStart to be there: it is, below dest.
			dir := t.TempDir()
			for _, unit := range []string{"virtiofsd@.service", "virtiofsd@.socket"} {
				b, err := os.ReadFile(filepath.Join(usr, "lib/systemd", manager, unit))
				require.NoError(t, err)
				b = []byte(strings.ReplaceAll(string(b), "ExecStart=/usr", "ExecStart="+usr))
				require.NoError(t, os.WriteFile(filepath.Join(dir, unit), b, 0o644))
			}
			c := exec.Command("systemd-analyze", "--"+manager, "--man=no", "--recursive-errors=no", "verify",
				filepath.Join(dir, "virtiofsd@data.service"), filepath.Join(dir, "virtiofsd@data.socket"))
			c.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
			out, err := c.CombinedOutput()
			assert.NoError(t, err, "%s: %s", manager, out)
			assert.NotContains(t, string(out), "virtiofsd@", manager)
		}
	})
}

// The prefix stands in what is installed, too.
func TestInstallPrefix(t *testing.T) {
	dest := t.TempDir()
	making(t, "install", "DESTDIR="+dest)
	for f, want := range map[string]string{
		"share/qemu/vhost-user/40-virtiofsd.json": `"/usr/local/libexec/virtiofsd"`,
		"lib/systemd/system/virtiofsd@.service":   "ExecStart=/usr/local/libexec/virtiofsd ",
	} {
		b, err := os.ReadFile(filepath.Join(dest, "usr/local", f))
		require.NoError(t, err)
		assert.Contains(t, string(b), want, f)
	}
}

// TestDeb packs and lists; it takes a module from the network, and so runs where it is asked for by name.
func TestDeb(t *testing.T) {
	testenv.Need(t, "long")
	making(t, "deb")
	debs, err := filepath.Glob("../../bin/virtiofsd-go_*.deb")
	require.NoError(t, err)
	require.Len(t, debs, 1)
	out, err := exec.Command("dpkg-deb", "-c", debs[0]).CombinedOutput()
	require.NoError(t, err, string(out))
	for _, f := range installed {
		f = strings.Replace(f, "zsh/site-functions", "zsh/vendor-completions", 1)
		if strings.HasSuffix(f, ".1") {
			f += ".gz"
		}
		assert.Regexp(t, `(?m) root/root .* \./usr/`+regexp.QuoteMeta(f)+`( -> .*)?$`, string(out))
	}
}

// TestBuiltWithCgo: whoever builds the program so is told, and not only by a child that fails.
func TestBuiltWithCgo(t *testing.T) {
	testenv.Need(t, "gcc")
	bin := filepath.Join(t.TempDir(), "virtiofsd")
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	out, err = exec.Command(bin, "--version").CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 1, exit.ExitCode())
	assert.Contains(t, string(out), "build it with CGO_ENABLED=0")
	assert.Equal(t, 1, strings.Count(string(out), "\n"))
}
