package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/impl"
	"virtiofsd/harness/launch"
	"virtiofsd/internal/daemon"
	"virtiofsd/internal/sandbox"
	"virtiofsd/internal/sys"
	"virtiofsd/internal/testenv"
)

// prison is a mode in which the insider tries to get out.
type prison struct {
	mode, title string
	extra       string       // options
	without     []sandbox.Op // walls to leave out
	walls       bool         // nothing may get out
	quick       bool         // stands for the others of its kind
	open        []string     // what is open all the same, and said by --print-plan
}

func prisons() []prison {
	// One group id is mapped: the kernel denies setgroups.
	groups := []string{"group-file"}
	return []prison{
		{mode: "A root", title: "A", walls: true, quick: true},
		{mode: "A root with maps", title: "A, ids mapped", walls: true},
		{mode: "B user", title: "B", walls: true, quick: true, open: groups},
		{mode: "C range", title: "C", walls: true, quick: true},
		{mode: "C own id and range, as libvirt maps", title: "C, own id too", walls: true},
		{mode: "D unshare -Ur, pivot_root", title: "D pivot_root, one id", walls: true, quick: true, open: groups},
		{mode: "D range by newuidmap, pivot_root", title: "D pivot_root, range", walls: true},
		{mode: "D range, namespace, as LXD does", title: "D namespace, range", walls: true},
		{mode: "pivot_root as root", title: "pivot_root, root", walls: true},
		{mode: "D unshare -Ur, chroot, as mkosi does", title: "D chroot, one id", open: groups},
		{mode: "D range by newuidmap, chroot", title: "D chroot, range"},
		{mode: "D podman's capabilities, chroot", title: "D chroot, container"},
		{mode: "chroot as root", title: "chroot, root", quick: true},
		{mode: "E none as root", title: "none, root", quick: true},
		{mode: "E none as a user", title: "none, user", open: groups},
		{mode: "E none without anything, as KubeVirt does", title: "none, no capability", open: groups},
		{mode: "E none as root", title: "no walls", quick: true, extra: "--landlock=off --seccomp=none", without: []sandbox.Op{
			sandbox.OpGroups, sandbox.OpBounding, sandbox.OpCaps, sandbox.OpNotDumpable, sandbox.OpNoNewPrivs, sandbox.OpProc, daemon.CloseStray,
		}},
	}
}

// plant makes what an insider tries to reach.
func (h *host) plant(t *testing.T, uid int) daemon.Outside {
	t.Helper()
	o := daemon.Outside{
		Dir: h.dir, Plain: filepath.Join(h.dir, "plain"), Secret: "of the host, for everybody", Group: groupID,
		Abstract: "@" + h.dir, Path: filepath.Join(h.dir, "listening"), MQ: filepath.Base(h.dir), Namespaces: map[string]string{},
	}
	h.write(t, "plain", o.Secret, 0o644, 0)
	h.write(t, "share/set-id", string(daemon.Rooted()), 0o755, 0)
	require.NoError(t, os.Chmod(filepath.Join(h.share, "set-id"), 0o755|os.ModeSetuid))
	for _, what := range []string{"move", "remove", "write"} {
		for _, filter := range []bool{true, false} {
			h.write(t, fmt.Sprintf("doomed-%s-%t", what, filter), "doomed", 0o666, 0)
		}
	}
	require.NoError(t, os.Chmod(h.dir, 0o777))
	require.NoError(t, os.Chmod(h.share, 0o777))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(o.Plain, &st))
	o.PlainDev, o.PlainIno = st.Dev, st.Ino
	for path, to := range map[string]struct {
		kind  *int32
		bytes *[]byte
	}{o.Plain: {&o.HandleType, &o.Handle}, "/dev": {&o.MountType, &o.MountHandle}} {
		handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
		require.NoError(t, err, path)
		*to.kind, *to.bytes = handle.Type(), handle.Bytes()
	}
	for kind, file := range map[string]string{"user": "user", "mount": "mnt", "pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup"} {
		var err error
		o.Namespaces[kind], err = os.Readlink("/proc/self/ns/" + file)
		require.NoError(t, err)
	}

	plain, err := os.Open(o.Plain)
	require.NoError(t, err)
	defer plain.Close()
	victim := exec.Command("sleep", "1000")
	victim.ExtraFiles = []*os.File{plain}
	victim.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}, Pdeathsig: syscall.SIGKILL}
	require.NoError(t, victim.Start())
	t.Cleanup(func() {
		assert.NoError(t, victim.Process.Signal(syscall.Signal(0)), "the victim lives")
		victim.Process.Kill()
		victim.Wait()
	})
	o.Victim = victim.Process.Pid
	require.Eventually(t, func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", o.Victim))
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", o.Victim))
		n, _ := fmt.Sscanf(string(b), "%x-", &o.VictimAddr)
		return n == 1 && strings.HasSuffix(exe, "sleep")
	}, 5*time.Second, time.Millisecond)

	listen := func(network, address string) net.Addr {
		l, err := net.Listen(network, address)
		require.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		return l.Addr()
	}
	o.TCP = listen("tcp4", "127.0.0.1:0").(*net.TCPAddr).Port
	listen("unix", o.Abstract)
	listen("unix", o.Path)
	require.NoError(t, os.Chmod(o.Path, 0o777))
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { udp.Close() })
	o.UDP = udp.LocalAddr().(*net.UDPAddr).Port
	o.Shm = 0x76667300 + os.Getpid()&0xff
	id, err := unix.SysvShmGet(o.Shm, 4096, unix.IPC_CREAT|0o666)
	require.NoError(t, err)
	t.Cleanup(func() { unix.SysvShmCtl(id, unix.IPC_RMID, nil) })
	name := append([]byte(o.MQ), 0)
	old := unix.Umask(0)
	mq, err := daemon.Raw(unix.SYS_MQ_OPEN, name, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o666, 0)
	unix.Umask(old)
	require.NoError(t, err)
	unix.Close(int(mq))
	t.Cleanup(func() { daemon.Raw(unix.SYS_MQ_UNLINK, name) })
	return o
}

