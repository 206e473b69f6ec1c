package fuse

import (
	"log/slog"
	"sync/atomic"

	"virtiofsd/internal/fuseabi"
)

// Limits that INIT announces.
const (
	MaxWrite = 1 << 20 // bytes of one READ or WRITE
	MaxPages = 256     // the same in pages of 4 KiB

	maxBackground = 65535
)

// SessionConfig is what a Session needs beside its file system.
type SessionConfig struct {
	Logger *slog.Logger // nil: no log
}

// Session is the state that all workers of one connection share.
type Session struct {
	fs    Filesystem
	log   *slog.Logger
	flags atomic.Uint64 // negotiated InitFlags
	ready atomic.Bool   // INIT was answered
	noise atomic.Int64  // malformed requests so far
	lines atomic.Int64  // of the log that were the guest's doing, those left out included
	tally tally
}

// NewSession makes a session that waits for INIT.
func NewSession(fs Filesystem, cfg SessionConfig) *Session {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Session{fs: fs, log: cfg.Logger}
}

// NewHandler makes a worker. It has to be called on the worker's own thread, which stays locked to its goroutine for life:
// credentials, umask and working directory are the thread's.
func (s *Session) NewHandler(queue int) (*Worker, error) {
	t, err := s.fs.NewThread(queue)
	if err != nil {
		return nil, err
	}
	return newWorker(s, t, queue), nil
}

// Reset ends the session as DESTROY does: inodes, open files and locks are forgotten, and INIT has to come first again.
func (s *Session) Reset() {
	s.ready.Store(false)
	s.flags.Store(0)
	s.fs.Reset()
}

// Interrupt ends, with an error to the guest, what a queue's workers wait for inside Serve that a
// guest may never do.
func (s *Session) Interrupt(queue int) { s.fs.Interrupt(queue) }

// Flags are the negotiated INIT flags.
func (s *Session) Flags() fuseabi.InitFlags { return fuseabi.InitFlags(s.flags.Load()) }

func (s *Session) has(f fuseabi.InitFlags) bool { return s.Flags()&f != 0 }

// Malformed is the number of requests so far that broke the protocol.
func (s *Session) Malformed() int64 { return s.noise.Load() }

// mostLines is how many lines of the log a guest can cause in all.
const mostLines = 16

// malformed counts a request that broke the protocol, and writes a line about the first few.
func (s *Session) malformed(h *fuseabi.InHeader, why string) {
	s.noise.Add(1)
	if s.mayLog() {
		s.log.Warn("malformed request", "opcode", fuseabi.Opcode(h.Opcode).String(), "unique", h.Unique, "length", h.Length, "why", why)
	}
}

// mayLog is asked before each line that a guest's request is the reason of, of whatever level: a
// hostile guest must not fill the host's log.
func (s *Session) mayLog() bool {
	n := s.lines.Add(1)
	if n == mostLines+1 {
		s.log.Warn("the guest gave reason for enough lines: no more are written about its requests; malformed ones are counted")
	}
	return n <= mostLines
}
