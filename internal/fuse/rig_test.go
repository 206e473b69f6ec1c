package fuse_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/passthrough"
)

// noLargeFiles keeps requests from filling the disk: what would make a file larger than this fails with EFBIG. It is for processes which
// run inputs; the fuzzing engine itself makes a larger file.
var noLargeFiles = sync.OnceFunc(func() {
	signal.Ignore(unix.SIGXFSZ)
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_FSIZE, &limit) == nil {
		limit.Cur = 8 << 20
		unix.Setrlimit(unix.RLIMIT_FSIZE, &limit)
	}
})

// secret lies beside the share; no reply may hold it.
const secret = "not for the guest, this"

var rigs atomic.Int64

// rig is a session on a real directory of its own, served by the real file system on one worker, with everything that has to hold
// after each request checked: one answer, of the right shape, within its room; input untouched; credentials as before; nothing outside
// of the share changed; lookups counted right.
type rig struct {
	t       testing.TB
	base    string
	share   string
	fs      *passthrough.FS
	ses     *fuse.Session
	calls   chan func(*fuse.Worker)
	ended   chan struct{}
	fds     [2]int
	openFDs int
	outside string

	ready   bool
	lookups map[uint64]uint64 // what the guest holds, by node
	vague   bool              // a request was sent whose effect on lookups the model does not know
	handles []uint64
	cut     func([]byte) []unix.Iovec
	served  uint64            // requests
	errors  map[string]uint64 // answers by errno
	record  []byte            // what was served, as FuzzRequest takes it
}

// variant chooses how the share is served.
func variant(n byte) passthrough.Config {
	cfg := passthrough.Config{Xattr: true, Flock: true, PosixLock: true, KillprivV2: true, AnnounceSubmounts: true, InodeFileHandles: passthrough.HandlesNever}
	switch n % 8 {
	case 1:
		cfg.PosixACL, cfg.SecurityLabel = true, true
	case 2:
		cfg.Writeback, cfg.Cache, cfg.InodeFileHandles = true, passthrough.CacheAlways, passthrough.HandlesPrefer
	case 3:
		cfg.Readonly, cfg.Cache = true, passthrough.CacheNever
	case 4:
		cfg.FDBudget = 1 // descriptors are closed and found again all the time
	case 5:
		m, err := passthrough.ParseXattrMap(":map::user.virtiofs.:")
		if err != nil {
			panic(err)
		}
		cfg.XattrMap = m
	case 6:
		tr, err := passthrough.ParseTranslation([]string{"map:0:1000:2", "forbid-guest:7:1"})
		if err != nil {
			panic(err)
		}
		cfg.TranslateUID, cfg.TranslateGID = tr, tr
	case 7:
		cfg.AllowDirectIO, cfg.PreserveNoatime, cfg.SecurityLabel, cfg.AllowMmap = true, true, true, true
	}
	return cfg
}

// scratch is where shares are made: in memory, as SYNCFS would wait for everybody's disk.
func scratch() string {
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		return "/dev/shm"
	}
	return os.TempDir()
}

