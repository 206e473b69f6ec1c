package workload

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// step is one operation of the differential workload. Each kind of operation uses what it needs of it.
type step struct {
	N     int    `json:"n"`
	Op    string `json:"op"`
	Path  string `json:"path,omitempty"`
	To    string `json:"to,omitempty"`
	Slot  int    `json:"slot"` // of the process's open files
	Slot2 int    `json:"slot2"`
	Flags int    `json:"flags,omitempty"`
	Mode  uint32 `json:"mode,omitempty"`
	Off   int64  `json:"off,omitempty"`
	Off2  int64  `json:"off2,omitempty"`
	Len   int64  `json:"len,omitempty"`
	UID   int    `json:"uid,omitempty"`
	GID   int    `json:"gid,omitempty"`
	Key   string `json:"key,omitempty"`
}

func (s step) String() string {
	b, err := json.Marshal(s)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// outcome is what a step gave: words such as "errno=ENOENT" or "mode=100644", the same words in the same order if it went the same way.
type outcome []string

// answer is what a process says of a step: what came of it on both sides, and the open files that it was about.
type answer struct {
	Share, Local outcome
	Slot, Slot2  int
}

// differTurn is how many steps a process does before it is another's turn.
const differTurn = 8

func whoseTurn(seed int64, n int) int {
	return rand.New(rand.NewPCG(uint64(seed), 1<<63+uint64(n))).IntN(len(differProcesses()))
}

// differProcesses are who works on the trees: two processes each of root and of a user, and one of another user who shares groups
// with the first.
func differProcesses() []guestproto.Cred {
	user := guestproto.Cred{UID: 1001, GID: 1001, Groups: []int{2001}}
	return []guestproto.Cred{{}, {}, user, user, {UID: 1002, GID: 1002, Groups: []int{2001, 1001}}}
}

// differ draws operations at random, has them done on the share and on a local directory by the same process in the same way,
// and compares what came of each, and both trees at the end.
func (e *Env) differ(a guestproto.DifferArgs) (guestproto.Differ, error) {
	r := guestproto.Differ{Differences: []guestproto.Difference{}, Known: map[string]int{}, ByOp: map[string]int{}, Errnos: map[string]int{}}
	if a.Ops == 0 {
		a.Ops = 2000
	}
	if a.Max == 0 {
		a.Max = 20
	}
	p, err := e.place(a.Where, guestproto.CallDiffer)
	if err != nil {
		return r, err
	}
	d := differential{env: e, args: a, r: &r, roots: [2]string{
		filepath.Join(p.dir, "tree"), filepath.Join(e.localDir(), "differ-control", "tree"),
	}}
	defer d.end()
	if err := d.begin(); err != nil {
		return r, err
	}
	start := time.Now()
	for n := 0; n < a.Ops && r.Total < 5*a.Max; n += differTurn { // with more it is another file system
		e.progress("differ", int64(n), int64(a.Ops))
		var turn []step
		for i := n; i < min(n+differTurn, a.Ops); i++ {
			if !slices.Contains(a.Skip, i) {
				s := draw(a.Seed, i)
				if a.NoTrusted {
					s.Key = strings.Replace(s.Key, "trusted.", "user.", 1)
				}
				turn = append(turn, s)
			}
		}
		if err := d.do(whoseTurn(a.Seed, n), turn); err != nil {
			return r, fmt.Errorf("operations from %d on: %w", n, err)
		}
		if n/differTurn%1000 == 999 {
			if err := d.compareTrees(n); err != nil {
				return r, err
			}
		}
	}
	if err := d.compareTrees(a.Ops); err != nil {
		return r, err
	}
	r.Seconds = time.Since(start).Seconds()
	return r, nil
}

type differential struct {
	env   *Env
	args  guestproto.DifferArgs
	r     *guestproto.Differ
	roots [2]string // with a directory of their own above: a link may lead there
	procs []*process
	trace []string
}

// process is a child that does steps.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *json.Encoder
	dec *json.Decoder
	err strings.Builder
}

