package vmimages

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Dirs says where things are. Cache and Out are made if missing.
type Dirs struct {
	Cache string // what was fetched; survives `make clean`
	Out   string // what was built: <Out>/<kernel>/{vmlinuz,initrd.cpio,image.json}
	Guest string // the static agent, bin/vfsguest; only Ensure needs it
	// Mirror is the URI of a Debian mirror; "" is the one that the machine's apt uses.
	Mirror string
	// Refresh asks the mirror for newer packages even where the cache has what is wanted.
	Refresh bool
}

// Image is what a guest boots from.
type Image struct {
	Name    string `json:"name"`    // as asked for: "6.1", or a path
	Kernel  string `json:"kernel"`  // absolute path
	Initrd  string `json:"initrd"`  // absolute path
	Version string `json:"version"` // uname -r, "" if the image does not tell
	Package string `json:"package,omitempty"`
	// PackageVersion and PackageSHA256 are those of the .deb, as verified by apt's signatures.
	PackageVersion string   `json:"package_version,omitempty"`
	PackageSHA256  string   `json:"package_sha256,omitempty"`
	SHA256         string   `json:"sha256"` // of the kernel
	InitrdSHA256   string   `json:"initrd_sha256"`
	AgentSHA256    string   `json:"agent_sha256"`
	Modules        []string `json:"modules"` // in the initramfs, in load order
}

// Peer is a daemon of another project, fetched as a package.
type Peer struct {
	Name    string // "rust", …
	Package string
	Version string   // of the package
	Path    string   // the program
	Prefix  []string // its own loader and library path: run Prefix + Path + arguments
	SHA256  string   // of the program
	// Debs maps each unpacked package to name_version and the .deb's SHA-256.
	Debs []Deb
}

// Deb is one package in the cache.
type Deb struct {
	Package string `json:"package"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"` // of the .deb file
}

// record is record.json of an unpacked source: what it is and where it came from.
type record struct {
	Source Source `json:"source"`
	Mirror string `json:"mirror"`
	Debs   []Deb  `json:"debs"` // the one asked for first
}

// Ensure makes the images of the kernels named: a name of kernels.toml, or a path (with a '/') of a kernel image of one's own. For a path, the
// modules of its release are looked for beside it (../lib/modules, ../usr/lib/modules) and in /lib/modules; without any, all that
// is needed has to be built in. No names is all of kernels.toml.
func Ensure(ctx context.Context, dirs Dirs, names []string, log *slog.Logger) (map[string]Image, error) {
	t, err := Known()
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		for _, k := range t.Kernels {
			names = append(names, k.Name)
		}
	}
	if st, err := os.Stat(dirs.Guest); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("guest agent %q is missing; remedy: make build", dirs.Guest)
	}
	b, err := newBuilder(dirs, log)
	if err != nil {
		return nil, err
	}
	defer b.close()
	busybox, err := b.tool(ctx, t, "busybox")
	if err != nil {
		return nil, err
	}
	images := map[string]Image{}
	for _, name := range names {
		img, err := b.image(ctx, t, name, busybox)
		if err != nil {
			return nil, fmt.Errorf("guest image %s: %w", name, err)
		}
		images[name] = img
	}
	return images, nil
}

// EnsurePeer fetches a peer of kernels.toml with the libraries of its suite. The program runs beside this machine's own
// libraries, through its own loader. Everything under its directory may be read by all users, but the cache directory's own parents may not be.
func EnsurePeer(ctx context.Context, dirs Dirs, name string, log *slog.Logger) (*Peer, error) {
	u, err := fetch(ctx, dirs, "peer", func(t Table) []Source { return t.Peers }, name, log)
	if err != nil {
		return nil, err
	}
	p := &Peer{Name: name, Package: u.debs[0].Package, Version: u.debs[0].Version, Debs: u.debs, Path: u.path, Prefix: u.prefix}
	if p.SHA256, err = hashFile(p.Path); err != nil {
		return nil, err
	}
	return p, nil
}

// unpacked is a program of kernels.toml with the libraries of its suite, in the cache.
type unpacked struct {
	root, path string
	prefix     []string // runs it with those libraries
	debs       []Deb    // its own package first
}

