package fuzz

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// Finding is something that a daemon must not do.
type Finding struct {
	Kind   string // died, hangs, never done, queue dead, root lost, bad reply, wrong answer, escaped, credentials, descriptors
	Do     string // the step's operation, or "end"
	Step   int    // its number
	Detail string
}

// Signature tells findings apart: what happened after what.
func (f Finding) Signature() string { return f.Kind + " after " + f.Do }

// String is one line.
func (f Finding) String() string {
	return fmt.Sprintf("%s (step %d): %s", f.Signature(), f.Step, f.Detail)
}

// patience is how long one answer, or the end of a process, may take.
const patience = 8 * time.Second

// secret stands beside the share; no answer may hold it.
const secret = "not for the guest, nor for its users\n"

// session is a guest on a fresh process, with the model of its share.
type session struct {
	proc    *fe.Process
	dev     *fe.Device
	fuse    *fe.FUSE
	base    string // everything that the daemon could do harm to
	share   string
	model   *model
	scratch uint64 // node of a directory that is not in the model
	victim  uint64 // node of a file in it
	fh      uint64 // of the file
	fifo    uint64 // node of a FIFO in it
	outside string
	inodes  map[uint64]bool // inode numbers beside the share
	threads map[string]bool // credentials that threads began with
	fds     int
}

// Execute runs a session against a fresh process of the daemon, in a new directory below dir. It returns the first finding, nil if there is none,
// and how many steps ran. An error is the harness's or the machine's.
func Execute(ctx context.Context, d fe.Daemon, sandbox, dir string, steps []Step) (found *Finding, ran int, log string, err error) {
	s := &session{}
	if err := s.start(ctx, d, sandbox, dir); err != nil {
		return nil, 0, "", err
	}
	defer func() {
		s.proc.Kill()
		if s.dev != nil {
			s.dev.Close()
		}
		s.model.close()
		log = s.proc.Log()
		os.RemoveAll(s.base)
	}()
	for i, st := range steps {
		if ctx.Err() != nil {
			return nil, i, "", ctx.Err()
		}
		op := operations[st.Do]
		f := op.run(s, st)
		if f == nil && op.breaks {
			f = s.serves(st)
		}
		if f == nil && i%16 == 15 {
			f = s.contained()
		}
		if f != nil {
			f.Do, f.Step = st.Do, i
			return f, i + 1, "", nil
		}
	}
	if f := s.finish(); f != nil {
		f.Do, f.Step = "end", len(steps)
		return f, len(steps), "", nil
	}
	return nil, len(steps), "", nil
}

