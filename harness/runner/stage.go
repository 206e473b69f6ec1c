package runner

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/impl"
	"virtiofsd/harness/probe"
	"virtiofsd/harness/scenario"
)

// fileMode turns the bits of chmod(2) into Go's.
func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for bit, f := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= f
		}
	}
	return mode
}

// plant makes one entry of the share.
func (c *cell) plant(p scenario.Plant) error {
	path := filepath.Join(c.share, p.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	mode := p.Mode
	var err error
	switch p.Kind {
	case "dir":
		if mode == 0 {
			mode = 0o755
		}
		err = os.MkdirAll(path, 0o755)
	case "file":
		if mode == 0 {
			mode = 0o644
		}
		err = os.WriteFile(path, []byte(c.replace(p.Content)), 0o600)
	case "symlink":
		err = os.Symlink(c.replace(p.Target), path)
	case "fifo":
		if mode == 0 {
			mode = 0o644
		}
		err = unix.Mkfifo(path, 0o600)
	default:
		err = fmt.Errorf("unknown kind %q", p.Kind)
	}
	if err == nil && os.Geteuid() == 0 {
		err = os.Lchown(path, p.UID, p.GID)
	}
	if err == nil && p.Kind != "symlink" {
		err = os.Chmod(path, fileMode(mode))
	}
	return err
}

// replace puts the cell's paths into a scenario's words.
func (c *cell) replace(s string) string {
	return strings.NewReplacer("{outside}", c.outside, "{share}", c.share, "{socket}", c.socket, "{secret}", c.secret).Replace(s)
}

// substitute does so in all strings of a step's arguments.
func (c *cell) substitute(args map[string]any) map[string]any {
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case string:
			return c.replace(v)
		case []any:
			out := []any{}
			for _, e := range v {
				out = append(out, walk(e))
			}
			return out
		case map[string]any:
			out := map[string]any{}
			for k, e := range v {
				out[k] = walk(e)
			}
			return out
		}
		return v
	}
	if args == nil {
		return map[string]any{}
	}
	return walk(args).(map[string]any)
}

// args completes a guest step's arguments with what only the cell knows, and returns what must be stopped when the step is over; it may
// add facts.
func (c *cell) args(s scenario.Step) (map[string]any, func() map[string]any, error) {
	a := c.substitute(s.Args)
	nothing := func() map[string]any { return nil }
	switch s.Probe {
	case guestproto.CallContainment:
	case guestproto.CallChurn:
		a["secret"] = c.secret
		seed, _ := a["seed"].(int64)
		changes := probe.StartChanges(c.share, filepath.Join(guestproto.CallChurn, "tree"), seed, filepath.Join(c.outside, "sentinel"))
		return a, func() map[string]any { return map[string]any{"host_changes": changes.Stop()} }, nil
	default:
		return a, nothing, nil
	}
	sub := guestproto.CallContainment
	if d, ok := a["dir"].(string); ok && d != "" {
		sub = filepath.Clean(d)
	}
	links := []any{}
	for _, p := range c.s.Plant {
		if p.Kind == "symlink" && filepath.Dir(p.Path) == sub {
			links = append(links, filepath.Base(p.Path))
		}
	}
	for k, v := range map[string]any{
		"secret": c.secret, "outside": []any{filepath.Join(c.outside, "sentinel"), c.outside},
		"up_path": "../outside/sentinel", "sentinel_name": "sentinel", "host_links": links,
	} {
		if _, ok := a[k]; !ok {
			a[k] = v
		}
	}
	name, _ := a["host_race"].(string)
	if name == "" {
		return a, nothing, nil
	}
	stop, err := race(filepath.Join(c.share, sub), name, fmt.Sprint(a["sentinel_name"]), c.outside)
	return a, stop, err
}

// race keeps exchanging a directory of the share and a symbolic link that points outside, until stopped.
func race(dir, name, sentinel, outside string) (func() map[string]any, error) {
	path, link := filepath.Join(dir, name), filepath.Join(dir, name+".link")
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(path, sentinel), []byte("inside"), 0o644); err != nil {
		return nil, err
	}
	if err := os.Symlink(outside, link); err != nil {
		return nil, err
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
				// A failing exchange leaves the directory: the race is then no race, and the guest's count of opens says nothing wrong.
				_ = unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	}()
	return func() map[string]any { close(quit); <-done; return nil }, nil
}