// fetch makes sure of one of the programs that kernels.toml lists as a kind.
func fetch(ctx context.Context, dirs Dirs, kind string, list func(Table) []Source, name string, log *slog.Logger) (u unpacked, err error) {
	t, err := Known()
	if err != nil {
		return u, err
	}
	src, ok := find(list(t), name)
	if !ok {
		return u, fmt.Errorf("no %s %q in kernels.toml", kind, name)
	}
	b, err := newBuilder(dirs, log)
	if err != nil {
		return u, err
	}
	defer b.close()
	root, rec, err := b.source(ctx, src, true)
	if err == nil {
		u.root, u.debs = root, rec.Debs
		u.path, err = firstFile(root, src.Files)
	}
	if err == nil {
		u.prefix, err = loader(root)
	}
	if err != nil {
		return u, fmt.Errorf("%s %s: %w", kind, name, err)
	}
	return u, nil
}

// loader is what goes before a program of an unpacked suite to run it with that suite's libraries.
func loader(root string) ([]string, error) {
	ld, err := firstFile(root, []string{"usr/lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"})
	if err != nil {
		return nil, err
	}
	return []string{ld, "--library-path", filepath.Join(root, "usr/lib/x86_64-linux-gnu") + ":" + filepath.Join(root, "lib/x86_64-linux-gnu")}, nil
}

// QEMUNames are the QEMUs of kernels.toml.
func QEMUNames() (names []string) {
	if t, err := Known(); err == nil {
		for _, q := range t.QEMUs {
			names = append(names, q.Name)
		}
	}
	return names
}

// EnsureQEMU fetches a QEMU of kernels.toml with its libraries and firmware, and returns the path of a script that runs it.
func EnsureQEMU(ctx context.Context, dirs Dirs, name string, log *slog.Logger) (string, error) {
	u, err := fetch(ctx, dirs, "QEMU", func(t Table) []Source { return t.QEMUs }, name, log)
	if err != nil {
		return "", err
	}
	root := u.root
	// It looks for modules and firmware beside its own executable, which is the loader now.
	argv := append(u.prefix, u.path, "-L", filepath.Join(root, "usr/share/qemu"), "-L", filepath.Join(root, "usr/share/seabios"))
	script := filepath.Join(filepath.Dir(root), "qemu")
	text := fmt.Sprintf("#!/bin/sh\nexport QEMU_MODULE_DIR='%s'\nexec '%s' \"$@\"\n", filepath.Join(root, "usr/lib/x86_64-linux-gnu/qemu"), strings.Join(argv, "' '"))
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		return "", fmt.Errorf("write the script that runs QEMU: %w", err)
	}
	return script, nil
}

// builder holds the lock of the cache, so that two runs at once do not fetch into the same place.
type builder struct {
	dirs   Dirs
	log    *slog.Logger
	lock   *os.File
	mirror string
	fresh  map[string]*apt // suites whose index was fetched in this session
}

func newBuilder(dirs Dirs, log *slog.Logger) (*builder, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if dirs.Cache == "" {
		return nil, errors.New("no cache directory given")
	}
	if err := os.MkdirAll(dirs.Cache, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache directory: %w", err)
	}
	var err error
	if dirs.Cache, err = filepath.Abs(dirs.Cache); err != nil {
		return nil, err
	}
	if dirs.Out, err = filepath.Abs(dirs.Out); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dirs.Cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the cache %s: %w", f.Name(), err)
	}
	return &builder{dirs: dirs, log: log, lock: f, mirror: dirs.Mirror, fresh: map[string]*apt{}}, nil
}

func (b *builder) close() { b.lock.Close() } // and with it the lock

