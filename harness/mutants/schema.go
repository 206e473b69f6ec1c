package mutants

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"slices"
	"strings"
)

// switchFile is the name of the file that is added to the package: it says which mutant is on.
const switchFile = "zz_mutants.go"

// Environment of a program with mutants.
const (
	envOn      = "MUTANTS_ON"      // the number of the mutant that is on
	envReached = "MUTANTS_REACHED" // a file with a byte for each mutant, which is set to 1 when the mutant is reached
)

const switchSource = `package %s

import (
	"os"
	"strconv"
	"syscall"
)

var mutantOn, mutantsReached = mutantsBegin()

func mutantsBegin() (int, []byte) {
	on, _ := strconv.Atoi(os.Getenv("` + envOn + `"))
	f, err := os.OpenFile(os.Getenv("` + envReached + `"), os.O_RDWR, 0)
	if err != nil {
		return on, nil
	}
	defer f.Close()
	b, _ := syscall.Mmap(int(f.Fd()), 0, %d, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	return on, b
}

func mutant(n int) bool {
	if mutantsReached != nil {
		mutantsReached[n] = 1
	}
	return n == mutantOn
}
`

// nest makes a forest of sites; in each list they follow each other.
func nest(sites map[[2]int]*site) []*site {
	all := slices.Collect(maps.Values(sites))
	slices.SortFunc(all, func(a, b *site) int {
		if a.from != b.from {
			return a.from - b.from
		}
		return b.to - a.to
	})
	var top, open []*site
	for _, s := range all {
		for len(open) > 0 && open[len(open)-1].to <= s.from {
			open = open[:len(open)-1]
		}
		if len(open) == 0 {
			top = append(top, s)
		} else {
			o := open[len(open)-1]
			o.inner = append(o.inner, s)
		}
		open = append(open, s)
	}
	return top
}

// span is where a mutant, or all those of a site, stand in the source that is written.
type span struct {
	from, to int
	mutants  []*Mutant
}

type writer struct {
	strings.Builder
	src    []byte
	number map[*Mutant]int
	left   map[*Mutant]bool
	spans  []span
}

// compile writes each file with its mutants, and leaves out those that the type checker refuses.
func (p *Package) compile(conf *types.Config, name string, files []string, source map[string][]byte, roots map[string][]*site) error {
	number := map[*Mutant]int{}
	for i, m := range p.Mutants {
		number[m] = i + 1
	}
	for range 20 {
		fset := token.NewFileSet()
		spans := map[string][]span{}
		var parsed []*ast.File
		p.files = map[string][]byte{switchFile: fmt.Appendf(nil, switchSource, name, len(p.Mutants)+1)}
		for _, f := range files {
			w := &writer{src: source[f], number: number, left: p.unbuilt}
			w.write(0, len(source[f]), roots[f])
			p.files[f], spans[f] = []byte(w.String()), w.spans
		}
		bad := false
		refuse := func(at token.Position, why string) error {
			var hit *span
			for i, s := range spans[at.Filename] {
				if s.from <= at.Offset && at.Offset <= s.to && (hit == nil || s.to-s.from < hit.to-hit.from) {
					hit = &spans[at.Filename][i]
				}
			}
			if hit == nil {
				return fmt.Errorf("mutants of %s: %v: %s", p.Name, at, why)
			}
			for _, m := range hit.mutants {
				bad = bad || !p.unbuilt[m]
				p.unbuilt[m] = true
			}
			return nil
		}
		for _, f := range slices.Concat(files, []string{switchFile}) {
			a, err := parser.ParseFile(fset, f, p.files[f], parser.SkipObjectResolution)
			if err != nil {
				return fmt.Errorf("mutants of %s: %w", p.Name, err)
			}
			parsed = append(parsed, a)
		}
		var lost error
		check := *conf
		check.Error = func(err error) {
			e, ok := err.(types.Error)
			if !ok {
				lost = err
			} else if err := refuse(fset.Position(e.Pos), e.Msg); err != nil && lost == nil {
				lost = err
			}
		}
		_, err := check.Check("virtiofsd/internal/"+p.Name, fset, parsed, nil)
		switch {
		case err == nil:
			return nil
		case !bad && lost != nil:
			return lost
		case !bad:
			return fmt.Errorf("mutants of %s: %w", p.Name, err)
		}
	}
	return fmt.Errorf("mutants of %s: some do not compile, whatever is left out", p.Name)
}

// write writes source from one offset to another, with the mutants of the sites in it.
func (w *writer) write(from, to int, sites []*site) {
	for _, s := range sites {
		w.Write(w.src[from:s.from])
		w.site(s)
		from = s.to
	}
	w.Write(w.src[from:to])
}

// site writes one site: `mutant(n)` selects what stands there instead.
func (w *writer) site(s *site) {
	var alts []alt
	whole := span{from: w.Len()}
	for _, a := range s.alts {
		if !w.left[a.m] {
			alts = append(alts, a)
			whole.mutants = append(whole.mutants, a.m)
		}
	}
	if len(alts) == 0 {
		w.write(s.from, s.to, s.inner)
		return
	}
	one := func(before string, a alt, after string) {
		fmt.Fprintf(w, before, w.number[a.m])
		from := w.Len()
		w.WriteString(a.text)
		w.spans = append(w.spans, span{from, w.Len(), []*Mutant{a.m}})
		w.WriteString(after)
	}
	inner := func() { w.write(s.from, s.to, s.inner) }
	switch s.kind {
	case condition: // operators only, so that nothing is moved to the heap
		w.WriteString("(")
		for _, a := range alts {
			one("mutant(%d) && (", a, ") || ")
		}
		for _, a := range alts {
			fmt.Fprintf(w, "!mutant(%d) && ", w.number[a.m])
		}
		w.WriteString("(")
		inner()
		w.WriteString("))")
	case value:
		w.WriteString("func() " + s.typ + " { ")
		for _, a := range alts {
			one("if mutant(%d) { return ", a, " }; ")
		}
		w.WriteString("return ")
		inner()
		w.WriteString(" }()")
	default:
		if s.kind == simple {
			w.WriteString("func() { ")
		}
		for _, a := range alts {
			one("if mutant(%d) { ", a, " } else ")
		}
		w.WriteString("{ ")
		inner()
		w.WriteString(" }")
		if s.kind == simple {
			w.WriteString(" }()")
		}
	}
	whole.to = w.Len()
	w.spans = append(w.spans, whole)
}
