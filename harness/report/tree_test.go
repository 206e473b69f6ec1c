package report

import (
	"bytes"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/text"

	"virtiofsd/harness/verdict"
)

const root = "../.."

// TestAdviceAgreesWithTheScenarios: a sentence of the best practices must be what its scenario expects.
func TestAdviceAgreesWithTheScenarios(t *testing.T) {
	b, err := load(root)
	require.NoError(t, err)
	p, err := b.loadPractices(os.DirFS(root))
	require.NoError(t, err)
	require.NotNil(t, p)
	assert.Empty(t, b.contradictions(p))
	var cases string
	for _, u := range p.Uses {
		cases += u.Case
	}
	assert.Equal(t, "ABCDE", cases, "each use case of the issue has its advice")
	assert.GreaterOrEqual(t, len(p.Questions), 10, "each question of the issue has its answer")
}

// TestLaunchersAreWhatTheAdviceSays: a launcher that the advice names for a use case is said to be of it on the launchers' page.
func TestLaunchersAreWhatTheAdviceSays(t *testing.T) {
	b, err := load(root)
	require.NoError(t, err)
	tree := os.DirFS(root)
	p, err := b.loadPractices(tree)
	require.NoError(t, err)
	l, err := b.loadLaunchers(tree)
	require.NoError(t, err)
	modes := map[string][]string{} // by the first word of a launcher's name
	for _, one := range l.Launchers {
		name := strings.Trim(strings.Fields(one.Name)[0], ",")
		modes[name] = append(modes[name], one.modes...)
		assert.NotEmpty(t, one.modes, one.Name)
	}
	named := 0
	for _, u := range p.Uses {
		for _, s := range u.When {
			for name, has := range modes {
				if strings.Contains(s.Source, " it this way") && strings.Contains(s.Source, name) {
					named++
					assert.Contains(t, has, u.Case, "%s: %s", name, s.Source)
				}
			}
		}
	}
	assert.Greater(t, named, 10)
}

// TestTroublesAreStillPrinted: an explained message must stand in the daemon's source.
func TestTroublesAreStillPrinted(t *testing.T) {
	tree := os.DirFS(root)
	all, err := messages(tree)
	require.NoError(t, err)
	assert.Greater(t, len(all), 50)
	tr, err := loadTroubles(tree)
	require.NoError(t, err)
	require.NotNil(t, tr)
	assert.Empty(t, tr.stale(all))
	assert.Equal(t, []string{"no such words"}, (&troubles{Errors: []trouble{{Seen: "no such words"}}}).stale(all))
}

// TestPromisesAreEnforced: the tests that promises name are there.
func TestPromisesAreEnforced(t *testing.T) {
	b, err := load(root)
	require.NoError(t, err)
	tree := os.DirFS(root)
	spec, err := b.loadSpecification(tree)
	require.NoError(t, err)
	require.NotNil(t, spec)
	missing, err := spec.missingTests(tree)
	require.NoError(t, err)
	assert.Empty(t, missing)
	missing, err = (&specification{Promises: []promise{{Parts: []part{{Tests: []string{"harness/report.TestNobodyWrote"}}}}}}).missingTests(tree)
	require.NoError(t, err)
	assert.Len(t, missing, 1)
}

// TestEvidenceCanBeJudgedAgain: what adoption left out is nothing that the rules need.
func TestEvidenceCanBeJudgedAgain(t *testing.T) {
	b, err := load(root)
	require.NoError(t, err)
	if b.run == nil {
		return // nothing is adopted: the pages say so
	}
	for _, c := range b.run.Cells {
		s := b.scenario(c.Scenario)
		if s == nil {
			continue
		}
		for _, r := range verdict.JudgeCell(s, b.claims, b.known, c, b.run.Observations[c.CellID]) {
			for _, e := range b.records[[3]string{r.Claim, r.Scenario, r.Impl}] {
				if e.Kernel == r.Kernel && e.Expected == r.Expected {
					assert.Equal(t, e.Verdict, r.Verdict, "%s in %s: %s; adopted: %s; remedy: bin/vfsmatrix docs --adopt docs/evidence", r.Claim, c.CellID, r.Because, e.Because)
				}
			}
		}
	}
}

