package verdict_test

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/probe"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
	"virtiofsd/harness/verdict"
)

// seen makes an observation as the runner does.
func seen(t *testing.T, step string, facts any) result.Observation {
	t.Helper()
	b, err := json.Marshal(facts)
	require.NoError(t, err)
	what, _, _ := strings.Cut(step, "/") // another step of the same probe
	if step == "proc-started" {
		what = scenario.ProbeProc
	}
	where := result.Guest
	if slices.Contains(scenario.HostProbes(), what) {
		where = result.Host
	}
	return result.Observation{Step: step, Probe: what, Where: where, Facts: b}
}

// obs are the facts of a cell by step.
type obs map[string]any

func view(t *testing.T, facts obs) *verdict.View {
	t.Helper()
	v := &verdict.View{Scenario: &scenario.Scenario{ID: "a-test", Guest: scenario.Guest{RequestQueues: 2}}, Cell: result.Cell{Status: result.CellRan}}
	for _, step := range slices.Sorted(maps.Keys(facts)) {
		v.Observations = append(v.Observations, seen(t, step, facts[step]))
	}
	return v
}

// caps8 are the capabilities of a file server, as bits: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP.
const caps8 = 0x880000db

// thread is one as a well-behaved daemon has it.
func thread(change ...func(*probe.Thread)) probe.Thread {
	t := probe.Thread{TID: 7, Groups: []int{}, CapPrm: caps8, CapEff: caps8, CapBnd: caps8, NoNewPrivs: 1, Seccomp: 2}
	for _, c := range change {
		c(&t)
	}
	return t
}

func space(suffix string) map[string]string {
	m := map[string]string{}
	for _, k := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup", "user"} {
		m[k] = k + ":[" + suffix + "]"
	}
	return m
}

// proc is a parent that waits and a child that serves in the sandbox.
func proc(change ...func(*probe.Proc)) probe.Proc {
	p := probe.Proc{
		Launcher: probe.Process{Namespaces: space("host")},
		Processes: []probe.Process{
			{PID: 10, Namespaces: space("host"), RootIsDir: "host", CwdIsDir: "host", Threads: []probe.Thread{thread(func(t *probe.Thread) { t.CapPrm, t.CapEff, t.CapBnd = 0, 0, 0 })}},
			{PID: 11, Namespaces: space("own"), RootIsDir: "share", CwdIsDir: "share", UIDMap: "0 0 4294967295", GIDMap: "0 0 4294967295", Threads: []probe.Thread{thread(), thread()}},
		},
		Serving: 1,
	}
	for _, c := range change {
		c(&p)
	}
	return p
}

// oneThread changes the last thread of the serving process, and no other.
func oneThread(f func(*probe.Thread)) func(*probe.Proc) {
	return func(p *probe.Proc) { f(&p.Processes[1].Threads[1]) }
}

func hello(mounts ...guestproto.Mount) guestproto.Hello {
	return guestproto.Hello{Release: "6.12.0", Mounts: mounts, Devices: []guestproto.Device{{Name: "virtio0", RequestQueues: 2}}}
}

func info(change ...func(*guestproto.Info)) guestproto.Info {
	i := guestproto.Info{Hello: hello(guestproto.Mount{Tag: "share", OK: true}), KernelTrouble: []string{}}
	for _, c := range change {
		c(&i)
	}
	return i
}

func exit(change ...func(*probe.Exit)) probe.Exit {
	e := probe.Exit{GuestDone: true, Processes: []int{}, Mounts: []string{}, Files: []string{}}
	for _, c := range change {
		c(&e)
	}
	return e
}

func link(name string, is guestproto.Status) guestproto.Check {
	return guestproto.Check{Name: name, Status: is}
}

func checksOf(all ...guestproto.Check) map[string]any { return map[string]any{"checks": all} }

func created(change ...func(*guestproto.Ownership)) guestproto.Identity {
	v := guestproto.View{UID: 1000, GID: 100, Mode: "0100644"}
	o := guestproto.Ownership{Path: "plain/f", Kind: "file", As: guestproto.Cred{UID: 1000, GID: 100}, Parent: "plain", Share: v, Local: v, Same: true}
	for _, c := range change {
		c(&o)
	}
	return guestproto.Identity{Dir: "identity", Created: []guestproto.Ownership{o}}
}

func owner(uid, gid int) probe.Owners {
	return probe.Owners{Entries: []probe.Owner{{Path: "plain/f", UID: uid, GID: gid, Mode: "0100644"}}}
}

func walked(change ...func(*guestproto.Entry)) guestproto.Walk {
	e := guestproto.Entry{Path: "f", View: guestproto.View{UID: 1000, GID: 100, Mode: "0100644"}, SHA256: "aa"}
	for _, c := range change {
		c(&e)
	}
	return guestproto.Walk{Entries: []guestproto.Entry{e}}
}

func hashed() probe.Owners {
	return probe.Owners{Entries: []probe.Owner{{Path: "f", UID: 1000, GID: 100, Mode: "0100644", SHA256: "aa"}}}
}

func mounts(all ...probe.Mount) probe.Mounts {
	return probe.Mounts{Mounts: append([]probe.Mount{}, all...)}
}

