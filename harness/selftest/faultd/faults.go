package faultd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Fault is one thing that a daemon does wrong. Its zero value is an honest daemon.
type Fault struct {
	Name string
	Does string // one sentence, to follow "the daemon"
	// Args changes the real daemon's command line.
	Args func(argv []string) []string
	// Before runs in the daemon's own process before it begins, and may change the command line, too.
	Before func(argv []string) ([]string, error)
	// Enter and Leave are called before and after a system call of that number of any of its threads.
	Enter, Leave Hooks
}

// Hooks are by number of system call.
type Hooks map[uint64]func(*Call)

// Names of the honest daemon.
const (
	None       = "none"
	NoneTraced = "none-traced"
)

// sleeper is the name under which the program is a process that stays.
const sleeper = Prefix + "sleeper"

// Find returns a fault by its name.
func Find(name string) (Fault, error) {
	all := Faults()
	i := slices.IndexFunc(all, func(f Fault) bool { return f.Name == name })
	if i < 0 {
		return Fault{}, fmt.Errorf("there is no fault %q", name)
	}
	return all[i], nil
}

// Faults are all faults, and the honest daemon first: it shows that wrapping alone breaks no claim.
func Faults() []Fault {
	return slices.Concat([]Fault{
		{Name: None, Does: "does nothing wrong"},
		{Name: NoneTraced, Does: "does nothing wrong, and is traced", Enter: Hooks{}},
		{Name: AgentDoesNothing, Does: "does nothing wrong, but its guest's agent does nothing at all"},
	}, startFaults(), sandboxFaults(), privilegeFaults(), identityFaults(), fileFaults(), endFaults())
}

// pretend answers calls with success, and leaves them out.
func pretend(calls ...uint64) Hooks {
	h := Hooks{}
	for _, nr := range calls {
		h[nr] = func(c *Call) { c.Answer(0) }
	}
	return h
}

// refuse answers calls with an error.
func refuse(e unix.Errno, calls ...uint64) Hooks {
	h := Hooks{}
	for _, nr := range calls {
		h[nr] = func(c *Call) { c.Answer(-int64(e)) }
	}
	return h
}

// clearBits clears bits of an argument.
func clearBits(arg int, bits uint64, calls ...uint64) Hooks {
	h := Hooks{}
	for _, nr := range calls {
		h[nr] = func(c *Call) { c.SetArg(arg, c.Arg(arg)&^bits) }
	}
	return h
}

// blind makes a fault's daemon believe that all is as it should be: ours reads its state back from /proc and would refuse to serve, which
// is a test of the daemon and not of the harness. Each file that begins with a prefix is edited before the daemon reads it.
func blind(h Hooks, prefix string, edit func(line string) (string, bool)) Fault {
	return Fault{Enter: h, Leave: Hooks{unix.SYS_READ: func(c *Call) {
		n := c.Result()
		if n <= 0 || n > 64<<10 || !bytes.HasPrefix(c.Peek(c.Arg(1), min(int(n), len(prefix))), []byte(prefix)) {
			return
		}
		var b []byte
		for line := range strings.Lines(string(c.Peek(c.Arg(1), int(n)))) {
			text, whole := strings.CutSuffix(line, "\n")
			if text, ok := edit(text); ok {
				b = append(b, text...)
				if whole {
					b = append(b, '\n')
				}
			}
		}
		if len(b) == 0 {
			b = []byte("\n") // nothing would be the end of the file
		}
		if uint64(len(b)) <= c.Arg(2) {
			c.Poke(c.Arg(1), b)
			c.SetResult(int64(len(b)))
		}
	}}}
}

// blindTo is blind to lines of /proc/PID/task/TID/status: values by name (proc_pid_status(5)).
func blindTo(h Hooks, lines map[string]string) Fault {
	return blind(h, "Name:\t", func(line string) (string, bool) {
		name, _, _ := strings.Cut(line, ":")
		if v, ok := lines[name]; ok {
			return name + ":\t" + v, true
		}
		return line, true
	})
}

