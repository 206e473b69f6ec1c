package workload

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/probe"
)

// The control: on a local file system all that comes of it is expected, and neither side follows a link out.
func TestChurnOfALocalFileSystem(t *testing.T) {
	e := publicEnv(t)
	outside := filepath.Join(t.TempDir(), "sentinel")
	assert.NoError(t, os.WriteFile(outside, []byte("some bytes"), 0o600))
	before, err := probe.TakeSnapshot(filepath.Dir(outside))
	assert.NoError(t, err)
	changes := probe.StartChanges(e.LocalDir, "churn/tree", 1, outside+"/nothing/there")
	facts := call[guestproto.Churn](t, e, guestproto.CallChurn, guestproto.ChurnArgs{Where: here, Seed: 1, Seconds: 3})
	made := changes.Stop()
	assert.Empty(t, facts.Strange)
	assert.Zero(t, facts.Strangers)
	assert.Greater(t, facts.Ops, 1000)
	assert.Greater(t, made, 50)
	for _, errno := range []string{"", "ENOENT", "EEXIST", "EACCES", "ENOTDIR", "ELOOP"} { // what never happens is not looked at
		assert.NotZero(t, facts.Errnos[errno], "%q of %v", errno, facts.Errnos)
	}
	is, err := probe.CollectOutside(filepath.Dir(outside), before)
	assert.NoError(t, err)
	assert.Empty(t, is.Changed)
	t.Log(facts.Ops, made, facts.Errnos)
}

// What no operation should give is told.
func TestChurnFindsStrangers(t *testing.T) {
	e := publicEnv(t)
	share(t, e, "size=64k")
	full := call[guestproto.Churn](t, e, guestproto.CallChurn, guestproto.ChurnArgs{Seed: 1, Seconds: 1})
	assert.NotZero(t, full.Strangers)
	assert.NotEmpty(t, full.Strange)
	assert.LessOrEqual(t, len(full.Strange), 20)
	assert.Contains(t, full.Strange[0], "ENOSPC")
}

// A file that shows what lies outside is told: here the share's own links lead there, and opening follows them.
func TestChurnFindsWhatLiesOutside(t *testing.T) {
	top := t.TempDir()
	tree := filepath.Join(top, "tree")
	require.NoError(t, os.Mkdir(tree, 0o777))
	require.NoError(t, os.WriteFile(filepath.Join(top, "sentinel"), []byte("secret-1"), 0o644))
	for _, name := range []string{"a", "b", "c", "d", "e", "p", "s", "t"} {
		require.NoError(t, os.Symlink("../sentinel", filepath.Join(tree, name)))
	}
	defer unix.Umask(unix.Umask(0)) // which the process of a churn sets
	task, err := json.Marshal(churnTask{Root: tree, Seed: 1, Seconds: 0.2, Secret: "secret-1"})
	require.NoError(t, err)
	var out, errs bytes.Buffer
	require.Zero(t, childChurn(bytes.NewReader(task), &out, &errs), errs.String())
	var r guestproto.Churn
	require.NoError(t, json.Unmarshal(out.Bytes(), &r))
	require.NotEmpty(t, r.Strange)
	assert.Contains(t, r.Strange[0], "shows what lies outside")
}
