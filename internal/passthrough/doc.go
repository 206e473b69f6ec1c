// Package passthrough is the file system that a guest sees: a directory of the host, as a local one would behave.
//
// # Inodes
//
// A node that the guest knows is an inode: identity (mount id, device, inode number, birth time), lookup count, and a way to
// the file. LOOKUP costs one statx: a known identity gets one more reference, a new one an entry with parent and name. A
// descriptor (O_PATH) is opened when something other than its attributes is wanted of it, and then compared with the
// identity: what is not the same file any more answers ESTALE, upon which Linux looks the name up again. Cold
// descriptors are closed when more than the budget are open, and opened again by export handle where the kernel lets us, by
// parent and name otherwise. So a guest may know any number of files with few descriptors.
//
// An inode's descriptor, the number of calls that use it and whether the inode is still in the table share one atomic word
// (inode.state), so that using a descriptor takes no lock and none is closed under a call that uses it.
//
// # What a guest can not do
//
// Names have no '/', ".", "..", and links are never followed: every step is a system call on a directory's descriptor and one
// name. Only regular files and directories are ever opened for reading or writing, by way of their O_PATH descriptor whose
// type is known, never by name: a device node that a guest makes opens nothing here (CVE-2020-35517). What is created is
// created with the caller's ids and groups and without CAP_FSETID (CVE-2022-0358); a guard gives the thread its own
// back. The root can not be forgotten, and a count can not go below zero.
//
// # Threads
//
// A thread has a working directory (/proc/self/fd, for extended attributes of O_PATH descriptors) and a umask of its own,
// and scratch memory for system call arguments, so that the hot operations allocate nothing.
//
// # Lock order
//
// inode.slow, then a shard of table.keys, then a shard of table.slots, then a shard of the descriptor cache. inode.slow of a
// child comes before that of its parent. No lock is held during a system call but inode.slow (re-opening) and a directory
// stream's.
package passthrough
