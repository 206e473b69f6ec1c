package sandbox

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Room is how many threads something that bounds them leaves to the daemon. One more than that ends
// a Go program, at whatever moment.
type Room struct {
	By   string `json:"by"`   // what bounds them
	Left int    `json:"left"` // threads that can still be made
	User bool   `json:"user"` // it holds for users, and not for the host's root
}

// Threads are what the serving process may use where they are bounded.
type Threads struct {
	Workers int  `json:"workers"` // threads that serve, 0 for any number
	Procs   int  `json:"procs"`   // Go's processors (GOMAXPROCS), at most
	Room    Room `json:"room"`    // what bounds them
}

const (
	// LeastWorkers is with how many threads that serve a daemon starts.
	LeastWorkers = 4
	// runtimeThreads is how many threads there can be beside those that serve and one for each of
	// Go's processors: the parent's, which makes six more after it has counted, and in the serving
	// process the runtime's own, the reader of messages and the queues' monitor.
	runtimeThreads = 16
	leastProcs     = 4
	// plenty is how many threads are more than the daemon can use: 64 for each of 65 queues.
	plenty = 5000
	// countBelow is the limit of a user's threads from which on nobody counts them, which takes a
	// look at every process.
	countBelow = 16384
)

// threads decides how many threads may serve.
func (p *Plan) threads(f Facts) error {
	privileged := f.Initial() && !p.NewNamespace("user") && (f.UID == 0 || p.Keep.Has(SysAdmin) || p.Keep.Has(SysResource))
	rooms := slices.DeleteFunc(slices.Clone(f.Rooms), func(r Room) bool { return r.Left >= plenty || r.User && privileged })
	if len(rooms) == 0 {
		return nil
	}
	r := slices.MinFunc(rooms, func(a, b Room) int { return cmp.Compare(a.Left, b.Left) })
	t := Threads{Procs: max(leastProcs, r.Left/8), Room: r}
	t.Workers = r.Left - t.Procs - runtimeThreads
	if least := leastProcs + runtimeThreads + LeastWorkers; r.Left < least {
		return fmt.Errorf("sandbox %s: %s leaves %d threads, and the daemon needs %d: %s", p.Mode, r.By, max(r.Left, 0), least, r.remedy())
	}
	p.Threads = &t
	return nil
}

func (r Room) remedy() string {
	if r.User {
		return "raise the limit of processes (ulimit -u, LimitNPROC=), or end some of the user's"
	}
	return "raise it (TasksMax=, --pids-limit=), or end some processes of that cgroup"
}

// String is what the bound comes to, for people.
func (t *Threads) String() string {
	return fmt.Sprintf("at most %d threads serve, as %s leaves %d; to have more, %s", t.Workers, t.Room.By, t.Room.Left, t.Room.remedy())
}

// rooms reads what bounds the threads of this process: the cgroups that it is in, and the limit of
// its user's processes.
func rooms(user bool) []Room {
	all := cgroupRooms("/")
	if r, ok := userRoom(); user && ok {
		all = append(all, r)
	}
	return all
}

// cgroupRooms reads pids.max of this process's cgroup and of all above it, as far as they can be
// seen, in both versions (cgroups(7)). The files are looked for below root.
func cgroupRooms(root string) (all []Room) {
	cgroups, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return nil
	}
	own := map[string]string{} // by the type of its file system
	for line := range strings.Lines(string(cgroups)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(f) < 3:
		case f[0] == "0":
			own["cgroup2"] = f[2]
		case slices.Contains(strings.Split(f[1], ","), "pids"):
			own["cgroup"] = f[2]
		}
	}
	mounts, err := os.ReadFile(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return nil
	}
	seen := map[string]bool{}
	for line := range bytes.Lines(mounts) {
		before, after, ok := strings.Cut(string(line), " - ")
		m, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(m) < 5 || len(kind) < 3 || kind[0] == "cgroup" && !slices.Contains(strings.Split(kind[2], ","), "pids") {
			continue
		}
		path, ok := own[kind[0]]
		if !ok {
			continue
		}
		rel, err := filepath.Rel(unescape(m[3]), path)
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			continue
		}
		top := filepath.Join(root, unescape(m[4]))
		for dir := filepath.Join(top, rel); ; dir = filepath.Dir(dir) {
			if r, ok := cgroupRoom(dir); ok && !seen[dir] {
				seen[dir] = true
				r.By = strings.TrimPrefix(r.By, strings.TrimSuffix(root, "/"))
				all = append(all, r)
			}
			if dir == top {
				break
			}
		}
	}
	return all
}

func cgroupRoom(dir string) (Room, bool) {
	r := Room{By: filepath.Join(dir, "pids.max")}
	most, err := readInt(r.By)
	if err != nil { // "max", or a root, which has no such file
		return r, false
	}
	now, err := readInt(filepath.Join(dir, "pids.current"))
	r.Left = most - now
	return r, err == nil
}

func readInt(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// unescape undoes what mountinfo does to blanks and backslashes in paths (proc_pid_mountinfo(5)).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// userRoom is what the limit of its processes leaves to the caller's user (setrlimit(2),
// RLIMIT_NPROC). The soft limit is raised first.
func userRoom() (r Room, ok bool) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &limit); err != nil {
		return r, false
	}
	if limit.Cur < limit.Max && unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: limit.Max, Max: limit.Max}) == nil {
		limit.Cur = limit.Max
	}
	if limit.Cur >= countBelow { // unlimited is the largest
		return r, false
	}
	r = Room{By: fmt.Sprintf("the limit of %d processes (RLIMIT_NPROC)", limit.Cur), User: true}
	r.Left = int(limit.Cur) - threadsOf(uint32(os.Getuid()))
	return r, true
}

// threadsOf counts a user's threads, as far as they can be seen.
func threadsOf(uid uint32) (n int) {
	processes, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return 0
	}
	for _, p := range processes {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended
		}
		is, threads := false, 0
		for line := range bytes.Lines(b) {
			name, v, _ := strings.Cut(string(line), ":")
			switch w := strings.Fields(v); {
			case name == "Uid" && len(w) > 0:
				real, err := strconv.ParseUint(w[0], 10, 32)
				is = err == nil && uint32(real) == uid
			case name == "Threads" && len(w) > 0:
				threads, _ = strconv.Atoi(w[0])
			}
		}
		if is {
			n += threads
		}
	}
	return n
}
