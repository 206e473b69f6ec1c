package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CollectFDs looks at every descriptor of the serving process.
func CollectFDs(t Target) (*FDs, error) {
	dir := fmt.Sprintf("/proc/%d/fd", t.Serving)
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look at the descriptors of process %d: %w", t.Serving, err)
	}
	var share, host unix.Stat_t
	for p, s := range map[string]*unix.Stat_t{t.Share: &share, "/": &host} {
		if err := unix.Stat(p, s); err != nil {
			return nil, fmt.Errorf("stat %s: %w", p, err)
		}
	}
	rootIs, err := whatDir(fmt.Sprintf("/proc/%d/root", t.Serving), t.Share)
	if err != nil {
		return nil, err
	}
	out := &FDs{FDs: []FD{}}
	for _, e := range list {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("descriptor %q of process %d: %w", e.Name(), t.Serving, err)
		}
		path := filepath.Join(dir, e.Name())
		f := FD{FD: n}
		if f.Target, err = os.Readlink(path); err != nil {
			if errors.Is(err, os.ErrNotExist) {
				continue // closed meanwhile
			}
			return nil, fmt.Errorf("descriptor %d of process %d: %w", n, t.Serving, err)
		}
		flags, err := fdFlags(t.Serving, n)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f.Path = flags&unix.O_PATH != 0
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			return nil, fmt.Errorf("descriptor %d of process %d: %w", n, t.Serving, err)
		}
		f.Kind = kindOf(f.Target, st.Mode)
		switch f.Kind {
		case "dir":
			if f.Leads, err = leads(path, rootIs == "share", &share, &host); err != nil {
				return nil, fmt.Errorf("descriptor %d of process %d: %w", n, t.Serving, err)
			}
			f.Outside = f.Leads == "host" && !below(f.Target, t.Share) || f.Leads == "other"
		case "file":
			f.Outside = !(rootIs == "share" || below(f.Target, t.Share)) || st.Dev != share.Dev && rootIs != "share"
		}
		out.FDs = append(out.FDs, f)
	}
	slices.SortFunc(out.FDs, func(a, b FD) int { return a.FD - b.FD })
	return out, nil
}

// below reports whether a path is the directory or under it.
func below(path, dir string) bool {
	path = strings.TrimSuffix(path, " (deleted)")
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// fdFlags reads the flags of a descriptor (proc(5), /proc/PID/fdinfo), in octal.
func fdFlags(pid, fd int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "flags:"); ok {
			return strconv.ParseInt(strings.TrimSpace(v), 8, 64)
		}
	}
	return 0, fmt.Errorf("descriptor %d of process %d has no flags", fd, pid)
}

func kindOf(target string, mode uint32) string {
	switch {
	case strings.HasPrefix(target, "anon_inode:[eventfd"):
		return "eventfd"
	case strings.HasPrefix(target, "/memfd:"):
		return "memfd"
	case strings.HasPrefix(target, "anon_inode:"):
		return "other"
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFIFO:
		return "pipe"
	case unix.S_IFCHR:
		return "char"
	}
	return "other"
}

// leads walks ".." from a directory's descriptor until it stays. It goes by the mounts of the descriptor's own mount namespace, and so
// shows what one who holds the descriptor can reach. ".." of a process's root is that root: where it is the share (a chroot, which changes no
// mounts), the way ends there.
func leads(path string, shareIsRoot bool, share, host *unix.Stat_t) (string, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	for range 4096 { // PATH_MAX
		if shareIsRoot && same(&st, share) {
			return "share", nil
		}
		up, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		unix.Close(fd)
		fd = up
		was := st
		if err := unix.Fstat(fd, &st); err != nil {
			return "", err
		}
		if !same(&st, &was) {
			continue
		}
		switch {
		case same(&st, share):
			return "share", nil
		case same(&st, host):
			return "host", nil
		}
		var fs unix.Statfs_t
		if err := unix.Fstatfs(fd, &fs); err != nil {
			return "", err
		}
		if fs.Type == unix.PROC_SUPER_MAGIC {
			return "proc", nil
		}
		return "other", nil
	}
	return "", errors.New("no end of \"..\"")
}
