package driver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
)

var fileSystemCases = []Case{
	{"append-only", "writes to a file to which the host has given the attribute that it can only be appended to (chattr +a), on an ext4", appendOnly},
	{"copy-up", "looks at a file of an overlay while the host writes to it for the first time, which copies it to another layer", func(e *env) error {
		return copyUp(e, "")
	}},
	{"copy-up-from-tmpfs", "does so where the lower layer is another file system", func(e *env) error { return copyUp(e, "tmpfs") }},
	{"reused-inode", "knows a file of an ext4 without birth times, while the host removes it and makes another one with its name and its inode number", reusedInode},
}

// tool runs a program of the host.
func (e *env) tool(name string, args ...string) error {
	if out, err := exec.CommandContext(e.ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (e *env) mounted(at string) {
	e.later(func() error { return unix.Unmount(at, unix.MNT_DETACH) })
}

// ext4 puts the share on an ext4 of its own.
func (e *env) ext4(mkfs ...string) error {
	image := filepath.Join(e.dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		return err
	}
	if err := e.tool("mkfs.ext4", append(mkfs, "-q", "-m", "0", "-O", "^has_journal", image)...); err != nil {
		return err
	}
	if err := e.tool("mount", "-o", "loop", image, e.share); err != nil {
		return err
	}
	e.mounted(e.share)
	return nil
}

// flags of FS_IOC_SETFLAGS (linux/fs.h).
const appendFlag = 0x20

func appendOnly(e *env) error {
	if err := e.ext4(); err != nil {
		return err
	}
	name := filepath.Join(e.share, "log")
	if err := os.WriteFile(name, []byte("one\n"), 0o644); err != nil {
		return err
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	flags, err := unix.IoctlGetInt(int(file.Fd()), unix.FS_IOC_GETFLAGS) // what is left out is cleared, or tried to
	if err == nil {
		err = unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, flags|appendFlag)
	}
	if err != nil {
		return fmt.Errorf("make a file that can only be appended to: %w", err)
	}
	f, err := e.start(nil)
	if f == nil {
		return err
	}
	entry, err := f.Lookup(frontend.RootNode, "log")
	if err != nil {
		e.check("append", err)
		return nil
	}
	e.check("append", func() error {
		fh, err := f.Open(entry.Node, unix.O_WRONLY|unix.O_APPEND)
		if err != nil {
			return fmt.Errorf("open for appending: %w", err)
		}
		if _, err := f.Write(entry.Node, fh, 4, []byte("two\n")); err != nil {
			return fmt.Errorf("append: %w", err)
		}
		if err := errors.Join(f.Fsync(entry.Node, fh), f.Flush(entry.Node, fh), f.Release(entry.Node, fh)); err != nil {
			return err
		}
		b, err := os.ReadFile(name)
		if err == nil && string(b) != "one\ntwo\n" {
			err = fmt.Errorf("the file holds %q", b)
		}
		return err
	}())
	_, err = f.Open(entry.Node, unix.O_WRONLY)
	e.check("overwrite", want("open for writing", err, unix.EPERM))
	_, err = f.Open(entry.Node, unix.O_RDWR)
	e.check("read-write", want("open for reading and writing", err, unix.EPERM))
	_, err = f.Setattr(entry.Node, frontend.SetSize, frontend.Attr{}, 0)
	e.check("truncate", want("truncate", err, unix.EPERM))
	e.check("unlink", want("unlink", f.Unlink(frontend.RootNode, "log"), unix.EPERM))
	e.check("rename", want("rename", f.Rename(frontend.RootNode, "log", frontend.RootNode, "log.1", 0), unix.EPERM))
	return nil
}

// copyUp puts the share on an overlay whose lower layer is on lowerFS, "" for that of the upper
// one.
func copyUp(e *env, lowerFS string) error {
	at := func(name string) string { return filepath.Join(e.dir, name) }
	for _, d := range []string{"layers", "lower"} {
		if err := os.Mkdir(at(d), 0o755); err != nil {
			return err
		}
	}
	// A tmpfs, as the directory may be on an overlay itself, which can be no upper layer.
	if err := unix.Mount("none", at("layers"), "tmpfs", 0, "size=4m"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	e.mounted(at("layers"))
	lower := at("layers/lower")
	if lowerFS != "" {
		lower = at("lower")
		if err := unix.Mount("none", lower, lowerFS, 0, "size=4m"); err != nil {
			return fmt.Errorf("mount a %s: %w", lowerFS, err)
		}
		e.mounted(lower)
	} else if err := os.Mkdir(lower, 0o755); err != nil {
		return err
	}
	for _, d := range []string{at("layers/upper"), at("layers/work"), filepath.Join(lower, "directory")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	for _, n := range []string{"file", "directory/file"} {
		if err := os.WriteFile(filepath.Join(lower, n), []byte("lower\n"), 0o644); err != nil {
			return err
		}
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, at("layers/upper"), at("layers/work"))
	if err := unix.Mount("overlay", e.share, "overlay", 0, data); err != nil {
		return fmt.Errorf("mount an overlay: %w", err)
	}
	e.mounted(e.share)
	f, err := e.start(nil)
	if f == nil {
		return err
	}
	for _, n := range []string{"file", "directory/file"} {
		what := strings.ReplaceAll(n, "/", "-")
		entry, err := f.Walk(strings.Split(n, "/")...)
		if err != nil {
			e.check(what, err)
			continue
		}
		if err := appendTo(filepath.Join(e.share, n), "upper\n"); err != nil {
			return err
		}
		e.check(what, func() error {
			a, err := f.Getattr(entry.Node)
			if err != nil {
				return fmt.Errorf("GETATTR: %w", err)
			}
			if a.Size != 12 {
				return fmt.Errorf("GETATTR says %d bytes, want 12", a.Size)
			}
			fh, err := f.Open(entry.Node, unix.O_RDWR)
			if err != nil {
				return fmt.Errorf("OPEN: %w", err)
			}
			b, err := f.Read(entry.Node, fh, 0, 100)
			if err == nil && string(b) != "lower\nupper\n" {
				err = fmt.Errorf("READ gives %q", b)
			}
			return errors.Join(err, f.Release(entry.Node, fh))
		}())
	}
	// A directory is copied up when something is made in it.
	dir, err := f.Lookup(frontend.RootNode, "directory")
	if err != nil {
		e.check("directory", err)
		return nil
	}
	if err := os.Chmod(filepath.Join(e.share, "directory"), 0o711); err != nil {
		return err
	}
	a, err := f.Getattr(dir.Node)
	if err == nil && a.Mode&0o777 != 0o711 {
		err = fmt.Errorf("GETATTR says mode %o, want 711", a.Mode&0o777)
	}
	e.check("directory", err)
	return nil
}

func appendTo(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// many is more than the descriptors that reusedInode leaves to a daemon.
const many = 1500

func reusedInode(e *env) error {
	if err := e.ext4("-I", "128", "-N", "4096"); err != nil {
		return err
	}
	name := filepath.Join(e.share, "file")
	if err := os.WriteFile(name, []byte("the first\n"), 0o600); err != nil {
		return err
	}
	others := filepath.Join(e.share, "others")
	if err := os.Mkdir(others, 0o755); err != nil {
		return err
	}
	for i := range many {
		if err := os.WriteFile(filepath.Join(others, fmt.Sprint(i)), nil, 0o600); err != nil {
			return err
		}
	}
	few := []string{"--rlimit-nofile=640"}
	never := append(few, "--inode-file-handles=never")
	f, err := e.start(options{"ours": never, "rust": never, "c": few, "c5": few})
	if f == nil {
		return err
	}
	entry, err := f.Lookup(frontend.RootNode, "file")
	if err != nil {
		e.check("other-file", err)
		return nil
	}
	dir, err := f.Lookup(frontend.RootNode, "others")
	for i := 0; err == nil && i < many; i++ {
		if _, err = f.Lookup(dir.Node, fmt.Sprint(i)); err != nil {
			err = fmt.Errorf("LOOKUP after %d files: %w", i, err)
		}
	}
	e.check("many-files", err)
	if err != nil {
		return nil
	}
	same, err := again(name, entry.Attr.Ino)
	if err != nil {
		return err
	}
	if !same {
		// A daemon that keeps the file open keeps its inode number from being used again.
		a, err := f.Getattr(entry.Node)
		if err == nil && a.Size != uint64(len("the first\n")) {
			err = fmt.Errorf("GETATTR says %d bytes, want those of the file that was looked up", a.Size)
		}
		e.check("other-file", err)
		return nil
	}
	e.check("other-file", func() error {
		if a, err := f.Getattr(entry.Node); err == nil {
			return fmt.Errorf("GETATTR of a file that is gone gives another one of its name and inode number: %d bytes", a.Size)
		} else if !errors.Is(err, unix.ESTALE) && !errors.Is(err, unix.ENOENT) {
			return err
		}
		if _, err := f.Open(entry.Node, unix.O_RDWR); !errors.Is(err, unix.ESTALE) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("OPEN of a file that is gone: %w", err)
		}
		return nil
	}())
	return nil
}

// again removes a file and makes others until one has its inode number, which gets its name. It
// gives up where the number stays taken.
func again(name string, ino uint64) (bool, error) {
	if err := os.Remove(name); err != nil {
		return false, err
	}
	for i := range 64 {
		at := fmt.Sprintf("%s.%d", name, i)
		if err := os.WriteFile(at, []byte("another file, longer\n"), 0o600); err != nil {
			return false, err
		}
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return false, err
		}
		if st.Ino == ino {
			return true, os.Rename(at, name)
		}
	}
	return false, os.WriteFile(name, []byte("another file, longer\n"), 0o600)
}