var root = probe.Mount{Point: "/", Root: "/srv", FSType: "ext4", Options: "rw,nosuid,nodev,relatime"}

// ruleCase is facts, and what a rule must find in them.
type ruleCase struct {
	name string
	of   []string
	obs  obs
	want verdict.State
	saw  string
}

// ruleCases says for every rule of the judge which facts hold and which violate it.
func ruleCases() map[string][]ruleCase {
	const h, v, n, b = verdict.Holds, verdict.Violated, verdict.Neither, verdict.Broken
	groups := func(t *probe.Thread) { t.Groups = []int{4, 1000} }
	files := []string{"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "MKNOD", "SETFCAP"}
	big := guestproto.BigIO{Path: "bigio/big", Bytes: 1 << 20, WroteSHA256: "aa", ReadSHA256: "aa"}
	beside := probe.Outside{Entries: 2, Changed: []string{}}
	onHost := probe.SHA256{Path: "bigio/big", Bytes: 1 << 20, SHA256: "aa"}
	tree := guestproto.Tree{Files: 9, Made: 9, Listed: 9, Renamed: 9, ListedAfter: 9, Removed: 9}
	pass := guestproto.Check{Name: "rename", Status: guestproto.StatusPass}
	return map[string][]ruleCase{
		"started": {
			{"mounted", nil, obs{"info": info()}, h, "mounted by Linux 6.12.0"},
			{"mount refused", nil, obs{"info": info(func(i *guestproto.Info) { i.Mounts[0] = guestproto.Mount{Tag: "share", Errno: "EIO"} })}, v, "cannot mount share: EIO"},
			{"second mount refused", nil, obs{"info": info(func(i *guestproto.Info) { i.Mounts = append(i.Mounts, guestproto.Mount{Tag: "b", Errno: "EINVAL"}) })}, v, "EINVAL"},
			{"nothing asked for", nil, obs{"info": info(func(i *guestproto.Info) { i.Mounts = nil })}, b, "not asked to mount"},
		},
		"attempts": {
			{"none out", []string{"link-*"}, obs{"containment": guestproto.Containment{Attempts: []guestproto.Attempt{{Name: "link-open", Errno: "ELOOP"}}}}, h, "1 attempts"},
			{"one out", []string{"link-*"}, obs{"containment": guestproto.Containment{Attempts: []guestproto.Attempt{{Name: "link-open"}, {Name: "link-stat", Escaped: true, Saw: "secret"}}}}, v, "link-stat got out: secret"},
			{"another's escape", []string{"link-*"}, obs{"containment": guestproto.Containment{Attempts: []guestproto.Attempt{{Name: "link-open"}, {Name: "dotdot-root", Escaped: true}}}}, h, "1 attempts"},
			{"a slash in the name", []string{"name-*"}, obs{"containment": guestproto.Containment{Attempts: []guestproto.Attempt{{Name: "name-a/b", Escaped: true}}}}, v, "name-a/b"},
			{"none of that name", []string{"link-*"}, obs{"containment": guestproto.Containment{Attempts: []guestproto.Attempt{{Name: "dotdot-root"}}}}, b, "no attempt"},
		},
		"withstands": {
			{"all", []string{"name-*"}, obs{"hostile": probe.Hostile{Cases: []probe.HostileCase{{Name: "name-dot", Withstood: true}, {Name: "name-slash", Withstood: true}}}}, h, "2 cases"},
			{"one not", []string{"name-*"}, obs{"hostile": probe.Hostile{Cases: []probe.HostileCase{{Name: "name-dot", Withstood: true}, {Name: "name-slash", Outcome: "escaped", Detail: "x"}}}}, v, "name-slash: escaped x"},
			{"another's", []string{"name-*"}, obs{"hostile": probe.Hostile{Cases: []probe.HostileCase{{Name: "name-dot", Withstood: true}, {Name: "len-0", Outcome: "died"}}}}, h, "1 cases"},
			{"none of that name", []string{"name-*"}, obs{"hostile": probe.Hostile{Cases: []probe.HostileCase{{Name: "len-0", Withstood: true}}}}, b, "no case"},
		},
		"driven": {
			{"all", []string{"copy-*"}, obs{"driven": probe.Driven{Checks: []guestproto.Check{{Name: "copy-up", Status: guestproto.StatusPass}, {Name: "few", Status: guestproto.StatusFail}}}}, h, "1 checks"},
			{"one not", []string{"copy-*"}, obs{"driven": probe.Driven{Checks: []guestproto.Check{{Name: "copy-a", Status: guestproto.StatusPass}, {Name: "copy-b", Status: guestproto.StatusFail, Detail: "stale"}}}}, v, "copy-b: stale"},
			{"one not, one declined", []string{"copy-*"}, obs{"driven": probe.Driven{Checks: []guestproto.Check{{Name: "copy-a", Status: guestproto.StatusSkip}, {Name: "copy-b", Status: guestproto.StatusFail, Detail: "stale"}}}}, v, "copy-b: stale"},
			{"declined", []string{"copy-*"}, obs{"driven": probe.Driven{Checks: []guestproto.Check{{Name: "copy-a", Status: guestproto.StatusSkip, Detail: "no room"}}}}, n, "no room"},
			{"no option", []string{"copy-*"}, obs{"driven": probe.Driven{Checks: []guestproto.Check{{Name: "copy-a", Status: guestproto.StatusUnsupported, Detail: "no option"}}}}, n, "no option"},
			{"an unknown status", []string{"copy-*"}, obs{"driven": probe.Driven{Checks: []guestproto.Check{{Name: "copy-a"}}}}, v, "copy-a"},
			{"none of that name", []string{"few-*"}, obs{"driven": probe.Driven{Checks: []guestproto.Check{{Name: "copy-a", Status: guestproto.StatusPass}}}}, b, "no check"},
		},
		"outside": {
			{"as it was", nil, obs{"outside": probe.Outside{Entries: 3, Changed: []string{}}}, h, "3 entries"},
			{"a new file", nil, obs{"outside": probe.Outside{Entries: 3, Changed: []string{"x: new"}}}, v, "x: new"},
			{"nothing planted", nil, obs{"outside": probe.Outside{Changed: []string{}}}, b, "nothing was planted"},
		},
		"root-is-share": {
			{"both", nil, obs{"proc": proc()}, h, "root is the share's"},
			{"root is the host's", nil, obs{"proc": proc(func(p *probe.Proc) { p.Processes[1].RootIsDir = "host" })}, v, "root is the host's"},
			{"cwd is another", nil, obs{"proc": proc(func(p *probe.Proc) { p.Processes[1].CwdIsDir = "other" })}, v, "working directory the other's"},
		},
		"namespaces": {
			{"own", []string{"mnt", "net"}, obs{"proc": proc()}, h, "own mnt, net"},
			{"one shared", []string{"mnt", "net"}, obs{"proc": proc(func(p *probe.Proc) { p.Processes[1].Namespaces["net"] = "net:[host]" })}, v, "net namespace is the launcher's"},
			{"unknown kind", []string{"moon"}, obs{"proc": proc()}, b, `kind "moon"`},
		},
		"one-mount": {
			{"one", nil, obs{"mounts": mounts(root)}, h, "one mount"},
			{"proc as well", nil, obs{"mounts": mounts(root, probe.Mount{Point: "/proc", FSType: "proc"})}, v, "/proc (proc)"},
			{"none of its own", nil, obs{"mounts": mounts()}, v, "no mount of its own"},
			{"nothing said", nil, obs{"mounts": probe.Mounts{}}, b, "say nothing of mounts"},
		},
		"mount-options": {
			{"there", []string{"nosuid", "nodev"}, obs{"mounts": mounts(root)}, h, "nosuid,nodev"},
			{"one missing", []string{"nosuid", "ro"}, obs{"mounts": mounts(root)}, v, "without ro"},
			{"part of a word", []string{"suid"}, obs{"mounts": mounts(root)}, v, "without suid"},
			{"no root", []string{"ro"}, obs{"mounts": mounts(probe.Mount{Point: "/proc"})}, v, "no mount of its own"},
			{"nothing said", []string{"ro"}, obs{"mounts": probe.Mounts{}}, b, "say nothing of mounts"},
		},
		"fds-inside": {
			{"inside", nil, obs{"fds": probe.FDs{FDs: []probe.FD{{FD: 3, Kind: "dir", Leads: "share"}, {FD: 4, Kind: "eventfd"}}}}, h, "2 descriptors"},
			{"climbs to the host", nil, obs{"fds": probe.FDs{FDs: []probe.FD{{FD: 5, Target: "/proc/1/fd", Leads: "host"}}}}, v, "5 (/proc/1/fd) leads to the host's root"},
			{"a file of the host", nil, obs{"fds": probe.FDs{FDs: []probe.FD{{FD: 6, Target: "/etc/shadow", Outside: true}}}}, v, "6 is /etc/shadow"},
			{"standard error may be a file", nil, obs{"fds": probe.FDs{FDs: []probe.FD{{FD: 2, Target: "/var/log/x", Outside: true}}}}, h, ""},
			{"none", nil, obs{"fds": probe.FDs{}}, b, "no descriptor"},
		},
		"groups-dropped": {
			{"none", []string{"serving"}, obs{"proc": proc()}, h, "no supplementary group in 2 threads"},
			{"none in the parent", []string{"others"}, obs{"proc": proc(oneThread(groups))}, h, "no supplementary group in 1 threads"},
			{"one thread", []string{"serving"}, obs{"proc": proc(oneThread(groups))}, v, "1 of 2 threads of the serving process have the groups [4 1000]"},
			{"the parent is another claim's", []string{"serving"}, obs{"proc": proc(func(p *probe.Proc) { groups(&p.Processes[0].Threads[0]) })}, h, ""},
			{"the parent", []string{"others"}, obs{"proc": proc(func(p *probe.Proc) { groups(&p.Processes[0].Threads[0]) })}, v, "process that does not serve has the groups"},
		},
		"caps-within": {
			{"eight", files, obs{"proc": proc()}, h, "CHOWN, DAC_OVERRIDE"},
			{"one more, in one thread's permitted set", files, obs{"proc": proc(oneThread(func(t *probe.Thread) { t.CapPrm |= 1 << 21 }))}, v, "SYS_ADMIN beyond the list"},
			{"ambient counts", files, obs{"proc": proc(oneThread(func(t *probe.Thread) { t.CapAmb |= 1 << 21 }))}, v, "SYS_ADMIN"},
			{"inheritable counts", files, obs{"proc": proc(oneThread(func(t *probe.Thread) { t.CapInh |= 1 << 21 }))}, v, "SYS_ADMIN"},
			{"bounding does not", files, obs{"proc": proc(oneThread(func(t *probe.Thread) { t.CapBnd |= 1 << 21 }))}, h, ""},
			{"a word that is none", []string{"FLY"}, obs{"proc": proc()}, b, `unknown capability "FLY"`},
		},
		"caps-without": {
			{"without", []string{"DAC_READ_SEARCH"}, obs{"proc": proc()}, h, "none of DAC_READ_SEARCH"},
			{"in one thread's permitted set", []string{"DAC_READ_SEARCH"}, obs{"proc": proc(oneThread(func(t *probe.Thread) { t.CapPrm |= 1 << 2 }))}, v, "DAC_READ_SEARCH"},
			{"the bounding set is another claim's", []string{"DAC_READ_SEARCH"}, obs{"proc": proc(oneThread(func(t *probe.Thread) { t.CapBnd |= 1 << 2 }))}, h, ""},
			{"a word that is none", []string{"FLY"}, obs{"proc": proc()}, b, `"FLY"`},
		},
		"bounding-within": {
			{"within", files, obs{"proc": proc()}, h, "bounding set within the list"},
			{"full", files, obs{"proc": proc(oneThread(func(t *probe.Thread) { t.CapBnd = 1<<41 - 1 }))}, v, "33 capabilities"},
			{"a word that is none", []string{"FLY"}, obs{"proc": proc()}, b, `"FLY"`},
		},
		"parent-caps-none": {
			{"none", nil, obs{"proc": proc()}, h, "no capability in 1 threads"},
			{"alone", nil, obs{"proc": proc(func(p *probe.Proc) { p.Processes, p.Serving = p.Processes[1:], 0 })}, h, "no other process"},
			{"keeps all", nil, obs{"proc": proc(func(p *probe.Proc) { p.Processes[0].Threads[0].CapPrm = 1<<41 - 1 })}, v, "41 capabilities"},
		},
		"no-new-privs": {
			{"set", nil, obs{"proc": proc()}, h, "in each of 2 threads"},
			{"one thread without", nil, obs{"proc": proc(oneThread(func(t *probe.Thread) { t.NoNewPrivs = 0 }))}, v, "1 of 2 threads"},
		},
		"seccomp": {
			{"on", nil, obs{"proc": proc()}, h, "in each of 2 threads"},
			{"one thread without", nil, obs{"proc": proc(oneThread(func(t *probe.Thread) { t.Seccomp = 0 }))}, v, "seccomp mode 0"},
		},
		"before-guest": {
			{"same", nil, obs{"proc-started": proc(), "proc": proc()}, h, "do not change"},
			{"net later", nil, obs{"proc-started": proc(func(p *probe.Proc) { p.Processes[1].Namespaces["net"] = "net:[host]" }), "proc": proc()}, v, "net namespace is entered only after"},
			{"capabilities until then", nil, obs{"proc-started": proc(oneThread(func(t *probe.Thread) { t.CapEff |= 1 << 21 })), "proc": proc()}, v, "holds until then SYS_ADMIN"},
			{"seccomp later", nil, obs{"proc-started": proc(oneThread(func(t *probe.Thread) { t.Seccomp = 0 })), "proc": proc()}, v, "no seccomp filter until then"},
			{"root later", nil, obs{"proc-started": proc(func(p *probe.Proc) { p.Processes[1].RootIsDir = "host" }), "proc": proc()}, v, "root is the host's until then"},
			{"nobody looked before", nil, obs{"proc": proc()}, b, "no observation"},
			{"nobody looked after", nil, obs{"proc-started": proc()}, b, "no observation"},
		},
		"not-host-root": {
			{"mapped", nil, obs{"proc": proc(func(p *probe.Proc) {
				for i := range p.Processes[1].Threads {
					t := &p.Processes[1].Threads[i]
					t.UID, t.GID = [4]int{1000, 1000, 1000, 1000}, [4]int{1000, 1000, 1000, 1000}
				}
			})}, h, "neither uid 0"},
			{"the file system's gid of one thread", nil, obs{"proc": proc(func(p *probe.Proc) {
				for i := range p.Processes[1].Threads {
					t := &p.Processes[1].Threads[i]
					t.UID, t.GID = [4]int{1000, 1000, 1000, 1000}, [4]int{1000, 1000, 1000, 1000 * (1 - i)}
				}
			})}, v, "1 of 2 threads"},
		},
		"same-as-local": {
			{"same", []string{"file"}, obs{"identity": created()}, h, "1 creations"},
			{"differs", []string{"file"}, obs{"identity": created(func(o *guestproto.Ownership) { o.Same, o.Share.UID = false, 0 })}, v, "is 0:100 0100644, locally 1000:100 0100644"},
			{"in the directory asked for", []string{"in:setgid"}, obs{"identity": created(func(o *guestproto.Ownership) { o.Parent, o.Same = "setgid", false })}, v, "1 of 1"},
			{"ACLs are another claim's", []string{"file"}, obs{"identity": created(func(o *guestproto.Ownership) { o.Parent, o.Same = "acl", false })}, b, "nothing of file"},
			{"none of that kind", []string{"dir"}, obs{"identity": created()}, b, "nothing of dir"},
		},
		"owners-on-host": {
			{"as mapped", nil, obs{"identity": created(), "owners": owner(1000, 100), "proc": proc()}, h, "1 files"},
			{"through a map", nil, obs{"identity": created(), "owners": owner(101000, 100100), "proc": proc(func(p *probe.Proc) {
				p.Processes[1].UIDMap, p.Processes[1].GIDMap = "0 100000 65536", "0 100000 65536"
			})}, h, "1 files"},
			{"root's", nil, obs{"identity": created(), "owners": owner(0, 0), "proc": proc()}, v, "belongs to 0:0 on the host, the maps say 1000:100"},
			{"unmapped", nil, obs{"identity": created(), "owners": owner(1000, 100), "proc": proc(func(p *probe.Proc) { p.Processes[1].UIDMap = "0 1000 1" })}, v, "which the maps do not have"},
			{"not there", nil, obs{"identity": created(), "owners": probe.Owners{Entries: []probe.Owner{}}, "proc": proc()}, v, "is not on the host"},
			{"the guest sees another", nil, obs{"identity": created(func(o *guestproto.Ownership) { o.Share.UID = 5 }), "owners": owner(1000, 100), "proc": proc()}, v, "belongs to 5 in the guest"},
			{"nothing made", nil, obs{"identity": created(func(o *guestproto.Ownership) { o.Share.Errno = "EPERM" }), "owners": owner(0, 0), "proc": proc()}, v, "no creation succeeded"},
			{"a map that is none", nil, obs{"identity": created(), "owners": owner(0, 0), "proc": proc(func(p *probe.Proc) { p.Processes[1].UIDMap = "" })}, b, "uid_map"},
			{"nobody looked on the host", nil, obs{"identity": created(), "proc": proc()}, b, "no observation of the probe owners"},
		},
		"checks": {
			{"pass", []string{"basics:rename"}, obs{"basics": checksOf(pass)}, h, "1 checks pass"},
			{"fail", []string{"basics:*"}, obs{"basics": checksOf(pass, guestproto.Check{Name: "link", Status: guestproto.StatusFail, Detail: "nlink 1", Errno: "EIO"})}, v, "1 of 2: link: nlink 1 EIO"},
			{"not supported is no pass", []string{"basics:link"}, obs{"basics": checksOf(guestproto.Check{Name: "link", Status: guestproto.StatusUnsupported, Errno: "ENOSYS"})}, v, "not supported (ENOSYS)"},
			{"no status is no pass", []string{"basics:link"}, obs{"basics": checksOf(guestproto.Check{Name: "link"})}, v, "link"},
			{"an unknown status is no pass", []string{"basics:link"}, obs{"basics": checksOf(guestproto.Check{Name: "link", Status: "ok"})}, v, "link"},
			{"some declined", []string{"basics:*"}, obs{"basics": checksOf(pass, guestproto.Check{Name: "old", Status: guestproto.StatusSkip, Detail: "kernel"})}, h, "1 declined"},
			{"all declined", []string{"basics:*"}, obs{"basics": checksOf(guestproto.Check{Name: "old", Status: guestproto.StatusSkip, Detail: "kernel"})}, n, "old: kernel"},
			{"two calls", []string{"posixtest:*", "durability:fsync"}, obs{"posixtest": checksOf(pass), "durability": checksOf(guestproto.Check{Name: "fsync", Status: guestproto.StatusFail})}, v, "fsync"},
			{"each round of the guest and of the host", []string{"held:*-link", "moves:*-link"}, obs{"held": checksOf(link("a-link", guestproto.StatusPass)), "held/2": checksOf(link("b-link", guestproto.StatusPass)), "moves/1": checksOf(), "moves/2": checksOf(link("a-link", guestproto.StatusPass))}, h, "3 checks pass"},
			{"one round not", []string{"held:*-link", "moves:*-link"}, obs{"held": checksOf(link("a-link", guestproto.StatusFail)), "held/2": checksOf(link("b-link", guestproto.StatusPass)), "moves": checksOf(link("a-link", guestproto.StatusPass))}, v, "1 of 3: a-link"},
			{"the host's not", []string{"held:*-link", "moves:*-link"}, obs{"held": checksOf(link("a-link", guestproto.StatusPass)), "moves": checksOf(link("a-link", guestproto.StatusFail))}, v, "1 of 2: a-link"},
			{"the host did not look", []string{"held:*-link", "moves:*-link"}, obs{"held": checksOf(link("a-link", guestproto.StatusPass)), "moves": checksOf()}, b, "no check has a name like moves:"},
			{"no such check", []string{"basics:fly"}, obs{"basics": checksOf(pass)}, b, "no check has a name like"},
			{"a name without its call", []string{"rename"}, obs{"basics": checksOf(pass)}, b, "no check has a name like"},
			{"no name at all", nil, obs{"basics": checksOf(pass)}, b, "no check has a name like"},
		},
		"big-io": {
			{"same", nil, obs{"bigio": big, "sha256": onHost}, h, "1 MiB"},
			{"read back other bytes", nil, obs{"bigio": func() guestproto.BigIO { c := big; c.ReadSHA256 = "bb"; return c }(), "sha256": onHost}, v, "read back bb"},
			{"the host has other bytes", nil, obs{"bigio": big, "sha256": probe.SHA256{Bytes: 1 << 20, SHA256: "bb"}}, v, "the host reads 1048576 bytes bb"},
			{"the host has fewer bytes", nil, obs{"bigio": big, "sha256": probe.SHA256{Bytes: 5, SHA256: "aa"}}, v, "the host reads 5 bytes"},
			{"ended early", nil, obs{"bigio": guestproto.BigIO{Failed: "write", Errno: "EIO"}, "sha256": onHost}, v, "write ended with EIO"},
			{"nothing written", nil, obs{"bigio": guestproto.BigIO{}, "sha256": probe.SHA256{}}, b, "nothing was written"},
			{"nobody looked on the host", nil, obs{"bigio": big}, b, "sha256"},
		},
		"differ": {
			{"none", nil, obs{"differ": guestproto.Differ{Ops: 9}}, h, "9 operations, no difference"},
			{"known", nil, obs{"differ": guestproto.Differ{Ops: 9, Known: map[string]int{"copy.mode": 2}}}, h, "2 differ in a way that is known"},
			{"one", nil, obs{"differ": guestproto.Differ{Ops: 9, Total: 1, Differences: []guestproto.Difference{{Name: "open.errno", Share: "EIO", Local: "errno="}}}}, v, "1 of 9 operations differ: open.errno"},
			{"more than were reported", nil, obs{"differ": guestproto.Differ{Ops: 9, Total: 3}}, v, "3 of 9"},
			{"none done", nil, obs{"differ": guestproto.Differ{}}, b, "no operation"},
		},
		"churn": {
			{"the same", nil, obs{"outside": beside, "churn": guestproto.Churn{Ops: 9, HostChanges: 3}, "walk": walked(), "owners": hashed()}, h, "9 operations, 3 changes by the host, 1 entries"},
			{"a strange result", nil, obs{"outside": beside, "churn": guestproto.Churn{Ops: 9, HostChanges: 3, Strangers: 1, Strange: []string{"process 1: EIO: read"}}, "walk": walked(), "owners": hashed()}, v, "1 of 9 operations gave what no file system gives: process 1: EIO"},
			{"other bytes", nil, obs{"outside": beside, "churn": guestproto.Churn{Ops: 9, HostChanges: 3}, "walk": walked(func(e *guestproto.Entry) { e.SHA256 = "bb" }), "owners": hashed()}, v, "for the guest and 1000:100 0100644  aa for the host"},
			{"another owner", nil, obs{"outside": beside, "churn": guestproto.Churn{Ops: 9, HostChanges: 3}, "walk": walked(func(e *guestproto.Entry) { e.UID = 0 }), "owners": hashed()}, v, "f is 0:100"},
			{"not to be read", nil, obs{"outside": beside, "churn": guestproto.Churn{Ops: 9, HostChanges: 3}, "walk": walked(func(e *guestproto.Entry) { e.Errno = "ESTALE" }), "owners": hashed()}, v, "f is ESTALE for the guest"},
			{"another name", nil, obs{"outside": beside, "churn": guestproto.Churn{Ops: 9, HostChanges: 3}, "walk": walked(func(e *guestproto.Entry) { e.Path = "g" }), "owners": hashed()}, v, "f is not there for the guest; g is there for the guest only"},
			{"a change outside", nil, obs{"outside": probe.Outside{Entries: 2, Changed: []string{"sentinel: gone"}}, "churn": guestproto.Churn{Ops: 9, HostChanges: 3}, "walk": walked(), "owners": hashed()}, v, "beside the share: sentinel: gone"},
			{"nothing beside it", nil, obs{"outside": probe.Outside{}, "churn": guestproto.Churn{Ops: 9, HostChanges: 3}, "walk": walked(), "owners": hashed()}, b, "nothing stands beside"},
			{"nobody looked outside", nil, obs{"churn": guestproto.Churn{Ops: 9, HostChanges: 3}, "walk": walked(), "owners": hashed()}, b, "outside"},
			{"nothing changed", nil, obs{"outside": beside, "churn": guestproto.Churn{Ops: 9}, "walk": walked(), "owners": hashed()}, b, "prove nothing"},
			{"nothing done", nil, obs{"outside": beside, "churn": guestproto.Churn{HostChanges: 9}, "walk": walked(), "owners": hashed()}, b, "prove nothing"},
			{"nothing left", nil, obs{"outside": beside, "churn": guestproto.Churn{Ops: 9, HostChanges: 3}, "walk": guestproto.Walk{}, "owners": probe.Owners{}}, b, "0 entries"},
			{"nobody looked on the host", nil, obs{"outside": beside, "churn": guestproto.Churn{Ops: 9, HostChanges: 3}, "walk": walked()}, b, "owners"},
			{"nobody looked in the guest", nil, obs{"outside": beside, "churn": guestproto.Churn{Ops: 9, HostChanges: 3}, "owners": hashed()}, b, "walk"},
		},
		"fsx": {
			{"right", nil, obs{"fsx": guestproto.Fsx{Ops: 9}}, h, "9 operations"},
			{"some refused", nil, obs{"fsx": guestproto.Fsx{Ops: 9, Unsupported: []string{"zero"}}}, h, "refused: zero"},
			{"a wrong byte", nil, obs{"fsx": guestproto.Fsx{Ops: 9, Mismatch: "operation 3, read: byte 0x1"}}, v, "operation 3, read: byte 0x1"},
			{"wrong at once", nil, obs{"fsx": guestproto.Fsx{Mismatch: "operation 0, read: byte 0x1"}}, v, "operation 0"},
			{"none done", nil, obs{"fsx": guestproto.Fsx{}}, b, "no operation"},
		},
		"tree": {
			{"all", nil, obs{"tree": tree}, h, "9 files"},
			{"a name lost", nil, obs{"tree": func() guestproto.Tree { c := tree; c.Listed = 8; return c }()}, v, "listed 8"},
			{"one left", nil, obs{"tree": func() guestproto.Tree { c := tree; c.Left = 1; return c }()}, v, "left 1"},
			{"a name doubled", nil, obs{"tree": func() guestproto.Tree { c := tree; c.Wrong = []string{"f1 twice"}; return c }()}, v, "f1 twice"},
			{"nothing asked for", nil, obs{"tree": guestproto.Tree{}}, b, "no file was asked for"},
		},
		"clean-exit": {
			{"clean", nil, obs{"exit": exit()}, h, "status 0"},
			{"no done", nil, obs{"exit": exit(func(e *probe.Exit) { e.GuestDone = false })}, v, "did not say done"},
			{"status", nil, obs{"exit": exit(func(e *probe.Exit) { e.Status = 1 })}, v, "daemon ended with status 1"},
			{"signal", nil, obs{"exit": exit(func(e *probe.Exit) { e.Status, e.Signal = 139, "SIGSEGV" })}, v, "ended by SIGSEGV"},
			{"stayed", nil, obs{"exit": exit(func(e *probe.Exit) { e.Status, e.Killed, e.Seconds = -1, true, 15 })}, v, "still ran 15 s"},
			{"QEMU", nil, obs{"exit": exit(func(e *probe.Exit) { e.QEMU = -1 })}, v, "QEMU ended with status -1"},
		},
		"no-processes": {
			{"none", nil, obs{"exit": exit()}, h, "0 processes left"},
			{"one", nil, obs{"exit": exit(func(e *probe.Exit) { e.Processes = []int{12} })}, v, "1 processes left"},
		},
		"no-mounts": {
			{"none", nil, obs{"exit": exit()}, h, "no mount left"},
			{"one", nil, obs{"exit": exit(func(e *probe.Exit) { e.Mounts = []string{"/srv tmpfs"} })}, v, "/srv tmpfs"},
		},
		"no-files": {
			{"none", nil, obs{"exit": exit()}, h, "are gone"},
			{"socket", nil, obs{"exit": exit(func(e *probe.Exit) { e.Files = []string{"vhost.sock"} })}, v, "vhost.sock is left"},
		},
		"quiet-log": {
			{"quiet", nil, obs{"log": probe.Log{Lines: []string{"ready"}, Trouble: []string{}}}, h, "1 lines"},
			{"silent", nil, obs{"log": probe.Log{Lines: []string{}, Trouble: []string{}}}, h, "0 lines"},
			{"panic", nil, obs{"log": probe.Log{Lines: []string{"panic: x"}, Trouble: []string{"panic: x"}}}, v, "panic: x"},
		},
		"guest-kernel": {
			{"quiet", nil, obs{"info": info()}, h, "Linux 6.12.0"},
			{"warning", nil, obs{"info": info(func(i *guestproto.Info) { i.KernelTrouble = []string{"WARNING: fuse"} })}, v, "WARNING: fuse"},
		},
		"queues": {
			{"as asked", nil, obs{"info": info()}, h, "2 request queues"},
			{"fewer", nil, obs{"info": info(func(i *guestproto.Info) { i.Devices[0].RequestQueues = 1 })}, v, "has 1 request queues, the scenario asks for 2"},
			{"no device", nil, obs{"info": info(func(i *guestproto.Info) { i.Devices = nil })}, v, "no virtio-fs device"},
			{"not shown", nil, obs{"info": info(func(i *guestproto.Info) { i.Devices[0].RequestQueues = -1 })}, n, "does not show"},
		},
	}
}

// TestRules shows each rule facts that it must tell apart.
func TestRules(t *testing.T) {
	rules := verdict.Rules()
	for name, cases := range ruleCases() {
		require.Contains(t, rules, name, "cases of a rule that there is not")
		for _, c := range cases {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				f := rules[name].Func(view(t, c.obs), c.of)
				assert.Equal(t, c.want, f.State, "saw %q", f.Saw)
				assert.Contains(t, f.Saw, c.saw)
				if f.State == verdict.Neither {
					assert.Contains(t, result.SkipWords(), f.Skip)
				}
			})
		}
	}
}

