package config

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the generated pages instead of comparing them")

func TestReferenceUpToDate(t *testing.T) {
	for name, want := range map[string]string{"generated/options.md": Reference(), "man/virtiofsd.1": Manual()} {
		file := filepath.Join("../../docs", name)
		if *update {
			require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
			require.NoError(t, os.WriteFile(file, []byte(want), 0o644))
		}
		have, err := os.ReadFile(file)
		require.NoError(t, err, "remedy: make fix-docs")
		assert.True(t, string(have) == want, "docs/%s is out of date; remedy: make fix-docs", name)
	}
}

// TestDefaultsAreTheParsers: what the reference calls a default changes nothing when it is said.
func TestDefaultsAreTheParsers(t *testing.T) {
	seen := 0
	for _, f := range Flags() {
		d := defaultOf(f)
		if d == "" || strings.Contains(d, " ") {
			continue
		}
		seen++
		o, err := Parse([]string{"--" + f.Name + "=" + d})
		require.NoError(t, err, f.Name)
		want := Defaults()
		if f.Name == "posix-acl" || f.Name == "security-label" {
			want.Xattr = o.Xattr
		}
		assert.Equal(t, want, o, f.Name)
	}
	assert.GreaterOrEqual(t, seen, 9)
}

// TestDifferencesFromRustAreSaid: where the Rust daemon has an option and another default, the reference says so.
func TestDifferencesFromRustAreSaid(t *testing.T) {
	flags := map[string]Flag{}
	for _, f := range Flags() {
		flags[f.Name] = f
	}
	for name := range differences {
		f, ok := flags[name]
		assert.True(t, ok && f.Since == "" && !f.Hidden, "--%s is no option that both daemons have", name)
	}
	files, err := filepath.Glob("testdata/rust-*.options")
	require.NoError(t, err)
	seen := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		for line := range strings.Lines(string(b)) {
			words := strings.Fields(line)
			if len(words) != 3 || !strings.HasPrefix(words[0], "--") {
				continue
			}
			f := flags[strings.TrimPrefix(words[0], "--")]
			if f.Hidden || f.Name == "" {
				continue
			}
			seen++
			assert.True(t, defaultOf(f) == words[2] || differences[f.Name] != "", "%s: %s; --%s has the default %q here", file, strings.TrimSpace(line), f.Name, defaultOf(f))
		}
	}
	assert.Greater(t, seen, 10)
}

// TestEveryValueHasADefault: an option with an argument either has a default, or is one of those that have none.
func TestEveryValueHasADefault(t *testing.T) {
	none := []string{"shared-dir", "tag", "socket-path", "socket-group", "fd", "modcaps", "xattrmap", "translate-uid", "translate-gid", "report-fd", "ready-fd", "stats-fd", "single-user", "completion"}
	for _, f := range Flags() {
		if f.Arg != "" && !f.Hidden && defaultOf(f) == "" {
			assert.Contains(t, none, f.Name, "docs.go does not know the default of --%s", f.Name)
		}
	}
}

// TestPrintedCommandsAreUnderstood: every command line of the daemon that a page prints in a block of its own is one that we parse.
func TestPrintedCommandsAreUnderstood(t *testing.T) {
	var pages []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/launchers/*.md", "docs/generated/scenarios/*.md"} {
		names, err := filepath.Glob(filepath.Join("../..", pattern))
		require.NoError(t, err)
		pages = append(pages, names...)
	}
	seen := 0
	for _, page := range pages {
		src, err := os.ReadFile(page)
		require.NoError(t, err)
		for line := range strings.Lines(strings.ReplaceAll(string(src), "\\\n", "")) {
			if !strings.HasPrefix(line, "    ") || strings.ContainsAny(line, "…|#") {
				continue
			}
			words := strings.Fields(line)
			i := slices.IndexFunc(words, func(w string) bool { return filepath.Base(w) == "virtiofsd" })
			if i < 0 || i == len(words)-1 { // the name alone may be a directory's
				continue
			}
			var args []string
			for _, w := range words[i+1:] {
				if w == "&" {
					break
				}
				args = append(args, strings.Trim(w, "'"))
			}
			seen++
			o, err := Parse(args)
			if assert.NoError(t, err, "%s: %s", page, line) && !o.Help && !o.Version && !o.PrintCapabilities {
				assert.NoError(t, o.Validate(), "%s: %s", page, line)
			}
		}
	}
	assert.GreaterOrEqual(t, seen, 8)
}
