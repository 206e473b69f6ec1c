package workload

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// hunter collects attempts to get out of a share.
type hunter struct {
	a guestproto.ContainmentArgs
	p place
	r guestproto.Containment
}

// containment tries ways out. In a sound system none can work: the guest's own kernel resolves "..", symbolic links and mount points, and the daemon is asked
// only for single names in known directories. So each attempt looks for a daemon that resolves more than it should: a symbolic link seen as what it points
// to, a change through a link that reaches the target, a name with more than one component.
func (e *Env) containment(a guestproto.ContainmentArgs) (guestproto.Containment, error) {
	p, err := e.place(a.Where, guestproto.CallContainment)
	if err != nil {
		return guestproto.Containment{}, err
	}
	if a.Secret == "" {
		return guestproto.Containment{}, fmt.Errorf("no secret given: the attempts could not tell success")
	}
	h := &hunter{a: a, p: p}
	h.r.Attempts, h.r.Escaped = []guestproto.Attempt{}, []string{}
	h.dotdot()
	h.links()
	h.hostLinks()
	h.forbidden()
	h.renames()
	h.procPaths()
	h.odd()
	h.race()
	return h.r, nil
}

func (h *hunter) report(at guestproto.Attempt) {
	if strings.Contains(at.Saw, h.a.Secret) || strings.Contains(at.Saw, hex.EncodeToString([]byte(h.a.Secret))) {
		h.r.SentinelRead, at.Escaped = true, true
	}
	if at.Escaped {
		h.r.Escaped = append(h.r.Escaped, at.Name)
	}
	h.r.Attempts = append(h.r.Attempts, at)
}

// read opens a path and reports what came.
func (h *hunter) read(name, path string, flags int) {
	at := guestproto.Attempt{Name: name, Note: "open " + path}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|flags, 0)
	if err == nil {
		at.Saw, err = sawFD(fd)
		unix.Close(fd)
	}
	at.Errno = errnoName(err)
	h.report(at)
}

