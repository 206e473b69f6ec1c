package impl

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/scenario"
	"virtiofsd/internal/testenv"
)

func TestArgv(t *testing.T) {
	o := Options{SharedDir: "/srv", SocketPath: "/run/s", Options: scenario.Options{Sandbox: "namespace", Cache: "never", Xattr: true, ThreadPoolSize: 4}}
	c := &Impl{Name: "c", Dialect: DialectC, Path: "/c"}
	argv, err := c.Argv(o)
	require.NoError(t, err)
	assert.Equal(t, []string{"/c", "--socket-path=/run/s", "-o", "source=/srv,sandbox=namespace,cache=none,xattr", "--thread-pool-size=4"}, argv)

	c5 := &Impl{Name: "old", Dialect: DialectC5, Path: "/c"}
	argv, err = c5.Argv(o)
	require.NoError(t, err)
	assert.Equal(t, []string{"/c", "--socket-path=/run/s", "-o", "source=/srv,cache=none,xattr", "--thread-pool-size=4"}, argv, "it has no other sandbox")

	rust := &Impl{Name: "rust", Dialect: DialectRust, Path: "/r", Prefix: []string{"/ld.so", "--library-path", "/lib"}}
	o.UIDMap = []string{":0:100000:65536:"}
	argv, err = rust.Argv(o)
	require.NoError(t, err)
	assert.Equal(t, []string{"/ld.so", "--library-path", "/lib", "/r", "--socket-path=/run/s", "--shared-dir=/srv",
		"--sandbox=namespace", "--cache=never", "--xattr", "--thread-pool-size=4", "--uid-map=:0:100000:65536:"}, argv)
}

func TestWhatCannotBeSaid(t *testing.T) {
	c, rust := &Impl{Name: "c", Dialect: DialectC}, &Impl{Name: "rust", Dialect: DialectRust}
	ours := &Impl{Name: "ours", Dialect: DialectOurs}
	for _, tc := range []struct {
		impl *Impl
		o    scenario.Options
	}{
		{c, scenario.Options{Sandbox: "none"}}, {c, scenario.Options{Sandbox: "pivot_root"}}, {c, scenario.Options{Cache: "metadata"}}, {c, scenario.Options{Readonly: true}},
		{c, scenario.Options{UIDMap: []string{"x"}}}, {c, scenario.Options{Extra: []string{"x"}}}, {c, scenario.Options{Seccomp: "log"}}, {c, scenario.Options{NoFailSetgroups: true}},
		{rust, scenario.Options{Sandbox: "pivot_root"}}, {rust, scenario.Options{NoFailSetgroups: true}},
	} {
		_, err := tc.impl.Argv(Options{Options: tc.o})
		var no *InexpressibleError
		assert.True(t, errors.As(err, &no), "%s %+v: %v", tc.impl.Name, tc.o, err)
		if tc.impl != c {
			_, err = ours.Argv(Options{Options: tc.o})
			assert.NoError(t, err)
		}
	}
}

func TestDialects(t *testing.T) {
	assert.Equal(t, DialectC, dialectOf("virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"))
	assert.Equal(t, DialectC, dialectOf("using FUSE kernel interface version 7.32"), "QEMU 5.2")
	assert.Equal(t, DialectC5, dialectOf("using FUSE kernel interface version 7.31"), "QEMU 5.0 and 5.1")
	assert.Equal(t, DialectRust, dialectOf("virtiofsd 1.13.2"))
	assert.Equal(t, DialectOurs, dialectOf("virtiofsd 1.0 (go1.26)"))
	assert.Empty(t, dialectOf("busybox"))
}

func TestFindC(t *testing.T) {
	testenv.Need(t, "c-daemon")
	i, err := Find(t.Context(), "c", Dirs{})
	require.NoError(t, err)
	assert.Empty(t, i.Missing)
	assert.Len(t, i.SHA256, 64)
	assert.Contains(t, i.Version, "version 7.2")
}

func TestFindSaysWhatIsMissing(t *testing.T) {
	i, err := Find(t.Context(), "ours", Dirs{Bin: t.TempDir()})
	require.NoError(t, err)
	assert.Contains(t, i.Missing, "make build")
	_, err = i.Argv(Options{})
	assert.Error(t, err)
	_, err = Find(t.Context(), "nobody", Dirs{})
	assert.ErrorContains(t, err, "nobody")
	_, err = Find(t.Context(), "mine=/nonexist", Dirs{})
	assert.ErrorContains(t, err, "/nonexist is no program")

	odd := filepath.Join(t.TempDir(), "odd")
	require.NoError(t, os.WriteFile(odd, []byte("#!/bin/sh\necho something else\n"), 0o755))
	i, err = Find(t.Context(), "mine="+odd, Dirs{})
	require.NoError(t, err)
	assert.Equal(t, "mine", i.Name)
	assert.Contains(t, i.Missing, "no dialect")

	require.NoError(t, os.WriteFile(odd, []byte("#!/bin/sh\necho virtiofsd 1.13.2\n"), 0o755))
	t.Chdir(filepath.Dir(odd))
	i, err = Find(t.Context(), "mine=./odd", Dirs{})
	require.NoError(t, err)
	assert.Equal(t, odd, i.Path, "daemons are started in /")
}