func (s *session) start(ctx context.Context, d fe.Daemon, sandbox, dir string) (err error) {
	if s.base, err = os.MkdirTemp(dir, "s"); err != nil {
		return fmt.Errorf("make a session's directory: %w", err)
	}
	defer func() {
		if err != nil {
			if s.proc != nil {
				s.proc.Kill()
			}
			if s.dev != nil {
				s.dev.Close()
			}
			if s.model != nil {
				s.model.close()
			}
			os.RemoveAll(s.base)
		}
	}()
	s.share = filepath.Join(s.base, "share")
	outside := filepath.Join(s.base, "outside")
	for _, p := range []string{filepath.Join(s.share, "scratch"), filepath.Join(outside, "dir")} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return fmt.Errorf("prepare the share: %w", err)
		}
	}
	for p, data := range map[string]string{filepath.Join(outside, "secret"): secret, filepath.Join(s.base, "secret"): secret, filepath.Join(s.share, "scratch", "file"): strings.Repeat("scratch ", 1024)} {
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			return fmt.Errorf("prepare the share: %w", err)
		}
	}
	if err := errors.Join(os.Chmod(s.share, 0o777), os.Chmod(filepath.Join(s.share, "scratch"), 0o777),
		unix.Mkfifo(filepath.Join(s.share, "scratch", "fifo"), 0o666), os.Symlink("../../outside", filepath.Join(s.share, "scratch", "out"))); err != nil {
		return fmt.Errorf("prepare the share: %w", err)
	}
	if s.model, err = newModel(filepath.Join(s.base, "model")); err != nil {
		return err
	}
	socket := filepath.Join(s.base, "sock")
	if sandbox == "none" {
		sandbox = "" // or what is nearest to it
	}
	argv, err := d.Argv(fe.Options{Share: s.share, Socket: socket, Sandbox: sandbox})
	if err != nil {
		return err
	}
	if s.proc, err = fe.Spawn(ctx, argv, []string{"GOTRACEBACK=all"}, socket); err != nil {
		return err
	}
	cfg := fe.Config{Socket: socket, RequestQueues: 4, FewerQueues: true, QueueSize: 128, Timeout: patience, Memory: []uint64{1 << 20, 32 << 20}}
	if s.dev, err = fe.Connect(ctx, cfg); err != nil {
		return fmt.Errorf("connect to %s: %w: %s", d.Name, err, s.proc.LastLine())
	}
	s.fuse = fe.NewFUSE(s.dev)
	if _, err := s.fuse.Init(0); err != nil {
		return fmt.Errorf("open a session with %s: %w: %s", d.Name, err, s.proc.LastLine())
	}
	for _, n := range []struct {
		node *uint64
		name string
	}{{&s.scratch, ""}, {&s.victim, "file"}, {&s.fifo, "fifo"}} {
		e, err := s.fuse.Walk(strings.Fields("scratch " + n.name)...)
		if err != nil {
			return fmt.Errorf("look %s up: %w", n.name, err)
		}
		*n.node = e.Node
	}
	if s.fh, err = s.fuse.Open(s.victim, unix.O_RDWR); err != nil {
		return err
	}
	for i := range s.dev.Queues { // so that all threads are there
		if i > 0 {
			if _, err := s.fuse.On(s.dev.Queues[i]).Getattr(fe.RootNode); err != nil {
				return fmt.Errorf("use queue %d: %w", i, err)
			}
		}
	}
	s.inodes = map[uint64]bool{}
	if s.outside, err = s.look(true); err != nil {
		return err
	}
	s.threads, s.fds = s.proc.Credentials(), s.descriptors()
	return nil
}

// look describes all that is beside the share and the model, and the socket.
func (s *session) look(note bool) (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(s.base, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(s.base, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		if rel == "share" || rel == "model" {
			fmt.Fprintln(&b, rel)
			return filepath.SkipDir
		}
		if note {
			s.inodes[st.Ino] = true
		}
		fmt.Fprintln(&b, rel, st.Ino, st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Mtim.Nano())
		if d.Type().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%x\n", sha256.Sum256(data))
		}
		return nil
	})
	return b.String(), err
}

// contained checks that nothing beside the share changed.
func (s *session) contained() *Finding {
	now, err := s.look(false)
	if err != nil || now != s.outside {
		return &Finding{Kind: "escaped", Detail: "something beside the share changed: " + firstDifference(s.outside, now)}
	}
	return nil
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("%q was %q", y[i], x[i])
		}
	}
	return "something came or went"
}

// queue is a request queue; client is the guest on it.
func (s *session) queue(n int) *fe.Queue { return s.dev.Queues[1+n%(len(s.dev.Queues)-1)] }

func (s *session) client(st Step) *fe.FUSE {
	f := *s.fuse.On(s.queue(st.Queue))
	f.Timeout = patience
	if st.Cut != 0 {
		f.Framing = fe.RandomFraming(rand.New(rand.NewPCG(st.Cut, 1)), 24)
	}
	if st.User != 0 {
		f.UID, f.GID = st.User, st.User
	}
	s.fuse.NextUnique() // so that no two steps use the same numbers
	return &f
}

// do sends a request; a finding is what no answer may be.
func (s *session) do(f *fe.FUSE, r fe.Request) (fe.Reply, *Finding) {
	reply, err := f.Do(r)
	return reply, s.judge(r.Op, reply, err)
}

