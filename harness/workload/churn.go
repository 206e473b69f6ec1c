package workload

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// churn has processes of several users do the random operations of the differential workload on the share, all at once, while somebody
// else changes the same names from outside. What an operation gives cannot be foretold then; that it is one of the things that a file
// system may say can.
func (e *Env) churn(a guestproto.ChurnArgs) (guestproto.Churn, error) {
	r := guestproto.Churn{ByOp: map[string]int{}, Errnos: map[string]int{}, Strange: []string{}}
	if a.Seconds == 0 {
		a.Seconds = 10
	}
	p, err := e.place(a.Where, guestproto.CallChurn)
	if err != nil {
		return r, err
	}
	root := filepath.Join(p.dir, "tree")
	if err := makeDifferTree(root); err != nil {
		return r, err
	}
	start := time.Now()
	var mu sync.Mutex
	var all sync.WaitGroup
	for i, as := range differProcesses() {
		task, err := json.Marshal(churnTask{Root: root, Seed: a.Seed, Process: i, Seconds: a.Seconds, Secret: a.Secret, NoTrusted: a.NoTrusted})
		if err != nil {
			return r, err
		}
		all.Go(func() {
			cred := &as
			if as.UID == 0 {
				cred = nil
			}
			out, childErr := e.inOwnProcess(cred, task, "churn")
			var one guestproto.Churn
			if childErr == nil {
				childErr = json.Unmarshal(out, &one)
			}
			mu.Lock()
			defer mu.Unlock()
			if childErr != nil {
				err = fmt.Errorf("process %d: %w", i, childErr)
				return
			}
			addChurn(&r, one)
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for waiting := true; waiting; {
		select {
		case <-done:
			waiting = false
		case <-time.After(time.Second):
			e.progress("churn", int64(time.Since(start).Seconds()), int64(a.Seconds))
		}
	}
	r.Seconds = time.Since(start).Seconds()
	return r, err
}

// churnTask is what one process is told.
type churnTask struct {
	Root      string
	Seed      int64
	Process   int
	Seconds   float64
	Secret    string
	NoTrusted bool
}

// expected are the results that a local file system gives to these operations, and ESTALE, which says that a file is gone.
var expected = []string{
	"", "ENOENT", "EEXIST", "EACCES", "EPERM", "ENOTDIR", "EISDIR", "ENOTEMPTY", "ELOOP", "EBADF", "EINVAL", "ENAMETOOLONG", "ENODATA", "EXDEV",
	"ENXIO", "EBUSY", "EAGAIN", "ESPIPE", "ERANGE", "ENOTSUP", "EFBIG", "ETXTBSY", "EPIPE", "EMLINK", "EOVERFLOW", "ENODEV", "SIGBUS", "ESTALE",
}

// childChurn does random operations until its time is over.
func childChurn(stdin io.Reader, stdout, stderr io.Writer) int {
	var task churnTask
	err := json.NewDecoder(stdin).Decode(&task)
	var root int
	if err == nil {
		root, err = unix.Open(task.Root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	unix.Umask(0)
	s := side{root: root}
	for i := range s.fds {
		s.fds[i] = -1
	}
	r := guestproto.Churn{ByOp: map[string]int{}, Errnos: map[string]int{}}
	seed := task.Seed<<8 + int64(task.Process)
	until := time.Now().Add(time.Duration(task.Seconds * float64(time.Second)))
	for n := 0; time.Now().Before(until); n++ {
		st := draw(seed, n)
		if task.NoTrusted {
			st.Key = strings.Replace(st.Key, "trusted.", "user.", 1)
		}
		if st.Op != "open" && st.Op != "tmpfile" {
			st.Slot, st.Slot2 = s.taken(st.Slot), s.taken(st.Slot2)
		}
		_, err := s.act(st)
		errno := errnoName(err)
		r.Ops++
		r.ByOp[st.Op]++
		r.Errnos[errno]++
		if !slices.Contains(expected, errno) {
			stranger(&r, fmt.Sprintf("process %d: %s: %s", task.Process, errno, st))
		}
		if st.Op == "open" && err == nil && task.Secret != "" && s.shows(st.Slot, task.Secret) {
			stranger(&r, fmt.Sprintf("process %d: %s shows what lies outside of the share", task.Process, st))
		}
	}
	if err := json.NewEncoder(stdout).Encode(r); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// shows reports whether a file begins with the secret.
func (d *side) shows(slot int, secret string) bool {
	b := make([]byte, len(secret))
	n, err := unix.Pread(d.fds[slot], b, 0)
	return err == nil && n == len(b) && string(b) == secret
}

const mostStrange = 20

func stranger(r *guestproto.Churn, what string) {
	if r.Strangers++; len(r.Strange) < mostStrange {
		r.Strange = append(r.Strange, what)
	}
}

func addChurn(r *guestproto.Churn, one guestproto.Churn) {
	r.Ops += one.Ops
	r.Strangers += one.Strangers
	r.Strange = append(r.Strange, one.Strange...)
	r.Strange = r.Strange[:min(len(r.Strange), mostStrange)]
	for k, n := range one.ByOp {
		r.ByOp[k] += n
	}
	for k, n := range one.Errnos {
		r.Errnos[k] += n
	}
}
