package winfs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/guestproto"
)

// Session carries requests to a daemon: a *frontend.FUSE whose device is running and that has not
// sent INIT.
type Session interface {
	Do(frontend.Request) (frontend.Reply, error)
}

// Replay mounts the share that a session leads to as Windows' driver does, lists it, makes, opens,
// writes, reads, renames and deletes files and directories in a directory of its own name, asks for
// their security by name, and leaves. The share has to be writable for uid 0 and for the root's
// owner; where all checks pass it is as it was afterwards. Each check is one thing that a program
// in Windows does; a check that could not be reached is not among them.
func Replay(s Session) []guestproto.Check {
	r := &replay{s: s, lookups: map[uint64]uint64{}, stack: 0x9e37}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"mount", r.mount},
		{"root-by-name", r.rootByName},
		{"volume-info", r.volumeInfo},
		{"create", r.createAndWrite},
		{"list", r.list},
		{"open-read", r.openRead},
		{"security-by-name", r.securityByName},
		{"set-basic-info", r.setBasicInfo},
		{"set-size", r.setSize},
		{"links", r.links},
		{"parent", r.parent},
		{"rename", r.rename},
		{"delete", r.delete},
		{"ignore-case", r.ignoreCase},
		{"unmount", r.unmount},
	} {
		c := guestproto.Check{Name: step.name, Status: guestproto.StatusPass}
		if err := step.do(); err != nil {
			c.Status, c.Detail = guestproto.StatusFail, err.Error()
		}
		r.checks = append(r.checks, c)
		if c.Status == guestproto.StatusFail && (step.name == "mount" || step.name == "root-by-name") {
			break // Windows shows no drive
		}
	}
	return r.checks
}

type replay struct {
	s        Session
	checks   []guestproto.Check
	lookups  map[uint64]uint64 // by node, as the driver counts them (LookupMap)
	stack    uint16            // what the header's last field holds
	root     uint64            // what "." of node 1 is
	uid, gid uint32            // the root's owner
	maxWrite uint32
}

// The directory that all happens in.
const dirName = "winfs-replay"

// Values of Windows' <fcntl.h> as the driver has them on the wire.
const (
	readOnly  = 0
	writeOnly = 1
	readWrite = 2
	exclusive = 0o200
)

// ask sends a request and wants an answer of at least so many bytes.
func (r *replay) ask(q frontend.Request, atLeast int) ([]byte, error) {
	r.stack = r.stack*25173 + 13849
	stack := r.stack
	q.ExtLen = &stack
	q.Framing = frontend.WholeFraming
	reply, err := r.s.Do(q)
	switch {
	case err != nil:
		return nil, err
	case reply.Error != 0:
		return nil, fmt.Errorf("%v of node %d: %w", q.Op, q.Node, reply.Error)
	case len(reply.Body) < atLeast:
		return nil, fmt.Errorf("%v of node %d: answer of %d bytes, not %d", q.Op, q.Node, len(reply.Body), atLeast)
	}
	return reply.Body, nil
}

func body() frontend.Body { return nil }

func (r *replay) mount() error {
	const flags = 1<<13 | 1<<22 // FUSE_DO_READDIRPLUS, FUSE_MAX_PAGES
	b, err := r.ask(frontend.Request{Op: frontend.OpInit, Node: 1, Args: body().U32(7, 31, 0, flags), OutArgs: frontend.InitOutSize}, 24)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if major, minor := le.Uint32(b), le.Uint32(b[4:]); major != 7 || minor < 23 {
		return fmt.Errorf("INIT is answered with FUSE %d.%d", major, minor)
	}
	if r.maxWrite = le.Uint32(b[20:]); r.maxWrite < frontend.PageSize {
		return fmt.Errorf("INIT allows %d bytes to be written at once", r.maxWrite)
	}
	return nil
}

