package config

import (
	"fmt"
	"strings"
)

// Completion is a shell's completion of our command line, from the table of flags. Shells are those of --completion.
func Completion(shell string) string {
	switch shell {
	case "bash":
		return bash()
	case "zsh":
		return zsh()
	}
	return fish()
}

// shown are the flags to complete.
func shown() (all []Flag) {
	for _, f := range Flags() {
		if !f.Hidden {
			all = append(all, f)
		}
	}
	return all
}

func bash() string {
	var cases, names strings.Builder
	for _, f := range shown() {
		fmt.Fprintf(&names, " --%s", f.Name)
		what := ""
		switch {
		case len(f.Words) > 0:
			what = fmt.Sprintf("-W '%s'", strings.Join(f.Words, " "))
		case f.Arg == "DIR":
			what = "-d"
		case f.Arg == "PATH":
			what = "-f"
		case f.Arg == "GROUP":
			what = "-g"
		case f.Arg == "":
			continue
		}
		if what != "" {
			what = fmt.Sprintf("mapfile -t COMPREPLY < <(compgen %s -- \"$cur\"); ", what)
		}
		// An argument that may be left out is one only behind '='.
		pattern := fmt.Sprintf("--%s:*", f.Name)
		if f.Bare != "" {
			pattern = fmt.Sprintf("--%s:=", f.Name)
		}
		fmt.Fprintf(&cases, "        %s) %sreturn ;;\n", pattern, what)
	}
	return `# bash completion for virtiofsd; made by: virtiofsd --completion bash
_virtiofsd() {
    # bash takes '=' for a word of its own: "--cache=au" is three.
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} by=' '
    if [[ $cur == = ]]; then
        cur='' by='='
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD-2]} by='='
    fi
    COMPREPLY=()
    case $prev:$by in
` + cases.String() + `    esac
    mapfile -t COMPREPLY < <(compgen -W '` + strings.TrimSpace(names.String()) + `' -- "$cur")
}
complete -o filenames -o bashdefault -F _virtiofsd virtiofsd
`
}

var zshEscapes = strings.NewReplacer("'", `'\''`, "[", `\[`, "]", `\]`, ":", `\:`)

func zsh() string {
	var b strings.Builder
	b.WriteString("#compdef virtiofsd\n# zsh completion for virtiofsd; made by: virtiofsd --completion zsh\n_arguments -s \\\n")
	for _, f := range shown() {
		name, repeat := "--"+f.Name, ""
		if strings.Contains(f.Help, "may be repeated") {
			repeat = "*"
		}
		switch {
		case f.Bare != "":
			name += "=-"
		case f.Arg != "":
			name += "="
		}
		fmt.Fprintf(&b, "  '%s%s[%s]", repeat, name, zshEscapes.Replace(f.Help))
		optional := ""
		if f.Bare != "" {
			optional = ":"
		}
		arg := zshEscapes.Replace(f.Arg)
		switch {
		case len(f.Words) > 0:
			fmt.Fprintf(&b, "%s:%s:(%s)", optional, arg, strings.Join(f.Words, " "))
		case f.Arg == "DIR":
			fmt.Fprintf(&b, ":%s:_directories", arg)
		case f.Arg == "PATH":
			fmt.Fprintf(&b, ":%s:_files", arg)
		case f.Arg == "GROUP":
			fmt.Fprintf(&b, ":%s:_groups", arg)
		case f.Arg != "":
			fmt.Fprintf(&b, "%s:%s: ", optional, arg)
		}
		b.WriteString("' \\\n")
	}
	return strings.TrimSuffix(b.String(), " \\\n") + "\n"
}

func fish() string {
	var b strings.Builder
	b.WriteString("# fish completion for virtiofsd; made by: virtiofsd --completion fish\ncomplete -c virtiofsd -f\n")
	quote := strings.NewReplacer(`\`, `\\`, "'", `\'`)
	for _, f := range shown() {
		fmt.Fprintf(&b, "complete -c virtiofsd -l %s", f.Name)
		if len(f.Short) == 1 {
			fmt.Fprintf(&b, " -s %s", f.Short)
		}
		switch {
		case f.Bare != "":
			fmt.Fprintf(&b, " -f -a '%s'", strings.Join(f.Words, " "))
		case len(f.Words) > 0:
			fmt.Fprintf(&b, " -x -a '%s'", strings.Join(f.Words, " "))
		case f.Arg == "DIR":
			b.WriteString(" -x -a '(__fish_complete_directories)'")
		case f.Arg == "PATH":
			b.WriteString(" -r -F")
		case f.Arg == "GROUP":
			b.WriteString(" -x -a '(__fish_complete_groups)'")
		case f.Arg != "":
			b.WriteString(" -x")
		}
		fmt.Fprintf(&b, " -d '%s'\n", quote.Replace(f.Help))
	}
	return b.String()
}