// imprison starts a daemon that turns hostile once a guest is served, and returns what came of its attempts, or of
// some: under the filter, without it, or both.
func imprison(t *testing.T, p prison, only []string, filter ...bool) (results []daemon.Result) {
	t.Helper()
	for line := range strings.Lines(string(imprisoned(t, p, daemon.Outside{Without: p.without, Only: only, Filter: filter}))) {
		_, text, ok := strings.Cut(line, "insider: {")
		if !ok {
			continue
		}
		var r daemon.Result
		require.NoError(t, json.Unmarshal([]byte("{"+text), &r), line)
		assert.NotEqual(t, daemon.Hung, r.End, "%s: %s", r.Name, r.Why)
		results = append(results, r)
	}
	return results
}

// imprisoned is the log of a daemon with an insider that does what is asked for.
func imprisoned(t *testing.T, p prison, do daemon.Outside) (log []byte) {
	t.Helper()
	all := modes()
	i := slices.IndexFunc(all, func(m mode) bool { return m.name == p.mode })
	require.GreaterOrEqual(t, i, 0, p.mode)
	m := all[i]
	testenv.Need(t, m.needs...)
	h := newHost(t)
	o := h.plant(t, m.uid)
	o.Without, o.Only, o.Filter, o.Logged = do.Without, do.Only, do.Filter, do.Logged
	env, err := json.Marshal(o)
	require.NoError(t, err)
	bin, err := buildInsider()
	require.NoError(t, err)
	m.launcher.args += " " + p.extra
	s := h.spec(t, m.launcher)
	s.Impl = &impl.Impl{Name: "ours", Dialect: impl.DialectOurs, Path: bin}
	s.Env = []string{daemon.InsiderEnv + "=" + string(env)}
	d, err := launch.Start(context.Background(), s)
	require.NoError(t, err)
	t.Cleanup(d.Kill)
	h.serve(t)
	if len(p.without) == 0 { // it is what the daemon itself is in this mode
		m.unfiltered = !do.Logged
		check(t, h, m, d.Tree(), d.ServingPID())
	}
	require.NoError(t, os.WriteFile(filepath.Join(h.share, "go"), nil, 0o644))
	require.Eventually(t, func() bool {
		log, _ = d.Log()
		return strings.Contains(string(log), "insider: end")
	}, 3*time.Minute, 10*time.Millisecond, "the insider does not come to an end")
	return log
}