// lookup is SubmitLookupRequest.
func (r *replay) lookup(parent uint64, name string) (frontend.Entry, error) {
	b, err := r.ask(frontend.Request{Op: frontend.OpLookup, Node: parent, Args: body().Name(name), OutArgs: frontend.EntrySize}, frontend.EntrySize)
	if err != nil {
		return frontend.Entry{}, fmt.Errorf("look up %q: %w", name, err)
	}
	e := frontend.DecodeEntry(b)
	r.lookups[e.Node]++
	return e, nil
}

const typeMask, typeLink, typeDir = unix.S_IFMT, unix.S_IFLNK, unix.S_IFDIR

// walk is PathWalkthough: all of a path but its last name, from the root, through links.
func (r *replay) walk(path string) (parent uint64, name string, err error) {
	parent, name = frontend.RootNode, path
	for {
		dir, rest, more := strings.Cut(name, "/")
		if !more {
			return parent, name, nil
		}
		e, err := r.lookup(parent, dir)
		if err != nil {
			return 0, "", err
		}
		if e.Attr.Mode&typeMask == typeLink {
			target, err := r.readlink(e.Node)
			if err != nil {
				return 0, "", err
			}
			if e, err = r.find(target); err != nil {
				return 0, "", err
			}
		}
		parent, name = e.Node, rest
	}
}

// find is VirtFsLookupFileName: the root is looked up by ".".
func (r *replay) find(path string) (frontend.Entry, error) {
	path = cmp.Or(strings.TrimPrefix(path, "/"), ".")
	parent, name, err := r.walk(path)
	if err != nil {
		return frontend.Entry{}, err
	}
	return r.lookup(parent, name)
}

func (r *replay) readlink(node uint64) (string, error) {
	const nameSize = 260 // the request is as long as room for a name
	b, err := r.ask(frontend.Request{Op: frontend.OpReadlink, Node: node, Args: bytes.Repeat([]byte{0xcc}, nameSize), OutData: nameSize}, 1)
	return string(b), err
}

func (r *replay) open(node uint64, dir bool, flags uint32) (uint64, error) {
	q := frontend.Request{Op: frontend.OpOpen, Node: node, Args: body().U32(flags, 0), OutArgs: frontend.OpenOutSize}
	if dir {
		q.Op, q.Args = frontend.OpOpendir, body().U32(unix.O_DIRECTORY, 0)
	}
	b, err := r.ask(q, frontend.OpenOutSize)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

func (r *replay) close(node, fh uint64, dir bool) error {
	q := frontend.Request{Op: frontend.OpRelease, Node: node, Args: body().U64(fh).U32(0, 0).U64(0)}
	if dir {
		q.Op = frontend.OpReleasedir
	}
	_, err := r.ask(q, 0)
	return err
}

// getattr is GetFileInfoInternal; an open file is asked by its handle.
func (r *replay) getattr(node uint64, fh *uint64) (frontend.Attr, error) {
	args := body().U32(0, 0).U64(0)
	if fh != nil {
		args = body().U32(1, 0).U64(*fh) // FUSE_GETATTR_FH
	}
	b, err := r.ask(frontend.Request{Op: frontend.OpGetattr, Node: node, Args: args, OutArgs: frontend.AttrOutSize}, frontend.AttrOutSize)
	if err != nil {
		return frontend.Attr{}, err
	}
	return frontend.DecodeAttr(b[16:]), nil
}

func (r *replay) setattr(node uint64, valid uint32, a frontend.Attr, fh uint64) error {
	args := body().U32(valid, 0).U64(fh, a.Size, 0, a.Atime, a.Mtime, a.Ctime).
		U32(a.AtimeNsec, a.MtimeNsec, a.CtimeNsec, a.Mode, 0, 0, 0, 0)
	_, err := r.ask(frontend.Request{Op: frontend.OpSetattr, Node: node, Args: args, OutArgs: frontend.AttrOutSize}, frontend.AttrOutSize)
	return err
}

func (r *replay) rootByName() error {
	e, err := r.find("/")
	if err != nil {
		return err
	}
	if e.Attr.Mode&typeMask != typeDir { // any number will do: paths begin at node 1 all the same
		return fmt.Errorf("the root has mode %o", e.Attr.Mode)
	}
	r.root = e.Node
	r.uid, r.gid = e.Attr.UID, e.Attr.GID
	fh, err := r.open(e.Node, true, 0)
	if err != nil {
		return err
	}
	if _, err := r.getattr(e.Node, &fh); err != nil {
		return err
	}
	return r.close(e.Node, fh, true)
}

func (r *replay) volumeInfo() error {
	b, err := r.ask(frontend.Request{Op: frontend.OpStatfs, Node: 1, OutArgs: 80}, 80)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b[40:]) == 0 {
		return errors.New("STATFS knows no size of blocks")
	}
	return nil
}

