package sandbox

import (
	"slices"
	"strings"

	"virtiofsd/internal/config"
	"virtiofsd/internal/idmap"
)

// Question is one of the decision guide: which way of running the daemon is for whom.
type Question struct {
	ID      string   `json:"id"`
	Ask     string   `json:"ask"`
	Answers []Answer `json:"answers"`
}

// Answer leads to another question or to a choice.
type Answer struct {
	Say    string  `json:"say"`
	Next   string  `json:"next,omitempty"`
	Choice *Choice `json:"choice,omitempty"`
}

// Choice is the end of the guide. What to give the daemon, and what is left open, are those of [Check] and [Make] for somebody like that.
type Choice struct {
	Case string   `json:"case"` // of the virtio-fs use cases A to E
	Mode string   `json:"mode"`
	Argv []string `json:"argv"`
	Open []string `json:"open,omitempty"`
}

// Guide is the decision guide, the first question first. It is pure.
func Guide() ([]Question, error) {
	const all = Caps(1<<41 - 1)
	initial := idmap.Map{{Inside: 0, Outside: 0, Count: 1<<32 - 1}}
	someone := func(uid uint32, caps Caps) Facts {
		return Facts{
			UID: uid, GID: uid, Groups: []uint32{100}, Effective: caps, Bounding: all, LastCap: 40, UIDMap: initial, GIDMap: initial,
			Seccomp: true, Landlock: 7,
		}
	}
	root, user := someone(0, all), someone(1000, 0)
	ranged := user
	ranged.Newuidmap, ranged.Newgidmap = "/usr/bin/newuidmap", "/usr/bin/newgidmap"
	ranged.SubUID, ranged.SubGID = []idmap.Sub{{First: 100000, Count: 65536}}, []idmap.Sub{{First: 100000, Count: 65536}}
	shut := user
	shut.UserNamespaces = "sysctl user.max_user_namespaces is 0"
	pod := shut
	pod.NoNewPrivs, pod.Bounding = true, 0
	one, many := root, root
	one.UIDMap, one.SetgroupsDenied = idmap.Map{{Inside: 0, Outside: 1000, Count: 1}}, true
	one.GIDMap = one.UIDMap
	many.UIDMap = idmap.Map{{Inside: 0, Outside: 1000, Count: 1}, {Inside: 1, Outside: 100000, Count: 65536}}
	many.GIDMap = many.UIDMap
	container := someone(0, Of(Chown, DacOverride, Fowner, Fsetid, Setgid, Setuid, Setpcap, SysChroot, Setfcap))
	container.UserNamespaces = "the container's filter forbids it"
	admin := container
	admin.Effective |= Of(SysAdmin)

	var failed error
	choose := func(use string, f Facts, more ...string) *Choice {
		c, err := choice(use, f, more)
		if err != nil && failed == nil {
			failed = err
		}
		return c
	}
	guide := []Question{
		{"who", "Who starts the daemon?", []Answer{
			{"root of the host", "owner", nil},
			{"an ordinary user", "namespaces", nil},
			{"root of a user namespace that the launcher has made, with CAP_SYS_ADMIN in it (LXD, mkosi, unshare, bubblewrap)", "mapped", nil},
			{"root of a container", "admin", nil},
			{"somebody without any capability under no_new_privs, as in a hardened pod", "", choose("E", pod)},
		}},
		{"owner", "Who should own, on the host, the files that guest users create?", []Answer{
			{"the host's users with the same ids", "", choose("A", root)},
			{"a range of ids that nobody else has", "", choose("A", root, "--uid-map=:0:100000:65536:", "--gid-map=:0:100000:65536:")},
		}},
		{"namespaces", "May the user make user namespaces? (virtiofsd --check tells)", []Answer{
			{"yes", "users", nil},
			{"no", "", choose("E", shut)},
		}},
		{"users", "Does the guest have several users who own files?", []Answer{
			{"yes, and /etc/subuid and /etc/subgid give the caller a range", "", choose("C", ranged)},
			{"yes, but all files may belong to the caller", "", choose("B", user, "--single-user")},
			{"no, one user with the caller's id; others are refused (EPERM)", "", choose("B", user)},
		}},
		{"mapped", "Which ids does that namespace map?", []Answer{
			{"a range, with setgroups allowed", "made", nil},
			{"one", "made-one", nil},
		}},
		{"made", "Has the launcher of a range made the process and network namespaces as well?", []Answer{
			{"no, as with LXD, so the daemon makes them", "", choose("D", many, "--sandbox=namespace")},
			{"yes; the share becomes the root, and nothing else is mounted", "", choose("D", many, "--sandbox=pivot_root")},
		}},
		{"made-one", "Has the launcher of one id made the process and network namespaces as well?", []Answer{
			{"no, as with unshare or mkosi (--no-fail-setgroups is not needed without supplementary groups)", "", choose("D", one, "--sandbox=namespace")},
			{"yes, as with bubblewrap (--no-fail-setgroups is not needed without supplementary groups)", "", choose("D", one, "--sandbox=pivot_root")},
		}},
		{"admin", "Does the container let its root mount?", []Answer{
			{"yes, it gives CAP_SYS_ADMIN", "", choose("A", admin)},
			{"no, as engines have it by default", "", choose("D", container)},
		}},
	}
	return guide, failed
}

// choice is what [Check] recommends to somebody, with more options; a --sandbox among them takes the place of the recommended one.
func choice(use string, f Facts, more []string) (*Choice, error) {
	socket := "$XDG_RUNTIME_DIR/vm1-fs.sock" // only root may make one in /run itself
	switch {
	case f.UID == 0 && f.Initial():
		socket = "/run/vm1-fs.sock"
	case f.NoNewPrivs:
		socket = "/run/vm1/fs.sock"
	}
	common := []string{"--shared-dir=/srv/share", "--socket-path=" + socket}
	o, err := config.Parse(common)
	if err != nil {
		return nil, err
	}
	ways := Check(o, f).Ways
	if slices.Contains(more, "--single-user") || len(f.SubUID) == 0 {
		ways = slices.DeleteFunc(ways, func(w Way) bool { return len(w.Options) > 1 && strings.HasPrefix(w.Options[1], "--uid-map") })
	}
	if len(more) > 0 && strings.HasPrefix(more[0], "--sandbox=") {
		ways = slices.DeleteFunc(ways, func(w Way) bool { return w.Options[0] != more[0] })
		more = more[1:]
	}
	i := slices.IndexFunc(ways, func(w Way) bool { return w.Works })
	argv := slices.Concat([]string{"virtiofsd"}, common, ways[i].Options, more)
	if o, err = config.Parse(argv[1:]); err != nil {
		return nil, err
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	p, err := Make(o, f)
	if err != nil {
		return nil, err
	}
	return &Choice{Case: use, Mode: p.Mode, Argv: argv, Open: p.Open}, nil
}
