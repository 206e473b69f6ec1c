package passthrough

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bpf "github.com/elastic/go-seccomp-bpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
	"virtiofsd/internal/testenv"
)

// Attributes of files (linux/fs.h).
const (
	fsImmutable = 0x10 // FS_IMMUTABLE_FL
	fsAppend    = 0x20 // FS_APPEND_FL
)

// setFlag gives a file an attribute as chattr(1) does, until the test ends.
func setFlag(t *testing.T, path string, flag int) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	had, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, had|flag))
	t.Cleanup(func() {
		assert.NoError(t, unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, had))
		unix.Close(fd)
	})
}

// A file that can only be appended to is opened as it has to be, and what does not append to it is
// refused.
func TestAppendOnlyFiles(t *testing.T) {
	testenv.Need(t, "root")
	for _, writeback := range []bool{false, true} {
		g := mount(t, t.TempDir(), Config{Writeback: writeback, PosixLock: true})
		path := g.dir + "/log"
		require.NoError(t, os.WriteFile(path, []byte("one\n"), 0o644))
		setFlag(t, path, fsAppend)
		n := g.mustLookup(root, "log")
		for _, flags := range []uint32{unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_TRUNC, unix.O_WRONLY | unix.O_TRUNC | unix.O_APPEND, unix.O_RDONLY | unix.O_TRUNC} {
			_, e := g.open(n, flags)
			assert.Equal(t, unix.EPERM, e, "%#o", flags)
		}
		for _, flags := range []uint32{unix.O_WRONLY | unix.O_APPEND, unix.O_RDWR | unix.O_APPEND} {
			out, e := want[fuseabi.OpenOut](g, fuseabi.OpOpen, n, &fuseabi.OpenIn{Flags: flags}, nil)
			require.Zero(t, e)
			assert.NotZero(t, out.OpenFlags&fuseabi.FopenDirectIO, "nothing is delayed")
			at, e := g.getattr(n)
			require.Zero(t, e)
			for _, off := range []uint64{0, at.Size, at.Size + 100} {
				_, e = g.write(n, out.Fh, off, []byte("more\n"), unix.O_APPEND, 0)
				require.Zero(t, e, "wherever it was to go")
			}
			before, err := os.ReadFile(path)
			require.NoError(t, err)
			for _, c := range []struct{ flags, writeFlags uint32 }{{0, 0}, {unix.O_APPEND, fuseabi.WriteCache}, {0, fuseabi.WriteCache}} {
				for _, off := range []uint64{0, uint64(len(before)) - 1, uint64(len(before)) + 1} {
					_, e = g.write(n, out.Fh, off, []byte("x"), c.flags, c.writeFlags)
					assert.Equal(t, unix.EPERM, e, "it would not go there")
				}
			}
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.Equal(t, before, after)
			_, e = g.write(n, out.Fh, uint64(len(before)), []byte("end\n"), 0, 0)
			assert.Zero(t, e, "that is where it goes")
			require.Zero(t, g.lock(fuseabi.OpSetlk, n, out.Fh, 7, unix.F_WRLCK, 0, 9))
			require.Zero(t, g.release(n, out.Fh))
		}
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, "one\n"+strings.Repeat("more\nmore\nmore\nend\n", 2), string(b))
		in := fuseabi.SetattrIn{}
		in.Valid = fuseabi.FattrSize
		_, e := g.setattr(n, in)
		assert.Equal(t, unix.EPERM, e)
		created, e := g.create(root, "log", unix.O_WRONLY|unix.O_APPEND, 0o644, 0)
		require.Zero(t, e, "CREATE of a file that exists opens it")
		assert.NotZero(t, created.OpenFlags&fuseabi.FopenDirectIO)

		// A file without the attribute is written where the guest says, whatever flags it was
		// opened with.
		plain, e := g.create(root, "plain", unix.O_WRONLY|unix.O_APPEND, 0o644, 0)
		require.Zero(t, e)
		assert.Zero(t, plain.OpenFlags&fuseabi.FopenDirectIO)
		_, e = g.write(plain.NodeId, plain.Fh, 3, []byte("late"), unix.O_APPEND, fuseabi.WriteCache)
		require.Zero(t, e)
		b, err = os.ReadFile(g.dir + "/plain")
		require.NoError(t, err)
		assert.Equal(t, "\x00\x00\x00late", string(b))

		require.NoError(t, os.WriteFile(g.dir+"/fixed", nil, 0o644))
		setFlag(t, g.dir+"/fixed", fsImmutable)
		_, e = g.open(g.mustLookup(root, "fixed"), unix.O_WRONLY|unix.O_APPEND)
		assert.Equal(t, unix.EPERM, e)
	}
}