func (r *replay) mkdir(path string) (uint64, error) {
	parent, name, err := r.walk(path)
	if err != nil {
		return 0, err
	}
	b, err := r.ask(frontend.Request{Op: frontend.OpMkdir, Node: parent, Args: body().U32(0o775, 0).Name(name), OutArgs: frontend.EntrySize}, frontend.EntrySize)
	if err != nil {
		return 0, err
	}
	e := frontend.DecodeEntry(b)
	r.lookups[e.Node]++
	fh, err := r.open(e.Node, true, 0)
	if err != nil {
		return 0, err
	}
	return e.Node, r.close(e.Node, fh, true)
}

func (r *replay) create(path string) (node, fh uint64, err error) {
	parent, name, err := r.walk(path)
	if err != nil {
		return 0, 0, err
	}
	args := body().U32(readWrite|exclusive, 0o664, 0, 0).Name(name)
	const size = frontend.EntrySize + frontend.OpenOutSize
	b, err := r.ask(frontend.Request{Op: frontend.OpCreate, Node: parent, Args: args, OutArgs: size}, size)
	if err != nil {
		return 0, 0, fmt.Errorf("create %s: %w", path, err)
	}
	e := frontend.DecodeEntry(b)
	r.lookups[e.Node]++
	return e.Node, binary.LittleEndian.Uint64(b[frontend.EntrySize:]), nil
}

// content is more than is written or read at once.
func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

const fileSize = 3<<20 + 123

func (r *replay) createAndWrite() error {
	if _, err := r.mkdir(dirName); err != nil {
		return err
	}
	if _, err := r.mkdir(dirName + "/sub"); err != nil {
		return err
	}
	node, fh, err := r.create(dirName + "/File.txt")
	if err != nil {
		return err
	}
	data := content(fileSize)
	for off := 0; off < len(data); {
		part := data[off:min(len(data), off+int(min(r.maxWrite, 1<<20)))]
		b, err := r.ask(frontend.Request{Op: frontend.OpWrite, Node: node, Args: frontend.ReadArgs(fh, uint64(off), uint32(len(part))), Data: part, OutArgs: 8}, 8)
		if err != nil {
			return err
		}
		n := int(binary.LittleEndian.Uint32(b))
		if n <= 0 || n > len(part) {
			return fmt.Errorf("WRITE of %d bytes wrote %d", len(part), n)
		}
		off += n
	}
	a, err := r.getattr(node, &fh)
	if err != nil {
		return err
	}
	if a.Size != fileSize || a.UID != r.uid || a.GID != r.gid {
		return fmt.Errorf("the new file has %d bytes and belongs to %d:%d, not %d and %d:%d", a.Size, a.UID, a.GID, fileSize, r.uid, r.gid)
	}
	if _, err := r.ask(frontend.Request{Op: frontend.OpFlush, Node: node, Args: body().U64(fh).U32(0, 0).U64(0)}, 0); err != nil {
		return err
	}
	return r.close(node, fh, false)
}

