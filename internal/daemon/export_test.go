//go:debug containermaxprocs=0

package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/sandbox"
	"virtiofsd/internal/vhostuser"
)

// InsiderEnv makes a test binary the daemon, with a serving process that turns hostile. Its value is an [Outside] in JSON.
const InsiderEnv = "VIRTIOFSD_INSIDER"

// Outside is what an insider tries to reach.
type Outside struct {
	Dir, Plain, Secret    string // a folder beside the share, a file in it that everybody may read, what it says
	Victim                int    // a process of the same user, whose descriptor 3 is the file
	VictimAddr            uint64 // something readable in its memory
	TCP, UDP              int    // ports of the loopback interface where somebody listens
	Abstract, Path        string // addresses of listening sockets of the family unix
	Shm                   int    // key of a segment of shared memory
	MQ                    string // name of a message queue
	HandleType, MountType int32  // export handles of the file, and of a directory of another mount:
	Handle, MountHandle   []byte // that of descriptor 0
	PlainDev, PlainIno    uint64
	Group                 int               // of the launcher, which share/adm belongs to
	Namespaces            map[string]string // the host's, by kind
	Filter                []bool            // make attempts under the filter, without it
	Only                  []string          // attempts to make, all if there are none
	Without               []sandbox.Op      // walls to leave out
	Logged                bool              // nothing of that: make a few calls that the filter is to log
}

// CloseStray among the walls that are left out is a descriptor that a launcher forgot to close, and that nobody has closed since.
const CloseStray sandbox.Op = "close-stray"

// Result is what came of an attempt.
type Result struct {
	Name   string `json:"name"`
	Filter bool   `json:"filter"` // under the system call filter
	End    End    `json:"end"`
	Why    string `json:"why"` // errno, or a few words
}

// End is how an attempt ended.
type End string

// The ends.
const (
	Out     End = "out"     // something outside was reached
	Nothing End = "nothing" // the calls were carried out, and led nowhere
	Refused End = "refused" // by the kernel, with an errno
	Killed  End = "killed"  // by the filter
	Hung    End = "hung"
)

func init() {
	if os.Getenv(InsiderEnv) != "" {
		runtime.LockOSThread() // as the command does
	}
}

// InsiderMain is the daemon's main function where the environment asks for an insider. Parent and probe are the daemon's own.
func InsiderMain() int {
	sandbox.Begin()
	var o Outside
	err := json.Unmarshal([]byte(os.Getenv(InsiderEnv)), &o)
	if os.Getenv(sandbox.StageEnv) != "child" || err != nil {
		return Main(os.Args[1:], os.Stdout, os.Stderr)
	}
	os.Unsetenv(sandbox.StageEnv)
	if err := insider(o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stdout, "insider:", err)
		return exitError
	}
	return exitOK
}

// insider is [child], but for the filter, which each attempt puts on for itself, and the walls that are to be left out.
func insider(o Outside, w io.Writer) error {
	in, ctx, err := sandbox.Receive()
	if err != nil {
		return err
	}
	filter := in.Plan.Has(sandbox.OpSeccomp)
	leave := o.Without
	if !o.Logged {
		leave = append(leave, sandbox.OpSeccomp)
	}
	if len(o.Without) > 0 {
		leave = append(leave, sandbox.OpVerify)
	}
	in.Plan.Steps = slices.DeleteFunc(in.Plan.Steps, func(s sandbox.Step) bool { return slices.Contains(leave, s.Op) && s.Op != sandbox.OpProc })
	if slices.Contains(o.Without, sandbox.OpProc) {
		for i := range in.Plan.Steps {
			if in.Plan.Steps[i].Op == sandbox.OpProc {
				in.Plan.Steps[i].Op = sandbox.OpProcPlain
			}
		}
	}
	if slices.Contains(o.Without, CloseStray) {
		if _, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
	}
	if !in.Plan.Handles {
		in.Options.InodeFileHandles = "never"
	}
	log := newLog(in.Options)
	listener, err := vhostuser.Adopt(int(in.Files[0].Fd()))
	if err != nil {
		return err
	}
	defer listener.Close()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	entered, err := sandbox.Enter(&in.Order, in.HandOver, log)
	if err != nil {
		in.Report(nil, err)
		return err
	}
	x := &prisoner{Outside: o, Entered: entered, plan: in.Plan, filter: filter}
	if o.Logged {
		go x.stumble(w)
	} else {
		go x.attack(w)
	}
	s := server{Options: in.Options, in: entered, limit: limit.Cur, listener: listener, ask: in.Stats(), log: log, ready: func() {
		in.Report(&entered.State, nil)
		in.Wait(ctx)
	}}
	return s.serve(ctx)
}

// Raw is a system call with slices for pointers.
func Raw(nr uintptr, args ...any) (uintptr, error) { return raw(nr, args...) }

// Attempts are the names of all attempts, and what they do.
func Attempts() (names []string, does map[string]string) {
	does = map[string]string{}
	for _, a := range attempts() {
		names, does[a.name] = append(names, a.name), a.does
	}
	return names, does
}
