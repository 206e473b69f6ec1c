package workload

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

func (e *Env) walk(a guestproto.WalkArgs) (guestproto.Walk, error) {
	w := guestproto.Walk{Entries: []guestproto.Entry{}}
	if a.Dir == "" {
		a.Dir = "/"
	}
	p, err := e.place(a.Where, guestproto.CallWalk)
	if err != nil {
		return w, err
	}
	if a.Fresh {
		// Inodes, too: a directory that the host has moved away from a name which was removed here afterwards counts as removed for Linux
		// (S_DEAD), and has nothing in it for as long as its inode lives.
		if err := dropCaches(); err != nil {
			return w, err
		}
	}
	limit := a.Max
	if limit == 0 {
		limit = 100_000
	}
	err = filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		if path == p.dir {
			return err
		}
		if len(w.Entries) == limit {
			w.Cut = true
			return fs.SkipAll
		}
		rel, relErr := filepath.Rel(p.dir, path)
		if relErr != nil {
			return relErr
		}
		if err != nil { // a directory that cannot be read is a fact
			w.Entries = append(w.Entries, guestproto.Entry{Path: rel, View: guestproto.View{Errno: errnoName(err)}})
			return nil
		}
		w.Entries = append(w.Entries, entry(path, rel, a.Hash))
		e.progress("walk", int64(len(w.Entries)), 0)
		return nil
	})
	slices.SortFunc(w.Entries, func(a, b guestproto.Entry) int { return strings.Compare(a.Path, b.Path) })
	return w, err
}

// entry describes one inode.
func entry(path, rel string, hash bool) guestproto.Entry {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return guestproto.Entry{Path: rel, View: guestproto.View{Errno: errnoName(err)}}
	}
	en := guestproto.Entry{
		Path: rel, View: viewOf(&st), Ino: st.Ino, Nlink: uint64(st.Nlink), Size: st.Size,
		MTime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		t, err := os.Readlink(path)
		en.Target, en.Errno = t, errnoName(err)
	case unix.S_IFREG:
		if hash {
			sum, err := hashPath(path)
			en.SHA256, en.Errno = sum, errnoName(err)
		}
	}
	return en
}

// viewOf is what stat says of owner and mode.
func viewOf(st *unix.Stat_t) guestproto.View {
	v := guestproto.View{UID: int(st.Uid), GID: int(st.Gid), Mode: fmt.Sprintf("%07o", st.Mode)}
	if t := st.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		v.Rdev = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	return v
}

func hashPath(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// getxattr reads an attribute of any size, without following a symbolic link.
func getxattr(path, name string) ([]byte, error) {
	for size := 256; ; size *= 4 {
		b := make([]byte, size)
		n, err := unix.Lgetxattr(path, name, b)
		if errors.Is(err, unix.ERANGE) && size < 1<<17 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}
