package report

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

const (
	launchersFile = "docs/launchers.toml" // what the scripts do not say
	launchersPage = "docs/launchers.md"
	scriptsDir    = "cmd/virtiofsd/testdata/script"
)

// launchers is that file.
type launchers struct {
	Intro     []string  `toml:"intro"`
	About     string    `toml:"runtimes_intro"`
	Launchers []starter `toml:"launcher"`
	Runtimes  []runtime `toml:"runtime"`
}

// starter is a program that starts daemons.
type starter struct {
	Name string `toml:"name"`
	// Runs are scripts, and of each the command lines to show, by their number in the script, from 1 on.
	Runs []struct {
		Script string `toml:"script"`
		Lines  []int  `toml:"lines"`
	} `toml:"runs"`
	Scenario string   `toml:"scenario"` // which is it most like
	Ready    string   `toml:"ready"`
	Ends     string   `toml:"ends"`
	Use      []string `toml:"use"` // what to change to use ours

	modes []string // of its scripts
}

// runtime is a container runtime in which a daemon runs.
type runtime struct {
	Name     string `toml:"name"`
	Allows   string `toml:"allows"` // what it has to allow
	Options  string `toml:"options"`
	Scenario string `toml:"scenario"`
}

// script is one of cmd/virtiofsd's scripts.
type script struct {
	about string     // the first comment: which launcher, and the source that was read
	modes []string   // which use cases it is: letters, in their order
	argvs [][]string // of its launches
}

var (
	modeLine   = regexp.MustCompile(`(?m)^# mode: (.*)$`)
	launchLine = regexp.MustCompile(`(?m)^launch (.*)$`)
	noAnchor   = regexp.MustCompile(`[^a-z0-9]+`)
)

func readScript(tree fs.FS, name string) (*script, error) {
	b, err := fs.ReadFile(tree, path.Join(scriptsDir, name+".txtar"))
	if err != nil {
		return nil, fmt.Errorf("read a launcher's script: %w", err)
	}
	s := &script{}
	for line := range strings.Lines(string(b)) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "# ")
		if !ok || strings.HasPrefix(text, "needs:") || strings.HasPrefix(text, "rules:") {
			break
		}
		s.about = strings.TrimSpace(s.about + " " + text)
	}
	if m := modeLine.FindSubmatch(b); m != nil {
		s.modes = strings.Split(string(m[1]), ", ")
		if !slices.IsSorted(s.modes) || slices.ContainsFunc(s.modes, func(c string) bool { return useCases[c] == "" }) {
			return nil, fmt.Errorf("script %s: mode %q: letters from A to E, in their order, with commas between them", name, m[1])
		}
	}
	for _, m := range launchLine.FindAllStringSubmatch(string(b), -1) {
		_, argv, ok := strings.Cut(m[1], "-- ")
		if !ok {
			return nil, fmt.Errorf("script %s: no command in %q", name, m[0])
		}
		s.argvs = append(s.argvs, strings.Fields(argv))
	}
	return s, nil
}

// loadLaunchers reads the file and checks that the scripts and scenarios are there, and every launcher's script is in it; nil where the tree has none.
func (b *book) loadLaunchers(tree fs.FS) (*launchers, error) {
	l, err := loadTable[launchers](tree, launchersFile, "the launchers")
	if l == nil {
		return nil, err
	}
	shown := map[string]bool{}
	for i, one := range l.Launchers {
		if one.Name == "" || len(one.Runs) == 0 || one.Ready == "" || one.Ends == "" || len(one.Use) == 0 || b.scenario(one.Scenario) == nil {
			return nil, fmt.Errorf("%s: launcher %q: runs, scenario, ready, ends and use must be said", launchersFile, one.Name)
		}
		for _, r := range one.Runs {
			s, err := readScript(tree, r.Script)
			if err != nil {
				return nil, err
			}
			l.Launchers[i].modes = slices.Compact(slices.Sorted(slices.Values(append(l.Launchers[i].modes, s.modes...))))
			if len(r.Lines) == 0 || slices.Min(r.Lines) < 1 || slices.Max(r.Lines) > len(s.argvs) {
				return nil, fmt.Errorf("%s: launcher %q: script %s has the command lines 1 to %d, not %v", launchersFile, one.Name, r.Script, len(s.argvs), r.Lines)
			}
			shown[r.Script] = true
		}
		if c := b.scenario(one.Scenario).UseCase; !slices.Contains(l.Launchers[i].modes, c) {
			return nil, fmt.Errorf("%s: launcher %q: its scripts are of the use cases %v, and the scenario %s of %s", launchersFile, one.Name, l.Launchers[i].modes, one.Scenario, c)
		}
	}
	for _, r := range l.Runtimes {
		if r.Name == "" || r.Allows == "" || r.Options == "" || b.scenario(r.Scenario) == nil {
			return nil, fmt.Errorf("%s: runtime %q: allows, options and scenario must be said", launchersFile, r.Name)
		}
	}
	files, err := fs.Glob(tree, scriptsDir+"/*.txtar")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		name := strings.TrimSuffix(path.Base(f), ".txtar")
		s, err := readScript(tree, name)
		if err != nil {
			return nil, err
		}
		if len(s.modes) > 0 && !shown[name] {
			return nil, fmt.Errorf("%s: no launcher runs the script %s", launchersFile, name)
		}
	}
	return l, nil
}

