package vmimages

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// apt is apt with one suite of a Debian mirror as its only source, in a directory of its own.
type apt struct {
	dir    string // conf, lists, cache
	suite  string
	log    *slog.Logger
	mirror string
}

// keyrings are where Debian's package debian-archive-keyring puts its keys; the first that exists signs.
var keyrings = []string{"/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"}

// releaseURI matches a line of `apt-get --print-uris update`: 'MIRROR/dists/SUITE/InRelease' …
var releaseURI = regexp.MustCompile(`(?m)^'([^']+?)/*/dists/([^/']+)/InRelease'`)

// debianSuites are the names under which a mirror of Debian proper may stand in a machine's sources.
var debianSuites = []string{"bookworm", "trixie", "forky", "duke", "sid", "bullseye", "stable", "testing", "unstable", "oldstable", "oldoldstable"}

// Mirror returns the URI of the Debian mirror that this machine's apt uses.
func Mirror(ctx context.Context) (string, error) {
	out, err := run(ctx, nil, "", "apt-get", "--print-uris", "update")
	if err != nil {
		return "", fmt.Errorf("ask apt for its mirror: %w; remedy: use a Debian machine, or give kernel images by path", err)
	}
	if m := pickMirror(string(out)); m != "" {
		return m, nil
	}
	return "", errors.New("apt has no Debian mirror among its sources; remedy: name one, or give kernel images by path")
}

func pickMirror(uris string) string {
	for _, m := range releaseURI.FindAllStringSubmatch(uris, -1) {
		if slices.Contains(debianSuites, m[2]) {
			return m[1]
		}
	}
	return ""
}

// newApt writes the private configuration of a suite.
func newApt(ctx context.Context, dir, mirror, suite string, log *slog.Logger) (*apt, error) {
	a := &apt{dir: filepath.Join(dir, suite), suite: suite, log: log, mirror: mirror}
	keyring := ""
	for _, k := range keyrings {
		if _, err := os.Stat(k); err == nil {
			keyring = k
			break
		}
	}
	if keyring == "" {
		return nil, fmt.Errorf("no archive keyring %s; remedy: install the package debian-archive-keyring", keyrings[0])
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "empty.d"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("make apt's directories: %w", err)
		}
	}
	// The machine's way to the network (proxies, time-outs) is kept; its hooks and sources are not.
	dump, err := run(ctx, nil, "", "apt-config", "dump")
	if err != nil {
		return nil, fmt.Errorf("read apt's configuration: %w", err)
	}
	var conf strings.Builder
	for line := range strings.Lines(string(dump)) {
		if strings.HasPrefix(line, "Acquire::") && !strings.HasPrefix(line, "Acquire::IndexTargets") && !strings.HasPrefix(line, "Acquire::Languages") {
			conf.WriteString(line)
		}
	}
	for _, kv := range [][2]string{
		{"Dir::Etc::parts", a.path("empty.d")},
		{"Dir::Etc::main", "/dev/null"},
		{"Dir::Etc::sourcelist", a.path("sources.list")},
		{"Dir::Etc::sourceparts", a.path("empty.d")},
		{"Dir::Etc::preferences", "/dev/null"},
		{"Dir::Etc::preferencesparts", a.path("empty.d")},
		{"Dir::State", a.dir},
		{"Dir::State::lists", a.path("lists")},
		{"Dir::State::status", a.path("status")},
		{"Dir::Cache", a.path("cache")},
		{"APT::Architecture", "amd64"},
		{"APT::Sandbox::User", ""}, // the directories are ours, not _apt's
		{"Acquire::Languages", "none"},
		{"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false"},
		{"Acquire::Retries", "3"},
		{"APT::Get::List-Cleanup", "true"},
	} {
		fmt.Fprintf(&conf, "%s %q;\n", kv[0], kv[1])
	}
	for name, text := range map[string]string{
		"apt.conf":     conf.String(),
		"sources.list": fmt.Sprintf("deb [arch=amd64 signed-by=%s] %s %s main\n", keyring, mirror, suite),
		"status":       "",
	} {
		if err := os.WriteFile(a.path(name), []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("write apt's configuration: %w", err)
		}
	}
	return a, nil
}

func (a *apt) path(name string) string { return filepath.Join(a.dir, name) }

func (a *apt) run(ctx context.Context, dir string, argv ...string) ([]byte, error) {
	return run(ctx, []string{"APT_CONFIG=" + a.path("apt.conf")}, dir, argv...)
}

