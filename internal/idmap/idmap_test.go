package idmap

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	r, err := Parse(":0:100000:65536:")
	require.NoError(t, err)
	assert.Equal(t, Range{0, 100000, 65536}, r)
	r, err = Parse("/1/2/3/")
	require.NoError(t, err)
	assert.Equal(t, ":1:2:3:", r.String())
	for _, bad := range []string{"", "0:100000:65536", ":0:100000:65536", ":a:1:1:", ":1:2:", ":1:2:3:4:", ":-1:2:3:", ":1:2/3:", ":4294967296:1:1:"} {
		_, err := Parse(bad)
		assert.ErrorContains(t, err, "write :INSIDE:OUTSIDE:COUNT:", bad)
	}
}

func TestValidate(t *testing.T) {
	assert.NoError(t, Map{{0, 1000, 1}, {1, 100000, 65535}}.Validate())
	assert.ErrorContains(t, Map{}.Validate(), "empty")
	assert.ErrorContains(t, Map{{0, 1000, 0}}.Validate(), "count is 0")
	assert.ErrorContains(t, Map{{0, 4294967295, 2}}.Validate(), "beyond")
	assert.ErrorContains(t, Map{{0, 1000, 10}, {9, 2000, 1}}.Validate(), "overlap inside")
	assert.ErrorContains(t, Map{{0, 1000, 10}, {10, 1009, 1}}.Validate(), "overlap outside")
	assert.ErrorContains(t, make(Map, MaxEntries+1).Validate(), "kernel takes")
}

func TestTranslate(t *testing.T) {
	m := Map{{0, 1000, 1}, {1, 100000, 65535}}
	in, ok := m.Inside(100005)
	assert.True(t, ok)
	assert.EqualValues(t, 6, in)
	_, ok = m.Inside(1001)
	assert.False(t, ok)
	assert.True(t, m.Has(65535))
	assert.False(t, m.Has(65536))
	assert.EqualValues(t, 65536, m.Ids())
	assert.True(t, Map{{0, 1000, 1}}.Own(1000))
	assert.False(t, m.Own(1000))
}

func TestMissing(t *testing.T) {
	subs := []Sub{{100000, 65536}}
	_, missing := Map{{0, 1000, 1}, {1, 100000, 65536}}.Missing(1000, subs)
	assert.False(t, missing)
	r, missing := Map{{0, 1000, 1}, {1, 100000, 65537}}.Missing(1000, subs)
	assert.True(t, missing)
	assert.EqualValues(t, 100000, r.Outside)
}

func TestTake(t *testing.T) {
	for _, c := range []struct {
		m         Map
		own, want uint32
	}{
		{Map{{1000, 100000, 1000}}, 0, 1000},
		{Map{{1000, 1500, 1}}, 1500, 1000},
		{Map{{2000, 100000, 10}, {1000, 1495, 10}}, 1500, 1005},
		{Map{{1000, 1500, 1}, {0, 100000, 10}}, 1500, 0},
		{Map{{5, 100000, 10}}, 100003, 8},
		{Map{{2000, 200000, 10}, {1000, 100000, 10}}, 0, 2000},
	} {
		assert.Equal(t, c.want, c.m.Take(c.own), "%v for %d", c.m, c.own)
	}
}
