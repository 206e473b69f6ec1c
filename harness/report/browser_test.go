package report_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/html"

	"virtiofsd/internal/testenv"
)

// visit opens the matrix page in a browser without a window and returns the document as its script has left it. What the script logs
// or fails on is an error of the test.
func visit(t *testing.T, fragment string) *html.Node {
	t.Helper()
	page, err := filepath.Abs(filepath.Join(root, "docs/generated/matrix.html"))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--user-data-dir="+t.TempDir(),
		"--window-size=420,900", "--virtual-time-budget=5000", "--dump-dom", "file://"+page+fragment)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	cmd.WaitDelay = time.Second
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.Output()
	require.NoError(t, err, log.String())
	for line := range strings.Lines(log.String()) {
		assert.NotContains(t, line, ":CONSOLE", "the page's script")
	}
	doc, err := html.Parse(strings.NewReader(string(out)))
	require.NoError(t, err)
	return doc
}

func attribute(n *html.Node, key string) (string, bool) {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val, true
		}
	}
	return "", false
}

// shown counts the cells of the table's body that can be seen, by an attribute.
func shown(doc *html.Node, key string) map[string]int {
	seen := map[string]int{}
	var walk func(n *html.Node, hidden bool, area string)
	walk = func(n *html.Node, hidden bool, area string) {
		if _, h := attribute(n, "hidden"); h {
			hidden = true
		}
		if a, ok := attribute(n, "data-area"); ok {
			area = a
		}
		if n.Data == "td" && !hidden {
			if key == "data-area" {
				seen[area]++
			} else if v, ok := attribute(n, key); ok {
				seen[v]++
			}
		}
		for c := range n.ChildNodes() {
			walk(c, hidden, area)
		}
	}
	walk(doc, false, "")
	return seen
}

func keys(m map[string]int) (all []string) {
	for k := range m {
		all = append(all, k)
	}
	return all
}

func TestFiltersOfTheMatrixPage(t *testing.T) {
	testenv.Need(t, "chromium")
	whole := visit(t, "")
	assert.Greater(t, len(shown(whole, "data-s")), 20, "all scenarios are there without a filter")
	assert.Contains(t, keys(shown(whole, "data-i")), "c")
	for name, c := range map[string]struct {
		fragment, key string
		only          []string
	}{
		"daemons":  {"#?impl=ours+c", "data-i", []string{"ours", "c"}},
		"scenario": {"#?scenario=a-root", "data-s", []string{"a-root"}},
		"area":     {"#?area=identity", "data-area", []string{"identity"}},
	} {
		t.Run(name, func(t *testing.T) { assert.ElementsMatch(t, c.only, keys(shown(visit(t, c.fragment), c.key))) })
	}
	t.Run("differences", func(t *testing.T) {
		all, bad := shown(whole, "data-i"), shown(visit(t, "#?impl=ours&bad=1"), "data-i")
		assert.Less(t, bad["ours"], all["ours"]/4, "few rows are left where only ours is looked at")
	})
}
