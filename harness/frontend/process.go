package frontend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a daemon that was started for one front-end.
type Process struct {
	Socket string
	Start  time.Time     // just before it was executed
	Ready  time.Duration // from Start until the socket was there

	cmd  *exec.Cmd
	done chan struct{}
	log  logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write keeps the first MiB.
func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() < 1<<20 {
		l.b.Write(p)
	}
	return len(p), nil
}

// Spawn starts a daemon and waits until its socket is there. The process dies with ctx.
func Spawn(ctx context.Context, argv, env []string, socket string) (*Process, error) {
	p := &Process{Socket: socket, done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.WaitDelay = time.Second
	p.Start = time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	for {
		if _, err := os.Stat(socket); err == nil {
			p.Ready = time.Since(p.Start)
			return p, nil
		}
		select {
		case <-p.done:
			return nil, fmt.Errorf("%s ends before its socket is there: %s", argv[0], p.LastLine())
		case <-time.After(500 * time.Microsecond):
		}
		if time.Since(p.Start) > 10*time.Second {
			p.Kill()
			return nil, fmt.Errorf("%s makes no socket within 10 s: %s", argv[0], p.LastLine())
		}
	}
}

// Log is what the daemon has written so far.
func (p *Process) Log() string {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	return p.log.b.String()
}

// LastLine is the last line of Log.
func (p *Process) LastLine() string {
	lines := strings.Split(strings.TrimSpace(p.Log()), "\n")
	return lines[len(lines)-1]
}

// PID is the process that was started.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// ErrRunning says that the daemon still runs.
var ErrRunning = errors.New("the daemon still runs")

// Exit waits for the end at most so long and returns the status: "exit 1", "signal: aborted" …
func (p *Process) Exit(within time.Duration) (clean bool, status string, err error) {
	select {
	case <-p.done:
	case <-time.After(within):
		return false, "", ErrRunning
	}
	s := p.cmd.ProcessState
	ws, ok := s.Sys().(syscallStatus)
	if ok && ws.Signaled() {
		return false, "signal: " + ws.Signal().String(), nil
	}
	return true, fmt.Sprintf("exit %d", s.ExitCode()), nil
}

type syscallStatus interface {
	Signaled() bool
	Signal() unix.Signal
}

// Kill ends the whole tree.
func (p *Process) Kill() {
	for _, pid := range p.Tree() {
		unix.Kill(pid, unix.SIGKILL)
	}
	<-p.done
}

// Leave ends the daemon politely: TERM, and KILL after a second.
func (p *Process) Leave() {
	select {
	case <-p.done:
		return
	default:
	}
	p.cmd.Process.Signal(unix.SIGTERM)
	if _, _, err := p.Exit(time.Second); err != nil {
		p.Kill()
	}
}

// Credentials are the ids, groups, capabilities and umask of all threads of the daemon, as a set: what each of them says in /proc.
func (p *Process) Credentials() map[string]bool {
	all := map[string]bool{}
	for _, pid := range p.Tree() {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				continue
			}
			var words []string
			for line := range strings.Lines(string(b)) {
				if key, v, _ := strings.Cut(line, ":"); slices.Contains([]string{"Uid", "Gid", "Groups", "CapEff", "CapPrm", "Umask"}, key) {
					words = append(words, key+" "+strings.Join(strings.Fields(v), " "))
				}
			}
			if len(words) > 0 {
				all[strings.Join(words, ", ")] = true
			}
		}
	}
	return all
}

// Tree lists the daemon's processes, the first one first; empty once it is gone.
func (p *Process) Tree() []int {
	select {
	case <-p.done:
		return nil
	default:
	}
	all := []int{p.PID()}
	for i := 0; i < len(all); i++ {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		for _, f := range files {
			b, _ := os.ReadFile(f)
			for _, w := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(w); err == nil {
					all = append(all, pid)
				}
			}
		}
	}
	return all
}

// CPU is the processor time that the whole tree has used, with the clock's resolution of a nanosecond (clock_getcpuclockid(3)).
func (p *Process) CPU() time.Duration {
	var sum time.Duration
	for _, pid := range p.Tree() {
		sum += ProcessCPU(pid)
	}
	return sum
}

// ProcessCPU is the processor time of all threads of a process, those that ended too; 0 if it is gone.
func ProcessCPU(pid int) time.Duration {
	const cpuClockSched = 2
	var ts unix.Timespec
	if unix.ClockGettime(int32(^pid)<<3|cpuClockSched, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Memory is what the tree has resident, in bytes: all of it (RSS), and what is anonymous.
func (p *Process) Memory() (rss, anon uint64) {
	for _, pid := range p.Tree() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			n, _ := strconv.ParseUint(f[1], 10, 64)
			switch f[0] {
			case "VmRSS:":
				rss += n << 10
			case "RssAnon:":
				anon += n << 10
			}
		}
	}
	return rss, anon
}
