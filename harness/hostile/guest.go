package hostile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// say puts what came back into words.
func (e *Env) say(op fe.Opcode, r fe.Reply, err error) (Outcome, string) {
	var contradiction *fe.ProtocolError
	switch {
	case errors.As(err, &contradiction):
		return BadReply, contradiction.What
	case errors.Is(err, fe.ErrRingStopped):
		return RingStopped, ""
	case err != nil:
		return NeverDone, err.Error()
	case bytes.Contains(r.Body, []byte(secret)):
		return Escaped, fmt.Sprintf("the reply to %v holds the file outside", op)
	case r.Error != 0:
		return ErrorReply, unix.ErrnoName(r.Error)
	case r.Used == 0 && op.NoReply():
		return OK, ""
	case r.Used == 0:
		return Completed0, ""
	}
	return OK, ""
}

// do sends one request.
func (e *Env) do(r fe.Request) (Outcome, string) {
	reply, err := e.FUSE.Do(r)
	return e.say(r.Op, reply, err)
}

// worst sends several requests and keeps the worst answer; it stops at the first that does not come back.
func (e *Env) worst(all ...fe.Request) (Outcome, string) {
	rank := map[Outcome]int{OK: 0, ErrorReply: 1, Completed0: 2, RingStopped: 3, BadReply: 4, NeverDone: 5, Escaped: 6}
	out, detail := OK, ""
	for i, r := range all {
		o, d := e.do(r)
		if rank[o] > rank[out] {
			out, detail = o, fmt.Sprintf("%s (request %d, %v)", d, i, r.Op)
		}
		if o == NeverDone || o == Escaped {
			break
		}
	}
	return out, strings.TrimSpace(detail)
}

// oneOf makes an attack of fixed requests.
func oneOf(all ...fe.Request) func(*Env) (Outcome, string) {
	if len(all) == 1 {
		return func(e *Env) (Outcome, string) { return e.do(all[0]) }
	}
	return func(e *Env) (Outcome, string) { return e.worst(all...) }
}

func ptr[T any](v T) *T { return &v }

func body() fe.Body { return nil }

func name(s string) fe.Body { return body().Name(s) }

// nameRequests are all requests that carry a name, with this one.
func nameRequests(n fe.Body) []fe.Request {
	good := "fresh"
	return []fe.Request{
		{Op: fe.OpLookup, Node: 1, Args: n, OutArgs: fe.EntrySize},
		{Op: fe.OpMkdir, Node: 1, Args: append(body().U32(0o755, 0), n...), OutArgs: fe.EntrySize},
		{Op: fe.OpMknod, Node: 1, Args: append(body().U32(unix.S_IFREG|0o644, 0, 0, 0), n...), OutArgs: fe.EntrySize},
		{Op: fe.OpCreate, Node: 1, Args: append(body().U32(unix.O_CREAT|unix.O_RDWR, unix.S_IFREG|0o644, 0, 0), n...), OutArgs: fe.EntrySize + fe.OpenOutSize},
		{Op: fe.OpSymlink, Node: 1, Args: append(append(body(), n...), name("target")...), OutArgs: fe.EntrySize},
		{Op: fe.OpUnlink, Node: 1, Args: n},
		{Op: fe.OpRmdir, Node: 1, Args: n},
		{Op: fe.OpRename, Node: 1, Args: append(append(body().U64(1), name("file")...), n...)},
		{Op: fe.OpRename, Node: 1, Args: append(append(body().U64(1), n...), name(good)...)},
		{Op: fe.OpRename2, Node: 1, Args: append(append(body().U64(1).U32(1, 0), n...), name(good)...)},
	}
}

func getattr(node uint64) fe.Request {
	return fe.Request{Op: fe.OpGetattr, Node: node, Args: body().U32(0, 0).U64(0), OutArgs: fe.AttrOutSize}
}

func lookup(n string) fe.Request {
	return fe.Request{Op: fe.OpLookup, Node: 1, Args: name(n), OutArgs: fe.EntrySize}
}

// lie is a GETATTR whose header says another length.
func lie(n uint32) func(*Env) (Outcome, string) {
	r := getattr(1)
	r.Len = &n
	return oneOf(r)
}

const ruleHeader = "fuse.h, struct fuse_in_header: len counts header and body"

const ruleCaller = "credentials(7): a thread that works for a caller gives its ids and groups back"

// caller has a directory made for a caller with a supplementary group, by a session that offers groups, and looks at the daemon's threads
// afterwards. A daemon that does not take groups gets none.
func caller(uid, gid uint32, dir string) func(*Env) (Outcome, string) {
	return func(e *Env) (Outcome, string) {
		if o, detail := e.do(mkdir("first")); o != OK { // after it threads are as they stay
			return Failed, "the first directory: " + detail
		}
		before := e.Proc.Credentials()
		r := mkdir(dir)
		const createSuppGroup = 1 << 34
		if e.Session.Flags&createSuppGroup != 0 {
			r.Ext = body().U32(16, 32, 1, 4242)
		}
		reply, err := e.FUSE.As(uid, gid).Do(r)
		o, detail := e.say(r.Op, reply, err)
		var kept string
		for range 100 { // the answer may come before the thread has gone back
			kept = ""
			for c := range e.Proc.Credentials() {
				if !before[c] {
					kept = c
				}
			}
			if kept == "" {
				return o, detail
			}
			time.Sleep(10 * time.Millisecond)
		}
		return Kept, "a thread is left with " + kept
	}
}

func public(share string) error { return os.Chmod(share, 0o777) }

func mkdir(n string) fe.Request {
	return fe.Request{Op: fe.OpMkdir, Node: 1, Args: body().U32(0o755, 0).Name(n), OutArgs: fe.EntrySize}
}

