package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// defaultOf is a flag's default in words, "" for switches and for what has none. The values are those of [Defaults].
func defaultOf(f Flag) string {
	d := Defaults()
	switch f.Name {
	case "sandbox":
		return d.Sandbox
	case "landlock":
		return d.Landlock
	case "seccomp":
		return d.Seccomp
	case "cache":
		return d.Cache
	case "posix-acl":
		return d.PosixACL
	case "security-label":
		return d.SecurityLabel
	case "inode-file-handles":
		return d.InodeFileHandles
	case "thread-pool-size":
		return strconv.Itoa(d.ThreadPoolSize)
	case "request-queues":
		return strconv.Itoa(d.RequestQueues)
	case "poll-us":
		return strconv.Itoa(d.PollMicros)
	case "log-level":
		return d.LogLevel
	case "log-format":
		return d.LogFormat
	case "rlimit-nofile":
		return "1000000, or what fs.nr_open and fs.file-max leave"
	case "uid-map", "gid-map":
		return "the caller's own id, where a user namespace is needed"
	}
	return ""
}

// differences are what an option that the Rust virtiofsd has as well does otherwise there.
var differences = map[string]string{
	"sandbox":            "has no pivot_root",
	"inode-file-handles": "1.14: default prefer",
	"killpriv-v2":        "off by default",
	"no-killpriv-v2":     "the default",
	"thread-pool-size":   "0, the default: no pool",
	"rlimit-nofile":      "default: 1000000, or what fs.nr_open leaves",
}

// unlike is what the Rust virtiofsd has otherwise, "" where it is the same.
func unlike(f Flag) string {
	if f.Since != "" {
		return "does not have it"
	}
	return differences[f.Name]
}

// spelled is how a flag is written: all of its forms.
func spelled(f Flag) []string {
	name := "--" + f.Name
	switch {
	case f.Bare != "":
		name += "[=" + f.Arg + "]"
	case f.Arg != "":
		name += "=" + f.Arg
	}
	all := []string{name}
	if f.Short != "" {
		all = append([]string{"-" + f.Short}, all...)
	}
	return all
}

// Reference is the option reference as a page of Markdown, from the table of flags.
func Reference() string {
	var b strings.Builder
	b.WriteString("<!-- Generated from internal/config. Do not edit: change the table of flags, then `make fix-docs`. -->\n\n# Options of virtiofsd\n\n" +
		"A value follows as `--name=value` or `--name value`; one that may be left out (`[=…]`) only as `--name=value`. " +
		"If a single-valued option is repeated, the last one wins; maps and translations accumulate. " +
		"Names, grammar and defaults are those of the Rust virtiofsd (1.13 and 1.14), unless the last column says otherwise. " +
		"Which sandbox to choose: [the decision guide](decide.md) and [best practices](../best-practices.md). " +
		"Which requests of a guest each option changes: [requests and flags](opcodes.md).\n\n")
	for _, g := range groups {
		fmt.Fprintf(&b, "## %s\n\n| option | default | meaning | the Rust virtiofsd |\n|---|---|---|---|\n", g)
		for _, f := range Flags() {
			if f.Group == g && !f.Hidden {
				fmt.Fprintf(&b, "| <a id=\"%s\"></a>`%s` | %s | %s | %s |\n", f.Name, strings.Join(spelled(f), "`, `"), defaultOf(f), f.Help, unlike(f))
			}
		}
		b.WriteString("\n")
	}
	b.WriteString("## Accepted for launchers' sake\n\n| option | meaning |\n|---|---|\n")
	for _, f := range Flags() {
		if f.Hidden {
			fmt.Fprintf(&b, "| `%s` | %s |\n", strings.Join(spelled(f), "`, `"), f.Help)
		}
	}
	b.WriteString("\n## Words of -o\n\nThe C virtiofsd's way of saying options: `-o WORD,WORD=VALUE,…`, which may be repeated. A doubled comma is a comma of the value.\n\n| word | the same as |\n|---|---|\n")
	var words []string
	for w := range compatWords {
		words = append(words, w)
	}
	slices.Sort(words)
	for _, w := range words {
		flag, value, fixed := strings.Cut(compatWords[w], "=")
		switch {
		case flag == "":
			fmt.Fprintf(&b, "| `%s` | accepted, and the default |\n", w)
		case !fixed:
			fmt.Fprintf(&b, "| `%s=…` | `--%s=…` |\n", w, flag)
		case value != "":
			fmt.Fprintf(&b, "| `%s` | `--%s=%s` |\n", w, flag, value)
		default:
			fmt.Fprintf(&b, "| `%s` | `--%s` |\n", w, flag)
		}
	}
	return b.String()
}

