package mutants

import (
	"fmt"
	"slices"
)

// Least is the score, in percent, that each package must have.
const Least = 85.0

// Score is what is known of a package.
type Score struct {
	Package                                        string
	Mutants, Killed, Survived, Equivalent, Unbuilt int
	Unknown                                        int
}

// Percent is how many are killed of those that change behaviour, as far as they were run.
func (s *Score) Percent() float64 {
	if s.Killed+s.Survived == 0 {
		return 0
	}
	return 100 * float64(s.Killed) / float64(s.Killed+s.Survived)
}

func (s *Score) String() string {
	text := fmt.Sprintf("internal/%s: %d mutants: %d killed, %d survived, %d change nothing, %d do not compile", s.Package, s.Mutants, s.Killed, s.Survived, s.Equivalent, s.Unbuilt)
	if s.Unknown > 0 {
		text += fmt.Sprintf(", %d were not run", s.Unknown)
	}
	return fmt.Sprintf("%s: %.1f %%", text, s.Percent())
}

// Forget forgets what is known of packages.
func (s *State) Forget(names []string) {
	s.Packages = slices.DeleteFunc(s.Packages, func(p *PackageState) bool { return slices.Contains(names, p.Name) })
}

// Scores counts what is known of each package, from the outcomes alone.
func (s *State) Scores() (all []*Score) {
	for _, p := range s.Packages {
		score := &Score{Package: p.Name}
		for _, f := range p.Functions {
			score.Mutants += len(f.Outcomes)
			for _, o := range f.Outcomes {
				switch Outcome(o) {
				case Killed, TimedOut:
					score.Killed++
				case Unbuilt:
					score.Unbuilt++
				case Nothing:
					score.Equivalent++
				case Unknown:
					score.Unknown++
				default:
					score.Survived++
				}
			}
		}
		all = append(all, score)
	}
	return all
}

// Left are the mutants of a package that survived, and should not.
func (s *State) Left(p *Package) (left []*Mutant) {
	known := map[string]string{}
	for _, at := range s.Packages {
		if at.Name == p.Name {
			for _, f := range at.Functions {
				known[f.Name+"\x00"+f.Hash] = f.Outcomes
			}
		}
	}
	for _, f := range p.Functions {
		for i, o := range known[f.Name+"\x00"+f.Hash] {
			if Outcome(o) == Survived || Outcome(o) == Unreached {
				left = append(left, f.Mutants[i])
			}
		}
	}
	return left
}
