package fuse_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	gofuzz "github.com/google/gofuzz"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
)

// cutting makes segments at places that a seed chooses; 0 leaves the memory whole.
func cutting(seed uint64) func([]byte) []unix.Iovec {
	if seed == 0 {
		return nil
	}
	rng := rand.New(rand.NewPCG(seed, 3))
	return func(b []byte) []unix.Iovec {
		var iov []unix.Iovec
		for len(b) > 0 {
			n := len(b)
			switch rng.IntN(6) {
			case 0:
				n = rng.IntN(2)
			case 1:
				n = rng.IntN(n + 1)
			case 2, 3:
				n = min(n, rng.IntN(48))
			}
			v := unix.Iovec{Base: &b[0]}
			v.SetLen(n)
			iov = append(iov, v)
			b = b[n:]
		}
		return iov
	}
}

// FuzzRequest serves any bytes as requests, one after the other, in segments cut anywhere. A record of the input is the request's length
// and the room for its answer, 16 bits each, then the request.
func FuzzRequest(f *testing.F) {
	for which := range byte(8) {
		for name, script := range scripts {
			r := newRig(f, which)
			r.record = nil
			r.init(^fuseabi.InitFlags(0))
			script(r)
			r.finish()
			f.Add(which, uint64(len(name)), r.record)
			f.Add(which, uint64(0), r.record)
		}
	}
	f.Fuzz(func(t *testing.T, which byte, seed uint64, in []byte) {
		noLargeFiles()
		r := newRig(t, which)
		defer r.finish()
		r.cut = cutting(seed)
		for n := 0; len(in) >= 4 && n < 64; n++ {
			length, room := int(binary.LittleEndian.Uint16(in)), int(binary.LittleEndian.Uint16(in[2:]))
			in = in[4:]
			length = min(length, len(in))
			r.serve(in[:length], room)
			in = in[length:]
		}
	})
}

