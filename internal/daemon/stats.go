package daemon

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/passthrough"
	"virtiofsd/internal/vhostuser"
)

// stats gathers the counters that each part keeps all the time, when somebody asks.
type stats struct {
	session *fuse.Session
	fs      *passthrough.FS
	limit   uint64
	started time.Time
	log     *slog.Logger
	queues  atomic.Pointer[vhostuser.Stats] // of the front-end that is being served, or was last
	written chan struct{}                   // closed when all lines are written

	mu sync.Mutex
	to chan string // lines for --stats-fd, nil without and at the end
}

// figures are what a line says. Names are promised: fields may be added.
type figures struct {
	UptimeS float64 `json:"uptime_s"`
	fuse.Stats
	Queues []queueFigures `json:"queues"` // those with requests, of the front-end that is or was last connected
	Files  fileFigures    `json:"files"`
}

type queueFigures struct {
	Queue int `json:"queue"` // 0 is the high-priority queue
	vhostuser.Counters
	Latency fuse.Latency `json:"latency_us"` // since the start
}

type fileFigures struct {
	Limit     uint64 `json:"limit"`      // RLIMIT_NOFILE
	OpenFiles int    `json:"open_files"` // by the guest, directories too
	Inodes    int    `json:"inodes"`     // known to the guest
	InodeFDs  int64  `json:"inode_fds"`  // of those, held by a descriptor
	Budget    int64  `json:"inode_fd_budget"`
	Evictions int64  `json:"evictions"` // descriptors closed to keep to the budget
	Stale     int64  `json:"stale"`     // requests for an inode that nothing leads to any more, answered ESTALE
}

// newStats makes the counters' reader; out is --stats-fd's, or nil.
func newStats(s *fuse.Session, fs *passthrough.FS, limit uint64, out *os.File, log *slog.Logger) *stats {
	st := &stats{session: s, fs: fs, limit: limit, started: time.Now(), log: log}
	if out != nil {
		lines := make(chan string, 1)
		st.to, st.written = lines, make(chan struct{})
		go func() { // whoever does not read holds up nobody but this
			defer close(st.written)
			for line := range lines {
				if _, err := out.WriteString(line + "\n"); err != nil {
					log.Warn("counters cannot be written: no more are", "err", err)
					for range lines {
					}
				}
			}
		}()
	}
	return st
}

// line is the counters of this moment as one line of JSON.
func (s *stats) line() string {
	fs := s.fs.Stats()
	f := figures{
		UptimeS: float64(time.Since(s.started).Milliseconds()) / 1000, Stats: s.session.Stats(), Queues: []queueFigures{},
		Files: fileFigures{Limit: s.limit, OpenFiles: fs.OpenFiles, Inodes: fs.Inodes, InodeFDs: fs.CachedFDs, Budget: fs.Budget, Evictions: fs.Evictions, Stale: fs.Stale},
	}
	if q := s.queues.Load(); q != nil {
		for i, c := range (*q)() {
			if c.Requests > 0 {
				f.Queues = append(f.Queues, queueFigures{i, c, f.Stats.Queues[i]})
			}
		}
	}
	b, err := json.Marshal(f)
	if err != nil {
		return "{}" // no value of these types fails
	}
	return string(b)
}

// tell writes a line to --stats-fd, or to the log where there is none.
func (s *stats) tell() {
	line := s.line()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.written == nil {
		s.log.Info("counters " + line)
		return
	}
	select {
	case s.to <- line:
	default: // the one before has not been read
	}
}

// serve tells whenever it is asked to, until ctx ends.
func (s *stats) serve(ctx context.Context, ask <-chan struct{}) {
	for {
		select {
		case <-ask:
			s.tell()
		case <-ctx.Done():
			return
		}
	}
}

// left tells that a front-end has left, where --stats-fd asks for that.
func (s *stats) left() {
	if s.written != nil {
		s.tell()
	}
}

// close waits a moment for what was told to be written.
func (s *stats) close() {
	if s.written == nil {
		return
	}
	s.mu.Lock()
	close(s.to)
	s.to = nil
	s.mu.Unlock()
	select {
	case <-s.written:
	case <-time.After(200 * time.Millisecond):
	}
}
