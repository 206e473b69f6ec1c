package workload

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// creation is one thing for a child to make, at the same name under each root.
type creation struct {
	Name  string `json:"name"` // unique, a file name
	Kind  string `json:"kind"`
	In    string `json:"in"` // directory under each root
	Umask int    `json:"umask"`
}

// createJob is what a child of one identity gets on stdin; it answers with [][2]guestproto.View on stdout.
type createJob struct {
	Roots [2]string  `json:"roots"` // share, local
	Make  []creation `json:"make"`
}

// kinds are the inodes that an identity makes. A user may make devices only as root.
var kinds = []string{"file", "dir", "symlink", "fifo", "socket", "tmpfile", "link", "char", "block"}

// parents are the directories made for the identities, by root, open to all.
func (e *Env) parents(root string) error {
	for _, d := range []struct {
		name     string
		mode     uint32
		uid, gid int
		acl      string
	}{
		{"plain", 0o777, 0, 0, ""},
		{"setgid", 0o2777, 0, 2001, ""},  // a group that one of the users has as a supplementary group
		{"setgid2", 0o2777, 0, 3003, ""}, // a group that none has
		{"sticky", 0o1777, 0, 0, ""},
		{"acl", 0o777, 0, 0, defaultACL},
		{"acl-setgid", 0o2777, 0, 2001, defaultACL},
	} {
		p := filepath.Join(root, d.name)
		if err := os.MkdirAll(p, 0o777); err != nil {
			return err
		}
		if err := os.Lchown(p, d.uid, d.gid); err != nil {
			return fmt.Errorf("chown %s to %d:%d: %w", p, d.uid, d.gid, err)
		}
		if err := unix.Chmod(p, d.mode); err != nil {
			return fmt.Errorf("chmod %s: %w", p, err)
		}
		if d.acl != "" {
			b, err := hex.DecodeString(d.acl)
			if err != nil {
				return err
			}
			// A file system without ACLs refuses; the creations below it then say what they say.
			_ = unix.Setxattr(p, "system.posix_acl_default", b, 0)
		}
	}
	return nil
}

// defaultACL is user::rwx, user:1002:rwx, group::r-x, mask::rwx, other::--- in the wire form of linux/posix_acl_xattr.h: version
// 2, then tag, permissions, id, little endian.
const defaultACL = "02000000" + "01000700ffffffff" + "02000700ea030000" + "04000500ffffffff" + "10000700ffffffff" + "20000000ffffffff"

func defaultCreds() []guestproto.Cred {
	return []guestproto.Cred{
		{UID: 0, GID: 0},
		{UID: 1001, GID: 1001},
		{UID: 1002, GID: 1002, Groups: []int{2001, 2002, 1002}},
		{UID: 70001, GID: 70002},
		{UID: 1001, GID: 2001, Groups: []int{1001}},
	}
}

