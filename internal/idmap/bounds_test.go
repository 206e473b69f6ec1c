package idmap

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A map is written as the options that ask for it.
func TestMapIsWrittenAsItsOptions(t *testing.T) {
	assert.Equal(t, "", Map{}.String())
	assert.Equal(t, ":0:1000:1: :1:100000:65535:", Map{{0, 1000, 1}, {1, 100000, 65535}}.String())
}

// What stands at the ends is what tells a range from something else: the delimiter, four of them,
// nothing behind the last.
func TestDelimiterIsNeitherLetterNorDigit(t *testing.T) {
	for _, s := range []string{"a1a2a3a", "010200300", "1:2:3:4:"} {
		_, err := Parse(s)
		assert.ErrorContains(t, err, "does not start with a delimiter", s)
	}
	_, err := Parse(":1:2:3:4")
	assert.ErrorContains(t, err, "is not three numbers between delimiters")
	r, err := Parse("·1·2·3·") // of two bytes
	require.NoError(t, err)
	assert.Equal(t, Range{1, 2, 3}, r)
}

// 4294967295 is no id: (uid_t)-1 means "none", and the kernel refuses a range with it
// (kernel/user_namespace.c, map_write: first + count).
func TestLastIdThatCanBeMapped(t *testing.T) {
	const last = 1<<32 - 2
	assert.NoError(t, Map{{last, 0, 1}}.Validate())
	assert.NoError(t, Map{{0, last, 1}}.Validate())
	assert.NoError(t, Map{{0, 0, last + 1}}.Validate())
	assert.EqualError(t, Map{{last + 1, 0, 1}}.Validate(), "map :4294967295:0:1: goes beyond the last id")
	assert.EqualError(t, Map{{0, last + 1, 1}}.Validate(), "map :0:4294967295:1: goes beyond the last id")
	assert.EqualError(t, Map{{1, 0, last + 1}}.Validate(), "map :1:0:4294967295: goes beyond the last id")
	assert.EqualError(t, Map{{0, 1, last + 1}}.Validate(), "map :0:1:4294967295: goes beyond the last id")
	assert.EqualValues(t, last, Range{0, 0, last + 1}.Last())
	assert.EqualValues(t, 1009, Range{0, 1000, 10}.Last())
	assert.EqualValues(t, 1000, Range{0, 1000, 1}.Last())
}

// The kernel takes 340 lines.
func TestAsManyRangesAsTheKernelTakes(t *testing.T) {
	var m Map
	for i := range uint32(MaxEntries) {
		m = append(m, Range{i, 1000 + i, 1})
	}
	assert.NoError(t, m.Validate())
	assert.EqualError(t, append(m, Range{MaxEntries, 5000, 1}).Validate(), "the map has 341 entries: the kernel takes 340")
}

// Ranges may touch, in either order, and may not share an id, in either order, nor lie one in the
// other.
func TestRangesTouchAndDoNotOverlap(t *testing.T) {
	a, after, before := Range{100, 1000, 10}, Range{110, 2000, 5}, Range{95, 3000, 5}
	assert.NoError(t, Map{a, after}.Validate())
	assert.NoError(t, Map{after, a}.Validate())
	assert.NoError(t, Map{a, before}.Validate())
	assert.NoError(t, Map{before, a}.Validate())
	for _, o := range []Range{{109, 2000, 5}, {96, 2000, 5}, {103, 2000, 1}, {90, 2000, 40}} {
		assert.ErrorContains(t, Map{a, o}.Validate(), "overlap inside", "%v", o)
		assert.ErrorContains(t, Map{o, a}.Validate(), "overlap inside", "%v", o)
	}
	assert.NoError(t, Map{a, {0, 1010, 5}}.Validate())
	assert.NoError(t, Map{a, {0, 995, 5}}.Validate())
	for _, o := range []Range{{0, 1009, 5}, {0, 996, 5}, {0, 1003, 1}, {0, 990, 40}} {
		assert.EqualError(t, Map{a, o}.Validate(), "maps "+a.String()+" and "+o.String()+" overlap outside the namespace")
		assert.ErrorContains(t, Map{o, a}.Validate(), "overlap outside", "%v", o)
	}
}

// newuidmap gives a user's own id, and nothing beside it, without a line in /etc/subuid.
func TestOwnIdNeedsNoSubordinateRange(t *testing.T) {
	r, missing := Map{{0, 1000, 2}}.Missing(1000, nil)
	assert.True(t, missing, "the own id and the next one")
	assert.Equal(t, Range{0, 1000, 2}, r)
	r, missing = Map{{0, 1001, 1}}.Missing(1000, nil)
	assert.True(t, missing, "somebody else's id")
	assert.Equal(t, Range{0, 1001, 1}, r)
	r, missing = Map{{0, 1000, 1}}.Missing(1000, nil)
	assert.False(t, missing)
	assert.Equal(t, Range{}, r)
}

// One range of the outer map must hold all of it: two that touch do not (map_id_range_down).
func TestRangeIsMappedInOneOuterRange(t *testing.T) {
	outer := Map{{0, 1000, 1}, {1, 100000, 10}, {11, 200000, 10}}
	for _, m := range []Map{{}, {{0, 0, 1}}, {{0, 1, 10}}, {{0, 3, 5}, {5, 11, 10}}} {
		r, unmapped := m.Unmapped(outer)
		assert.False(t, unmapped, "%v", m)
		assert.Equal(t, Range{}, r)
	}
	for _, r := range []Range{{0, 0, 2}, {0, 1, 11}, {0, 5, 10}, {0, 11, 11}, {0, 21, 1}, {0, 4000, 1}} {
		got, unmapped := Map{{100, 3, 1}, r}.Unmapped(outer)
		assert.True(t, unmapped, "%v", r)
		assert.Equal(t, r, got)
	}
}