// sawFD reads the beginning of a file or the names of a directory.
func sawFD(fd int) (string, error) {
	b := make([]byte, 256)
	n, err := unix.Read(fd, b)
	if err == unix.EISDIR {
		b = make([]byte, 4096)
		if n, err = unix.ReadDirent(fd, b); err != nil {
			return "directory", err
		}
		_, _, names := unix.ParseDirent(b[:n], 64, nil)
		return "directory: " + strings.Join(names, " "), nil
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("file: %q", b[:n]), nil
}

// dotdot walks up from the share's root. The topmost directory that can be reached must be the guest's own.
func (h *hunter) dotdot() {
	up := h.p.root
	for i := range 12 {
		up += "/.."
		if i%4 == 3 {
			h.read(fmt.Sprintf("dotdot-%d", i+1), up+"/"+strings.TrimPrefix(h.a.UpPath, "../"), 0)
		}
	}
	if h.a.UpPath != "" {
		h.read("dotdot-to-sentinel", filepath.Join(h.p.root, "x")+"/../"+h.a.UpPath, 0)
	}
	// ".." of a directory fd opened as O_PATH: its inode is the root's, and must stay it.
	at := guestproto.Attempt{Name: "dotdot-openat", Note: "openat(root, \"..\") has the share's device"}
	var root, parent unix.Stat_t
	fd, err := unix.Open(h.p.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		if err = unix.Fstat(fd, &root); err == nil {
			err = unix.Fstatat(fd, "..", &parent, 0)
		}
		if err == nil && !h.a.Local {
			at.Escaped = parent.Dev == root.Dev && parent.Ino != root.Ino
			at.Saw = fmt.Sprintf("device %x inode %d, root is device %x inode %d", parent.Dev, parent.Ino, root.Dev, root.Ino)
		}
	}
	at.Errno = errnoName(err)
	h.report(at)
	// The same below a directory of the share, moved while we stand in it.
	sub := filepath.Join(h.p.dir, "up", "down")
	err = os.MkdirAll(sub, 0o755)
	at = guestproto.Attempt{Name: "dotdot-after-move", Note: "\"..\" of a directory that was moved"}
	if err == nil {
		var d int
		if d, err = unix.Open(sub, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			defer unix.Close(d)
			if err = os.Rename(sub, filepath.Join(h.p.dir, "moved")); err == nil {
				var got, want unix.Stat_t
				if err = unix.Fstatat(d, "..", &got, 0); err == nil {
					err = unix.Stat(h.p.dir, &want)
					at.Escaped = err == nil && (got.Ino != want.Ino || got.Dev != want.Dev)
					at.Saw = fmt.Sprintf("inode %d, the new parent is %d", got.Ino, want.Ino)
				}
			}
		}
	}
	at.Errno = errnoName(err)
	h.report(at)
}

// planted are the targets that the host made for being attacked.
func (h *hunter) planted() []string {
	t := slices.Clone(h.a.Outside)
	if h.a.UpPath != "" {
		t = append(t, h.a.UpPath, "../"+h.a.UpPath, "../../"+h.a.UpPath)
	}
	return t
}

// targets are where symbolic links of the attempts point.
func (h *hunter) targets() []string {
	return append(h.planted(), "/proc/version", "/", "/proc/self/root", "/proc/1/root", "..", "../..", "/proc/self/cwd/..")
}

// links makes symbolic links that point out and tries everything that a daemon might do through them.
func (h *hunter) links() {
	for i, target := range h.targets() {
		name := fmt.Sprintf("link-%d", i)
		path := filepath.Join(h.p.dir, name)
		_ = os.Remove(path) // of an earlier run
		if err := os.Symlink(target, path); err != nil {
			h.report(guestproto.Attempt{Name: name, Errno: errnoName(err), Note: "symlink to " + target})
			continue
		}
		h.link(name, path, target)
	}
}

// link checks that one symbolic link is nothing but a symbolic link.
func (h *hunter) link(name, path, target string) {
	at := guestproto.Attempt{Name: name + "-lstat", Note: "symlink to " + target}
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if err == nil {
		at.Saw = viewOf(&st).Mode
		at.Escaped = st.Mode&unix.S_IFMT != unix.S_IFLNK // the daemon followed it
	}
	at.Errno = errnoName(err)
	h.report(at)

	at = guestproto.Attempt{Name: name + "-readlink", Note: "symlink to " + target}
	got, err := os.Readlink(path)
	at.Errno, at.Saw = errnoName(err), "-> "+got
	at.Escaped = err == nil && got != target
	h.report(at)

	h.read(name+"-nofollow", path, unix.O_NOFOLLOW)
	// O_PATH|O_NOFOLLOW and then by the magic link: the guest kernel goes to the inode, and the daemon is asked to open it.
	at = guestproto.Attempt{Name: name + "-opath", Note: "open /proc/self/fd/N of the link itself"}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		var fd2 int
		if fd2, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			at.Saw, err = sawFD(fd2)
			at.Escaped = true // a symbolic link cannot be opened for reading (ELOOP)
			unix.Close(fd2)
		}
		unix.Close(fd)
	}
	at.Errno = errnoName(err)
	h.report(at)

	if !slices.Contains(h.planted(), target) {
		return // a daemon that follows links would change what is the host's own
	}
	// Attribute changes of the link must not reach the target: the host compares the target. Here they must not be answered
	// with anything but success on the link or a refusal.
	for what, change := range map[string]func() error{
		"lchown": func() error { return unix.Lchown(path, 4242, 4242) },
		"utimens": func() error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: 1}, {Sec: 1}}, unix.AT_SYMLINK_NOFOLLOW)
		},
		"lsetxattr": func() error { return unix.Lsetxattr(path, "user.vfsmatrix", []byte("x"), 0) },
		"lchmod":    func() error { return unix.Fchmodat(unix.AT_FDCWD, path, 0o777, unix.AT_SYMLINK_NOFOLLOW) },
		"truncate": func() error {
			fd, err := unix.Open(path, unix.O_WRONLY|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		},
		"create-through": func() error {
			fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
			if err == nil {
				unix.Close(fd)
			}
			return err
		},
	} {
		err := change()
		at := guestproto.Attempt{Name: name + "-" + what, Errno: errnoName(err), Note: "symlink to " + target}
		at.Escaped = err == nil && (what == "truncate" || what == "create-through")
		h.report(at)
	}
	at = guestproto.Attempt{Name: name + "-hardlink", Note: "hard link to the symlink must be the symlink"}
	hard := path + ".hard"
	_ = os.Remove(hard) // of an earlier run
	err = unix.Linkat(unix.AT_FDCWD, path, unix.AT_FDCWD, hard, 0)
	if err == nil {
		if err = unix.Lstat(hard, &st); err == nil {
			at.Saw = viewOf(&st).Mode
			at.Escaped = st.Mode&unix.S_IFMT != unix.S_IFLNK
		}
	}
	at.Errno = errnoName(err)
	h.report(at)
	// As a directory: with the guest's own resolution this leads into the guest's root file system.
	if st, err := os.Stat(filepath.Dir(path)); err == nil && st.IsDir() {
		h.read(name+"-through", path+"/"+filepath.Base(h.a.SentinelName), 0)
	}
}