// scripts are sessions of a guest, as seeds.
var scripts = map[string]func(*rig){
	"files": func(r *rig) {
		f := node(say(r, fuseabi.OpLookup, 1, &none{}, z("f"), 128))
		say(r, fuseabi.OpGetattr, f, &fuseabi.GetattrIn{}, nil, 104)
		say(r, fuseabi.OpStatx, f, &fuseabi.StatxIn{SxMask: 0xfff}, nil, 288)
		fh := node(say(r, fuseabi.OpOpen, f, &fuseabi.OpenIn{Flags: unix.O_RDWR}, nil, 16))
		say(r, fuseabi.OpRead, f, &fuseabi.ReadIn{Fh: fh, Offset: 4096, Size: 8192}, nil, 8192)
		say(r, fuseabi.OpWrite, f, &fuseabi.WriteIn{Fh: fh, Size: 5}, []byte("bytes"), 8)
		say(r, fuseabi.OpWrite, f, &fuseabi.WriteIn{Fh: fh, Size: 6}, []byte("bytes"), 8)
		say(r, fuseabi.OpLseek, f, &fuseabi.LseekIn{Fh: fh, Whence: unix.SEEK_DATA}, nil, 8)
		say(r, fuseabi.OpFallocate, f, &fuseabi.FallocateIn{Fh: fh, Offset: 100, Length: 100, Mode: unix.FALLOC_FL_KEEP_SIZE}, nil, 0)
		say(r, fuseabi.OpCopyFileRange, f, &fuseabi.CopyFileRangeIn{FhIn: fh, NodeIdOut: f, FhOut: fh, OffOut: 10000, Len: 1 << 40}, nil, 8)
		say(r, fuseabi.OpCopyFileRange64, f, &fuseabi.CopyFileRangeIn{FhIn: fh, NodeIdOut: f, FhOut: fh, OffOut: 10000, Len: 50}, nil, 8)
		lk := fuseabi.LkIn{Fh: fh, Owner: 9, Lk: fuseabi.FileLock{Start: 0, End: 10, Typ: unix.F_WRLCK, Pid: 4}}
		say(r, fuseabi.OpSetlk, f, &lk, nil, 0)
		say(r, fuseabi.OpGetlk, f, &lk, nil, 24)
		lk.LkFlags = fuseabi.LkFlock
		say(r, fuseabi.OpSetlkw, f, &lk, nil, 0)
		say(r, fuseabi.OpFlush, f, &fuseabi.FlushIn{Fh: fh, LockOwner: 9}, nil, 0)
		say(r, fuseabi.OpFsync, f, &fuseabi.FsyncIn{Fh: fh}, nil, 0)
		set := fuseabi.SetattrIn{}
		set.Valid, set.Size, set.Mode = fuseabi.FattrSize|fuseabi.FattrMode|fuseabi.FattrMtimeNow, 100, 0o600
		say(r, fuseabi.OpSetattr, f, &set, nil, 104)
		say(r, fuseabi.OpRelease, f, &fuseabi.ReleaseIn{Fh: fh}, nil, 0)
		say(r, fuseabi.OpAccess, f, &fuseabi.AccessIn{Mask: 4}, nil, 0)
		say(r, fuseabi.OpIoctl, f, &fuseabi.IoctlIn{}, nil, 16)
		say(r, fuseabi.OpForget, f, &fuseabi.ForgetIn{Nlookup: 1}, nil, 0)
		say(r, fuseabi.OpGetattr, f, &fuseabi.GetattrIn{}, nil, 104)
		say(r, fuseabi.OpDestroy, 0, &none{}, nil, 0)
		say(r, fuseabi.OpGetattr, 1, &fuseabi.GetattrIn{}, nil, 104)
	},
	"names": func(r *rig) {
		c := say(r, fuseabi.OpCreate, 1, &fuseabi.CreateIn{Flags: unix.O_RDWR, Mode: 0o100644, Umask: 0o22}, z("new"), 144)
		say(r, fuseabi.OpTmpfile, 1, &fuseabi.CreateIn{Flags: unix.O_RDWR, Mode: 0o100644}, z("/"), 144)
		n := node(c)
		say(r, fuseabi.OpLink, 1, &fuseabi.LinkIn{Oldnodeid: n}, z("again"), 128)
		d := node(say(r, fuseabi.OpMkdir, 1, &fuseabi.MkdirIn{Mode: 0o755}, z("dir"), 128))
		say(r, fuseabi.OpMknod, d, &fuseabi.MknodIn{Mode: unix.S_IFIFO | 0o600}, z("fifo"), 128)
		l := node(say(r, fuseabi.OpSymlink, d, &none{}, z("link", "../../secret"), 128))
		say(r, fuseabi.OpReadlink, l, &none{}, nil, 4096)
		say(r, fuseabi.OpReadlink, l, &none{}, nil, 3)
		say(r, fuseabi.OpRename, 1, &fuseabi.RenameIn{Newdir: d}, z("new", "moved"), 0)
		say(r, fuseabi.OpRename2, 1, &fuseabi.Rename2In{Newdir: d, Flags: unix.RENAME_EXCHANGE}, z("again", "moved"), 0)
		say(r, fuseabi.OpRename2, 1, &fuseabi.Rename2In{Newdir: d, Flags: 0xff}, z("again", "moved"), 0)
		say(r, fuseabi.OpUnlink, 1, &none{}, z("again"), 0)
		say(r, fuseabi.OpRmdir, 1, &none{}, z("dir"), 0)
		for _, bad := range []string{"..", ".", "a/b", "", string(bytes.Repeat([]byte("n"), 256))} {
			say(r, fuseabi.OpLookup, 1, &none{}, z(bad), 128)
			say(r, fuseabi.OpUnlink, 1, &none{}, z(bad), 0)
			say(r, fuseabi.OpRmdir, 1, &none{}, z(bad), 0)
			say(r, fuseabi.OpSymlink, 1, &none{}, z(bad, "x"), 128)
			say(r, fuseabi.OpSymlink, 1, &none{}, z("x", bad), 128)
			say(r, fuseabi.OpLink, 1, &fuseabi.LinkIn{Oldnodeid: n}, z(bad), 128)
			say(r, fuseabi.OpRename, 1, &fuseabi.RenameIn{Newdir: 1}, z(bad, "x"), 0)
			say(r, fuseabi.OpRename, 1, &fuseabi.RenameIn{Newdir: 1}, z("f", bad), 0)
			say(r, fuseabi.OpMknod, 1, &fuseabi.MknodIn{}, z(bad), 128)
			say(r, fuseabi.OpMkdir, 1, &fuseabi.MkdirIn{}, z(bad), 128)
			say(r, fuseabi.OpCreate, 1, &fuseabi.CreateIn{}, z(bad), 144)
			say(r, fuseabi.OpTmpfile, 1, &fuseabi.CreateIn{}, z(bad), 144)
			say(r, fuseabi.OpGetxattr, 1, &fuseabi.GetxattrIn{Size: 10}, z(bad), 10)
			say(r, fuseabi.OpSetxattr, 1, &fuseabi.SetxattrIn{}, z(bad), 0)
			say(r, fuseabi.OpRemovexattr, 1, &none{}, z(bad), 0)
		}
		say(r, fuseabi.OpLookup, 1, &none{}, []byte("no end"), 128)
		say(r, fuseabi.OpDestroy, 0, &none{}, nil, 0)
	},
	"lists": func(r *rig) {
		d := node(say(r, fuseabi.OpOpendir, 1, &fuseabi.OpenIn{}, nil, 16))
		say(r, fuseabi.OpReaddirplus, 1, &fuseabi.ReadIn{Fh: d, Size: 4096}, nil, 4096)
		say(r, fuseabi.OpReaddirplus, 1, &fuseabi.ReadIn{Fh: d, Size: 300}, nil, 300)
		say(r, fuseabi.OpReaddir, 1, &fuseabi.ReadIn{Fh: d, Size: 60000}, nil, 60000)
		say(r, fuseabi.OpReaddir, 1, &fuseabi.ReadIn{Fh: d, Size: 4096}, nil, 100)
		say(r, fuseabi.OpReaddir, 1, &fuseabi.ReadIn{Fh: d, Size: 4096, Offset: 1 << 62}, nil, 4096)
		say(r, fuseabi.OpFsyncdir, 1, &fuseabi.FsyncIn{Fh: d}, nil, 0)
		say(r, fuseabi.OpReleasedir, 1, &fuseabi.ReleaseIn{Fh: d}, nil, 0)
		forget := func(all ...uint64) {
			b := make([]byte, 0, 8*len(all))
			for _, v := range all {
				b = binary.LittleEndian.AppendUint64(b, v)
			}
			say(r, fuseabi.OpBatchForget, 0, &fuseabi.BatchForgetIn{Count: uint32(len(all) / 2)}, b, 0)
		}
		forget(2, 1, 3, 1, 4, 1<<63, 1, 1000)
		forget(make([]uint64, 2*300)...)
		say(r, fuseabi.OpBatchForget, 0, &fuseabi.BatchForgetIn{Count: 1 << 31}, nil, 0)
		say(r, fuseabi.OpForget, 1, &fuseabi.ForgetIn{Nlookup: 1 << 63}, nil, 0)
		say(r, fuseabi.OpInterrupt, 0, &fuseabi.InterruptIn{Unique: 5}, nil, 0)
		say(r, fuseabi.OpStatfs, 1, &none{}, nil, 80)
		say(r, fuseabi.OpSyncfs, 1, &fuseabi.SyncfsIn{}, nil, 0)
		say(r, fuseabi.OpInit, 0, &fuseabi.InitIn{Major: 8}, nil, 64)
		say(r, fuseabi.OpInit, 0, &fuseabi.InitIn{Major: 7, Minor: 12}, nil, 64)
		r.serve(encode(fuseabi.OpInit, 0, 1, &fuseabi.InitIn{Major: 7, Minor: 31}, nil, nil)[:fuseabi.InitInCompatSize], 80)
		short := encode(fuseabi.OpInit, 0, 1, &fuseabi.InitIn{Major: 7, Minor: 31, Flags: 1<<29 | 1<<22}, nil, nil)
		binary.LittleEndian.PutUint32(short, fuseabi.InitInCompatSize)
		r.serve(short[:fuseabi.InitInCompatSize], 80)
		say(r, fuseabi.OpSetxattr, 1, &fuseabi.SetxattrCompatIn{Size: 1}, append(z("user.b"), 'v'), 0)
		say(r, 200, 1, &none{}, nil, 0)
		say(r, 7, 1, &none{}, nil, 0)
		r.serve(make([]byte, 15), 100)
		r.serve(make([]byte, 39), 100)
		r.serve(nil, 100)
		long := encode(fuseabi.OpLookup, 1, 5, &none{}, z("f"), nil)
		binary.LittleEndian.PutUint32(long, 1<<20)
		r.serve(long, 100)
		r.serve(encode(fuseabi.OpLookup, 1, 5, &none{}, bytes.Repeat([]byte("x"), 40000), nil), 144)
		say(r, fuseabi.OpGetattr, 1, &fuseabi.GetattrIn{}, nil, 50)
		r.serve(encode(fuseabi.OpGetattr, 1, 5, &fuseabi.GetattrIn{}, nil, nil), 15)
	},
	"attributes": func(r *rig) {
		f := node(say(r, fuseabi.OpLookup, 1, &none{}, z("f"), 128))
		for _, name := range []string{"user.a", "trusted.b", "security.capability", "system.posix_acl_access", "user.virtiofs.user.a"} {
			say(r, fuseabi.OpSetxattr, f, &fuseabi.SetxattrIn{Size: 5}, append(z(name), "value"...), 0)
			say(r, fuseabi.OpSetxattr, f, &fuseabi.SetxattrIn{Size: 6}, append(z(name), "value"...), 0)
			say(r, fuseabi.OpSetxattr, f, &fuseabi.SetxattrIn{Size: 1 << 31}, append(z(name), "value"...), 0)
			say(r, fuseabi.OpGetxattr, f, &fuseabi.GetxattrIn{}, z(name), 8)
			say(r, fuseabi.OpGetxattr, f, &fuseabi.GetxattrIn{}, z(name), 7)
			say(r, fuseabi.OpGetxattr, f, &fuseabi.GetxattrIn{Size: 100}, z(name), 100)
			say(r, fuseabi.OpGetxattr, f, &fuseabi.GetxattrIn{Size: 100}, z(name), 99)
		}
		say(r, fuseabi.OpListxattr, f, &fuseabi.GetxattrIn{}, nil, 8)
		say(r, fuseabi.OpListxattr, f, &fuseabi.GetxattrIn{Size: 1000}, nil, 1000)
		say(r, fuseabi.OpRemovexattr, f, &none{}, z("user.a"), 0)
		r.serve(encode(fuseabi.OpMkdir, 1, 5, &fuseabi.MkdirIn{Mode: 0o777}, z("grouped"), groups(4, 1000)), 144)
		r.serve(encode(fuseabi.OpMkdir, 1, 6, &fuseabi.MkdirIn{Mode: 0o777}, z("labelled"), append(label("security.selinux", "a:b"), groups(1)...)), 144)
		r.serve(encode(fuseabi.OpSymlink, 1, 7, &none{}, z("labelled-link", "f"), label("security.selinux", "a:b")), 144)
		in := fuseabi.CreateIn{Flags: unix.O_RDWR, Mode: 0o100666}
		in.Uid, in.Gid = 1000, 1000
		r.serve(encode(fuseabi.OpCreate, 1, 8, &in, z("theirs"), groups(7, 8)), 160)
		late := encode(fuseabi.OpMknod, 1, 9, &fuseabi.MknodIn{Mode: 0o100644}, append(z("late"), label("security.selinux", "x")...), nil)
		r.serve(late, 144)
		r.serve(encode(fuseabi.OpTmpfile, 1, 9, &in, append(z("/"), 1, 2, 3, 4, 5, 6, 7, 8, 9), nil), 160)
		r.serve(encode(fuseabi.OpSymlink, 1, 9, &none{}, append(z("a", "b"), 1, 2, 3, 4, 5, 6, 7, 8, 9), nil), 144)
		bad := encode(fuseabi.OpMkdir, 1, 10, &fuseabi.MkdirIn{}, z("bad"), groups(1))
		binary.LittleEndian.PutUint16(bad[36:], 5000)
		r.serve(bad, 144)
		r.serve(encode(fuseabi.OpMkdir, 1, 11, &fuseabi.MkdirIn{}, z("bad"), extension(fuseabi.ExtGroups, []byte{255, 255, 255, 255})), 144)
	},
}

