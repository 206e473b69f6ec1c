package report

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
	"virtiofsd/harness/verdict"
)

// Folders of the tree, relative to its root.
const (
	scenariosDir = "scenarios"
	claimsDir    = "scenarios/claims"
	docsDir      = "docs"
	generatedDir = "docs/generated"
	evidenceDir  = "docs/evidence"
)

// elsewhere are pages in docs/generated that other tests of the tree write and check.
var elsewhere = []string{"docs/generated/decide.md", "docs/generated/escapes.md", "docs/generated/opcodes.md", "docs/generated/options.md"}

// Page makes a run folder's own report: report.md and report.html, with links into the folder.
func Page(run *result.Stored, claims []claim.Claim, areas []claim.Area, scenarios []*scenario.Scenario, known []scenario.Known) (map[string][]byte, error) {
	var took []*scenario.Scenario
	for _, s := range scenarios {
		if slices.ContainsFunc(run.Cells, func(c result.Cell) bool { return c.Scenario == s.ID }) {
			took = append(took, s)
		}
	}
	b := newBook(run, claims, areas, took, known)
	l := links{Scenarios: "-", Claims: "-"}
	page, err := b.html(l)
	if err != nil {
		return nil, err
	}
	text := strings.TrimPrefix(b.matrix(l, "report.html"), generatedNote)
	return map[string][]byte{"report.md": []byte(text), "report.html": page}, nil
}

// Docs computes all generated pages of the tree: path relative to the root, with slashes, to contents. It reads scenarios/ and docs/
// and nothing else.
func Docs(root string) (map[string][]byte, error) {
	b, err := load(root)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	l := links{Evidence: "../evidence/", Scenarios: "scenarios/", Claims: "claims.md"}
	out[generatedDir+"/matrix.md"] = []byte(b.matrix(l, "matrix.html"))
	if out[generatedDir+"/matrix.html"], err = b.html(l); err != nil {
		return nil, err
	}
	faults, err := LoadFaults(os.DirFS(root))
	if err != nil {
		return nil, err
	}
	out[generatedDir+"/faults.md"] = []byte(b.faultsPage(faults))
	out[generatedDir+"/claims.md"] = []byte(b.claimsPage(l, faults, rule))
	for _, s := range b.scenarios {
		svg, drawn := b.picture(s)
		if drawn {
			out[generatedDir+"/scenarios/"+s.ID+".svg"] = []byte(svg)
		}
		out[generatedDir+"/scenarios/"+s.ID+".md"] = []byte(b.scenarioPage(links{Evidence: "../../evidence/", Scenarios: "", Claims: "../claims.md"}, s, drawn))
	}
	tree := os.DirFS(root)
	t, err := loadTroubles(tree)
	if err != nil {
		return nil, err
	}
	if t != nil {
		all, err := messages(tree)
		if err != nil {
			return nil, err
		}
		out[docsDir+"/troubleshooting.md"] = []byte(t.page(all))
	}
	record, err := trackRecordPage(tree)
	if err != nil {
		return nil, err
	}
	if record != nil {
		out[trackRecord] = record
	}
	m, err := loadBench(tree)
	if err != nil {
		return nil, err
	}
	out[generatedDir+"/benchmarks.md"] = []byte(benchPage(m))
	if m.rings != nil {
		out[generatedDir+"/benchmarks.svg"] = []byte(benchChart(m.rings))
	}
	spec, err := b.loadSpecification(tree)
	if err != nil {
		return nil, err
	}
	if spec != nil {
		text, err := b.specificationPage(spec, tree)
		if err != nil {
			return nil, err
		}
		out["SPECIFICATION.md"] = []byte(text)
	}
	p, err := b.loadPractices(tree)
	if err != nil {
		return nil, err
	}
	if p != nil {
		text, err := b.practicesPage(p, links{Evidence: "evidence/", Scenarios: "generated/scenarios/", Claims: "generated/claims.md"})
		if err != nil {
			return nil, err
		}
		out[docsDir+"/best-practices.md"] = []byte(text)
	}
	who, err := b.loadLaunchers(tree)
	if err != nil {
		return nil, err
	}
	if who != nil {
		text, err := b.launchersPage(who, tree)
		if err != nil {
			return nil, err
		}
		out[launchersPage] = []byte(text)
	}
	for name, text := range out {
		out[name] = append(bytes.TrimRight(text, "\n"), '\n')
	}
	return out, nil
}

