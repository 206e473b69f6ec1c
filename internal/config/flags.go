package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"virtiofsd/internal/idmap"
)

// Flag is one line of the table.
type Flag struct {
	Name, Short string
	Arg         string // what --help calls the argument, "" for a switch
	Bare        string // the value that the name alone stands for, where Arg may be left out
	Group       string
	Since       string // "" for what the Rust daemon has as well
	Help        string
	Hidden      bool     // accepted for launchers' sake
	Words       []string // the only values, nil for any
	set         func(*Options, string) error
}

// The groups, in the order of --help.
var groups = []string{"Share", "Connection", "Sandbox", "File system", "Queues", "Log", "Print and exit"}

func word(dst func(*Options) *string, words ...string) func(*Options, string) error {
	return func(o *Options, v string) error {
		if !slices.Contains(words, v) {
			return fmt.Errorf("is one of %s, not %q", strings.Join(words, ", "), v)
		}
		*dst(o) = v
		return nil
	}
}

// choice makes a flag whose values are words.
func choice(f Flag, dst func(*Options) *string, words ...string) Flag {
	f.Words, f.set = words, word(dst, words...)
	return f
}

// renamed makes a flag understand an older name of one of its values.
func renamed(old, name string, f Flag) Flag {
	set := f.set
	f.set = func(o *Options, v string) error {
		if v == old {
			v = name
		}
		return set(o, v)
	}
	return f
}

func text(dst func(*Options) *string) func(*Options, string) error {
	return func(o *Options, v string) error { *dst(o) = v; return nil }
}

func number(dst func(*Options) *int, least, most int) func(*Options, string) error {
	return func(o *Options, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < least || n > most {
			return fmt.Errorf("is a number from %d to %d, not %q", least, most, v)
		}
		*dst(o) = n
		return nil
	}
}

func on(dst func(*Options) *bool) func(*Options, string) error  { return constant(dst, true) }
func off(dst func(*Options) *bool) func(*Options, string) error { return constant(dst, false) }

func constant(dst func(*Options) *bool, v bool) func(*Options, string) error {
	return func(o *Options, _ string) error { *dst(o) = v; return nil }
}

func ranges(dst func(*Options) *idmap.Map) func(*Options, string) error {
	return func(o *Options, v string) error {
		r, err := idmap.Parse(v)
		if err != nil {
			return err
		}
		*dst(o) = append(*dst(o), r)
		return nil
	}
}

func list(dst func(*Options) *[]string) func(*Options, string) error {
	return func(o *Options, v string) error { *dst(o) = append(*dst(o), v); return nil }
}

