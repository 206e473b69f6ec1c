package scenario_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/scenario"
)

func tree(t *testing.T) []claim.Claim {
	t.Helper()
	claims, err := claim.Load(os.DirFS("../../scenarios"), "claims")
	require.NoError(t, err)
	return claims
}

func TestScenariosOfTheTree(t *testing.T) {
	claims := tree(t)
	all, err := scenario.Load(os.DirFS("../../scenarios"), ".", claims)
	require.NoError(t, err)
	for _, s := range all {
		for _, e := range s.Expect {
			assert.NotContains(t, e.Claim, "*", "a pattern is left in %s", s.ID)
		}
	}
	_, err = scenario.LoadKnown(os.DirFS("../../scenarios"), ".", claims)
	require.NoError(t, err)
}

const good = `title = "t"
use_case = "A"
why = "w"
kernels = ["6.12"]
[options]
sandbox = "namespace"
[[step]]
probe = "info"
[[step]]
probe = "proc"
at = "started"
[[expect]]
claim = "start/ready"
outcome = "holds"
because = "b"
`

func TestParseSaysWhatIsWrong(t *testing.T) {
	claims := tree(t)
	s, err := scenario.Parse("a-x", []byte(good), claims)
	require.NoError(t, err)
	assert.Equal(t, "proc-started", s.Steps[1].Name)
	for name, c := range map[string]struct{ from, to, want string }{
		"unknown key":     {`sandbox = "namespace"`, "sandbox = \"namespace\"\nsandboks = 1", `unknown key "options.sandboks"`},
		"sandbox":         {`"namespace"`, `"jail"`, `sandbox "jail" is not`},
		"claim":           {"start/ready", "start/steady", `unknown claim "start/steady"`},
		"pattern":         {"start/ready", "strat/*", `unknown claim "strat/*"`},
		"outcome":         {`"holds"`, `"held"`, `outcome "held" is not holds, absent or refused`},
		"because":         {`because = "b"`, ``, "because is empty"},
		"refused w/o say": {`"holds"`, `"refused"`, "says belongs to refused"},
		"probe":           {`"info"`, `"infos"`, `unknown probe "infos"`},
		"probe missing":   {`"info"`, `"tree"`, "claim start/ready wants the probe info"},
		"guest too early": {`probe = "info"`, "probe = \"info\"\nat = \"ended\"", "the guest runs in phase mounted only"},
		"letter":          {`"A"`, `"B"`, `the name begins with "a", the use case is "B"`},
	} {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, good, c.from)
			_, err := scenario.Parse("a-x", []byte(strings.Replace(good, c.from, c.to, 1)), claims)
			assert.ErrorContains(t, err, c.want)
		})
	}
}

func TestPatternsGiveWayToIDs(t *testing.T) {
	text := strings.Replace(good, `claim = "start/ready"`, `claim = "start/*"`, 1) + `
[[expect]]
claim = "start/ready"
outcome = "refused"
says = "no"
because = "named"
`
	s, err := scenario.Parse("a-x", []byte(text), tree(t))
	require.NoError(t, err)
	require.Len(t, s.Expect, 2)
	assert.Equal(t, "named", s.Expect[0].Because)
	assert.Equal(t, "start/sandbox-before-guest", s.Expect[1].Claim)
}
