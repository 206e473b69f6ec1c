package mutants

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Packages are those of the daemon whose mutants are run, from the ground up.
var Packages = []string{"idmap", "virtqueue", "guestmem", "seccomp", "sys", "fuse", "sandbox", "vhostuser", "passthrough"}

// Mutant is one change of one function.
type Mutant struct {
	Operator string // gremlins' name, where it has one
	File     string // base name
	Function string // as its declaration is named: Func, Type.Method, or var Name
	Line     int
	Column   int
	Old, New string // the function's text before and after, without white space: how equivalent.toml finds it
	Was, Now string // the changed piece, for people
	start    int    // of the piece, in the file
}

func (m *Mutant) String() string {
	return fmt.Sprintf("%s:%d:%d %s: %s: %s => %s", m.File, m.Line, m.Column, m.Function, m.Operator, oneLine(m.Was), oneLine(m.Now))
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 120 {
		s = s[:117] + "..."
	}
	if s == "" {
		return "(nothing)"
	}
	return s
}

// Function is a declaration with its mutants, in the order of the text.
type Function struct {
	File, Name, Hash string
	Mutants          []*Mutant
}

// Package is a package of the daemon with all its mutants, and the source in which they can be
// switched on.
type Package struct {
	Name      string // idmap
	Functions []*Function
	Mutants   []*Mutant         // those of all functions; a mutant's number is its place, from 1
	files     map[string][]byte // base name to source with all mutants
	unbuilt   map[*Mutant]bool
}

// Unbuilt reports whether a mutant does not compile.
func (p *Package) Unbuilt(m *Mutant) bool { return p.unbuilt[m] }

// site is a piece of source with the mutants of it. A range of source has one site at most.
type site struct {
	from, to int
	kind     kind
	typ      string // of a value
	alts     []alt
	inner    []*site
}

type alt struct {
	m    *Mutant
	text string // what stands in place of the site
}

type kind int

const (
	condition kind = iota
	value
	statement
	simple // a statement where Go's grammar wants no if
)

type loader struct {
	fset  *token.FileSet
	info  *types.Info
	pkg   *types.Package
	file  *ast.File
	src   []byte
	name  string
	decl  ast.Node
	fn    *Function
	sites map[[2]int]*site
	skip  map[ast.Node]bool // operands that have no mutant of their own
	loops []ast.Stmt        // what break and continue are about
	names map[string]string // import path to its name in the file
}

// Load finds the mutants of a package of the tree.
func Load(root, name string) (*Package, error) {
	dir := filepath.Join(root, "internal", name)
	files, exports, err := list(root, "./internal/"+name)
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	conf := &types.Config{Importer: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})}
	p := &Package{Name: name, files: map[string][]byte{}, unbuilt: map[*Mutant]bool{}}
	var parsed []*ast.File
	source := map[string][]byte{}
	for _, f := range files {
		if source[f], err = os.ReadFile(filepath.Join(dir, f)); err != nil {
			return nil, fmt.Errorf("mutants of %s: %w", name, err)
		}
		a, err := parser.ParseFile(fset, f, source[f], parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			return nil, fmt.Errorf("mutants of %s: %w", name, err)
		}
		parsed = append(parsed, a)
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{}}
	pkg, err := conf.Check("virtiofsd/internal/"+name, fset, parsed, info)
	if err != nil {
		return nil, fmt.Errorf("mutants of %s: %w", name, err)
	}
	roots := map[string][]*site{}
	for i, f := range files {
		l := &loader{fset: fset, info: info, pkg: pkg, file: parsed[i], src: source[f], name: f, sites: map[[2]int]*site{}, skip: map[ast.Node]bool{}}
		l.imports()
		p.Functions = append(p.Functions, l.functions()...)
		roots[f] = nest(l.sites)
	}
	p.Functions = slices.DeleteFunc(p.Functions, func(f *Function) bool { return len(f.Mutants) == 0 })
	for _, f := range p.Functions {
		slices.SortStableFunc(f.Mutants, func(a, b *Mutant) int { return a.start - b.start })
		p.Mutants = append(p.Mutants, f.Mutants...)
	}
	return p, p.compile(conf, pkg.Name(), files, source, roots)
}

// list asks the go command for a package's files and for what it and the added file import,
// compiled.
func list(root, pkg string) (files []string, exports map[string]string, err error) {
	c := exec.Command("go", "list", "-deps", "-export", "-json=ImportPath,GoFiles,Export", pkg, "os", "strconv", "syscall")
	c.Dir = root
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("list %s: %w: %s", pkg, err, stderr.Bytes())
	}
	exports = map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var one struct {
			ImportPath, Export string
			GoFiles            []string
		}
		if err := d.Decode(&one); err == io.EOF {
			return files, exports, nil
		} else if err != nil {
			return nil, nil, fmt.Errorf("list %s: %w", pkg, err)
		}
		exports[one.ImportPath] = one.Export
		if strings.HasSuffix(one.ImportPath, pkg[1:]) {
			files = one.GoFiles
		}
	}
}

