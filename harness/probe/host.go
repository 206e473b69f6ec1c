package probe

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// CollectOwners lists the entries of a directory of the share, sorted by path.
func CollectOwners(share string, a OwnersArgs) (*Owners, error) {
	dir := filepath.Join(share, filepath.Clean("/"+a.Dir))
	out := &Owners{Entries: []Owner{}}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", p, err)
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		o := Owner{Path: rel, UID: int(st.Uid), GID: int(st.Gid), Mode: fmt.Sprintf("%07o", st.Mode)}
		if t := st.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
			o.Rdev = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		} else if t == unix.S_IFREG && a.Hash {
			sum, err := CollectSHA256(dir, SHA256Args{Path: rel})
			if err != nil {
				return err
			}
			o.Size, o.SHA256 = sum.Bytes, sum.SHA256
		}
		out.Entries = append(out.Entries, o)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list owners: %w", err)
	}
	return out, nil
}

// CollectSHA256 hashes a file of the share.
func CollectSHA256(share string, a SHA256Args) (*SHA256, error) {
	f, err := os.Open(filepath.Join(share, filepath.Clean("/"+a.Path)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return nil, fmt.Errorf("hash %s: %w", a.Path, err)
	}
	return &SHA256{Path: a.Path, Bytes: n, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}

// Snapshot is what stands beside the share: path → what it is. Access times are not part of it: nobody promised them.
type Snapshot map[string]string

// TakeSnapshot describes everything under a directory.
func TakeSnapshot(dir string) (Snapshot, error) {
	s := Snapshot{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", p, err)
		}
		what := fmt.Sprintf("%o %d:%d %d links, changed %d.%d", st.Mode, st.Uid, st.Gid, st.Nlink, st.Ctim.Sec, st.Ctim.Nsec)
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(b)
			what += " " + hex.EncodeToString(sum[:])
		}
		rel, err := filepath.Rel(dir, p)
		s[rel] = what
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look outside of the share: %w", err)
	}
	return s, nil
}

// CollectOutside compares a directory with what it was.
func CollectOutside(dir string, before Snapshot) (*Outside, error) {
	after, err := TakeSnapshot(dir)
	if err != nil {
		return nil, err
	}
	o := &Outside{Entries: len(before), Changed: []string{}}
	for p, was := range before {
		switch is, ok := after[p]; {
		case !ok:
			o.Changed = append(o.Changed, p+": gone")
		case is != was:
			o.Changed = append(o.Changed, fmt.Sprintf("%s: was %s, is %s", p, was, is))
		}
	}
	for p := range after {
		if _, ok := before[p]; !ok {
			o.Changed = append(o.Changed, p+": new")
		}
	}
	slices.Sort(o.Changed)
	return o, nil
}

// crash matches lines that a daemon writes when it is broken, whatever its language.
var crash = regexp.MustCompile(`(?i)panic|fatal error|goroutine \d+ \[|assert|sanitizer|segfault|sigsegv|core dumped|backtrace|data race|double free|corrupted`)

// CollectLog splits what a daemon wrote into lines.
func CollectLog(text []byte) *Log {
	l := &Log{Lines: []string{}, Trouble: []string{}}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		l.Lines = append(l.Lines, line)
		if crash.MatchString(line) {
			l.Trouble = append(l.Trouble, line)
		}
	}
	return l
}

// NewMounts lists the mounts of a process that were not there before, as "point fstype".
func NewMounts(pid int, before []string) ([]string, error) {
	after, err := MountPoints(pid)
	if err != nil {
		return nil, err
	}
	out := []string{}
	left := slices.Clone(before)
	for _, m := range after {
		if i := slices.Index(left, m); i >= 0 {
			left = slices.Delete(left, i, i+1)
			continue
		}
		out = append(out, m)
	}
	return out, nil
}

// Exists reports whether there is anything at a path, a dangling link included.
func Exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}