// TestScriptsReachTheirNodes: the seeds are worth something only while their requests succeed.
func TestScriptsReachTheirNodes(t *testing.T) {
	r := newRig(t, 0)
	r.init(^fuseabi.InitFlags(0))
	for _, name := range []string{"attributes", "names"} {
		scripts[name](r)
		r.init(^fuseabi.InitFlags(0))
	}
	require.DirExists(t, filepath.Join(r.share, "labelled"))
	require.FileExists(t, filepath.Join(r.share, "theirs"))
	require.FileExists(t, filepath.Join(r.share, "dir", "moved"))
	target, err := os.Readlink(filepath.Join(r.share, "dir", "link"))
	require.NoError(t, err)
	require.Equal(t, "../../secret", target)
	r.finish()
}

// chooser makes requests that are well formed but for what the fuzzer's bytes say otherwise.
type chooser struct {
	*rig
	z *gofuzz.Fuzzer
	c gofuzz.Continue
}

var fuzzNames = []string{"f", "d", "g", "e", "l", "a", "b", "new", "f", "d", ".", "..", "../secret", "d/g", "", "/", "\xff\xfe", "a\nb", "security.selinux",
	"user.a", "trusted.x", "system.posix_acl_access", "security.capability", string(bytes.Repeat([]byte("n"), 255)), string(bytes.Repeat([]byte("n"), 256))}