// guestCases break the rules of FUSE in requests that the ring carries well.
func guestCases() []Case {
	names := func(id, rule string, n fe.Body) Case {
		return Case{Name: "name-" + id, Rule: rule, Attack: oneOf(nameRequests(n)...)}
	}
	cases := []Case{
		{Name: "header-0", Rule: ruleHeader, Attack: func(e *Env) (Outcome, string) { return e.bytes(nil, []int{}, []int{16, 128}) }},
		{Name: "header-1", Rule: ruleHeader, Attack: func(e *Env) (Outcome, string) { return e.short(1) }},
		{Name: "header-20", Rule: ruleHeader, Attack: func(e *Env) (Outcome, string) { return e.short(20) }},
		{Name: "header-39", Rule: ruleHeader, Attack: func(e *Env) (Outcome, string) { return e.short(39) }},
		{Name: "len-0", Rule: ruleHeader, Attack: lie(0)},
		{Name: "len-39", Rule: ruleHeader, Attack: lie(39)},
		{Name: "len-too-small", Rule: ruleHeader, Attack: lie(fe.InHeaderSize + 15)},
		{Name: "len-too-large", Rule: ruleHeader, Attack: lie(fe.InHeaderSize + 17)},
		{Name: "len-max", Rule: ruleHeader, Attack: lie(0xffffffff)},
		{Name: "body-missing", EndsSession: true, Rule: "fuse.h: each operation's struct is there in full", Attack: everyOpcode(func(op fe.Opcode) fe.Body { return nil })},
		{Name: "body-zero", EndsSession: true, Rule: "fuse.h: values are checked", Attack: everyOpcode(func(op fe.Opcode) fe.Body { return make(fe.Body, 128) })},
		{Name: "body-ones", EndsSession: true, Rule: "fuse.h: values are checked", Attack: everyOpcode(func(op fe.Opcode) fe.Body { return bytes.Repeat([]byte{0xff}, 128) })},
		{Name: "body-one-byte-short", EndsSession: true, Rule: "fuse.h: each operation's struct is there in full", Attack: everyOpcode(shortBody)},
		{Name: "unique-0", Rule: "fuse_dev.c: 0 is the unique of notifications; a guest's kernel never sends it", Attack: func(e *Env) (Outcome, string) {
			l, err := e.FUSE.Layout(getattr(1), 0)
			if err != nil {
				return Failed, err.Error()
			}
			return e.segs(l.Segs())
		}},
		names("no-nul", "fuse.h: names end with NUL", fe.Body("abc")),
		names("empty", "names are not empty", name("")),
		names("dot", "a directory entry is neither . nor ..", name(".")),
		names("dotdot", "a directory entry is neither . nor ..", name("..")),
		names("slash", "a name has no slash", name("dir/inside")),
		names("parent", "a name has no slash", name("../victim")),
		names("parent-deep", "a name has no slash", name("dir/../../victim")),
		names("parent-new", "a name has no slash", name("../planted")),
		// There on every host, and not to be removed: a daemon that takes the name is not talked into harm by UNLINK or RENAME.
		names("absolute", "a name has no slash", name("/proc/version")),
		names("trailing-slash", "a name has no slash", name("dir/")),
		names("nul-inside", "a name has no NUL", append(name("fi"), name("le")...)),
		names("long-256", "NAME_MAX is 255 bytes", name(strings.Repeat("n", 256))),
		names("long-5000", "NAME_MAX is 255 bytes", name(strings.Repeat("n", 5000))),
		names("long-70000", "NAME_MAX is 255 bytes", name(strings.Repeat("n", 70000))),
		{Name: "name-missing-second", Rule: "fuse.h: RENAME and SYMLINK carry two strings", Attack: oneOf(
			fe.Request{Op: fe.OpRename, Node: 1, Args: body().U64(1).Name("file")},
			fe.Request{Op: fe.OpRename2, Node: 1, Args: body().U64(1).U32(0, 0).Name("file")},
			fe.Request{Op: fe.OpSymlink, Node: 1, Args: name("link"), OutArgs: fe.EntrySize},
			fe.Request{Op: fe.OpSetxattr, Node: 1, Args: body().U32(4, 0).Name("user.x")},
		)},
		{Name: "rename-into-unknown", Rule: "node ids come from the daemon", Attack: oneOf(
			fe.Request{Op: fe.OpRename, Node: 1, Args: body().U64(1 << 50).Name("file").Name("x")},
			fe.Request{Op: fe.OpLink, Node: 1, Args: body().U64(1 << 50).Name("x"), OutArgs: fe.EntrySize},
		)},
		{Name: "rename-flags", Rule: "renameat2(2): known flags only", Attack: oneOf(
			fe.Request{Op: fe.OpRename2, Node: 1, Args: body().U64(1).U32(0xffffffff, 0).Name("file").Name("x")},
		)},
		{Name: "ext-too-large", Rule: "fuse.h: total_extlen is within len", Attack: func(e *Env) (Outcome, string) {
			r := fe.Request{Op: fe.OpMkdir, Node: 1, Args: body().U32(0o755, 0).Name("x"), ExtLen: ptr(uint16(0xffff)), OutArgs: fe.EntrySize}
			return e.do(r)
		}},
		{Name: "ext-eats-body", Rule: "fuse.h: total_extlen is within len", Attack: func(e *Env) (Outcome, string) {
			r := fe.Request{Op: fe.OpMkdir, Node: 1, Args: body().U32(0o755, 0).Name("abcdefg"), ExtLen: ptr(uint16(2)), OutArgs: fe.EntrySize}
			return e.do(r)
		}},
		{Name: "ext-malformed", Rule: "fuse.h, struct fuse_ext_header: size is at least a header, a multiple of 8, within the rest", Attack: func(e *Env) (Outcome, string) {
			var all []fe.Request
			for i, ext := range []fe.Body{
				body().U32(0, 32).U64(0), body().U32(4, 32).U64(0), body().U32(0xfffffff8, 32).U64(0), body().U32(24, 32).U32(1, 0),
				body().U32(16, 32).U32(0xffffffff, 0), body().U32(16, 32).U32(3, 7), body().U32(16, 77).U64(1),
				body().U32(16, 31).U32(40, 0), body().U32(16, 1).U32(0xffffffff, 9), body().U32(32, 0).U32(1, 1).U64(0, 0),
			} {
				all = append(all, fe.Request{Op: fe.OpMkdir, Node: 1, Args: padded(body().U32(0o755, 0).Name(fmt.Sprintf("ext%d", i))), Ext: ext, OutArgs: fe.EntrySize})
			}
			return e.worst(all...)
		}},
		{Name: "opcode-0", Rule: "fuse.h, enum fuse_opcode", Attack: oneOf(fe.Request{Op: 0, Node: 1, OutArgs: 128})},
		{Name: "opcode-unknown", Rule: "fuse.h, enum fuse_opcode", Attack: oneOf(
			fe.Request{Op: 7, Node: 1, OutArgs: 128}, fe.Request{Op: 19, Node: 1, OutArgs: 128}, fe.Request{Op: 53, Node: 1, OutArgs: 128},
			fe.Request{Op: 999, Node: 1, Args: make([]byte, 64), OutArgs: 128}, fe.Request{Op: 4096, Node: 1, OutArgs: 128},
			fe.Request{Op: 436207616, Node: 1, OutArgs: 128},
		)},
		{Name: "opcode-max", Rule: "fuse.h, enum fuse_opcode", Attack: oneOf(fe.Request{Op: 0xffffffff, Node: 1, OutArgs: 128})},
		{Name: "node-unknown", Rule: "node ids come from the daemon", Attack: func(e *Env) (Outcome, string) {
			return e.worst(getattr(0), getattr(999999), getattr(1<<63), getattr(^uint64(0)),
				fe.Request{Op: fe.OpLookup, Node: 77777, Args: name("file"), OutArgs: fe.EntrySize},
				fe.Request{Op: fe.OpOpen, Node: 77777, Args: body().U32(0, 0), OutArgs: 16},
				fe.Request{Op: fe.OpOpendir, Node: 77777, Args: body().U32(0, 0), OutArgs: 16},
				fe.Request{Op: fe.OpReadlink, Node: 77777, OutData: 4096},
				fe.Request{Op: fe.OpStatfs, Node: 77777, OutArgs: 80},
			)
		}},
		{Name: "handle-unknown", Rule: "file handles come from the daemon", Attack: func(e *Env) (Outcome, string) {
			var all []fe.Request
			for _, fh := range []uint64{0, 12345, 1 << 31, ^uint64(0)} {
				all = append(all, handleRequests(1, fh)...)
			}
			return e.worst(all...)
		}},
		{Name: "handle-of-other-kind", Rule: "a directory's handle is no file's", Attack: func(e *Env) (Outcome, string) {
			n, err := e.FUSE.Lookup(1, "file")
			if err != nil {
				return Failed, err.Error()
			}
			fh, err := e.FUSE.Open(n.Node, unix.O_RDWR)
			if err != nil {
				return Failed, err.Error()
			}
			dh, err := e.FUSE.Opendir(1)
			if err != nil {
				return Failed, err.Error()
			}
			return e.worst(append(handleRequests(n.Node, dh), handleRequests(1, fh)...)...)
		}},
		{Name: "handle-twice-released", Rule: "RELEASE ends a handle", Attack: func(e *Env) (Outcome, string) {
			n, err := e.FUSE.Lookup(1, "file")
			if err != nil {
				return Failed, err.Error()
			}
			fh, err := e.FUSE.Open(n.Node, unix.O_RDWR)
			if err != nil {
				return Failed, err.Error()
			}
			r := fe.Request{Op: fe.OpRelease, Node: n.Node, Args: body().U64(fh).U32(0, 0).U64(0)}
			return e.worst(append([]fe.Request{r, r}, handleRequests(n.Node, fh)...)...)
		}},
		{Name: "forget-root-1000", Rule: "the root is never forgotten", Attack: func(e *Env) (Outcome, string) {
			for range 1000 {
				if err := e.FUSE.Forget(1, 1); err != nil {
					return NeverDone, err.Error()
				}
			}
			return OK, ""
		}},
		{Name: "forget-root-max", Rule: "the root is never forgotten", Attack: oneOf(fe.Request{Op: fe.OpForget, Node: 1, Args: body().U64(^uint64(0))})},
		{Name: "forget-excess", Rule: "nlookup is what was given out", Attack: func(e *Env) (Outcome, string) {
			n, err := e.FUSE.Lookup(1, "file")
			if err != nil {
				return Failed, err.Error()
			}
			return e.worst(fe.Request{Op: fe.OpForget, Node: n.Node, Args: body().U64(^uint64(0))},
				fe.Request{Op: fe.OpForget, Node: n.Node, Args: body().U64(5)}, getattr(n.Node))
		}},
		{Name: "forget-unknown", Rule: "node ids come from the daemon", Attack: oneOf(
			fe.Request{Op: fe.OpForget, Node: 4242, Args: body().U64(1)}, fe.Request{Op: fe.OpForget, Node: 0, Args: body().U64(1)})},
		{Name: "forget-short", Rule: "fuse.h, struct fuse_forget_in", Attack: oneOf(fe.Request{Op: fe.OpForget, Node: 4242, Args: body().U32(1)})},
		{Name: "batch-forget-lies", Rule: "fuse.h, struct fuse_batch_forget_in: count entries follow", Attack: oneOf(
			fe.Request{Op: fe.OpBatchForget, Args: body().U32(0xffffffff, 0).U64(4242, 1)}, fe.Request{Op: fe.OpBatchForget, Args: body().U32(2, 0).U64(4242, 1)},
			fe.Request{Op: fe.OpBatchForget, Args: body().U32(0x10000001, 0).U64(4242, 1)}, fe.Request{Op: fe.OpBatchForget, Args: body().U32(0, 0)},
			fe.Request{Op: fe.OpBatchForget, Args: body().U32(1)})},
		{Name: "batch-forget-endless", Rule: "a request is no larger than max_write and a header, however often its buffer is described", Attack: forgetForever},
		{Name: "len-endless", Rule: "a request is no larger than max_write and a header, however often its buffer is described", Attack: setForever},
		{Name: "batch-forget-root", Rule: "the root is never forgotten", Attack: oneOf(fe.Request{Op: fe.OpBatchForget, Args: body().U32(2, 0).U64(1, 1<<40, 1, 1<<40)})},
		{Name: "read-size-max", Rule: "virtio 1.2, 5.11: the reply fits into what is writable", Attack: withFile(func(n, fh uint64) []fe.Request {
			return []fe.Request{
				{Op: fe.OpRead, Node: n, Args: fe.ReadArgs(fh, 0, 0xffffffff), OutData: 4096},
				{Op: fe.OpRead, Node: n, Args: fe.ReadArgs(fh, 0, 8192), OutData: 4096},
				{Op: fe.OpRead, Node: n, Args: fe.ReadArgs(fh, 0, 4096)},
			}
		})},
		{Name: "read-offset", Rule: "an offset is at most 2^63-1", Attack: withFile(func(n, fh uint64) []fe.Request {
			return []fe.Request{
				{Op: fe.OpRead, Node: n, Args: fe.ReadArgs(fh, 1<<63, 4096), OutData: 4096},
				{Op: fe.OpRead, Node: n, Args: fe.ReadArgs(fh, 1<<63-1, 4096), OutData: 4096},
				{Op: fe.OpRead, Node: n, Args: fe.ReadArgs(fh, ^uint64(0), 4096), OutData: 4096},
			}
		})},
		{Name: "write-size-lies", Rule: "fuse.h, struct fuse_write_in: size bytes follow", Attack: withFile(func(n, fh uint64) []fe.Request {
			return []fe.Request{
				{Op: fe.OpWrite, Node: n, Args: fe.ReadArgs(fh, 0, 0xffffffff), Data: make([]byte, 4096), OutArgs: 8},
				{Op: fe.OpWrite, Node: n, Args: fe.ReadArgs(fh, 0, 8192), Data: make([]byte, 4096), OutArgs: 8},
				{Op: fe.OpWrite, Node: n, Args: fe.ReadArgs(fh, 0, 100), Data: make([]byte, 4096), OutArgs: 8},
				{Op: fe.OpWrite, Node: n, Args: fe.ReadArgs(fh, 0, 4096), OutArgs: 8},
			}
		})},
		{Name: "write-offset", Rule: "an offset is at most 2^63-1", Attack: withFile(func(n, fh uint64) []fe.Request {
			return []fe.Request{
				{Op: fe.OpWrite, Node: n, Args: fe.ReadArgs(fh, 1<<63, 4096), Data: make([]byte, 4096), OutArgs: 8},
				{Op: fe.OpWrite, Node: n, Args: fe.ReadArgs(fh, 1<<63-1, 4096), Data: make([]byte, 4096), OutArgs: 8},
			}
		})},
		{Name: "readdir-size", Rule: "what does not fit is left for the next READDIR", Attack: func(e *Env) (Outcome, string) {
			dh, err := e.FUSE.Opendir(1)
			if err != nil {
				return Failed, err.Error()
			}
			var all []fe.Request
			for _, op := range []fe.Opcode{fe.OpReaddir, fe.OpReaddirplus} {
				for _, size := range []uint32{0, 1, 23, 24, 151, 152, 0xffffffff} {
					all = append(all, fe.Request{Op: op, Node: 1, Args: fe.ReadArgs(dh, 0, size), OutData: int(min(size, 512))})
				}
				all = append(all, fe.Request{Op: op, Node: 1, Args: fe.ReadArgs(dh, 0, 4096), OutData: 100},
					fe.Request{Op: op, Node: 1, Args: fe.ReadArgs(dh, ^uint64(0), 4096), OutData: 4096},
					fe.Request{Op: op, Node: 1, Args: fe.ReadArgs(dh, 1<<62, 4096), OutData: 4096})
			}
			return e.worst(all...)
		}},
		{Name: "init-twice", EndsSession: true, Rule: "fuse_dev: one INIT a mount", Attack: oneOf(initRequest(7, 38), getattr(1))},
		{Name: "init-versions", EndsSession: true, Rule: "fuse.h, INIT: an older major is refused, a newer one is answered with ours", Attack: oneOf(
			initRequest(0, 0), initRequest(6, 0), initRequest(8, 0), initRequest(7, 0), initRequest(7, 4), initRequest(7, 0xffffffff), initRequest(0xffffffff, 0))},
		{Name: "init-short", EndsSession: true, Rule: "fuse.h, struct fuse_init_in", Attack: oneOf(
			fe.Request{Op: fe.OpInit, Args: body().U32(7), OutArgs: fe.InitOutSize}, fe.Request{Op: fe.OpInit, OutArgs: fe.InitOutSize},
			fe.Request{Op: fe.OpInit, Args: body().U32(7, 38, 4096, 1<<30), OutArgs: fe.InitOutSize})},
		{Name: "init-no-room", EndsSession: true, Rule: "the reply fits into what is writable", Attack: oneOf(
			fe.Request{Op: fe.OpInit, Args: fe.InitArgs(7, 38, 0), OutArgs: 8})},
		{Name: "before-init", Rule: "INIT comes first", NoSession: true, Attack: oneOf(getattr(1), lookup("file"), fe.Request{Op: fe.OpDestroy})},
		{Name: "destroy-then-more", EndsSession: true, Rule: "DESTROY ends the session", Attack: func(e *Env) (Outcome, string) {
			n, err := e.FUSE.Lookup(1, "file")
			if err != nil {
				return Failed, err.Error()
			}
			fh, err := e.FUSE.Open(n.Node, unix.O_RDWR)
			if err != nil {
				return Failed, err.Error()
			}
			return e.worst(append([]fe.Request{{Op: fe.OpDestroy}, {Op: fe.OpDestroy}, getattr(1), getattr(n.Node), lookup("file")}, handleRequests(n.Node, fh)...)...)
		}},
		{Name: "xattr-size-lies", Rule: "fuse.h, struct fuse_setxattr_in: size bytes follow the name", Attack: oneOf(
			fe.Request{Op: fe.OpSetxattr, Node: 1, Args: append(body().U32(0xffffffff, 0, 0, 0).Name("user.x"), "abc"...)},
			fe.Request{Op: fe.OpSetxattr, Node: 1, Args: append(body().U32(64, 0, 0, 0).Name("user.x"), "abc"...)},
			fe.Request{Op: fe.OpSetxattr, Node: 1, Args: append(body().U32(3, 0xffffffff, 0, 0).Name("user.x"), "abc"...)},
			fe.Request{Op: fe.OpGetxattr, Node: 1, Args: body().U32(0xffffffff, 0).Name("user.x"), OutData: 64},
			fe.Request{Op: fe.OpGetxattr, Node: 1, Args: body().U32(0, 0).Name(strings.Repeat("x", 3000)), OutArgs: 8},
			fe.Request{Op: fe.OpGetxattr, Node: 1, Args: append(body().U32(0, 0), "user.no-nul"...), OutArgs: 8},
			fe.Request{Op: fe.OpListxattr, Node: 1, Args: body().U32(0xffffffff, 0), OutData: 64},
			fe.Request{Op: fe.OpRemovexattr, Node: 1, Args: fe.Body("user.no-nul")},
			fe.Request{Op: fe.OpRemovexattr, Node: 1, Args: name("")},
		)},
		{Name: "setattr-garbage", Rule: "fuse.h, struct fuse_setattr_in", Attack: withFile(func(n, fh uint64) []fe.Request {
			return []fe.Request{
				{Op: fe.OpSetattr, Node: n, Args: body().U32(0xffffffff, 0).U64(^uint64(0), ^uint64(0), 0, 1<<62, 1<<62, 0).U32(0xffffffff, 0xffffffff, 0, 0xffffffff, 0, 0xffffffff, 0xffffffff, 0), OutArgs: fe.AttrOutSize},
				{Op: fe.OpSetattr, Node: n, Args: body().U32(fe.SetSize, 0).U64(0, 1<<63, 0, 0, 0, 0).U32(make([]uint32, 8)...), OutArgs: fe.AttrOutSize},
				{Op: fe.OpSetattr, Node: n, Args: body().U32(fe.SetMtime, 0).U64(0, 0, 0, 0, 1<<63, 0).U32(0, 0xffffffff, 0, 0, 0, 0, 0, 0), OutArgs: fe.AttrOutSize},
				{Op: fe.OpSetattr, Node: 1, Args: body().U32(fe.SetSize|fe.SetFH, 0).U64(fh, 5, 0, 0, 0, 0).U32(make([]uint32, 8)...), OutArgs: fe.AttrOutSize},
			}
		})},
		{Name: "fallocate-lseek-copy", Rule: "fallocate(2), lseek(2), copy_file_range(2): arguments are checked", Attack: withFile(func(n, fh uint64) []fe.Request {
			return []fe.Request{
				{Op: fe.OpFallocate, Node: n, Args: body().U64(fh, 1<<63, 1<<63).U32(0, 0)},
				{Op: fe.OpFallocate, Node: n, Args: body().U64(fh, 0, 0).U32(0xffffffff, 0)},
				{Op: fe.OpLseek, Node: n, Args: body().U64(fh, 0).U32(99, 0), OutArgs: 8},
				{Op: fe.OpLseek, Node: n, Args: body().U64(fh, 1<<63).U32(3, 0), OutArgs: 8},
				{Op: fe.OpCopyFileRange, Node: n, Args: body().U64(fh, 0, n, fh, 1<<20, 1<<62, 0), OutArgs: 8},
				{Op: fe.OpCopyFileRange, Node: n, Args: body().U64(fh, 0, 9999, 9999, 0, 1, ^uint64(0)), OutArgs: 8},
			}
		})},
		{Name: "open-flags", Rule: "open(2): only the guest's share of the flags reaches the host", Attack: func(e *Env) (Outcome, string) {
			n, err := e.FUSE.Lookup(1, "dir")
			if err != nil {
				return Failed, err.Error()
			}
			var all []fe.Request
			for _, fl := range []uint32{0xffffffff, unix.O_TMPFILE | unix.O_RDWR, unix.O_PATH, unix.O_CREAT | unix.O_EXCL, unix.O_RDWR, 3, unix.O_ASYNC} {
				all = append(all, fe.Request{Op: fe.OpOpen, Node: n.Node, Args: body().U32(fl, 0xffffffff), OutArgs: 16},
					fe.Request{Op: fe.OpOpendir, Node: n.Node, Args: body().U32(fl, 0), OutArgs: 16})
			}
			return e.worst(all...)
		}},
		{Name: "open-special", Rule: "only files and directories are opened on the host (CVE-2020-35517); a FIFO must not block", Prepare: func(share string) error {
			if err := unix.Mkfifo(filepath.Join(share, "fifo"), 0o666); err != nil {
				return err
			}
			if err := unix.Mknod(filepath.Join(share, "zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
				return err
			}
			if err := os.Symlink("../secret", filepath.Join(share, "leak")); err != nil {
				return err
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(share, "sock")})
		}, Attack: func(e *Env) (Outcome, string) {
			for _, n := range []string{"zero", "fifo", "sock", "leak"} { // the FIFO may be the end
				ent, err := e.FUSE.Lookup(1, n)
				if err != nil {
					return Failed, err.Error()
				}
				for _, fl := range []uint32{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR} {
					fh, err := e.FUSE.Open(ent.Node, fl)
					if errors.Is(err, fe.ErrTimeout) {
						return NeverDone, "OPEN of a " + n
					}
					if err != nil {
						continue
					}
					b, _ := e.FUSE.Read(ent.Node, fh, 0, 4096)
					if bytes.Contains(b, []byte(secret)) {
						return Escaped, "OPEN followed a symbolic link out of the share"
					}
					if n == "zero" {
						return BadReply, fmt.Sprintf("OPEN of a device node opens the host's device, and READ gives %d bytes of it", len(b))
					}
					return BadReply, "OPEN of a " + n + " succeeds"
				}
			}
			return ErrorReply, ""
		}},
		{Name: "open-without-end", Rule: "a guest's open files leave the host some of fs.file-max (CVE-2020-10717)", Launch: fewFiles, Attack: openWithoutEnd},
		{Name: "open-create-setgid", Rule: "inode(7): no set-group-ID bit of a group that the maker is not in, whatever groups the launcher has (CVE-2022-0358)",
			Prepare: setgidDirectory, Launch: func(string) ([]string, error) {
				return []string{"setpriv", fmt.Sprintf("--groups=%d", launcherGroup), "--"}, nil
			}, Attack: createSetgid},
		{Name: "symlink-as-directory", Rule: "links are resolved in the guest, never on the host", Prepare: func(share string) error {
			if err := os.Symlink("..", filepath.Join(share, "up")); err != nil {
				return err
			}
			return os.Symlink("/", filepath.Join(share, "top"))
		}, Attack: func(e *Env) (Outcome, string) {
			for _, n := range []string{"up", "top"} {
				ent, err := e.FUSE.Lookup(1, n)
				if err != nil {
					return Failed, err.Error()
				}
				for _, r := range nameRequests(name("victim"))[:7] {
					r.Node = ent.Node
					reply, err := e.FUSE.Do(r)
					if err != nil {
						return e.say(r.Op, reply, err)
					}
					if reply.Error == 0 && reply.Used != 0 {
						return Escaped, fmt.Sprintf("%v below a symbolic link succeeds", r.Op)
					}
				}
				if _, err := e.FUSE.Opendir(ent.Node); err == nil {
					return Escaped, "OPENDIR of a symbolic link succeeds"
				}
			}
			return ErrorReply, ""
		}},
		{Name: "caller-root-with-groups", Rule: ruleCaller, Prepare: public, Attack: caller(0, 0, "made")},
		{Name: "caller-user-with-groups", Rule: ruleCaller, Prepare: public, Attack: caller(1001, 1002, "made")},
		{Name: "caller-refused", Rule: ruleCaller, Prepare: public, Attack: caller(1001, 1002, "dir")},
		{Name: "caller-root-refused", Rule: ruleCaller, Prepare: public, Attack: caller(0, 0, "dir")},
		{Name: "caller-without-ids", Rule: ruleCaller, Prepare: public, Attack: caller(0xffffffff, 5, "made")},
		{Name: "caller-without-group", Rule: ruleCaller, Prepare: public, Attack: caller(5, 0xffffffff, "made")},
		{Name: "lock-wait", Rule: "a lock that has to wait never holds up the queue", Attack: withFile(func(n, fh uint64) []fe.Request {
			lk := func(op fe.Opcode, owner uint64, flags uint32) fe.Request {
				return fe.Request{Op: op, Node: n, Args: body().U64(fh, owner, 0, 1<<62).U32(unix.F_WRLCK, 7, flags, 0), OutArgs: 24}
			}
			return []fe.Request{lk(fe.OpSetlk, 1, 0), lk(fe.OpGetlk, 2, 0), lk(fe.OpSetlk, 2, 0), lk(fe.OpSetlk, 1, 1), lk(fe.OpSetlk, 3, 1), lk(fe.OpSetlk, 3, 0xffffffff)}
		})},
		{Name: "interrupt-unknown", Rule: "INTERRUPT names a unique", Attack: oneOf(fe.Request{Op: fe.OpInterrupt, Args: body().U64(0xdeadbeef)}, fe.Request{Op: fe.OpInterrupt})},
		{Name: "ioctl-poll-dax", Rule: "what is not served is ENOSYS or ENOTTY", Attack: withFile(func(n, fh uint64) []fe.Request {
			return []fe.Request{
				{Op: fe.OpIoctl, Node: n, Args: body().U64(fh).U32(3, 0x5401).U64(0).U32(0xffffffff, 0xffffffff), OutData: 4096},
				{Op: fe.OpPoll, Node: n, Args: body().U64(fh, 1).U32(1, 0xffffffff), OutArgs: 8},
				{Op: fe.OpBmap, Node: n, Args: body().U64(0).U32(512, 0), OutArgs: 8},
				{Op: fe.OpSetupmapping, Node: n, Args: body().U64(fh, 0, 1<<40, 0, 0)},
				{Op: fe.OpRemovemapping, Node: n, Args: body().U32(0xffffffff)},
				{Op: fe.OpSyncfs, Node: 99999, Args: body().U64(0)},
				{Op: fe.OpStatx, Node: n, Args: body().U32(0xffffffff, 0).U64(fh).U32(0xffffffff, 0xffffffff), OutArgs: 288},
				{Op: fe.OpTmpfile, Node: n, Args: body().U32(0xffffffff, 0xffffffff, 0, 0).Name(""), OutArgs: 144},
			}
		})},
		{Name: "hiprio-carries-lookup", Rule: "virtio 1.2, 5.11.2: the high priority queue is for FORGET and INTERRUPT", Attack: func(e *Env) (Outcome, string) {
			f := e.FUSE.On(e.Dev.Queues[0])
			r, err := f.Do(lookup("file"))
			return e.say(fe.OpLookup, r, err)
		}},
		{Name: "hiprio-garbage", Rule: "a malformed request on the high priority queue", Attack: func(e *Env) (Outcome, string) {
			l, err := e.FUSE.Layout(fe.Request{Op: fe.OpForget, Node: 5, Args: body().U64(1), Len: ptr(uint32(3))}, 44)
			if err != nil {
				return Failed, err.Error()
			}
			return e.segsOn(e.Dev.Queues[0], l.Segs())
		}},
		{Name: "reply-no-room", Rule: "the reply fits into what is writable", Attack: oneOf(
			fe.Request{Op: fe.OpGetattr, Node: 1, Args: make([]byte, 16), OutArgs: 0}, fe.Request{Op: fe.OpLookup, Node: 1, Args: name("file"), OutArgs: 20},
			fe.Request{Op: fe.OpStatfs, Node: 1, OutArgs: 79}, fe.Request{Op: fe.OpReadlink, Node: 1})},
		{Name: "random-bytes", EndsSession: true, Rule: "any bytes", Attack: func(e *Env) (Outcome, string) {
			rng := rand.New(rand.NewPCG(11, 22))
			worst, detail := OK, ""
			for i := range 3000 {
				b := make([]byte, rng.IntN(300))
				for j := range b {
					b[j] = byte(rng.Uint32() >> (rng.Uint32() % 9))
				}
				if len(b) >= fe.InHeaderSize && rng.IntN(4) > 0 { // plausible headers get further
					binary.LittleEndian.PutUint32(b, uint32(len(b)))
					binary.LittleEndian.PutUint32(b[4:], rng.Uint32()%55)
					binary.LittleEndian.PutUint64(b[8:], uint64(i+1)<<20)
					binary.LittleEndian.PutUint64(b[16:], rng.Uint64()%4)
					binary.LittleEndian.PutUint32(b[36:], 0)
				}
				o, d := e.bytes(b, fe.CutFraming(1+rng.IntN(80))(fe.Shape{Data: len(b)}), []int{16, rng.IntN(5000)})
				if o == NeverDone || o == Escaped || o == RingStopped {
					return o, fmt.Sprintf("request %d: %s", i, d)
				}
				if o == BadReply {
					worst, detail = o, fmt.Sprintf("request %d: %s", i, d)
				}
			}
			return worst, detail
		}},
	}
	for i := range cases {
		cases[i].Side = Guest
	}
	return cases
}