func (b *builder) image(ctx context.Context, t Table, name, busybox string) (Image, error) {
	img := Image{Name: name}
	var modules, kernel string
	if strings.ContainsRune(name, '/') {
		abs, err := filepath.Abs(name)
		if err != nil {
			return img, err
		}
		kernel = abs
		if st, err := os.Stat(kernel); err != nil || !st.Mode().IsRegular() {
			return img, fmt.Errorf("no kernel image at %s", kernel)
		}
		modules = modulesBeside(kernel)
	} else {
		src, ok := find(t.Kernels, name)
		if !ok {
			return img, fmt.Errorf("not in kernels.toml (known: %s), and not a path", strings.Join(kernelNames(t), ", "))
		}
		root, rec, err := b.source(ctx, src, false)
		if err != nil {
			return img, err
		}
		found, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
		if err != nil || len(found) != 1 {
			return img, fmt.Errorf("package %s has %d kernels in /boot", rec.Debs[0].Package, len(found))
		}
		kernel, modules = found[0], modulesBeside(found[0])
		if modules == "" {
			return img, fmt.Errorf("package %s has no modules of release %q", rec.Debs[0].Package, kernelRelease(kernel))
		}
		img.Package, img.PackageVersion, img.PackageSHA256 = rec.Debs[0].Package, rec.Debs[0].Version, rec.Debs[0].SHA256
	}
	img.Version = kernelRelease(kernel)

	tree, err := openModules(modules)
	if err != nil {
		return img, err
	}
	mods, err := tree.resolve(ctx, t.Modules)
	if err != nil {
		return img, err
	}
	for _, m := range mods {
		img.Modules = append(img.Modules, m.name)
	}
	out := filepath.Join(b.dirs.Out, outName(name))
	if err := os.MkdirAll(out, 0o755); err != nil {
		return img, fmt.Errorf("make the output directory: %w", err)
	}
	img.Kernel, img.Initrd = filepath.Join(out, "vmlinuz"), filepath.Join(out, "initrd.cpio")
	if err := copyFile(img.Kernel, kernel); err != nil {
		return img, err
	}
	if err := writeInitrd(img.Initrd, b.dirs.Guest, busybox, mods); err != nil {
		return img, err
	}
	for dst, path := range map[*string]string{&img.SHA256: img.Kernel, &img.InitrdSHA256: img.Initrd, &img.AgentSHA256: b.dirs.Guest} {
		if *dst, err = hashFile(path); err != nil {
			return img, err
		}
	}
	return img, writeJSON(filepath.Join(out, "image.json"), img)
}

