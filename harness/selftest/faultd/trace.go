package faultd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Call is a system call of a traced thread, before it is carried out or after.
type Call struct {
	TID    int
	Nr     uint64
	args   [6]uint64
	result int64
	t      *thread
	tr     *tracing
	hang   bool
}

// thread is what the tracer knows of a traced thread.
type thread struct {
	inside bool   // a system call
	nr     uint64 // which one
	skip   bool   // it was left out
	result int64  // and this is its answer
	first  bool   // it is the first process's
	seen   map[uint64]int
}

// Arg is argument i as the kernel is given it.
func (c *Call) Arg(i int) uint64 { return c.args[i] }

// SetArg changes it.
func (c *Call) SetArg(i int, v uint64) { c.args[i] = v }

// Answer leaves the call out and answers it with a result, or a negative errno.
func (c *Call) Answer(result int64) {
	c.t.skip, c.t.result = true, result
}

// Result is what the kernel answered, of a call that is over.
func (c *Call) Result() int64 { return c.result }

// SetResult changes it.
func (c *Call) SetResult(v int64) { c.result = v }

// Hang lets the thread stay where it is for good.
func (c *Call) Hang() { c.hang = true }

// First reports whether the call is the first process's, which is not always the one that serves.
func (c *Call) First() bool { return c.t.first }

// OneThread is true for one thread of the serving process, always the same and not its first: the one that asks first.
func (c *Call) OneThread() bool {
	if c.tr.chosen == 0 && !c.First() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.TID))
		if err == nil && !bytes.Contains(b, fmt.Appendf(nil, "\nTgid:\t%d\n", c.TID)) {
			c.tr.chosen = c.TID
		}
	}
	return c.tr.chosen == c.TID
}

// Count is how often this thread has made this call, this one included.
func (c *Call) Count() int { return c.t.seen[c.Nr] }

// Peek reads the thread's memory; short of what was asked for where it ends.
func (c *Call) Peek(addr uint64, n int) []byte {
	b := make([]byte, n)
	got, err := unix.PtracePeekData(c.TID, uintptr(addr), b)
	if err != nil {
		return b[:got]
	}
	return b
}

// Poke writes the thread's memory.
func (c *Call) Poke(addr uint64, b []byte) { _, _ = unix.PtracePokeData(c.TID, uintptr(addr), b) } // what cannot be changed stays

// String is a path argument.
func (c *Call) String(i int) string {
	b := c.Peek(c.Arg(i), 4096)
	for n, ch := range b {
		if ch == 0 {
			return string(b[:n])
		}
	}
	return string(b)
}

// trace attaches to a thread, says so on descriptor 3, and answers for it and all that it starts until they have ended.
func trace(fault, tid string) error {
	f, err := Find(fault)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(tid)
	if err != nil {
		return err
	}
	runtime.LockOSThread() // a tracer is a thread
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK |
		unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
	if err := ptrace(unix.PTRACE_SEIZE, pid, options); err != nil {
		return fmt.Errorf("trace thread %d: %w", pid, err)
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		return fmt.Errorf("stop thread %d: %w", pid, err)
	}
	tr := &tracing{fault: f, threads: map[int]*thread{}}
	tr.thread(pid).first = true
	report := os.NewFile(3, "report")
	for first := true; ; first = false {
		var ws unix.WaitStatus
		tid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return nil // all have ended
		case err != nil:
			return fmt.Errorf("wait for traced threads: %w", err)
		}
		if err := tr.stopped(tid, ws); err != nil && !errors.Is(err, unix.ESRCH) { // killed while it was stopped
			return err
		}
		if first {
			_, _ = report.WriteString(traced) // nobody waits any more: it is dead
			report.Close()
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			for fd := range 3 {
				if err := unix.Dup2(int(null.Fd()), fd); err != nil {
					return err
				}
			}
		}
	}
}

// ptrace is a request without a wrapper.
func ptrace(request, pid int, data uintptr) error {
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), 0, data, 0, 0); e != 0 {
		return e
	}
	return nil
}

type tracing struct {
	fault   Fault
	threads map[int]*thread
	chosen  int // see OneThread
}

func (tr *tracing) thread(tid int) *thread {
	t := tr.threads[tid]
	if t == nil {
		t = &thread{seen: map[uint64]int{}}
		tr.threads[tid] = t
	}
	return t
}

// stopped lets a thread that has stopped go on (ptrace(2), "Stopped states").
func (tr *tracing) stopped(tid int, ws unix.WaitStatus) error {
	if !ws.Stopped() {
		delete(tr.threads, tid)
		return nil
	}
	t := tr.thread(tid)
	sig, event := ws.StopSignal(), int(uint32(ws)>>16)
	switch {
	case sig == unix.SIGTRAP|0x80:
		hang, err := tr.call(tid, t)
		if hang || err != nil {
			return err
		}
		sig = 0
	case event == unix.PTRACE_EVENT_STOP && (sig == unix.SIGSTOP || sig == unix.SIGTSTP || sig == unix.SIGTTIN || sig == unix.SIGTTOU):
		return ptrace(unix.PTRACE_LISTEN, tid, 0)
	case event == unix.PTRACE_EVENT_EXEC:
		t.inside = true // the thread that called it may have had another number
		sig = 0
	case event == unix.PTRACE_EVENT_CLONE && t.first:
		if child, err := unix.PtraceGetEventMsg(tid); err == nil {
			tr.thread(int(child)).first = true // it may have stopped before
		}
		sig = 0
	case event != 0:
		sig = 0
	}
	return unix.PtraceSyscall(tid, int(sig))
}

// call handles the beginning or the end of a system call.
func (tr *tracing) call(tid int, t *thread) (hang bool, err error) {
	c := &Call{TID: tid, t: t, tr: tr}
	r, err := load(c)
	if err != nil {
		return false, err
	}
	begins := !t.inside
	if begins && !r.entry() {
		return false, nil // the end of a call that began before we were here
	}
	if t.inside = begins; begins {
		t.nr = c.Nr
		t.seen[c.Nr]++
		if do := tr.fault.Enter[c.Nr]; do != nil {
			do(c)
		}
		if t.skip {
			c.Nr = unix.SYS_GETTID
		}
		return c.hang, r.begin(c)
	}
	c.Nr = t.nr
	if t.skip {
		t.skip, c.result = false, t.result
	}
	if do := tr.fault.Leave[c.Nr]; do != nil {
		do(c)
	}
	return c.hang, r.end(c)
}
