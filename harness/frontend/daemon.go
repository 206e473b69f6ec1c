package frontend

import (
	"fmt"
	"strconv"
)

// Daemon is an implementation to run: how it is called and which options it understands.
type Daemon struct {
	Name    string   // for people: ours, c, rust, rust-1.14 …
	Dialect string   // ours, c, c5 (C's before QEMU 5.2) or rust
	Exec    []string // program, with a loader before it if it needs one
	Sandbox string   // none, chroot, namespace; "" = none, or what comes next to it where the daemon has no none
}

// Options are what the benchmark and the hostile cases want of a daemon.
type Options struct {
	Share, Socket string
	Sandbox       string // "" is the daemon's
	Cache         string // "" = auto
	Pool          int    // --thread-pool-size; 0 leaves the daemon's default
	Extra         []string
}

// Argv is the daemon's command line.
func (d Daemon) Argv(o Options) ([]string, error) {
	if o.Sandbox == "" {
		o.Sandbox = d.Sandbox
	}
	if o.Sandbox == "" {
		o.Sandbox = "none"
		switch d.Dialect {
		case "c":
			o.Sandbox = "chroot"
		case "c5":
			o.Sandbox = "namespace"
		}
	}
	if o.Cache == "" {
		o.Cache = "auto"
	}
	argv := append([]string(nil), d.Exec...)
	switch d.Dialect {
	case "c":
		argv = append(argv, "--socket-path="+o.Socket, "-o", "source="+o.Share+",xattr,cache="+o.Cache+",sandbox="+o.Sandbox)
	case "c5":
		if o.Sandbox != "namespace" {
			return nil, fmt.Errorf("daemon %s has no sandbox but namespace", d.Name)
		}
		argv = append(argv, "--socket-path="+o.Socket, "-o", "source="+o.Share+",xattr,cache="+o.Cache)
	case "ours", "rust":
		argv = append(argv, "--socket-path="+o.Socket, "--shared-dir="+o.Share, "--xattr", "--cache="+o.Cache, "--sandbox="+o.Sandbox)
	default:
		return nil, fmt.Errorf("daemon %s: unknown dialect %q", d.Name, d.Dialect)
	}
	if o.Pool != 0 {
		argv = append(argv, "--thread-pool-size="+strconv.Itoa(o.Pool))
	}
	return append(argv, o.Extra...), nil
}