// names reads a directory as ReadDirectory does, or, not plus, as IsEmptyDirectory and the search
// without case do.
func (r *replay) names(path string, plus bool) ([]string, error) {
	e, err := r.find(path)
	if err != nil {
		return nil, err
	}
	fh, err := r.open(e.Node, true, 0)
	if err != nil {
		return nil, err
	}
	const size = 2 * 16 << 10
	var all []string
	for off := uint64(0); ; {
		q := frontend.Request{Op: frontend.OpReaddir, Node: e.Node, Args: frontend.ReadArgs(fh, off, size), OutData: size}
		if plus {
			q.Op = frontend.OpReaddirplus
		}
		b, err := r.ask(q, 0)
		if err != nil {
			return nil, err
		}
		list, err := frontend.DecodeDirents(b, plus)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			break
		}
		for _, d := range list {
			off = d.Off
			if d.Name == "." || d.Name == ".." {
				continue
			}
			all = append(all, d.Name)
			if plus {
				r.lookups[d.Entry.Node]++
			}
		}
	}
	slices.Sort(all)
	return all, r.close(e.Node, fh, true)
}

func (r *replay) list() error {
	top, err := r.names("/", true)
	if err != nil {
		return err
	}
	if !slices.Contains(top, dirName) {
		return fmt.Errorf("the root has %q, without %s", top, dirName)
	}
	for _, plus := range []bool{true, false} {
		got, err := r.names("/"+dirName, plus)
		if err != nil {
			return err
		}
		if want := []string{"File.txt", "sub"}; !slices.Equal(got, want) {
			return fmt.Errorf("the directory has %q, not %q", got, want)
		}
	}
	return nil
}

func (r *replay) openRead() error {
	e, err := r.find("/" + dirName + "/File.txt")
	if err != nil {
		return err
	}
	fh, err := r.open(e.Node, false, readOnly)
	if err != nil {
		return err
	}
	want := content(fileSize)
	var got []byte
	for {
		const part = 512 << 10
		b, err := r.ask(frontend.Request{Op: frontend.OpRead, Node: e.Node, Args: frontend.ReadArgs(fh, uint64(len(got)), part), OutData: part}, 0)
		if err != nil {
			return err
		}
		got = append(got, b...)
		if len(b) < part {
			break
		}
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes were read, which are not the %d that were written", len(got), len(want))
	}
	return r.close(e.Node, fh, false)
}

// securityByName is GetSecurityByName: of the root, a directory, a file, and of what there is not.
func (r *replay) securityByName() error {
	for path, mode := range map[string]uint32{"/": typeDir, "/" + dirName: typeDir | 0o775, "/" + dirName + "/sub": typeDir | 0o775, "/" + dirName + "/File.txt": unix.S_IFREG | 0o664} {
		e, err := r.find(path)
		if err != nil {
			return err
		}
		if e.Attr.Mode != mode && path != "/" || e.Attr.Mode&typeMask != mode&typeMask {
			return fmt.Errorf("%s has mode %o, not %o", path, e.Attr.Mode, mode)
		}
	}
	for _, path := range []string{"/none", "/" + dirName + "/none", "/none/none"} {
		if _, err := r.find(path); !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s: %v, not ENOENT", path, err)
		}
	}
	return nil
}

func (r *replay) setBasicInfo() error {
	e, err := r.find("/" + dirName + "/File.txt")
	if err != nil {
		return err
	}
	fh, err := r.open(e.Node, false, readWrite)
	if err != nil {
		return err
	}
	for _, mode := range []uint32{0o444, 0o664} { // read-only, and not
		a := frontend.Attr{Mode: mode, Atime: 1_600_000_000, Mtime: 1_600_000_001, MtimeNsec: 123_456_700}
		if err := r.setattr(e.Node, frontend.SetFH|frontend.SetMode|frontend.SetAtime|frontend.SetMtime, a, fh); err != nil {
			return err
		}
		got, err := r.getattr(e.Node, &fh)
		if err != nil {
			return err
		}
		if got.Mode&0o7777 != mode || got.Atime != a.Atime || got.Mtime != a.Mtime || got.MtimeNsec != a.MtimeNsec {
			return fmt.Errorf("after SETATTR the mode is %o, and the times are %d and %d.%d", got.Mode, got.Atime, got.Mtime, got.MtimeNsec)
		}
	}
	if err := r.setattr(e.Node, frontend.SetFH, frontend.Attr{}, fh); err != nil { // nothing is to be changed
		return err
	}
	return r.close(e.Node, fh, false)
}