// TestNoDeadLinks follows every link of every page: files must be there, and so must be headings and lines behind '#'.
func TestNoDeadLinks(t *testing.T) {
	pages := pages(t)
	checked := 0
	ids := map[string]map[string]bool{} // by page
	for name, src := range pages {
		ids[name] = map[string]bool{}
		for _, a := range anchors(src) {
			ids[name][a] = true
		}
	}
	count := map[string]int{} // lines, by file
	for name, src := range pages {
		for _, target := range targets(src) {
			u, err := url.Parse(target)
			if !assert.NoError(t, err, "%s: link %s", name, target) {
				continue
			}
			if u.Scheme != "" {
				continue // elsewhere
			}
			checked++
			file := name
			if u.Path != "" {
				file = path.Join(path.Dir(name), u.Path)
			}
			st, err := os.Stat(filepath.Join(root, filepath.FromSlash(file)))
			if !assert.NoError(t, err, "%s: dead link %s", name, target) || st.IsDir() || u.Fragment == "" {
				continue
			}
			if known, isPage := ids[file]; isPage {
				assert.True(t, known[u.Fragment], "%s: link %s leads to no heading", name, target)
				continue
			}
			line, err := strconv.Atoi(strings.TrimPrefix(u.Fragment, "L"))
			if !assert.NoError(t, err, "%s: link %s", name, target) {
				continue
			}
			if _, ok := count[file]; !ok {
				b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(file)))
				require.NoError(t, err)
				count[file] = bytes.Count(b, []byte("\n"))
			}
			assert.LessOrEqual(t, line, count[file], "%s: link %s", name, target)
		}
	}
	assert.Positive(t, checked)
}

// TestEveryPageIsReached: from README.md, link by link, a reader comes to every page.
func TestEveryPageIsReached(t *testing.T) {
	all := pages(t)
	seen, next := map[string]bool{"README.md": true}, []string{"README.md"}
	for len(next) > 0 {
		page := next[0]
		next = next[1:]
		for _, target := range targets(all[page]) {
			u, err := url.Parse(target)
			require.NoError(t, err, "%s: %s", page, target)
			file := path.Join(path.Dir(page), u.Path)
			if _, isPage := all[file]; u.Scheme == "" && u.Path != "" && isPage && !seen[file] {
				seen[file] = true
				next = append(next, file)
			}
		}
	}
	for name := range all {
		assert.True(t, seen[name], "no link leads to %s", name)
	}
	for _, name := range []string{"docs/generated/options.md", "docs/generated/decide.md", "SECURITY.md", "SPECIFICATION.md", "CONTRIBUTING.md", "docs/best-practices.md"} {
		assert.True(t, strings.Contains(string(all["README.md"]), "]("+name), "README.md has no link to %s, which everybody needs", name)
	}
}

// TestHelpListsEveryTarget: what can be made is in `make help`, by the pattern of its awk.
func TestHelpListsEveryTarget(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "Makefile"))
	require.NoError(t, err)
	var targets []string
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z -]*):(?: .*)?$`).FindAllStringSubmatch(string(b), -1) {
		if !regexp.MustCompile(`^[a-z -]+: [A-Z]+ =`).MatchString(m[0]) { // a variable of the target's
			targets = append(targets, strings.Fields(m[1])...)
		}
	}
	assert.Greater(t, len(targets), 20)
	for _, name := range targets {
		assert.True(t, regexp.MustCompile(`(?m)^`+name+`:.*## `).Match(b), "make help does not list %s", name)
	}
}

// pages are the Markdown and HTML pages of the tree.
func pages(t *testing.T) map[string][]byte {
	all := map[string][]byte{}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/generated/*.md", "docs/generated/*.html", "docs/generated/*/*.md", "docs/evidence/*.md", scriptsDir + "/*.md"} {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		require.NoError(t, err)
		for _, n := range names {
			b, err := os.ReadFile(n)
			require.NoError(t, err)
			rel, err := filepath.Rel(root, n)
			require.NoError(t, err)
			all[filepath.ToSlash(rel)] = b
		}
	}
	return all
}

var (
	htmlLink = regexp.MustCompile(`(?:href|src)="([^"]*)"`)
	htmlID   = regexp.MustCompile(`\bid="([^"]*)"`)
)

func parse(src []byte) ast.Node {
	md := goldmark.New(goldmark.WithExtensions(extension.GFM), goldmark.WithParserOptions(parser.WithAutoHeadingID()))
	return md.Parser().Parse(text.NewReader(src))
}

func isHTML(src []byte) bool { return bytes.HasPrefix(src, []byte("<!DOCTYPE")) }

// targets are the links of a page.
func targets(src []byte) []string {
	var all []string
	for _, m := range htmlLink.FindAllSubmatch(src, -1) {
		all = append(all, string(m[1]))
	}
	if isHTML(src) {
		return all
	}
	_ = ast.Walk(parse(src), func(n ast.Node, entering bool) (ast.WalkStatus, error) { // the walker below never fails
		if entering {
			switch n := n.(type) {
			case *ast.Link:
				all = append(all, string(n.Destination))
			case *ast.Image:
				all = append(all, string(n.Destination))
			}
		}
		return ast.WalkContinue, nil
	})
	return all
}

// anchors are what links into a page may name: ids, and headings as forges make them.
func anchors(src []byte) []string {
	var all []string
	for _, m := range htmlID.FindAllSubmatch(src, -1) {
		all = append(all, string(m[1]))
	}
	if isHTML(src) {
		return all
	}
	_ = ast.Walk(parse(src), func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if h, ok := n.(*ast.Heading); ok && entering {
			if id, ok := h.AttributeString("id"); ok {
				all = append(all, string(id.([]byte)))
			}
		}
		return ast.WalkContinue, nil
	})
	return all
}