func (l *loader) imports() {
	l.names = map[string]string{}
	for _, i := range l.file.Imports {
		path := strings.Trim(i.Path.Value, `"`)
		if i.Name != nil {
			l.names[path] = i.Name.Name
			continue
		}
		for _, p := range l.pkg.Imports() {
			if p.Path() == path {
				l.names[path] = p.Name()
			}
		}
	}
}

// typeName writes a type as this file can; "" where it cannot.
func (l *loader) typeName(t types.Type) string {
	ok := true
	s := types.TypeString(types.Default(t), func(p *types.Package) string {
		if p == l.pkg {
			return ""
		}
		n, known := l.names[p.Path()]
		ok = ok && known && n != "." && n != "_"
		return n
	})
	if !ok {
		return ""
	}
	return s
}

func (l *loader) offset(p token.Pos) int         { return l.fset.Position(p).Offset }
func (l *loader) text(from, to token.Pos) string { return string(l.src[l.offset(from):l.offset(to)]) }

func (l *loader) functions() (all []*Function) {
	begin := func(name string, n ast.Node) {
		text := l.text(n.Pos(), n.End())
		sum := sha256.Sum256([]byte(text))
		l.fn, l.decl = &Function{File: l.name, Name: name, Hash: hex.EncodeToString(sum[:6])}, n
		all = append(all, l.fn)
	}
	for _, d := range l.file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Body == nil {
				continue
			}
			name := d.Name.Name
			if d.Recv != nil {
				name = strings.TrimLeft(l.text(d.Recv.List[0].Type.Pos(), d.Recv.List[0].Type.End()), "*") + "." + name
			}
			begin(name, d)
			l.body(d.Body, l.info.Defs[d.Name].Type().(*types.Signature))
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if v, ok := s.(*ast.ValueSpec); ok && d.Tok == token.VAR && len(v.Values) > 0 {
					begin("var "+v.Names[0].Name, v)
					for _, e := range v.Values {
						l.walk(e, nil)
					}
				}
			}
		}
	}
	return all
}

func (l *loader) body(b *ast.BlockStmt, sig *types.Signature) {
	outer := l.loops
	l.loops = nil
	l.walk(b, sig)
	l.loops = outer
}

// walk visits what is in n. sig is that of the function around it.
func (l *loader) walk(n ast.Node, sig *types.Signature) {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			l.body(n.Body, l.info.Types[n].Type.(*types.Signature))
			return false
		case *ast.GenDecl:
			return n.Tok == token.VAR // constants stay
		case *ast.ArrayType:
			if n.Len != nil {
				l.walk(n.Elt, sig)
				return false
			}
		case *ast.BlockStmt:
			l.statements(n.List)
		case *ast.CaseClause:
			l.statements(n.Body)
		case *ast.CommClause:
			l.statements(n.Body)
		case *ast.ForStmt:
			if s, ok := n.Post.(*ast.IncDecStmt); ok {
				l.incDec(s, simple)
			}
			l.loop(n, n.Body, sig, n.Init, n.Cond, n.Post)
			return false
		case *ast.RangeStmt:
			l.loop(n, n.Body, sig, n.X)
			return false
		case *ast.SwitchStmt, *ast.TypeSwitchStmt, *ast.SelectStmt:
			if s, ok := n.(*ast.SwitchStmt); ok && s.Tag == nil {
				for _, c := range s.Body.List {
					for _, e := range c.(*ast.CaseClause).List {
						l.truth(e)
					}
				}
			}
			if len(l.loops) == 0 || l.loops[len(l.loops)-1] != n.(ast.Stmt) {
				l.loops = append(l.loops, n.(ast.Stmt))
				l.walk(n, sig)
				l.loops = l.loops[:len(l.loops)-1]
				return false
			}
		case *ast.IfStmt:
			l.truth(n.Cond)
		case *ast.ReturnStmt:
			l.results(n, sig)
		case *ast.BinaryExpr:
			l.binary(n)
		case *ast.UnaryExpr:
			if n.Op == token.SUB && !l.constant(n) {
				l.value(n, "INVERT_NEGATIVES", l.text(n.X.Pos(), n.X.End()), l.info.Types[n].Type)
			}
			if n.Op == token.NOT {
				l.truth(n)
			}
		}
		return true
	})
}

func (l *loader) loop(n ast.Stmt, body *ast.BlockStmt, sig *types.Signature, head ...ast.Node) {
	for _, h := range head {
		if h != nil && !isNil(h) {
			l.walk(h, sig)
		}
	}
	l.loops = append(l.loops, n)
	l.walk(body, sig)
	l.loops = l.loops[:len(l.loops)-1]
}