// TestNoRuleIsUntried: a rule that was never seen to hold, or never to be violated, is not known to tell anything.
func TestNoRuleIsUntried(t *testing.T) {
	cases := ruleCases()
	for name, r := range verdict.Rules() {
		assert.NotEmpty(t, r.Means, name)
		for _, want := range []verdict.State{verdict.Holds, verdict.Violated} {
			assert.True(t, slices.ContainsFunc(cases[name], func(c ruleCase) bool { return c.want == want }), "rule %s has no case of state %d", name, want)
		}
	}
}

// narrow are names that a rule may be given, so that it looks at something.
func narrow(cases []ruleCase) (all [][]string) {
	for _, c := range cases {
		all = append(all, c.of)
	}
	return all
}

// TestNothingSeenNeverHolds gives every rule no facts, empty facts, facts of the wrong form and failed probes.
func TestNothingSeenNeverHolds(t *testing.T) {
	cases := ruleCases()
	steps := append(scenario.HostProbes(), "proc-started")
	steps = append(steps, guestproto.Calls()...)
	for name, r := range verdict.Rules() {
		for _, of := range narrow(cases[name]) {
			f := r.Func(&verdict.View{Scenario: &scenario.Scenario{}}, of)
			assert.Equal(t, verdict.Broken, f.State, "rule %s without any observation: %s", name, f.Saw)

			for what, facts := range map[string]string{"empty": `{}`, "null": `null`} {
				v := view(t, nil)
				for _, s := range steps {
					o := seen(t, s, nil)
					o.Facts = json.RawMessage(facts)
					v.Observations = append(v.Observations, o)
				}
				f := r.Func(v, of)
				assert.NotEqual(t, verdict.Holds, f.State, "rule %s holds on %s facts: %s", name, what, f.Saw)
			}

			wrong, failed := view(t, nil), view(t, nil)
			for _, s := range steps {
				o := seen(t, s, nil)
				o.Facts = json.RawMessage(`[1]`)
				wrong.Observations = append(wrong.Observations, o)
				o.Facts, o.Error = nil, "no result within 1s"
				failed.Observations = append(failed.Observations, o)
			}
			assert.Equal(t, verdict.Broken, r.Func(wrong, of).State, "rule %s on facts of the wrong form", name)
			f = r.Func(failed, of)
			assert.Contains(t, []verdict.State{verdict.Broken, verdict.Failed}, f.State, "rule %s on failed probes: %s", name, f.Saw)
		}
	}
}