// called gives a fault its name.
func (f Fault) called(name, does string) Fault {
	f.Name, f.Does = name, does
	return f
}

func startFaults() []Fault {
	return []Fault{
		{Name: "never-ready", Does: "starts and never makes its socket", Before: func([]string) ([]string, error) {
			time.Sleep(10 * time.Minute)
			return nil, exitStatus(0)
		}},
		{Name: "exits-early", Does: "ends with status 1 before it made its socket", Before: func([]string) ([]string, error) {
			fmt.Fprintln(os.Stderr, "out of patience")
			return nil, exitStatus(1)
		}},
		{Name: "exits-silently", Does: "ends with status 0 before it made its socket, and says nothing", Before: func([]string) ([]string, error) {
			return nil, exitStatus(0)
		}},
		{Name: "leaves-at-connect", Does: "ends when the front-end connects", Before: func(argv []string) ([]string, error) {
			l, err := listen(argv)
			if err != nil {
				return nil, err
			}
			if _, err := l.Accept(); err != nil {
				return nil, err
			}
			return nil, exitStatus(0)
		}},
		{Name: "deaf", Does: "accepts the front-end and never answers it", Before: func(argv []string) ([]string, error) {
			l, err := listen(argv)
			if err != nil {
				return nil, err
			}
			c, err := l.Accept()
			if err != nil {
				return nil, err
			}
			defer c.Close()
			time.Sleep(10 * time.Minute)
			return nil, exitStatus(0)
		}},
		{Name: "hangs", Does: "stops serving at the guest's third look at a file", Enter: Hooks{unix.SYS_STATX: func(c *Call) {
			if c.String(1) != "" && c.Count() > 2 {
				c.Hang()
			}
		}}},
		{Name: "sandbox-late", Does: "enters its sandbox only when the front-end has connected", Before: func(argv []string) ([]string, error) {
			l, err := listen(argv)
			if err != nil {
				return nil, err
			}
			f, err := l.File()
			if err != nil {
				return nil, err
			}
			l.SetUnlinkOnClose(false)
			fd := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
			for n := 0; n == 0; {
				if n, err = unix.Poll(fd, -1); err != nil && !errors.Is(err, unix.EINTR) {
					return nil, err
				}
			}
			const at = 3
			if err := unix.Dup3(int(f.Fd()), at, 0); err != nil && int(f.Fd()) != at {
				return nil, err
			}
			if err := os.Remove(option(argv, "--socket-path")); err != nil {
				return nil, err
			}
			return append(without("--socket-path")(argv), "--fd="+strconv.Itoa(at)), nil
		}},
	}
}

func listen(argv []string) (*net.UnixListener, error) {
	return net.ListenUnix("unix", &net.UnixAddr{Name: option(argv, "--socket-path"), Net: "unix"})
}