// Manual is virtiofsd(1) in the man macros.
func Manual() string {
	var b strings.Builder
	fmt.Fprintf(&b, ".\\\" Generated from internal/config. Do not edit: change the table of flags, then make fix-docs.\n.TH VIRTIOFSD 1 \"\" \"virtiofsd %s\"\n", Version)
	b.WriteString(`.SH NAME
virtiofsd \- share a directory with a virtual machine over virtio-fs
.SH SYNOPSIS
.B virtiofsd
.BI \-\-socket\-path= PATH
.BI \-\-shared\-dir= DIR
.RI [ OPTIONS ]
.br
.B virtiofsd
.BI \-\-fd= N
.BI \-\-shared\-dir= DIR
.RI [ OPTIONS ]
.SH DESCRIPTION
virtiofsd is a vhost-user back-end. It waits on a socket for a front-end such as QEMU, shuts itself into a sandbox, and serves one
directory of the host to the guest until the front-end leaves.
.PP
What the sandbox would do with given options, and why, is shown by
.BR \-\-print\-plan ,
which does nothing and needs no privilege. Which ways of sandboxing work for the caller on this host, and what the others lack, is shown by
.BR \-\-check .
.SH OPTIONS
A value follows after '=' or as the next word. A value in brackets may be left out, and follows only after '='. If a single-valued option
is repeated, the last one wins; maps and translations accumulate.
`)
	for _, g := range groups {
		fmt.Fprintf(&b, ".SS %s\n", roff(g))
		for _, f := range Flags() {
			if f.Group != g || f.Hidden {
				continue
			}
			fmt.Fprintf(&b, ".TP\n.B %s\n%s.", roff(strings.Join(spelled(f), ", ")), roff(f.Help))
			if d := defaultOf(f); d != "" && !strings.Contains(f.Help, "default:") {
				fmt.Fprintf(&b, " Default: %s.", roff(d))
			}
			b.WriteString("\n")
		}
	}
	b.WriteString(`.SH EXIT STATUS
.TP
.B 0
The front-end left, or the daemon was told to end.
.TP
.B 1
It could not start or go on; one line on standard error says what failed and what would help.
.TP
.B 2
The command line is wrong.
.SH ENVIRONMENT
.TP
.B RUST_LOG
A level (error, warn, info, debug, trace, off), which overrides
.BR \-\-log\-level .
.SH FILES
.TP
.IR PATH , " PATH" .pid
The socket, and a file with the process id, both made for
.B \-\-socket\-path
and removed at the end.
.TP
.IR /etc/subuid ", " /etc/subgid
The ranges of ids that
.BR newuidmap (1)
and
.BR newgidmap (1)
may map for the caller.
.SH EXAMPLES
As root, with a sandbox of its own:
.PP
.nf
    virtiofsd \-\-socket\-path=/run/vm1\-fs.sock \-\-shared\-dir=/srv/vm1
.fi
.PP
As a user, with the ids that /etc/subuid gives:
.PP
.nf
    virtiofsd \-\-socket\-path=$XDG_RUNTIME_DIR/vm1\-fs.sock \-\-shared\-dir=$HOME/vm1 \e
        \-\-uid\-map=:0:100000:65536: \-\-gid\-map=:0:100000:65536:
.fi
.SH SEE ALSO
.BR newuidmap (1),
.BR subuid (5),
.BR user_namespaces (7),
.BR capabilities (7),
.BR qemu (1)
`)
	return b.String()
}

var roffEscapes = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n", " ")

// roff is text for the man macros: a line must not begin with a control character.
func roff(s string) string {
	s = roffEscapes.Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
