package passthrough

import (
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
)

// waiters are blocking lock requests under way.
type waiters struct{}

func (w *waiters) cancelAll() {}

// Lock implements fuse.Thread. Without locks offered in INIT, Linux does not ask: locks hold within the guest.
func (t *thread) Lock(c *fuse.Caller, in *fuseabi.LkIn, out *fuseabi.LkOut) unix.Errno {
	return unix.ENOSYS
}

// Interrupt implements fuse.Thread.
func (t *thread) Interrupt(unique uint64) {}

func (fs *FS) unlockOwner(t *thread, f *file, node, owner uint64)     {}
func (fs *FS) releaseLocks(t *thread, f *file, in *fuseabi.ReleaseIn) {}
