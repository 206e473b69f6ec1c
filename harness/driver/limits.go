package driver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
)

var limitCases = []Case{
	{"few-threads", "waits for sixty locks where the daemon may have no more than forty threads", fewThreads},
}

const (
	threads = 40
	waiting = 60
)

// limited are the words before a command line that leave it so many threads: a control group of its
// own.
func (e *env) limited(n int) ([]string, error) {
	dir, err := pidsGroup()
	if err == nil {
		dir, err = os.MkdirTemp(dir, "vfsmatrix-")
	}
	if err == nil {
		e.later(func() error {
			var err error
			for range 100 { // its processes are gone, which the kernel may say a moment later
				if err = os.Remove(dir); err == nil {
					return nil
				}
				time.Sleep(10 * time.Millisecond)
			}
			return err
		})
		if err = os.WriteFile(filepath.Join(dir, "pids.max"), []byte(strconv.Itoa(n)), 0); err == nil {
			return []string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, dir}, nil
		}
	}
	return nil, declined(fmt.Sprintf("no control group can be made: %v", err))
}

// pidsGroup is a directory in which control groups with a limit of processes may be made
// (cgroups(7)).
func pidsGroup() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		at, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(at) < 5 || len(kind) < 3 {
			continue
		}
		switch {
		case kind[0] == "cgroup" && strings.Contains(","+kind[2]+",", ",pids,"):
			return at[4], nil
		case kind[0] == "cgroup2":
			on, err := os.ReadFile(filepath.Join(at[4], "cgroup.subtree_control"))
			if err == nil && strings.Contains(" "+strings.TrimSpace(string(on))+" ", " pids ") {
				return at[4], nil
			}
		}
	}
	return "", errors.New("no control groups with the controller pids are mounted")
}

func fewThreads(e *env) error {
	if err := os.WriteFile(filepath.Join(e.share, "file"), []byte("locked\n"), 0o600); err != nil {
		return err
	}
	within, err := e.limited(threads)
	var no declined
	if errors.As(err, &no) {
		e.check("serves", no)
		return nil
	}
	if err != nil {
		return err
	}
	f, err := e.start(options{"ours": {"--posix-lock"}, "c": {"-o", "posix_lock"}, "c5": {"-o", "posix_lock"}}, within...)
	if f == nil {
		return err
	}
	entry, err := f.Lookup(frontend.RootNode, "file")
	if err != nil {
		e.check("serves", err)
		return nil
	}
	fh, err := f.Open(entry.Node, unix.O_RDWR)
	if err != nil {
		e.check("serves", err)
		return nil
	}
	lock := func(op frontend.Opcode, owner uint64, kind uint32) frontend.Request {
		// struct fuse_lk_in: handle, owner, start, end, type, pid, flags, padding.
		return frontend.Request{Op: op, Node: entry.Node, Args: frontend.Body(nil).U64(fh, owner, 0, 1<<62).U32(kind, uint32(owner), 0, 0)}
	}
	do := func(r frontend.Request) error {
		reply, err := f.Do(r)
		if err == nil && reply.Error != 0 {
			err = reply.Error
		}
		return err
	}
	if err := do(lock(frontend.OpSetlk, 1, unix.F_WRLCK)); err != nil {
		e.check("serves", fmt.Errorf("SETLK: %w", err))
		return nil
	}
	var all []*frontend.Pending
	for i := range waiting {
		p, err := f.Start(lock(frontend.OpSetlkw, uint64(i+2), unix.F_WRLCK))
		if err != nil {
			return err
		}
		f.Queue.Publish()
		all = append(all, p)
		time.Sleep(2 * time.Millisecond) // one after the other: each finds all threads busy
	}
	time.Sleep(300 * time.Millisecond)
	e.check("serves", e.lives(f))
	// Whoever gets the lock gives it back, until all have had it, or were told that they cannot.
	e.check("locks", func() error {
		if err := do(lock(frontend.OpSetlk, 1, unix.F_UNLCK)); err != nil {
			return fmt.Errorf("unlock: %w", err)
		}
		got := 0
		for end := time.Now().Add(patience); len(all) > 0; {
			if time.Now().After(end) {
				return fmt.Errorf("%d of %d waiting locks are never answered, though nobody holds it", len(all), waiting)
			}
			var left []*frontend.Pending
			for _, p := range all {
				if !p.Chain.Done {
					left = append(left, p)
					continue
				}
				reply, err := f.Finish(p)
				if err != nil {
					return err
				}
				if reply.Error != 0 {
					continue // told so
				}
				got++
				if err := do(lock(frontend.OpSetlk, ownerOf(p), unix.F_UNLCK)); err != nil {
					return fmt.Errorf("unlock: %w", err)
				}
			}
			if len(left) == len(all) {
				time.Sleep(5 * time.Millisecond)
				if _, err := f.Getattr(frontend.RootNode); err != nil { // it reaps what is done
					return err
				}
			}
			all = left
		}
		return nil
	}())
	e.check("lives", e.lives(f))
	return nil
}

// ownerOf is the owner of a lock's request.
func ownerOf(p *frontend.Pending) uint64 {
	var o uint64
	for i, b := range p.Args[8:16] {
		o |= uint64(b) << (8 * i)
	}
	return o
}
