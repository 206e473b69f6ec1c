package sandbox

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/config"
	"virtiofsd/internal/idmap"
)

// TestWhatIsNotAsPlannedIsRefused has each thing that is read back differ from the plan.
func TestWhatIsNotAsPlannedIsRefused(t *testing.T) {
	m := idmap.Map{{Inside: 0, Outside: 100000, Count: 65536}}
	p := Plan{
		Mode: config.SandboxNamespace, Namespaces: append([]string{"user"}, kinds...), UIDMap: m, GIDMap: m, UID: 3, GID: 4,
		Keep: needed, Bounding: true, Readonly: true, Seccomp: "kill",
	}
	for _, op := range []Op{OpGroups, OpLandlock, OpSeccomp, OpPivot} {
		p.add(op, "", "")
	}
	planned := func() *State {
		return &State{
			New: slices.Clone(p.Namespaces), UIDMap: m, GIDMap: m, Interfaces: []string{"lo"}, Landlock: true,
			Mounts: []Mount{{"/", "ro,nosuid,nodev,relatime"}, {"/sub", "ro,nosuid,nodev"}},
			Thread: Thread{
				UID: []uint32{3, 3, 3, 3}, GID: []uint32{4, 4, 4, 4}, Groups: []uint32{}, Permitted: needed, Effective: needed, Bounding: needed, NoNewPrivs: 1, Seccomp: 2,
			},
		}
	}
	check := func(s *State, p *Plan) error { return (&Entered{State: *s}).check(p) }
	require.NoError(t, check(planned(), &p))
	other := idmap.Map{{Inside: 0, Outside: 0, Count: 65536}}
	for name, c := range map[string]struct {
		says   string
		change func(s *State)
	}{
		"user namespace":     {"the user namespace is the caller's", func(s *State) { s.New = s.New[1:] }},
		"network namespace":  {"the network namespace is the caller's", func(s *State) { s.New = slices.DeleteFunc(s.New, func(k string) bool { return k == "network" }) }},
		"user map":           {"users :0:0:65536: and groups :0:100000:65536: are mapped", func(s *State) { s.UIDMap = other }},
		"group map":          {"users :0:100000:65536: and groups :0:0:65536: are mapped", func(s *State) { s.GIDMap = other }},
		"interfaces":         {"network interfaces: [lo eth0]", func(s *State) { s.Interfaces = append(s.Interfaces, "eth0") }},
		"real user":          {"user ids [0 3 3 3]", func(s *State) { s.Thread.UID[0] = 0 }},
		"effective user":     {"user ids [3 0 3 3]", func(s *State) { s.Thread.UID[1] = 0 }},
		"saved user":         {"user ids [3 3 0 3]", func(s *State) { s.Thread.UID[2] = 0 }},
		"file system's user": {"user ids [3 3 3 0]", func(s *State) { s.Thread.UID[3] = 0 }},
		"no user":            {"user ids []", func(s *State) { s.Thread.UID = nil }},
		"saved group":        {"group ids [4 4 0 4]", func(s *State) { s.Thread.GID[2] = 0 }},
		"groups":             {"supplementary groups [4] are there", func(s *State) { s.Thread.Groups = []uint32{4} }},
		"effective":          {"capabilities sys_admin are there", func(s *State) { s.Thread.Effective |= Of(SysAdmin) }},
		"permitted":          {"capabilities sys_admin are there", func(s *State) { s.Thread.Permitted |= Of(SysAdmin) }},
		"ambient":            {"ambient or inheritable capabilities chown are there", func(s *State) { s.Thread.Ambient = Of(Chown) }},
		"inheritable":        {"ambient or inheritable capabilities chown are there", func(s *State) { s.Thread.Inherit = Of(Chown) }},
		"bounding set":       {"the bounding set has sys_admin", func(s *State) { s.Thread.Bounding |= Of(SysAdmin) }},
		"no_new_privs":       {"no_new_privs is not set", func(s *State) { s.Thread.NoNewPrivs = 0 }},
		"filter":             {"the system call filter is not on", func(s *State) { s.Thread.Seccomp = 1 }},
		"Landlock":           {"Landlock is not on", func(s *State) { s.Landlock = false }},
		"set-id programs":    {"the mount at /sub is not nosuid", func(s *State) { s.Mounts[1].Options = "ro,nodev" }},
		"devices":            {"the mount at / is not nodev", func(s *State) { s.Mounts[0].Options = "ro,nosuid" }},
		"read-only":          {"the mount at /sub is not ro", func(s *State) { s.Mounts[1].Options = "rw,nosuid,nodev" }},
		"another root":       {"the root is no mount", func(s *State) { s.Mounts = s.Mounts[1:] }},
		"no mounts":          {"the root is no mount", func(s *State) { s.Mounts = nil }},
	} {
		s := planned()
		c.change(s)
		err := check(s, &p)
		assert.ErrorContains(t, err, "not as planned: ", name)
		assert.ErrorContains(t, err, c.says, name)
	}
	s := planned()
	s.Mounts = nil
	s.Mode = "x"
	q := p
	q.Steps = slices.DeleteFunc(slices.Clone(p.Steps), func(s Step) bool { return s.Op == OpPivot })
	assert.NoError(t, check(s, &q), "where the root is the caller's, so are the mounts")
}
