package vmimages

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// Paths in the initramfs that the agent knows.
const (
	ModuleDir  = "lib/modules"      // holds NAME.ko
	ModuleList = "lib/modules/list" // names, one a line, in the order to load them
	Busybox    = "bin/busybox"
)

// writeInitrd makes an initramfs (cpio "newc", Documentation/driver-api/early-userspace/buffer-format.rst in Linux): the agent as
// /init, the modules, busybox ("" for none) and the mount points. It is not compressed: a guest without acceleration unpacks more slowly than it copies.
func writeInitrd(path, agent, busybox string, modules []module) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".initrd-*")
	if err != nil {
		return fmt.Errorf("make the initramfs: %w", err)
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	buf := bufio.NewWriterSize(tmp, 1<<20)
	w := cpio.NewWriter(buf)
	put := func(name string, mode cpio.FileMode, body []byte) {
		if err == nil {
			err = w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: int64(len(body)), Links: 1})
		}
		if err == nil && len(body) > 0 {
			_, err = w.Write(body)
		}
	}
	file := func(name, src string) {
		if err != nil {
			return
		}
		var b []byte
		if b, err = os.ReadFile(src); err == nil {
			put(name, cpio.TypeReg|0o755, b)
		}
	}
	for _, d := range []string{"bin", "dev", "etc", "lib", ModuleDir, "mnt", "proc", "sys", "tmp", "root"} {
		put(d, cpio.TypeDir|0o755, nil)
	}
	put("etc/passwd", cpio.TypeReg|0o644, []byte("root:x:0:0:root:/root:/bin/sh\nuser1:x:1001:1001::/tmp:/bin/sh\nuser2:x:1002:1002::/tmp:/bin/sh\n"))
	put("etc/group", cpio.TypeReg|0o644, []byte("root:x:0:\nuser1:x:1001:\nuser2:x:1002:\nshared:x:2001:user1,user2\n"))
	file("init", agent)
	if busybox != "" {
		file(Busybox, busybox)
		put("bin/sh", cpio.TypeSymlink|0o777, []byte("busybox"))
	}
	var names []string
	for _, m := range modules {
		put(filepath.Join(ModuleDir, m.name+".ko"), cpio.TypeReg|0o644, m.data)
		names = append(names, m.name+"\n")
	}
	put(ModuleList, cpio.TypeReg|0o644, []byte(strings.Join(names, "")))
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = buf.Flush()
	}
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("make the initramfs %s: %w", path, err)
	}
	return nil
}

// InitrdEntry is a member of an initramfs.
type InitrdEntry struct {
	Name string
	Mode os.FileMode
	Size int64
}

// ListInitrd reads back an initramfs that this package made.
func ListInitrd(path string) ([]InitrdEntry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := cpio.NewReader(bufio.NewReader(f))
	var out []InitrdEntry
	for {
		h, err := r.Next()
		if err == io.EOF {
			return slices.Clip(out), nil
		}
		if err != nil {
			return nil, fmt.Errorf("read initramfs %s: %w", path, err)
		}
		out = append(out, InitrdEntry{h.Name, h.FileInfo().Mode(), h.Size})
	}
}
