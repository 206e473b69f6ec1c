package scenario_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/scenario"
)

// FuzzScenario: what the strict reader takes, a lenient one takes and understands the same; what was read is written and read again to
// the same; a scenario that is valid has what it needs to be run.
func FuzzScenario(f *testing.F) {
	tree := os.DirFS("../..")
	claims, err := claim.Load(tree, "scenarios/claims")
	require.NoError(f, err)
	files, err := filepath.Glob("../../scenarios/*.toml")
	require.NoError(f, err)
	require.NotEmpty(f, files)
	for _, name := range files {
		b, err := os.ReadFile(name)
		require.NoError(f, err)
		if filepath.Base(name) != scenario.KnownFile {
			f.Add(b)
		}
	}
	f.Add([]byte("title = \"x\"\nunknown = 1"))
	f.Add([]byte("[[expect]]\nclaim = \"[\"\noutcome = \"holds\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := scenario.Parse("a-root", b, claims)
		if err != nil {
			require.Nil(t, s)
			return
		}
		var strict, lenient scenario.Scenario
		require.NoError(t, claim.Strict(b, &strict))
		require.NoError(t, toml.Unmarshal(b, &lenient))
		require.Equal(t, strict, lenient)
		require.NotEmpty(t, s.Kernels)
		require.NotEmpty(t, s.Expect)
		seen := map[string]bool{}
		for _, e := range s.Expectations("ours") {
			require.False(t, seen[e.Claim], "one expectation a claim")
			seen[e.Claim] = true
		}
		written, err := toml.Marshal(s)
		require.NoError(t, err)
		again, err := scenario.Parse("a-root", written, claims)
		require.NoError(t, err, "%s", written)
		rewritten, err := toml.Marshal(again)
		require.NoError(t, err)
		require.Equal(t, string(written), string(rewritten))
	})
}
