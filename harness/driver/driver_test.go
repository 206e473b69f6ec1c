package driver_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/driver"
	"virtiofsd/harness/frontend"
	"virtiofsd/harness/guestproto"
	"virtiofsd/internal/testenv"
)

// daemon is cmd/virtiofsd, built once for all tests of this package.
var daemon frontend.Daemon

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "driver-bin")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := testenv.Build(dir, "virtiofsd"); err != nil {
		panic(err)
	}
	daemon = frontend.Daemon{Name: "ours", Dialect: "ours", Exec: []string{filepath.Join(dir, "virtiofsd")}, Sandbox: "namespace"}
	return m.Run()
}

func cases(t *testing.T, d frontend.Daemon) []guestproto.Check {
	t.Helper()
	testenv.Need(t, "root", "loop", "mkfs", "pids")
	dir, err := os.MkdirTemp("", "driver") // t.TempDir may be too long for a socket's path
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	all, err := driver.Run(ctx, d, nil, dir)
	require.NoError(t, err)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
	return all
}

// perCase counts checks of each case, and returns those that did not pass.
func perCase(t *testing.T, d frontend.Daemon) (count map[string]int, bad map[string]string) {
	count, bad = map[string]int{}, map[string]string{}
	for _, k := range cases(t, d) {
		name := ""
		for _, c := range driver.Cases() { // the longest of those that fit: one case's name may begin another's
			if strings.HasPrefix(k.Name, c.Name+"-") && len(c.Name) > len(name) {
				name = c.Name
			}
		}
		count[name]++
		if k.Status != guestproto.StatusPass {
			bad[k.Name] = k.Detail
		}
	}
	return count, bad
}

func TestOurDaemonOnEveryHost(t *testing.T) {
	count, bad := perCase(t, daemon)
	assert.Empty(t, bad)
	assert.Equal(t, map[string]int{"windows-driver": 16, "append-only": 7, "copy-up": 4, "copy-up-from-tmpfs": 4, "reused-inode": 3, "few-threads": 4}, count)
}

// What the cases ask for is what a driver in use asks for: another daemon answers all of it but
// where it has a descriptor for each file.
func TestCDaemonOnEveryHost(t *testing.T) {
	testenv.Need(t, "c-daemon")
	count, bad := perCase(t, frontend.Daemon{Name: "c", Dialect: "c", Exec: []string{testenv.QEMUVirtiofsd}, Sandbox: "namespace"})
	assert.Len(t, bad, 1)
	assert.Contains(t, bad["reused-inode-many-files"], "too many open files")
	assert.Equal(t, map[string]int{"windows-driver": 16, "append-only": 7, "copy-up": 4, "copy-up-from-tmpfs": 4, "reused-inode": 2, "few-threads": 4}, count)
}

// A daemon that has no option for a case declines it.
func TestWhatHasNoOptionIsDeclined(t *testing.T) {
	other := daemon
	other.Dialect = "rust"
	_, bad := perCase(t, other)
	assert.Equal(t, map[string]string{"few-threads-starts": "the daemon has no option for it"}, bad)
}
