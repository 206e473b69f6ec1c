package scenario

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"sort"
	"strings"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/result"
)

// Scenario is one use case with one set of options.
type Scenario struct {
	ID      string   `toml:"-"`        // the file's name
	Title   string   `toml:"title"`    // a few words
	UseCase string   `toml:"use_case"` // A, B, C, D or E (virtiofsd issue 43)
	Why     string   `toml:"why"`      // who uses this, and what for
	Needs   []string `toml:"needs"`    // what the host must have: root, userns, newuidmap, bwrap, qemu …
	Impls   []string `toml:"impls"`    // implementations; empty = all
	Kernels []string `toml:"kernels"`  // guest kernels
	Launch  Launch   `toml:"launch"`
	Options Options  `toml:"options"`
	Share   Share    `toml:"share"`
	Guest   Guest    `toml:"guest"`
	Plant   []Plant  `toml:"plant"` // what the host puts into the share beforehand
	Steps   []Step   `toml:"step"`
	Expect  []Expect `toml:"expect"`
}

// Launch says who starts the daemon.
type Launch struct {
	As     string   `toml:"as"`     // user: "" or "root" = as vfsmatrix itself; another name is made for the run
	UID    int      `toml:"uid"`    // of that user; 0 with As "" means root
	GID    int      `toml:"gid"`    // its group
	Groups []int    `toml:"groups"` // its supplementary groups, so that a daemon which keeps them is found out
	SubUID string   `toml:"subuid"` // its ranges in /etc/subuid, "START:COUNT", with commas between several
	SubGID string   `toml:"subgid"` // its ranges in /etc/subgid
	Wrap   []string `toml:"wrap"`   // a command before the daemon's: unshare, bwrap …
	Tool   string   `toml:"tool"`   // what Wrap is, for pages and pictures: unshare, bubblewrap, podman-like …
	// Capabilities, where given, are the only ones that the launcher has (bounding set too), such as CHOWN; "none" is no capability.
	Capabilities []string `toml:"capabilities"`
}

// Options are the daemon's, in neutral words; each implementation says them in its own dialect. A zero value is not said at all: the daemon's default holds.
type Options struct {
	Sandbox           string   `toml:"sandbox"` // namespace, pivot_root, chroot, none
	Cache             string   `toml:"cache"`   // auto, always, metadata, never
	Xattr             bool     `toml:"xattr"`
	PosixACL          bool     `toml:"posix_acl"`
	SecurityLabel     bool     `toml:"security_label"`
	Readonly          bool     `toml:"readonly"`
	Writeback         bool     `toml:"writeback"`
	KillprivV2        bool     `toml:"killpriv_v2"`
	AllowDirectIO     bool     `toml:"allow_direct_io"`
	AllowMmap         bool     `toml:"allow_mmap"`
	AnnounceSubmounts bool     `toml:"announce_submounts"`
	InodeFileHandles  string   `toml:"inode_file_handles"` // never, prefer, mandatory
	ThreadPoolSize    int      `toml:"thread_pool_size"`
	UIDMap            []string `toml:"uid_map"` // :inside:outside:count:
	GIDMap            []string `toml:"gid_map"`
	TranslateUID      []string `toml:"translate_uid"`
	TranslateGID      []string `toml:"translate_gid"`
	NoFailSetgroups   bool     `toml:"no_fail_setgroups"`
	Modcaps           string   `toml:"modcaps"`
	Seccomp           string   `toml:"seccomp"` // kill, log, trap, none
	RlimitNofile      int      `toml:"rlimit_nofile"`
	Extra             []string `toml:"extra"` // arguments as they are; inexpressible for dialects that lack them
}

// Share is the shared directory itself: who owns it on the host, and its mode. Zero values are root's and 0755.
type Share struct {
	UID  int    `toml:"uid"`
	GID  int    `toml:"gid"`
	Mode uint32 `toml:"mode"`
}

// Guest sizes the virtual machine; zero values leave the harness's defaults.
type Guest struct {
	MemMiB        int    `toml:"mem_mib"`
	CPUs          int    `toml:"cpus"`
	RequestQueues int    `toml:"request_queues"`
	QueueSize     int    `toml:"queue_size"`
	MountOptions  string `toml:"mount_options"`
}

// Plant is an entry that the host makes under the share before the daemon starts.
type Plant struct {
	Path    string `toml:"path"` // relative to the share
	Kind    string `toml:"kind"` // file, dir, symlink, fifo
	Content string `toml:"content"`
	Target  string `toml:"target"` // of a symlink; {outside} is the folder of sentinel files beside the share
	Mode    uint32 `toml:"mode"`
	UID     int    `toml:"uid"`
	GID     int    `toml:"gid"`
}

