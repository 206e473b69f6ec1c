package passthrough

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// xattrRule is one rule of an attribute map: the guest's names are matched against key, the host's against prepend, both as
// prefixes.
type xattrRule struct {
	kind           xattrKind
	client, server bool
	key, prepend   string
}

type xattrKind int

const (
	xattrOK          xattrKind = iota // the name passes as it is
	xattrPrefix                       // prepend comes before the guest's name
	xattrBad                          // EPERM, hidden in lists
	xattrUnsupported                  // EOPNOTSUPP, hidden in lists
)

// xattrRules is an attribute map: the first rule that matches decides. A name that none matches is treated as by "bad".
type xattrRules []xattrRule

// ParseXattrMap reads the rules of virtiofsd's --xattrmap: any number of
//
//	:type:scope:key:prepend:
//
// with white space between them, where the first character of each rule, here ':', is its separator. Type is prefix, ok, bad or
// unsupported; scope is client (the guest's names), server (the host's names) or all. One last rule may be
//
//	:map:key:prepend:
//
// which stores the guest's names that begin with key under prepend, and keeps both sides from seeing the other's.
func ParseXattrMap(rules string) (XattrMapper, error) {
	var m xattrRules
	rest := strings.TrimLeftFunc(rules, unicode.IsSpace)
	if rest == "" {
		return nil, fmt.Errorf("attribute map %q has no rule: the least is :ok:all::: alone", rules)
	}
	for number := 1; rest != ""; number++ {
		bad := func(why string, args ...any) error {
			return fmt.Errorf("attribute map, rule %d, %q: %s", number, rest, fmt.Sprintf(why, args...))
		}
		sep, size := utf8.DecodeRuneInString(rest)
		field := func(s string) (string, string, bool) { return strings.Cut(s, string(sep)) }
		kind, tail, ok := field(rest[size:])
		if !ok {
			return nil, bad("no %q after the type", sep)
		}
		var r xattrRule
		isMap := false
		switch kind {
		case "prefix":
			r.kind = xattrPrefix
		case "ok":
			r.kind = xattrOK
		case "bad":
			r.kind = xattrBad
		case "unsupported":
			r.kind = xattrUnsupported
		case "map":
			isMap = true
		default:
			return nil, bad("type %q: use prefix, ok, bad, unsupported or map", kind)
		}
		if !isMap {
			var scope string
			if scope, tail, ok = field(tail); !ok {
				return nil, bad("no %q after the scope", sep)
			}
			switch scope {
			case "client":
				r.client = true
			case "server":
				r.server = true
			case "all":
				r.client, r.server = true, true
			default:
				return nil, bad("scope %q: use client, server or all", scope)
			}
		}
		if r.key, tail, ok = field(tail); !ok {
			return nil, bad("no %q after the key", sep)
		}
		if r.prepend, tail, ok = field(tail); !ok {
			return nil, bad("no %q at the end", sep)
		}
		tail = strings.TrimLeftFunc(tail, unicode.IsSpace)
		if isMap {
			if tail != "" {
				return nil, bad("a map rule has to be the last")
			}
			return append(m, expandMap(r.key, r.prepend)...), nil
		}
		m, rest = append(m, r), tail
	}
	return m, nil
}

// expandMap writes a map rule out.
func expandMap(key, prepend string) xattrRules {
	m := xattrRules{{kind: xattrPrefix, client: true, server: true, key: key, prepend: prepend}}
	if key == "" { // all names are moved: nothing else is seen
		return append(m, xattrRule{kind: xattrBad, client: true, server: true})
	}
	return append(m,
		xattrRule{kind: xattrBad, server: true, prepend: key}, // the host's own attributes of the names that are moved
		xattrRule{kind: xattrBad, client: true, key: prepend}, // the moved ones by their host's name
		xattrRule{kind: xattrOK, client: true, server: true},  // the rest
	)
}

// ToHost implements XattrMapper: EPERM for a denied name, EOPNOTSUPP for an unsupported one.
func (m xattrRules) ToHost(dst, guest []byte) ([]byte, unix.Errno) {
	for i := range m {
		r := &m[i]
		if !r.client || !hasPrefix(guest, r.key) {
			continue
		}
		switch r.kind {
		case xattrOK:
			return append(dst, guest...), 0
		case xattrPrefix:
			return append(append(dst, r.prepend...), guest...), 0
		case xattrUnsupported:
			return nil, unix.EOPNOTSUPP
		}
		return nil, unix.EPERM
	}
	return nil, unix.EPERM
}

// ToGuest implements XattrMapper.
func (m xattrRules) ToGuest(dst, host []byte) ([]byte, bool) {
	for i := range m {
		r := &m[i]
		if !r.server || !hasPrefix(host, r.prepend) {
			continue
		}
		switch r.kind {
		case xattrOK:
			return append(dst, host...), true
		case xattrPrefix:
			return append(dst, host[len(r.prepend):]...), len(host) > len(r.prepend)
		}
		return nil, false
	}
	return nil, false
}

func hasPrefix(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && string(b[:len(prefix)]) == prefix
}
