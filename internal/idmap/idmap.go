package idmap

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// MaxEntries is how many lines the kernel takes in /proc/PID/uid_map (UID_GID_MAP_MAX_EXTENTS).
const MaxEntries = 340

// Range maps Count ids from Inside (in the user namespace) on to those from Outside (in its parent) on.
type Range struct {
	Inside  uint32 `json:"inside"`
	Outside uint32 `json:"outside"`
	Count   uint32 `json:"count"`
}

// String is the range in the grammar of --uid-map.
func (r Range) String() string { return fmt.Sprintf(":%d:%d:%d:", r.Inside, r.Outside, r.Count) }

// Map is a list of ranges; the order has no meaning but is kept.
type Map []Range

// Ids is how many ids are mapped.
func (m Map) Ids() (n uint64) {
	for _, r := range m {
		n += uint64(r.Count)
	}
	return n
}

// Inside returns the id in the namespace for one outside, and whether it is mapped.
func (m Map) Inside(outside uint32) (uint32, bool) {
	for _, r := range m {
		if outside >= r.Outside && outside-r.Outside < r.Count {
			return r.Inside + (outside - r.Outside), true
		}
	}
	return 0, false
}

// Has reports whether an id of the namespace is mapped.
func (m Map) Has(inside uint32) bool {
	return slices.ContainsFunc(m, func(r Range) bool { return inside >= r.Inside && inside-r.Inside < r.Count })
}

// String is the map as the options that ask for it, without their names.
func (m Map) String() string {
	var s []string
	for _, r := range m {
		s = append(s, r.String())
	}
	return strings.Join(s, " ")
}

// Parse reads one range: three numbers, inside, outside and count, each enclosed by a delimiter, which is any character that is
// neither letter nor digit and is the same throughout: ":0:100000:65536:".
func Parse(s string) (Range, error) {
	bad := func(why string) (Range, error) {
		return Range{}, fmt.Errorf("map %q %s; write :INSIDE:OUTSIDE:COUNT:, such as :0:100000:65536: does", s, why)
	}
	if s == "" {
		return bad("is empty")
	}
	d := []rune(s)[0]
	if unicode.IsLetter(d) || unicode.IsDigit(d) {
		return bad("does not start with a delimiter")
	}
	f := strings.Split(s, string(d))
	if len(f) != 5 || f[4] != "" {
		return bad("is not three numbers between delimiters")
	}
	var n [3]uint32
	for i := range n {
		v, err := strconv.ParseUint(f[i+1], 10, 32)
		if err != nil {
			return bad(fmt.Sprintf("has %q where a number from 0 to 4294967295 is due", f[i+1]))
		}
		n[i] = uint32(v)
	}
	return Range{n[0], n[1], n[2]}, nil
}

// Validate refuses what the kernel would: no entries, too many, an empty or overflowing range, overlaps on either side.
func (m Map) Validate() error {
	if len(m) == 0 {
		return fmt.Errorf("the map is empty")
	}
	if len(m) > MaxEntries {
		return fmt.Errorf("the map has %d entries: the kernel takes %d", len(m), MaxEntries)
	}
	for i, r := range m {
		switch {
		case r.Count == 0:
			return fmt.Errorf("map %v maps nothing: its count is 0", r)
		case uint64(r.Inside)+uint64(r.Count) > 1<<32-1, uint64(r.Outside)+uint64(r.Count) > 1<<32-1:
			return fmt.Errorf("map %v goes beyond the last id", r)
		}
		for _, o := range m[:i] {
			if overlap(r.Inside, o.Inside, r.Count, o.Count) {
				return fmt.Errorf("maps %v and %v overlap inside the namespace", o, r)
			}
			if overlap(r.Outside, o.Outside, r.Count, o.Count) {
				return fmt.Errorf("maps %v and %v overlap outside the namespace", o, r)
			}
		}
	}
	return nil
}

func overlap(a, b, na, nb uint32) bool {
	return uint64(a) < uint64(b)+uint64(nb) && uint64(b) < uint64(a)+uint64(na)
}

// Sub is a range of subordinate ids that /etc/subuid or /etc/subgid gives to a user.
type Sub struct {
	First uint32 `json:"first"`
	Count uint32 `json:"count"`
}

// Own reports whether the map is just the one own id, which the kernel lets its owner map without help.
func (m Map) Own(id uint32) bool { return len(m) == 1 && m[0].Count == 1 && m[0].Outside == id }

// Missing returns the first range of outside ids which neither is the own id nor lies in one of the subordinate ranges: newuidmap
// would refuse the map for it.
func (m Map) Missing(own uint32, subs []Sub) (Range, bool) {
	for _, r := range m {
		if r.Count == 1 && r.Outside == own {
			continue
		}
		if !slices.ContainsFunc(subs, func(s Sub) bool {
			return r.Outside >= s.First && uint64(r.Outside)+uint64(r.Count) <= uint64(s.First)+uint64(s.Count)
		}) {
			return r, true
		}
	}
	return Range{}, false
}

// Take is the id of the namespace as which a process works that comes from outside with an id of
// its own: 0 where that is mapped, or else what the own id is inside, or else the first that is
// mapped at all. The map is not empty.
func (m Map) Take(own uint32) uint32 {
	if m.Has(0) {
		return 0
	}
	if inside, ok := m.Inside(own); ok {
		return inside
	}
	return m[0].Inside
}

// Last is the last id of the range outside. The range is not empty.
func (r Range) Last() uint32 { return r.Outside + (r.Count - 1) }

// HasOutside reports whether an id of the parent namespace is mapped.
func (m Map) HasOutside(outside uint32) bool {
	_, ok := m.Inside(outside)
	return ok
}

// Unmapped returns the first range whose outside ids are not all mapped in outer, the map of the namespace that they belong to: the kernel
// takes a range only where one range of the parent holds all of it (kernel/user_namespace.c, map_id_range_down).
func (m Map) Unmapped(outer Map) (Range, bool) {
	for _, r := range m {
		if !slices.ContainsFunc(outer, func(o Range) bool {
			return r.Outside >= o.Inside && uint64(r.Outside)+uint64(r.Count) <= uint64(o.Inside)+uint64(o.Count)
		}) {
			return r, true
		}
	}
	return Range{}, false
}
