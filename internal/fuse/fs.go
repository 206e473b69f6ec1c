package fuse

import (
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuseabi"
)

// Name is a checked name or path with its terminating NUL, in the worker's buffer: valid until the call returns.
type Name []byte

// String is the name without its NUL.
func (n Name) String() string { return string(n[:len(n)-1]) }

// Ptr is what system calls take.
func (n Name) Ptr() *byte { return &n[0] }

// Dots reports whether the name is "." or "..".
func (n Name) Dots() bool { return n[0] == '.' && (len(n) == 2 || len(n) == 3 && n[1] == '.') }

// Caller is who in the guest asked.
type Caller struct {
	UID, GID, PID uint32
	Unique        uint64           // the request's number, named by INTERRUPT
	Groups        []uint32         // supplementary groups that the guest sent along (CREATE_SUPP_GROUP)
	Secctx        []fuseabi.Secctx // security labels for what is created (SECURITY_CTX)
}

// Filesystem is what a Session serves. All methods may be called from several threads at once.
type Filesystem interface {
	// Init starts a session: it forgets all inodes and open files and returns which of the offered flags to use.
	Init(offered fuseabi.InitFlags) fuseabi.InitFlags
	// NewThread makes the file system's side of one of a queue's workers. It is called on the
	// thread that will make all calls to it.
	NewThread(queue int) (Thread, error)
	// Reset forgets all inodes and open files.
	Reset()
	// Interrupt ends the calls of a queue's workers that wait for something a guest may never do,
	// such as a lock to be given up.
	Interrupt(queue int)
}

// Thread is one worker's side of a Filesystem. Errno 0 is success. Structures named In start with the request's header.
type Thread interface {
	// Changing is called before and after each request that may change names or attributes.
	Changing()
	// Tidy does a little of what requests have left to be done when nobody waits, and reports whether more of it is left.
	Tidy() (more bool)
	// Ahead does a little of what the next request is likely to ask for, while there is none, and reports whether more of it is left.
	Ahead() (more bool)

	// Lookup finds by "." the node itself, of whatever type, and by ".." the directory that a
	// directory lies in, which is never above the root.
	Lookup(parent uint64, name Name, out *fuseabi.EntryOut) unix.Errno
	Forget(node, n uint64)
	Getattr(in *fuseabi.GetattrIn, out *fuseabi.AttrOut) unix.Errno
	Statx(in *fuseabi.StatxIn, out *fuseabi.StatxOut) unix.Errno
	Setattr(c *Caller, in *fuseabi.SetattrIn, out *fuseabi.AttrOut) unix.Errno
	Readlink(node uint64, buf []byte) (int, unix.Errno)
	Access(c *Caller, node uint64, mask uint32) unix.Errno
	Statfs(node uint64, out *fuseabi.StatfsOut) unix.Errno
	Syncfs(node uint64) unix.Errno

	Symlink(c *Caller, parent uint64, name, target Name, out *fuseabi.EntryOut) unix.Errno
	Mknod(c *Caller, in *fuseabi.MknodIn, name Name, out *fuseabi.EntryOut) unix.Errno
	Mkdir(c *Caller, in *fuseabi.MkdirIn, name Name, out *fuseabi.EntryOut) unix.Errno
	Create(c *Caller, in *fuseabi.CreateIn, name Name, out *fuseabi.CreateOut) unix.Errno
	Tmpfile(c *Caller, in *fuseabi.CreateIn, out *fuseabi.CreateOut) unix.Errno
	Link(node, newParent uint64, newName Name, out *fuseabi.EntryOut) unix.Errno
	Unlink(parent uint64, name Name) unix.Errno
	Rmdir(parent uint64, name Name) unix.Errno
	Rename(c *Caller, parent uint64, name Name, newParent uint64, newName Name, flags uint32) unix.Errno

	Open(in *fuseabi.OpenIn, out *fuseabi.OpenOut) unix.Errno
	// Read moves file data into the guest's own segments; fewer bytes than there is room for mean the end of the file.
	Read(in *fuseabi.ReadIn, dst []unix.Iovec) (int, unix.Errno)
	Write(in *fuseabi.WriteIn, src []unix.Iovec) (int, unix.Errno)
	Flush(in *fuseabi.FlushIn) unix.Errno
	Fsync(in *fuseabi.FsyncIn, dir bool) unix.Errno
	Release(in *fuseabi.ReleaseIn, dir bool) unix.Errno
	Fallocate(in *fuseabi.FallocateIn) unix.Errno
	Lseek(in *fuseabi.LseekIn, out *fuseabi.LseekOut) unix.Errno
	CopyFileRange(in *fuseabi.CopyFileRangeIn) (uint64, unix.Errno)
	// Lock is GETLK, SETLK and SETLKW, told apart by the header's opcode; out is nil but for GETLK.
	Lock(c *Caller, in *fuseabi.LkIn, out *fuseabi.LkOut) unix.Errno
	Interrupt(unique uint64)

	Opendir(in *fuseabi.OpenIn, out *fuseabi.OpenOut) unix.Errno
	// Readdir fills buf with whole entries: struct fuse_direntplus if plus, struct fuse_dirent otherwise.
	Readdir(in *fuseabi.ReadIn, plus bool, buf []byte) (int, unix.Errno)

	// Getxattr and Listxattr with an empty buf return the size that is needed.
	Getxattr(node uint64, name Name, buf []byte) (int, unix.Errno)
	Listxattr(node uint64, buf []byte) (int, unix.Errno)
	Setxattr(node uint64, name Name, value []byte, flags, extFlags uint32) unix.Errno
	Removexattr(node uint64, name Name) unix.Errno

	// Abort is called after a call ended in a panic: credentials and buffers have to be fit for the next call.
	Abort()
	// Close is called when the thread ends, on that thread.
	Close()
}