// launchersPage is docs/launchers.md.
func (b *book) launchersPage(l *launchers, tree fs.FS) (string, error) {
	at := links{Scenarios: "generated/scenarios/"}
	var w strings.Builder
	w.WriteString(strings.Replace(generatedNote, "what it comes from", launchersFile, 1))
	w.WriteString("# Launchers\n\n")
	for _, p := range l.Intro {
		w.WriteString(p + "\n\n")
	}
	var rows [][]string
	for _, one := range l.Launchers {
		s := b.scenario(one.Scenario)
		rows = append(rows, []string{mdLink(one.Name, "#"+anchor(one.Name)), strings.Join(one.modes, ", "), b.scenarioLink(at, s)})
	}
	mdTable(&w, []string{"launcher", "use case", "most like"}, rows)
	for _, one := range l.Launchers {
		fmt.Fprintf(&w, "## <a id=\"%s\"></a>%s\n\n", anchor(one.Name), one.Name)
		for _, r := range one.Runs {
			s, err := readScript(tree, r.Script)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&w, "%s %s Script: %s.\n\n", s.about, useCaseLinks(s.modes), mdLink(r.Script, "../"+scriptsDir+"/"+r.Script+".txtar"))
			for _, n := range r.Lines {
				fmt.Fprintf(&w, "    %s\n", shellLine(s.argvs[n-1]))
			}
			w.WriteString("\n")
		}
		fmt.Fprintf(&w, "- It waits for: %s.\n- The daemon ends: %s.\n- Most like scenario: %s.\n", one.Ready, one.Ends, b.scenarioLink(at, b.scenario(one.Scenario)))
		fmt.Fprintf(&w, "- To use this daemon:\n    - %s\n\n", strings.Join(one.Use, "\n    - "))
	}
	fmt.Fprintf(&w, "## <a id=\"runtimes\"></a>Container runtimes\n\n%s\n\n", l.About)
	rows = nil
	for _, r := range l.Runtimes {
		options := r.Options
		if strings.HasPrefix(options, "-") {
			options = "`" + options + "`"
		}
		rows = append(rows, []string{r.Name, cellText(r.Allows), options, b.scenarioLink(at, b.scenario(r.Scenario))})
	}
	mdTable(&w, []string{"runtime", "what it has to allow", "options", "scenario"}, rows)
	return w.String(), nil
}

// useCaseLinks names use cases, with links to the advice on each.
func useCaseLinks(modes []string) string {
	var all []string
	for _, m := range modes {
		all = append(all, mdLink(m, "best-practices.md#use-"+strings.ToLower(m)))
	}
	if len(all) == 1 {
		return "Use case " + all[0] + "."
	}
	return "Use cases " + strings.Join(all, ", ") + "."
}

// shellLine is a script's command line as a person would type it.
func shellLine(argv []string) string {
	return strings.NewReplacer("$WORK/share", "/srv/share", "$WORK/", "/run/vm1/", "$NOFILE", "1048576").Replace(strings.Join(argv, " "))
}

// anchor is a heading's name for links.
func anchor(s string) string {
	return strings.Trim(noAnchor.ReplaceAllString(strings.ToLower(s), "-"), "-")
}
