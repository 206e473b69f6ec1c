package fuzz

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// model is what the share should hold: a local directory on which the same calls are made. Descriptors stand for the guest's nodes and
// open files, so that a call means the same on both sides whatever was renamed or removed in between.
type model struct {
	dir   string
	nodes []*node // the root first
	files []*file
}

// node is a file that the guest knows.
type node struct {
	id      uint64 // the daemon's number
	fd      int    // O_PATH, in the model
	typ     uint32
	lookups uint64
}

// file is an open file or directory.
type file struct {
	node *node
	fh   uint64
	fd   int
	dir  bool
}

func newModel(dir string) (*model, error) {
	if err := os.Mkdir(dir, 0o777); err != nil {
		return nil, fmt.Errorf("make the model: %w", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		return nil, fmt.Errorf("make the model: %w", err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make the model: %w", err)
	}
	return &model{dir: dir, nodes: []*node{{id: fe.RootNode, fd: fd, typ: unix.S_IFDIR}}}, nil
}

func (m *model) close() {
	for _, f := range m.files {
		unix.Close(f.fd)
	}
	for _, n := range m.nodes {
		unix.Close(n.fd)
	}
	m.files, m.nodes = nil, nil
}

// proc is a path to what an O_PATH descriptor stands for.
func (n *node) proc() string { return fmt.Sprintf("/proc/self/fd/%d", n.fd) }

// pick is the node that a step's number means: one of the wanted types (0: any) that still has a name.
func (m *model) pick(i int, typ uint32) *node {
	for k := range m.nodes {
		n := m.nodes[(i+k)%len(m.nodes)]
		var st unix.Stat_t
		if (typ == 0 || n.typ == typ) && unix.Fstat(n.fd, &st) == nil && st.Nlink > 0 && (n.id != fe.RootNode || typ == unix.S_IFDIR || typ == 0) {
			return n
		}
	}
	return nil
}

// dir is a directory of the guest's; there is always the root.
func (m *model) pickDir(i int) *node { return m.pick(i, unix.S_IFDIR) }

// file is the open file that a step's number means.
func (m *model) pickFile(i int, dir bool) *file {
	for k := range m.files {
		if f := m.files[(i+k)%len(m.files)]; f.dir == dir {
			return f
		}
	}
	return nil
}

// as runs a call with a user's ids, on a thread that has them only for that.
func as(user uint32, f func() error) error {
	if user == 0 {
		return f()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		unix.Setfsgid(int(user))
		unix.Setfsuid(int(user))
		groups := []uint32{}
		_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), 0, 0)
		if e != 0 {
			done <- e
			return
		}
		done <- f()
	}()
	return <-done
}

// found takes an entry that the daemon answered with for name in dir, and checks it against the model's.
func (m *model) found(dir *node, name string, e fe.Entry) *Finding {
	fd, err := unix.Openat(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &Finding{Kind: "wrong answer", Detail: fmt.Sprintf("an entry for %q, where a local directory says %v", name, err)}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return &Finding{Kind: "wrong answer", Detail: err.Error()}
	}
	if f := sameAttr(e.Attr, &st); f != nil {
		unix.Close(fd)
		return f
	}
	for _, n := range m.nodes {
		if n.id != e.Node {
			continue
		}
		var old unix.Stat_t
		unix.Fstat(n.fd, &old)
		unix.Close(fd)
		if old.Ino != st.Ino {
			return &Finding{Kind: "wrong answer", Detail: fmt.Sprintf("node %d stands for two files", e.Node)}
		}
		n.lookups++
		return nil
	}
	m.nodes = append(m.nodes, &node{id: e.Node, fd: fd, typ: st.Mode & unix.S_IFMT, lookups: 1})
	return nil
}

// sameAttr compares what does not depend on the inode's number and on time.
func sameAttr(a fe.Attr, st *unix.Stat_t) *Finding {
	got := fmt.Sprintf("mode %o, links %d, owner %d:%d", a.Mode, a.Nlink, a.UID, a.GID)
	want := fmt.Sprintf("mode %o, links %d, owner %d:%d", st.Mode, st.Nlink, st.Uid, st.Gid)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		got += fmt.Sprint(", size ", a.Size)
		want += fmt.Sprint(", size ", st.Size)
	} else { // the scratch directory is not in the model
		got, want = fmt.Sprintf("mode %o, owner %d:%d", a.Mode, a.UID, a.GID), fmt.Sprintf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	if got != want {
		return &Finding{Kind: "wrong answer", Detail: fmt.Sprintf("attributes: %s, where a local file has %s", got, want)}
	}
	return nil
}

// agree compares whether a call succeeded.
func agree(what string, e unix.Errno, err error) *Finding {
	if (e == 0) != (err == nil) {
		local := "success"
		if err != nil {
			local = err.Error()
		}
		daemon := "success"
		if e != 0 {
			daemon = unix.ErrnoName(e)
		}
		return &Finding{Kind: "wrong answer", Detail: fmt.Sprintf("%s: %s, on a local directory: %s", what, daemon, local)}
	}
	return nil
}

// compare holds the whole share against the model.
func (m *model) compare(share string) *Finding {
	want, err := tree(m.dir)
	if err != nil {
		return &Finding{Kind: "wrong answer", Detail: err.Error()}
	}
	got, err := tree(share)
	if err != nil {
		return &Finding{Kind: "wrong answer", Detail: err.Error()}
	}
	if d := difference(want, got); d != "" {
		return &Finding{Kind: "wrong answer", Detail: "the share and the local directory differ at the end: " + d}
	}
	return nil
}

func difference(want, got []string) string {
	for _, l := range got {
		if !slices.Contains(want, l) {
			return fmt.Sprintf("the share has %q", l)
		}
	}
	for _, l := range want {
		if !slices.Contains(got, l) {
			return fmt.Sprintf("the share lacks %q", l)
		}
	}
	return ""
}

// tree describes a directory but for its scratch directory.
func tree(top string) ([]string, error) {
	var all []string
	err := filepath.WalkDir(top, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(top, p)
		if rel == "scratch" {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s mode %o owner %d:%d", rel, st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" links %d size %d %x", st.Nlink, st.Size, checksum(data))
			if v := attribute(p); v != "" {
				line += " " + v
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		all = append(all, line)
		return nil
	})
	return all, err
}

func checksum(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// attribute is the one extended attribute that sessions use.
func attribute(p string) string {
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(p, "user.fuzz", buf)
	if err != nil {
		return ""
	}
	return string(bytes.ToValidUTF8(buf[:n], nil))
}

// listing is the names of a directory, sorted, without "." and "..", and without the scratch directory.
func listing(all []string) []string {
	all = slices.DeleteFunc(all, func(s string) bool { return s == "." || s == ".." || s == "scratch" })
	slices.Sort(all)
	return all
}

func joinNames(all []string) string { return strings.Join(all, " ") }