func (r *replay) setSize() error {
	node, fh, err := r.create(dirName + "/sized")
	if err != nil {
		return err
	}
	// Room for more than there is (FALLOC_FL_KEEP_SIZE), then an end, then another.
	const room = 1 << 20
	if _, err := r.ask(frontend.Request{Op: frontend.OpFallocate, Node: node, Args: body().U64(fh, 0, room).U32(1, 0)}, 0); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	for _, size := range []uint64{70_000, 7} {
		if err := r.setattr(node, frontend.SetFH|frontend.SetSize, frontend.Attr{Size: size}, fh); err != nil {
			return err
		}
		a, err := r.getattr(node, &fh)
		if err != nil {
			return err
		}
		if a.Size != size {
			return fmt.Errorf("the file has %d bytes, not %d", a.Size, size)
		}
	}
	if err := r.close(node, fh, false); err != nil {
		return err
	}
	return r.remove(dirName+"/sized", node, false)
}

// links is SetReparsePoint, and a path through what it makes. A link's target is a path from the
// root to the driver.
func (r *replay) links() error {
	for name, target := range map[string]string{"to-file": dirName + "/File.txt", "to-dir": dirName + "/sub", "up": dirName + "/sub/.."} {
		b, err := r.symlink(dirName+"/"+name, target)
		if err != nil {
			return err
		}
		if got, err := r.readlink(b.Node); err != nil || got != target {
			return fmt.Errorf("the link leads to %q (%v), not %q", got, err, target)
		}
	}
	node, fh, err := r.create(dirName + "/to-dir/inside")
	if err != nil {
		return err
	}
	if err := r.close(node, fh, false); err != nil {
		return err
	}
	file, err := r.find("/" + dirName + "/up/File.txt")
	if err != nil {
		return err
	}
	if file.Attr.Size != fileSize {
		return fmt.Errorf("the file behind the link has %d bytes", file.Attr.Size)
	}
	if err := r.remove(dirName+"/to-dir/inside", node, false); err != nil {
		return err
	}
	for _, name := range []string{"to-file", "to-dir", "up"} {
		e, err := r.find("/" + dirName + "/" + name)
		if err != nil {
			return err
		}
		if err := r.remove(dirName+"/"+name, e.Node, false); err != nil {
			return err
		}
	}
	return nil
}

func (r *replay) symlink(path, target string) (frontend.Entry, error) {
	parent, name, err := r.walk(path)
	if err != nil {
		return frontend.Entry{}, err
	}
	b, err := r.ask(frontend.Request{Op: frontend.OpSymlink, Node: parent, Args: body().Name(name).Name(target), OutArgs: frontend.EntrySize}, frontend.EntrySize)
	if err != nil {
		return frontend.Entry{}, err
	}
	e := frontend.DecodeEntry(b)
	r.lookups[e.Node]++
	return e, nil
}

// parent looks ".." up, which leads no higher than the root.
func (r *replay) parent() error {
	dir, err := r.find("/" + dirName)
	if err != nil {
		return err
	}
	for path, want := range map[string]uint64{
		dirName + "/sub/..": dir.Node, dirName + "/sub/.": 0, dirName + "/..": r.root, "..": r.root, "../..": r.root,
		"../" + dirName: dir.Node, dirName + "/sub/../../..": r.root,
	} {
		e, err := r.find(path)
		if err != nil {
			return err
		}
		if want != 0 && e.Node != want {
			return fmt.Errorf("%s is node %d, not %d", path, e.Node, want)
		}
		if e.Attr.Mode&typeMask != typeDir {
			return fmt.Errorf("%s has mode %o", path, e.Attr.Mode)
		}
	}
	return nil
}

