package fuzz

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// operations are all that steps can do, by name.
var operations map[string]operation

func init() {
	operations = map[string]operation{}
	maps.Copy(operations, validOperations())
	maps.Copy(operations, hostileOperations())
}

func operationNames() []string { return slices.Sorted(maps.Keys(operations)) }

// validOperations are what a kernel sends; each is done to the model, too.
func validOperations() map[string]operation {
	on := func(weight int, run func(*session, Step) *Finding) operation {
		return operation{weight: weight, run: run}
	}
	return map[string]operation{
		"lookup":   on(12, (*session).lookup),
		"getattr":  on(6, (*session).getattr),
		"create":   on(10, (*session).create),
		"mkdir":    on(6, (*session).mkdir),
		"mknod":    on(3, (*session).mknod),
		"symlink":  on(3, (*session).symlink),
		"readlink": on(2, (*session).readlink),
		"link":     on(4, (*session).link),
		"unlink":   on(5, (*session).unlink),
		"rmdir":    on(3, (*session).rmdir),
		"rename":   on(7, (*session).rename),
		"open":     on(6, (*session).open),
		"opendir":  on(3, (*session).opendir),
		"read":     on(8, (*session).read),
		"write":    on(10, (*session).write),
		"truncate": on(3, (*session).truncate),
		"chmod":    on(3, (*session).chmod),
		"readdir":  on(5, (*session).readdir),
		"release": on(4, func(s *session, st Step) *Finding {
			if len(s.model.files) == 0 {
				return nil
			}
			return s.release(s.client(st), st.File%len(s.model.files))
		}),
		"forget": on(4, func(s *session, st Step) *Finding {
			if len(s.model.nodes) == 1 {
				return nil
			}
			return s.forget(1 + st.Node%(len(s.model.nodes)-1))
		}),
		"fsync": on(1, (*session).fsync),
		"statfs": on(1, func(s *session, st Step) *Finding {
			return s.succeeds(st, fe.Request{Op: fe.OpStatfs, Node: 1, OutArgs: 80})
		}),
		"fallocate": on(2, (*session).fallocate),
		"setxattr":  on(2, (*session).setxattr),
		"getxattr":  on(2, (*session).getxattr),
		"burst":     on(4, (*session).burst),
		"restart":   on(1, (*session).restart),
	}
}

func (s *session) succeeds(st Step, r fe.Request) *Finding {
	reply, f := s.do(s.client(st), r)
	if f == nil && reply.Error != 0 {
		f = &Finding{Kind: "wrong answer", Detail: fmt.Sprintf("%v: %v", r.Op, reply.Error)}
	}
	return f
}

// entry sends a request that answers with an entry for name in dir, and compares.
func (s *session) entry(st Step, dir *node, name string, r fe.Request, local func() error) (fe.Reply, *Finding) {
	r.Node = dir.id
	r.OutArgs += fe.EntrySize
	// The guest's kernel checks permissions before it sends anything; a daemon need not do so again.
	if as(st.User, func() error { return unix.Faccessat(dir.fd, ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS) }) != nil {
		st.User = 0
	}
	reply, f := s.do(s.client(st), r)
	if f != nil {
		return reply, f
	}
	err := as(st.User, local)
	if f := agree(fmt.Sprintf("%v of %s", r.Op, name), reply.Error, err); f != nil || reply.Error != 0 {
		return reply, f
	}
	if len(reply.Body) < fe.EntrySize {
		return reply, &Finding{Kind: "bad reply", Detail: fmt.Sprintf("%v: an entry of %d bytes", r.Op, len(reply.Body))}
	}
	return reply, s.model.found(dir, name, fe.DecodeEntry(reply.Body))
}

func (s *session) lookup(st Step) *Finding {
	dir := s.model.pickDir(st.Node)
	st.User = 0 // the guest's kernel checks
	_, f := s.entry(st, dir, st.Name, fe.Request{Op: fe.OpLookup, Args: fe.Body(nil).Name(st.Name)}, func() error {
		var x unix.Stat_t
		return unix.Fstatat(dir.fd, st.Name, &x, unix.AT_SYMLINK_NOFOLLOW)
	})
	return f
}