// Flags is the table.
func Flags() []Flag {
	return []Flag{
		{Name: "shared-dir", Arg: "DIR", Group: "Share", Help: "directory to share", set: text(func(o *Options) *string { return &o.SharedDir })},
		{Name: "tag", Arg: "TAG", Group: "Share", Help: "mount tag, for front-ends that ask the device for it; at most 36 bytes", set: func(o *Options, v string) error {
			if v == "" || len(v) > 36 {
				return fmt.Errorf("is 1 to 36 bytes long, not %d", len(v))
			}
			o.Tag = v
			return nil
		}},
		{Name: "readonly", Group: "Share", Help: "refuse every change with EROFS", set: on(func(o *Options) *bool { return &o.Readonly })},

		{Name: "socket-path", Arg: "PATH", Group: "Connection", Help: "socket to listen on for the front-end", set: text(func(o *Options) *string { return &o.SocketPath })},
		{Name: "socket-group", Arg: "GROUP", Group: "Connection", Help: "group that may connect to the socket", set: text(func(o *Options) *string { return &o.SocketGroup })},
		{Name: "fd", Arg: "N", Group: "Connection", Help: "descriptor of a socket that is already listening; without it and --socket-path, the one of socket activation (LISTEN_FDS)", set: number(func(o *Options) *int { return &o.FD }, 0, 1<<20)},
		{Name: "socket", Arg: "PATH", Group: "Connection", Hidden: true, Help: "the older name of --socket-path", set: text(func(o *Options) *string { return &o.SocketPath })},
		{Name: "ready-fd", Arg: "N", Group: "Connection", Since: "this daemon", Help: "descriptor to which the line READY=1 is written when a front-end may connect, and which is then closed", set: number(func(o *Options) *int { return &o.ReadyFD }, 3, 1<<20)},
		{Name: "keep-listening", Group: "Connection", Since: "this daemon", Help: "serve again after the front-end has left, for VMMs that reconnect on reboot", set: on(func(o *Options) *bool { return &o.KeepListening })},

		choice(Flag{Name: "sandbox", Arg: "MODE", Group: "Sandbox", Help: "namespace: own namespaces and pivot_root; pivot_root: own mount namespace only, inside a sandbox of the caller; chroot; none"}, func(o *Options) *string { return &o.Sandbox }, SandboxNamespace, SandboxPivotRoot, SandboxChroot, SandboxNone),
		{Name: "uid-map", Arg: ":IN:OUT:COUNT:", Group: "Sandbox", Help: "map user ids into the sandbox's user namespace; may be repeated", set: ranges(func(o *Options) *idmap.Map { return &o.UIDMap })},
		{Name: "gid-map", Arg: ":IN:OUT:COUNT:", Group: "Sandbox", Help: "map group ids; may be repeated", set: ranges(func(o *Options) *idmap.Map { return &o.GIDMap })},
		{Name: "no-fail-setgroups", Group: "Sandbox", Since: "this daemon", Help: "go on where supplementary groups cannot be dropped, if one group id is mapped; without effect where more are", set: on(func(o *Options) *bool { return &o.NoFailSetgroups })},
		choice(Flag{Name: "seccomp", Arg: "ACTION", Group: "Sandbox", Help: "what a system call that is not on the list leads to: kill, trap, or log, which names it and lets it through; none installs no filter"}, func(o *Options) *string { return &o.Seccomp }, "none", "kill", "log", "trap"),
		choice(Flag{Name: "landlock", Arg: "WHEN", Group: "Sandbox", Since: "this daemon", Help: "auto, on, off: let the kernel's Landlock refuse all files outside the share; on fails where it cannot"}, func(o *Options) *string { return &o.Landlock }, "auto", "on", "off"),
		{Name: "modcaps", Arg: "LIST", Group: "Sandbox", Help: "change the capabilities that are kept: +cap adds, -cap drops, joined by colons", set: text(func(o *Options) *string { return &o.ModCaps })},
		{Name: "report-fd", Arg: "N", Group: "Sandbox", Since: "this daemon", Help: "descriptor to which the state of the finished sandbox, as read back from /proc, is written as one line of JSON", set: number(func(o *Options) *int { return &o.ReportFD }, 3, 1<<20)},
		{Name: "rlimit-nofile", Arg: "N", Group: "Sandbox", Help: "limit of open files; 0 leaves it as it is; default: 1000000, or what fs.nr_open and fs.file-max leave", set: func(o *Options, v string) error {
			n, err := strconv.ParseUint(v, 10, 31)
			if err != nil || n > 0 && n < MinFiles {
				return fmt.Errorf("is 0 or a number from %d on, not %q", MinFiles, v)
			}
			o.RlimitNofile, o.RlimitNofileSet = n, true
			return nil
		}},

		renamed("none", "never", choice(Flag{Name: "cache", Arg: "POLICY", Group: "File system", Help: "what the guest may cache: auto, always, metadata, never"}, func(o *Options) *string { return &o.Cache }, "auto", "always", "metadata", "never")),
		{Name: "xattr", Group: "File system", Help: "pass extended attributes through", set: on(func(o *Options) *bool { return &o.Xattr })},
		{Name: "xattrmap", Arg: "RULES", Group: "File system", Help: "map names of extended attributes; implies --xattr", set: func(o *Options, v string) error {
			o.XattrMap, o.Xattr = v, true
			return nil
		}},
		{Name: "posix-acl", Arg: "WHEN", Bare: "always", Group: "File system", Help: "never, auto, always: POSIX access control lists; implies --xattr", Words: negotiation, set: negotiate(func(o *Options) *string { return &o.PosixACL })},
		{Name: "security-label", Arg: "WHEN", Bare: "always", Group: "File system", Help: "never, auto, always: security labels on new files; implies --xattr", Words: negotiation, set: negotiate(func(o *Options) *string { return &o.SecurityLabel })},
		{Name: "writeback", Group: "File system", Help: "let the guest write back its cache", set: on(func(o *Options) *bool { return &o.Writeback })},
		{Name: "no-readdirplus", Group: "File system", Help: "list directories without attributes", set: on(func(o *Options) *bool { return &o.NoReaddirplus })},
		{Name: "announce-submounts", Group: "File system", Help: "tell the guest about mount points in the share (default)", set: on(func(o *Options) *bool { return &o.AnnounceSubmounts })},
		{Name: "no-announce-submounts", Group: "File system", Help: "do not tell the guest about mount points in the share", set: off(func(o *Options) *bool { return &o.AnnounceSubmounts })},
		{Name: "allow-direct-io", Group: "File system", Help: "honour O_DIRECT of guest programs on the host", set: on(func(o *Options) *bool { return &o.AllowDirectIO })},
		{Name: "no-allow-direct-io", Group: "File system", Hidden: true, Help: "the default: no O_DIRECT on the host", set: off(func(o *Options) *bool { return &o.AllowDirectIO })},
		{Name: "allow-mmap", Group: "File system", Help: "allow shared mappings where the cache policy is metadata or never", set: on(func(o *Options) *bool { return &o.AllowMmap })},
		{Name: "killpriv-v2", Group: "File system", Help: "clear set-id bits on the host when data changes (default)", set: on(func(o *Options) *bool { return &o.KillprivV2 })},
		{Name: "no-killpriv-v2", Group: "File system", Help: "leave that to the guest, which then needs a second request to truncate a file that it opens", set: off(func(o *Options) *bool { return &o.KillprivV2 })},
		{Name: "preserve-noatime", Group: "File system", Help: "honour O_NOATIME of guest programs", set: on(func(o *Options) *bool { return &o.PreserveNoatime })},
		renamed("fallback", "prefer", choice(Flag{Name: "inode-file-handles", Arg: "WHEN", Group: "File system", Help: "never, prefer, mandatory: find files again by export handle; a daemon that may do so (CAP_DAC_READ_SEARCH) could open any file of the share's file system"}, func(o *Options) *string { return &o.InodeFileHandles }, "never", "prefer", "mandatory")),
		{Name: "translate-uid", Arg: "RULE", Group: "File system", Help: "translate user ids between guest and host in software; may be repeated", set: list(func(o *Options) *[]string { return &o.TranslateUID })},
		{Name: "translate-gid", Arg: "RULE", Group: "File system", Help: "translate group ids; may be repeated", set: list(func(o *Options) *[]string { return &o.TranslateGID })},
		{Name: "single-user", Arg: "UID:GID", Bare: singleUserCaller, Group: "File system", Since: "this daemon", Help: "for a daemon without privilege: whatever the guest's users make belongs to the daemon's user, whose files show in the guest as UID:GID (without a value: the daemon's own ids)", set: singleUser},
		{Name: "flock", Group: "File system", Since: "this daemon", Help: "take flock locks on the host", set: on(func(o *Options) *bool { return &o.Flock })},
		{Name: "posix-lock", Group: "File system", Since: "this daemon", Help: "take POSIX record locks on the host", set: on(func(o *Options) *bool { return &o.PosixLock })},
		choice(Flag{Name: "migration-mode", Arg: "MODE", Group: "File system", Hidden: true, Help: "accepted: find-paths, file-handles"}, func(o *Options) *string { return &o.MigrationMode }, "find-paths", "file-handles"),
		choice(Flag{Name: "migration-on-error", Arg: "WHAT", Group: "File system", Hidden: true, Help: "accepted: abort, guest-error"}, func(o *Options) *string { return &o.MigrationOnError }, "abort", "guest-error"),
		{Name: "migration-verify-handles", Group: "File system", Hidden: true, Help: "accepted", set: on(func(o *Options) *bool { return &o.MigrationVerifyHandles })},
		{Name: "migration-confirm-paths", Group: "File system", Hidden: true, Help: "accepted", set: on(func(o *Options) *bool { return &o.MigrationConfirms })},

		{Name: "thread-pool-size", Arg: "N", Group: "Queues", Help: "threads of a queue that serve at the same time, besides those that wait for the host's file system; 0 chooses: 2, or 1 where polling is off", set: number(func(o *Options) *int { return &o.ThreadPoolSize }, 0, 1024)},
		{Name: "request-queues", Arg: "N", Group: "Queues", Since: "this daemon", Help: "largest number of request queues that a front-end may use", set: number(func(o *Options) *int { return &o.RequestQueues }, 1, 64)},
		{Name: "poll-us", Arg: "N", Group: "Queues", Since: "this daemon", Help: "longest time in microseconds to poll a busy queue before sleeping; 0 never polls", set: number(func(o *Options) *int { return &o.PollMicros }, 0, 1000)},

		{Name: "log-level", Arg: "LEVEL", Group: "Log", Help: "error, warn, info, debug, trace, off; RUST_LOG overrides it", Words: []string{"error", "warn", "info", "debug", "trace", "off"}, set: func(o *Options, v string) error {
			return word(func(o *Options) *string { return &o.LogLevel }, "error", "warn", "info", "debug", "trace", "off")(o, strings.ToLower(v))
		}},
		choice(Flag{Name: "log-format", Arg: "FORMAT", Group: "Log", Since: "this daemon", Help: "text, or json: one object per line, with time, level and msg"}, func(o *Options) *string { return &o.LogFormat }, "text", "json"),
		{Name: "syslog", Group: "Log", Help: "log to syslog instead of standard error", set: on(func(o *Options) *bool { return &o.Syslog })},
		{Name: "stats-fd", Arg: "N", Group: "Log", Since: "this daemon", Help: "descriptor to which the counters are written as a line of JSON on SIGUSR1, and when a front-end has left; without it SIGUSR1 writes them to the log", set: number(func(o *Options) *int { return &o.StatsFD }, 3, 1<<20)},
		{Name: "debug", Short: "d", Group: "Log", Hidden: true, Help: "--log-level debug", set: func(o *Options, _ string) error { o.LogLevel = "debug"; return nil }},
		{Name: "foreground", Short: "f", Group: "Log", Hidden: true, Help: "accepted: the daemon always stays in the foreground", set: func(*Options, string) error { return nil }},

		{Name: "help", Short: "h", Group: "Print and exit", Help: "show this help", set: on(func(o *Options) *bool { return &o.Help })},
		{Name: "version", Short: "V", Group: "Print and exit", Help: "show the version", set: on(func(o *Options) *bool { return &o.Version })},
		{Name: "print-capabilities", Group: "Print and exit", Help: "show what this back-end can do as JSON, as the vhost-user conventions ask", set: on(func(o *Options) *bool { return &o.PrintCapabilities })},
		choice(Flag{Name: "completion", Arg: "SHELL", Group: "Print and exit", Since: "this daemon", Help: "show the completion for bash, zsh or fish"}, func(o *Options) *string { return &o.Completion }, "bash", "zsh", "fish"),
		{Name: "print-plan", Group: "Print and exit", Since: "this daemon", Help: "show what the sandbox would do with these options, step by step and why", set: on(func(o *Options) *bool { return &o.PrintPlan })},
		{Name: "check", Group: "Print and exit", Since: "this daemon", Help: "show which ways of sandboxing work for this caller on this host, which one to use, and what the others lack", set: on(func(o *Options) *bool { return &o.Check })},
		{Name: "json", Group: "Print and exit", Since: "this daemon", Help: "with --print-plan or --check: as JSON", set: on(func(o *Options) *bool { return &o.JSON })},

		{Name: "option", Short: "o", Arg: "WORDS", Group: "File system", Hidden: true, Help: "options of the C virtiofsd, joined by commas", set: compat},
	}
}

