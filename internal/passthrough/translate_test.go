package passthrough

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestTranslation(t *testing.T) {
	none, err := ParseTranslation(nil)
	require.NoError(t, err)
	assert.Nil(t, none)

	tr, err := ParseTranslation([]string{"map:0:100000:1000", "forbid-guest:1000:500", "guest:2000:7:2", "host:7:2000:2", "squash-guest:3000:9:10", "squash-host:200000:65534:4294767296", "forbid-guest:0:0"})
	require.NoError(t, err)
	for id, want := range map[uint32]int64{0: 100000, 999: 100999, 1000: -1, 1499: -1, 1500: 1500, 2000: 7, 2001: 8, 2002: 2002, 3000: 9, 3009: 9, 3010: 3010, 1<<32 - 1: 1<<32 - 1} {
		got, e := tr.ToHost(id)
		if want < 0 {
			assert.Equal(t, unix.EPERM, e, id)
			continue
		}
		assert.Zero(t, e, id)
		assert.EqualValues(t, want, got, id)
	}
	for id, want := range map[uint32]uint32{7: 2000, 8: 2001, 9: 9, 100999: 999, 199999: 199999, 200000: 65534, 1<<32 - 1: 65534, 0: 0} {
		got, e := tr.ToGuest(id)
		assert.Zero(t, e, id)
		assert.Equal(t, want, got, id)
	}
}

// Rules that launchers pass: Incus, KubeVirt, vmspawn.
func TestTranslationOfLaunchers(t *testing.T) {
	for _, rules := range [][]string{
		{"map:1000:1000:1", "forbid-guest:0:1000", "forbid-guest:1001:4294966294", "forbid-guest:0:0"},
		{"host:107:0:1"},
		{"map:0:131072:65536"},
		{"squash-guest:0:501:4294967295", "host:501:0:1"},
	} {
		_, err := ParseTranslation(rules)
		assert.NoError(t, err, rules)
	}
}

func TestTranslationErrors(t *testing.T) {
	for rule, want := range map[string]string{
		"":                              "start with",
		"map":                           "takes 3 numbers",
		"map:0:0":                       "takes 3 numbers",
		"forbid-guest:0:1:2":            "takes 2 numbers",
		"forbid-host:0:1":               "start with",
		"map:-1:0:1":                    "not a number",
		"map:0x10:0:1":                  "not a number",
		"map:0:4294967296:1":            "not a number",
		"map:4294967295:0:2":            "beyond",
		"map:0:4294967295:2":            "beyond",
		"guest:0:4294967295:2":          "beyond",
		"host:0:4294967295:2":           "beyond",
		"forbid-guest:2001:4294967295":  "beyond",
		"squash-host:2001:0:4294967295": "beyond",
	} {
		_, err := ParseTranslation([]string{rule})
		if assert.Error(t, err, rule) {
			assert.Contains(t, err.Error(), want, rule)
		}
	}
	_, err := ParseTranslation([]string{"forbid-guest:0:1000", "map:999:0:1"})
	assert.ErrorContains(t, err, "overlap")
	_, err = ParseTranslation([]string{"host:0:5:10", "squash-host:9:0:1"})
	assert.ErrorContains(t, err, "overlap")
}