// values are what fields of requests hold: what the guest got, bounds, and anything.
func (g *chooser) value(c gofuzz.Continue) uint64 {
	pick := func(all []uint64) uint64 {
		if len(all) == 0 {
			return c.RandUint64() % 8
		}
		return all[c.Intn(len(all))]
	}
	switch c.Intn(8) {
	case 0, 1:
		return pick(g.handles)
	case 2:
		return g.node(c)
	case 3:
		return pick([]uint64{0, 1, 2, 7, 8, 15, 16, 255, 256, 4095, 4096, 4097, 65535, 65536, 1 << 20, 1<<20 + 1})
	case 4:
		return pick([]uint64{1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 1, 1<<64 - 4096})
	case 5:
		return 1 << c.Intn(64)
	case 6:
		return c.RandUint64()
	}
	return uint64(c.Intn(64))
}

func (g *chooser) node(c gofuzz.Continue) uint64 {
	if c.Intn(3) == 0 {
		return fuseabi.RootID
	}
	return uint64(c.Intn(3 + len(g.lookups)))
}

func (g *chooser) names(c gofuzz.Continue, n int) []byte {
	var b []byte
	for range n {
		b = append(b, fuzzNames[c.Intn(len(fuzzNames))]...)
		if c.Intn(64) != 0 {
			b = append(b, 0)
		}
	}
	return b
}

