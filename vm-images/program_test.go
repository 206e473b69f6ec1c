package vmimages

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/testenv"
)

// TestClosure unpacks a suite of one program and its library, both this machine's.
func TestClosure(t *testing.T) {
	testenv.Need(t, "apt") // a Debian machine, whose files stand where a package's do
	root := t.TempDir()
	lib := filepath.Join(root, "usr/lib/x86_64-linux-gnu/libc.so.6")
	program := filepath.Join(root, "usr/bin/true")
	for to, from := range map[string]string{program: "/bin/true", lib: "/lib/x86_64-linux-gnu/libc.so.6"} {
		b, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
		require.NoError(t, os.WriteFile(to, b, 0o755))
	}
	found, err := closure(root, program)
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"libc.so.6": lib}, found, "what it loads, without the loader")

	p := &Program{Name: "true", files: map[string]string{"true": program, "libc.so.6": lib}}
	dir := filepath.Join(t.TempDir(), "true")
	require.NoError(t, p.Install(dir))
	assert.FileExists(t, filepath.Join(dir, "libc.so.6"))
	assert.Equal(t, []string{"/root/true/ld-linux-x86-64.so.2", "--library-path", "/root/true", "/root/true/true"}, p.Argv("/root/true"), "it runs where it was put")

	require.NoError(t, os.Remove(lib))
	_, err = closure(root, program)
	assert.ErrorContains(t, err, "no package has the library libc.so.6; remedy: name its package in kernels.toml (with)")
}

func TestProgramsAreKnown(t *testing.T) {
	known, err := Known()
	require.NoError(t, err)
	for _, name := range []string{"fio", "git"} {
		_, ok := find(known.Programs, name)
		assert.True(t, ok, name)
	}
	_, err = EnsureProgram(t.Context(), Dirs{Cache: t.TempDir()}, "no-such", nil)
	assert.ErrorContains(t, err, "no program")
}