// wrap is what goes before the daemon's command line.
func (c *cell) wrap() []string {
	var w []string
	if caps := c.s.Launch.Capabilities; caps != nil {
		set := "-all"
		for _, n := range caps {
			if n != "none" {
				set += ",+" + strings.ToLower(strings.TrimPrefix(n, "CAP_"))
			}
		}
		w = append(w, "setpriv", "--bounding-set="+set, "--inh-caps=-all")
		if u := c.user(); u != nil {
			w = append(w, fmt.Sprintf("--reuid=%d", u.UID), fmt.Sprintf("--regid=%d", u.GID))
			if len(u.Groups) == 0 {
				w = append(w, "--clear-groups")
			} else {
				w = append(w, "--groups="+strings.Trim(strings.ReplaceAll(fmt.Sprint(u.Groups), " ", ","), "[]"))
			}
		}
		w = append(w, "--")
	}
	for _, word := range c.s.Launch.Wrap {
		w = append(w, c.replace(word))
	}
	return w
}

// accounts adds the scenario's user and its subordinate ids to copies of the machine's files, to be bound over them for the
// daemon alone.
func (c *cell) accounts(etc map[string]string) error {
	l := c.s.Launch
	if l.As == "" || l.As == "root" {
		return nil
	}
	add := map[string]string{
		"/etc/passwd": fmt.Sprintf("%s:x:%d:%d::/:/bin/sh\n", l.As, l.UID, l.GID),
		"/etc/group":  fmt.Sprintf("%s:x:%d:\n", l.As, l.GID),
	}
	for file, ranges := range map[string]string{"/etc/subuid": l.SubUID, "/etc/subgid": l.SubGID} {
		for r := range strings.FieldsFuncSeq(ranges, func(c rune) bool { return c == ',' }) {
			add[file] += fmt.Sprintf("%s:%s\n", l.As, r)
		}
	}
	dir := filepath.Join(c.work, "etc")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, target := range slices.Sorted(maps.Keys(add)) {
		b, err := os.ReadFile(target)
		if err != nil {
			return fmt.Errorf("%w; remedy: create it (an empty file will do)", err)
		}
		if len(b) > 0 && b[len(b)-1] != '\n' {
			b = append(b, '\n')
		}
		file := filepath.Join(dir, filepath.Base(target))
		if err := os.WriteFile(file, append(b, add[target]...), 0o644); err != nil {
			return err
		}
		etc[target] = file
	}
	return nil
}

// reachable returns the implementation at a place where the scenario's user can start it. A program below a directory that is
// closed to others (root's home, a build's) is bound into the work directory, for the daemon alone.
func (c *cell) reachable() (*impl.Impl, map[string]string, error) {
	etc := map[string]string{}
	if c.user() == nil && c.s.Launch.Capabilities == nil || c.user() != nil && c.user().UID == 0 {
		return c.i, etc, nil
	}
	open := openToAll(c.i.Path)
	base := filepath.Dir(c.i.Path)
	if len(c.i.Prefix) > 0 {
		open = open && openToAll(c.i.Prefix[0])
		for !strings.HasPrefix(c.i.Prefix[0], base+"/") && base != "/" {
			base = filepath.Dir(base)
		}
	}
	if open {
		return c.i, etc, nil
	}
	at := filepath.Join(c.work, "impl")
	if err := os.Mkdir(at, 0o755); err != nil {
		return nil, nil, err
	}
	etc[at] = base
	moved := *c.i
	moved.Path = strings.Replace(c.i.Path, base, at, 1)
	moved.Prefix = nil
	for _, p := range c.i.Prefix {
		moved.Prefix = append(moved.Prefix, strings.ReplaceAll(p, base, at))
	}
	return &moved, etc, nil
}

// openToAll reports whether every user may pass the directories of a path.
func openToAll(path string) bool {
	for d := filepath.Dir(path); ; d = filepath.Dir(d) {
		st, err := os.Stat(d)
		if err != nil || st.Mode().Perm()&0o001 == 0 {
			return false
		}
		if _, ok := st.Sys().(*syscall.Stat_t); !ok || d == "/" {
			return ok
		}
	}
}

// repro writes a script that runs this cell again.
func (c *cell) repro() error {
	var q []string
	for _, a := range c.daemon.Argv {
		q = append(q, "'"+strings.ReplaceAll(a, "'", `'\''`)+"'")
	}
	text := fmt.Sprintf("#!/bin/sh\n# Runs this cell again. The daemon's command line was:\n#   %s\nexec \"${VFSMATRIX:-bin/vfsmatrix}\" run '%s' --impl '%s' --kernel '%s' \"$@\"\n",
		strings.Join(q, " "), c.id.Scenario, c.id.Impl, c.id.Kernel)
	return os.WriteFile(filepath.Join(c.dir, "repro.sh"), []byte(text), 0o755)
}