func (g *chooser) extensions(c gofuzz.Continue) []byte {
	var ext []byte
	for range c.Intn(3) {
		switch c.Intn(4) {
		case 0:
			b := groups(make([]uint32, c.Intn(34))...)
			for i := 12; i+4 <= len(b); i += 4 {
				binary.LittleEndian.PutUint32(b[i:], uint32(c.Intn(2000)))
			}
			ext = append(ext, b...)
		case 1:
			ext = append(ext, label(fuzzNames[c.Intn(len(fuzzNames))], "a:b:c")...)
		case 2:
			ext = append(ext, extension(uint32(c.Intn(40)), make([]byte, c.Intn(40)))...)
		case 3:
			ext = append(ext, extension(uint32(g.value(c)), nil)...)
		}
	}
	if len(ext) > 0 && c.Intn(8) == 0 {
		ext[c.Intn(len(ext))] ^= byte(c.RandUint64())
	}
	return ext
}

// shape is how an opcode's request is made: the structure filled by gofuzz, how many names follow, whether data does, room for the answer.
type shape struct {
	make func(g *chooser, op fuseabi.Opcode) (raw []byte)
}

func of[I any](names int, data bool) shape {
	return shape{func(g *chooser, op fuseabi.Opcode) []byte {
		var in I
		g.z.Fuzz(&in)
		tail := g.names(g.c, names)
		if data {
			b := make([]byte, g.c.Intn(70))
			g.c.Rand.Read(b)
			tail = append(tail, b...)
		}
		var ext []byte
		if g.c.Intn(4) == 0 {
			ext = g.extensions(g.c)
		}
		raw := encode(op, g.node(g.c), g.c.RandUint64(), &in, tail, ext)
		if data && g.c.Intn(4) != 0 { // the size that it has
			at := map[fuseabi.Opcode]int{fuseabi.OpWrite: 56, fuseabi.OpSetxattr: 40, fuseabi.OpBatchForget: 40}[op]
			n := len(tail)
			switch op {
			case fuseabi.OpSetxattr:
				n = max(0, n-bytes.IndexByte(tail, 0)-1)
			case fuseabi.OpBatchForget:
				n /= 16
			}
			binary.LittleEndian.PutUint32(raw[at:], uint32(n))
		}
		switch op {
		case fuseabi.OpInit:
			if g.c.Intn(4) != 0 {
				binary.LittleEndian.PutUint32(raw[40:], fuseabi.Major)
				binary.LittleEndian.PutUint32(raw[44:], 31+uint32(g.c.Intn(16)))
			}
		case fuseabi.OpSymlink, fuseabi.OpMknod, fuseabi.OpMkdir, fuseabi.OpCreate, fuseabi.OpTmpfile:
			h := fuseabi.View[fuseabi.InHeader](raw)
			h.Uid, h.Gid = []uint32{0, 0, 1000, 1<<32 - 1}[g.c.Intn(4)], []uint32{0, 0, 1000, 7}[g.c.Intn(4)]
		}
		return raw
	}}
}

