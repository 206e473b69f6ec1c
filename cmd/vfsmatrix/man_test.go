package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the manual pages anew")

// manDir holds vfsmatrix(1) and a page of each sub-command.
const manDir = "../../docs/man"

func TestManUpToDate(t *testing.T) {
	t.Setenv("MATRIX_MUST", "") // a default that the page must not show
	pages := map[string][]byte{}
	var add func(c *cobra.Command)
	add = func(c *cobra.Command) {
		if !c.IsAvailableCommand() && c.HasParent() {
			return
		}
		c.DisableAutoGenTag = true
		var b bytes.Buffer
		// A date would make the page differ from one day to the next.
		require.NoError(t, doc.GenMan(c, &doc.GenManHeader{Section: "1", Source: "virtiofsd", Manual: "virtio-fs", Date: &time.Time{}}, &b))
		name := "vfsmatrix.1"
		if c.HasParent() {
			name = strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		}
		pages[name] = bytes.Replace(b.Bytes(), []byte(`"Jan 0001"`), []byte(`""`), 1)
		for _, sub := range c.Commands() {
			add(sub)
		}
	}
	add((&app{}).command())
	have, err := filepath.Glob(filepath.Join(manDir, "vfsmatrix*.1"))
	require.NoError(t, err)
	for _, file := range have {
		if _, ok := pages[filepath.Base(file)]; !ok {
			if *update {
				require.NoError(t, os.Remove(file))
			} else {
				t.Errorf("%s is of no command: make fix-docs", file)
			}
		}
	}
	for name, want := range pages {
		file := filepath.Join(manDir, name)
		if *update {
			require.NoError(t, os.WriteFile(file, want, 0o644))
			continue
		}
		got, err := os.ReadFile(file)
		require.NoError(t, err, "make fix-docs")
		assert.Equal(t, string(want), string(got), "%s is out of date: make fix-docs", name)
	}
}