func (e *Env) identity(a guestproto.IdentityArgs) (guestproto.Identity, error) {
	r := guestproto.Identity{Created: []guestproto.Ownership{}}
	p, err := e.place(a.Where, guestproto.CallIdentity)
	if err != nil {
		return r, err
	}
	r.Dir = p.rel
	control := filepath.Join(e.localDir(), "identity-control")
	if err := os.RemoveAll(control); err != nil {
		return r, err
	}
	if err := os.MkdirAll(control, 0o755); err != nil {
		return r, err
	}
	for _, root := range []string{p.dir, control} {
		if err := e.parents(root); err != nil {
			return r, err
		}
	}
	creds := a.Creds
	if len(creds) == 0 {
		creds = defaultCreds()
	}
	for i, c := range creds {
		job := createJob{Roots: [2]string{p.dir, control}}
		for _, in := range []string{"plain", "setgid", "setgid2", "sticky", "acl", "acl-setgid"} {
			for _, k := range kinds {
				if a.SkipNodes && (k == "char" || k == "block") {
					continue
				}
				job.Make = append(job.Make, creation{Name: fmt.Sprintf("%s-%d", k, i), Kind: k, In: in, Umask: 0o022})
			}
			job.Make = append(job.Make, creation{Name: fmt.Sprintf("file-umask027-%d", i), Kind: "file", In: in, Umask: 0o027},
				creation{Name: fmt.Sprintf("dir-umask0-%d", i), Kind: "dir", In: in, Umask: 0},
				creation{Name: fmt.Sprintf("setgidfile-%d", i), Kind: "setgidfile", In: in, Umask: 0})
		}
		b, err := json.Marshal(job)
		if err != nil {
			return r, err
		}
		out, err := e.inOwnProcess(&c, b, "create")
		if err != nil {
			return r, err
		}
		var views [][2]guestproto.View
		if err := json.Unmarshal(out, &views); err != nil || len(views) != len(job.Make) {
			return r, fmt.Errorf("the creating process answered %d of %d: %w", len(views), len(job.Make), err)
		}
		for j, m := range job.Make {
			o := guestproto.Ownership{
				Path: filepath.Join(m.In, m.Name), Kind: m.Kind, As: c, Umask: fmt.Sprintf("%03o", m.Umask), Parent: m.In,
				Share: views[j][0], Local: views[j][1],
			}
			// The creator saw its own fresh attributes; root looks again, past the cache of the creation.
			if o.Share.Errno == "" && m.Kind != "tmpfile" {
				o.Share = viewPath(filepath.Join(p.dir, o.Path))
			}
			if o.Local.Errno == "" && m.Kind != "tmpfile" {
				o.Local = viewPath(filepath.Join(control, o.Path))
			}
			o.Same = o.Share == o.Local
			if !o.Same {
				r.Differ++
			}
			r.Created = append(r.Created, o)
		}
		e.progress("creating", int64(i+1), int64(len(creds)))
	}
	return r, os.RemoveAll(control)
}

// viewPath is what root sees of an inode, its access ACL included.
func viewPath(path string) guestproto.View {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return guestproto.View{Errno: errnoName(err)}
	}
	v := viewOf(&st)
	if acl, err := getxattr(path, "system.posix_acl_access"); err == nil {
		v.ACL = hex.EncodeToString(acl)
	}
	return v
}

// childCreate makes what stdin asks for, as the process's own identity.
func childCreate(stdin io.Reader, stdout, stderr io.Writer) int {
	var job createJob
	if err := json.NewDecoder(stdin).Decode(&job); err != nil {
		fmt.Fprintln(stderr, err)
		return 2
	}
	views := [][2]guestproto.View{}
	for _, m := range job.Make {
		unix.Umask(m.Umask)
		var pair [2]guestproto.View
		for i, root := range job.Roots {
			pair[i] = create(filepath.Join(root, m.In, m.Name), m.Kind)
		}
		views = append(views, pair)
	}
	if err := json.NewEncoder(stdout).Encode(views); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// create makes one inode and says what it became.
func create(path, kind string) guestproto.View {
	// The mode asks for more than the umask leaves, so that the umask (or the ACL in its place) is seen at work.
	const mode = 0o666
	fd, err := -1, error(nil)
	switch kind {
	case "file":
		fd, err = unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, mode)
	case "setgidfile":
		// The setgid bit of a group that the creator is not in must go (CVE-2018-13405, CVE-2022-0358).
		fd, err = unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o2777)
	case "dir":
		err = unix.Mkdir(path, 0o777)
	case "symlink":
		err = unix.Symlink("target", path)
	case "fifo":
		err = unix.Mknod(path, unix.S_IFIFO|mode, 0)
	case "socket":
		err = unix.Mknod(path, unix.S_IFSOCK|mode, 0)
	case "char":
		err = unix.Mknod(path, unix.S_IFCHR|mode, int(unix.Mkdev(1, 3)))
	case "block":
		err = unix.Mknod(path, unix.S_IFBLK|mode, int(unix.Mkdev(7, 200)))
	case "tmpfile":
		fd, err = unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, mode)
	case "link":
		from := filepath.Join(filepath.Dir(path), strings.Replace(filepath.Base(path), "link", "file", 1))
		err = unix.Link(from, path)
	default:
		return guestproto.View{Errno: "unknown kind " + kind}
	}
	if err != nil {
		return guestproto.View{Errno: errnoName(err)}
	}
	var st unix.Stat_t
	if fd >= 0 {
		defer unix.Close(fd)
		err = unix.Fstat(fd, &st)
	} else {
		err = unix.Lstat(path, &st)
	}
	if err != nil {
		return guestproto.View{Errno: errnoName(err)}
	}
	return viewOf(&st)
}
