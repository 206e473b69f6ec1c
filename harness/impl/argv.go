package impl

import (
	"fmt"
	"strconv"
)

// Options are what a daemon is asked to do, in neutral words. Zero values leave the daemon's default.
type Options struct {
	SharedDir       string
	SocketPath      string
	Sandbox         string // namespace, pivot_root, chroot, none
	Cache           string // auto, always, metadata, never
	Xattr           bool
	PosixACL        bool
	Readonly        bool
	Writeback       bool
	ThreadPoolSize  int
	UIDMap          []string // as in --uid-map
	GIDMap          []string
	NoFailSetgroups bool
	Extra           []string // arguments of the ours and rust dialects, as they are
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
	if i.Dialect == DialectC {
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
	if o.Sandbox != "" {
		args = append(args, "--sandbox="+o.Sandbox)
	}
	if o.Cache != "" {
		args = append(args, "--cache="+o.Cache)
	}
	for _, f := range []struct {
		on   bool
		flag string
	}{{o.Xattr, "--xattr"}, {o.PosixACL, "--posix-acl"}, {o.Readonly, "--readonly"}, {o.Writeback, "--writeback"}, {o.NoFailSetgroups, "--no-fail-setgroups"}} {
		if f.on {
			args = append(args, f.flag)
		}
	}
	if o.ThreadPoolSize > 0 {
		args = append(args, "--thread-pool-size="+strconv.Itoa(o.ThreadPoolSize))
	}
	for _, m := range o.UIDMap {
		args = append(args, "--uid-map="+m)
	}
	for _, m := range o.GIDMap {
		args = append(args, "--gid-map="+m)
	}
	return append(args, o.Extra...), nil
}

// c is the dialect of QEMU 7.2's virtiofsd (docs/tools/virtiofsd.rst in QEMU).
func (i *Impl) c(o Options) ([]string, error) {
	words := "source=" + o.SharedDir
	switch o.Sandbox {
	case "":
	case "namespace", "chroot":
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
	switch {
	case o.Readonly:
		return nil, i.no("readonly")
	case len(o.UIDMap) > 0 || len(o.GIDMap) > 0:
		return nil, i.no("id maps")
	case o.NoFailSetgroups:
		return nil, i.no("--no-fail-setgroups")
	case len(o.Extra) > 0:
		return nil, i.no(fmt.Sprint(o.Extra))
	}
	if o.Xattr {
		words += ",xattr"
	}
	if o.PosixACL {
		words += ",posix_acl"
	}
	if o.Writeback {
		words += ",writeback"
	}
	args := []string{"--socket-path=" + o.SocketPath, "-o", words}
	if o.ThreadPoolSize > 0 {
		args = append(args, "--thread-pool-size="+strconv.Itoa(o.ThreadPoolSize))
	}
	return args, nil
}