func sandboxFaults() []Fault {
	noNew := func(name string, flag uint64) Fault {
		// It is blind to interfaces, and to which namespaces it is in: no two looks give the same.
		f := blind(clearBits(0, flag, unix.SYS_CLONE), "Inter-|", func(line string) (string, bool) {
			dev, _, isDev := strings.Cut(line, ":")
			return line, !isDev || strings.TrimSpace(dev) == "lo"
		})
		looks := 0
		f.Leave[unix.SYS_READLINKAT] = func(c *Call) {
			if c.Result() < 2 || c.String(1) != "ns/"+name {
				return
			}
			looks++
			c.Poke(c.Arg(2)+uint64(c.Result())-2, []byte{byte('0' + looks%10)}) // the last digit of net:[4026531840]
		}
		return f.called("shares-"+name, "starts its serving process in the launcher's "+name+" namespace")
	}
	return []Fault{
		{Name: "no-sandbox", Does: "enters no sandbox at all", Args: replace("--sandbox", "none")},
		{Name: "chroots", Does: "changes its root by chroot(2) only", Args: replace("--sandbox", "chroot")},
		{Name: "shares-the-parent", Does: "shares the directory above the one it was given", Args: func(argv []string) []string {
			return replace("--shared-dir", filepath.Dir(option(argv, "--shared-dir")))(argv)
		}},
		noNew("net", unix.CLONE_NEWNET), noNew("pid", unix.CLONE_NEWPID), noNew("ipc", unix.CLONE_NEWIPC), noNew("uts", unix.CLONE_NEWUTS),
		noNew("cgroup", unix.CLONE_NEWCGROUP),
		blind(pretend(unix.SYS_MOUNT_SETATTR), "", mountinfo(func(f []string) bool {
			f[5] += ",nosuid,nodev"
			return true
		})).called("mounts-plainly", "does not set the flags of the share's mount"),
		blind(pretend(unix.SYS_UMOUNT2), "", mountinfo(func(f []string) bool { return f[4] == "/" && strings.Contains(f[5], "nosuid") })).called("keeps-the-old-root", "leaves the host's root mounted under its own"),
		{Name: "keeps-a-descriptor", Does: "keeps a descriptor of the host's root", Before: func(argv []string) ([]string, error) {
			fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY, 0)
			if err == nil {
				err = unix.Dup2(fd, leaked)
			}
			return argv, err
		}, Enter: Hooks{
			unix.SYS_CLOSE: func(c *Call) {
				if c.Arg(0) == leaked {
					c.Answer(0)
				}
			},
			unix.SYS_CLOSE_RANGE: func(c *Call) { c.Answer(0) },
			unix.SYS_FCNTL: func(c *Call) {
				if c.Arg(0) == leaked && c.Arg(1) == unix.F_SETFD {
					c.SetArg(2, 0)
				}
			},
		}},
		{Name: "writes-beside", Does: "writes a file beside the share", Before: func(argv []string) ([]string, error) {
			name := filepath.Join(filepath.Dir(option(argv, "--shared-dir")), "outside", "state")
			return argv, os.WriteFile(name, []byte("x"), 0o600)
		}},
		{Name: "follows-links", Does: "follows symbolic links when it looks a name up", Enter: clearBits(2, unix.AT_SYMLINK_NOFOLLOW, unix.SYS_STATX)},
		{Name: "writable", Does: "does not hear of --readonly", Args: without("--readonly")},
	}
}

// mountinfo edits lines of /proc/PID/mountinfo by their fields, and leaves other files alone.
func mountinfo(edit func(fields []string) bool) func(string) (string, bool) {
	return func(line string) (string, bool) {
		f := strings.Fields(line)
		if len(f) < 10 || !slices.Contains(f, "-") {
			return line, true
		}
		keep := edit(f)
		return strings.Join(f, " "), keep
	}
}

// leaked is the number of the descriptor that is kept.
const leaked = 77

