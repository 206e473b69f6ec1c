package daemon_test

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
	"virtiofsd/internal/fuseabi"
)

const opcodesPage = "../../docs/generated/opcodes.md"

// optionSets are the columns of the table of opcodes. What they answer otherwise than the first, the defaults, is told.
var optionSets = []string{
	"",
	"--xattr",
	"--posix-acl=always",
	"--security-label=always",
	"--flock",
	"--posix-lock",
	"--writeback",
	"--readonly",
	"--no-readdirplus",
	"--no-killpriv-v2",
	"--no-announce-submounts",
	"--cache=always",
	"--cache=metadata",
	"--cache=never",
	"--cache=never --allow-mmap",
	"--allow-direct-io",
	"--translate-uid=map:0:1000:1",
}

// flockRow stands for SETLK where it is flock(2) that asks.
const flockRow = fuseabi.OpcodeEnd + fuseabi.OpSetlk

// place orders the rows.
func place(op fuseabi.Opcode) int { return 2*int(op%fuseabi.OpcodeEnd) + int(op/fuseabi.OpcodeEnd) }

// ask sends one well-formed request of each opcode that Linux may send, and returns the errno of each answer. Requests without an answer
// are followed by one that has one.
func ask(t *testing.T, h *host, f *frontend.FUSE, flags fuseabi.InitFlags) map[fuseabi.Opcode]unix.Errno {
	t.Helper()
	answers := map[fuseabi.Opcode]unix.Errno{}
	do := func(op fuseabi.Opcode, node uint64, args []byte, out int, more ...[]byte) []byte {
		r := frontend.Request{Op: frontend.Opcode(op % fuseabi.OpcodeEnd), Node: node, Args: args, OutArgs: out}
		if len(more) > 0 {
			r.Data = more[0]
		}
		if op.NoReply() {
			r.NoOut = true
		}
		reply, err := f.Do(r)
		require.NoError(t, err, op)
		answers[op] = reply.Error
		return append(reply.Body, make([]byte, 256)...)
	}
	data := func(op fuseabi.Opcode, node uint64, args []byte, room int) {
		reply, err := f.Do(frontend.Request{Op: frontend.Opcode(op), Node: node, Args: args, OutData: room})
		require.NoError(t, err, op)
		answers[op] = reply.Error
	}
	body := func() frontend.Body { return nil }
	const dir = frontend.RootNode
	node := func(name string) uint64 {
		e, err := f.Lookup(dir, name)
		require.NoError(t, err, name)
		return e.Node
	}

	do(fuseabi.OpLookup, dir, body().Name("file"), frontend.EntrySize)
	file, link := node("file"), node("link")
	do(fuseabi.OpGetattr, file, make([]byte, 16), frontend.AttrOutSize)
	do(fuseabi.OpStatx, file, body().U32(0, 0).U64(0).U32(0, 0x7ff), 288)
	do(fuseabi.OpReadlink, link, nil, 4096)
	do(fuseabi.OpStatfs, dir, nil, 80)
	do(fuseabi.OpAccess, file, body().U32(4, 0), 0)
	do(fuseabi.OpSyncfs, dir, body().U64(0), 0)
	fh := do(fuseabi.OpOpen, file, body().U32(unix.O_RDONLY, 0), frontend.OpenOutSize)[:8]
	handle := func() frontend.Body { return append(frontend.Body(nil), fh...) }
	data(fuseabi.OpRead, file, append(handle(), frontend.ReadArgs(0, 0, 4096)[8:]...), 4096)
	do(fuseabi.OpLseek, file, handle().U64(0).U32(unix.SEEK_DATA, 0), 8)
	do(fuseabi.OpGetlk, file, handle().U64(1, 0, 10).U32(unix.F_WRLCK, 1, 0, 0), 24)
	do(fuseabi.OpSetlk, file, handle().U64(1, 0, 10).U32(unix.F_RDLCK, 1, 0, 0), 0)
	do(fuseabi.OpSetlkw, file, handle().U64(1, 0, 10).U32(unix.F_UNLCK, 1, 0, 0), 0)
	do(flockRow, file, handle().U64(1, 0, math.MaxInt64).U32(unix.F_RDLCK, 1, fuseabi.LkFlock, 0), 0)
	do(fuseabi.OpIoctl, file, handle().U32(0, 0).U64(0).U32(0, 0), 16)
	do(fuseabi.OpPoll, file, handle().U64(0).U32(0, 0), 8)
	do(fuseabi.OpBmap, file, body().U64(0).U32(512, 0), 8)
	do(fuseabi.OpFlush, file, handle().U32(0, 0).U64(0), 0)
	do(fuseabi.OpFsync, file, handle().U32(0, 0), 0)
	do(fuseabi.OpRelease, file, handle().U32(0, 0).U64(0), 0)

	dh := do(fuseabi.OpOpendir, dir, body().U32(unix.O_RDONLY|unix.O_DIRECTORY, 0), frontend.OpenOutSize)[:8]
	handle = func() frontend.Body { return append(frontend.Body(nil), dh...) }
	data(fuseabi.OpReaddir, dir, append(handle(), frontend.ReadArgs(0, 0, 4096)[8:]...), 4096)
	data(fuseabi.OpReaddirplus, dir, append(handle(), frontend.ReadArgs(0, 0, 4096)[8:]...), 4096)
	do(fuseabi.OpFsyncdir, dir, handle().U32(0, 0), 0)
	do(fuseabi.OpReleasedir, dir, handle().U32(0, 0).U64(0), 0)

	create := func() frontend.Body { return body().U32(unix.O_CREAT|unix.O_RDWR, unix.S_IFREG|0o644, 0, 0) }
	made := do(fuseabi.OpCreate, dir, create().Name("made"), frontend.EntrySize+frontend.OpenOutSize)
	target := uint64(0)
	if answers[fuseabi.OpCreate] == 0 {
		target = node("made")
	} else {
		target = file
	}
	fh = made[frontend.EntrySize:][:8]
	handle = func() frontend.Body { return append(frontend.Body(nil), fh...) }
	do(fuseabi.OpWrite, target, append(handle(), frontend.ReadArgs(0, 0, 4)[8:]...), 8, []byte("text"))
	do(fuseabi.OpFallocate, target, handle().U64(0, 4096).U32(0, 0), 0)
	for _, op := range []fuseabi.Opcode{fuseabi.OpCopyFileRange, fuseabi.OpCopyFileRange64} {
		do(op, target, append(append(handle().U64(0, target), fh...), body().U64(8192, 4, 0)...), 8)
	}
	do(fuseabi.OpSetattr, target, append(append(body().U32(fuseabi.FattrMode, 0), make([]byte, 60)...), body().U32(0o600, 0, 0, 0, 0)...), frontend.AttrOutSize)
	do(fuseabi.OpTmpfile, dir, create().Name("/"), frontend.EntrySize+frontend.OpenOutSize)
	do(fuseabi.OpMknod, dir, body().U32(unix.S_IFREG|0o644, 0, 0, 0).Name("node"), frontend.EntrySize)
	do(fuseabi.OpMkdir, dir, body().U32(0o755, 0).Name("dir"), frontend.EntrySize)
	do(fuseabi.OpSymlink, dir, body().Name("symlink").Name("to"), frontend.EntrySize)
	do(fuseabi.OpLink, dir, body().U64(file).Name("hard"), frontend.EntrySize)
	do(fuseabi.OpRename, dir, body().U64(dir).Name("node").Name("renamed"), 0)
	do(fuseabi.OpRename2, dir, body().U64(dir).U32(unix.RENAME_NOREPLACE, 0).Name("renamed").Name("again"), 0)
	value := body().U32(1, 0)
	if flags&fuseabi.SetxattrExt != 0 {
		value = value.U32(0, 0)
	}
	do(fuseabi.OpSetxattr, target, value.Name("user.a").Name(""), 0)
	do(fuseabi.OpGetxattr, file, body().U32(0, 0).Name("user.b"), 8)
	do(fuseabi.OpListxattr, file, body().U32(0, 0), 8)
	do(fuseabi.OpRemovexattr, target, body().Name("user.a"), 0)
	do(fuseabi.OpUnlink, dir, body().Name("hard"), 0)
	do(fuseabi.OpRmdir, dir, body().Name("dir"), 0)
	do(fuseabi.OpSetupmapping, file, make([]byte, 40), 0)
	do(fuseabi.OpRemovemapping, file, make([]byte, 24), 0)
	do(fuseabi.OpInterrupt, 0, body().U64(1), 0)
	do(fuseabi.OpForget, link, body().U64(1), 0)
	do(fuseabi.OpBatchForget, 0, body().U32(0, 0), 0)
	do(fuseabi.OpNotifyReply, 0, nil, 0)
	do(fuseabi.OpInit, 0, frontend.InitArgs(7, 45, 0), frontend.InitOutSize)
	do(fuseabi.OpDestroy, 0, nil, 0)
	for _, name := range []string{"made", "again", "renamed", "node", "symlink", "hard", "dir"} {
		os.Remove(filepath.Join(h.share, name)) // what a column left
	}
	return answers
}

