package config

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/idmap"
	"virtiofsd/internal/testenv"
)

func parse(t *testing.T, line string) Options {
	t.Helper()
	o, err := Parse(strings.Fields(line))
	require.NoError(t, err, line)
	return o
}

// The command lines that launchers really use.
func TestLaunchers(t *testing.T) {
	o := parse(t, "--fd=3 --shared-dir /srv --cache never --sandbox chroot --xattr --thread-pool-size=4 --log-level debug --uid-map=:0:1000:1: --uid-map=:1:100000:65536: --gid-map=:0:1000:1: --readonly")
	assert.Equal(t, 3, o.FD)
	assert.Equal(t, "never", o.Cache)
	assert.Equal(t, idmap.Map{{Inside: 0, Outside: 1000, Count: 1}, {Inside: 1, Outside: 100000, Count: 65536}}, o.UIDMap)
	assert.True(t, o.Readonly && o.Xattr)

	o = parse(t, "--syslog --cache=auto --shared-dir=/srv --fd=3 --thread-pool-size=1 --announce-submounts --xattr")
	assert.Equal(t, 1, o.ThreadPoolSize)
	o = parse(t, "--socket-path s --shared-dir . --cache auto --thread-pool-size=1 -o announce_submounts")
	assert.True(t, o.AnnounceSubmounts)
	o = parse(t, "--fd=3 --cache=never --shared-dir=/srv --translate-uid=map:0:100000:65536 --translate-uid=forbid-guest:0:0 --posix-acl=auto")
	assert.Len(t, o.TranslateUID, 2)
	assert.Equal(t, "auto", o.PosixACL)
	assert.True(t, o.Xattr, "ACLs are extended attributes")
	o = parse(t, "--fd=3 --shared-dir=/srv --posix-acl")
	assert.Equal(t, "always", o.PosixACL)
	o = parse(t, "--sandbox none --socket-path s --shared-dir . --seccomp=none --modcaps=-mknod:-setfcap")
	assert.Equal(t, "-mknod:-setfcap", o.ModCaps)
	o = parse(t, "--socket-path=s --shared-dir=/d --sandbox=none --cache=auto --migration-on-error=guest-error --migration-mode=find-paths --translate-uid=host:107:0:1")
	assert.Equal(t, "guest-error", o.MigrationOnError)
	assert.Equal(t, "prefer", parse(t, "--inode-file-handles=fallback").InodeFileHandles)
	o = parse(t, "--fd=3 -o source=/a,,b,cache=none,sandbox=chroot,xattr,no_flock -d -f")
	assert.Equal(t, "/a,b", o.SharedDir)
	assert.Equal(t, "never", o.Cache)
	assert.Equal(t, SandboxChroot, o.Sandbox)
	assert.Equal(t, "debug", o.LogLevel)
	assert.NoError(t, o.Validate())
}

func TestRefusals(t *testing.T) {
	for line, want := range map[string]string{
		"--nonsense":                       "unknown option --nonsense",
		"-z":                               "unknown option -z",
		"--sandbox=jail":                   "--sandbox is one of namespace, pivot_root, chroot, none",
		"--uid-map=0:1:2":                  "write :INSIDE:OUTSIDE:COUNT:",
		"--thread-pool-size=x":             "--thread-pool-size is a number",
		"stray":                            `"stray" is no option`,
		"-o whatever":                      `unknown word "whatever"`,
		"-o xattr=1":                       "takes no value",
		"--tag=" + strings.Repeat("x", 37): "1 to 36 bytes",
		"--socket-path":                    "--socket-path",
		"--readonly=false":                 `--readonly takes no value, and "false" is one`,
		"--syslog=":                        "--syslog takes no value",
		"--rlimit-nofile=3":                "--rlimit-nofile is 0 or a number from 512 on",
		"--posix-acl never":                "--posix-acl takes its value behind '=': --posix-acl=never",
	} {
		_, err := Parse(strings.Fields(line))
		require.ErrorContains(t, err, want, line)
		assert.NotContains(t, err.Error(), "\n", line)
	}
	for line, want := range map[string]string{
		"":                                       "--shared-dir is missing",
		"--shared-dir=/s":                        "--socket-path is missing",
		"--shared-dir=/s --fd=3 --socket-path=x": "exclude each other",
		"--shared-dir=/s --fd=3 --socket-group=x":                    "needs --socket-path",
		"--shared-dir=/s --fd=3 --sandbox=chroot --uid-map=:0:1:1:":  "need --sandbox=namespace",
		"--shared-dir=/s --fd=3 --uid-map=:0:1:2: --uid-map=:1:9:1:": "overlap",
	} {
		require.ErrorContains(t, parse(t, line).Validate(), want, line)
	}
}

func TestTableIsWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Flags() {
		assert.False(t, seen[f.Name], "%s stands twice", f.Name)
		seen[f.Name] = true
		assert.NotEmpty(t, f.Help, f.Name)
		assert.Contains(t, groups, f.Group, f.Name)
		if !f.Hidden {
			assert.Contains(t, Usage(), "--"+f.Name)
		}
	}
	for w, to := range compatWords {
		if name, _, _ := strings.Cut(to, "="); name != "" {
			assert.True(t, seen[name], "-o %s means an option that is not there", w)
		}
	}
}

// TestTheRustDaemonsOptions: what its help lists is here by the same name and with the same default. Where ours differs the reason is given.
func TestTheRustDaemonsOptions(t *testing.T) {
	differs := map[string]string{
		"inode-file-handles": "1.14 prefers export handles; a daemon that may open them could open any file of the file system, so ours has to be told, as in 1.13",
	}
	byName := map[string]Flag{}
	for _, f := range Flags() {
		byName["--"+f.Name], byName["-"+f.Short] = f, f
	}
	for _, version := range []string{"1.13.2", "1.14.0"} {
		src, err := os.ReadFile("testdata/rust-" + version + ".options")
		require.NoError(t, err)
		seen := 0
		for line := range strings.Lines(string(src)) {
			w := strings.Fields(line)
			if w[0] == "#" {
				continue
			}
			seen++
			f, ok := byName[w[0]]
			if !assert.True(t, ok, "%s has %s", version, w[0]) {
				continue
			}
			switch w[1] {
			case "switch":
				assert.True(t, f.Arg == "" || f.Bare != "", "%s takes no value in %s", w[0], version)
			case "optional":
				assert.NotEmpty(t, f.Bare, w[0])
			default:
				assert.NotEmpty(t, f.Arg, w[0])
			}
			if len(w) > 2 && defaultOf(f) != w[2] && !f.Hidden {
				assert.NotEmpty(t, differs[f.Name], "%s: the default of %s is %s, ours %q", version, w[0], w[2], defaultOf(f))
			}
		}
		assert.Greater(t, seen, 35)
	}
}

// TestCompletion has bash complete command lines.
func TestCompletion(t *testing.T) {
	testenv.Need(t, "bash")
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "share"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "shadow"), nil, 0o644))
	script := filepath.Join(dir, "complete")
	require.NoError(t, os.WriteFile(script, []byte(Completion("bash")+`
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_virtiofsd
printf '%s\n' "${COMPREPLY[@]}"
`), 0o644))
	for _, tc := range []struct {
		words string
		want  string
	}{
		{"virtiofsd --cac", "--cache"},
		{"virtiofsd --cache a", "auto always"},
		{"virtiofsd --cache = au", "auto"},
		{"virtiofsd --cache =", "auto always metadata never"},
		{"virtiofsd --posix-acl = al", "always"},
		{"virtiofsd --posix-acl --xattrm", "--xattrmap"},
		{"virtiofsd --shared-dir sha", "share"},
		{"virtiofsd --socket-path sha", "share shadow"},
		{"virtiofsd --thread-pool-size 1", ""},
		{"virtiofsd --readonly --log-f", "--log-format"},
	} {
		cmd := exec.Command("bash", append([]string{script}, strings.Fields(tc.words)...)...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		got := strings.Fields(string(out))
		slices.Sort(got)
		want := strings.Fields(tc.want)
		slices.Sort(want)
		assert.Equal(t, want, got, tc.words)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		for _, f := range Flags() {
			if !f.Hidden {
				assert.Contains(t, Completion(shell), f.Name, shell)
			}
		}
	}
}

// Who has polling off would rather spare processor time, unless told otherwise.
func TestWorkers(t *testing.T) {
	for args, want := range map[string]int{
		"":                                 2,
		"--poll-us=0":                      1,
		"--poll-us=7":                      2,
		"-o cache=never":                   2,
		"--poll-us=0 --thread-pool-size=4": 4,
		"--thread-pool-size=1":             1,
		"--thread-pool-size=0":             2,
	} {
		assert.Equal(t, want, parse(t, args+" --socket-path=s --shared-dir=/").Workers(), args)
	}
}