// update fetches the suite's index, verified by the keyring.
func (a *apt) update(ctx context.Context) error {
	a.log.Info("fetching package index", "suite", a.suite)
	// Without --error-on=any a failed download is only a warning and the old lists stay.
	if _, err := a.run(ctx, "", "apt-get", "update", "-qq", "--error-on=any"); err != nil {
		return fmt.Errorf("fetch the package index of %s: %w", a.suite, err)
	}
	return nil
}

// newest returns the newest package whose name matches.
func (a *apt) newest(ctx context.Context, re *regexp.Regexp) (string, error) {
	out, err := a.run(ctx, "", "apt-cache", "pkgnames")
	if err != nil {
		return "", fmt.Errorf("list the packages of %s: %w", a.suite, err)
	}
	var names []string
	for n := range strings.FieldsSeq(string(out)) {
		if re.MatchString(n) {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return "", fmt.Errorf("suite %s has no package that matches %s; remedy: look for its new name in the suite and correct kernels.toml", a.suite, re)
	}
	return slices.MaxFunc(names, compareNatural), nil
}

// compareNatural orders names so that numbers in them count as numbers.
func compareNatural(a, b string) int {
	for a != "" && b != "" {
		ra, rb := digits(a), digits(b)
		if ra > 0 && rb > 0 {
			na, nb := strings.TrimLeft(a[:ra], "0"), strings.TrimLeft(b[:rb], "0")
			if c := cmp.Or(cmp.Compare(len(na), len(nb)), cmp.Compare(na, nb)); c != 0 {
				return c
			}
			a, b = a[ra:], b[rb:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// digits counts the digits at the start of s.
func digits(s string) int {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return i
		}
	}
	return len(s)
}

// fields returns the control fields of a package's candidate version.
func (a *apt) fields(ctx context.Context, pkg string) (map[string]string, error) {
	out, err := a.run(ctx, "", "apt-cache", "show", "--no-all-versions", pkg)
	if err != nil {
		return nil, fmt.Errorf("look up package %s in %s: %w", pkg, a.suite, err)
	}
	m := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if k, v, ok := strings.Cut(line, ": "); ok && !strings.HasPrefix(line, " ") {
			m[k] = strings.TrimSpace(v)
		}
	}
	return m, nil
}

// download fetches one package, verified against the signed index, and returns the .deb's path in dir.
func (a *apt) download(ctx context.Context, pkg, dir string) (string, error) {
	a.log.Info("fetching package", "suite", a.suite, "package", pkg)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make download directory: %w", err)
	}
	if _, err := a.run(ctx, dir, "apt-get", "download", "-qq", pkg); err != nil {
		return "", fmt.Errorf("download package %s of %s: %w", pkg, a.suite, err)
	}
	debs, err := filepath.Glob(filepath.Join(dir, pkg+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("download package %s: apt left %d files in %s", pkg, len(debs), dir)
	}
	return debs[0], nil
}

// dependencies returns the library packages that packages need, themselves first: Depends and Pre-Depends, followed through packages named
// lib*, first alternative. Other packages are tools and data that a program started by path does without.
func (a *apt) dependencies(ctx context.Context, pkgs ...string) ([]string, error) {
	todo, seen := slices.Clone(pkgs), map[string]bool{}
	for _, p := range pkgs {
		seen[p] = true
	}
	for i := 0; i < len(todo); i++ {
		f, err := a.fields(ctx, todo[i])
		if err != nil {
			return nil, err
		}
		for _, d := range libraries(f["Pre-Depends"] + ", " + f["Depends"]) {
			if !seen[d] {
				seen[d] = true
				todo = append(todo, d)
			}
		}
	}
	return todo, nil
}

// libraries returns the names that begin with "lib" of a dependency field.
func libraries(field string) []string {
	var names []string
	for clause := range strings.SplitSeq(field, ",") {
		first, _, _ := strings.Cut(clause, "|")
		name, _, _ := strings.Cut(strings.TrimSpace(first), " ")
		name, _, _ = strings.Cut(name, ":")
		if strings.HasPrefix(name, "lib") {
			names = append(names, name)
		}
	}
	return names
}

// run runs a program and returns its output; an error holds the last line that it wrote to stderr.
func run(ctx context.Context, env []string, dir string, argv ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env = append(append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"), env...)
	c.Dir = dir
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", argv[0], err, lastLine(errs.String()))
	}
	return out.Bytes(), nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
