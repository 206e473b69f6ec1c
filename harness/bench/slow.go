package bench

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// A slow disk: a file system of one file whose reads take a time each and keep nothing in the host's cache, however many there are at once.
const (
	slowName = "slow" // where it is mounted in the share
	slowFile = "disk"
	slowSize = 64 << 20
	slowTime = 10 * time.Millisecond
)

type slowRoot struct{ fs.Inode }

var _ fs.NodeOnAdder = (*slowRoot)(nil)

func (r *slowRoot) OnAdd(ctx context.Context) {
	r.AddChild(slowFile, r.NewPersistentInode(ctx, &slowNode{}, fs.StableAttr{Mode: fuse.S_IFREG}), false)
}

type slowNode struct{ fs.Inode }

var (
	_ fs.NodeGetattrer = (*slowNode)(nil)
	_ fs.NodeOpener    = (*slowNode)(nil)
	_ fs.NodeReader    = (*slowNode)(nil)
)

func (*slowNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o644, slowSize
	return 0
}

func (*slowNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (*slowNode) Read(_ context.Context, _ fs.FileHandle, dst []byte, _ int64) (fuse.ReadResult, syscall.Errno) {
	time.Sleep(slowTime)
	return fuse.ReadResultData(dst), 0
}

// mountSlow mounts the disk at dir until the returned function is called. Processes that have mount namespaces of their own keep it longer.
func mountSlow(dir string) (unmount func(), err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	srv, err := fs.Mount(dir, &slowRoot{}, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "slow", AllowOther: true}})
	if err != nil {
		return nil, fmt.Errorf("mount the slow disk at %s: %w; remedy: run as root, where there is /dev/fuse", dir, err)
	}
	return func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH); srv.Wait() }, nil
}
