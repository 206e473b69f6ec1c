package passthrough

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// idSpan is what becomes of the ids from first to last.
type idSpan struct {
	first, last uint32
	to          uint32 // of first
	squash      bool   // all become to
	forbid      bool   // none may be used
	rule        string
}

// idSpans are sorted and do not overlap. An id in none of them stays what it is.
type idSpans []idSpan

// translation is a Translator made of rules. The two directions have nothing to do with each other.
type translation struct {
	toHost, toGuest idSpans
}

// ParseTranslation reads the rules of virtiofsd's --translate-uid or --translate-gid; it returns nil for none. A rule is one of
//
//	guest:GUEST:HOST:COUNT         ids that the guest sends
//	host:HOST:GUEST:COUNT          ids that the guest is shown
//	map:GUEST:HOST:COUNT           both
//	squash-guest:GUEST:HOST:COUNT  ids that the guest sends, all become HOST
//	squash-host:HOST:GUEST:COUNT   ids that the guest is shown, all become GUEST
//	forbid-guest:GUEST:COUNT       ids that the guest may not use (EPERM)
//
// Rules for one direction must not overlap; ids without a rule stay as they are. A count of 0 is a rule for nothing.
func ParseTranslation(rules []string) (Translator, error) {
	if len(rules) == 0 {
		return nil, nil
	}
	t := &translation{}
	for _, rule := range rules {
		words := strings.Split(rule, ":")
		want := 4
		if words[0] == "forbid-guest" {
			want = 3
		}
		if !slices.Contains([]string{"guest", "host", "map", "squash-guest", "squash-host", "forbid-guest"}, words[0]) {
			return nil, fmt.Errorf("id translation %q: start with guest, host, map, squash-guest, squash-host or forbid-guest", rule)
		}
		if len(words) != want {
			return nil, fmt.Errorf("id translation %q: %s takes %d numbers, separated by ':'", rule, words[0], want-1)
		}
		n := make([]uint32, 0, 3)
		for _, w := range words[1:] {
			v, err := strconv.ParseUint(w, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("id translation %q: %q is not a number from 0 to 4294967295", rule, w)
			}
			n = append(n, uint32(v))
		}
		count := uint64(n[len(n)-1])
		if count == 0 {
			continue
		}
		span := func(from, to uint32) (idSpan, error) {
			if uint64(from)+count > 1<<32 {
				return idSpan{}, fmt.Errorf("id translation %q: %d ids from %d on end beyond 4294967295", rule, count, from)
			}
			return idSpan{first: from, last: from + uint32(count-1), to: to, rule: rule}, nil
		}
		from, err := span(n[0], n[1])
		if err != nil {
			return nil, err
		}
		switch words[0] {
		case "guest":
			if _, err := span(n[1], n[0]); err != nil {
				return nil, err
			}
			t.toHost = append(t.toHost, from)
		case "host":
			if _, err := span(n[1], n[0]); err != nil {
				return nil, err
			}
			t.toGuest = append(t.toGuest, from)
		case "map":
			back, err := span(n[1], n[0])
			if err != nil {
				return nil, err
			}
			t.toHost, t.toGuest = append(t.toHost, from), append(t.toGuest, back)
		case "squash-guest":
			from.squash = true
			t.toHost = append(t.toHost, from)
		case "squash-host":
			from.squash = true
			t.toGuest = append(t.toGuest, from)
		case "forbid-guest":
			from.forbid = true
			t.toHost = append(t.toHost, from)
		}
	}
	for _, spans := range []idSpans{t.toHost, t.toGuest} {
		if err := spans.sort(); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (s idSpans) sort() error {
	slices.SortFunc(s, func(a, b idSpan) int { return cmp.Compare(a.first, b.first) })
	for i := 1; i < len(s); i++ {
		if s[i].first <= s[i-1].last {
			return fmt.Errorf("id translations %q and %q overlap", s[i-1].rule, s[i].rule)
		}
	}
	return nil
}

func (s idSpans) apply(id uint32) (uint32, unix.Errno) {
	i, found := slices.BinarySearchFunc(s, id, func(a idSpan, id uint32) int { return cmp.Compare(a.first, id) })
	if !found {
		i--
	}
	if i < 0 || s[i].last < id {
		return id, 0
	}
	switch {
	case s[i].forbid:
		return 0, unix.EPERM
	case s[i].squash:
		return s[i].to, 0
	}
	return s[i].to + (id - s[i].first), 0
}

// ToHost implements Translator.
func (t *translation) ToHost(id uint32) (uint32, unix.Errno) { return t.toHost.apply(id) }

// ToGuest implements Translator.
func (t *translation) ToGuest(id uint32) (uint32, unix.Errno) { return t.toGuest.apply(id) }