func (h *hunter) hostLinks() {
	for _, n := range h.a.HostLinks {
		path := filepath.Join(h.p.dir, n)
		target, err := os.Readlink(path)
		if err != nil {
			// A host-made link that is not a link here has been followed, unless it is not there at all.
			h.report(guestproto.Attempt{Name: "host-" + n + "-readlink", Errno: errnoName(err), Escaped: err != nil && !os.IsNotExist(err)})
			continue
		}
		h.link("host-"+n, path, target)
		h.read("host-"+n+"-follow", path, 0)
	}
}

// forbidden reads files that the launcher's rights alone would open.
func (h *hunter) forbidden() {
	for _, n := range h.a.Forbidden {
		at := guestproto.Attempt{Name: "forbidden-" + n}
		b, err := os.ReadFile(filepath.Join(h.p.dir, n))
		at.Errno, at.Saw = errnoName(err), string(b)
		// A file that is not there was not tried.
		at.Escaped = err == nil || os.IsNotExist(err)
		h.report(at)
	}
}

// renames tries names with more than one component. The guest's kernel splits paths, so they mean directories of the guest.
func (h *hunter) renames() {
	src := filepath.Join(h.p.dir, "victim")
	try := func(name string, f func() error) {
		if err := os.WriteFile(src, []byte("victim"), 0o644); err != nil {
			h.report(guestproto.Attempt{Name: name, Errno: errnoName(err), Note: "make the victim"})
			return
		}
		h.report(guestproto.Attempt{Name: name, Errno: errnoName(f())})
	}
	if h.a.Local {
		return // these paths would be the host's
	}
	try("rename-up", func() error { return os.Rename(src, h.p.root+"/../escaped-by-rename") })
	try("link-up", func() error { return os.Link(src, h.p.root+"/../escaped-by-link") })
	try("exchange-up", func() error {
		return unix.Renameat2(unix.AT_FDCWD, src, unix.AT_FDCWD, h.p.root+"/..", unix.RENAME_EXCHANGE)
	})
	for i, o := range h.a.Outside {
		try(fmt.Sprintf("rename-out-%d", i), func() error { return os.Rename(src, o) })
		try(fmt.Sprintf("link-in-%d", i), func() error { return os.Link(o, filepath.Join(h.p.dir, fmt.Sprintf("linked-in-%d", i))) })
	}
}

