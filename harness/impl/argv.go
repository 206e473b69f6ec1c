package impl

import (
	"fmt"
	"strconv"
	"strings"

	"virtiofsd/harness/scenario"
)

// Options are what a daemon is asked to do: a scenario's neutral words, and where.
type Options struct {
	SharedDir  string
	SocketPath string
	scenario.Options
}

// InexpressibleError says that a daemon has no option for something.
type InexpressibleError struct {
	Impl   string
	Option string
}

func (e *InexpressibleError) Error() string {
	return fmt.Sprintf("%s has no way to say %s", e.Impl, e.Option)
}

// Argv returns the daemon's whole command line, or an *InexpressibleError.
func (i *Impl) Argv(o Options) ([]string, error) {
	if i.Missing != "" {
		return nil, fmt.Errorf("implementation %s is missing: %s", i.Name, i.Missing)
	}
	argv := append(append([]string{}, i.Prefix...), i.Path)
	var args []string
	var err error
	if i.Dialect == DialectC || i.Dialect == DialectC5 {
		args, err = i.c(o)
	} else {
		args, err = i.rust(o)
	}
	return append(argv, args...), err
}

func (i *Impl) no(option string) error { return &InexpressibleError{Impl: i.Name, Option: option} }

// rust is the dialect of the Rust virtiofsd (its README), which ours extends by pivot_root and --no-fail-setgroups.
func (i *Impl) rust(o Options) ([]string, error) {
	args := []string{"--socket-path=" + o.SocketPath, "--shared-dir=" + o.SharedDir}
	if i.Dialect != DialectOurs {
		switch {
		case o.Sandbox == "pivot_root":
			return nil, i.no("--sandbox=pivot_root")
		case o.NoFailSetgroups:
			return nil, i.no("--no-fail-setgroups")
		}
	}
	for _, f := range []struct{ flag, value string }{
		{"--sandbox", o.Sandbox}, {"--cache", o.Cache}, {"--inode-file-handles", o.InodeFileHandles},
		{"--modcaps", o.Modcaps}, {"--seccomp", o.Seccomp},
	} {
		if f.value != "" {
			args = append(args, f.flag+"="+f.value)
		}
	}
	for _, f := range []struct {
		flag string
		on   bool
	}{
		{"--xattr", o.Xattr}, {"--posix-acl", o.PosixACL}, {"--security-label", o.SecurityLabel}, {"--readonly", o.Readonly},
		{"--writeback", o.Writeback}, {"--killpriv-v2", o.KillprivV2}, {"--allow-direct-io", o.AllowDirectIO},
		{"--allow-mmap", o.AllowMmap}, {"--announce-submounts", o.AnnounceSubmounts}, {"--no-fail-setgroups", o.NoFailSetgroups},
	} {
		if f.on {
			args = append(args, f.flag)
		}
	}
	if o.ThreadPoolSize > 0 {
		args = append(args, "--thread-pool-size="+strconv.Itoa(o.ThreadPoolSize))
	}
	if o.RlimitNofile > 0 {
		args = append(args, "--rlimit-nofile="+strconv.Itoa(o.RlimitNofile))
	}
	for _, l := range []struct {
		flag   string
		values []string
	}{
		{"--uid-map", o.UIDMap}, {"--gid-map", o.GIDMap}, {"--translate-uid", o.TranslateUID}, {"--translate-gid", o.TranslateGID},
	} {
		for _, v := range l.values {
			args = append(args, l.flag+"="+v)
		}
	}
	return append(args, o.Extra...), nil
}

// c is the dialect of QEMU 7.2's virtiofsd (docs/tools/virtiofsd.rst in QEMU).
func (i *Impl) c(o Options) ([]string, error) {
	words := "source=" + o.SharedDir
	switch o.Sandbox {
	case "":
	case "namespace", "chroot":
		if i.Dialect == DialectC5 { // it has no word for its only sandbox
			if o.Sandbox == "chroot" {
				return nil, i.no("sandbox chroot")
			}
			break
		}
		words += ",sandbox=" + o.Sandbox
	default:
		return nil, i.no("sandbox " + o.Sandbox)
	}
	switch o.Cache {
	case "":
	case "auto", "always":
		words += ",cache=" + o.Cache
	case "never":
		words += ",cache=none"
	default:
		return nil, i.no("cache " + o.Cache)
	}
	for _, no := range []struct {
		what string
		is   bool
	}{
		{"readonly", o.Readonly}, {"id maps", len(o.UIDMap)+len(o.GIDMap) > 0}, {"id translation", len(o.TranslateUID)+len(o.TranslateGID) > 0},
		{"--no-fail-setgroups", o.NoFailSetgroups}, {"--inode-file-handles", o.InodeFileHandles != ""}, {"--seccomp", o.Seccomp != ""},
		{"--allow-mmap", o.AllowMmap}, {strings.Join(o.Extra, " "), len(o.Extra) > 0},
	} {
		if no.is {
			return nil, i.no(no.what)
		}
	}
	for _, w := range []struct {
		word string
		on   bool
	}{
		{"xattr", o.Xattr}, {"posix_acl", o.PosixACL}, {"security_label", o.SecurityLabel}, {"writeback", o.Writeback},
		{"killpriv_v2", o.KillprivV2}, {"allow_direct_io", o.AllowDirectIO}, {"announce_submounts", o.AnnounceSubmounts},
		{"modcaps=" + o.Modcaps, o.Modcaps != ""},
	} {
		if w.on {
			words += "," + w.word
		}
	}
	args := []string{"--socket-path=" + o.SocketPath, "-o", words}
	if o.ThreadPoolSize > 0 {
		args = append(args, "--thread-pool-size="+strconv.Itoa(o.ThreadPoolSize))
	}
	if o.RlimitNofile > 0 {
		args = append(args, "--rlimit-nofile="+strconv.Itoa(o.RlimitNofile))
	}
	return args, nil
}
