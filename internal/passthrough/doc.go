// Package passthrough is the file system that a guest sees: a directory of the host, as a local one would behave.
//
// # Inodes
//
// A node that the guest knows is an inode: mount, device and inode number, birth time, lookup
// count, and a way to the file. LOOKUP of a known file costs one statx. A new one gets a way that
// holds whatever becomes of its name: an export handle where the kernel lets us open them, a
// descriptor (O_PATH) otherwise, and directories get the descriptor in either case. What
// READDIRPLUS lists is known by parent and name at first, and gets its way some milliseconds later
// (anchor.go).
//
// As long as a descriptor is open its inode number is not used again, so the number tells files
// apart. Without one, the birth time does, or the export handle where that is missing or has
// changed. Cold descriptors are closed when more than the budget are open, those of files first,
// and opened again by handle, by an open file of the guest's, or by parent and name. Names are
// checked before a descriptor is closed and after it was opened again: what is not the same file
// answers ESTALE, upon which Linux looks the name up again. Only a file whose descriptor the budget
// did not allow, that has no handle, and that the host renamed afterwards, goes stale; Stats counts
// such answers.
//
// Descriptors on mounts below the root are closed a second after their last use, if handles lead
// back: the host may want to unmount.
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
// inode.slow, then a shard of table.keys, then a shard of table.slots, then a shard of the
// descriptor cache. inode.slow of a child comes before that of its parent. No lock is held during a
// system call but a directory stream's, and the one that runs what no request waits for
// (background.go).
package passthrough
