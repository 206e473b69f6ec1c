package impl

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	vmimages "virtiofsd/vm-images"
)

// Impl is one daemon program.
type Impl struct {
	Name    string   // ours, c, rust, rust-next, or a name given with a path
	Dialect string   // ours, c, c5 or rust
	Path    string   // the program
	Prefix  []string // goes before Path: another libc's loader
	Version string   // as the program says
	SHA256  string   // of the program
	Missing string   // why it cannot be run here; everything else but Name is then empty
}

// The dialects.
const (
	DialectOurs = "ours"
	DialectC    = "c"
	DialectC5   = "c5" // C's before QEMU 5.2
	DialectRust = "rust"
)

// Dirs says where to look.
type Dirs struct {
	Bin    string // our own binaries
	Cache  string // fetched packages (package vmimages)
	Mirror string // of Debian; "" = the machine's
	Log    *slog.Logger
}

// Names are the implementations that Find knows by name.
func Names() []string { return []string{"ours", "c", "rust", "rust-next"} }

// cPaths are where distributions keep QEMU's C virtiofsd.
var cPaths = []string{"/usr/lib/qemu/virtiofsd", "/usr/libexec/qemu/virtiofsd", "/usr/libexec/virtiofsd"}

// Find looks for an implementation: a name of [Names], or NAME=PATH for a program of one's own, whose dialect is told by its
// --version. What is not there is an Impl with Missing set, so that it can be reported as a cell; an error is a name that means
// nothing, or a PATH without a program.
func Find(ctx context.Context, name string, dirs Dirs) (*Impl, error) {
	i := &Impl{Name: name}
	if short, path, ok := strings.Cut(name, "="); ok {
		if short == "" || path == "" {
			return nil, fmt.Errorf("implementation %q: want NAME=PATH", name)
		}
		if strings.ContainsRune(path, '/') { // it is started in another directory
			var err error
			if path, err = filepath.Abs(path); err != nil {
				return nil, fmt.Errorf("implementation %q: %w", name, err)
			}
		}
		if _, err := exec.LookPath(path); err != nil {
			return nil, fmt.Errorf("implementation %s: %s is no program; name one that is there", short, path)
		}
		i.Name, i.Path = short, path
		return i.identify(ctx), nil
	}
	switch name {
	case "ours":
		i.Dialect, i.Path = DialectOurs, filepath.Join(dirs.Bin, "virtiofsd")
		if _, err := os.Stat(i.Path); err != nil {
			return &Impl{Name: name, Missing: fmt.Sprintf("%v; remedy: make build", err)}, nil
		}
	case "c":
		i.Dialect = DialectC
		for _, p := range cPaths {
			if v, _ := version(ctx, []string{p}); dialectOf(v) == DialectC {
				i.Path = p
				break
			}
		}
		if i.Path == "" {
			return &Impl{Name: name, Missing: "no C virtiofsd; remedy: install Debian 12's package qemu-system-common"}, nil
		}
	case "rust", "rust-next":
		p, err := vmimages.EnsurePeer(ctx, vmimages.Dirs{Cache: dirs.Cache, Mirror: dirs.Mirror}, name, dirs.Log)
		if err != nil {
			return &Impl{Name: name, Missing: err.Error()}, nil
		}
		i.Dialect, i.Path, i.Prefix = DialectRust, p.Path, p.Prefix
	default:
		return nil, fmt.Errorf("implementation %q is none of %s, and not NAME=PATH", name, strings.Join(Names(), ", "))
	}
	return i.identify(ctx), nil
}

// identify fills in version and hash, or Missing.
func (i *Impl) identify(ctx context.Context) *Impl {
	v, err := version(ctx, append(append([]string{}, i.Prefix...), i.Path))
	if err != nil {
		return &Impl{Name: i.Name, Missing: fmt.Sprintf("%s --version: %v", i.Path, err)}
	}
	i.Version = v
	if i.Dialect == "" {
		i.Dialect = dialectOf(v)
	}
	if i.Dialect == "" {
		return &Impl{Name: i.Name, Missing: fmt.Sprintf("%s says %q: no dialect that is known", i.Path, v)}
	}
	if i.SHA256, err = hash(i.Path); err != nil {
		return &Impl{Name: i.Name, Missing: err.Error()}
	}
	return i
}

// dialectOf tells a dialect by what --version prints: "virtiofsd version 7.2.22 (Debian …)" is QEMU's, "virtiofsd 1.13.2" Rust's,
// and ours names its language. Before 6.0 QEMU's told its FUSE version only: 7.31 before 5.2.
func dialectOf(version string) string {
	const old = "using FUSE kernel interface version "
	switch {
	case version == old+"7.31":
		return DialectC5
	case strings.HasPrefix(version, "virtiofsd version "), strings.HasPrefix(version, old):
		return DialectC
	case strings.HasPrefix(version, "virtiofsd ") && strings.Contains(version, "go1."):
		return DialectOurs
	case strings.HasPrefix(version, "virtiofsd "):
		return DialectRust
	}
	return ""
}

// version returns the first line that a program prints for --version.
func version(ctx context.Context, argv []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], append(argv[1:], "--version")...).CombinedOutput()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, line)
	}
	return line, nil
}

func hash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("hash %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
