package workload

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"

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