func privilegeFaults() []Fault {
	const (
		noNewPrivs = unix.PR_SET_NO_NEW_PRIVS
		bounding   = unix.PR_CAPBSET_DROP
	)
	// prctl leaves one of prctl's requests out.
	prctl := func(request uint64) Hooks {
		return Hooks{unix.SYS_PRCTL: func(c *Call) {
			if c.Arg(0) == request {
				c.Answer(0)
			}
		}}
	}
	noGroups := map[string]string{"Groups": ""}
	noCaps := map[string]string{"CapPrm": "0", "CapEff": "0", "CapBnd": "0"}
	noNewPrivsUnset := blindTo(prctl(noNewPrivs), map[string]string{"NoNewPrivs": "1"}).called("no-new-privs-unset", "does not set no_new_privs")
	noNewPrivsUnset.Args = func(argv []string) []string { // both walls ask for it, or for CAP_SYS_ADMIN
		return replace("--landlock", "off")(replace("--seccomp", "none")(argv))
	}
	return []Fault{
		blindTo(pretend(unix.SYS_SETGROUPS), noGroups).called("keeps-groups", "does not drop its launcher's supplementary groups"),
		blindTo(Hooks{unix.SYS_SETGROUPS: func(c *Call) {
			if c.OneThread() {
				c.Answer(0)
			}
		}}, noGroups).called("keeps-groups-in-a-thread", "drops supplementary groups in all threads but one"),
		{Name: "keeps-sys-admin", Does: "keeps CAP_SYS_ADMIN", Args: func(argv []string) []string { return append(argv, "--modcaps=+sys_admin") }},
		blindTo(pretend(unix.SYS_CAPSET), noCaps).called("keeps-capabilities", "does not give capabilities up"),
		blindTo(prctl(bounding), noCaps).called("keeps-bounding", "leaves the bounding set as it was"),
		{Name: "parent-keeps-capabilities", Does: "leaves all capabilities to the process that waits", Enter: Hooks{unix.SYS_CAPSET: func(c *Call) {
			if c.First() {
				c.Answer(0)
			}
		}}},
		noNewPrivsUnset,
		{Name: "no-seccomp", Does: "installs no seccomp filter", Args: replace("--seccomp", "none")},
		{Name: "keeps-read-search", Does: "uses export handles though told not to, and keeps CAP_DAC_READ_SEARCH for them", Args: replace("--inode-file-handles", "prefer")},
		{Name: "forgets-maps", Does: "does not hear of id maps", Args: without("--uid-map", "--gid-map")},
	}
}

func identityFaults() []Fault {
	return []Fault{
		{Name: "squashes-owners", Does: "makes every file as root", Args: func(argv []string) []string {
			return append(argv, "--translate-uid=squash-guest:0:0:4294967295", "--translate-gid=squash-guest:0:0:4294967295")
		}},
		{Name: "creates-as-itself", Does: "does not take the user's id before it makes a file", Enter: Hooks{unix.SYS_SETRESUID: func(c *Call) { c.Answer(0) }}},
		{Name: "adds-setgid", Does: "gives new files the set-group-id bit, and keeps CAP_FSETID so that it stays", Enter: Hooks{
			unix.SYS_OPENAT: func(c *Call) {
				if c.Arg(2)&unix.O_CREAT != 0 {
					c.SetArg(3, c.Arg(3)|unix.S_ISGID|0o010)
				}
			},
			unix.SYS_CAPSET: func(c *Call) {
				// struct __user_cap_data_struct: effective, permitted, inheritable; two of them (linux/capability.h).
				d := c.Peek(c.Arg(1), 8)
				if c.First() || len(d) < 8 {
					return
				}
				effective := binary.LittleEndian.Uint32(d) | binary.LittleEndian.Uint32(d[4:])&(1<<unix.CAP_FSETID)
				c.Poke(c.Arg(1), binary.LittleEndian.AppendUint32(nil, effective))
			},
		}},
		{Name: "ignores-modes", Does: "makes directories with mode 0777", Enter: Hooks{unix.SYS_MKDIRAT: func(c *Call) { c.SetArg(2, c.Arg(2)|0o777) }}},
		{Name: "makes-plain-nodes", Does: "makes regular files where device nodes are asked for", Enter: Hooks{unix.SYS_MKNODAT: func(c *Call) {
			if t := c.Arg(2) & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
				c.SetArg(2, c.Arg(2)&^uint64(unix.S_IFMT)|unix.S_IFREG)
			}
		}}},
	}
}