// begin makes fresh trees and starts the processes.
func (d *differential) begin() error {
	for _, root := range d.roots {
		if err := os.RemoveAll(filepath.Dir(root)); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
			return err
		}
		if err := makeDifferTree(root); err != nil {
			return err
		}
	}
	for _, as := range differProcesses() {
		var fds [2]*os.File
		for i, root := range d.roots {
			f, err := os.Open(root)
			if err != nil {
				return err
			}
			defer f.Close()
			fds[i] = f
		}
		c := exec.Command(d.env.self(), "child", "differ")
		c.ExtraFiles = fds[:]
		c.Env = append(os.Environ(), "GOMAXPROCS=1")
		if as.UID != 0 {
			c.SysProcAttr = &syscall.SysProcAttr{Credential: credential(&as)}
		}
		pr := &process{cmd: c}
		c.Stderr = &pr.err
		in, err := c.StdinPipe()
		if err != nil {
			return err
		}
		out, err := c.StdoutPipe()
		if err != nil {
			return err
		}
		if err := c.Start(); err != nil {
			return err
		}
		pr.in, pr.enc, pr.dec = in, json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out))
		d.procs = append(d.procs, pr)
	}
	return nil
}

// makeDifferTree makes the four directories that there are at first.
func makeDifferTree(root string) error {
	for _, dir := range []struct {
		name string
		gid  int
		mode uint32
	}{{"", 0, 0o777}, {"s", 2001, 0o2777}, {"t", 0, 0o1777}, {"p", 0, 0o755}} {
		path := filepath.Join(root, dir.name)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		if err := os.Lchown(path, 0, dir.gid); err != nil {
			return err
		}
		if err := unix.Chmod(path, dir.mode); err != nil {
			return err
		}
	}
	return nil
}

func (d *differential) end() {
	for _, p := range d.procs {
		p.in.Close()
		_ = p.cmd.Wait() // its exit status says nothing
	}
	d.procs = nil
}

// do has a process do its turn, and compares up to the first difference.
func (d *differential) do(who int, turn []step) error {
	p := d.procs[who]
	var all []answer
	err := p.enc.Encode(turn)
	if err == nil {
		err = p.dec.Decode(&all)
	}
	if err != nil {
		d.end()
		return fmt.Errorf("the process ended: %w: %s", err, p.err.String())
	}
	for i, got := range all {
		s := turn[i]
		s.Slot, s.Slot2 = got.Slot, got.Slot2
		d.r.Ops++
		d.r.ByOp[s.Op]++
		d.r.Errnos[strings.TrimPrefix(got.Local[0], "errno=")]++
		op := fmt.Sprintf("process %d: %s", who, s)
		if d.args.Trace {
			if len(d.trace) == 20 {
				d.trace = d.trace[1:]
			}
			d.trace = append(d.trace, fmt.Sprintf("%s → %s", op, strings.Join(got.Local, " ")))
		}
		what := s.Op
		if strings.HasSuffix(what, "chown") && s.UID == -1 && s.GID == -1 {
			what = "chown-to-nobody"
		}
		if what == "truncate" && s.Len == 0 {
			what = "truncate-to-0"
		}
		if name := firstDifference(what, got); name != "" {
			return d.found(s.N, name, op, strings.Join(got.Share, " "), strings.Join(got.Local, " "))
		}
	}
	return nil
}

// found notes a difference. What comes after it would be a consequence: both sides begin anew.
func (d *differential) found(n int, name, op, share, local string) error {
	if slices.Contains(d.args.Expect, name) {
		d.r.Known[name]++
	} else if d.r.Total++; d.r.Total <= d.args.Max {
		x := guestproto.Difference{N: n, Name: name, Op: op, Share: share, Local: local}
		if d.args.Trace {
			x.Trace = slices.Clone(d.trace)
		}
		d.r.Differences = append(d.r.Differences, x)
	}
	d.trace = nil
	d.end()
	return d.begin()
}

// firstDifference names what differs first, or is "".
func firstDifference(op string, got answer) string {
	for i := range max(len(got.Share), len(got.Local)) {
		switch {
		case i >= len(got.Share), i >= len(got.Local):
			return op + ".length"
		case got.Share[i] != got.Local[i]:
			key, _, _ := strings.Cut(got.Local[i], "=")
			return op + "." + key
		}
	}
	return ""
}

