package runner

import (
	"os"
	"path"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/hostile"
)

// A case that no claim speaks of would be run and judged by nobody.
func TestEachHostileCaseBelongsToOneClaim(t *testing.T) {
	claims, err := claim.Load(os.DirFS("../.."), "scenarios/claims")
	require.NoError(t, err)
	for _, c := range hostile.Cases() {
		var of []string
		for _, cl := range claims {
			for _, pattern := range cl.Of {
				if ok, err := path.Match(pattern, c.Name); cl.Judge == "withstands" && err == nil && ok {
					of = append(of, cl.ID)
					break
				}
			}
		}
		assert.Len(t, of, 1, "case %s belongs to %v", c.Name, of)
	}
}
