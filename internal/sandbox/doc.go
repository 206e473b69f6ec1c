// Package sandbox decides what confines the daemon, and does it.
//
// It has three parts. [Gather] reads [Facts]: who we are and what this host and caller allow. [Make] turns options and facts into a
// [Plan]; it is pure, so a plan can be printed and tested without any privilege. [Enter] executes the steps of a plan, in order, and
// nothing else.
//
// # Modes
//
// namespace: the daemon starts itself again as a child in new namespaces; a user namespace is among them when the caller lacks
// CAP_SYS_ADMIN or asks for id maps. The child makes the shared directory its root by pivot_root and detaches the old one.
//
// pivot_root: for callers who have set up user, pid and network namespaces: the daemon makes a mount namespace only, so that it moves
// nobody else's root, and does the same.
//
// chroot: changes the root of this process, then gives up CAP_SYS_CHROOT: there is no way back for a process without descriptors
// to the outside.
//
// none: changes no root. Containment rests on the file system layer, which never follows a name out of the share.
//
// In every mode: supplementary groups are dropped where the kernel lets us, capabilities are reduced to what the options need,
// no_new_privs is set, and the system call filter is on in every thread before the first request.
//
// # Order
//
// Mounts, root, groups, bounding set, capabilities, no_new_privs, filter: each step needs what the next one takes away.
//
// Sources: user_namespaces(7), pivot_root(2), capabilities(7), fsopen and mount_setattr in the kernel's fs/namespace.c.
package sandbox