// Step is one look at the system. Steps run in the order of the file, those of a phase together.
type Step struct {
	Name  string         `toml:"name"`  // unique in the scenario; "" = the probe's name, with "-started" where At says so
	Probe string         `toml:"probe"` // a guest call or a host probe
	At    string         `toml:"at"`    // phase; "" = mounted
	Args  map[string]any `toml:"args"`  // the probe's arguments, in its own words
	// TimeoutS bounds the step in seconds; 0 = 120.
	TimeoutS float64 `toml:"timeout_s"`
	Why      string  `toml:"why"` // what the step is for, where its name does not tell
}

// Where says on which side the step's probe runs.
func (s Step) Where() result.Where {
	if slices.Contains(HostProbes(), s.Probe) {
		return result.Host
	}
	return result.Guest
}

// The phases of a cell.
const (
	AtStarted = "started" // the daemon's socket is there, the guest is not
	AtMounted = "mounted" // the guest runs and has mounted the share
	AtEnded   = "ended"   // the guest has powered off and the daemon is gone
)

// Host probes, as package probe implements them.
const (
	ProbeProc    = "proc"    // threads, credentials, capabilities, namespaces, maps of the daemon's processes
	ProbeMounts  = "mounts"  // the serving process's mount namespace
	ProbeFDs     = "fds"     // the serving process's descriptors
	ProbeOwners  = "owners"  // owners and modes in the share, as the host sees them
	ProbeSHA256  = "sha256"  // the hash of a file in the share, as the host reads it
	ProbeOutside = "outside" // whether anything beside the share changed
	ProbeLog     = "log"     // what the daemon wrote
	ProbeHostile = "hostile" // rules of FUSE, ring and vhost-user broken one by one, each against a daemon of its own with the scenario's sandbox
	ProbeMoves   = "moves"   // what a guest holds (guestproto.CallHold), laid out, renamed, and looked at afterwards
	ProbeDriven  = "driven"  // hosts and drivers of other kinds, each with a daemon of its own with the scenario's sandbox
	ProbeExit    = "exit"    // how the daemon and QEMU ended and what they left; always the last
)

// HostProbes lists the host's probes.
func HostProbes() []string {
	return []string{ProbeProc, ProbeMounts, ProbeFDs, ProbeOwners, ProbeSHA256, ProbeOutside, ProbeLog, ProbeHostile, ProbeMoves, ProbeDriven, ProbeExit}
}

// Outcome is what is expected of a claim. The zero value is invalid.
type Outcome string

// The outcomes.
const (
	Holds   Outcome = "holds"   // the claim is true here
	Absent  Outcome = "absent"  // this mode does not give what the claim says: it must not be true
	Refused Outcome = "refused" // the daemon must refuse to start, with the words of Says
)

// Expect says what must come out.
type Expect struct {
	// Claim is an id, or in the file a pattern of path.Match such as semantics/*, which stands for every claim that no
	// longer pattern and no id of the file is about. Validate puts the ids in the pattern's place.
	Claim   string  `toml:"claim"`
	Outcome Outcome `toml:"outcome"`
	Because string  `toml:"because"`
	Says    string  `toml:"says"` // for refused: a piece of the daemon's message
	// Impls restricts the expectation; empty = all.
	Impls []string `toml:"impls"`
}

var idForm = regexp.MustCompile(`^[a-e]-[a-z0-9]+(-[a-z0-9]+)*$`)

// CheckID refuses what can be no scenario's name.
func CheckID(id string) error {
	if !idForm.MatchString(id) {
		return fmt.Errorf("scenario %s: the name must be the use case's letter, a to e, and words, such as a-root", id)
	}
	return nil
}

