package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/idmap"
)

// State is what a process inside its sandbox reads back of itself. What differs between threads is an error, so it stands here once.
type State struct {
	Mode       string            `json:"mode"`
	PID        int               `json:"pid"`        // in its own pid namespace
	Namespaces map[string]string `json:"namespaces"` // kind → identity, as /proc/PID/ns shows it
	New        []string          `json:"new"`        // kinds that differ from the parent's
	UIDMap     idmap.Map         `json:"uid_map"`
	GIDMap     idmap.Map         `json:"gid_map"`
	Setgroups  string            `json:"setgroups"` // allow or deny
	Interfaces []string          `json:"interfaces"`
	Root       string            `json:"root"`
	Mounts     []Mount           `json:"mounts"` // below the root
	Threads    int               `json:"threads"`
	Thread     Thread            `json:"thread"` // each of them
	Landlock   bool              `json:"landlock"`
}

// Mount is a line of mountinfo, as far as it matters.
type Mount struct {
	Point   string `json:"point"`
	Options string `json:"options"` // of the mount, not of the file system
}

// Thread is what /proc says of a thread.
type Thread struct {
	UID        []uint32 `json:"uid"` // real, effective, saved, file system
	GID        []uint32 `json:"gid"`
	Groups     []uint32 `json:"groups"`
	Inherit    Caps     `json:"inheritable"`
	Permitted  Caps     `json:"permitted"`
	Effective  Caps     `json:"effective"`
	Bounding   Caps     `json:"bounding"`
	Ambient    Caps     `json:"ambient"`
	NoNewPrivs int      `json:"no_new_privs"`
	Seccomp    int      `json:"seccomp"` // 2 for a filter
}

// nsFiles are the kinds of namespaces by their files in /proc/PID/ns.
var nsFiles = map[string]string{"user": "user", "mount": "mnt", "pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup"}

// namespaces reads the identities of the namespaces of a process, whose directory in /proc is open.
func namespaces(self *os.File) map[string]string {
	ns := map[string]string{}
	for kind, file := range nsFiles {
		if to, err := readlink(self, "ns/"+file); err == nil {
			ns[kind] = to
		}
	}
	return ns
}

func readlink(dir *os.File, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, b)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(b[:n]), nil
}

// readFile reads a file below a directory: paths lead nowhere once the root is another.
func readFile(dir *os.File, name string) ([]byte, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var all []byte
	for b := make([]byte, 16<<10); ; {
		n, err := unix.Read(fd, b)
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: name, Err: err}
		}
		if n == 0 {
			return all, nil
		}
		all = append(all, b[:n]...)
	}
}

// read looks at everything that the sandbox is about.
func (e *Entered) read() (s State, err error) {
	s.PID, s.Namespaces, s.New = os.Getpid(), namespaces(e.self), []string{}
	for _, kind := range append([]string{"user"}, kinds...) {
		if s.Namespaces[kind] != e.outer[kind] {
			s.New = append(s.New, kind)
		}
	}
	for name, m := range map[string]*idmap.Map{"uid_map": &s.UIDMap, "gid_map": &s.GIDMap} {
		b, err := readFile(e.self, name)
		if errors.Is(err, unix.ENOENT) {
			continue // a kernel without user namespaces
		}
		if err != nil {
			return s, err
		}
		if *m, err = parseMap(b); err != nil {
			return s, err
		}
	}
	if b, err := readFile(e.self, "setgroups"); err == nil {
		s.Setgroups = strings.TrimSpace(string(b))
	}
	if s.Root, err = readlink(e.self, "root"); err != nil {
		return s, err
	}
	b, err := readFile(e.self, "mountinfo")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 5 {
			s.Mounts = append(s.Mounts, Mount{f[4], f[5]})
		}
	}
	if b, err := readFile(e.self, "net/dev"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, _, ok := strings.Cut(line, ":"); ok {
				s.Interfaces = append(s.Interfaces, strings.TrimSpace(name))
			}
		}
	}
	return s, e.threads(&s)
}

// threads reads the status of every thread, and tries Landlock.
func (e *Entered) threads(s *State) error {
	fd, err := unix.Openat(int(e.self.Fd()), "task", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("list threads: %w", err)
	}
	task := os.NewFile(uintptr(fd), "task")
	defer task.Close()
	names, err := task.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list threads: %w", err)
	}
	for _, tid := range names {
		b, err := readFile(task, path.Join(tid, "status"))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return err
		}
		t, err := parseStatus(b)
		if err != nil {
			return fmt.Errorf("thread %s: %w", tid, err)
		}
		if s.Threads > 0 && !reflect.DeepEqual(t, s.Thread) {
			return fmt.Errorf("thread %s is unlike the others: %+v, not %+v", tid, t, s.Thread)
		}
		s.Thread = t
		s.Threads++
	}
	if s.Threads == 0 {
		return errors.New("list threads: there are none")
	}
	s.Landlock = landlocked(task, names[0]) // the first one, which is there to the end
	return nil
}

