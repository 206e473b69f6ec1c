//go:build cgo

package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"virtiofsd/internal/testenv"
)

// TestStages runs the tests of stage_test.go in a static program, as the daemon is one: with cgo,
// credentials are switched by C code that cannot find the threads of a new pid namespace in the
// caller's /proc.
func TestStages(t *testing.T) {
	testenv.Need(t, "root", "userns")
	bin := filepath.Join(t.TempDir(), "static.test")
	build := exec.Command("go", "test", "-c", "-vet=off", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.Command(bin, "-test.run", "Stage", "-test.timeout", "3m").CombinedOutput()
	require.NoError(t, err, "%s", out)
}
