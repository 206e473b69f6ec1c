package report

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/testenv"
)

// printedLine is a command line of the daemon in a page's code block, whatever stands before it. The guide says which use case it is.
var printedLine = regexp.MustCompile(`(?m)(?:use case ([A-E])\n\n)?^ {4,6}((?:\S+ )*?(?:bin/)?virtiofsd --\S.*?)(?: &)?$`)

type line struct{ use, text string }

// printedLines are the command lines that people are told to start.
func printedLines(t *testing.T, page string) []line {
	b, err := os.ReadFile(filepath.Join(root, page))
	require.NoError(t, err)
	var all []line
	for _, m := range printedLine.FindAllStringSubmatch(string(b), -1) {
		all = append(all, line{m[1], m[2]})
	}
	require.NotEmpty(t, all, page)
	return all
}

// TestUsersSocketsAreTheirs: nobody but root can make a socket in /run itself, and the harness's own ids are nobody's.
func TestUsersSocketsAreTheirs(t *testing.T) {
	b, err := load(root)
	require.NoError(t, err)
	p, err := b.loadPractices(os.DirFS(root))
	require.NoError(t, err)
	for _, u := range p.Uses {
		for _, v := range u.Commands {
			s := b.scenario(v.Scenario)
			line, err := forReaders(s)
			require.NoError(t, err)
			assert.Equal(t, s.Launch.UID != 0, !strings.Contains(line, "--socket-path=/run/vm1-fs.sock"), "%s: %s", v.Scenario, line)
			assert.NotContains(t, line, "4501", "%s is the harness's user", v.Scenario)
			if s.Launch.SubUID != "" && strings.Contains(v.For, "/etc/subuid") {
				assert.Contains(t, v.For, "{subuid}", "the range is that of the scenario")
				assert.Contains(t, v.For, "{subgid}", "the range is that of the scenario")
			}
		}
	}
}

// TestTheGuideAgreesWithTheAdvice: each mode that the decision guide ends at is one of the commands of that use case in the best practices, with the
// same kind of ids.
func TestTheGuideAgreesWithTheAdvice(t *testing.T) {
	b, err := load(root)
	require.NoError(t, err)
	p, err := b.loadPractices(os.DirFS(root))
	require.NoError(t, err)
	kind := func(line string) string {
		mode := regexp.MustCompile(`--sandbox=\w+`).FindString(line)
		for _, o := range []string{" --uid-map", " --single-user"} {
			if strings.Contains(line, o) {
				mode += o
			}
		}
		return mode
	}
	advised := map[string][]string{}
	for _, u := range p.Uses {
		for _, v := range u.Commands {
			line, err := forReaders(b.scenario(v.Scenario))
			require.NoError(t, err)
			advised[u.Case] = append(advised[u.Case], kind(line))
		}
	}
	offered := map[string][]string{}
	for _, l := range printedLines(t, "docs/generated/decide.md") {
		offered[l.use] = append(offered[l.use], kind(l.text))
		assert.Contains(t, advised[l.use], kind(l.text), "use case %s: %s", l.use, l.text)
	}
	for _, mode := range []string{"--sandbox=namespace", "--sandbox=pivot_root", "--sandbox=chroot"} {
		assert.Contains(t, offered["D"], mode, "inside what the caller has made")
	}
}

// TestPrintedCommandsStart starts each printed command line, as root, as a user with groups and ranges, or inside what the guide says that the launcher
// has made, and waits for its socket. The files of /etc that say who that is, /run and /srv are the test's own.
func TestPrintedCommandsStart(t *testing.T) {
	testenv.Need(t, "root", "userns", "newuidmap", "bwrap")
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	require.NoError(t, testenv.Build(dir, "virtiofsd"))
	for file, add := range map[string]string{
		"passwd": "reader:x:1000:1000::/:/bin/sh\n", "group": "reader:x:1000:\n", "subuid": "reader:300000:100000\nreader:100000:65536\n", "subgid": "reader:300000:100000\nreader:100000:65536\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte("root:x:0:0::/root:/bin/sh\n"+add), 0o644))
	}
	const (
		user    = "setpriv --reuid=1000 --regid=1000 --groups=1000,4,100 "
		nothing = "setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs "
		engine  = "setpriv --inh-caps=-all --bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+setgid,+setuid,+setpcap,+sys_chroot,+setfcap "
		one     = "unshare --user --map-root-user --mount "
		ranged  = "unshare --user --map-root-user --map-auto "
	)
	for _, page := range []string{"README.md", "docs/best-practices.md", "docs/generated/decide.md"} {
		for _, l := range printedLines(t, page) {
			before := ""
			switch {
			case strings.Contains(l.text, givenSocket) && strings.Contains(l.text, "--sandbox=none"):
				before = nothing
			case strings.Contains(l.text, givenSocket), strings.Contains(l.text, usersSocket):
				before = user
			}
			switch { // the guide does not print what the launcher has made
			case l.use != "D":
			case before == "":
				before = engine
			case strings.Contains(l.text, "--no-fail-setgroups"):
				before += one
			default:
				before += ranged
			}
			t.Run(page+" "+l.text, func(t *testing.T) { startsHere(t, dir, before, l.text) })
		}
	}
}

// startsHere runs a line in a mount namespace of its own until the socket that it names is there.
func startsHere(t *testing.T, dir, before, line string) {
	line = strings.TrimPrefix(line, "bin/")
	socket := regexp.MustCompile(`--socket-path[= ](\S+)`).FindStringSubmatch(line)
	require.NotNil(t, socket, line)
	share := regexp.MustCompile(`--shared-dir[= ](\S+)`).FindStringSubmatch(line)
	require.NotNil(t, share, line)
	script := fmt.Sprintf(`set -e
for f in passwd group subuid subgid; do mount --bind %[1]s/$f /etc/$f; done
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /srv; chmod 755 /run /srv
mkdir -p /run/user/1000 /run/vm1 %[2]s
chown 1000:1000 /run/user/1000 /run/vm1 %[2]s; chmod 700 /run/user/1000; case '%[4]s' in *--map-users=*) chown 300000:300000 /run/vm1;; esac
export XDG_RUNTIME_DIR=/run/user/1000 HOME=/ PATH=%[1]s:$PATH
%[3]s%[4]s &
p=$!; i=0
while kill -0 $p 2>/dev/null && [ $i -lt 100 ]; do [ -S "%[5]s" ] && { kill $p; echo there; exit 0; }; sleep 0.1; i=$((i+1)); done
wait $p || echo "exit status $?"`, dir, share[1], before, line, socket[1])
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "there\n", "%s%s", before, line)
}