// singleUserCaller is the bare --single-user: show files with the ids that the daemon works as.
const singleUserCaller = "caller"

func singleUser(o *Options, v string) error {
	if v != singleUserCaller {
		var uid, gid uint32
		if n, err := fmt.Sscanf(v+"\n", "%d:%d\n", &uid, &gid); err != nil || n != 2 {
			return fmt.Errorf("is two ids of the guest such as 1000:1000, not %q", v)
		}
	}
	o.SingleUser = v
	return nil
}

// negotiation are the words by which a feature is left out, left to the front-end, or asked for.
var negotiation = []string{"never", "auto", "always"}

func negotiate(dst func(*Options) *string) func(*Options, string) error {
	return func(o *Options, v string) error {
		if err := word(dst, negotiation...)(o, v); err != nil {
			return err
		}
		if v != "never" {
			o.Xattr = true
		}
		return nil
	}
}

// compatWords are the words of -o by what they mean here: "NAME" takes a value, "NAME=VALUE" is the meaning of the bare word, and ""
// is accepted and has none.
var compatWords = map[string]string{
	"source": "shared-dir", "cache": "cache", "sandbox": "sandbox", "xattrmap": "xattrmap", "modcaps": "modcaps", "log_level": "log-level", "loglevel": "log-level",
	"xattr": "xattr=", "writeback": "writeback=", "allow_direct_io": "allow-direct-io=", "announce_submounts": "announce-submounts=",
	"no_announce_submounts": "no-announce-submounts=", "killpriv_v2": "killpriv-v2=", "no_killpriv_v2": "no-killpriv-v2=",
	"posix_acl": "posix-acl=always", "no_posix_acl": "posix-acl=never", "security_label": "security-label=always", "no_security_label": "security-label=never",
	"no_readdirplus": "no-readdirplus=", "readdirplus": "", "no_xattr": "", "no_writeback": "", "no_allow_direct_io": "no-allow-direct-io=",
	"flock": "flock=", "no_flock": "", "posix_lock": "posix-lock=", "no_posix_lock": "",
}

// compat reads the comma list of -o. A doubled comma is a comma of the value, as launchers write it into paths.
func compat(o *Options, v string) error {
	const mark = "\x00"
	for _, w := range strings.Split(strings.ReplaceAll(v, ",,", mark), ",") {
		w = strings.ReplaceAll(w, mark, ",")
		if w == "" {
			continue
		}
		name, value, has := strings.Cut(w, "=")
		to, known := compatWords[name]
		flag, fixed, bare := strings.Cut(to, "=")
		switch {
		case !known:
			return fmt.Errorf("has the unknown word %q; see --help for the options of today", w)
		case to == "":
			continue
		case bare && has:
			return fmt.Errorf("has %q, which takes no value", w)
		case !bare && !has:
			return fmt.Errorf("has %q, which takes a value", w)
		case bare:
			value = fixed
		}
		i := slices.IndexFunc(Flags(), func(f Flag) bool { return f.Name == flag })
		if err := Flags()[i].set(o, value); err != nil {
			return fmt.Errorf("has %s, which %w", name, err)
		}
	}
	return nil
}