// Validate checks a scenario against the claims there are.
func (s *Scenario) Validate(claims []claim.Claim) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("scenario %s: %w", s.ID, fmt.Errorf(format, args...))
	}
	if err := CheckID(s.ID); err != nil {
		return err
	}
	switch {
	case len(s.UseCase) != 1 || !strings.Contains("ABCDE", s.UseCase):
		return bad("use_case %q is not A, B, C, D or E", s.UseCase)
	case strings.ToUpper(s.ID[:1]) != s.UseCase:
		return bad("the name begins with %q, the use case is %q", s.ID[:1], s.UseCase)
	case s.Title == "" || s.Why == "":
		return bad("title and why must be said")
	case len(s.Kernels) == 0:
		return bad("no kernels")
	case !slices.Contains([]string{"namespace", "pivot_root", "chroot", "none"}, s.Options.Sandbox):
		return bad("sandbox %q is not namespace, pivot_root, chroot or none", s.Options.Sandbox)
	case len(s.Expect) == 0:
		return bad("nothing is expected")
	}
	probes := map[string]bool{}
	names := map[string]bool{}
	for i := range s.Steps {
		st := &s.Steps[i]
		if st.At == "" {
			st.At = AtMounted
		}
		if st.Name == "" {
			st.Name = st.Probe
			if st.At == AtStarted {
				st.Name += "-" + AtStarted
			}
		}
		if !slices.Contains(HostProbes(), st.Probe) && !slices.Contains(guestproto.Calls(), st.Probe) {
			return bad("step %s: unknown probe %q", st.Name, st.Probe)
		}
		if !slices.Contains([]string{AtStarted, AtMounted, AtEnded}, st.At) {
			return bad("step %s: unknown phase %q", st.Name, st.At)
		}
		if st.Where() == result.Guest && st.At != AtMounted {
			return bad("step %s: the guest runs in phase mounted only", st.Name)
		}
		if names[st.Name] {
			return bad("two steps are called %s", st.Name)
		}
		names[st.Name], probes[st.Probe] = true, true
	}
	for _, p := range s.Plant {
		if p.Path == "" || path.IsAbs(p.Path) || path.Clean(p.Path) != p.Path || strings.HasPrefix(p.Path, "..") {
			return bad("plant %q: want a clean path under the share", p.Path)
		}
		if !slices.Contains([]string{"file", "dir", "symlink", "fifo"}, p.Kind) {
			return bad("plant %s: unknown kind %q", p.Path, p.Kind)
		}
	}
	expect, err := s.expand(claims)
	if err != nil {
		return bad("%w", err)
	}
	s.Expect = expect
	for _, e := range s.Expect {
		i := slices.IndexFunc(claims, func(c claim.Claim) bool { return c.ID == e.Claim })
		switch {
		case e.Outcome != Holds && e.Outcome != Absent && e.Outcome != Refused:
			return bad("claim %s: outcome %q is not holds, absent or refused", e.Claim, e.Outcome)
		case e.Because == "":
			return bad("claim %s: because is empty", e.Claim)
		case (e.Says != "") != (e.Outcome == Refused):
			return bad("claim %s: says belongs to refused, and refused wants it", e.Claim)
		}
		if e.Outcome == Refused {
			continue
		}
		for _, p := range claims[i].Probe {
			if !probes[p] && p != ProbeExit {
				return bad("claim %s wants the probe %s, which no step runs", e.Claim, p)
			}
		}
	}
	return nil
}

// expand puts ids in the place of patterns, and sorts by id. Of several entries for a claim and the same implementations, the longest
// pattern counts, and an id before any pattern.
func (s *Scenario) expand(claims []claim.Claim) ([]Expect, error) {
	var all []Expect
	for _, e := range s.Expect {
		hit := func(c claim.Claim) bool { return match(e.Claim, c.ID) }
		if !slices.ContainsFunc(claims, hit) {
			return nil, fmt.Errorf("expects the unknown claim %q", e.Claim)
		}
	}
	for _, c := range claims {
		best := map[string]Expect{} // by the implementations that an entry is restricted to
		for _, e := range s.Expect {
			if !match(e.Claim, c.ID) {
				continue
			}
			key := strings.Join(e.Impls, " ")
			old, there := best[key]
			switch {
			case there && len(old.Claim) == len(e.Claim):
				return nil, fmt.Errorf("claim %s is expected twice, by %q and %q", c.ID, old.Claim, e.Claim)
			case there && (old.Claim == c.ID || len(old.Claim) > len(e.Claim) && e.Claim != c.ID):
			default:
				best[key] = e
			}
		}
		for _, key := range slices.Sorted(maps.Keys(best)) {
			e := best[key]
			e.Claim = c.ID
			all = append(all, e)
		}
	}
	return all, nil
}

// Runs reports whether the scenario is for this implementation.
func (s *Scenario) Runs(impl string) bool { return len(s.Impls) == 0 || slices.Contains(s.Impls, impl) }

// Expectations are those for one implementation: an entry that names it counts instead of one for all.
func (s *Scenario) Expectations(impl string) []Expect {
	var all []Expect
	for _, e := range s.Expect {
		if len(e.Impls) > 0 && !slices.Contains(e.Impls, impl) {
			continue
		}
		if n := len(all) - 1; n >= 0 && all[n].Claim == e.Claim { // sorted: the entry for all stands before those that name an implementation
			all[n] = e
			continue
		}
		all = append(all, e)
	}
	return all
}

// Parse reads one scenario.
func Parse(id string, b []byte, claims []claim.Claim) (*Scenario, error) {
	s := &Scenario{ID: id}
	if err := claim.Strict(b, s); err != nil {
		return nil, fmt.Errorf("scenario %s: %w", id, err)
	}
	if err := s.Validate(claims); err != nil {
		return nil, err
	}
	return s, nil
}

// Load reads all scenarios of a folder's *.toml files, sorted by id. known-differences.toml is none.
func Load(fsys fs.FS, dir string, claims []claim.Claim) ([]*Scenario, error) {
	names, err := fs.Glob(fsys, path.Join(dir, "*.toml"))
	if err != nil {
		return nil, fmt.Errorf("list scenarios in %s: %w", dir, err)
	}
	var all []*Scenario
	for _, name := range names {
		if path.Base(name) == KnownFile {
			continue
		}
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("read scenario: %w", err)
		}
		s, err := Parse(strings.TrimSuffix(path.Base(name), ".toml"), b, claims)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no scenarios in %s", dir)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].ID < all[j].ID })
	return all, nil
}