func isNil(n ast.Node) bool {
	switch n := n.(type) {
	case ast.Expr:
		return n == nil
	case ast.Stmt:
		return n == nil
	}
	return false
}

func (l *loader) constant(e ast.Expr) bool { return l.info.Types[e].Value != nil }

// add puts a mutant on the range of n: instead is what stands there instead; was and now say what
// changed, from the offset on.
func (l *loader) add(n ast.Node, k kind, typ, operator, instead string, from, to token.Pos, now string) {
	r := [2]int{l.offset(n.Pos()), l.offset(n.End())}
	s := l.sites[r]
	if s == nil {
		s = &site{from: r[0], to: r[1], kind: k, typ: typ}
		l.sites[r] = s
	}
	if s.kind != k {
		return
	}
	dFrom, dTo := l.offset(l.decl.Pos()), l.offset(l.decl.End())
	m := &Mutant{Operator: operator, File: l.name, Function: l.fn.Name, Line: l.fset.Position(from).Line, Column: l.fset.Position(from).Column, Was: l.text(from, to), Now: now, start: l.offset(from),
		Old: squeeze(string(l.src[dFrom:dTo])), New: squeeze(string(l.src[dFrom:l.offset(from)]) + now + string(l.src[l.offset(to):dTo]))}
	s.alts = append(s.alts, alt{m, instead})
	l.fn.Mutants = append(l.fn.Mutants, m)
}

// squeeze takes out white space, so that layout is no difference.
func squeeze(s string) string { return strings.Join(strings.Fields(s), "") }

var negated = map[token.Token]token.Token{token.EQL: token.NEQ, token.NEQ: token.EQL, token.LSS: token.GEQ, token.GEQ: token.LSS,
	token.GTR: token.LEQ, token.LEQ: token.GTR}
var boundary = map[token.Token]token.Token{token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR}
var logical = map[token.Token]token.Token{token.LAND: token.LOR, token.LOR: token.LAND}
var arithmetic = map[token.Token]token.Token{token.ADD: token.SUB, token.SUB: token.ADD, token.MUL: token.QUO, token.QUO: token.MUL, token.REM: token.MUL}
var bitwise = map[token.Token]token.Token{token.AND: token.OR, token.OR: token.AND, token.XOR: token.AND, token.AND_NOT: token.AND,
	token.SHL: token.SHR, token.SHR: token.SHL}
var assign = map[token.Token]token.Token{token.ADD_ASSIGN: token.SUB_ASSIGN, token.SUB_ASSIGN: token.ADD_ASSIGN, token.MUL_ASSIGN: token.QUO_ASSIGN,
	token.QUO_ASSIGN: token.MUL_ASSIGN, token.REM_ASSIGN: token.MUL_ASSIGN}
var bitAssign = map[token.Token]token.Token{token.AND_ASSIGN: token.OR_ASSIGN, token.OR_ASSIGN: token.AND_ASSIGN, token.XOR_ASSIGN: token.AND_ASSIGN,
	token.AND_NOT_ASSIGN: token.AND_ASSIGN, token.SHL_ASSIGN: token.SHR_ASSIGN, token.SHR_ASSIGN: token.SHL_ASSIGN}

func (l *loader) binary(n *ast.BinaryExpr) {
	if l.constant(n) {
		return
	}
	swap := func(k kind, typ, operator string, table map[token.Token]token.Token) {
		op, ok := table[n.Op]
		if !ok {
			return
		}
		end := n.OpPos + token.Pos(len(n.Op.String()))
		l.add(n, k, typ, operator, l.text(n.Pos(), n.OpPos)+op.String()+l.text(end, n.End()), n.OpPos, end, op.String())
	}
	swap(condition, "", "CONDITIONALS_BOUNDARY", boundary)
	swap(condition, "", "CONDITIONALS_NEGATION", negated)
	swap(condition, "", "INVERT_LOGICAL", logical)
	t := l.info.Types[n].Type
	if b, ok := t.Underlying().(*types.Basic); !ok || b.Info()&types.IsNumeric == 0 {
		return
	}
	typ := l.typeName(t)
	if typ == "" {
		return
	}
	swap(value, typ, "ARITHMETIC_BASE", arithmetic)
	swap(value, typ, "INVERT_BITWISE", bitwise)
}

func (l *loader) value(n ast.Expr, operator, now string, t types.Type) {
	if typ := l.typeName(t); typ != "" {
		l.add(n, value, typ, operator, now, n.Pos(), n.End(), now)
	}
}

