package main_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/launch"
	"virtiofsd/internal/testenv"
)

// build makes the daemon as it is shipped, static, whatever the tests are built with, where every user can read it.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "vfsd")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "virtiofsd")
	c := exec.Command("go", "build", "-trimpath", "-o", bin, "virtiofsd/cmd/virtiofsd")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, os.Chmod(dir, 0o755)
})

func TestMain(m *testing.M) {
	status := m.Run()
	if bin, err := build(); err == nil {
		os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(status)
}

// The rules that launchers rely on, by the numbers that the scripts use. Each has to be shown by a script.
var rules = map[int]string{
	1:  "--opt=value and --opt value; a repeated scalar counts as said last, maps collect",
	2:  "--fd is a listening socket in whose backlog a client may wait; no pid file then",
	3:  "--socket-path P makes P.pid (locked, 0600), then P (0700, 0770 with --socket-group); P may be relative",
	4:  "a line of standard error has 'Waiting for vhost-user socket connection'",
	5:  "status 0 when the front-end disconnects",
	6:  "KILL of the first process ends all",
	7:  "TERM ends at once; the daemon stays in the launcher's process group",
	8:  "--print-capabilities: JSON, status 0, all other options ignored, as any user",
	9:  "--version and --help: status 0 as a user and without a share; --help lists --readonly",
	10: "-o a,b=c, -d and -f",
	11: "--posix-acl and --security-label, bare and with never, auto, always",
	12: "--syslog works after pivot_root, and falls back to standard error",
	13: "RUST_LOG overrides --log-level",
	14: "--shared-dir . is the launcher's working directory",
	15: "one line of standard error and status 1 or 2 when it cannot start",
	16: "--migration-mode and --migration-on-error are accepted",
	17: "--sandbox=none as an ordinary user without capability and with no_new_privs",
	18: "the default sandbox inside a user namespace that the launcher set up",
	19: "--sandbox=chroot where one id is mapped and setgroups is denied",
	20: "socket activation: an environment of little more than LISTEN_FDS, started when the front-end has connected",
}

// patience bounds each wait: what is asserted is that it comes, and a busy machine is slow.
const patience = 30 * time.Second

const scripts = "testdata/script/*.txtar"

// TestScripts runs each launcher's command line: see testdata/script/README.md for the words of the scripts.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob(scripts)
	require.NoError(t, err)
	require.NotEmpty(t, files)
	bin, err := build()
	require.NoError(t, err)
	root, err := os.MkdirTemp("", "vl") // t.TempDir may be too long for a socket's path, and is nobody else's
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(root) })
	require.NoError(t, os.Chmod(root, 0o755))
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t *testing.T) {
			t.Parallel()
			testenv.Need(t, marked(t, f, "needs")...)
			testscript.Run(t, testscript.Params{
				Files: []string{f}, WorkdirRoot: root, RequireUniqueNames: true, RequireExplicitExec: true,
				Setup: func(e *testscript.Env) error { return setup(e, bin) },
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"listen": listen, "listener": listener, "notify": notify, "syslogd": syslogd, "syslogged": syslogged, "launch": start, "ready": ready, "connect": connect, "serve": serve,
					"guest": guest, "disconnect": disconnect, "signal": signal, "ended": ended, "owner": owner, "mode": mode, "log": grepLog, "locked": locked,
				},
			})
		})
	}
}

// TestEveryRuleHasAScript: a rule that no script shows is a promise only.
func TestEveryRuleHasAScript(t *testing.T) {
	files, err := filepath.Glob(scripts)
	require.NoError(t, err)
	shown := map[int]bool{}
	for _, f := range files {
		for _, w := range marked(t, f, "rules") {
			n, err := strconv.Atoi(w)
			require.NoError(t, err, f)
			assert.NotEmpty(t, rules[n], "%s: there is no rule %d", f, n)
			shown[n] = true
		}
	}
	for n, rule := range rules {
		assert.True(t, shown[n], "no script shows rule %d: %s", n, rule)
	}
}

