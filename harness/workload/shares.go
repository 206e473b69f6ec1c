package workload

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// Shares are the virtio-fs mounts of the guest. The zero value has none.
type Shares struct {
	mu   sync.Mutex
	list []guestproto.Mount
}

// mountWait bounds one mount(2): a dead device lets it wait for ever, and the host should hear of that.
const mountWait = 30 * time.Second

// mountFlags are the words of a mount option string that are flags of mount(2), not data.
var mountFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "rw": 0, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
	"strictatime": unix.MS_STRICTATIME, "sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC, "lazytime": unix.MS_LAZYTIME,
}

// Mount mounts a tag, at /mnt/TAG if nothing else is said, and remembers the outcome.
func (s *Shares) Mount(a guestproto.MountArgs) guestproto.Mount {
	m := guestproto.Mount{Tag: a.Tag, Dir: cmp.Or(a.Dir, filepath.Join("/mnt", a.Tag)), Options: a.Options}
	var flags uintptr
	var data []string
	for w := range strings.SplitSeq(a.Options, ",") {
		if f, ok := mountFlags[w]; ok {
			flags |= f
		} else if w != "" {
			data = append(data, w)
		}
	}
	if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		m.Errno = errnoName(err)
	} else {
		result := make(chan error, 1)
		go func() { result <- unix.Mount(a.Tag, m.Dir, "virtiofs", flags, strings.Join(data, ",")) }()
		select {
		case err := <-result:
			m.OK, m.Errno = err == nil, errnoName(err)
		case <-time.After(mountWait):
			m.Errno = fmt.Sprintf("no answer in %v", mountWait)
		}
	}
	if m.OK {
		m.Dev, m.Effective = mountInfo(m.Dir)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.list {
		if s.list[i].Tag == a.Tag {
			s.list[i] = m
			return m
		}
	}
	s.list = append(s.list, m)
	return m
}

// Adopt has a directory, mounted by somebody else, count as a share.
func (s *Shares) Adopt(m guestproto.Mount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, m)
}

// Unmount unmounts a tag.
func (s *Shares) Unmount(tag string) (guestproto.Mount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.list {
		if s.list[i].Tag == tag || tag == "" {
			err := unix.Unmount(s.list[i].Dir, 0)
			s.list[i].Errno = errnoName(err)
			if err == nil {
				s.list[i].OK = false
			}
			return s.list[i], nil
		}
	}
	return guestproto.Mount{}, fmt.Errorf("no share with tag %q", tag)
}

// UnmountAll unmounts what is mounted, newest first. The error names the mounts that were busy.
func (s *Shares) UnmountAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var bad []string
	for i := len(s.list) - 1; i >= 0; i-- {
		if !s.list[i].OK {
			continue
		}
		if err := unix.Unmount(s.list[i].Dir, 0); err != nil {
			bad = append(bad, fmt.Sprintf("%s: %v", s.list[i].Dir, err))
			continue
		}
		s.list[i].OK = false
	}
	if bad != nil {
		return fmt.Errorf("unmount %s", strings.Join(bad, "; "))
	}
	return nil
}

// All returns the mounts and mount attempts.
func (s *Shares) All() []guestproto.Mount {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]guestproto.Mount{}, s.list...)
}

// find returns the mount of a tag, "" for the first.
func (s *Shares) find(tag string) (guestproto.Mount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.list {
		if m.Tag == tag || tag == "" {
			if !m.OK {
				return m, fmt.Errorf("share %s is not mounted: %s", m.Tag, m.Errno)
			}
			return m, nil
		}
	}
	return guestproto.Mount{}, fmt.Errorf("no share with tag %q", tag)
}

// mountInfo returns major:minor and the options of the topmost mount at dir (proc(5), mountinfo).
func mountInfo(dir string) (dev, options string) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", ""
	}
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if ok && len(f) >= 6 && len(g) >= 3 && f[4] == dir {
			dev, options = f[2], f[5]+","+g[2]
		}
	}
	return dev, options
}