// TestWhoseFaultAFailedProbeIs: a guest's call without a result is the daemon's failure, a host's probe without one is ours.
func TestWhoseFaultAFailedProbeIs(t *testing.T) {
	v := view(t, nil)
	guest, host := seen(t, "tree", nil), seen(t, "outside", nil)
	guest.Facts, guest.Error = nil, "no result within 10s"
	host.Facts, host.Error = nil, "permission denied"
	v.Observations = []result.Observation{guest, host}
	f := verdict.Rules()["tree"].Func(v, nil)
	assert.Equal(t, verdict.Failed, f.State)
	assert.Contains(t, f.Saw, "tree did not finish in the guest: no result within 10s")
	f = verdict.Rules()["outside"].Func(v, nil)
	assert.Equal(t, verdict.Broken, f.State)
	assert.Contains(t, f.Saw, "permission denied")
}

// TestTheLastObservationCounts: a probe that is repeated is judged by its last look.
func TestTheLastObservationCounts(t *testing.T) {
	v := view(t, obs{"info": info()})
	last := seen(t, "info", info(func(i *guestproto.Info) { i.KernelTrouble = []string{"WARNING: late"} }))
	last.Step = "info-last"
	v.Observations = append(v.Observations, last)
	f := verdict.Rules()["guest-kernel"].Func(v, nil)
	assert.Equal(t, verdict.Violated, f.State)
}

// TestClaimsOfTheTreeFindTheirRules: each claim's rule is there, and gets names only if it takes them.
func TestClaimsOfTheTreeFindTheirRules(t *testing.T) {
	claims, err := claim.Load(os.DirFS("../../scenarios"), "claims")
	require.NoError(t, err)
	rules := verdict.Rules()
	for _, c := range claims {
		r, ok := rules[c.Judge]
		if assert.True(t, ok, "claim %s: no rule %q", c.ID, c.Judge) && len(c.Of) > 0 {
			assert.NotEmpty(t, r.Of, "claim %s gives names to rule %s, which takes none", c.ID, c.Judge)
		}
	}
}

func TestMask(t *testing.T) {
	m, err := verdict.Mask([]string{"CHOWN", "CAP_SYS_ADMIN"})
	require.NoError(t, err)
	assert.Equal(t, uint64(1|1<<21), m)
	_, err = verdict.Mask([]string{"chown"})
	assert.ErrorContains(t, err, `unknown capability "chown"`)
}