// fileMax is what fs.file-max seems to be in the case that opens files without end: more than daemons reserve for the host, and few enough
// to open them all.
const fileMax = 32768

// fewFiles starts the daemon where fs.file-max is fileMax, and its own limit of open files the usual one. Both are the daemon's alone. Where root
// may not raise a limit (CAP_SYS_RESOURCE), a hard limit below fileMax bounds every daemon, and the case shows no more than that.
func fewFiles(dir string) ([]string, error) {
	file := filepath.Join(dir, "file-max")
	if err := os.WriteFile(file, fmt.Appendln(nil, fileMax), 0o444); err != nil {
		return nil, err
	}
	return []string{"unshare", "--mount", "sh", "-ec", `ulimit -Sn 1024; mount --bind "$1" /proc/sys/fs/file-max; shift; exec "$@"`, "sh", file}, nil
}

// openWithoutEnd opens one file as often as the host can open files at all.
func openWithoutEnd(e *Env) (Outcome, string) {
	n, err := e.FUSE.Lookup(1, "file")
	if err != nil {
		return Failed, err.Error()
	}
	for i := range fileMax {
		if out, detail := e.do(fe.Request{Op: fe.OpOpen, Node: n.Node, Args: body().U32(unix.O_RDONLY, 0), OutArgs: fe.OpenOutSize}); out != OK {
			return out, strings.TrimSpace(fmt.Sprintf("%s after %d", detail, i))
		}
	}
	return BadReply, fmt.Sprintf("%d files are open, as many as the host has (fs.file-max), and no OPEN was refused", fileMax)
}

