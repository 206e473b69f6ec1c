package frontend

import "fmt"

// Opcode is a FUSE operation's number (include/uapi/linux/fuse.h, enum fuse_opcode). The harness keeps its own table: what it
// says to a daemon must not change with the daemon's.
type Opcode uint32

// The operations.
const (
	OpLookup        Opcode = 1
	OpForget        Opcode = 2
	OpGetattr       Opcode = 3
	OpSetattr       Opcode = 4
	OpReadlink      Opcode = 5
	OpSymlink       Opcode = 6
	OpMknod         Opcode = 8
	OpMkdir         Opcode = 9
	OpUnlink        Opcode = 10
	OpRmdir         Opcode = 11
	OpRename        Opcode = 12
	OpLink          Opcode = 13
	OpOpen          Opcode = 14
	OpRead          Opcode = 15
	OpWrite         Opcode = 16
	OpStatfs        Opcode = 17
	OpRelease       Opcode = 18
	OpFsync         Opcode = 20
	OpSetxattr      Opcode = 21
	OpGetxattr      Opcode = 22
	OpListxattr     Opcode = 23
	OpRemovexattr   Opcode = 24
	OpFlush         Opcode = 25
	OpInit          Opcode = 26
	OpOpendir       Opcode = 27
	OpReaddir       Opcode = 28
	OpReleasedir    Opcode = 29
	OpFsyncdir      Opcode = 30
	OpGetlk         Opcode = 31
	OpSetlk         Opcode = 32
	OpSetlkw        Opcode = 33
	OpAccess        Opcode = 34
	OpCreate        Opcode = 35
	OpInterrupt     Opcode = 36
	OpBmap          Opcode = 37
	OpDestroy       Opcode = 38
	OpIoctl         Opcode = 39
	OpPoll          Opcode = 40
	OpNotifyReply   Opcode = 41
	OpBatchForget   Opcode = 42
	OpFallocate     Opcode = 43
	OpReaddirplus   Opcode = 44
	OpRename2       Opcode = 45
	OpLseek         Opcode = 46
	OpCopyFileRange Opcode = 47
	OpSetupmapping  Opcode = 48
	OpRemovemapping Opcode = 49
	OpSyncfs        Opcode = 50
	OpTmpfile       Opcode = 51
	OpStatx         Opcode = 52
)

var opcodeNames = map[Opcode]string{
	OpLookup: "LOOKUP", OpForget: "FORGET", OpGetattr: "GETATTR", OpSetattr: "SETATTR", OpReadlink: "READLINK", OpSymlink: "SYMLINK",
	OpMknod: "MKNOD", OpMkdir: "MKDIR", OpUnlink: "UNLINK", OpRmdir: "RMDIR", OpRename: "RENAME", OpLink: "LINK", OpOpen: "OPEN",
	OpRead: "READ", OpWrite: "WRITE", OpStatfs: "STATFS", OpRelease: "RELEASE", OpFsync: "FSYNC", OpSetxattr: "SETXATTR",
	OpGetxattr: "GETXATTR", OpListxattr: "LISTXATTR", OpRemovexattr: "REMOVEXATTR", OpFlush: "FLUSH", OpInit: "INIT",
	OpOpendir: "OPENDIR", OpReaddir: "READDIR", OpReleasedir: "RELEASEDIR", OpFsyncdir: "FSYNCDIR", OpGetlk: "GETLK", OpSetlk: "SETLK",
	OpSetlkw: "SETLKW", OpAccess: "ACCESS", OpCreate: "CREATE", OpInterrupt: "INTERRUPT", OpBmap: "BMAP", OpDestroy: "DESTROY",
	OpIoctl: "IOCTL", OpPoll: "POLL", OpNotifyReply: "NOTIFY_REPLY", OpBatchForget: "BATCH_FORGET", OpFallocate: "FALLOCATE",
	OpReaddirplus: "READDIRPLUS", OpRename2: "RENAME2", OpLseek: "LSEEK", OpCopyFileRange: "COPY_FILE_RANGE",
	OpSetupmapping: "SETUPMAPPING", OpRemovemapping: "REMOVEMAPPING", OpSyncfs: "SYNCFS", OpTmpfile: "TMPFILE", OpStatx: "STATX",
}

// String is the operation's name in fuse.h, without its prefix.
func (o Opcode) String() string {
	if s, ok := opcodeNames[o]; ok {
		return s
	}
	return fmt.Sprintf("opcode %d", uint32(o))
}

// NoReply reports whether the operation has no answer: the device completes it with length 0.
func (o Opcode) NoReply() bool {
	return o == OpForget || o == OpBatchForget || o == OpInterrupt || o == OpNotifyReply
}
