package workload

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// Holding is what the guest holds of a share between the calls hold and held. The zero value holds
// nothing.
type Holding struct {
	dir    string            // where the host laid things out
	fds    map[string]int    // O_PATH descriptors by name
	inos   map[string]uint64 // inode numbers by name, when it was held
	at     map[string]string // where else a name is mounted
	mounts []string          // in order
	tmp    string            // holds what mounts need
	chdir  bool
	why    string // why there is no overlay
	failed error  // why nothing is held
}

// believed is longer than a guest believes what it was told with cache=auto: attributes are asked
// for again.
const believed = 1100 * time.Millisecond

// hold takes hold of what the host has laid out. What fails here is no fact about renames, and so
// an error.
func (e *Env) hold(a guestproto.HoldArgs) (_ guestproto.Hold, err error) {
	var r guestproto.Hold
	p, err := e.place(a.Where, guestproto.CallHold)
	if err != nil {
		return r, err
	}
	if e.Holding.dir != "" {
		return r, fmt.Errorf("%s is still held", e.Holding.dir)
	}
	h := e.Holding
	*h = Holding{dir: p.dir, fds: map[string]int{}, inos: map[string]uint64{}, at: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.release())
			h.failed = err
		}
	}()
	if h.tmp, err = os.MkdirTemp("", "held-"); err != nil {
		return r, err
	}
	if err := h.workingDirectory(guestproto.HeldWorkingDirectory); err != nil {
		return r, err
	}
	for _, n := range []string{
		guestproto.HeldPathDirectory, guestproto.HeldPathFile,
		guestproto.HeldFirstLink, guestproto.HeldFirstLink + guestproto.HeldSecond,
		guestproto.HeldLastLink, guestproto.HeldLastLink + guestproto.HeldSecond,
	} {
		if err := h.open(n); err != nil {
			return r, err
		}
	}
	for _, n := range []string{guestproto.HeldMountDirectory, guestproto.HeldMountFile} {
		if err := h.bind(n); err != nil {
			return r, err
		}
	}
	if err := h.overlay(guestproto.HeldLower); err != nil {
		return r, err
	}
	for i := range a.Others {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(p.dir, guestproto.HeldOthers, fmt.Sprintf("%05d", i)), &st); err != nil {
			return r, fmt.Errorf("look up another file, after %d of them: %w", i, err)
		}
		r.Others++
		e.progress("look up others", int64(i), int64(a.Others))
	}
	for n := range h.inos {
		r.Held = append(r.Held, n)
	}
	slices.Sort(r.Held)
	return r, nil
}

func (h *Holding) path(name string) string { return filepath.Join(h.dir, name) }

// note remembers which inode a path of a held name leads to.
func (h *Holding) note(name, path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	h.inos[name] = st.Ino
	return nil
}

func (h *Holding) workingDirectory(name string) error {
	if err := unix.Chdir(h.path(name)); err != nil {
		return fmt.Errorf("chdir to %s: %w", name, err)
	}
	h.chdir = true
	return h.note(name, ".")
}

func (h *Holding) open(name string) error {
	fd, err := unix.Open(h.path(name), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s with O_PATH: %w", name, err)
	}
	h.fds[name] = fd
	return h.note(name, self(fd))
}