func fileFaults() []Fault {
	return []Fault{
		{Name: "corrupts-data", Does: "changes a byte of big writes", Enter: Hooks{unix.SYS_PWRITEV2: corrupt, unix.SYS_PWRITEV: corrupt}},
		{Name: "loses-names", Does: "loses the last name of each part of a directory's list", Leave: Hooks{unix.SYS_GETDENTS64: func(c *Call) {
			// struct linux_dirent64: inode 8, offset 8, record length 2 at 16 (getdents64(2)).
			n := c.Result()
			if n <= 0 {
				return
			}
			b := c.Peek(c.Arg(1), int(n))
			last := 0
			for at := 0; at+18 < len(b); {
				last = at
				at += max(19, int(binary.LittleEndian.Uint16(b[at+16:])))
			}
			if last > 0 {
				c.SetResult(int64(last))
			}
		}}},
		{Name: "pretends-rename", Does: "answers renames without renaming", Enter: pretend(unix.SYS_RENAMEAT2)},
		{Name: "pretends-truncate", Does: "answers truncations without truncating", Enter: pretend(unix.SYS_FTRUNCATE)},
		{Name: "pretends-chmod", Does: "answers changes of mode without changing it", Enter: pretend(unix.SYS_FCHMODAT, unix.SYS_FCHMOD)},
		{Name: "pretends-xattr", Does: "answers new extended attributes without setting them", Enter: pretend(unix.SYS_SETXATTR, unix.SYS_FSETXATTR, unix.SYS_LSETXATTR)},
		{Name: "pretends-link", Does: "answers hard links without making them", Enter: pretend(unix.SYS_LINKAT)},
		{Name: "pretends-times", Does: "answers changes of times without changing them", Enter: pretend(unix.SYS_UTIMENSAT)},
		{Name: "empty-statfs", Does: "tells of a file system without space", Leave: Hooks{unix.SYS_FSTATFS: func(c *Call) {
			c.Poke(c.Arg(1)+16, make([]byte, 24)) // struct statfs: blocks, free, available
		}}},
		{Name: "refuses-fsync", Does: "answers fsync with EIO", Enter: refuse(unix.EIO, unix.SYS_FSYNC, unix.SYS_FDATASYNC)},
		{Name: "refuses-syncfs", Does: "answers syncfs with EIO", Enter: refuse(unix.EIO, unix.SYS_SYNCFS)},
	}
}

// corrupt flips a bit of the first byte of a write of 64 KiB or more.
func corrupt(c *Call) {
	v := c.Peek(c.Arg(1), 16) // struct iovec: base, length
	if len(v) < 16 {
		return
	}
	if n := int64(c.Arg(2)); n < 16 && binary.LittleEndian.Uint64(v[8:]) < 64<<10 {
		return
	}
	base := binary.LittleEndian.Uint64(v)
	if b := c.Peek(base, 1); len(b) == 1 {
		c.Poke(base, []byte{b[0] ^ 1})
	}
}

func endFaults() []Fault {
	return []Fault{
		{Name: "ends-with-1", Does: "ends with status 1", Enter: Hooks{unix.SYS_EXIT_GROUP: func(c *Call) {
			if c.First() {
				c.SetArg(0, 1)
			}
		}}},
		{Name: "stays", Does: "does not end when the front-end has left", Enter: Hooks{unix.SYS_EXIT_GROUP: func(c *Call) {
			if c.First() {
				c.Hang()
			}
		}}},
		{Name: "leaves-a-process", Does: "leaves a process behind", Before: func(argv []string) ([]string, error) {
			cmd, err := self(sleeper)
			if err != nil {
				return nil, err
			}
			return argv, cmd.Start()
		}},
		{Name: "leaves-the-socket", Does: "does not remove its socket and pid file", Enter: Hooks{unix.SYS_UNLINKAT: func(c *Call) {
			if c.First() && strings.Contains(c.String(1), ".sock") {
				c.Answer(0)
			}
		}}},
		{Name: "leaves-a-mount", Does: "leaves a mount in the launcher's mount namespace", Before: func(argv []string) ([]string, error) {
			return argv, unix.Mount("none", filepath.Dir(option(argv, "--socket-path")), "tmpfs", 0, "size=64k")
		}},
		{Name: "crashes-in-the-log", Does: "writes a crash to its log and goes on", Before: func(argv []string) ([]string, error) {
			fmt.Fprintln(os.Stderr, "thread 'fault' panicked at src/main.rs:1:1: planted")
			return argv, nil
		}},
	}
}