func (s *session) judge(op fe.Opcode, reply fe.Reply, err error) *Finding {
	var contradiction *fe.ProtocolError
	switch {
	case errors.As(err, &contradiction):
		return &Finding{Kind: "bad reply", Detail: err.Error()}
	case errors.Is(err, fe.ErrBogus):
		return &Finding{Kind: "bad reply", Detail: err.Error()}
	case errors.Is(err, fe.ErrNoMemory), errors.Is(err, fe.ErrNoDescriptors):
		return nil // ours: a step too many that never comes back
	case err != nil:
		return s.gone("never done", fmt.Sprintf("%v: %v", op, err))
	case bytes.Contains(reply.Body, []byte(secret)):
		return &Finding{Kind: "escaped", Detail: fmt.Sprintf("the answer to %v holds the file beside the share", op)}
	}
	return s.defects()
}

// gone says how a daemon is that does not answer any more.
func (s *session) gone(otherwise, detail string) *Finding {
	if s.dev.Alive() {
		return &Finding{Kind: otherwise, Detail: detail}
	}
	_, status, err := s.proc.Exit(patience)
	if err != nil {
		return &Finding{Kind: "died", Detail: "it has closed the connection: " + detail}
	}
	line := crash.FindString(s.proc.Log())
	if line == "" {
		line = s.proc.LastLine()
	}
	return &Finding{Kind: "died", Detail: status + ": " + line}
}

// crash is what a daemon's log shows when a program ended, or a thread of it, and not what an author wrote.
var crash = regexp.MustCompile(`(?m)(^panic: .*|^fatal error: .*|^unexpected fault address.*|^SIG[A-Z]+: .*|panicked at .*|Assertion .* failed.*|^goroutine \d+ .*|defect: .*)`)

func (s *session) defects() *Finding {
	if line := crash.FindString(s.proc.Log()); line != "" {
		return &Finding{Kind: "died", Detail: "a part of it: " + line}
	}
	return nil
}

// serves is what every broken rule has to leave intact: the queue that it came by, another one, and the root.
func (s *session) serves(st Step) *Finding {
	for i, n := range []int{st.Queue, st.Queue + 1} {
		f := s.fuse.On(s.queue(n))
		s.fuse.NextUnique()
		f.Timeout = patience
		_, err := f.Getattr(fe.RootNode)
		var errno unix.Errno
		var contradiction *fe.ProtocolError
		switch {
		case err == nil:
		case errors.As(err, &errno):
			return &Finding{Kind: "root lost", Detail: err.Error()}
		case errors.As(err, &contradiction):
			return &Finding{Kind: "bad reply", Detail: err.Error()}
		default:
			return s.gone([]string{"queue dead", "neighbour dead"}[i], err.Error())
		}
	}
	return s.defects()
}

func (s *session) descriptors() int {
	n := 0
	for _, pid := range s.proc.Tree() {
		entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		n += len(entries)
	}
	return n
}

// spare is how many descriptors a daemon may have more at the end than at the beginning: threads and queues have some of their own.
const spare = 32

// finish compares the share with the model, gives all references back and leaves.
func (s *session) finish() *Finding {
	if f := s.contained(); f != nil {
		return f
	}
	if f := s.model.compare(s.share); f != nil {
		return f
	}
	for c := range s.proc.Credentials() {
		if !s.threads[c] {
			return &Finding{Kind: "credentials", Detail: "a thread is left with " + c}
		}
	}
	for len(s.model.files) > 0 {
		if f := s.release(s.fuse, 0); f != nil {
			return f
		}
	}
	for len(s.model.nodes) > 1 {
		if f := s.forget(1); f != nil {
			return f
		}
	}
	if _, err := s.fuse.Getattr(fe.RootNode); err != nil { // FORGET has no answer
		return s.gone("queue dead", err.Error())
	}
	for i := 0; ; i++ {
		n := s.descriptors()
		if n <= s.fds+spare {
			break
		}
		if i == 20 {
			return &Finding{Kind: "descriptors", Detail: fmt.Sprintf("%d are open when the guest has given all back, %d were when it began", n, s.fds)}
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.dev.Close()
	s.dev = nil
	clean, status, err := s.proc.Exit(patience)
	switch {
	case err != nil:
		return &Finding{Kind: "hangs", Detail: "it does not end when its front-end has left"}
	case !clean:
		return &Finding{Kind: "died", Detail: status}
	}
	return s.defects()
}