// word is an answer in the table. The errnos of a well-formed request that is carried out, but finds nothing, count as an answer.
func word(op fuseabi.Opcode, e unix.Errno) string {
	switch {
	case op.NoReply():
		return "taken"
	case e == 0, op == fuseabi.OpGetxattr && e == unix.ENODATA:
		return "yes"
	}
	return unix.ErrnoName(e)
}

// TestOpcodesPageIsUpToDate has the daemon answer each opcode with each set of options, and compares what it says with the page.
func TestOpcodesPageIsUpToDate(t *testing.T) {
	type measured struct {
		flags   fuseabi.InitFlags
		answers map[fuseabi.Opcode]unix.Errno
	}
	all := make([]measured, len(optionSets))
	for i, c := range optionSets {
		h := newHost(t)
		require.NoError(t, os.Symlink("file", filepath.Join(h.share, "link")))
		h.start(t, launcher{args: "--sandbox=none " + c})
		d, err := frontend.Connect(t.Context(), frontend.Config{Socket: h.socket})
		require.NoError(t, err)
		f := frontend.NewFUSE(d)
		init, err := f.Init(^uint64(0))
		require.NoError(t, err)
		all[i] = measured{fuseabi.InitFlags(init.Flags), ask(t, h, f, fuseabi.InitFlags(init.Flags))}
		d.Close()
	}

	var b strings.Builder
	b.WriteString(`<!-- Generated by go test ./internal/daemon -run TestOpcodesPageIsUpToDate -update. Do not edit. -->
# What is answered, and what is negotiated

The daemon was asked one well-formed request of each opcode, by root, with each of these sets of options; **yes** is success, an errno is the
answer, and *taken* has no answer by the protocol. The guest's kernel takes ENOSYS for "never ask again".

## Opcodes

`)
	base := all[0]
	b.WriteString("| opcode | with the defaults | otherwise |\n|---|---|---|\n")
	for _, op := range slices.SortedFunc(maps.Keys(base.answers), func(a, b fuseabi.Opcode) int { return place(a) - place(b) }) {
		was := word(op, base.answers[op])
		var other []string
		for i, c := range optionSets[1:] {
			if now := word(op, all[i+1].answers[op]); now != was {
				other = append(other, fmt.Sprintf("`%s`: %s", c, now))
			}
		}
		name := fmt.Sprintf("%s (%d)", op, op)
		if op == flockRow {
			name = "SETLK of flock(2)"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, was, strings.Join(other, ", "))
	}
	b.WriteString("\nEvery other opcode is answered with ENOSYS.\n\n## Flags of INIT\n\nWhere the guest offers all flags, these are taken:\n\n| flag | with the defaults | otherwise |\n|---|---|---|\n")
	for bit := range 64 {
		flag := fuseabi.InitFlags(1) << bit
		say := func(f fuseabi.InitFlags) string {
			if f&flag != 0 {
				return "taken"
			}
			return "not taken"
		}
		was := say(base.flags)
		var other []string
		for i, c := range optionSets[1:] {
			if now := say(all[i+1].flags); now != was {
				other = append(other, fmt.Sprintf("`%s`: %s", c, now))
			}
		}
		if base.flags&flag != 0 || len(other) > 0 {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", flag, was, strings.Join(other, ", "))
		}
	}
	if *update {
		require.NoError(t, os.WriteFile(opcodesPage, []byte(b.String()), 0o644))
	}
	got, err := os.ReadFile(opcodesPage)
	require.NoError(t, err, "remedy: make fix-docs")
	assert.Equal(t, b.String(), string(got), "remedy: make fix-docs")
}