// launcherGroup is a supplementary group of the launcher, and of nobody in the guest.
const launcherGroup = 3003

// setgidDirectory makes a directory whose files get the launcher's group.
func setgidDirectory(share string) error {
	dir := filepath.Join(share, "team")
	return errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, 0, launcherGroup), unix.Chmod(dir, unix.S_ISGID|0o777))
}

// createSetgid makes files with the set-group-ID bit there, as a user of the guest who is in no group but his own.
func createSetgid(e *Env) (Outcome, string) {
	const mode = unix.S_IFREG | unix.S_ISGID | 0o777
	dir, err := e.FUSE.Lookup(1, "team")
	if err != nil {
		return Failed, err.Error()
	}
	f := e.FUSE.As(1001, 1001)
	refused := ""
	for _, r := range []fe.Request{
		{Op: fe.OpCreate, Node: dir.Node, Args: body().U32(unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, mode, 0, 0).Name("CREATE"), OutArgs: fe.EntrySize + fe.OpenOutSize},
		{Op: fe.OpMknod, Node: dir.Node, Args: body().U32(mode, 0, 0, 0).Name("MKNOD"), OutArgs: fe.EntrySize},
	} {
		reply, err := f.Do(r)
		out, detail := e.say(r.Op, reply, err)
		if out != OK && out != ErrorReply {
			return out, detail
		}
		info, err := os.Lstat(filepath.Join(e.Share, "team", r.Op.String()))
		switch {
		case err != nil:
			refused = detail
		case info.Mode()&fs.ModeSetgid != 0:
			return BadReply, fmt.Sprintf("%v by a user of the guest kept the set-group-ID bit, with a group of the launcher's", r.Op)
		}
	}
	if refused != "" {
		return ErrorReply, refused
	}
	return OK, ""
}

