package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// namespaces are those of namespaces(7) that a sandbox may have of its own.
var namespaces = []string{"mnt", "pid", "net", "ipc", "uts", "cgroup", "user"}

// Target is the daemon to look at.
type Target struct {
	Launcher int    // the process that started it
	Tree     []int  // its live processes, the first process first
	Serving  int    // the one that serves the guest
	Share    string // the shared directory, as the launcher names it
}

// CollectProc reads /proc of the daemon's processes and of their launcher.
func CollectProc(t Target) (*Proc, error) {
	if len(t.Tree) == 0 {
		return nil, errors.New("the daemon has no live process")
	}
	launcher, err := process(t.Launcher, t.Share)
	if err != nil {
		return nil, err
	}
	p := &Proc{Launcher: *launcher, Serving: -1}
	for i, pid := range t.Tree {
		one, err := process(pid, t.Share)
		if err != nil {
			return nil, err
		}
		p.Processes = append(p.Processes, *one)
		if pid == t.Serving {
			p.Serving = i
		}
	}
	if p.Serving < 0 {
		return nil, fmt.Errorf("serving process %d is not in the tree %v", t.Serving, t.Tree)
	}
	return p, nil
}

func process(pid int, share string) (*Process, error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	p := &Process{PID: pid, Namespaces: map[string]string{}}
	var err error
	read := func(name string) string {
		b, e := os.ReadFile(filepath.Join(dir, name))
		if e != nil && err == nil {
			err = e
		}
		return strings.TrimSpace(string(b))
	}
	link := func(name string) string {
		s, e := os.Readlink(filepath.Join(dir, name))
		if e != nil && err == nil {
			err = e
		}
		return s
	}
	p.Comm = read("comm")
	p.Exe, _ = os.Readlink(filepath.Join(dir, "exe")) // the only one that may be unreadable and does not matter
	p.Root, p.Cwd = link("root"), link("cwd")
	p.UIDMap, p.GIDMap, p.Setgroups = idMap(read("uid_map")), idMap(read("gid_map")), read("setgroups")
	for _, n := range namespaces {
		p.Namespaces[n] = link("ns/" + n)
	}
	if err != nil {
		return nil, fmt.Errorf("look at process %d: %w", pid, err)
	}
	if p.RootIsDir, err = whatDir(filepath.Join(dir, "root"), share); err != nil {
		return nil, err
	}
	if p.CwdIsDir, err = whatDir(filepath.Join(dir, "cwd"), share); err != nil {
		return nil, err
	}
	tasks, err := os.ReadDir(filepath.Join(dir, "task"))
	if err != nil {
		return nil, fmt.Errorf("look at process %d: %w", pid, err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(filepath.Join(dir, "task", task.Name(), "status"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // a thread that has just ended
		}
		if err != nil {
			return nil, fmt.Errorf("look at thread %s of process %d: %w", task.Name(), pid, err)
		}
		th, err := parseStatus(string(b))
		if err != nil {
			return nil, fmt.Errorf("look at thread %s of process %d: %w", task.Name(), pid, err)
		}
		p.Threads = append(p.Threads, th)
	}
	if len(p.Threads) == 0 {
		return nil, fmt.Errorf("process %d has no threads: it has ended", pid)
	}
	return p, nil
}

// idMap joins a map's fields by single spaces and its lines by ", ".
func idMap(s string) string {
	var lines []string
	for l := range strings.Lines(s) {
		lines = append(lines, strings.Join(strings.Fields(l), " "))
	}
	return strings.Join(lines, ", ")
}

// whatDir tells a directory by device and inode: the launcher's root, the share, or another.
func whatDir(path, share string) (string, error) {
	var st, host, shared unix.Stat_t
	for p, s := range map[string]*unix.Stat_t{path: &st, "/": &host, share: &shared} {
		if err := unix.Stat(p, s); err != nil {
			return "", fmt.Errorf("stat %s: %w", p, err)
		}
	}
	switch {
	case same(&st, &shared):
		return "share", nil
	case same(&st, &host):
		return "host", nil
	}
	return "other", nil
}

func same(a, b *unix.Stat_t) bool { return a.Dev == b.Dev && a.Ino == b.Ino }

// parseStatus reads a thread's status (proc(5), /proc/PID/status). Every field must be there.
func parseStatus(s string) (Thread, error) {
	t := Thread{Groups: []int{}}
	missing := map[string]bool{"Pid": true, "Uid": true, "Gid": true, "Groups": true, "CapInh": true, "CapPrm": true, "CapEff": true, "CapBnd": true, "CapAmb": true, "NoNewPrivs": true, "Seccomp": true}
	for line := range strings.Lines(s) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\n"), ":")
		if !missing[name] {
			continue
		}
		fields := strings.Fields(value)
		var err error
		switch name {
		case "Pid":
			err = ints(fields, &t.TID)
		case "Uid":
			err = ints(fields, &t.UID[0], &t.UID[1], &t.UID[2], &t.UID[3])
		case "Gid":
			err = ints(fields, &t.GID[0], &t.GID[1], &t.GID[2], &t.GID[3])
		case "Groups":
			for _, f := range fields {
				var g int
				if e := ints([]string{f}, &g); e != nil {
					err = e
				}
				t.Groups = append(t.Groups, g)
			}
		case "NoNewPrivs":
			err = ints(fields, &t.NoNewPrivs)
		case "Seccomp":
			err = ints(fields, &t.Seccomp)
		default:
			to := map[string]*uint64{"CapInh": &t.CapInh, "CapPrm": &t.CapPrm, "CapEff": &t.CapEff, "CapBnd": &t.CapBnd, "CapAmb": &t.CapAmb}[name]
			*to, err = strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
		if err != nil {
			return t, fmt.Errorf("field %s: %w", name, err)
		}
		delete(missing, name)
	}
	for name := range missing {
		return t, fmt.Errorf("field %s is missing", name)
	}
	return t, nil
}

func ints(fields []string, to ...*int) error {
	if len(fields) < len(to) {
		return fmt.Errorf("%d numbers, want %d", len(fields), len(to))
	}
	for i, p := range to {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			return err
		}
		*p = n
	}
	return nil
}

// CollectMounts reads the serving process's mountinfo.
func CollectMounts(t Target) (*Mounts, error) {
	m, err := mountsOf(t.Serving)
	if err != nil {
		return nil, err
	}
	return &Mounts{Mounts: m}, nil
}

// mountsOf parses mountinfo (proc(5)).
func mountsOf(pid int) ([]Mount, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, fmt.Errorf("look at the mounts of process %d: %w", pid, err)
	}
	out := []Mount{}
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 1 {
			return nil, fmt.Errorf("mounts of process %d: line %q does not parse", pid, line)
		}
		m := Mount{Dev: f[2], Root: f[3], Point: f[4], Options: f[5], Propagation: strings.Join(f[6:], " "), FSType: g[0]}
		if err := ints(f[:2], &m.ID, &m.Parent); err != nil {
			return nil, fmt.Errorf("mounts of process %d: line %q: %w", pid, line, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// MountPoints lists a process's mounts as "point fstype", to compare before and after.
func MountPoints(pid int) ([]string, error) {
	m, err := mountsOf(pid)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, one := range m {
		out = append(out, one.Point+" "+one.FSType)
	}
	return out, nil
}