// marked is the list of words that a script's "# WORD: …" line holds.
func marked(t *testing.T, file, word string) []string {
	t.Helper()
	src, err := os.ReadFile(file)
	require.NoError(t, err)
	m := regexp.MustCompile(`(?m)^# ` + word + `:(.*)$`).FindSubmatch(src)
	if m == nil {
		return nil
	}
	return strings.Fields(string(m[1]))
}

// scene is what a script has set up so far.
type scene struct {
	bin, dir string
	etc      map[string]string
	socket   *os.File // that listen made
	d        *launch.Daemon
	early    chan connected
	notified net.PacketConn // that notify made
	dev      *frontend.Device
	f        *frontend.FUSE
	files    []*os.File
}

type connected struct {
	dev *frontend.Device
	err error
}

// User 1500 has 65536 subordinate ids and is in group adm. User 1501 has none and no supplementary group.
const (
	userID  = 1500
	loneID  = 1501
	groupID = 4
)

func setup(e *testscript.Env, bin string) error {
	s := &scene{bin: bin, dir: e.WorkDir, etc: map[string]string{}}
	e.Values[s] = s
	e.Values["scene"] = s
	e.Setenv("PATH", filepath.Dir(bin)+":/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/qemu")
	// Some launchers ask for more open files than the machine of the tests may have.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	e.Setenv("NOFILE", strconv.FormatUint(min(limit.Max, 1048576), 10))
	e.Defer(s.close)
	if err := os.Mkdir(filepath.Join(s.dir, "share"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "share/hello"), []byte("hello\n"), 0o644); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	for _, p := range []string{"", "share", "share/hello"} {
		p = filepath.Join(s.dir, p)
		if err := os.Chown(p, userID, userID); err != nil {
			return err
		}
		if st, err := os.Stat(p); err == nil && st.IsDir() {
			if err := os.Chmod(p, 0o755); err != nil {
				return err
			}
		}
	}
	for name, line := range map[string]string{
		"passwd": "matrix:x:1500:1500::/:/bin/sh\nlone:x:1501:1501::/:/bin/sh\n", "group": "matrix:x:1500:\nlone:x:1501:\nfrontends:x:1502:\n",
		"subuid": "matrix:100000:65536\n", "subgid": "matrix:100000:65536\n",
	} {
		old, err := os.ReadFile("/etc/" + name)
		if err != nil {
			continue
		}
		p := filepath.Join(s.dir, "etc-"+name)
		if err := os.WriteFile(p, append(old, line...), 0o644); err != nil {
			return err
		}
		s.etc["/etc/"+name] = p
	}
	return nil
}

func (s *scene) close() {
	if s.dev != nil {
		s.dev.Close()
	}
	if s.d != nil {
		s.d.Kill()
	}
	for _, f := range s.files {
		f.Close()
	}
}

func of(ts *testscript.TestScript) *scene { return ts.Value("scene").(*scene) }

// listen PATH: the launcher makes the listening socket.
func listen(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) != 1 {
		ts.Fatalf("usage: listen PATH")
	}
	p := ts.MkAbs(args[0])
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p, Net: "unix"})
	ts.Check(err)
	l.SetUnlinkOnClose(false)
	ts.Check(os.Chmod(p, 0o777))
	s.socket, err = l.File()
	ts.Check(err)
	ts.Check(l.Close())
	s.files = append(s.files, s.socket)
}

// notify PATH: a socket for NOTIFY_SOCKET.
func notify(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) != 1 {
		ts.Fatalf("usage: notify PATH")
	}
	p := ts.MkAbs(args[0])
	var err error
	s.notified, err = net.ListenPacket("unixgram", p)
	ts.Check(err)
	ts.Defer(func() { s.notified.Close() })
	ts.Check(os.Chmod(p, 0o777))
}