// padded fills a body up to 8 bytes, for extensions that follow.
func padded(b fe.Body) fe.Body {
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

func initRequest(major, minor uint32) fe.Request {
	return fe.Request{Op: fe.OpInit, Args: fe.InitArgs(major, minor, fe.InitFlagsLinux), OutArgs: fe.InitOutSize}
}

// everyOpcode sends each operation but DESTROY with a body, on the root and on a node that does not exist.
func everyOpcode(args func(fe.Opcode) fe.Body) func(*Env) (Outcome, string) {
	return func(e *Env) (Outcome, string) {
		var all []fe.Request
		for op := fe.OpLookup; op <= fe.OpStatx; op++ {
			if op == fe.OpDestroy {
				continue
			}
			for _, node := range []uint64{1, 4711} {
				all = append(all, fe.Request{Op: op, Node: node, Args: args(op), OutArgs: 256})
			}
		}
		return e.worst(all...)
	}
}

// shortBody is the fixed part of an operation's body without its last byte (fuse.h).
func shortBody(op fe.Opcode) fe.Body {
	size := map[fe.Opcode]int{
		fe.OpForget: 8, fe.OpGetattr: 16, fe.OpSetattr: 88, fe.OpMknod: 16, fe.OpMkdir: 8, fe.OpRename: 8, fe.OpLink: 8, fe.OpOpen: 8, fe.OpRead: 40,
		fe.OpWrite: 40, fe.OpRelease: 24, fe.OpFsync: 16, fe.OpSetxattr: 8, fe.OpGetxattr: 8, fe.OpListxattr: 8, fe.OpFlush: 24, fe.OpInit: 8,
		fe.OpOpendir: 8, fe.OpReaddir: 40, fe.OpReleasedir: 24, fe.OpFsyncdir: 16, fe.OpGetlk: 48, fe.OpSetlk: 48, fe.OpSetlkw: 48, fe.OpAccess: 8,
		fe.OpCreate: 16, fe.OpInterrupt: 8, fe.OpBmap: 16, fe.OpIoctl: 32, fe.OpPoll: 24, fe.OpBatchForget: 8, fe.OpFallocate: 32,
		fe.OpReaddirplus: 40, fe.OpRename2: 16, fe.OpLseek: 24, fe.OpCopyFileRange: 56, fe.OpSyncfs: 8, fe.OpTmpfile: 16, fe.OpStatx: 24,
	}[op]
	return make(fe.Body, max(0, size-1))
}

// handleRequests are all requests that carry a file handle.
func handleRequests(node, fh uint64) []fe.Request {
	rel := body().U64(fh).U32(0, 0).U64(0)
	return []fe.Request{
		{Op: fe.OpRead, Node: node, Args: fe.ReadArgs(fh, 0, 64), OutData: 64},
		{Op: fe.OpWrite, Node: node, Args: fe.ReadArgs(fh, 0, 4), Data: []byte("0123"), OutArgs: 8},
		{Op: fe.OpFlush, Node: node, Args: rel},
		{Op: fe.OpFsync, Node: node, Args: body().U64(fh).U32(0, 0)},
		{Op: fe.OpReaddir, Node: node, Args: fe.ReadArgs(fh, 0, 4096), OutData: 4096},
		{Op: fe.OpReaddirplus, Node: node, Args: fe.ReadArgs(fh, 0, 4096), OutData: 4096},
		{Op: fe.OpFsyncdir, Node: node, Args: body().U64(fh).U32(0, 0)},
		{Op: fe.OpLseek, Node: node, Args: body().U64(fh, 0).U32(3, 0), OutArgs: 8},
		{Op: fe.OpFallocate, Node: node, Args: body().U64(fh, 0, 16).U32(1, 0)},
		{Op: fe.OpGetattr, Node: node, Args: body().U32(1, 0).U64(fh), OutArgs: fe.AttrOutSize},
		{Op: fe.OpCopyFileRange, Node: node, Args: body().U64(fh, 0, node, fh, 0, 1, 0), OutArgs: 8},
		{Op: fe.OpReleasedir, Node: node, Args: rel},
		{Op: fe.OpRelease, Node: node, Args: rel},
	}
}

// withFile opens the share's file for the requests.
func withFile(requests func(node, fh uint64) []fe.Request) func(*Env) (Outcome, string) {
	return func(e *Env) (Outcome, string) {
		n, err := e.FUSE.Lookup(1, "file")
		if err != nil {
			return Failed, err.Error()
		}
		fh, err := e.FUSE.Open(n.Node, unix.O_RDWR)
		if err != nil {
			return Failed, err.Error()
		}
		return e.worst(requests(n.Node, fh)...)
	}
}

// overlapping makes requests that are told as 1,001 descriptors of one buffer of 4 MiB each, so
// that they are of 4 GB; first is what the buffer begins with, behind a header. They are posted at
// once, and come back within the time of one answer.
func (e *Env) overlapping(op fe.Opcode, first fe.Body) (Outcome, string) {
	const size, times, together = 4 << 20, 1001, 16
	m := e.Dev.Memory
	buf, err := m.Alloc(size)
	if err != nil {
		return Failed, err.Error()
	}
	table, err := m.Alloc(16 * (times + 1))
	if err != nil {
		return Failed, err.Error()
	}
	l, err := e.FUSE.Layout(fe.Request{Op: op, Node: 1, Args: first}, 1<<41)
	if err != nil {
		return Failed, err.Error()
	}
	at := 0
	for _, s := range l.In {
		at += copy(m.Bytes(buf+uint64(at), int(s.Len)), m.Bytes(s.Addr, int(s.Len)))
	}
	binary.LittleEndian.PutUint32(m.Bytes(buf, 4), size*times-1<<20)
	reply, err := m.Alloc(fe.OutHeaderSize + 64)
	if err != nil {
		return Failed, err.Error()
	}
	b := m.Bytes(table, 16*(times+1))
	for i := range times {
		binary.LittleEndian.PutUint64(b[16*i:], buf)
		binary.LittleEndian.PutUint32(b[16*i+8:], size)
		binary.LittleEndian.PutUint16(b[16*i+12:], fe.DescNext)
		binary.LittleEndian.PutUint16(b[16*i+14:], uint16(i+1))
	}
	binary.LittleEndian.PutUint64(b[16*times:], reply)
	binary.LittleEndian.PutUint32(b[16*times+8:], fe.OutHeaderSize+64)
	binary.LittleEndian.PutUint16(b[16*times+12:], fe.DescWrite)
	var all []*fe.Chain
	for range together {
		ids, err := e.Queue.TakeDesc(1)
		if err != nil {
			return Failed, err.Error()
		}
		e.Queue.WriteDesc(ids[0], fe.Desc{Addr: table, Len: 16 * (times + 1), Flags: fe.DescIndirect})
		c := e.Queue.PrepareRaw(ids[0], ids)
		e.Queue.Post(c)
		all = append(all, c)
	}
	e.Queue.Publish()
	began := time.Now()
	for _, c := range all {
		err := e.Queue.WaitChain(c, max(time.Millisecond, patience-time.Since(began)))
		switch {
		case errors.Is(err, fe.ErrRingStopped):
			return RingStopped, ""
		case errors.Is(err, fe.ErrGone):
			return e.departed()
		case err != nil:
			return NeverDone, err.Error()
		}
	}
	return Completed0, fmt.Sprintf("%d ms", time.Since(began).Milliseconds())
}

// forgetForever is one BATCH_FORGET of 262 million nodes.
func forgetForever(e *Env) (Outcome, string) {
	return e.overlapping(fe.OpBatchForget, body().U32((4<<20*1001-1<<20)/16-16, 0))
}

// setForever is one SETXATTR with a value of 4 GB.
func setForever(e *Env) (Outcome, string) {
	return e.overlapping(fe.OpSetxattr, body().U32(4<<20*1001-2<<20, 0).Name("user.long"))
}