// compareTrees compares all that is there.
func (d *differential) compareTrees(n int) error {
	var trees [2][]string
	for i, root := range d.roots {
		root = filepath.Dir(root)
		err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			line := append([]string{rel}, attributes(path)...)
			var st unix.Stat_t
			if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
				sum, err := hashPath(path)
				line = append(line, "sha256="+sum, "err="+errnoName(err))
			}
			trees[i] = append(trees[i], strings.Join(line, " "))
			return nil
		})
		if err != nil {
			return err
		}
	}
	if slices.Equal(trees[0], trees[1]) {
		return nil
	}
	var only [2][]string
	for i := range trees {
		for _, line := range trees[i] {
			if !slices.Contains(trees[1-i], line) && len(only[i]) < 5 {
				only[i] = append(only[i], line)
			}
		}
	}
	return d.found(n, "tree", "the whole tree", strings.Join(only[0], "\n"), strings.Join(only[1], "\n"))
}

// attributes are what stat and the extended attributes say of a path, in words.
func attributes(path string) outcome {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return outcome{"stat=" + errnoName(err)}
	}
	return append(statWords(&st), xattrWords(path)...)
}

// statWords says what has to be equal on both sides.
func statWords(st *unix.Stat_t) outcome {
	o := outcome{fmt.Sprintf("mode=%o", st.Mode), fmt.Sprintf("uid=%d", st.Uid), fmt.Sprintf("gid=%d", st.Gid), fmt.Sprintf("nlink=%d", st.Nlink)}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK:
		o = append(o, fmt.Sprintf("size=%d", st.Size))
	case unix.S_IFCHR, unix.S_IFBLK:
		o = append(o, fmt.Sprintf("rdev=%x", st.Rdev))
	}
	if st.Mode&unix.S_IFMT == unix.S_IFIFO { // FUSE lets no write to one move its time (S_NOCMTIME): the guest's kernel, not the share
		return o
	}
	return append(o, "mtime="+timeWord(st.Mtim))
}

// timeWord is a time that was set (all of those drawn are before 2010), or "now": the two sides are not worked on in the same
// nanosecond.
func timeWord(t unix.Timespec) string {
	const year2010 = 1262304000
	if t.Sec >= year2010 {
		return "now"
	}
	return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec)
}

func xattrWords(path string) outcome {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return outcome{"list=" + errnoName(err)}
	}
	var words outcome
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "trusted.") {
			continue
		}
		v, err := getxattr(path, name)
		words = append(words, fmt.Sprintf("%s=%x/%s", name, v, errnoName(err)))
	}
	slices.Sort(words)
	return words
}