// syslogd PATH: the host's log, begun anew.
func syslogd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) != 1 {
		ts.Fatalf("usage: syslogd PATH")
	}
	p := ts.MkAbs(args[0])
	if s.notified != nil {
		// A program that another script has just forked may hold a copy, and the socket would live as long.
		f, err := s.notified.(*net.UnixConn).File()
		ts.Check(err)
		ts.Check(unix.Shutdown(int(f.Fd()), unix.SHUT_RDWR))
		f.Close()
		s.notified.Close()
		ts.Check(os.RemoveAll(p))
	}
	notify(ts, false, args)
}

// syslogged PATTERN: a message comes that fits.
func syslogged(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: syslogged PATTERN")
	}
	for re := regexp.MustCompile(args[0]); ; {
		got := of(ts).told()
		if re.MatchString(got) {
			return
		}
		ts.Logf("%s", got)
		if !strings.HasPrefix(got, "<") {
			ts.Fatalf("nothing fits")
		}
	}
}

// told is what came over NOTIFY_SOCKET, if it comes in time.
func (s *scene) told() string {
	b := make([]byte, 4096)
	_ = s.notified.SetReadDeadline(time.Now().Add(patience))
	n, _, err := s.notified.ReadFrom(b)
	if err != nil {
		return err.Error()
	}
	return string(b[:n])
}

// listener close|shutdown: what the launcher does to its copy.
func listener(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	switch {
	case neg || len(args) != 1 || s.socket == nil:
		ts.Fatalf("usage: listener close|shutdown")
	case args[0] == "shutdown":
		ts.Check(unix.Shutdown(int(s.socket.Fd()), unix.SHUT_RDWR))
	}
	s.socket.Close()
}

// launch [-as user|lone|uid] [-fd N] [-cwd DIR] [-env K=V] -- COMMAND…: start the daemon as the launcher does.
func start(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	spec := launch.Spec{Dir: s.dir, Cwd: ts.MkAbs("."), Etc: s.etc, Env: []string{"PATH=" + ts.Getenv("PATH")}}
	i := 0
	for ; i+1 < len(args) && args[i] != "--"; i += 2 {
		v := args[i+1]
		switch args[i] {
		case "-as":
			switch v {
			case "user":
				spec.As = &launch.User{UID: userID, GID: userID, Groups: []int{groupID}}
			case "lone":
				spec.As = &launch.User{UID: loneID, GID: loneID}
			default:
				uid, err := strconv.Atoi(v)
				ts.Check(err)
				spec.As = &launch.User{UID: uid, GID: uid}
			}
		case "-fd":
			n, err := strconv.Atoi(v)
			ts.Check(err)
			for len(spec.Fds) <= n-3 {
				spec.Fds = append(spec.Fds, nil)
			}
			spec.Fds[n-3] = s.socket
		case "-write", "-read": // N=FILE: a descriptor of a file
			n, file, _ := strings.Cut(v, "=")
			fd, err := strconv.Atoi(n)
			ts.Check(err)
			open := os.Create
			if args[i] == "-read" {
				open = os.Open
			}
			f, err := open(ts.MkAbs(file))
			ts.Check(err)
			s.files = append(s.files, f)
			for len(spec.Fds) <= fd-3 {
				spec.Fds = append(spec.Fds, nil)
			}
			spec.Fds[fd-3] = f
		case "-cwd":
			spec.Cwd = ts.MkAbs(v)
		case "-env":
			spec.Env = append(spec.Env, v)
		case "-bind": // TARGET=SOURCE, for this daemon only
			target, source, _ := strings.Cut(v, "=")
			spec.Etc[target] = ts.MkAbs(source)
		default:
			ts.Fatalf("launch has no option %s", args[i])
		}
	}
	if neg || i >= len(args)-1 {
		ts.Fatalf("usage: launch [-as WHO] [-fd N] [-cwd DIR] [-env K=V] [-bind TARGET=SOURCE] [-write N=FILE] [-read N=FILE] -- COMMAND…")
	}
	spec.Argv = slices.Clone(args[i+1:])
	for i, a := range spec.Argv {
		if slices.Contains([]string{"virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"}, a) {
			spec.Argv[i] = s.bin
		}
	}
	var err error
	s.d, err = launch.Start(context.Background(), spec)
	ts.Check(err)
}

