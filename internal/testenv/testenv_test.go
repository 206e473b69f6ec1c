package testenv

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMustReadsTheList(t *testing.T) {
	t.Setenv(MustEnv, "root,qemu")
	assert.True(t, Must("root"))
	assert.True(t, Must("qemu"))
	assert.False(t, Must("kvm"))
	t.Setenv(MustEnv, "all")
	assert.True(t, Must("kvm"))
	t.Setenv(MustEnv, "")
	assert.False(t, Must("root"))
}

// TestMissingNeed runs itself in a child where a tool cannot be found, once as a skip and once as a failure.
func TestMissingNeed(t *testing.T) {
	if os.Getenv("TESTENV_CHILD") != "" {
		Need(t, "qemu")
		return
	}
	run := func(must string) (string, error) {
		c := exec.Command(os.Args[0], "-test.run=^TestMissingNeed$", "-test.v")
		c.Env = []string{"TESTENV_CHILD=1", "PATH=/nonexistent", MustEnv + "=" + must}
		out, err := c.CombinedOutput()
		return string(out), err
	}
	out, err := run("")
	require.NoError(t, err, out)
	assert.Contains(t, out, "SKIP")
	assert.Contains(t, out, "qemu-system-x86", "a skip names the remedy")

	out, err = run("qemu")
	var exit *exec.ExitError
	require.True(t, errors.As(err, &exit), out)
	assert.Contains(t, out, "asks for \"qemu\"")
}

func TestEveryNeedHasARemedy(t *testing.T) {
	for w, n := range needs() {
		assert.NotEmpty(t, n.remedy, w)
		assert.NotNil(t, n.probe, w)
	}
}