// TestInsider has a serving process that was taken over try to get out, in each mode. As it is deployed, nothing gets out of the modes that
// change the root by pivot_root; of others, no more than what the page of escapes says.
func TestInsider(t *testing.T) {
	long := *update
	names, does := daemon.Attempts()
	require.GreaterOrEqual(t, len(names), 100)
	measured := escapes{Kernel: release(t), Landlock: sys.LandlockABI(), Attempts: names}
	var killed []string // the filter is the same in all modes
	for _, p := range prisons() {
		if !p.quick && !long {
			continue
		}
		t.Run(p.title, func(t *testing.T) {
			filter := []bool{true}
			switch {
			case len(p.without) > 0:
				filter = []bool{false}
			case long:
				filter = []bool{true, false}
			}
			var only []string
			if len(p.without) == 0 {
				only = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(killed, n) })
			}
			results := imprison(t, p, only, filter...)
			c := column{Title: p.title, Walls: p.walls, Deployed: map[string]ending{}, Unfiltered: map[string]ending{}}
			for _, n := range killed {
				c.Deployed[n] = ending{daemon.Killed, "SIGSYS"}
			}
			for _, r := range results {
				if r.Filter {
					c.Deployed[r.Name] = ending{r.End, r.Why}
				} else {
					c.Unfiltered[r.Name] = ending{r.End, r.Why}
				}
				switch {
				case r.End == daemon.Killed && !long:
					killed = append(killed, r.Name)
				case r.End != daemon.Out || !r.Filter || slices.Contains(p.open, r.Name):
				default:
					assert.False(t, p.walls, "%s gets out: %s", r.Name, does[r.Name])
				}
			}
			measured.Columns = append(measured.Columns, c)
		})
	}
	if t.Failed() {
		return
	}
	if *update {
		measured.save(t)
		return
	}
	said := loadEscapes(t)
	for _, c := range measured.Columns {
		i := slices.IndexFunc(said.Columns, func(s column) bool { return s.Title == c.Title })
		require.GreaterOrEqual(t, i, 0, c.Title)
		for name, e := range c.Deployed {
			if e.End == daemon.Out && measured.Landlock >= said.Landlock {
				assert.Equal(t, daemon.Out, said.Columns[i].Deployed[name].End, "%s, %s: the page of escapes does not say so; %s", c.Title, name, remedy)
			}
		}
	}
	none := measured.Columns[len(measured.Columns)-1]
	for _, n := range names { // an attempt that never works shows nothing
		if said.Columns[len(said.Columns)-1].Unfiltered[n].End == daemon.Out {
			assert.Equal(t, daemon.Out, none.Unfiltered[n].End, "%s works where no wall is: %s", n, none.Unfiltered[n].Why)
		}
	}
}

// TestLogNamesCalls: with --seccomp=log a call that is not on the list goes on, and its name is in the log, once, with the argument that decided.
func TestLogNamesCalls(t *testing.T) {
	for _, mode := range []string{"A root", "B user", "E none as root"} {
		t.Run(mode, func(t *testing.T) {
			log := string(imprisoned(t, prison{mode: mode, extra: "--seccomp=log"}, daemon.Outside{Logged: true}))
			for _, want := range []string{"insider: socket <nil>\n", "insider: fcntl <nil>\n", "insider: end <nil>\n"} {
				assert.Contains(t, log, want)
			}
			const told = "a system call that is not on the list was let through call="
			for _, call := range []string{"socket", "fcntl, argument 1 is 0xa", "getpgid"} {
				assert.Equal(t, 1, strings.Count(log, told+call+" thread="), "%s in\n%s", call, log)
			}
			assert.Equal(t, 3, strings.Count(log, told), log)
		})
	}
}

// TestEachWallHolds leaves single walls out, and sees the insider get through.
func TestEachWallHolds(t *testing.T) {
	for _, w := range []struct {
		mode, extra string
		without     []sandbox.Op
		out         []string
	}{
		{mode: "A root", without: []sandbox.Op{sandbox.OpPivot}, out: []string{"climb-share", "stat-path"}},
		{mode: "A root", without: []sandbox.Op{sandbox.OpCaps, sandbox.OpBounding}, out: []string{"capset", "remount", "reboot", "perf"}},
		{mode: "C range", without: []sandbox.Op{sandbox.OpGroups}, out: []string{"group-file"}},
		{mode: "E none as root", without: []sandbox.Op{sandbox.OpLandlock}, out: []string{"open-path", "create", "exec"}},
		{mode: "E none as a user", extra: "--landlock=off", without: []sandbox.Op{sandbox.OpNoNewPrivs}, out: []string{"set-id"}},
		{mode: "A root", without: []sandbox.Op{sandbox.OpProc, sandbox.OpLandlock}, out: []string{"view-sysctl"}},
		{mode: "C range", without: []sandbox.Op{daemon.CloseStray}, out: []string{"climb-others"}},
		{mode: "chroot as root", without: []sandbox.Op{sandbox.OpCaps, sandbox.OpBounding, sandbox.OpLandlock}, out: []string{"chroot", "mount-tmpfs"}},
	} {
		t.Run(fmt.Sprint(w.mode, " without ", w.without), func(t *testing.T) {
			var got []string
			for _, r := range imprison(t, prison{mode: w.mode, extra: w.extra, without: w.without}, w.out, false) {
				if r.End == daemon.Out {
					got = append(got, r.Name)
				}
			}
			assert.Subset(t, got, w.out)
		})
	}
}