// ready socket P | pidfile P | line TEXT | notified TEXT | alive: wait as this launcher does.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || s.d == nil || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: ready socket PATH | pidfile PATH | line TEXT | notified TEXT | alive")
	}
	is := func() bool {
		switch args[0] {
		case "notified":
			return strings.HasPrefix(s.told(), args[1])
		case "socket":
			st, err := os.Lstat(ts.MkAbs(args[1]))
			return err == nil && st.Mode()&os.ModeSocket != 0
		case "pidfile":
			_, err := pidIn(ts.MkAbs(args[1]))
			return err == nil
		case "line":
			log, _ := s.d.Log()
			return strings.Contains(string(log), args[1])
		case "file": // has a line
			b, _ := os.ReadFile(ts.MkAbs(args[1]))
			return strings.HasSuffix(string(b), "\n")
		case "alive":
			return len(s.d.Tree()) > 0
		}
		ts.Fatalf("ready %s: no such way", args[0])
		return false
	}
	for end := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		select {
		case <-s.d.Done():
			log, _ := s.d.Log()
			ts.Fatalf("the daemon ended with status %d: %s", s.d.Exit().Status, log)
		default:
		}
		if time.Now().After(end) {
			log, _ := s.d.Log()
			ts.Fatalf("not ready in %v: %s", patience, log)
		}
	}
}

func pidIn(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// connect PATH: a front-end begins to connect, and the script goes on: it waits in the backlog until somebody listens.
func connect(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) != 1 {
		ts.Fatalf("usage: connect PATH")
	}
	p, early := ts.MkAbs(args[0]), make(chan connected, 1)
	s.early = early
	go func() {
		d, err := frontend.Connect(context.Background(), frontend.Config{Socket: p, Timeout: patience})
		early <- connected{d, err}
	}()
}

// serve [PATH]: a front-end opens a session and looks at the share; PATH is left out after connect.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	var c connected
	file := "hello"
	if len(args) > 1 && args[0] == "-at" {
		file, args = args[1]+"/"+file, args[2:]
	}
	switch {
	case neg || len(args) > 1 || len(args) == 0 && s.early == nil:
		ts.Fatalf("usage: serve [-at FOLDER] [PATH]")
	case len(args) == 1:
		connect(ts, false, args)
	}
	select {
	case c = <-s.early:
	case <-s.d.Done():
		log, _ := s.d.Log()
		ts.Fatalf("the daemon ended with status %d: %s", s.d.Exit().Status, log)
	}
	ts.Check(c.err)
	s.dev = c.dev
	s.f = frontend.NewFUSE(s.dev)
	init, err := s.f.Init(0)
	ts.Check(err)
	a, err := s.f.Getattr(frontend.RootNode)
	ts.Check(err)
	e := frontend.Entry{Node: frontend.RootNode}
	for _, name := range strings.Split(strings.Trim(file, "/"), "/") {
		e, err = s.f.Lookup(e.Node, name)
		ts.Check(err)
	}
	fh, err := s.f.Open(e.Node, unix.O_RDONLY)
	ts.Check(err)
	b, err := s.f.Read(e.Node, fh, 0, 100)
	ts.Check(err)
	if string(b) != "hello\n" {
		ts.Fatalf("the share's file holds %q", b)
	}
	ts.Check(s.f.Release(e.Node, fh))
	if s.d != nil {
		s.d.Tree() // so that it is known afterwards what may be left
	}
	fmt.Fprintf(ts.Stdout(), "flags=%#x\nroot %d:%d\n", init.Flags, a.UID, a.GID)
	for name, bit := range map[string]uint64{"acl": 1 << 20, "submounts": 1 << 27, "writeback": 1 << 16, "security-label": 1 << 32} {
		fmt.Fprintf(ts.Stdout(), "%s=%v\n", name, init.Flags&bit != 0)
	}
}

