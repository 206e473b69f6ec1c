package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/sys"
)

type outerCall struct {
	name string
	nr   uintptr
	ops  []Op
}

// outerCalls are the system calls of the sandbox's steps that a caller's filter may answer by
// ending the process, as systemd's set @system-service does.
var outerCalls = []outerCall{
	{"mount", unix.SYS_MOUNT, []Op{OpPrivate}},
	{"open_tree", unix.SYS_OPEN_TREE, []Op{OpProc, OpAttach}},
	{"mount_setattr", unix.SYS_MOUNT_SETATTR, []Op{OpAttach}},
	{"move_mount", unix.SYS_MOVE_MOUNT, []Op{OpAttach}},
	{"pivot_root", unix.SYS_PIVOT_ROOT, []Op{OpPivot}},
	{"umount2", unix.SYS_UMOUNT2, []Op{OpPivot}},
	{"chroot", unix.SYS_CHROOT, []Op{OpChroot}},
	{"landlock_create_ruleset", unix.SYS_LANDLOCK_CREATE_RULESET, []Op{OpLandlock}},
	{"landlock_add_rule", unix.SYS_LANDLOCK_ADD_RULE, []Op{OpLandlock}},
	{"landlock_restrict_self", unix.SYS_LANDLOCK_RESTRICT_SELF, []Op{OpLandlock}},
	{"seccomp", unix.SYS_SECCOMP, []Op{OpSeccomp}},
}

// fatalCalls tries which of the calls end the process that makes them: a child makes one after the
// other, with arguments that no kernel accepts, and tells which it is going to make. Where it dies,
// another goes on behind.
func fatalCalls() (fatal []string) {
	for first := 0; first < len(outerCalls); {
		c := exec.Command("/proc/self/exe")
		c.Env = []string{StageEnv + "=" + stageCalls + outerCalls[first].name}
		out, err := c.Output()
		if err == nil {
			break
		}
		names := strings.Fields(string(out))
		if len(names) == 0 {
			break // it is not these calls that keep it from starting
		}
		fatal = append(fatal, names[len(names)-1])
		first += len(names)
	}
	return fatal
}

// makeCalls is the child's side of fatalCalls.
func makeCalls(first string) {
	at := slices.IndexFunc(outerCalls, func(c outerCall) bool { return c.name == first })
	for _, c := range outerCalls[max(at, 0):] {
		fmt.Fprintln(os.Stdout, c.name)
		sys.RefusedCall(c.nr)
	}
}

// survives is an error where a step of the plan makes a call that would end the process.
func (p *Plan) survives(f Facts) error {
	var fatal []string
	for _, c := range outerCalls {
		if slices.Contains(f.Fatal, c.name) && slices.ContainsFunc(c.ops, p.Has) {
			fatal = append(fatal, c.name)
		}
	}
	if len(fatal) == 0 {
		return nil
	}
	return fmt.Errorf("sandbox %s: the caller's filter of system calls ends the process for %s; allow them (in a unit of systemd: SystemCallFilter=%s beside the others), or choose a mode that needs none",
		p.Mode, strings.Join(fatal, ", "), strings.Join(fatal, " "))
}