// truth inverts a condition that is no comparison; those are negated by their operator.
func (l *loader) truth(e ast.Expr) {
	if l.skip[e] || l.constant(e) && l.info.Types[e].Value.Kind() != constant.Bool {
		return
	}
	l.skip[e] = true
	switch x := e.(type) {
	case *ast.ParenExpr:
		l.truth(x.X)
		return
	case *ast.BinaryExpr:
		return
	case *ast.UnaryExpr:
		l.skip[x.X] = true
		inner := l.text(x.X.Pos(), x.X.End())
		l.add(e, condition, "", "INVERT_CONDITION", inner, e.Pos(), e.End(), inner)
		return
	}
	now := "!" + l.text(e.Pos(), e.End())
	l.add(e, condition, "", "INVERT_CONDITION", now, e.Pos(), e.End(), now)
}

// results changes what is returned: no error where there is one, and the other truth.
func (l *loader) results(n *ast.ReturnStmt, sig *types.Signature) {
	if sig == nil || len(n.Results) == 0 || len(n.Results) != sig.Results().Len() {
		return
	}
	for i, e := range n.Results {
		t := sig.Results().At(i).Type()
		text := l.text(e.Pos(), e.End())
		switch b, _ := t.Underlying().(*types.Basic); {
		case types.Identical(t, types.Universe.Lookup("error").Type()):
			if text != "nil" {
				l.value(e, "RETURN_NIL", "nil", t)
			}
		case strings.HasSuffix(types.TypeString(t, nil), ".Errno"):
			if text != "0" {
				l.value(e, "RETURN_NIL", "0", t)
			}
		case b != nil && b.Kind() == types.Bool:
			if text == "true" || text == "false" {
				now := map[string]string{"true": "false", "false": "true"}[text]
				l.add(e, condition, "", "RETURN_BOOL", now, e.Pos(), e.End(), now)
			} else {
				l.truth(e)
			}
		}
	}
}

// statements are those of a block: they can be taken out, and have an if around them.
func (l *loader) statements(list []ast.Stmt) {
	for _, s := range list {
		remove := func() { l.add(s, statement, "", "REMOVE_STATEMENT", "", s.Pos(), s.End(), "") }
		switch s := s.(type) {
		case *ast.ExprStmt:
			if c, ok := s.X.(*ast.CallExpr); ok {
				if id, ok := c.Fun.(*ast.Ident); ok && id.Name == "panic" {
					continue // what follows would be reached, which does not compile
				}
			}
			remove()
		case *ast.SendStmt, *ast.DeferStmt, *ast.GoStmt:
			remove()
		case *ast.IncDecStmt:
			l.incDec(s, statement)
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE || slices.ContainsFunc(s.Lhs, func(e ast.Expr) bool { id, ok := e.(*ast.Ident); return ok && id.Name == "_" && len(s.Lhs) == 1 }) {
				continue
			}
			for operator, table := range map[string]map[token.Token]token.Token{"INVERT_ASSIGNMENTS": assign, "INVERT_BWASSIGN": bitAssign} {
				if op, ok := table[s.Tok]; ok && l.numeric(s.Lhs[0]) {
					end := s.TokPos + token.Pos(len(s.Tok.String()))
					l.add(s, statement, "", operator, l.text(s.Pos(), s.TokPos)+op.String()+l.text(end, s.End()), s.TokPos, end, op.String())
				}
			}
			remove()
		case *ast.BranchStmt:
			l.branch(s)
		}
	}
}

func (l *loader) numeric(e ast.Expr) bool {
	b, ok := l.info.Types[e].Type.Underlying().(*types.Basic)
	return ok && b.Info()&types.IsNumeric != 0
}

func (l *loader) incDec(s *ast.IncDecStmt, k kind) {
	op := map[token.Token]string{token.INC: "--", token.DEC: "++"}[s.Tok]
	l.add(s, k, "", "INCREMENT_DECREMENT", l.text(s.Pos(), s.TokPos)+op, s.TokPos, s.End(), op)
}

func (l *loader) branch(s *ast.BranchStmt) {
	if s.Label != nil || len(l.loops) == 0 {
		return
	}
	var around ast.Stmt // the loop that the statement is about
	for _, o := range slices.Backward(l.loops) {
		_, isFor := o.(*ast.ForStmt)
		_, isRange := o.(*ast.RangeStmt)
		if isFor || isRange {
			around = o
			break
		}
		if s.Tok == token.CONTINUE {
			continue
		}
		return // break leaves a switch, which continue is not about
	}
	switch {
	case around == nil:
	case s.Tok == token.BREAK:
		l.add(s, statement, "", "INVERT_LOOPCTRL", "continue", s.Pos(), s.End(), "continue")
	case s.Tok == token.CONTINUE && around == l.loops[len(l.loops)-1]:
		if f, ok := around.(*ast.ForStmt); ok && f.Cond == nil {
			return // what follows the loop may not be Go
		}
		l.add(s, statement, "", "INVERT_LOOPCTRL", "break", s.Pos(), s.End(), "break")
	}
}