// parseStatus reads /proc/PID/task/TID/status (proc_pid_status(5)).
func parseStatus(b []byte) (t Thread, err error) {
	t.Groups = []uint32{}
	list := func(v string, base, bits int) (out []uint64) {
		for _, w := range strings.Fields(v) {
			n, e := strconv.ParseUint(w, base, bits)
			err = errors.Join(err, e)
			out = append(out, n)
		}
		return out
	}
	one := func(v string, base int) uint64 {
		if l := list(v, base, 64); len(l) == 1 {
			return l[0]
		}
		err = errors.Join(err, fmt.Errorf("%q is not one number", v))
		return 0
	}
	ids := func(v string) []uint32 {
		out := []uint32{}
		for _, n := range list(v, 10, 32) {
			out = append(out, uint32(n))
		}
		return out
	}
	missing := map[string]bool{"Uid": true, "Gid": true, "Groups": true, "CapInh": true, "CapPrm": true, "CapEff": true, "CapBnd": true, "CapAmb": true, "NoNewPrivs": true}
	for line := range bytes.Lines(b) {
		name, v, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
		delete(missing, name)
		switch name {
		case "Uid":
			t.UID = ids(v)
		case "Gid":
			t.GID = ids(v)
		case "Groups":
			t.Groups = ids(v)
		case "CapInh":
			t.Inherit = Caps(one(v, 16))
		case "CapPrm":
			t.Permitted = Caps(one(v, 16))
		case "CapEff":
			t.Effective = Caps(one(v, 16))
		case "CapBnd":
			t.Bounding = Caps(one(v, 16))
		case "CapAmb":
			t.Ambient = Caps(one(v, 16))
		case "NoNewPrivs":
			t.NoNewPrivs = int(one(v, 10))
		case "Seccomp":
			t.Seccomp = int(one(v, 10))
		}
	}
	for name := range missing {
		err = errors.Join(err, fmt.Errorf("%s is missing", name))
	}
	if err != nil {
		return t, fmt.Errorf("read its status: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	return t, nil
}

// check compares what was reached with what the plan promised. It names the first difference.
func (e *Entered) check(p *Plan) error {
	s := &e.State
	s.Mode = p.Mode
	bad := func(format string, a ...any) error { return fmt.Errorf("not as planned: "+format, a...) }
	for _, kind := range p.Namespaces {
		if !slices.Contains(s.New, kind) {
			return bad("the %s namespace is the caller's", kind)
		}
	}
	t := s.Thread
	switch {
	case p.NewNamespace("user") && (!reflect.DeepEqual(s.UIDMap, p.UIDMap) || !reflect.DeepEqual(s.GIDMap, p.GIDMap)):
		return bad("users %v and groups %v are mapped", s.UIDMap, s.GIDMap)
	case p.NewNamespace("network") && !slices.Equal(s.Interfaces, []string{"lo"}):
		return bad("there are network interfaces: %v", s.Interfaces)
	case !allAre(t.UID, p.UID) || !allAre(t.GID, p.GID):
		return bad("real, effective, saved and file system's user ids %v and group ids %v are there, not %d and %d alone", t.UID, t.GID, p.UID, p.GID)
	case p.Has(OpGroups) && len(t.Groups) > 0:
		return bad("supplementary groups %v are there", t.Groups)
	case (t.Effective|t.Permitted)&^p.Keep != 0:
		return bad("capabilities %v are there", (t.Effective|t.Permitted)&^p.Keep)
	case t.Ambient|t.Inherit != 0:
		return bad("ambient or inheritable capabilities %v are there", t.Ambient|t.Inherit)
	case p.Bounding && t.Bounding&^p.Keep != 0:
		return bad("the bounding set has %v", t.Bounding&^p.Keep)
	case t.NoNewPrivs != 1:
		return bad("no_new_privs is not set")
	case p.Has(OpSeccomp) && t.Seccomp != 2:
		return bad("the system call filter is not on")
	case p.Has(OpLandlock) && !s.Landlock:
		return bad("Landlock is not on")
	}
	if !p.Has(OpPivot) {
		s.Mounts = nil // the caller's
		return nil
	}
	want := []string{"nosuid", "nodev"}
	if p.Readonly {
		want = append(want, "ro")
	}
	for i, m := range s.Mounts {
		have := strings.Split(m.Options, ",")
		for _, w := range want {
			if !slices.Contains(have, w) {
				return bad("the mount at %s is not %s", m.Point, w)
			}
		}
		if i == 0 && m.Point != "/" {
			return bad("the root is no mount")
		}
	}
	if len(s.Mounts) == 0 {
		return bad("the root is no mount")
	}
	return nil
}

func allAre(ids []uint32, id uint32) bool {
	return len(ids) == 4 && !slices.ContainsFunc(ids, func(i uint32) bool { return i != id })
}

// String is the state in one line.
func (s *State) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sandbox %s: new namespaces %s", s.Mode, orNone(strings.Join(s.New, ",")))
	if slices.Contains(s.New, "user") {
		fmt.Fprintf(&b, "; users %v; groups %v; setgroups %s", s.UIDMap, s.GIDMap, s.Setgroups)
	}
	t := s.Thread
	fmt.Fprintf(&b, "; uid %d gid %d, supplementary groups %s; capabilities %v, bounding set %v; no_new_privs %d; seccomp %d; Landlock %t; %d threads",
		t.UID[1], t.GID[1], orNone(strings.Trim(fmt.Sprint(t.Groups), "[]")), t.Effective, t.Bounding, t.NoNewPrivs, t.Seccomp, s.Landlock, s.Threads)
	if len(s.Mounts) > 0 {
		fmt.Fprintf(&b, "; root is a mount of its own (%s), %d in all", s.Mounts[0].Options, len(s.Mounts))
	}
	return b.String()
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
