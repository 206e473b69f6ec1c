package config

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// value makes a line of the table a pflag.Value.
type value struct {
	f *Flag
	o *Options
}

func (v value) String() string { return "" }
func (v value) Type() string   { return v.f.Arg }

func (v value) Set(s string) error {
	if v.f.Arg == "" && s != bare {
		return fmt.Errorf("takes no value, and %q is one; leave it out", s)
	}
	return v.f.set(v.o, s)
}

// bare is what pflag gives to set for a switch, which takes no value. No command line can hold it.
const bare = "\x00"

// Parse reads a command line without the program's name. Every error is one line and a matter of usage (exit status 2).
func Parse(args []string) (Options, error) {
	o := Defaults()
	fs := pflag.NewFlagSet("virtiofsd", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	flags := Flags()
	for i := range flags {
		f := &flags[i]
		p := fs.VarPF(value{f, &o}, f.Name, f.Short, f.Help)
		switch {
		case f.Arg == "":
			p.NoOptDefVal = bare
		case f.Bare != "":
			p.NoOptDefVal = f.Bare
		}
	}
	if slices.Contains(args, "--print-capabilities") { // launchers ask with any other options beside it
		o.PrintCapabilities = true
		return o, nil
	}
	if err := fs.Parse(args); err != nil {
		return o, usage(args, err)
	}
	if fs.NArg() > 0 {
		if name := orphaned(args, fs.Arg(0)); name != "" {
			return o, fmt.Errorf("%s takes its value behind '=': %s=%s", name, name, fs.Arg(0))
		}
		return o, fmt.Errorf("%q is no option; see --help", fs.Arg(0))
	}
	return o, nil
}

// orphaned is the option, one whose value may be left out, that a word follows which pflag found to belong to none.
func orphaned(args []string, word string) string {
	for i, a := range args[1:] {
		for _, f := range Flags() {
			if a == word && f.Bare != "" && args[i] == "--"+f.Name {
				return args[i]
			}
		}
	}
	return ""
}

// usage words pflag's errors as one line with a remedy.
func usage(args []string, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		return fmt.Errorf("unknown option %s; see --help", offending(args, unknown.GetSpecifiedName()))
	}
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		return fmt.Errorf("--%s %w", invalid.GetFlag().Name, errors.Unwrap(invalid))
	}
	return fmt.Errorf("%w; see --help", err)
}

func offending(args []string, name string) string {
	for _, a := range args {
		if a == "--"+name || strings.HasPrefix(a, "--"+name+"=") {
			return "--" + name
		}
	}
	return "-" + name
}

// Validate checks what can be told without a look at the system. Its errors are a matter of usage too.
func (o Options) Validate() error {
	switch {
	case o.SharedDir == "":
		return errors.New("--shared-dir is missing: name the directory to share")
	case o.SocketPath == "" && o.FD < 0:
		return errors.New("--socket-path is missing: name the socket to listen on, or pass a listening one by --fd or by socket activation (LISTEN_FDS)")
	case o.SocketPath != "" && o.FD >= 0:
		return errors.New("--socket-path and --fd exclude each other: give one")
	case o.SocketGroup != "" && o.SocketPath == "":
		return errors.New("--socket-group needs --socket-path: a socket passed by --fd has its group already")
	case o.JSON && !o.PrintPlan && !o.Check:
		return errors.New("--json goes with --print-plan or --check")
	case o.twice() != "":
		return fmt.Errorf("%s name the same descriptor: pass one for each", o.twice())
	case o.PosixACL != "never" && len(o.TranslateUID)+len(o.TranslateGID) > 0:
		return errors.New("--posix-acl and --translate-uid or --translate-gid exclude each other: access control lists hold ids, which are not translated inside them")
	case o.SingleUser != "" && len(o.TranslateUID)+len(o.TranslateGID) > 0:
		return errors.New("--single-user is a translation of ids itself: leave out --translate-uid and --translate-gid, or say all in their rules")
	case o.SingleUser != "" && o.PosixACL != "never":
		return errors.New("--single-user and --posix-acl exclude each other: access control lists hold ids, which are not translated inside them")
	case (len(o.UIDMap) > 0 || len(o.GIDMap) > 0) && o.Sandbox != SandboxNamespace:
		return fmt.Errorf("--uid-map and --gid-map need --sandbox=namespace, not %s: the map belongs to a user namespace that the daemon makes; a caller who sets the sandbox up maps ids himself (unshare --map-users, newuidmap)", o.Sandbox)
	}
	if len(o.UIDMap) > 0 {
		if err := o.UIDMap.Validate(); err != nil {
			return fmt.Errorf("--uid-map: %w", err)
		}
	}
	if len(o.GIDMap) > 0 {
		if err := o.GIDMap.Validate(); err != nil {
			return fmt.Errorf("--gid-map: %w", err)
		}
	}
	return nil
}