// guest [-as UID:GID] create NAME | tag: the guest makes a file, or the front-end asks for the tag.
func guest(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	f := s.f
	if len(args) > 2 && args[0] == "-as" {
		var uid, gid uint32
		_, err := fmt.Sscanf(args[1], "%d:%d", &uid, &gid)
		ts.Check(err)
		f, args = f.As(uid, gid), args[2:]
	}
	var err error
	switch {
	case len(args) == 2 && args[0] == "create":
		_, _, err = f.Create(frontend.RootNode, args[1], unix.O_RDWR, 0o644)
	case len(args) == 2 && args[0] == "mknod":
		_, err = f.Mknod(frontend.RootNode, args[1], unix.S_IFIFO|0o644, 0)
	case len(args) == 1 && args[0] == "tag":
		const size = 40 // struct virtio_fs_config: tag[36], num_request_queues
		req := frontend.Body(nil).U32(0, size, 0)
		var b []byte
		if b, err = s.dev.Conn.Call(frontend.MsgGetConfig, append(req, make([]byte, size)...)); err == nil {
			fmt.Fprintf(ts.Stdout(), "%s\n", strings.TrimRight(string(b[12:12+36]), "\x00"))
		}
	default:
		ts.Fatalf("usage: guest [-as UID:GID] create NAME | mknod NAME | tag")
	}
	if neg && err == nil {
		ts.Fatalf("it worked")
	} else if neg {
		fmt.Fprintln(ts.Stdout(), err)
		return
	}
	ts.Check(err)
}

func disconnect(ts *testscript.TestScript, _ bool, _ []string) {
	s := of(ts)
	s.d.Tree()
	s.dev.Close()
	s.dev = nil
}

// signal [-group] [-pidfile P] NAME: to the process that the launcher started, to its group, or to the one of the pid file.
func signal(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	pid := s.d.PID()
	s.d.Tree()
	for ; len(args) > 1; args = args[1:] {
		switch args[0] {
		case "-group":
			pid = -pid
		case "-pidfile":
			var err error
			pid, err = pidIn(ts.MkAbs(args[1]))
			ts.Check(err)
			args = args[1:]
		}
	}
	if neg || len(args) != 1 || unix.SignalNum("SIG"+args[0]) == 0 {
		ts.Fatalf("usage: signal [-group] [-pidfile PATH] NAME")
	}
	ts.Check(unix.Kill(pid, unix.SignalNum("SIG"+args[0])))
}

// ended STATUS: the daemon ends within its time, with this status, and nothing of it is left.
func ended(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ended STATUS")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e, err := s.d.Wait(ctx)
	ts.Check(err)
	log, _ := s.d.Log()
	if strconv.Itoa(e.Status) != args[0] {
		ts.Fatalf("it ended with status %d: %s", e.Status, log)
	}
	for end := time.Now().Add(patience); len(s.d.Left()) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			ts.Fatalf("processes are left: %v", s.d.Left())
		}
	}
	fmt.Fprint(ts.Stderr(), string(log))
}

// owner FILE UID:GID, on the host.
func owner(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: owner FILE UID:GID")
	}
	var st unix.Stat_t
	ts.Check(unix.Lstat(ts.MkAbs(args[0]), &st))
	if got := fmt.Sprintf("%d:%d", st.Uid, st.Gid); got != args[1] {
		ts.Fatalf("%s belongs to %s", args[0], got)
	}
}

// mode FILE OCTAL.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode FILE OCTAL")
	}
	st, err := os.Lstat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", st.Mode().Perm()); got != args[1] {
		ts.Fatalf("%s has mode %s", args[0], got)
	}
}

// log [-count=N] PATTERN: what the daemon wrote so far; it may be about to.
func grepLog(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if len(args) != 1 {
		ts.Fatalf("usage: log PATTERN")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	var log []byte
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		log, _ = s.d.Log()
		if re.Match(log) != neg {
			return
		}
		if neg || time.Now().After(end) {
			ts.Fatalf("the log: %s", log)
		}
	}
}

// locked FILE: somebody else holds its lock.
func locked(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: locked FILE")
	}
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		ts.Fatalf("nobody holds the lock: %v", err)
	}
}