// outName makes a directory name of a kernel's name or path.
func outName(name string) string {
	if !strings.ContainsRune(name, '/') {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return filepath.Base(name) + "-" + hex.EncodeToString(sum[:4])
}

func kernelNames(t Table) []string {
	var n []string
	for _, k := range t.Kernels {
		n = append(n, k.Name)
	}
	return n
}

// modulesBeside returns the directory of a kernel's modules, "" if there is none.
func modulesBeside(kernel string) string {
	rel := kernelRelease(kernel)
	if rel == "" {
		return ""
	}
	up := filepath.Dir(filepath.Dir(kernel))
	for _, d := range []string{filepath.Join(up, "usr/lib/modules", rel), filepath.Join(up, "lib/modules", rel), filepath.Join("/lib/modules", rel)} {
		if _, err := os.Stat(filepath.Join(d, "modules.builtin")); err == nil {
			return d
		}
	}
	return ""
}

func (b *builder) tool(ctx context.Context, t Table, name string) (string, error) {
	src, ok := find(t.Tools, name)
	if !ok {
		return "", fmt.Errorf("no tool %q in kernels.toml", name)
	}
	root, _, err := b.source(ctx, src, false)
	if err != nil {
		return "", fmt.Errorf("%s for the guest: %w", name, err)
	}
	return firstFile(root, src.Files)
}

// source returns the directory where a source's package (withLibs: and its libraries) is unpacked, fetching it if need be.
func (b *builder) source(ctx context.Context, src Source, withLibs bool) (string, *record, error) {
	// One directory per name and pattern: a changed table fetches anew.
	sum := sha256.Sum256([]byte(src.Suite + "\n" + src.Package))
	dir := filepath.Join(b.dirs.Cache, "unpacked", fmt.Sprintf("%s-%s", src.Name, hex.EncodeToString(sum[:4])))
	root := filepath.Join(dir, "root")
	rec, err := readRecord(dir)
	if err == nil && !b.dirs.Refresh {
		return root, rec, nil
	}
	a, err := b.apt(ctx, src.Suite)
	if err != nil {
		return "", nil, err
	}
	re, err := src.pattern()
	if err != nil {
		return "", nil, err
	}
	pkg, err := a.newest(ctx, re)
	if err != nil {
		return "", nil, err
	}
	pkgs := []string{pkg}
	if withLibs {
		if pkgs, err = a.dependencies(ctx, append([]string{pkg}, src.With...)...); err != nil {
			return "", nil, err
		}
	}
	if rec != nil && b.current(ctx, a, rec, pkg) {
		return root, rec, nil
	}

	// Unpack beside and rename: a run that was cut off leaves no half a kernel behind.
	tmp, err := os.MkdirTemp(b.dirs.Cache, ".unpack-*")
	if err != nil {
		return "", nil, fmt.Errorf("unpack %s: %w", pkg, err)
	}
	defer os.RemoveAll(tmp)
	rec = &record{Source: src, Mirror: a.mirror}
	for _, p := range pkgs {
		deb, err := a.download(ctx, p, filepath.Join(tmp, "deb"))
		if err != nil {
			return "", nil, err
		}
		f, err := a.fields(ctx, p)
		if err != nil {
			return "", nil, err
		}
		sum, err := hashFile(deb)
		if err != nil {
			return "", nil, err
		}
		if want := f["SHA256"]; want != "" && want != sum {
			return "", nil, fmt.Errorf("package %s: SHA-256 is %s, the signed index says %s", p, sum, want)
		}
		if _, err := run(ctx, nil, "", "dpkg-deb", "-x", deb, filepath.Join(tmp, "root")); err != nil {
			return "", nil, fmt.Errorf("unpack %s: %w", deb, err)
		}
		if err := os.Remove(deb); err != nil {
			return "", nil, err
		}
		rec.Debs = append(rec.Debs, Deb{Package: p, Version: f["Version"], SHA256: sum})
	}
	if err := os.Remove(filepath.Join(tmp, "deb")); err != nil {
		return "", nil, err
	}
	if err := writeJSON(filepath.Join(tmp, "record.json"), rec); err != nil {
		return "", nil, err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", nil, fmt.Errorf("replace %s: %w", dir, err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", nil, fmt.Errorf("unpack %s: %w", pkg, err)
	}
	return root, rec, nil
}

// current reports whether the record is of the package's candidate version.
func (b *builder) current(ctx context.Context, a *apt, rec *record, pkg string) bool {
	f, err := a.fields(ctx, pkg)
	return err == nil && len(rec.Debs) > 0 && rec.Debs[0].Package == pkg && rec.Debs[0].Version == f["Version"]
}

func (b *builder) apt(ctx context.Context, suite string) (*apt, error) {
	if a := b.fresh[suite]; a != nil {
		return a, nil
	}
	if b.mirror == "" {
		m, err := Mirror(ctx)
		if err != nil {
			return nil, err
		}
		b.mirror = m
	}
	a, err := newApt(ctx, filepath.Join(b.dirs.Cache, "apt"), b.mirror, suite, b.log)
	if err != nil {
		return nil, err
	}
	if err := a.update(ctx); err != nil {
		return nil, err
	}
	b.fresh[suite] = a
	return a, nil
}

func readRecord(dir string) (*record, error) {
	b, err := os.ReadFile(filepath.Join(dir, "record.json"))
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil || len(r.Debs) == 0 {
		return nil, fmt.Errorf("record %s does not read: %w", dir, err)
	}
	return &r, nil
}

// firstFile returns the first of names that is a file under root. Absolute symbolic links of the package are not followed: they
// would lead to this machine's files.
func firstFile(root string, names []string) (string, error) {
	for _, n := range names {
		p := filepath.Join(root, n)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			if real, err := filepath.EvalSymlinks(p); err == nil && strings.HasPrefix(real, root+"/") {
				return real, nil
			}
		}
	}
	return "", fmt.Errorf("package has none of %s", strings.Join(names, ", "))
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("hash: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("hash %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// copyFile copies by way of a temporary name: a guest that is just starting keeps its whole kernel.
func copyFile(dst, src string) error {
	b, err := os.ReadFile(src)
	if err != nil {
		return fmt.Errorf("copy the kernel: %w", err)
	}
	if old, err := os.ReadFile(dst); err == nil && bytes.Equal(old, b) {
		return nil
	}
	if err := os.WriteFile(dst+".tmp", b, 0o644); err != nil {
		return fmt.Errorf("copy the kernel: %w", err)
	}
	return os.Rename(dst+".tmp", dst)
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	return nil
}
