package claim_test

import (
	"os"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/claim"
)

func TestClaimsOfTheTree(t *testing.T) {
	all, err := claim.Load(os.DirFS("../../scenarios"), "claims")
	require.NoError(t, err)
	assert.NotEmpty(t, all)
}

const head = "area = \"a\"\ntitle = \"t\"\nabout = \"x\"\n"
const good = "[[claim]]\nid = \"a/b\"\nmust = \"It MUST.\"\nwhy = \"w\"\nsource = [\"s\"]\nprobe = [\"p\"]\njudge = \"j\"\n"

func load(text string) error {
	_, err := claim.Load(fstest.MapFS{"claims/a.toml": {Data: []byte(text)}}, "claims")
	return err
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	require.NoError(t, load(head+good))
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":    {head + good + "becuase = \"x\"\n", "line 11, column 1: unknown key \"claim.becuase\""},
		"syntax":         {head + "[[claim]\n", "line 4"},
		"no MUST":        {head + "[[claim]]\nid = \"a/b\"\nmust = \"It may.\"\n", "has no MUST"},
		"twice":          {head + good + good, "stands in claims/a.toml, too"},
		"other area":     {head + "[[claim]]\nid = \"b/b\"\nmust = \"It MUST.\"\nwhy = \"w\"\nsource = [\"s\"]\nprobe = [\"p\"]\njudge = \"j\"\n", "not of this area"},
		"no head":        {good, "area must be the file's name"},
		"id":             {head + "[[claim]]\nid = \"A b\"\n", "want a path of words"},
		"half falsified": {head + good + "[[claim.falsified_by]]\nby = \"fault x\"\n", "both by and seen"},
	} {
		t.Run(name, func(t *testing.T) {
			err := load(c.text)
			require.ErrorContains(t, err, c.want)
			assert.NotContains(t, err.Error(), "\n", "not one line")
		})
	}
}
