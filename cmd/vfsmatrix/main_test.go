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

func TestAnUnknownNameIsAMistake(t *testing.T) {
	const run, kernel = "/nonexist: no run there; ls runs/", `there is no guest kernel "9.9"; vfsmatrix list shows them, or name the path of a kernel image`
	const fault = `there is no fault "nosuch"; vfsmatrix selftest --list shows them`
	refused(t, map[string]string{
		"judge /nonexist":                run,
		"run --resume /nonexist a-root":  run,
		"docs --adopt /nonexist":         run,
		"compare /nonexist /nonexist":    run,
		"merge /nonexist/into /nonexist": run,
		"run --kernel 9.9 a-root":        kernel,
		"boot --share . --kernel 9.9":    kernel,
		"bench guest --kernel 9.9":       kernel,
		"cells --kernel 9.9":             kernel,
		"images 9.9":                     kernel,
		"images /nonexist":               strings.Replace(kernel, "9.9", "/nonexist", 1),
		"selftest nosuch":                fault,
		"selftest --list nosuch":         fault,
	})
	status, out, _ := told(t, "selftest", "--list", "hangs")
	assert.Equal(t, exitOK, status)
	assert.Contains(t, out, "hangs")
	assert.NotContains(t, out, "keeps-groups")
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
		"compare a":              "compare takes OLD and NEW; see vfsmatrix compare --help",
		"merge a":                "merge takes INTO and RUN...; see vfsmatrix merge --help",
		"explain":                "explain takes ID; see vfsmatrix explain --help",
		"judge a b":              "judge takes [RUN]; see vfsmatrix judge --help",
		"boot":                   "--share is missing; name the directory to share",
		"bench guest --rounds 0": "--rounds 0, --time 5s: both must be positive; see vfsmatrix bench guest --help",
	})
}
