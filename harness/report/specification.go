package report

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"virtiofsd/harness/claim"
)

// specificationFile holds the promises, each with what enforces it.
const specificationFile = "docs/specification.toml"

type specification struct {
	Promises []promise `toml:"promise"`
}

type promise struct {
	Title string `toml:"title"`
	Says  string `toml:"says"`
	Parts []part `toml:"part"`
}

// part is one statement that can be true or false, with what enforces it: tests of the tree, and claims in scenarios. Pending says what
// is missing where nothing does, or not all of it.
type part struct {
	Says    string   `toml:"says"`
	Tests   []string `toml:"tests"` // folder.TestName
	Claim   string   `toml:"claim"`
	In      []string `toml:"in"`
	Pending string   `toml:"pending"`
}

func (b *book) loadSpecification(tree fs.FS) (*specification, error) {
	s, err := loadTable[specification](tree, specificationFile, "the promises")
	if s == nil {
		return nil, err
	}
	for _, p := range s.Promises {
		for _, q := range p.Parts {
			switch {
			case q.Says == "":
				return nil, fmt.Errorf("%s: %s: a part says nothing", specificationFile, p.Title)
			case len(q.Tests) == 0 && q.Claim == "" && q.Pending == "":
				return nil, fmt.Errorf("%s: %q has neither test nor claim: say what is pending", specificationFile, q.Says)
			case q.Claim != "" && len(q.In) == 0:
				return nil, fmt.Errorf("%s: %q: in which scenario?", specificationFile, q.Says)
			case q.Claim != "" && !slices.ContainsFunc(b.claims, func(c claim.Claim) bool { return c.ID == q.Claim }):
				return nil, fmt.Errorf("%s: %q: unknown claim %q", specificationFile, q.Says, q.Claim)
			}
		}
	}
	return s, nil
}

var testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w*)\(`)

// findTest is the file that has a test, "" where there is none.
func findTest(tree fs.FS, test string) (string, error) {
	dir, name, ok := strings.Cut(test, ".")
	if !ok {
		return "", nil
	}
	files, err := fs.Glob(tree, path.Join(dir, "*_test.go"))
	if err != nil {
		return "", err
	}
	for _, f := range files {
		src, err := fs.ReadFile(tree, f)
		if err != nil {
			return "", fmt.Errorf("look for %s: %w", test, err)
		}
		for _, m := range testFunc.FindAllSubmatch(src, -1) {
			if string(m[1]) == name {
				return f, nil
			}
		}
	}
	return "", nil
}

// specificationPage is SPECIFICATION.md.
func (b *book) specificationPage(s *specification, tree fs.FS) (string, error) {
	l := links{Evidence: "docs/evidence/", Scenarios: "docs/generated/scenarios/", Claims: "docs/generated/claims.md"}
	var w strings.Builder
	w.WriteString(strings.Replace(generatedNote, "what it comes from", specificationFile, 1))
	w.WriteString("# Specification\n\nWhat `virtiofsd` promises, and what enforces it. Tests run with `make test`, their long forms with `make test-long`; claims were judged in the adopted run of the matrix " +
		"([best practices](docs/best-practices.md), [all claims](docs/generated/claims.md)). What nothing enforces yet says **pending**. A broken promise is a bug, " +
		"whatever the code says; [how to report it](SECURITY.md).\n\n")
	for i, p := range s.Promises {
		fmt.Fprintf(&w, "## %d. %s\n\n%s\n\n", i+1, p.Title, p.Says)
		var rows [][]string
		for _, q := range p.Parts {
			var by []string
			for _, t := range q.Tests {
				file, err := findTest(tree, t)
				if err != nil {
					return "", err
				}
				if file == "" {
					by = append(by, "**pending**: no test "+t)
					continue
				}
				by = append(by, "test "+mdLink(strings.SplitN(t, ".", 2)[1], file))
			}
			if q.Claim != "" {
				for _, id := range q.In {
					by = append(by, b.proof(q.Claim, id, l))
				}
			}
			if q.Pending != "" {
				by = append(by, "**pending**: "+q.Pending)
			}
			rows = append(rows, []string{cellText(q.Says), strings.Join(by, "<br>")})
		}
		mdTable(&w, []string{"promise", "enforced by"}, rows)
	}
	return w.String(), nil
}

// missingTests are tests that promises name and the tree has not.
func (s *specification) missingTests(tree fs.FS) (bad []string, err error) {
	for _, p := range s.Promises {
		for _, q := range p.Parts {
			for _, t := range q.Tests {
				file, err := findTest(tree, t)
				if err != nil {
					return nil, err
				}
				if file == "" {
					bad = append(bad, t)
				}
			}
		}
	}
	return bad, nil
}