// move is RenameWithFallbackRequest.
func (r *replay) move(from, to string, flags uint32) error {
	p, name, err := r.walk(from)
	if err != nil {
		return err
	}
	q, newName, err := r.walk(to)
	if err != nil {
		return err
	}
	_, err = r.ask(frontend.Request{Op: frontend.OpRename2, Node: p, Args: body().U64(q).U32(flags, 0).Name(name).Name(newName)}, 0)
	if errors.Is(err, unix.EINVAL) {
		_, err = r.ask(frontend.Request{Op: frontend.OpRename, Node: p, Args: body().U64(q).Name(name).Name(newName)}, 0)
	}
	return err
}

func (r *replay) rename() error {
	e, err := r.find("/" + dirName + "/File.txt")
	if err != nil {
		return err
	}
	fh, err := r.open(e.Node, false, readWrite)
	if err != nil {
		return err
	}
	if err := r.move(dirName+"/File.txt", dirName+"/sub/moved", unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	node, other, err := r.create(dirName + "/in-the-way")
	if err != nil {
		return err
	}
	if err := r.close(node, other, false); err != nil {
		return err
	}
	if err := r.move(dirName+"/sub/moved", dirName+"/in-the-way", unix.RENAME_NOREPLACE); !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("a rename that replaces nothing: %v, not EEXIST", err)
	}
	if err := r.move(dirName+"/sub/moved", dirName+"/in-the-way", 0); err != nil {
		return err
	}
	a, err := r.getattr(e.Node, &fh)
	if err != nil {
		return err
	}
	if a.Size != fileSize {
		return fmt.Errorf("the open file has %d bytes after it was renamed", a.Size)
	}
	again, err := r.find("/" + dirName + "/in-the-way")
	if err != nil {
		return err
	}
	if again.Node != e.Node {
		return fmt.Errorf("renamed, the file is node %d, not %d", again.Node, e.Node)
	}
	return r.close(e.Node, fh, false)
}

// remove is Cleanup with FspCleanupDelete: what is deleted is forgotten at once, by as many lookups
// as were counted.
func (r *replay) remove(path string, node uint64, dir bool) error {
	parent, name, err := r.walk(path)
	if err != nil {
		return err
	}
	q := frontend.Request{Op: frontend.OpUnlink, Node: parent, Args: body().Name(name)}
	if dir {
		q.Op = frontend.OpRmdir
	}
	if _, err := r.ask(q, 0); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	_, err = r.s.Do(frontend.Request{Op: frontend.OpForget, Node: node, Args: body().U64(r.lookups[node])})
	delete(r.lookups, node)
	return err
}

func (r *replay) delete() error {
	e, err := r.find("/" + dirName + "/in-the-way")
	if err != nil {
		return err
	}
	fh, err := r.open(e.Node, false, writeOnly)
	if err != nil {
		return err
	}
	// Deleted and forgotten before it is closed.
	if err := r.remove(dirName+"/in-the-way", e.Node, false); err != nil {
		return err
	}
	if err := r.close(e.Node, fh, false); err != nil {
		return err
	}
	if _, err := r.find("/" + dirName + "/in-the-way"); !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("what was deleted: %v, not ENOENT", err)
	}
	left, err := r.names("/"+dirName, false)
	if err != nil {
		return err
	}
	if !slices.Equal(left, []string{"sub"}) {
		return fmt.Errorf("%q are left", left)
	}
	return nil
}

// ignoreCase is NameAwareRequest where names are the same in any case: a name that is not found is
// searched for.
func (r *replay) ignoreCase() error {
	if _, err := r.find("/" + strings.ToUpper(dirName)); !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("a name in capitals: %v, not ENOENT", err)
	}
	all, err := r.names("/", false)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(s string) bool { return strings.EqualFold(s, dirName) })
	if i < 0 {
		return fmt.Errorf("%s is not among %q", dirName, all)
	}
	_, err = r.find("/" + all[i])
	return err
}

func (r *replay) unmount() error {
	for _, path := range []string{dirName + "/sub", dirName} {
		e, err := r.find("/" + path)
		if err != nil {
			return err
		}
		if err := r.remove(path, e.Node, true); err != nil {
			return err
		}
	}
	_, err := r.ask(frontend.Request{Op: frontend.OpDestroy, Node: 1}, 0)
	return err
}