// draw makes the n-th operation of a seed. It depends on nothing else, so that operations can be left out.
func draw(seed int64, n int) step {
	r := rand.New(rand.NewPCG(uint64(seed), uint64(n)))
	s := step{N: n, Slot: r.IntN(differSlots), Slot2: r.IntN(differSlots), Path: drawPath(r), To: drawPath(r)}
	total := 0
	for _, k := range differOps {
		total += k.weight
	}
	at := r.IntN(total)
	for _, k := range differOps {
		if at -= k.weight; at < 0 {
			s.Op = k.name
			k.draw(r, &s)
			return s
		}
	}
	panic("unreachable")
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// drawPath is a name among few, so that operations meet: up to three levels below the four directories that there are at first.
func drawPath(r *rand.Rand) string {
	parts := []string{pick(r, "", "", "s", "t", "p")}
	for range 1 + r.IntN(3) {
		parts = append(parts, pick(r, "a", "b", "c", "d", "e"))
		if r.IntN(3) > 0 {
			break
		}
	}
	path := strings.TrimPrefix(strings.Join(parts, "/"), "/")
	switch r.IntN(60) {
	case 0:
		return path + "/"
	case 1:
		return path + "/."
	case 2:
		return path + "/.."
	case 3:
		return path + "/" + strings.Repeat("long", 64)
	case 4:
		return path + "/" + strings.Repeat("n", 255)
	case 5:
		return path + "/\xff \n"
	}
	return path
}

func drawOffset(r *rand.Rand) int64 {
	switch r.IntN(12) {
	case 0:
		return 0
	case 1:
		return int64(r.IntN(1 << 18))
	case 2:
		return 4096 * int64(r.IntN(32))
	case 3:
		return -1
	}
	return int64(r.IntN(20000))
}

func drawLength(r *rand.Rand) int64 {
	if r.IntN(20) == 0 {
		return int64(r.IntN(300000))
	}
	return int64(r.IntN(9000))
}

func drawMode(r *rand.Rand) uint32 {
	if r.IntN(6) > 0 {
		return pick[uint32](r, 0o644, 0o755, 0o600, 0o666, 0o666, 0o777, 0o777, 0o777)
	}
	m := uint32(r.IntN(0o10000))
	if m&unix.S_ISGID != 0 {
		// Without it a writer's groups decide whether the bit stays, which a server that clears it (KILLPRIV_V2) is not told.
		m |= unix.S_IXGRP
	}
	return m
}

type differOp struct {
	name   string
	weight int
	draw   func(*rand.Rand, *step)
}

var differOps = []differOp{
	{"open", 14, func(r *rand.Rand, s *step) {
		s.Flags, s.Mode = pick(r, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR), drawMode(r)
		if r.IntN(3) > 0 {
			s.Flags |= unix.O_CREAT
		}
		for _, f := range []int{unix.O_EXCL, unix.O_TRUNC, unix.O_APPEND, unix.O_NOFOLLOW, unix.O_DIRECTORY, unix.O_SYNC, unix.O_NOATIME} {
			if r.IntN(8) == 0 {
				s.Flags |= f
			}
		}
		if s.Flags&unix.O_DIRECTORY != 0 { // with O_CREAT its meaning has changed between kernels
			s.Flags &^= unix.O_CREAT
		}
	}},
	{"tmpfile", 2, func(r *rand.Rand, s *step) { s.Flags, s.Mode = pick(r, unix.O_RDWR, unix.O_WRONLY), drawMode(r) }},
	{"close", 5, nothing},
	{"read", 8, func(r *rand.Rand, s *step) { s.Off, s.Len = drawOffset(r), drawLength(r) }},
	{"write", 10, func(r *rand.Rand, s *step) { s.Off, s.Len = drawOffset(r), drawLength(r) }},
	{"append", 4, func(r *rand.Rand, s *step) { s.Len = drawLength(r) }},
	{"mapread", 2, func(r *rand.Rand, s *step) { s.Off, s.Len = drawOffset(r), drawLength(r) }},
	{"mapwrite", 3, func(r *rand.Rand, s *step) { s.Off, s.Len = drawOffset(r), drawLength(r) }},
	{"ftruncate", 3, func(r *rand.Rand, s *step) { s.Len = drawOffset(r) }},
	{"truncate", 3, func(r *rand.Rand, s *step) { s.Len = drawOffset(r) }},
	{"fallocate", 3, func(r *rand.Rand, s *step) {
		s.Off, s.Len, s.Mode = drawOffset(r), drawLength(r), pick[uint32](r, 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_PUNCH_HOLE)
	}},
	{"copy", 3, func(r *rand.Rand, s *step) {
		s.Off, s.Off2, s.Len, s.Flags = drawOffset(r), drawOffset(r), drawLength(r), pick(r, 0, 0, 0, 0, 0, 1)
	}},
	{"lseek", 4, func(r *rand.Rand, s *step) {
		s.Off, s.Flags = drawOffset(r), pick(r, unix.SEEK_SET, unix.SEEK_CUR, unix.SEEK_END, 7)
	}},
	{"fsync", 1, func(r *rand.Rand, s *step) { s.Flags = r.IntN(2) }},
	{"fstat", 4, nothing},
	{"fchmod", 2, func(r *rand.Rand, s *step) { s.Mode = drawMode(r) }},
	{"fchown", 2, drawOwner},
	{"flock", 3, func(r *rand.Rand, s *step) { s.Flags = pick(r, unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_UN) }},
	{"fcntl-lock", 3, func(r *rand.Rand, s *step) {
		s.Flags, s.Mode, s.Off, s.Len = pick(r, unix.F_SETLK, unix.F_OFD_SETLK, unix.F_GETLK), pick[uint32](r, unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK), max(0, drawOffset(r)), int64(r.IntN(5000))
	}},
	{"mkdir", 7, func(r *rand.Rand, s *step) { s.Mode = pick(r, 0o777, 0o777, 0o777, drawMode(r)) }},
	{"rmdir", 3, nothing},
	{"unlink", 5, nothing},
	{"rename", 6, func(r *rand.Rand, s *step) {
		s.Flags = pick(r, 0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT, unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE)
	}},
	{"link", 5, func(r *rand.Rand, s *step) { s.Flags = pick(r, 0, unix.AT_SYMLINK_FOLLOW) }},
	{"flink", 1, nothing},
	{"symlink", 4, func(r *rand.Rand, s *step) {
		if r.IntN(3) == 0 {
			s.To = pick(r, "a", "../a", "b", "nowhere/at/all", ".", "c/d")
		}
	}},
	{"readlink", 3, nothing},
	{"mknod", 4, func(r *rand.Rand, s *step) {
		s.Mode = drawMode(r) | pick[uint32](r, unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK, 0)
		s.Flags = pick(r, 0, int(unix.Mkdev(1, 3)), int(unix.Mkdev(7, 300)))
		if s.Mode&unix.S_IFMT == unix.S_IFBLK { // nobody is to open a disk
			s.Flags = 0
		}
	}},
	{"chmod", 3, func(r *rand.Rand, s *step) { s.Mode = pick(r, drawMode(r), drawMode(r)|0o333, 0o777) }},
	{"lchown", 3, drawOwner},
	{"utimens", 4, func(r *rand.Rand, s *step) {
		s.Off, s.Len, s.Off2 = int64(r.IntN(1_000_000_000)), int64(r.IntN(1_000_000_000)), int64(r.IntN(1_000_000_000))
		s.Flags = r.IntN(4)
	}},
	{"stat", 5, nothing},
	{"access", 4, func(r *rand.Rand, s *step) { s.Mode = uint32(r.IntN(8)) }},
	{"readdir", 4, nothing},
	{"setxattr", 4, func(r *rand.Rand, s *step) {
		s.Key, s.Len, s.Flags = pick(r, "user.a", "user.b", "trusted.c", "user.", "nonsense.x"), int64(r.IntN(200)), pick(r, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE)
	}},
	{"getxattr", 3, func(r *rand.Rand, s *step) {
		s.Key, s.Len = pick(r, "user.a", "user.b", "trusted.c", "user."), pick[int64](r, 0, 10, 200)
	}},
	{"removexattr", 2, func(r *rand.Rand, s *step) { s.Key = pick(r, "user.a", "user.b", "trusted.c") }},
	{"umask", 1, func(r *rand.Rand, s *step) { s.Mode = pick[uint32](r, 0, 0, 0o22, 0o66, 0o27) }},
}

func nothing(*rand.Rand, *step) {}

func drawOwner(r *rand.Rand, s *step) {
	s.UID, s.GID = pick(r, -1, 0, 1001, 1002, 70000), pick(r, -1, 0, 1001, 2001, 70000)
}

// childDiffer does the steps that come on stdin, in the directories of descriptors 3 (share) and 4 (local).
func childDiffer(stdin io.Reader, stdout, stderr io.Writer) int {
	unix.Umask(0)
	sides := [2]*side{{root: 3}, {root: 4}}
	for _, s := range sides {
		for i := range s.fds {
			s.fds[i] = -1
		}
	}
	dec, w := json.NewDecoder(stdin), bufio.NewWriter(stdout)
	enc := json.NewEncoder(w)
	for {
		var turn []step
		if err := dec.Decode(&turn); errors.Is(err, io.EOF) {
			return 0
		} else if err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
		all := make([]answer, len(turn))
		for i, s := range turn {
			if s.Op != "open" && s.Op != "tmpfile" && s.N%16 != 0 {
				s.Slot, s.Slot2 = sides[1].taken(s.Slot), sides[1].taken(s.Slot2)
			}
			all[i] = answer{sides[0].do(s), sides[1].do(s), s.Slot, s.Slot2}
		}
		if err := enc.Encode(all); err != nil {
			return 1
		}
		if err := w.Flush(); err != nil {
			return 1
		}
	}
}
