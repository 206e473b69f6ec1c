package main

import (
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/impl"
	"virtiofsd/harness/scenario"
	vmimages "virtiofsd/vm-images"
)

func TestRunRefusesWhatWouldSkipAllOrNothing(t *testing.T) {
	t.Setenv(mustEnv, "")
	refused(t, map[string]string{
		"run --parallel -1 a-root":      "--parallel -1 is below 0; see vfsmatrix run --help",
		"selftest --parallel -1":        "--parallel -1 is below 0; see vfsmatrix selftest --help",
		"run --impl x=/nonexist a-root": "implementation x: /nonexist is no program; name one that is there",
		"run --qemu /nonexist a-root":   "--qemu /nonexist is no program; name one that is there",
		"selftest --qemu /nonexist":     "--qemu /nonexist is no program; name one that is there",
	})
	status, _, errs := told(t, "run", "--must", "qmeu", "a-root")
	assert.Equal(t, exitUsage, status)
	assert.Contains(t, errs, "--must qmeu is no need; it is one of all, ")
	t.Setenv(mustEnv, "qmeu")
	status, _, _ = told(t, "run", "a-root")
	assert.Equal(t, exitUsage, status)
}

func TestRunRefusesToRunNoCell(t *testing.T) {
	scenarios := []*scenario.Scenario{{ID: "a-x", Impls: []string{"ours"}, Kernels: []string{"6.12"}}}
	ours, c := []*impl.Impl{{Name: "ours"}}, []*impl.Impl{{Name: "c"}}
	has, lacks := map[string]vmimages.Image{"6.12": {}}, map[string]vmimages.Image{"6.1": {}}
	all, err := filter("")
	require.NoError(t, err)
	none, err := filter("b-*/*/*")
	require.NoError(t, err)
	assert.NoError(t, checkCells(scenarios, ours, has, all))
	for _, err := range []error{checkCells(scenarios, ours, has, none), checkCells(scenarios, c, has, all), checkCells(scenarios, ours, lacks, all)} {
		assert.ErrorAs(t, err, &usageError{})
	}
}

func TestMustKnowsEveryNeed(t *testing.T) {
	b, err := (&app{}).book()
	require.NoError(t, err)
	src, err := os.ReadFile("../../internal/testenv/testenv.go")
	require.NoError(t, err)
	must := []string{"all", "rust-daemon", "mine-daemon"}
	for _, m := range regexp.MustCompile(`(?m)^\t\t"([a-z-]+)": +\{probe`).FindAllSubmatch(src, -1) {
		must = append(must, string(m[1]))
	}
	require.Greater(t, len(must), 20)
	assert.NoError(t, b.checkMust(must, []string{"mine=PATH"}))
}