func (s *session) getattr(st Step) *Finding {
	n := s.model.pick(st.Node, 0)
	reply, f := s.do(s.client(st), fe.Request{Op: fe.OpGetattr, Node: n.id, Args: fe.Body(nil).U32(0, 0).U64(0), OutArgs: fe.AttrOutSize})
	if f != nil {
		return f
	}
	var x unix.Stat_t
	err := unix.Fstat(n.fd, &x)
	if f := agree("GETATTR", reply.Error, err); f != nil || err != nil {
		return f
	}
	if len(reply.Body) < fe.AttrOutSize {
		return &Finding{Kind: "bad reply", Detail: fmt.Sprintf("GETATTR: %d bytes", len(reply.Body))}
	}
	return sameAttr(fe.DecodeAttr(reply.Body[16:]), &x)
}

func (s *session) create(st Step) *Finding {
	dir := s.model.pickDir(st.Node)
	fd := -1
	args := fe.Body(nil).U32(unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, unix.S_IFREG|st.Mode, 0, 0).Name(st.Name)
	reply, f := s.entry(st, dir, st.Name, fe.Request{Op: fe.OpCreate, Args: args, OutArgs: fe.OpenOutSize}, func() (err error) {
		if fd, err = unix.Openat(dir.fd, st.Name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0); err == nil {
			err = unix.Fchmod(fd, st.Mode)
		}
		return err
	})
	if f != nil || reply.Error != 0 {
		if fd >= 0 {
			unix.Close(fd)
		}
		return f
	}
	s.opened(reply.Body, fe.EntrySize, fd, false)
	return nil
}

// opened notes an open file of the node in an answer that begins with an entry, or of the one that is given.
func (s *session) opened(body []byte, at int, fd int, dir bool) {
	id := fe.DecodeEntry(body).Node
	for _, n := range s.model.nodes {
		if n.id == id {
			s.model.files = append(s.model.files, &file{n, binary.LittleEndian.Uint64(body[at:]), fd, dir})
		}
	}
}

func (s *session) mkdir(st Step) *Finding {
	dir := s.model.pickDir(st.Node)
	_, f := s.entry(st, dir, st.Name, fe.Request{Op: fe.OpMkdir, Args: fe.Body(nil).U32(st.Mode|0o700, 0).Name(st.Name)}, func() error {
		if err := unix.Mkdirat(dir.fd, st.Name, 0); err != nil {
			return err
		}
		return unix.Fchmodat(dir.fd, st.Name, st.Mode|0o700, 0)
	})
	return f
}

func (s *session) mknod(st Step) *Finding {
	dir := s.model.pickDir(st.Node)
	mode := []uint32{unix.S_IFREG, unix.S_IFIFO}[st.Flags%2] | st.Mode
	_, f := s.entry(st, dir, st.Name, fe.Request{Op: fe.OpMknod, Args: fe.Body(nil).U32(mode, 0, 0, 0).Name(st.Name)}, func() error {
		if err := unix.Mknodat(dir.fd, st.Name, mode&unix.S_IFMT, 0); err != nil {
			return err
		}
		return unix.Fchmodat(dir.fd, st.Name, st.Mode, 0)
	})
	return f
}

func (s *session) symlink(st Step) *Finding {
	dir := s.model.pickDir(st.Node)
	target := []string{st.To, "../" + st.To, "../../outside/secret", "/etc/passwd"}[st.Flags%4]
	_, f := s.entry(st, dir, st.Name, fe.Request{Op: fe.OpSymlink, Args: fe.Body(nil).Name(st.Name).Name(target)}, func() error {
		return unix.Symlinkat(target, dir.fd, st.Name)
	})
	return f
}