// SingleUserRules are the rules of --translate-uid and --translate-gid that --single-user stands for. uid and gid are what the
// daemon works as, in its user namespace.
func (o Options) SingleUserRules(uid, gid uint32) (uids, gids []string) {
	guestUID, guestGID := uid, gid
	if o.SingleUser != singleUserCaller {
		_, _ = fmt.Sscanf(o.SingleUser, "%d:%d", &guestUID, &guestGID) // parsed before
	}
	rules := func(own, guest uint32) []string {
		// All ids but the last, which means "none" to the kernel.
		r := []string{fmt.Sprintf("squash-guest:0:%d:%d", own, uint32(1<<32-2))}
		if own != guest {
			r = append(r, fmt.Sprintf("host:%d:%d:1", own, guest))
		}
		return r
	}
	return rules(uid, guestUID), rules(gid, guestGID)
}

// twice names two options that were given one descriptor, "" for none.
func (o Options) twice() string {
	seen := map[int]string{}
	for _, d := range o.Descriptors() {
		if other, ok := seen[d.FD]; ok {
			return other + " and " + d.Option
		}
		seen[d.FD] = d.Option
	}
	return ""
}

// Descriptor is one that an option names.
type Descriptor struct {
	Option string // with its hyphens
	FD     int
}

// Descriptors are those that the launcher is to have passed.
func (o Options) Descriptors() []Descriptor {
	all := []Descriptor{{"--fd", o.FD}, {"--report-fd", o.ReportFD}, {"--ready-fd", o.ReadyFD}, {"--stats-fd", o.StatsFD}}
	return slices.DeleteFunc(all, func(d Descriptor) bool { return d.FD < 0 })
}

// Usage is the text of --help.
func Usage() string {
	var b strings.Builder
	b.WriteString("virtiofsd shares a directory with a virtual machine over virtio-fs.\n\nUsage: virtiofsd --socket-path PATH --shared-dir DIR [OPTIONS]\n")
	for _, g := range groups {
		fmt.Fprintf(&b, "\n%s:\n", g)
		for _, f := range Flags() {
			if f.Group != g || f.Hidden {
				continue
			}
			name := "--" + f.Name
			if f.Short != "" {
				name = "-" + f.Short + ", " + name
			}
			switch {
			case f.Bare != "":
				name += "[=" + f.Arg + "]"
			case f.Arg != "":
				name += " " + f.Arg
			}
			fmt.Fprintf(&b, "  %-32s %s\n", name, f.Help)
		}
	}
	return b.String()
}

// Capabilities is the answer to --print-capabilities (QEMU docs/interop/vhost-user.rst, "Backend program conventions"). Only what works is
// announced.
func Capabilities() string {
	return `{
  "type": "fs",
  "features": [
    "separate-options",
    "posix-acl-negotiation-mode",
    "security-label-negotiation-mode"
  ]
}
`
}