// procPaths goes through descriptors of the share.
func (h *hunter) procPaths() {
	fd, err := unix.Open(h.p.root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		h.report(guestproto.Attempt{Name: "proc-fd", Errno: errnoName(err)})
		return
	}
	defer unix.Close(fd)
	h.read("proc-fd-dotdot", fmt.Sprintf("/proc/self/fd/%d/../%s", fd, strings.TrimPrefix(h.a.UpPath, "../")), 0)
	if h.a.UpPath != "" {
		if fd2, err := unix.Openat(fd, h.a.UpPath, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			saw, err := sawFD(fd2)
			h.report(guestproto.Attempt{Name: "openat-up", Saw: saw, Errno: errnoName(err)})
			unix.Close(fd2)
		} else {
			h.report(guestproto.Attempt{Name: "openat-up", Errno: errnoName(err)})
		}
	}
	// A file handle of the root's would-be parent: decoding must not give a directory above the root.
	at := guestproto.Attempt{Name: "file-handle", Note: "name_to_handle_at(root), then open_by_handle_at and \"..\""}
	handle, mnt, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err == nil {
		at.Note += fmt.Sprintf(" (mount %d, type %d)", mnt, handle.Type())
		var fd2 int
		if fd2, err = unix.OpenByHandleAt(fd, handle, unix.O_RDONLY|unix.O_CLOEXEC); err == nil {
			var up, root unix.Stat_t
			if err = unix.Fstatat(fd2, "..", &up, 0); err == nil {
				err = unix.Fstat(fd, &root)
				at.Escaped = err == nil && !h.a.Local && up.Dev == root.Dev && up.Ino != root.Ino
				at.Saw = fmt.Sprintf("parent is device %x inode %d", up.Dev, up.Ino)
			}
			unix.Close(fd2)
		}
	}
	at.Errno = errnoName(err)
	h.report(at)
}

// odd creates names that a careless daemon takes for paths.
func (h *hunter) odd() {
	for _, n := range []string{"...", "..\\..", "..%2f..", "....", " ..", ".. ", "..\n", "\x01", strings.Repeat("a", 255), "proc", "self", "%s%n"} {
		at := guestproto.Attempt{Name: fmt.Sprintf("name-%.12q", n), Note: "a file of this name is made and found in its own directory"}
		path := h.p.dir + "/" + n
		err := os.WriteFile(path, []byte("odd"), 0o644)
		if err == nil {
			var names []os.DirEntry
			if names, err = os.ReadDir(h.p.dir); err == nil {
				found := slices.ContainsFunc(names, func(d os.DirEntry) bool { return d.Name() == n })
				at.Saw = fmt.Sprintf("found: %v", found)
				at.Escaped = !found
			}
			_ = os.Remove(path)
		}
		at.Errno = errnoName(err)
		h.report(at)
	}
}

// race opens what the host keeps exchanging.
func (h *hunter) race() {
	if h.a.HostRace == "" || h.a.RaceSeconds <= 0 {
		return
	}
	path := filepath.Join(h.p.dir, h.a.HostRace, h.a.SentinelName)
	end := time.Now().Add(time.Duration(h.a.RaceSeconds * float64(time.Second)))
	var opens, leaks, errs atomic.Int64
	done := make(chan struct{})
	n := max(2, runtime.NumCPU())
	for range n {
		go func() {
			defer func() { done <- struct{}{} }()
			b := make([]byte, 256)
			for time.Now().Before(end) {
				fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					errs.Add(1)
					continue
				}
				k, _ := unix.Read(fd, b) // an error reads nothing
				unix.Close(fd)
				opens.Add(1)
				if bytes.Contains(b[:max(k, 0)], []byte(h.a.Secret)) {
					leaks.Add(1)
				}
			}
		}()
	}
	for range n {
		<-done
	}
	h.r.RaceOpens = int(opens.Load())
	at := guestproto.Attempt{Name: "host-race", Note: fmt.Sprintf("%d opens, %d errors", opens.Load(), errs.Load())}
	if leaks.Load() > 0 {
		at.Saw = fmt.Sprintf("%s (%d times)", h.a.Secret, leaks.Load())
	}
	h.report(at)
}
