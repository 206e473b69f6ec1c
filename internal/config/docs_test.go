package config

import (
	"flag"
	"os"
	"path/filepath"
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

// TestEveryValueHasADefault: an option with an argument either has a default, or is one of those that have none.
func TestEveryValueHasADefault(t *testing.T) {
	none := []string{"shared-dir", "tag", "socket-path", "socket-group", "fd", "modcaps", "xattrmap", "translate-uid", "translate-gid"}
	for _, f := range Flags() {
		if f.Arg != "" && !f.Hidden && defaultOf(f) == "" {
			assert.Contains(t, none, f.Name, "docs.go does not know the default of --%s", f.Name)
		}
	}
}