func (s *session) readlink(st Step) *Finding {
	n := s.model.pick(st.Node, unix.S_IFLNK)
	if n == nil {
		return nil
	}
	reply, f := s.do(s.client(st), fe.Request{Op: fe.OpReadlink, Node: n.id, OutData: fe.PageSize})
	if f != nil {
		return f
	}
	buf := make([]byte, 4096)
	k, err := unix.Readlinkat(n.fd, "", buf)
	if f := agree("READLINK", reply.Error, err); f != nil || err != nil {
		return f
	}
	if got := string(bytes.TrimRight(reply.Body, "\x00")); got != string(buf[:k]) {
		return &Finding{Kind: "wrong answer", Detail: fmt.Sprintf("READLINK: %q, not %q", got, buf[:k])}
	}
	return nil
}

func (s *session) link(st Step) *Finding {
	n, dir := s.model.pick(st.Other, unix.S_IFREG), s.model.pickDir(st.Node)
	if n == nil {
		return nil
	}
	st.User = 0 // protected_hardlinks
	_, f := s.entry(st, dir, st.Name, fe.Request{Op: fe.OpLink, Args: fe.Body(nil).U64(n.id).Name(st.Name)}, func() error {
		return unix.Linkat(unix.AT_FDCWD, n.proc(), dir.fd, st.Name, unix.AT_SYMLINK_FOLLOW)
	})
	return f
}

// plain sends a request whose answer has no body, and compares whether it succeeds.
func (s *session) plain(st Step, r fe.Request, local func() error) *Finding {
	reply, f := s.do(s.client(st), r)
	if f != nil {
		return f
	}
	return agree(r.Op.String(), reply.Error, local())
}

// The guest's kernel checks permissions before it sends what follows, so these are root's.

func (s *session) unlink(st Step) *Finding {
	dir := s.model.pickDir(st.Node)
	st.User = 0
	return s.plain(st, fe.Request{Op: fe.OpUnlink, Node: dir.id, Args: fe.Body(nil).Name(st.Name)}, func() error { return unix.Unlinkat(dir.fd, st.Name, 0) })
}

func (s *session) rmdir(st Step) *Finding {
	dir := s.model.pickDir(st.Node)
	st.User = 0
	return s.plain(st, fe.Request{Op: fe.OpRmdir, Node: dir.id, Args: fe.Body(nil).Name(st.Name)}, func() error {
		return unix.Unlinkat(dir.fd, st.Name, unix.AT_REMOVEDIR)
	})
}

