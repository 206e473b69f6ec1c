package idmap

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzMap: what is parsed is written and parsed again to the same; a map that is valid is one-to-one, within 32 bits, and answers by its
// own ranges.
func FuzzMap(f *testing.F) {
	f.Add(":0:100000:65536:", uint32(5))
	f.Add(":0:1000:1: :1:100000:65535:", uint32(100000))
	f.Add("/1/2/3/", uint32(2))
	f.Add(":0:4294967295:1:", uint32(1<<32-1))
	f.Add(":0:0:4294967295:", uint32(0))
	f.Add("é1é2é3é", uint32(2))
	f.Add(":5:10:10: :15:0:10:", uint32(9))
	f.Fuzz(func(t *testing.T, text string, id uint32) {
		var m Map
		for _, word := range strings.Fields(text) {
			r, err := Parse(word)
			if err != nil {
				require.NotContains(t, err.Error(), "\n", "an error is one line")
				return
			}
			again, err := Parse(r.String())
			require.NoError(t, err)
			require.Equal(t, r, again)
			m = append(m, r)
		}
		if err := m.Validate(); err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		var ids uint64
		for _, r := range m {
			ids += uint64(r.Count)
			require.GreaterOrEqual(t, r.Last(), r.Outside)
			require.GreaterOrEqual(t, r.Inside+(r.Count-1), r.Inside)
			for _, outside := range []uint32{r.Outside, r.Last(), r.Outside + r.Count/2, id} {
				in, ok := m.Inside(outside)
				require.Equal(t, ok, m.HasOutside(outside))
				if ok {
					require.True(t, m.Has(in))
				}
			}
			in, ok := m.Inside(r.Outside)
			require.True(t, ok)
			require.Equal(t, r.Inside, in)
		}
		require.Equal(t, ids, m.Ids())
		_, missing := m.Missing(id, []Sub{{0, 1<<32 - 1}})
		require.False(t, missing, "all ids are subordinate")
		_, unmapped := m.Unmapped(Map{{0, 0, 1<<32 - 1}})
		require.False(t, unmapped, "all ids are mapped in the parent")
	})
}