// self is a descriptor's path, which open(2) follows to the same inode whatever it is called now.
func self(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func (h *Holding) bind(name string) error {
	at := filepath.Join(h.tmp, name)
	var err error
	if name == guestproto.HeldMountFile {
		err = os.WriteFile(at, nil, 0o644)
	} else {
		err = os.Mkdir(at, 0o755)
	}
	if err == nil {
		err = unix.Mount(h.path(name), at, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("bind %s: %w", name, err)
	}
	h.mounts = append(h.mounts, at)
	h.at[name] = at
	return h.note(name, at)
}

// overlay mounts an overlay whose lower directory is on the share, where the kernel has overlays.
func (h *Holding) overlay(name string) error {
	if known, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(known), "\toverlay\n") {
		h.why = "the guest's kernel has no overlay file system"
		return nil
	}
	// The upper directory has to be on a file system that can be one: not on an overlay, as a
	// test's temporary directory may be.
	upper := filepath.Join(h.tmp, "upper")
	if err := errors.Join(os.Mkdir(upper, 0o755), unix.Mount("none", upper, "tmpfs", 0, "size=1m")); err != nil {
		return err
	}
	h.mounts = append(h.mounts, upper)
	at := filepath.Join(h.tmp, "merged")
	if err := errors.Join(os.Mkdir(at, 0o755), os.Mkdir(filepath.Join(upper, "u"), 0o755), os.Mkdir(filepath.Join(upper, "w"), 0o755)); err != nil {
		return err
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s/u,workdir=%s/w", h.path(name), upper, upper)
	if err := unix.Mount("overlay", at, "overlay", 0, data); err != nil {
		return fmt.Errorf("mount an overlay of %s: %w", name, err)
	}
	h.mounts = append(h.mounts, at)
	h.at[name] = at
	return h.note(name, at)
}

// release lets go of everything.
func (h *Holding) release() error {
	var all []error
	if h.chdir {
		all = append(all, unix.Chdir("/"))
	}
	for _, fd := range h.fds {
		all = append(all, unix.Close(fd))
	}
	for _, m := range slices.Backward(h.mounts) {
		all = append(all, unix.Unmount(m, 0))
	}
	if h.tmp != "" && errors.Join(all...) == nil { // what is still mounted is not removed
		all = append(all, os.RemoveAll(h.tmp))
	}
	*h = Holding{}
	return errors.Join(all...)
}

// held looks at each thing held in the ways that programs use it, writes to it, and lets go.
func (e *Env) held(a guestproto.HeldArgs) (guestproto.Held, error) {
	r := guestproto.Held{Checks: []guestproto.Check{}}
	h := e.Holding
	if p, err := e.place(a.Where, guestproto.CallHold); err != nil {
		return r, err
	} else if h.failed != nil {
		return r, fmt.Errorf("nothing is held: %w", h.failed)
	} else if p.dir != h.dir {
		return r, fmt.Errorf("%s is not held", p.rel)
	}
	time.Sleep(believed)
	see := func(name string, f func(c *checker)) {
		r.Checks = append(r.Checks, runAlone(check{filepath.Base(h.dir) + "-" + name, f}, e))
	}
	see(guestproto.HeldWorkingDirectory, func(c *checker) {
		_, err := unix.Getcwd(make([]byte, unix.PathMax))
		c.ok(err, "getcwd")
		c.heldDirectory(h, guestproto.HeldWorkingDirectory, ".")
	})
	see(guestproto.HeldPathDirectory, func(c *checker) {
		c.heldDirectory(h, guestproto.HeldPathDirectory, self(h.fds[guestproto.HeldPathDirectory]))
	})
	see(guestproto.HeldPathFile, func(c *checker) {
		c.heldFile(h, guestproto.HeldPathFile, self(h.fds[guestproto.HeldPathFile]))
	})
	see(guestproto.HeldMountDirectory, func(c *checker) {
		c.heldDirectory(h, guestproto.HeldMountDirectory, h.at[guestproto.HeldMountDirectory])
	})
	see(guestproto.HeldMountFile, func(c *checker) {
		c.heldFile(h, guestproto.HeldMountFile, h.at[guestproto.HeldMountFile])
	})
	for _, n := range []string{guestproto.HeldFirstLink, guestproto.HeldLastLink} {
		see(n, func(c *checker) {
			second := n + guestproto.HeldSecond
			c.eq(h.inos[n], h.inos[second], "inode numbers of the two names")
			var st unix.Stat_t
			c.ok(unix.Stat(self(h.fds[second]), &st), "stat by the second name's descriptor")
			c.heldFile(h, n, self(h.fds[n]))
			c.eq(c.fstat(h.fds[n]).Nlink, uint64(1), "links")
		})
	}
	see(guestproto.HeldLower, func(c *checker) {
		if h.why != "" {
			c.skip("%s", h.why)
		}
		c.heldDirectory(h, guestproto.HeldLower, h.at[guestproto.HeldLower])
		// Writing copies it up: the overlay opens and reads the lower file.
		c.heldFile(h, "", filepath.Join(h.at[guestproto.HeldLower], guestproto.HeldInside))
	})
	return r, h.release()
}

// heldDirectory lists a directory, reads a file in it and makes one.
func (c *checker) heldDirectory(h *Holding, name, path string) {
	var st unix.Stat_t
	c.ok(unix.Stat(path, &st), "stat")
	c.eq(st.Ino, h.inos[name], "inode number")
	f, err := os.Open(path)
	c.ok(err, "open")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	c.ok(err, "list")
	c.that(slices.Contains(names, guestproto.HeldInside), "list: got %v, want %s in it", names, guestproto.HeldInside)
	b, err := os.ReadFile(filepath.Join(path, guestproto.HeldInside))
	c.ok(err, "read a file in it")
	c.eq(string(b), guestproto.HeldContent, "content of a file in it")
	c.ok(os.WriteFile(filepath.Join(path, guestproto.HeldMade), []byte(guestproto.HeldContent), 0o644), "make a file in it")
}

// heldFile reads a file, and appends to it. Without a name its inode is not known.
func (c *checker) heldFile(h *Holding, name, path string) {
	var st unix.Stat_t
	c.ok(unix.Stat(path, &st), "stat")
	if name != "" {
		c.eq(st.Ino, h.inos[name], "inode number")
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	c.ok(err, "open")
	defer f.Close()
	b := make([]byte, 100)
	n, err := f.ReadAt(b[:len(guestproto.HeldContent)], 0)
	c.ok(err, "read")
	c.eq(string(b[:n]), guestproto.HeldContent, "content")
	_, err = f.WriteString(guestproto.HeldAdded)
	c.ok(err, "append")
	c.ok(f.Sync(), "fsync")
}