func (s *session) rename(st Step) *Finding {
	from, to := s.model.pickDir(st.Node), s.model.pickDir(st.Other)
	st.User = 0
	flags := []uint32{0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[st.Flags%4]
	r := fe.Request{Op: fe.OpRename, Node: from.id, Args: fe.Body(nil).U64(to.id).Name(st.Name).Name(st.To)}
	if flags != 0 {
		r = fe.Request{Op: fe.OpRename2, Node: from.id, Args: fe.Body(nil).U64(to.id).U32(flags, 0).Name(st.Name).Name(st.To)}
	}
	return s.plain(st, r, func() error { return unix.Renameat2(from.fd, st.Name, to.fd, st.To, uint(flags)) })
}

func (s *session) open(st Step) *Finding {
	n := s.model.pick(st.Node, unix.S_IFREG)
	if n == nil {
		return nil
	}
	st.User = 0
	reply, f := s.do(s.client(st), fe.Request{Op: fe.OpOpen, Node: n.id, Args: fe.Body(nil).U32(unix.O_RDWR, 0), OutArgs: fe.OpenOutSize})
	if f != nil {
		return f
	}
	fd, err := unix.Open(n.proc(), unix.O_RDWR|unix.O_CLOEXEC, 0)
	return s.handle(n, reply, fd, err, false)
}

func (s *session) opendir(st Step) *Finding {
	n := s.model.pickDir(st.Node)
	st.User = 0
	reply, f := s.do(s.client(st), fe.Request{Op: fe.OpOpendir, Node: n.id, Args: fe.Body(nil).U32(unix.O_RDONLY|unix.O_DIRECTORY, 0), OutArgs: fe.OpenOutSize})
	if f != nil {
		return f
	}
	fd, err := unix.Open(n.proc(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return s.handle(n, reply, fd, err, true)
}

func (s *session) handle(n *node, reply fe.Reply, fd int, err error, dir bool) *Finding {
	f := agree("OPEN", reply.Error, err)
	if f == nil && err == nil && len(reply.Body) < fe.OpenOutSize {
		f = &Finding{Kind: "bad reply", Detail: fmt.Sprintf("OPEN: %d bytes", len(reply.Body))}
	}
	if f != nil || err != nil {
		if err == nil {
			unix.Close(fd)
		}
		return f
	}
	s.model.files = append(s.model.files, &file{n, binary.LittleEndian.Uint64(reply.Body), fd, dir})
	return nil
}

func (s *session) read(st Step) *Finding {
	h := s.model.pickFile(st.File, false)
	if h == nil {
		return nil
	}
	size := st.Size + 1
	reply, f := s.do(s.client(st), fe.Request{Op: fe.OpRead, Node: h.node.id, Args: fe.ReadArgs(h.fh, st.Off, size), OutData: int(size)})
	if f != nil {
		return f
	}
	buf := make([]byte, size)
	n, err := unix.Pread(h.fd, buf, int64(st.Off))
	if f := agree("READ", reply.Error, err); f != nil || err != nil {
		return f
	}
	if !bytes.Equal(reply.Body, buf[:n]) {
		return &Finding{Kind: "wrong answer", Detail: fmt.Sprintf("READ of %d bytes at %d: %d bytes that are not the file's %d", size, st.Off, len(reply.Body), n)}
	}
	return nil
}

func (st Step) data(n uint32) []byte {
	rng := rand.New(rand.NewPCG(st.Seed, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func (s *session) write(st Step) *Finding {
	h := s.model.pickFile(st.File, false)
	if h == nil {
		return nil
	}
	data := st.data(st.Size + 1)
	reply, f := s.do(s.client(st), fe.Request{Op: fe.OpWrite, Node: h.node.id, Args: fe.ReadArgs(h.fh, st.Off, uint32(len(data))), Data: data, OutArgs: 8})
	if f != nil {
		return f
	}
	_, err := unix.Pwrite(h.fd, data, int64(st.Off))
	if f := agree("WRITE", reply.Error, err); f != nil || err != nil {
		return f
	}
	if len(reply.Body) != 8 || binary.LittleEndian.Uint32(reply.Body) != uint32(len(data)) {
		return &Finding{Kind: "wrong answer", Detail: fmt.Sprintf("WRITE of %d bytes: %x", len(data), reply.Body)}
	}
	return nil
}

func (s *session) setattr(st Step, n *node, valid uint32, a fe.Attr, local func() error) *Finding {
	args := fe.Body(nil).U32(valid, 0).U64(0, a.Size, 0, 0, 0, 0).U32(0, 0, 0, a.Mode, 0, 0, 0, 0)
	reply, f := s.do(s.client(st), fe.Request{Op: fe.OpSetattr, Node: n.id, Args: args, OutArgs: fe.AttrOutSize})
	if f != nil {
		return f
	}
	err := local()
	if f := agree("SETATTR", reply.Error, err); f != nil || err != nil {
		return f
	}
	var x unix.Stat_t
	if err := unix.Fstat(n.fd, &x); err != nil || len(reply.Body) < fe.AttrOutSize {
		return &Finding{Kind: "bad reply", Detail: fmt.Sprintf("SETATTR: %d bytes", len(reply.Body))}
	}
	return sameAttr(fe.DecodeAttr(reply.Body[16:]), &x)
}

func (s *session) truncate(st Step) *Finding {
	n := s.model.pick(st.Node, unix.S_IFREG)
	if n == nil {
		return nil
	}
	st.User = 0
	return s.setattr(st, n, fe.SetSize, fe.Attr{Size: st.Off}, func() error { return unix.Truncate(n.proc(), int64(st.Off)) })
}

func (s *session) chmod(st Step) *Finding {
	n := s.model.pick(st.Node, unix.S_IFREG)
	if n == nil {
		return nil
	}
	st.User = 0
	return s.setattr(st, n, fe.SetMode, fe.Attr{Mode: unix.S_IFREG | st.Mode}, func() error { return unix.Chmod(n.proc(), st.Mode) })
}

func (s *session) readdir(st Step) *Finding {
	h := s.model.pickFile(st.File, true)
	if h == nil {
		return nil
	}
	plus := st.Flags&1 != 0
	op := fe.OpReaddir
	if plus {
		op = fe.OpReaddirplus
	}
	const room = 32 << 10 // for all that a session makes
	reply, f := s.do(s.client(st), fe.Request{Op: op, Node: h.node.id, Args: fe.ReadArgs(h.fh, 0, room), OutData: room})
	if f != nil {
		return f
	}
	if reply.Error != 0 {
		_, err := unix.Seek(h.fd, 0, unix.SEEK_SET)
		if err == nil {
			_, err = unix.Getdents(h.fd, make([]byte, room)) // ENOENT of a directory that was removed
		}
		return agree(op.String(), reply.Error, err)
	}
	entries, err := fe.DecodeDirents(reply.Body, plus)
	if err != nil {
		return &Finding{Kind: "bad reply", Detail: err.Error()}
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name)
		if !plus || e.Entry.Node == 0 || e.Name == "." || e.Name == ".." {
			continue
		}
		if e.Name == "scratch" && h.node.id == fe.RootNode {
			if _, err := s.fuse.Do(fe.Request{Op: fe.OpForget, Node: e.Entry.Node, Args: fe.Body(nil).U64(1)}); err != nil {
				return s.gone("queue dead", err.Error())
			}
			continue
		}
		if f := s.model.found(h.node, e.Name, e.Entry); f != nil {
			return f
		}
	}
	local, err := os.ReadDir(h.node.proc() + "/.")
	if err != nil {
		return nil // removed meanwhile
	}
	var want []string
	for _, e := range local {
		want = append(want, e.Name())
	}
	if got, want := joinNames(listing(got)), joinNames(listing(want)); got != want {
		return &Finding{Kind: "wrong answer", Detail: fmt.Sprintf("%v: %q, where a local directory lists %q", op, got, want)}
	}
	return nil
}

func (s *session) release(f *fe.FUSE, i int) *Finding {
	h := s.model.files[i]
	s.model.files = slices.Delete(s.model.files, i, i+1)
	unix.Close(h.fd)
	op := fe.OpRelease
	if h.dir {
		op = fe.OpReleasedir
	}
	reply, found := s.do(f, fe.Request{Op: op, Node: h.node.id, Args: fe.Body(nil).U64(h.fh).U32(0, 0).U64(0)})
	if found == nil && reply.Error != 0 {
		found = &Finding{Kind: "wrong answer", Detail: fmt.Sprintf("%v: %v", op, reply.Error)}
	}
	return found
}

// forget gives all lookups of a node back, after its open files and after what lies below it: a kernel keeps the directories of what it
// knows. A file with several names may be known by another one than the model thinks.
func (s *session) forget(i int) *Finding {
	n := s.model.nodes[i]
	if n.typ == unix.S_IFDIR {
		top, _ := os.Readlink(n.proc())
		below := func(o *node) bool {
			path, _ := os.Readlink(o.proc())
			var st unix.Stat_t
			return o != n && (strings.HasPrefix(path, top+"/") || o.typ != unix.S_IFDIR && unix.Fstat(o.fd, &st) == nil && st.Nlink > 1)
		}
		for {
			k := slices.IndexFunc(s.model.nodes, below)
			if k < 0 {
				break
			}
			if f := s.forget(k); f != nil {
				return f
			}
		}
		i = slices.Index(s.model.nodes, n)
	}
	for {
		k := slices.IndexFunc(s.model.files, func(f *file) bool { return f.node == n })
		if k < 0 {
			break
		}
		if f := s.release(s.fuse, k); f != nil {
			return f
		}
	}
	s.model.nodes = slices.Delete(s.model.nodes, i, i+1)
	unix.Close(n.fd)
	_, f := s.do(s.fuse, fe.Request{Op: fe.OpForget, Node: n.id, Args: fe.Body(nil).U64(n.lookups)})
	return f
}

func (s *session) fsync(st Step) *Finding {
	h := s.model.pickFile(st.File, false)
	if h == nil {
		return nil
	}
	return s.succeeds(st, fe.Request{Op: fe.OpFsync, Node: h.node.id, Args: fe.Body(nil).U64(h.fh).U32(st.Flags&1, 0)})
}

func (s *session) fallocate(st Step) *Finding {
	h := s.model.pickFile(st.File, false)
	if h == nil {
		return nil
	}
	mode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE}[st.Flags%3]
	length := uint64(st.Size + 1)
	r := fe.Request{Op: fe.OpFallocate, Node: h.node.id, Args: fe.Body(nil).U64(h.fh, st.Off, length).U32(mode, 0)}
	return s.plain(st, r, func() error { return unix.Fallocate(h.fd, mode, int64(st.Off), int64(length)) })
}

func (s *session) setxattr(st Step) *Finding {
	n := s.model.pick(st.Node, unix.S_IFREG)
	if n == nil {
		return nil
	}
	st.User = 0
	value := []byte(st.To)
	args := fe.Body(nil).U32(uint32(len(value)), 0).Name("user.fuzz")
	r := fe.Request{Op: fe.OpSetxattr, Node: n.id, Args: append(args, value...)}
	return s.plain(st, r, func() error { return unix.Setxattr(n.proc(), "user.fuzz", value, 0) })
}

func (s *session) getxattr(st Step) *Finding {
	n := s.model.pick(st.Node, unix.S_IFREG)
	if n == nil {
		return nil
	}
	st.User = 0
	reply, f := s.do(s.client(st), fe.Request{Op: fe.OpGetxattr, Node: n.id, Args: fe.Body(nil).U32(100, 0).Name("user.fuzz"), OutData: 100})
	if f != nil {
		return f
	}
	buf := make([]byte, 100)
	k, err := unix.Getxattr(n.proc(), "user.fuzz", buf)
	if f := agree("GETXATTR", reply.Error, err); f != nil || err != nil {
		return f
	}
	if !bytes.Equal(reply.Body, buf[:k]) {
		return &Finding{Kind: "wrong answer", Detail: fmt.Sprintf("GETXATTR: %q, not %q", reply.Body, buf[:k])}
	}
	return nil
}

// burst has many requests under way on all queues at once.
func (s *session) burst(st Step) *Finding {
	n := s.model.pick(st.Node, 0)
	h := s.model.pickFile(st.File, false)
	var all []*fe.Pending
	var clients []*fe.FUSE
	for q := range len(s.dev.Queues) - 1 {
		t := st
		t.Queue = q
		f := s.client(t)
		for i := range 4 + st.Size%12 {
			r := fe.Request{Op: fe.OpGetattr, Node: n.id, Args: fe.Body(nil).U32(0, 0).U64(0), OutArgs: fe.AttrOutSize}
			if h != nil && i%2 == 1 {
				r = fe.Request{Op: fe.OpRead, Node: h.node.id, Args: fe.ReadArgs(h.fh, uint64(i)*100, 3000), OutData: 3000}
			}
			p, err := f.Start(r)
			if err != nil {
				break // the ring is full
			}
			all, clients = append(all, p), append(clients, f)
		}
	}
	for _, q := range s.dev.Queues {
		q.Publish()
	}
	for i, p := range all {
		reply, err := clients[i].Finish(p)
		if f := s.judge(p.Op, reply, err); f != nil {
			return f
		}
		if reply.Error != 0 {
			return &Finding{Kind: "wrong answer", Detail: fmt.Sprintf("%v among others: %v", p.Op, reply.Error)}
		}
	}
	return nil
}

// restart stops a queue and starts it anew, as a rebooting guest does.
func (s *session) restart(st Step) *Finding {
	q := s.queue(st.Queue)
	if _, err := s.dev.Stop(q); err != nil {
		return s.gone("hangs", err.Error())
	}
	if err := s.dev.Restart(q); err != nil {
		return s.gone("hangs", err.Error())
	}
	return s.serves(st)
}
