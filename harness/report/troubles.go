package report

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// troublesFile explains messages and symptoms.
const troublesFile = "docs/troubleshooting.toml"

// messageDirs are the packages whose errors end the daemon with one line.
var messageDirs = []string{"internal/config", "internal/idmap", "internal/sandbox", "internal/seccomp", "internal/daemon"}

type troubles struct {
	Errors   []trouble `toml:"error"`
	Symptoms []trouble `toml:"symptom"`
}

// trouble is what is seen, why, and what helps.
type trouble struct {
	Seen   string `toml:"seen"` // of an error: a piece of the daemon's message; of a symptom: what people see
	Cause  string `toml:"cause"`
	Remedy string `toml:"remedy"`
}

// message is a line that the daemon can print, with … where it puts in names and numbers.
type message struct{ text, dir string }

// remedy splits a message at its last semicolon: by the tree's rule, what helps stands behind it.
func (m message) remedy() (what, remedy string) {
	i := strings.LastIndex(m.text, "; ")
	if i < 0 {
		return m.text, ""
	}
	return m.text[:i], m.text[i+2:]
}

var verb = regexp.MustCompile(`'?%[-+#0-9.]*[a-zA-Z]'?`)

// messages reads the daemon's errors out of its source: the texts of errors.New and fmt.Errorf.
func messages(tree fs.FS) ([]message, error) {
	var all []message
	for _, dir := range messageDirs {
		names, err := fs.Glob(tree, path.Join(dir, "*.go"))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			src, err := fs.ReadFile(tree, name)
			if err != nil {
				return nil, fmt.Errorf("read the daemon's messages: %w", err)
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, src, 0)
			if err != nil {
				return nil, fmt.Errorf("read the daemon's messages: %w", err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if text, ok := errorText(n); ok {
					m := message{strings.TrimSpace(verb.ReplaceAllString(text, "…")), dir}
					if !slices.Contains(all, m) {
						all = append(all, m)
					}
				}
				return true
			})
		}
	}
	return all, nil
}

// errorText is the text of a call that makes an error.
func errorText(n ast.Node) (string, bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return "", false
	}
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", false
	}
	pkg, ok := f.X.(*ast.Ident)
	if !ok || pkg.Name+"."+f.Sel.Name != "fmt.Errorf" && pkg.Name+"."+f.Sel.Name != "errors.New" {
		return "", false
	}
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil
}

// loadTroubles reads the file; nil where the tree has none.
func loadTroubles(tree fs.FS) (*troubles, error) {
	t, err := loadTable[troubles](tree, troublesFile, "the troubles")
	if t == nil {
		return nil, err
	}
	for _, e := range slices.Concat(t.Errors, t.Symptoms) {
		if e.Seen == "" || e.Cause == "" || e.Remedy == "" {
			return nil, fmt.Errorf("%s: %q: seen, cause and remedy must be said", troublesFile, e.Seen)
		}
	}
	return t, nil
}

// stale are explanations of messages that the daemon does not print any more.
func (t *troubles) stale(all []message) []string {
	var bad []string
	for _, e := range t.Errors {
		if !slices.ContainsFunc(all, func(m message) bool { return strings.Contains(m.text, e.Seen) }) {
			bad = append(bad, e.Seen)
		}
	}
	return bad
}

// page is docs/troubleshooting.md.
func (t *troubles) page(all []message) string {
	var w strings.Builder
	w.WriteString(strings.Replace(generatedNote, "what it comes from", troublesFile+" or the daemon's messages", 1))
	w.WriteString("# Troubleshooting\n\n`virtiofsd` says in one line on standard error what failed, on what, and what would help. It exits with status 1, or with 2 if the command line is wrong. " +
		"`virtiofsd --print-plan …` with the same options shows what the sandbox would do here, or why it cannot, without doing anything.\n\n")
	w.WriteString("## Symptoms\n\n")
	var rows [][]string
	for _, s := range t.Symptoms {
		rows = append(rows, []string{cellText(s.Seen), cellText(s.Cause), cellText(s.Remedy)})
	}
	mdTable(&w, []string{"what is seen", "cause", "remedy"}, rows)

	w.WriteString("## Messages, explained\n\n… stands for names, numbers, and the kernel's message.\n\n")
	rows = nil
	explained := map[message]bool{}
	for _, e := range t.Errors {
		var texts []string
		for _, m := range all {
			if strings.Contains(m.text, e.Seen) && !explained[m] {
				explained[m] = true
				if what, _ := m.remedy(); !slices.Contains(texts, plain(what)) {
					texts = append(texts, plain(what))
				}
			}
		}
		if len(texts) > 0 {
			rows = append(rows, []string{strings.Join(texts, "<br>"), cellText(e.Cause), cellText(e.Remedy)})
		}
	}
	mdTable(&w, []string{"message", "cause", "remedy"}, rows)

	w.WriteString("## Other messages that name their remedy\n\n")
	rows = nil
	var rest []string
	for _, m := range all {
		what, remedy := m.remedy()
		switch {
		case explained[m], strings.Trim(what, "…: ") == "":
		case remedy != "":
			rows = append(rows, []string{plain(what), plain(remedy)})
		case m.dir != "internal/config":
			rest = append(rest, m.text)
		}
	}
	mdTable(&w, []string{"message", "remedy"}, rows)
	w.WriteString("## Steps that can fail\n\nEach is followed by the kernel's message. They point to something unusual about the host: an LSM's policy, a kernel without the feature, a container that hides something. Compare with `--print-plan`, and report the line.\n\n")
	slices.Sort(rest)
	for _, r := range slices.Compact(rest) {
		fmt.Fprintf(&w, "- %s\n", plain(r))
	}
	return w.String()
}
