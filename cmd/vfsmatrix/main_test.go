package main

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// told runs the program, and returns its exit status and what it printed.
func told(t *testing.T, args ...string) (status int, out, errs string) {
	t.Helper()
	var files [2]*os.File
	for i, stream := range []**os.File{&os.Stdout, &os.Stderr} {
		f, err := os.CreateTemp(t.TempDir(), "")
		require.NoError(t, err)
		defer f.Close()
		was := *stream
		defer func() { *stream = was }()
		*stream, files[i] = f, f
	}
	status = run(t.Context(), args)
	var text [2]string
	for i, f := range files {
		_, err := f.Seek(0, io.SeekStart)
		require.NoError(t, err)
		b, err := io.ReadAll(f)
		require.NoError(t, err)
		text[i] = string(b)
	}
	return status, text[0], text[1]
}

// refused checks command lines for which nothing is done, and the one line that says why.
func refused(t *testing.T, says map[string]string) {
	t.Helper()
	for args, line := range says {
		status, out, errs := told(t, strings.Fields(args)...)
		assert.Equal(t, exitUsage, status, args)
		assert.Empty(t, out, args)
		assert.Equal(t, "vfsmatrix: "+line+"\n", errs, args)
	}
}

func TestHelpShowsFlagsAsTheyAreTyped(t *testing.T) {
	help := func(command string) string {
		status, out, _ := told(t, command, "--help")
		require.Equal(t, exitOK, status)
		assert.NotContains(t, out, "true|false")
		assert.NotContains(t, out, "(default )")
		return out
	}
	assert.Regexp(t, `(?m)^  -v, --verbose +say more`, help("fuzz"))
	assert.Regexp(t, `(?m)^      --scale\[=N\] +measure`, help("bench"))
	assert.Regexp(t, `(?m)^      --list +show`, help("selftest"))
}

func TestAMistakeHasOneRemedy(t *testing.T) {
	refused(t, map[string]string{
		"run --nonsense":         "unknown flag: --nonsense; see vfsmatrix run --help",
		"run --accel x":          `--accel "x" is not auto, kvm or tcg; see vfsmatrix run --help`,
		"nosuch":                 `unknown command "nosuch" for "vfsmatrix"; see vfsmatrix --help`,
		"run nosuch":             `there is no scenario "nosuch"; vfsmatrix list shows them`,
		"bench guest --rounds 0": "--rounds 0, --time 5s: both must be positive; see vfsmatrix bench guest --help",
	})
}