// Programs append to such a file as they do on a local file system, with delayed writes or without.
func TestAppendOnlyFilesOnTheKernel(t *testing.T) {
	for _, cfg := range []Config{{}, {Writeback: true}, {Cache: CacheAlways, KillprivV2: true}} {
		dir := t.TempDir()
		path := filepath.Join(dir, "log")
		require.NoError(t, os.WriteFile(path, nil, 0o644))
		setFlag(t, path, fsAppend)
		at := kernelMount(t, cfg, dir)
		run := func(script string) string {
			out, err := exec.Command("sh", "-c", script, "sh", at+"/log").CombinedOutput()
			return fmt.Sprint(string(out), err)
		}
		assert.Equal(t, "<nil>", run(`i=0; while [ $i -lt 50 ]; do echo line$i >>"$1"; i=$((i+1)); done; { printf a; printf b; printf c; } >>"$1"`))
		assert.Contains(t, run(`echo no >"$1"`), "not permitted")
		assert.Contains(t, run(`echo no 1<>"$1"`), "not permitted")
		var all strings.Builder
		for i := range 50 {
			fmt.Fprintf(&all, "line%d\n", i)
		}
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, all.String()+"abc", string(b))
	}
}

// Where a filter around the daemon does not know preadv2(2) and pwritev2(2), data goes by their
// predecessors, and the log says so.
func TestVectorsWithoutFlags(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOSYS, unix.EPERM} {
		for _, calls := range [][]string{{"preadv2"}, {"pwritev2"}, {"preadv2", "pwritev2"}} {
			var log bytes.Buffer
			ready := make(chan *guest)
			go func() {
				runtime.LockOSThread() // and never unlocked: the thread, which is filtered, ends here
				defer close(ready)
				filter := bpf.Filter{NoNewPrivs: true, Policy: bpf.Policy{DefaultAction: bpf.ActionAllow,
					Syscalls: []bpf.SyscallGroup{{Names: calls, Action: bpf.ActionErrno | bpf.Action(errno)}}}}
				if err := bpf.LoadFilter(filter); err != nil {
					t.Errorf("load a filter: %v", err)
					return
				}
				ready <- mount(t, t.TempDir(), Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			}()
			g, ok := <-ready
			require.True(t, ok)
			assert.Equal(t, len(calls), strings.Count(log.String(), "\n"), log.String())
			for _, c := range calls {
				assert.Contains(t, log.String(), c+"(2) is refused")
			}
			assert.Equal(t, slices.Contains(calls, "preadv2"), g.fs.old.read)
			assert.Equal(t, slices.Contains(calls, "pwritev2"), g.fs.old.write)

			f, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
			require.Zero(t, e)
			data := bytes.Repeat([]byte("0123456789abcdef"), 1<<12)
			n, e := g.write(f.NodeId, f.Fh, 7, data, 0, 0)
			require.Zero(t, e)
			assert.Equal(t, len(data), n)
			n, e = g.write(f.NodeId, f.Fh, 0, []byte("tail"), unix.O_APPEND, 0)
			require.Zero(t, e)
			assert.Equal(t, 4, n)
			_, e = g.write(f.NodeId, f.Fh, 0, []byte("first"), unix.O_APPEND, fuseabi.WriteCache)
			require.Zero(t, e)
			got, e := g.read(f.NodeId, f.Fh, 0, len(data)+100)
			require.Zero(t, e)
			assert.Equal(t, "first\x00\x00"+string(data)+"tail", string(got))
			_, e = g.read(f.NodeId, f.Fh, 1<<63, 1)
			assert.Equal(t, unix.EINVAL, e)
		}
	}
	var log bytes.Buffer
	g := mount(t, t.TempDir(), Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	assert.False(t, g.fs.old.read || g.fs.old.write)
	assert.Empty(t, log.String())
}

// A file system may number the entries of a directory as it likes, with all 64 bits; lseek(2) goes
// to none beyond 2^63.
func TestDirectoryOffsetsOf64Bits(t *testing.T) {
	const high = 1 << 63
	host := servedMount(t, Config{Cache: CacheNever}, tmpfs(t), func(w *fuse.Worker, in, out []byte) uint32 {
		op := fuseabi.Opcode(fuseabi.View[fuseabi.InHeader](in).Opcode)
		if op != fuseabi.OpReaddir {
			return serveWhole(w, in, out)
		}
		fuseabi.View[fuseabi.ReadIn](in).Offset &^= high
		used := serveWhole(w, in, out)
		for b := out[fuseabi.OutHeaderSize:used]; len(b) > 0; {
			d := fuseabi.View[fuseabi.Dirent](b)
			d.Off |= high
			b = b[fuseabi.Align8(fuseabi.DirentSize+int(d.NameLen)):]
		}
		return used
	})
	var names []string
	for i := range 500 {
		name := fmt.Sprintf("%03d-%s", i, strings.Repeat("n", 60))
		names = append(names, name)
		require.NoError(t, os.WriteFile(filepath.Join(host, name), nil, 0o644))
	}
	g := mount(t, host, Config{})
	list := func(plus bool, size int, between func(fh uint64)) (got []string) {
		fh, e := g.opendir(root)
		require.Zero(t, e)
		defer func() { require.Zero(t, g.releasedir(root, fh)) }()
		for off := uint64(0); ; {
			part, e := g.readdirAt(root, fh, off, plus, size)
			require.Zero(t, e, "at %#x", off)
			if len(part) == 0 {
				slices.Sort(got)
				return got
			}
			for _, en := range part {
				require.NotZero(t, en.dirent.Off&high)
				if en.name != "." && en.name != ".." {
					got = append(got, en.name)
				}
			}
			off = part[len(part)-1].dirent.Off
			between(fh)
		}
	}
	for _, plus := range []bool{false, true} {
		for _, size := range []int{600, 4096, 1 << 18} {
			assert.Equal(t, names, list(plus, size, func(uint64) {}), "one part after the other")
		}
		assert.Equal(t, names, list(plus, 8192, func(fh uint64) {
			_, e := g.readdirAt(root, fh, 0, plus, 4096)
			require.Zero(t, e)
		}), "with a look at the beginning in between")
	}
	fh, e := g.opendir(root)
	require.Zero(t, e)
	_, e = g.readdirAt(root, fh, high|1<<62, false, 4096)
	assert.Equal(t, unix.EINVAL, e, "no entry ends there")
}

// close(2) tells of data that a server has no room for, on whatever is mounted in the share.
func TestErrorsOfCloseOnSubmounts(t *testing.T) {
	var bad atomic.Bool
	server := faultyMount(t, Config{Writeback: true}, tmpfs(t), func(op fuseabi.Opcode) unix.Errno {
		if op == fuseabi.OpFlush && bad.Load() {
			return unix.EDQUOT
		}
		return 0
	})
	dir := tmpfs(t)
	require.NoError(t, os.Mkdir(dir+"/sub", 0o755))
	require.NoError(t, unix.Mount(server, dir+"/sub", "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(dir+"/sub", unix.MNT_DETACH) })
	g := mount(t, dir, Config{})
	sub := g.mustLookup(root, "sub")
	made, e := g.create(sub, "f", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	opened, e := want[fuseabi.OpenOut](g, fuseabi.OpOpen, made.NodeId, &fuseabi.OpenIn{Flags: unix.O_RDWR}, nil)
	require.Zero(t, e)
	for fh, flags := range map[uint64]uint32{made.Fh: made.OpenFlags, opened.Fh: opened.OpenFlags} {
		assert.Zero(t, flags&fuseabi.FopenNoflush, "the guest has to ask")
		assert.Zero(t, g.flush(made.NodeId, fh, 0))
		bad.Store(true)
		assert.Equal(t, unix.EDQUOT, g.flush(made.NodeId, fh, 0))
		bad.Store(false)
	}
	own, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	assert.NotZero(t, own.OpenFlags&fuseabi.FopenNoflush, "nothing of that kind can come of memory")
	assert.Zero(t, g.flush(own.NodeId, own.Fh, 0))
}

// Attributes that the file system guards itself are not read, set, removed or listed with the
// daemon's rights.
func TestSystemAttributesAreNotServed(t *testing.T) {
	const acl = "system.nfs4_acl"
	var asked atomic.Int64
	server := servedMount(t, Config{Xattr: true}, tmpfs(t), func(w *fuse.Worker, in, out []byte) uint32 {
		if bytes.Contains(in[fuseabi.InHeaderSize:], []byte("system.")) {
			asked.Add(1)
		}
		used := serveWhole(w, in, out)
		if h := fuseabi.View[fuseabi.InHeader](in); fuseabi.Opcode(h.Opcode) == fuseabi.OpListxattr {
			list := out[fuseabi.OutHeaderSize:]
			if size := fuseabi.View[fuseabi.GetxattrIn](in).Size; size == 0 {
				binary.LittleEndian.PutUint32(list, 100)
				used = uint32(fuseabi.OutHeaderSize + 8)
			} else {
				used = uint32(fuseabi.OutHeaderSize + copy(list, z(acl, "user.a", "system.cifs_acl")))
			}
			oh := fuseabi.View[fuseabi.OutHeader](out)
			oh.Length, oh.Status = used, 0
		}
		return used
	})
	require.NoError(t, os.WriteFile(server+"/f", nil, 0o600))
	m, err := ParseXattrMap(":prefix:all:user.nfs:system.:\n:ok:all:::")
	require.NoError(t, err)
	for _, cfg := range []Config{{Xattr: true}, {Xattr: true, PosixACL: true}, {Xattr: true, XattrMap: m}} {
		g := mount(t, server, cfg)
		n := g.mustLookup(root, "f")
		names := []string{acl, "system.cifs_acl", "system.ntfs_security", "system.posix_acl_other"}
		if cfg.XattrMap != nil {
			names = append(names, "user.nfs4_acl")
		}
		for _, name := range names {
			for _, user := range []*guest{g, g.as(1001, 1001)} {
				assert.Equal(t, unix.EOPNOTSUPP, user.setxattr(n, name, []byte("v"), 0), name)
				assert.Equal(t, unix.EOPNOTSUPP, user.removexattr(n, name), name)
				_, e := user.getxattr(n, name, 100)
				assert.Equal(t, unix.EOPNOTSUPP, e, name)
			}
		}
		list, e := g.listxattr(n, 1000)
		require.Zero(t, e)
		assert.Equal(t, "user.a\x00", string(list))
	}
	assert.Zero(t, asked.Load())
}

// Access lists are served where they were negotiated only: elsewhere the guest's kernel would not
// heed what it sets.
func TestAccessListsAreServedWhereNegotiated(t *testing.T) {
	testenv.Need(t, "root")
	entry := func(tag, perm uint16, id uint32) []byte {
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, tag), perm), id)
	}
	const none = math.MaxUint32
	acl := slices.Concat([]byte{2, 0, 0, 0}, entry(1, 6, none), entry(2, 7, 1001), entry(4, 4, none), entry(16, 7, none), entry(32, 0, none))
	dir := tmpfs(t)
	require.NoError(t, os.WriteFile(dir+"/f", nil, 0o640))
	without, with := mount(t, dir, Config{Xattr: true}), mount(t, dir, Config{Xattr: true, PosixACL: true})
	declined := mount(t, dir, Config{Xattr: true, PosixACL: true})
	declined.init(^fuseabi.PosixACL)
	refused := func(g *guest) {
		t.Helper()
		n := g.mustLookup(root, "f")
		assert.Equal(t, unix.EOPNOTSUPP, g.setxattr(n, aclAccess, acl, 0))
		assert.Equal(t, unix.EOPNOTSUPP, g.setxattr(root, aclDefault, acl, 0))
		assert.Equal(t, unix.EOPNOTSUPP, g.removexattr(n, aclAccess))
		_, e := g.getxattr(n, aclAccess, 1000)
		assert.Equal(t, unix.EOPNOTSUPP, e)
		list, e := g.listxattr(n, 1000)
		require.Zero(t, e)
		assert.NotContains(t, string(list), "acl")
	}
	refused(without)
	refused(declined)
	n := with.mustLookup(root, "f")
	require.Zero(t, with.setxattr(n, aclAccess, acl, 0))
	got, e := with.getxattr(n, aclAccess, 1000)
	require.Zero(t, e)
	assert.Equal(t, acl, got)
	list, e := with.listxattr(n, 1000)
	require.Zero(t, e)
	assert.Equal(t, aclAccess+"\x00", string(list))
	refused(without) // nor what is there
	refused(declined)
}

// chown(2) to nobody renews the change time of whatever it is done to. A guest's kernel sends a
// SETATTR that sets nothing, or the change time alone, which is not to be set.
func TestChownToNobodyRenewsTheChangeTime(t *testing.T) {
	for _, cfg := range []Config{{}, {KillprivV2: true}, {Writeback: true}} {
		g := mount(t, t.TempDir(), cfg)
		f, e := g.create(root, "file", unix.O_RDWR, 0o644, 0)
		require.Zero(t, e)
		_, e = g.mkdir(root, "dir", 0o755, 0)
		require.Zero(t, e)
		_, e = g.symlink(root, "link", "file")
		require.Zero(t, e)
		_, e = g.mknod(root, "pipe", unix.S_IFIFO|0o644, 0)
		require.Zero(t, e)
		for _, name := range []string{"file", "dir", "link", "pipe"} {
			n := g.mustLookup(root, name)
			for _, valid := range []uint32{0, fuseabi.FattrCtime, fuseabi.FattrFH} {
				if valid == fuseabi.FattrFH && name != "file" {
					continue
				}
				before, e := g.getattr(n)
				require.Zero(t, e)
				time.Sleep(20 * time.Millisecond) // the kernel's clock for files ticks
				in := fuseabi.SetattrIn{}
				in.Valid, in.Ctime, in.Fh = valid, 1, f.Fh
				after, e := g.setattr(n, in)
				require.Zero(t, e)
				assert.Greater(t, int64(after.Ctime*1e9)+int64(after.Ctimensec), int64(before.Ctime*1e9)+int64(before.Ctimensec), "%s, valid %#x", name, valid)
				assert.Equal(t, []any{before.Mode, before.Uid, before.Gid, before.Mtime, before.Mtimensec, before.Size},
					[]any{after.Mode, after.Uid, after.Gid, after.Mtime, after.Mtimensec, after.Size})
			}
		}
	}
}

// The same on the host by the guest's own kernel, and what it leaves of set-id bits.
func TestChownToNobodyOnTheKernel(t *testing.T) {
	for name, cfg := range kernelConfigs {
		at := kernelMount(t, cfg, tmpfs(t))
		require.NoError(t, os.Mkdir(at+"/dir", 0o755))
		require.NoError(t, unix.Mkfifo(at+"/pipe", 0o644))
		require.NoError(t, os.Symlink("x", at+"/link"))
		require.NoError(t, os.WriteFile(at+"/file", nil, 0o755))
		require.NoError(t, unix.Chmod(at+"/file", 0o6755))
		for _, what := range []string{"dir", "pipe", "link", "file"} {
			var before, after unix.Stat_t
			require.NoError(t, unix.Lstat(at+"/"+what, &before))
			time.Sleep(20 * time.Millisecond)
			require.NoError(t, unix.Lchown(at+"/"+what, -1, -1))
			require.NoError(t, unix.Lstat(at+"/"+what, &after))
			assert.Greater(t, after.Ctim.Nano(), before.Ctim.Nano(), "%s: %s", name, what)
			if what == "file" {
				assert.Zero(t, after.Mode&0o6000, name)
			}
		}
	}
}

// What was made and could not be finished goes again, but nothing that has taken its place.
func TestUnmakesOnlyWhatWasMade(t *testing.T) {
	testenv.Need(t, "root")
	g := mount(t, t.TempDir(), Config{Xattr: true, SecurityLabel: true})
	th := &thread{fs: g.fs}
	for _, mode := range []uint32{unix.S_IFREG, unix.S_IFDIR, unix.S_IFIFO, unix.S_IFLNK} {
		for _, replaced := range []bool{false, true} {
			make := func() {
				switch mode {
				case unix.S_IFREG, unix.S_IFIFO:
					require.NoError(t, unix.Mknod(g.dir+"/x", mode|0o600, 0))
				case unix.S_IFDIR:
					require.NoError(t, unix.Mkdir(g.dir+"/x", 0o700))
				case unix.S_IFLNK:
					require.NoError(t, os.Symlink("y", g.dir+"/x"))
				}
			}
			make()
			fd, err := unix.Open(g.dir+"/x", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			require.NoError(t, err)
			if replaced {
				require.NoError(t, os.Remove(g.dir+"/x"))
				make()
			}
			th.unmake(g.fs.rootFD, fuse.Name("x\x00"), fd)
			_, err = os.Lstat(g.dir + "/x")
			if replaced {
				assert.NoError(t, err, "another's")
				require.NoError(t, os.Remove(g.dir+"/x"))
			} else {
				assert.ErrorIs(t, err, os.ErrNotExist)
			}
			unix.Close(fd)
		}
	}
}

// labelled makes a request with a security label, as Linux sends it behind what creates.
func labelled[I any](g *guest, op fuseabi.Opcode, in *I, tail []byte, label string) []byte {
	secctx := binary.LittleEndian.AppendUint32(nil, uint32(len("ctx")))
	secctx = binary.LittleEndian.AppendUint32(secctx, 0)
	secctx = append(append(secctx, z(label)...), "ctx"...)
	ext := binary.LittleEndian.AppendUint32(nil, uint32(fuseabi.Align8(8+len(secctx))))
	ext = binary.LittleEndian.AppendUint32(ext, 1)
	ext = append(ext, secctx...)
	ext = append(ext, make([]byte, fuseabi.Align8(len(ext))-len(ext))...)
	tail = append(tail, make([]byte, fuseabi.Align8(len(fuseabi.Bytes(in))+len(tail))-len(fuseabi.Bytes(in))-len(tail))...)
	raw := request(g, op, root, in, append(tail, ext...))
	fuseabi.View[fuseabi.InHeader](raw).TotalExtlen = uint16(len(ext) / 8)
	return raw
}

// Labels are attributes of "security." and nothing else; what cannot have its label is not left
// without.
func TestLabelsAreSecurityAttributes(t *testing.T) {
	testenv.Need(t, "root")
	dir := tmpfs(t)
	g := mount(t, dir, Config{Xattr: true, SecurityLabel: true})
	before := g.fs.Stats()
	fds := openDescriptors(t)
	status := func(raw []byte) unix.Errno {
		got := g.raw(raw, 1000)
		return unix.Errno(-int32(binary.LittleEndian.Uint32(got[4:])))
	}
	for _, c := range []struct {
		label string
		want  unix.Errno
	}{{"trusted.overlay.opaque", unix.EPERM}, {"user.a", unix.EPERM}, {"system.posix_acl_access", unix.EPERM}, {"security", unix.EPERM}, {"security.test", 0}} {
		for what, raw := range map[string][]byte{
			"create":  labelled(g, fuseabi.OpCreate, &fuseabi.CreateIn{Flags: unix.O_RDWR, Mode: unix.S_IFREG | 0o600}, z("x"), c.label),
			"mkdir":   labelled(g, fuseabi.OpMkdir, &fuseabi.MkdirIn{Mode: 0o700}, z("x"), c.label),
			"mknod":   labelled(g, fuseabi.OpMknod, &fuseabi.MknodIn{Mode: unix.S_IFIFO | 0o600}, z("x"), c.label),
			"symlink": labelled(g, fuseabi.OpSymlink, &none{}, z("x", "y"), c.label),
		} {
			require.Equal(t, c.want, status(raw), "%s with %s", what, c.label)
			if c.want != 0 {
				assert.NoFileExists(t, dir+"/x", what)
				_, err := os.Lstat(dir + "/x")
				require.ErrorIs(t, err, os.ErrNotExist, what)
				continue
			}
			b := make([]byte, 10)
			n, err := unix.Lgetxattr(dir+"/x", c.label, b)
			require.NoError(t, err, what)
			assert.Equal(t, "ctx", string(b[:n]))
			require.NoError(t, os.Remove(dir+"/x"))
		}
		if c.want != 0 {
			assert.Equal(t, before, g.fs.Stats())
			assert.Equal(t, fds, openDescriptors(t), "nothing stays open")
		}
	}
}

// A server of the host that does not answer holds up the requests that ask it, and no others that
// have to do with locks.
func TestLocksOfOneFileDoNotWaitForAnother(t *testing.T) {
	var slow atomic.Bool
	asked, answer := make(chan struct{}, 100), make(chan struct{})
	server := faultyMount(t, lockConfig, tmpfs(t), func(op fuseabi.Opcode) unix.Errno {
		if op == fuseabi.OpGetlk && slow.Load() {
			asked <- struct{}{}
			<-answer
		}
		return 0
	})
	dir := tmpfs(t)
	require.NoError(t, os.Mkdir(dir+"/sub", 0o755))
	require.NoError(t, unix.Mount(server, dir+"/sub", "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(dir+"/sub", unix.MNT_DETACH) })
	g := mount(t, dir, lockConfig)
	held, e := g.create(g.mustLookup(root, "sub"), "held", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	own, e := g.create(root, "own", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	require.Zero(t, g.lock(fuseabi.OpSetlk, held.NodeId, held.Fh, 1, unix.F_WRLCK, 0, 9))

	other, third := g.another(), g.another()
	release := sync.OnceFunc(func() {
		slow.Store(false)
		close(answer)
	})
	t.Cleanup(release)
	slow.Store(true)
	asks := later(func() unix.Errno {
		in := fuseabi.LkIn{Fh: held.Fh, Owner: 2}
		in.Lk.Typ, in.Lk.End = unix.F_WRLCK, 9
		_, e := want[fuseabi.LkOut](other, fuseabi.OpGetlk, held.NodeId, &in, nil)
		return e
	})
	<-asked // whether there is a lock
	answer <- struct{}{}
	<-asked // whose it is
	assert.Zero(t, comes(t, later(func() unix.Errno {
		return third.lock(fuseabi.OpSetlk, own.NodeId, own.Fh, 3, unix.F_WRLCK, 0, 9)
	})))
	release()
	assert.Zero(t, comes(t, asks))
}

// A number of 64 bits is answered as a local file system answers it, at the ends of the range too.
func TestNumbersAtTheEnds(t *testing.T) {
	dir := t.TempDir()
	g := mount(t, dir, Config{PosixLock: true})
	f, e := g.create(root, "f", unix.O_RDWR, 0o644, 0)
	require.Zero(t, e)
	_, e = g.write(f.NodeId, f.Fh, 0, []byte("0123456789"), 0, 0)
	require.Zero(t, e)
	require.NoError(t, os.WriteFile(dir+"/local", []byte("0123456789"), 0o644))
	fd, err := unix.Open(dir+"/local", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	errno := func(err error) unix.Errno {
		if err == nil {
			return 0
		}
		return err.(unix.Errno)
	}
	ends := []uint64{0, 1, 9, 10, 11, math.MaxInt32, math.MaxUint32, math.MaxInt64 - 4096, math.MaxInt64 - 1, math.MaxInt64, 1 << 63, 1<<63 + 1, math.MaxUint64 - 1, math.MaxUint64}
	for _, off := range ends {
		what := fmt.Sprintf("%#x", off)
		b := make([]byte, 4)
		n, err := unix.Pread(fd, b, int64(off))
		got, e := g.read(f.NodeId, f.Fh, off, 4)
		assert.Equal(t, errno(err), e, "read at %s", what)
		if e == 0 {
			assert.Equal(t, b[:n], got)
		}
		for _, whence := range []int{unix.SEEK_SET, unix.SEEK_END, unix.SEEK_DATA, unix.SEEK_HOLE} {
			at, err := unix.Seek(fd, int64(off), whence)
			out, e := want[fuseabi.LseekOut](g, fuseabi.OpLseek, f.NodeId, &fuseabi.LseekIn{Fh: f.Fh, Offset: off, Whence: uint32(whence)}, nil)
			assert.Equal(t, errno(err), e, "seek %d to %s", whence, what)
			if e == 0 {
				assert.EqualValues(t, at, out.Offset)
			}
		}
		for _, length := range []uint64{0, 1, math.MaxInt64, 1 << 63, math.MaxUint64} {
			const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
			err := unix.Fallocate(fd, punch, int64(off), int64(length))
			_, e := call(g, fuseabi.OpFallocate, f.NodeId, &fuseabi.FallocateIn{Fh: f.Fh, Offset: off, Length: length, Mode: punch}, nil, 0)
			assert.Equal(t, errno(err), e, "fallocate %s, %#x", what, length)
			if length > 1 && off < 1<<40 {
				_, err = unix.Pwrite(fd, []byte("0123456789"), 0)
				require.NoError(t, err)
				_, e = g.write(f.NodeId, f.Fh, 0, []byte("0123456789"), 0, 0)
				require.Zero(t, e)
			}
			in, out := int64(off), int64(0)
			copied, err := unix.CopyFileRange(fd, &in, fd, &out, int(min(length, mostCopied)), 0) // no more is tried at once
			w, e := want[fuseabi.CopyFileRangeOut](g, fuseabi.OpCopyFileRange64, f.NodeId,
				&fuseabi.CopyFileRangeIn{FhIn: f.Fh, OffIn: off, NodeIdOut: f.NodeId, FhOut: f.Fh, Len: length}, nil)
			assert.Equal(t, errno(err), e, "copy_file_range from %s, %#x", what, length)
			if e == 0 {
				assert.EqualValues(t, copied, w.BytesCopied)
			}
		}
		if off > math.MaxInt32 { // what is less has been written elsewhere
			_, err = unix.Pwrite(fd, []byte("x"), int64(off))
			if errno(err) != 0 {
				_, e = g.write(f.NodeId, f.Fh, off, []byte("x"), 0, 0)
				assert.Equal(t, errno(err), e, "write at %s", what)
			}
			require.NoError(t, unix.Ftruncate(fd, 10))
		}

		var a fuseabi.SetattrIn
		a.Valid, a.Size = fuseabi.FattrSize, off
		_, e = g.setattr(f.NodeId, a)
		if err := unix.Ftruncate(fd, int64(off)); off < 1<<63 {
			assert.Equal(t, errno(err), e, "size %s", what)
		} else {
			assert.Equal(t, unix.EFBIG, e, "no program can ask so much of a local file system")
		}
		require.NoError(t, unix.Ftruncate(fd, 10))
		a.Size = 10
		_, e = g.setattr(f.NodeId, a)
		require.Zero(t, e)

		a.Valid, a.Mtime = fuseabi.FattrMtime, off
		set, e := g.setattr(f.NodeId, a)
		err = unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/local", []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: int64(off)}}, 0)
		assert.Equal(t, errno(err), e, "time %s", what)
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(fd, &st))
		if e == 0 {
			assert.Equal(t, st.Mtim.Sec, int64(set.Mtime), "as far as the file system keeps it")
		}

		fh, e := g.opendir(root)
		require.Zero(t, e)
		d, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		_, err = unix.Seek(d, int64(off), unix.SEEK_SET)
		unix.Close(d)
		_, e = g.readdirAt(root, fh, off, false, 4096)
		assert.Equal(t, errno(err), e, "entries from %s on", what)
		require.Zero(t, g.releasedir(root, fh))

		lockErrno := unix.Errno(0)
		if off > math.MaxInt64 {
			lockErrno = unix.EINVAL
		}
		assert.Equal(t, lockErrno, g.lock(fuseabi.OpSetlk, f.NodeId, f.Fh, 1, unix.F_WRLCK, 0, off), "lock to %s", what)
		assert.Equal(t, lockErrno, g.lock(fuseabi.OpSetlk, f.NodeId, f.Fh, 1, unix.F_WRLCK, off, off), "lock of %s", what)
	}
	assert.Equal(t, unix.EINVAL, g.lock(fuseabi.OpSetlk, f.NodeId, f.Fh, 1, unix.F_WRLCK, 2, 1))
}

// Programs without CAP_FSETID clear set-id bits by fallocate(2) and copy_file_range(2) as well, of
// which the protocol says who the caller is and not what he may.
func TestSpaceAndCopiesClearSetIDBits(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	g := mount(t, dir, Config{KillprivV2: true})
	g.init(^fuseabi.AllowIdmap)
	require.NoError(t, os.WriteFile(dir+"/from", []byte("abc"), 0o644))
	from := g.mustLookup(root, "from")
	fromFh, e := g.open(from, unix.O_RDONLY)
	require.Zero(t, e)
	changes := map[string]func(g *guest, node, fh uint64) unix.Errno{
		"fallocate": func(g *guest, node, fh uint64) unix.Errno {
			_, e := call(g, fuseabi.OpFallocate, node, &fuseabi.FallocateIn{Fh: fh, Length: 10}, nil, 0)
			return e
		},
		"copy_file_range": func(g *guest, node, fh uint64) unix.Errno {
			_, e := want[fuseabi.WriteOut](g, fuseabi.OpCopyFileRange, from, &fuseabi.CopyFileRangeIn{FhIn: fromFh, NodeIdOut: node, FhOut: fh, Len: 3}, nil)
			return e
		},
	}
	for name, change := range changes {
		for uid, keeps := range map[uint32]bool{0: true, 1001: false} {
			path := filepath.Join(dir, fmt.Sprint(name, uid))
			require.NoError(t, os.WriteFile(path, []byte("#!"), 0o755))
			require.NoError(t, os.Chmod(path, 0o755|os.ModeSetuid|os.ModeSetgid))
			n := g.mustLookup(root, filepath.Base(path))
			fh, e := g.open(n, unix.O_RDWR)
			require.Zero(t, e)
			require.Zero(t, change(g.as(uid, uid), n, fh))
			st, err := os.Stat(path)
			require.NoError(t, err)
			assert.Equal(t, keeps, st.Mode()&(os.ModeSetuid|os.ModeSetgid) == os.ModeSetuid|os.ModeSetgid, "%s by %d", name, uid)
			assert.Equal(t, keeps, st.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0, "%s by %d", name, uid)
		}
	}
}

// ACCESS is answered for the caller, and not for a daemon that may everything.
func TestAccessIsTheCallers(t *testing.T) {
	testenv.Need(t, "root")
	dir := publicDir(t)
	g := mount(t, dir, Config{})
	require.NoError(t, os.WriteFile(dir+"/secret", nil, 0o600))
	require.NoError(t, os.WriteFile(dir+"/public", nil, 0o644))
	require.NoError(t, os.WriteFile(dir+"/theirs", nil, 0o400))
	require.NoError(t, os.Chown(dir+"/theirs", 1001, 1001))
	const r, w, x = 4, 2, 1
	for _, c := range []struct {
		name string
		uid  uint32
		mask uint32
		want unix.Errno
	}{
		{"secret", 1001, r, unix.EACCES}, {"secret", 1001, w, unix.EACCES}, {"secret", 0, r | w, 0}, {"secret", 0, x, unix.EACCES},
		{"public", 1001, r, 0}, {"public", 1001, r | w, unix.EACCES}, {"public", 1001, 0, 0},
		{"theirs", 1001, r, 0}, {"theirs", 1001, w, unix.EACCES}, {"theirs", 0, r | w, 0}, {"theirs", 1002, r, unix.EACCES},
		{"public", 1001, 8, unix.EINVAL},
	} {
		n := g.mustLookup(root, c.name)
		_, e := call(g.as(c.uid, c.uid), fuseabi.OpAccess, n, &fuseabi.AccessIn{Mask: c.mask}, nil, 0)
		assert.Equal(t, c.want, e, "%s by %d, %#o", c.name, c.uid, c.mask)
	}
	// The thread has its capabilities again.
	_, e := g.create(root, "after", unix.O_RDWR, 0o600, 0)
	require.Zero(t, e)
	_, e = g.setattr(g.mustLookup(root, "theirs"), fuseabi.SetattrIn{SetAttrInCommon: setattrCommon(fuseabi.FattrUID, 0, 5, 0)})
	assert.Zero(t, e)
}

// An owner is set as the host is to know him, and a guest is not given one that it may not use.
func TestTranslatedOwnersAreSet(t *testing.T) {
	testenv.Need(t, "root")
	users, err := ParseTranslation([]string{"map:0:100000:1000", "forbid-guest:5000:1"})
	require.NoError(t, err)
	groups, err := ParseTranslation([]string{"map:0:200000:1000", "forbid-guest:6000:1"})
	require.NoError(t, err)
	g := mount(t, publicDir(t), Config{TranslateUID: users, TranslateGID: groups})
	require.NoError(t, os.WriteFile(g.dir+"/f", nil, 0o600))
	n := g.mustLookup(root, "f")
	owner := func() [2]uint32 {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(g.dir+"/f", &st))
		return [2]uint32{st.Uid, st.Gid}
	}
	set := func(valid, uid, gid uint32) unix.Errno {
		a, e := g.setattr(n, fuseabi.SetattrIn{SetAttrInCommon: setattrCommon(valid, 0, uid, gid)})
		if e == 0 && valid&fuseabi.FattrUID != 0 {
			assert.Equal(t, uid, a.Uid, "the guest sees what it set")
		}
		if e == 0 && valid&fuseabi.FattrGID != 0 {
			assert.Equal(t, gid, a.Gid)
		}
		return e
	}
	require.Zero(t, set(fuseabi.FattrUID|fuseabi.FattrGID, 7, 8))
	assert.Equal(t, [2]uint32{100007, 200008}, owner())
	require.Zero(t, set(fuseabi.FattrUID, 0, 99))
	assert.Equal(t, [2]uint32{100000, 200008}, owner())
	require.Zero(t, set(fuseabi.FattrGID, 99, 1))
	assert.Equal(t, [2]uint32{100000, 200001}, owner())
	assert.Equal(t, unix.EPERM, set(fuseabi.FattrUID, 5000, 0))
	assert.Equal(t, unix.EPERM, set(fuseabi.FattrGID, 0, 6000))
	assert.Equal(t, [2]uint32{100000, 200001}, owner())
}
