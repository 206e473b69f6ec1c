package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/config"
	"virtiofsd/internal/sandbox"
)

// closeStray closes every descriptor above standard error but those to keep: what a launcher forgot to close is a way out of the sandbox. It runs
// before we open any; those that are there already and ours are the runtime's poller, which leads nowhere.
func closeStray(keep ...int) {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return // without /proc there is no sandbox either: Gather says so
	}
	for _, n := range names {
		fd, err := strconv.Atoi(n.Name())
		if err != nil || fd < 3 || slices.Contains(keep, fd) {
			continue
		}
		to, err := os.Readlink("/proc/self/fd/" + n.Name())
		if err != nil || to == "anon_inode:[eventpoll]" || to == "anon_inode:[eventfd]" {
			continue // ReadDir's own is closed by now
		}
		unix.Close(fd)
	}
}

// pidFile is the file beside the socket by which launchers find us and a second daemon on the same path is refused.
type pidFile struct {
	path string
	f    *os.File
}

func newPidFile(socket string) (*pidFile, error) {
	p := &pidFile{path: socket + ".pid"}
	for {
		f, err := openPidFile(p.path)
		switch {
		case errors.Is(err, errNotOurs):
			return nil, fmt.Errorf("create the pid file %s: %w; remove it", p.path, err)
		case err != nil:
			return nil, fmt.Errorf("create the pid file: %w; choose a --socket-path in a folder that this user may write to, such as $XDG_RUNTIME_DIR", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock the pid file %s: %w: another daemon serves this socket; stop it or choose another --socket-path", p.path, err)
		}
		if p.f = f; p.there() { // or the one who held the lock has removed the file between our open and our lock
			break
		}
		f.Close()
	}
	if err := p.f.Truncate(0); err != nil {
		return nil, fmt.Errorf("write the pid file: %w", err)
	}
	if _, err := p.f.WriteString(strconv.Itoa(os.Getpid()) + "\n"); err != nil {
		return nil, fmt.Errorf("write the pid file: %w", err)
	}
	return p, nil
}

var errNotOurs = errors.New("there is something that this user has not made")

// openPidFile makes the file, or opens one that a daemon of this user has left behind. In a folder
// that others may write to as well it does not write to what they have put there, be it another
// name of a file of ours.
func openPidFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if !errors.Is(err, fs.ErrExist) {
		return f, err
	}
	f, err = os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist): // it went just now
		return openPidFile(path)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO), errors.Is(err, unix.EISDIR):
		return nil, errNotOurs
	case err != nil:
		return nil, err
	}
	var is unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &is); err != nil || is.Mode&unix.S_IFMT != unix.S_IFREG || int(is.Uid) != os.Geteuid() || is.Nlink > 1 {
		return nil, errors.Join(errNotOurs, f.Close())
	}
	return f, nil
}

// there reports whether the path still names the file.
func (p *pidFile) there() bool {
	var ours, is unix.Stat_t
	return unix.Fstat(int(p.f.Fd()), &ours) == nil && unix.Lstat(p.path, &is) == nil && ours.Ino == is.Ino && ours.Dev == is.Dev
}

func (p *pidFile) remove() {
	if p == nil {
		return
	}
	if p.there() {
		os.Remove(p.path)
	}
	p.f.Close()
}

// toRemove are the capabilities that removing socket and pid file will take: none, where the folder is the caller's own or everybody's.
func toRemove(socket string) sandbox.Caps {
	if socket == "" {
		return 0
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Dir(socket), &st); err != nil {
		return 0
	}
	if own := int(st.Uid) == os.Geteuid() && st.Mode&0o300 == 0o300; own || st.Mode&0o003 == 0o003 {
		return 0
	}
	return sandbox.Of(sandbox.DacOverride)
}

// writeReport writes what the sandbox reached to a descriptor, and closes it.
func writeReport(fd int, s *sandbox.State) error {
	f := os.NewFile(uintptr(fd), "--report-fd")
	if err := errors.Join(json.NewEncoder(f).Encode(s), f.Close()); err != nil {
		return fmt.Errorf("--report-fd=%d: %w; keep its reader alive until the daemon is ready", fd, clean(err))
	}
	return nil
}

// Files that the rest of the host is left, and that we take whatever the host has.
const (
	reservedFiles = 16384
	leastFiles    = 1024
)

// mostFiles is the limit of open files where none was asked for: a million, if a process may have that many (fs.nr_open) and the host has
// more (fs.file-max). A guest that opens without end must not use up the host's (CVE-2020-10717). 0 stands for what is not known.
func mostFiles(nrOpen, fileMax uint64) uint64 {
	most := uint64(1000000)
	if nrOpen > 0 {
		most = min(most, nrOpen)
	}
	if fileMax > 0 {
		most = min(most, max(fileMax, reservedFiles+leastFiles)-reservedFiles)
	}
	return most
}

// sysctl reads a number below /proc/sys, 0 if there is none.
func sysctl(name string) uint64 {
	b, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// raiseNofile sets the limit of open files: what was asked for, or else mostFiles, as far as allowed. It returns the limit in force.
func raiseNofile(o config.Options, log *slog.Logger) (uint64, error) {
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	if o.RlimitNofileSet && o.RlimitNofile == 0 {
		return have.Cur, nil
	}
	want := mostFiles(sysctl("fs/nr_open"), sysctl("fs/file-max"))
	if o.RlimitNofileSet {
		want = o.RlimitNofile
	}
	err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: want})
	switch {
	case err == nil:
		return want, nil
	case o.RlimitNofileSet:
		return 0, fmt.Errorf("set the limit of open files to %d: %w; the hard limit is %d: raise it or give a smaller --rlimit-nofile", want, err, have.Max)
	}
	log.Warn("cannot raise the limit of open files: using the hard limit", "wanted", want, "limit", have.Max)
	have.Cur = have.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return 0, fmt.Errorf("set the limit of open files: %w", err)
	}
	return have.Max, nil
}