func rule(name string) (means, of string) {
	r := verdict.Rules()[name]
	return r.Means, r.Of
}

// load reads the tree. Without evidence, book.run is nil; broken evidence is an error.
func load(root string) (*book, error) {
	run, err := evidence(os.DirFS(root))
	if err != nil {
		return nil, err
	}
	return loadWith(root, run)
}

// loadWith reads the tree's claims and scenarios, to be told of with another run than the adopted one.
func loadWith(root string, run *result.Stored) (*book, error) {
	tree := os.DirFS(root)
	areas, err := claim.LoadAreas(tree, claimsDir)
	if err != nil {
		return nil, err
	}
	claims, err := claim.Load(tree, claimsDir)
	if err != nil {
		return nil, err
	}
	scenarios, err := scenario.Load(tree, scenariosDir, claims)
	if err != nil {
		return nil, err
	}
	known, err := scenario.LoadKnown(tree, scenariosDir, claims)
	if err != nil {
		return nil, err
	}
	return newBook(run, claims, areas, scenarios, known), nil
}

// evidence reads the adopted run; nil where there is none.
func evidence(tree fs.FS) (*result.Stored, error) {
	if _, err := fs.Stat(tree, evidenceDir+"/"+result.RunFile); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	sub, err := fs.Sub(tree, evidenceDir)
	if err != nil {
		return nil, err
	}
	run, err := result.Read(sub)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; remedy: adopt a whole run again", evidenceDir, err)
	}
	return run, nil
}

// Write writes the generated pages under root, and removes those of docs/generated that no longer belong.
func Write(root string) error {
	pages, err := Docs(root)
	if err != nil {
		return err
	}
	for _, name := range sortedKeys(pages) {
		file := filepath.Join(root, filepath.FromSlash(name))
		old, err := os.ReadFile(file)
		if err == nil && bytes.Equal(old, pages[name]) {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return fmt.Errorf("make the folder of %s: %w", name, err)
		}
		if err := os.WriteFile(file, pages[name], 0o644); err != nil {
			return fmt.Errorf("write the page: %w", err)
		}
	}
	extra, err := strays(root, pages)
	if err != nil {
		return err
	}
	for _, name := range extra {
		if err := os.Remove(filepath.Join(root, filepath.FromSlash(name))); err != nil {
			return fmt.Errorf("remove a page that no longer belongs: %w", err)
		}
	}
	return nil
}

// Check compares the tree's generated pages with what [Docs] computes. The error names each page that differs, is missing or does
// not belong.
func Check(root string) error {
	pages, err := Docs(root)
	if err != nil {
		return err
	}
	var bad []string
	for _, name := range sortedKeys(pages) {
		old, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			bad = append(bad, name+" is missing")
		case err != nil:
			return fmt.Errorf("check the pages: %w", err)
		case !bytes.Equal(old, pages[name]):
			bad = append(bad, fmt.Sprintf("%s differs from line %d on", name, firstDifference(old, pages[name])))
		}
	}
	extra, err := strays(root, pages)
	if err != nil {
		return err
	}
	for _, name := range extra {
		bad = append(bad, name+" does not belong")
	}
	if len(bad) > 0 {
		return fmt.Errorf("generated pages are out of date: %s; remedy: make fix-docs", strings.Join(bad, ", "))
	}
	return nil
}

func firstDifference(x, y []byte) int {
	a, b := bytes.Split(x, []byte("\n")), bytes.Split(y, []byte("\n"))
	for i := range min(len(a), len(b)) {
		if !bytes.Equal(a[i], b[i]) {
			return i + 1
		}
	}
	return min(len(a), len(b)) + 1
}

// strays are files of docs/generated that are no page of ours and nobody else's.
func strays(root string, pages map[string][]byte) ([]string, error) {
	var all []string
	err := fs.WalkDir(os.DirFS(root), generatedDir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name == generatedDir {
			return fs.SkipAll
		}
		if err != nil || d.IsDir() {
			return err
		}
		if _, ours := pages[path.Clean(name)]; !ours && !slices.Contains(elsewhere, name) {
			all = append(all, name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", generatedDir, err)
	}
	return all, nil
}

// loadTable reads a TOML file of the pages' text; nil, and no error, where the tree has none. An unknown key is an error. what is said where it cannot
// be read.
func loadTable[T any](tree fs.FS, file, what string) (*T, error) {
	text, err := fs.ReadFile(tree, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	t := new(T)
	if err := claim.Strict(text, t); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return t, nil
}