var shapes = [fuseabi.OpcodeEnd]shape{
	fuseabi.OpLookup: of[none](1, false), fuseabi.OpForget: of[fuseabi.ForgetIn](0, false), fuseabi.OpGetattr: of[fuseabi.GetattrIn](0, false),
	fuseabi.OpSetattr: of[fuseabi.SetattrIn](0, false), fuseabi.OpReadlink: of[none](0, false), fuseabi.OpSymlink: of[none](2, false),
	fuseabi.OpMknod: of[fuseabi.MknodIn](1, false), fuseabi.OpMkdir: of[fuseabi.MkdirIn](1, false), fuseabi.OpUnlink: of[none](1, false),
	fuseabi.OpRmdir: of[none](1, false), fuseabi.OpRename: of[fuseabi.RenameIn](2, false), fuseabi.OpLink: of[fuseabi.LinkIn](1, false),
	fuseabi.OpOpen: of[fuseabi.OpenIn](0, false), fuseabi.OpRead: of[fuseabi.ReadIn](0, false), fuseabi.OpWrite: of[fuseabi.WriteIn](0, true),
	fuseabi.OpStatfs: of[none](0, false), fuseabi.OpRelease: of[fuseabi.ReleaseIn](0, false), fuseabi.OpFsync: of[fuseabi.FsyncIn](0, false),
	fuseabi.OpSetxattr: of[fuseabi.SetxattrIn](1, true), fuseabi.OpGetxattr: of[fuseabi.GetxattrIn](1, false), fuseabi.OpListxattr: of[fuseabi.GetxattrIn](0, false),
	fuseabi.OpRemovexattr: of[none](1, false), fuseabi.OpFlush: of[fuseabi.FlushIn](0, false), fuseabi.OpInit: of[fuseabi.InitIn](0, false),
	fuseabi.OpOpendir: of[fuseabi.OpenIn](0, false), fuseabi.OpReaddir: of[fuseabi.ReadIn](0, false), fuseabi.OpReleasedir: of[fuseabi.ReleaseIn](0, false),
	fuseabi.OpFsyncdir: of[fuseabi.FsyncIn](0, false), fuseabi.OpGetlk: of[fuseabi.LkIn](0, false), fuseabi.OpSetlk: of[fuseabi.LkIn](0, false),
	fuseabi.OpSetlkw: of[fuseabi.LkIn](0, false), fuseabi.OpAccess: of[fuseabi.AccessIn](0, false), fuseabi.OpCreate: of[fuseabi.CreateIn](1, false),
	fuseabi.OpInterrupt: of[fuseabi.InterruptIn](0, false), fuseabi.OpBmap: of[none](0, true), fuseabi.OpDestroy: of[none](0, false),
	fuseabi.OpIoctl: of[fuseabi.IoctlIn](0, true), fuseabi.OpPoll: of[none](0, true), fuseabi.OpNotifyReply: of[none](0, true),
	fuseabi.OpBatchForget: of[fuseabi.BatchForgetIn](0, true), fuseabi.OpFallocate: of[fuseabi.FallocateIn](0, false),
	fuseabi.OpReaddirplus: of[fuseabi.ReadIn](0, false), fuseabi.OpRename2: of[fuseabi.Rename2In](2, false), fuseabi.OpLseek: of[fuseabi.LseekIn](0, false),
	fuseabi.OpCopyFileRange: of[fuseabi.CopyFileRangeIn](0, false), fuseabi.OpSetupmapping: of[none](0, true), fuseabi.OpRemovemapping: of[none](0, true),
	fuseabi.OpSyncfs: of[fuseabi.SyncfsIn](0, false), fuseabi.OpTmpfile: of[fuseabi.CreateIn](1, false), fuseabi.OpStatx: of[fuseabi.StatxIn](0, false),
	fuseabi.OpCopyFileRange64: of[fuseabi.CopyFileRangeIn](0, false),
}