func newRig(t testing.TB, which byte) *rig {
	t.Helper()
	r := &rig{t: t, calls: make(chan func(*fuse.Worker)), ended: make(chan struct{}), lookups: map[uint64]uint64{}, errors: map[string]uint64{}, openFDs: descriptors(t)}
	r.base = filepath.Join(scratch(), fmt.Sprintf("fuse-fuzz-%d-%d", os.Getpid(), rigs.Add(1)))
	r.share = filepath.Join(r.base, "share")
	require.NoError(t, os.MkdirAll(filepath.Join(r.share, "d", "e"), 0o777))
	require.NoError(t, os.WriteFile(filepath.Join(r.base, "secret"), []byte(secret), 0o644))
	require.NoError(t, os.Mkdir(filepath.Join(r.base, "victim"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(r.share, "f"), bytes.Repeat([]byte("0123456789abcdef"), 512), 0o666))
	require.NoError(t, os.WriteFile(filepath.Join(r.share, "d", "g"), []byte("in d"), 0o666))
	require.NoError(t, os.Symlink("../secret", filepath.Join(r.share, "l")))
	r.outside = r.lookOutside()
	for i, path := range []string{r.share, "/proc/self/fd"} {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		r.fds[i] = fd
	}
	var err error
	r.fs, err = passthrough.New(r.fds[0], r.fds[1], variant(which))
	require.NoError(t, err)
	r.ses = fuse.NewSession(r.fs, fuse.SessionConfig{})
	ready := make(chan error)
	go func() {
		defer close(r.ended)
		runtime.LockOSThread() // and never unlocked: the thread ends here
		w, err := r.ses.NewHandler(1)
		ready <- err
		if err != nil {
			return
		}
		for f := range r.calls {
			f(w)
		}
		w.Close()
	}()
	require.NoError(t, <-ready)
	return r
}

// lookOutside describes everything beside the share.
func (r *rig) lookOutside() string {
	var b strings.Builder
	entries, err := os.ReadDir(r.base)
	require.NoError(r.t, err)
	for _, e := range entries {
		fmt.Fprint(&b, e.Name(), " ")
	}
	for _, name := range []string{"", "secret", "victim"} {
		var st unix.Stat_t
		require.NoError(r.t, unix.Lstat(filepath.Join(r.base, name), &st))
		fmt.Fprint(&b, st.Ino, " ", st.Mode, " ", st.Uid, " ", st.Gid, " ", st.Nlink, " ", st.Size, " ", st.Mtim.Nano(), " ", st.Ctim.Nano(), " ")
	}
	data, err := os.ReadFile(filepath.Join(r.base, "secret"))
	require.NoError(r.t, err)
	return b.String() + string(data)
}

func descriptors(t testing.TB) int {
	t.Helper()
	d, err := os.Open("/proc/self/fd")
	require.NoError(t, err)
	defer d.Close()
	names, err := d.Readdirnames(-1)
	require.NoError(t, err)
	return len(names)
}

// finish ends the session and checks what has to hold then.
func (r *rig) finish() {
	r.t.Helper()
	if r.ready && !r.vague {
		held := 1
		for _, n := range r.lookups {
			if n > 0 {
				held++
			}
		}
		require.Equal(r.t, held, r.fs.Stats().Inodes, "inodes that are kept, by lookups that the guest holds: %v", r.lookups)
	}
	require.Equal(r.t, r.outside, r.lookOutside(), "something outside of the share changed")
	before := r.ses.Stats()
	r.ses.Reset()
	close(r.calls)
	<-r.ended
	require.Equal(r.t, before, r.ses.Stats(), "what a worker counted stays when it ends")
	if r.served > 0 {
		require.Equal(r.t, r.served, before.Requests, "requests, counted")
		for errno, n := range r.errors {
			require.GreaterOrEqual(r.t, before.Errors[errno], n, errno)
		}
		require.LessOrEqual(r.t, before.Latency.P50, before.Latency.Max)
	}
	stats := r.fs.Stats()
	require.Equal(r.t, 1, stats.Inodes)
	require.Zero(r.t, stats.OpenFiles)
	r.fs.Close()
	unix.Close(r.fds[0])
	unix.Close(r.fds[1])
	require.Equal(r.t, r.openFDs, descriptors(r.t), "descriptors")
	require.NoError(r.t, os.RemoveAll(r.base))
}

// identity is what a worker's thread is between requests.
type identity struct {
	fsuid, fsgid, euid, egid, umask int
	groups                          string
	caps                            [2]unix.CapUserData
}

func threadIdentity() (id identity) {
	id.fsuid, _ = unix.SetfsuidRetUid(-1)
	id.fsgid, _ = unix.SetfsgidRetGid(-1)
	_, id.euid, _ = unix.Getresuid()
	_, id.egid, _ = unix.Getresgid()
	groups, _ := unix.Getgroups()
	id.groups = fmt.Sprint(groups)
	id.umask = unix.Umask(0)
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	unix.Capget(&h, &id.caps[0])
	return id
}

// untouched fills reply memory before a request is served.
const untouched = 0xa5

// serve has a request served in memory that nothing else is in, and checks the answer. It returns what was written.
func (r *rig) serve(raw []byte, room int) []byte {
	r.t.Helper()
	in, out := fuseabi.Buffer(len(raw)), fuseabi.Buffer(room)
	copy(in, raw)
	for i := range out {
		out[i] = untouched
	}
	cut := r.cut
	if cut == nil {
		cut = whole
	}
	r.record = binary.LittleEndian.AppendUint16(r.record, uint16(len(raw)))
	r.record = binary.LittleEndian.AppendUint16(r.record, uint16(min(room, 1<<16-1)))
	r.record = append(r.record, raw...)
	var used uint32
	var before, after identity
	var panicked any
	r.within(func(w *fuse.Worker) {
		defer func() { panicked = recover() }()
		before = threadIdentity()
		used = w.Serve(cut(in), cut(out))
		after = threadIdentity()
	})
	r.served++
	if panicked != nil {
		r.t.Fatalf("panic: %v, request %x", panicked, raw)
	}
	require.Equal(r.t, before, after, "the thread's identity")
	require.True(r.t, bytes.Equal(raw, in), "the request's memory was written to")
	require.LessOrEqual(r.t, int(used), room, "used length")
	if rest := out[used:]; bytes.Count(rest, []byte{untouched}) != len(rest) {
		r.t.Fatalf("more was written than the used length %d says", used)
	}
	got := out[:used:used]
	require.False(r.t, bytes.Contains(got, []byte(secret)), "the file outside was read")
	r.check(raw, room, got)
	return got
}

// within runs f on the worker's thread. Locks that a request waits for are given up after a while.
func (r *rig) within(f func(*fuse.Worker)) {
	r.t.Helper()
	done := make(chan struct{})
	r.calls <- func(w *fuse.Worker) { defer close(done); f(w) }
	for range 100 {
		select {
		case <-done:
			return
		case <-time.After(100 * time.Millisecond):
			r.ses.Interrupt(1)
		}
	}
	r.t.Fatal("a request does not end")
}

func whole(b []byte) []unix.Iovec {
	if len(b) == 0 {
		return nil
	}
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return []unix.Iovec{v}
}

// replySize is how long the body of a successful answer is, for opcodes where that is fixed.
var replySize = map[fuseabi.Opcode]int{
	fuseabi.OpLookup: 128, fuseabi.OpGetattr: 104, fuseabi.OpSetattr: 104, fuseabi.OpSymlink: 128, fuseabi.OpMknod: 128, fuseabi.OpMkdir: 128,
	fuseabi.OpUnlink: 0, fuseabi.OpRmdir: 0, fuseabi.OpRename: 0, fuseabi.OpLink: 128, fuseabi.OpOpen: 16, fuseabi.OpWrite: 8, fuseabi.OpStatfs: 80,
	fuseabi.OpRelease: 0, fuseabi.OpFsync: 0, fuseabi.OpSetxattr: 0, fuseabi.OpRemovexattr: 0, fuseabi.OpFlush: 0, fuseabi.OpInit: 64,
	fuseabi.OpOpendir: 16, fuseabi.OpReleasedir: 0, fuseabi.OpFsyncdir: 0, fuseabi.OpGetlk: 24, fuseabi.OpSetlk: 0, fuseabi.OpSetlkw: 0,
	fuseabi.OpAccess: 0, fuseabi.OpCreate: 144, fuseabi.OpDestroy: 0, fuseabi.OpFallocate: 0, fuseabi.OpRename2: 0, fuseabi.OpLseek: 8,
	fuseabi.OpCopyFileRange: 8, fuseabi.OpSyncfs: 0, fuseabi.OpTmpfile: 144, fuseabi.OpStatx: 288, fuseabi.OpCopyFileRange64: 8,
}

// check holds an answer against its request, and keeps the model.
func (r *rig) check(raw []byte, room int, got []byte) {
	r.t.Helper()
	if len(raw) < 16 {
		require.Empty(r.t, got, "an answer without a number")
		return
	}
	le := binary.LittleEndian
	length, op, unique := le.Uint32(raw), fuseabi.Opcode(le.Uint32(raw[4:])), le.Uint64(raw[8:])
	if op.NoReply() && len(raw) >= fuseabi.InHeaderSize {
		require.Empty(r.t, got, "%v has no answer", op)
		r.forgotten(raw, length, op)
		return
	}
	if len(got) == 0 {
		require.True(r.t, room < fuseabi.OutHeaderSize || op.NoReply(), "%v: no answer", op)
		return
	}
	require.GreaterOrEqual(r.t, len(got), fuseabi.OutHeaderSize)
	require.EqualValues(r.t, len(got), le.Uint32(got), "length in the reply to %v", op)
	require.Equal(r.t, unique, le.Uint64(got[8:]), "number in the reply to %v", op)
	status := int32(le.Uint32(got[4:]))
	require.True(r.t, status <= 0 && status > -512, "status %d of %v: not an errno that a guest's kernel takes", status, op)
	body := got[fuseabi.OutHeaderSize:]
	if status != 0 {
		r.errors[unix.ErrnoName(unix.Errno(-status))]++
		require.Empty(r.t, body, "%v: an error has no body", op)
		return
	}
	require.GreaterOrEqual(r.t, len(raw), fuseabi.InHeaderSize)
	require.True(r.t, length >= fuseabi.InHeaderSize && int(length) <= len(raw), "%v of length %d in %d bytes succeeds", op, length, len(raw))
	require.True(r.t, r.ready || op == fuseabi.OpInit || op == fuseabi.OpDestroy, "%v succeeds before INIT", op)
	if n, ok := replySize[op]; ok {
		require.Len(r.t, body, n, "%v", op)
	}
	switch op {
	case fuseabi.OpInit:
		if le.Uint32(raw[40:]) == fuseabi.Major {
			r.ready, r.vague = true, false
			clear(r.lookups)
		}
	case fuseabi.OpDestroy:
		r.ready, r.vague = false, false
		clear(r.lookups)
	case fuseabi.OpLookup, fuseabi.OpSymlink, fuseabi.OpMknod, fuseabi.OpMkdir, fuseabi.OpLink, fuseabi.OpCreate, fuseabi.OpTmpfile:
		r.found(le.Uint64(body))
		if op == fuseabi.OpCreate || op == fuseabi.OpTmpfile {
			r.handles = append(r.handles, le.Uint64(body[128:]))
		}
	case fuseabi.OpOpen, fuseabi.OpOpendir:
		r.handles = append(r.handles, le.Uint64(body))
	case fuseabi.OpRead, fuseabi.OpReaddir, fuseabi.OpReaddirplus:
		require.LessOrEqual(r.t, len(body), int(le.Uint32(raw[56:])), "%v: more than was asked for", op)
		if op != fuseabi.OpRead {
			r.listed(body, op == fuseabi.OpReaddirplus)
		}
	case fuseabi.OpGetxattr, fuseabi.OpListxattr:
		if size := le.Uint32(raw[40:]); size != 0 {
			require.LessOrEqual(r.t, len(body), int(size), "%v: more than was asked for", op)
		} else {
			require.Len(r.t, body, 8, "%v", op)
		}
	case fuseabi.OpReadlink:
		require.Less(r.t, len(body), 4096)
	}
}

func (r *rig) found(node uint64) {
	if node > fuseabi.RootID {
		r.lookups[node]++
	}
}

func (r *rig) listed(b []byte, plus bool) {
	r.t.Helper()
	le := binary.LittleEndian
	for len(b) > 0 {
		fixed := fuseabi.DirentSize
		if plus {
			fixed = fuseabi.DirentplusSize
		}
		require.GreaterOrEqual(r.t, len(b), fixed, "rest of a list of entries")
		n := int(le.Uint32(b[fixed-8:]))
		require.GreaterOrEqual(r.t, len(b), fuseabi.Align8(fixed+n), "rest of a list of entries")
		require.True(r.t, n > 0 && n <= 255, "name of %d bytes", n)
		name := b[fixed : fixed+n]
		require.False(r.t, bytes.ContainsAny(name, "/\x00"), "name %q", name)
		if plus {
			if node := le.Uint64(b); node != 0 {
				require.NotContains(r.t, []string{".", ".."}, string(name), "a lookup that the guest does not count (linux: fuse_direntplus_link)")
				r.found(node)
			}
		}
		b = b[fuseabi.Align8(fixed+n):]
	}
}

// forgotten takes lookups off the model.
func (r *rig) forgotten(raw []byte, length uint32, op fuseabi.Opcode) {
	le := binary.LittleEndian
	if !r.ready || int(length) > len(raw) {
		return
	}
	less := func(node, n uint64) { r.lookups[node] -= min(r.lookups[node], n) }
	switch {
	case op == fuseabi.OpForget && length >= 48:
		if le.Uint16(raw[36:]) != 0 {
			r.vague = true // whether it counts depends on its extensions
			return
		}
		less(le.Uint64(raw[16:]), le.Uint64(raw[40:]))
	case op == fuseabi.OpBatchForget && length >= 48:
		if n := uint64(le.Uint32(raw[40:])); 48+16*n <= uint64(length) {
			for b := raw[48:]; n > 0; n-- {
				less(le.Uint64(b), le.Uint64(b[8:]))
				b = b[16:]
			}
		}
	}
}

// say makes a request of a structure that begins with a header, and has it served.
func say[I any](r *rig, op fuseabi.Opcode, node uint64, in *I, tail []byte, room int) []byte {
	return r.serve(encode(op, node, 77, in, tail, nil), fuseabi.OutHeaderSize+room)
}

type none struct{ fuseabi.InHeader }

// encode makes a request's bytes. The structure's own header is overwritten but for the caller's ids.
func encode[I any](op fuseabi.Opcode, node, unique uint64, in *I, tail, ext []byte) []byte {
	body := fuseabi.Bytes(in)
	n := len(body) + len(tail)
	if len(ext) > 0 {
		n = fuseabi.Align8(n)
	}
	b := fuseabi.Buffer(n + len(ext))
	copy(b, body)
	copy(b[len(body):], tail)
	copy(b[n:], ext)
	h := fuseabi.View[fuseabi.InHeader](b)
	h.Length, h.Opcode, h.Unique, h.NodeId, h.TotalExtlen = uint32(len(b)), uint32(op), unique, node, uint16(len(ext)/8)
	return b
}

func z(names ...string) []byte {
	var b []byte
	for _, n := range names {
		b = append(append(b, n...), 0)
	}
	return b
}

func (r *rig) init(flags fuseabi.InitFlags) {
	say(r, fuseabi.OpInit, 0, &fuseabi.InitIn{Major: fuseabi.Major, Minor: fuseabi.Minor, Flags: uint32(flags), Flags2: uint32(flags >> 32), MaxReadAhead: 1 << 17}, nil, 64)
}

// node is the node of an entry's reply, 0 for an error.
func node(reply []byte) uint64 {
	if len(reply) < fuseabi.OutHeaderSize+8 {
		return 0
	}
	return binary.LittleEndian.Uint64(reply[fuseabi.OutHeaderSize:])
}

// extension is one of struct fuse_ext_header's kind.
func extension(typ uint32, body []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(8+len(body)))
	b = append(binary.LittleEndian.AppendUint32(b, typ), body...)
	return append(b, make([]byte, fuseabi.Align8(len(b))-len(b))...)
}

func groups(gids ...uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(gids)))
	for _, g := range gids {
		b = binary.LittleEndian.AppendUint32(b, g)
	}
	return extension(fuseabi.ExtGroups, b)
}

func label(name, value string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(value)))
	b = append(binary.LittleEndian.AppendUint32(b, 0), name...)
	b = append(append(b, 0), value...)
	return extension(1, append(b, make([]byte, fuseabi.Align8(len(b))-len(b))...))
}
