package passthrough

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestXattrMap(t *testing.T) {
	type pair struct {
		in, out string
		e       unix.Errno // of ToHost; for ToGuest anything but 0 is "hidden"
	}
	const denied, unsupported = unix.EPERM, unix.EOPNOTSUPP
	for _, c := range []struct {
		rules   string
		toHost  []pair
		toGuest []pair
	}{
		{":prefix:all::user.virtiofs.: :bad:all:::",
			[]pair{{"trusted.foo", "user.virtiofs.trusted.foo", 0}, {"user.a", "user.virtiofs.user.a", 0}},
			[]pair{{"user.virtiofs.trusted.foo", "trusted.foo", 0}, {"user.own", "", denied}, {"user.virtiofs.", "", denied}}},
		{":map::user.virtiofs.:",
			[]pair{{"trusted.foo", "user.virtiofs.trusted.foo", 0}},
			[]pair{{"user.virtiofs.trusted.foo", "trusted.foo", 0}, {"security.selinux", "", denied}}},
		{"/map/trusted./user.virtiofs./",
			[]pair{{"trusted.a", "user.virtiofs.trusted.a", 0}, {"user.virtiofs.trusted.a", "", denied}, {"user.a", "user.a", 0}},
			[]pair{{"user.virtiofs.trusted.a", "trusted.a", 0}, {"trusted.a", "", denied}, {"user.a", "user.a", 0}}},
		{":bad:all:security.selinux:security.selinux:\n\t/unsupported/client/system./system./ :ok:all:::",
			[]pair{{"security.selinux", "", denied}, {"system.posix_acl_access", "", unsupported}, {"security.capability", "security.capability", 0}},
			[]pair{{"security.selinux", "", denied}, {"system.posix_acl_access", "system.posix_acl_access", 0}}},
		{"→ok→client→user.→→", // any character separates, and what no rule matches is denied
			[]pair{{"user.a", "user.a", 0}, {"trusted.a", "", denied}},
			[]pair{{"user.a", "", denied}}},
	} {
		m, err := ParseXattrMap(c.rules)
		require.NoError(t, err, c.rules)
		for _, p := range c.toHost {
			got, e := m.ToHost([]byte("~"), []byte(p.in))
			if !assert.Equal(t, p.e, e, "%s: %s", c.rules, p.in) || e != 0 {
				continue
			}
			assert.Equal(t, "~"+p.out, string(got), "%s: %s", c.rules, p.in)
		}
		for _, p := range c.toGuest {
			got, ok := m.ToGuest([]byte("~"), []byte(p.in))
			if assert.Equal(t, p.e == 0, ok, "%s: %s", c.rules, p.in) && ok {
				assert.Equal(t, "~"+p.out, string(got), "%s: %s", c.rules, p.in)
			}
		}
	}
}

// Without its hiding rules a map would let the guest write the host's copy of an attribute of another name.
func TestXattrMapKeepsSidesApart(t *testing.T) {
	m, err := ParseXattrMap(":map:security.:user.guest.:")
	require.NoError(t, err)
	for _, name := range []string{"security.capability", "user.guest.security.capability", "user.x"} {
		host, e := m.ToHost(nil, []byte(name))
		if e != 0 {
			continue
		}
		assert.NotEqual(t, "security.capability", string(host))
		guest, ok := m.ToGuest(nil, host)
		assert.True(t, ok && string(guest) == name, "%s comes back as %s", name, guest)
	}
}

func TestXattrMapErrors(t *testing.T) {
	for rules, want := range map[string]string{
		"":                              "no rule",
		" \t":                           "no rule",
		":ok:all:":                      "after the key",
		":ok:all::":                     "at the end",
		":ok":                           "after the type",
		":ok:both:::":                   `scope "both"`,
		":okay:all:::":                  `type "okay"`,
		":map::user.: :ok:all:::":       "last",
		":ok:all::: :prefix:all/a/b/":   "scope",
		":ok:all::: nonsense":           "rule 2",
		":ok:all::: :bad:client:user.:": "at the end",
	} {
		_, err := ParseXattrMap(rules)
		if assert.Error(t, err, rules) {
			assert.Contains(t, err.Error(), want, rules)
		}
	}
}

// FuzzXattrMap: the first rule that matches decides, whatever the rules; a name that is moved to the host by a map rule comes back as it
// was; what is denied gives no name.
func FuzzXattrMap(f *testing.F) {
	f.Add(":map:trusted.:user.virtiofs.:", "trusted.a")
	f.Add(":prefix:all::user.: /bad/all///", "x")
	f.Add(":map::user.virtiofs.:", "security.capability")
	f.Add(":unsupported:client:system.::\n:ok:server::user.:", "system.posix_acl_access")
	f.Fuzz(func(t *testing.T, rules, name string) {
		m, err := ParseXattrMap(rules)
		if err != nil {
			require.NotContains(t, strings.TrimSpace(err.Error()), "\n\n")
			return
		}
		host, e := m.ToHost(nil, []byte(name))
		if e != 0 {
			require.Contains(t, []unix.Errno{unix.EPERM, unix.EOPNOTSUPP}, e)
			require.Nil(t, host)
		} else {
			require.True(t, strings.HasSuffix(string(host), name), "a name is only ever put behind a prefix")
		}
		guest, keep := m.ToGuest(nil, []byte(name))
		if keep {
			require.True(t, strings.HasSuffix(name, string(guest)))
		}
		if kind, rest, ok := strings.Cut(strings.TrimLeft(rules, " \t\n"), "map:"); ok && kind == ":" && len(m.(xattrRules)) <= 4 {
			if key, _, ok := strings.Cut(rest, ":"); ok && strings.HasPrefix(name, key) && name != "" && e == 0 {
				back, keep := m.ToGuest(nil, host)
				require.True(t, keep)
				require.Equal(t, name, string(back))
			}
		}
	})
}