// FuzzWellFormed has gofuzz fill the structure of every opcode's request with hostile values, driven by the fuzzer's bytes, and serves a
// session of them.
func FuzzWellFormed(f *testing.F) {
	for i := range byte(24) {
		seed := make([]byte, 64)
		for j := range seed {
			seed[j] = i*37 + byte(j)*i
		}
		f.Add(i, seed)
	}
	f.Fuzz(func(t *testing.T, which byte, data []byte) {
		if len(data) < 8 {
			return
		}
		noLargeFiles()
		r := newRig(t, which)
		defer r.finish()
		r.init(^fuseabi.InitFlags(0))
		g := &chooser{rig: r}
		g.z = gofuzz.NewFromGoFuzz(data).NilChance(0).Funcs(
			func(v *uint64, c gofuzz.Continue) { *v = g.value(c) },
			func(v *uint32, c gofuzz.Continue) { *v = uint32(g.value(c)) },
			func(v *uint16, c gofuzz.Continue) { *v = uint16(g.value(c)) },
		)
		g.z.Funcs(func(p **chooser, c gofuzz.Continue) { g.c = c; *p = g })
		var self *chooser
		g.z.Fuzz(&self) // takes the source of random numbers along
		r.cut = cutting(g.c.RandUint64() % 5)
		for range 4 + g.c.Intn(40) {
			op := fuseabi.Opcode(g.c.Intn(int(fuseabi.OpcodeEnd)))
			if shapes[op].make == nil || op == fuseabi.OpDestroy && g.c.Intn(8) != 0 {
				op = []fuseabi.Opcode{fuseabi.OpLookup, fuseabi.OpOpen, fuseabi.OpOpendir, fuseabi.OpCreate}[g.c.Intn(4)]
			}
			raw := shapes[op].make(g, op)
			room := fuseabi.OutHeaderSize + replySize[op]
			switch op {
			case fuseabi.OpRead, fuseabi.OpReaddir, fuseabi.OpReaddirplus:
				if size := binary.LittleEndian.Uint32(raw[56:]); size <= 1<<20 {
					room += int(size)
				}
			case fuseabi.OpGetxattr, fuseabi.OpListxattr:
				room += int(max(8, min(binary.LittleEndian.Uint32(raw[40:]), 1<<17)))
			case fuseabi.OpReadlink:
				room += 4096
			}
			switch g.c.Intn(32) {
			case 0:
				room = g.c.Intn(room + 1)
			case 1:
				binary.LittleEndian.PutUint32(raw, uint32(g.value(g.c)))
			case 2:
				raw = raw[:g.c.Intn(len(raw)+1)]
			}
			r.serve(raw, room)
		}
	})
}

// FuzzMemoryChanges serves a request while another processor changes its memory between two versions: whatever is read, it is one of
// them at each place, there is no panic, and the answer stays within its room.
func FuzzMemoryChanges(f *testing.F) {
	f.Add(uint16(fuseabi.OpLookup), uint16(40), uint16(0), uint64(42)^uint64(1<<16), []byte("f\x00"))
	f.Add(uint16(fuseabi.OpLookup), uint16(42), uint16(40), uint64(0x2f00), []byte("f\x00"))
	f.Add(uint16(fuseabi.OpSetxattr), uint16(64), uint16(40), uint64(0xffff), []byte("\x05\x00\x00\x00\x00\x00\x00\x00user.a\x00value"))
	f.Add(uint16(fuseabi.OpBatchForget), uint16(64), uint16(40), uint64(0xffffff), []byte("\x01\x00\x00\x00\x00\x00\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"))
	f.Add(uint16(fuseabi.OpWrite), uint16(85), uint16(56), uint64(0xffffff), append(make([]byte, 16), append([]byte{5}, make([]byte, 28)...)...))
	f.Add(uint16(fuseabi.OpMkdir), uint16(80), uint16(36), uint64(0xffff), append([]byte("\xed\x01\x00\x00\x00\x00\x00\x00m\x00\x00\x00\x00\x00\x00\x00"), groups(1)...))
	f.Add(uint16(fuseabi.OpGetattr), uint16(56), uint16(4), uint64(3^26), make([]byte, 16))
	f.Fuzz(func(t *testing.T, op, room, at uint16, flip uint64, rest []byte) {
		if len(rest) > 4096 {
			return
		}
		r := newRig(t, 0)
		defer r.finish()
		r.init(^fuseabi.InitFlags(0))
		r.vague = true
		raw := encode(fuseabi.Opcode(op), 1, 77, &none{}, rest, nil)
		at = at % uint16(len(raw)) &^ 3
		// Memory of its own, which the race detector does not know.
		mem, err := unix.Mmap(-1, 0, 1<<17, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		require.NoError(t, err)
		defer unix.Munmap(mem)
		copy(mem, raw)
		in, out := mem[:len(raw)], mem[1<<16:][:room]
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0))))
		var stop atomic.Bool
		began, gone := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(gone)
			close(began)
			word := mem[at : at+4]
			for v := uint32(flip); !stop.Load(); {
				binary.LittleEndian.PutUint32(word, binary.LittleEndian.Uint32(word)^v)
			}
		}()
		<-began // a thread that has yet to wake changes nothing
		var worst uint32
		var panicked any
		r.within(func(w *fuse.Worker) {
			defer func() { panicked = recover() }()
			for range 300 {
				r.served++
				worst = max(worst, w.Serve(whole(in), whole(out)))
			}
		})
		stop.Store(true)
		<-gone
		require.Nil(t, panicked)
		require.LessOrEqual(t, int(worst), int(room))
		require.False(t, bytes.Contains(mem, []byte(secret)))
	})
}
