package guestproto

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// PortName is the name of the virtio-serial port; the guest finds the port by it in /sys/class/virtio-ports.
const PortName = "org.vfsmatrix.guest.0"

// Request is what the host sends: a call by name, with the call's own arguments.
type Request struct {
	ID   int             `json:"id"`
	Call string          `json:"call"`
	Args json.RawMessage `json:"args,omitempty"`
}

// Kind says what a [Message] is.
type Kind string

// The kinds of messages. A session is hello, then per call (progress|log|output)* result, and at last done.
const (
	KindHello    Kind = "hello"    // once, Facts is a Hello
	KindResult   Kind = "result"   // ends a call: Facts of the call, or Error
	KindProgress Kind = "progress" // a sign of life of a long call, Facts is a Progress
	KindLog      Kind = "log"      // a line for the record, Facts is a Log
	KindOutput   Kind = "output"   // what a session's program wrote, Facts is an Output
	KindDone     Kind = "done"     // last message: all unmounted, the guest powers off now
)

// Message is what the guest sends.
type Message struct {
	Kind  Kind            `json:"kind"`
	ID    int             `json:"id,omitempty"`    // of the request it answers
	Call  string          `json:"call,omitempty"`  // of the request it answers
	Facts json.RawMessage `json:"facts,omitempty"` // typed per call
	Error string          `json:"error,omitempty"` // the call could not be carried out (not: the share misbehaved)
	T     float64         `json:"t"`               // seconds since the guest's kernel started
}

// Progress is the Facts of a progress message.
type Progress struct {
	Step  string `json:"step"`
	Done  int64  `json:"done"`
	Total int64  `json:"total,omitempty"`
}

// Log is the Facts of a log message.
type Log struct {
	Text string `json:"text"`
}

// MaxLine bounds one line in bytes: what is longer is a broken peer, not a message.
const MaxLine = 64 << 20

// ErrLine is wrapped by [Reader.Next] when a line was read but is no JSON of the wanted type; reading may go on.
var ErrLine = errors.New("line is not a message")

// Reader reads lines of T from one end of the port.
type Reader[T any] struct{ s *bufio.Scanner }

// NewReader returns a reader of messages (on the host) or requests (in the guest).
func NewReader[T any](r io.Reader) *Reader[T] {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 64<<10), MaxLine)
	return &Reader[T]{s}
}

// Next returns the next value. At the end it returns io.EOF; a line that does not decode gives an error wrapping [ErrLine].
// Empty lines are skipped: a port may be opened with one to flush what an earlier agent left half-written.
func (r *Reader[T]) Next() (T, error) {
	var v T
	for r.s.Scan() {
		line := bytes.TrimSpace(r.s.Bytes())
		if len(line) == 0 {
			continue
		}
		if err := json.Unmarshal(line, &v); err != nil {
			return v, fmt.Errorf("%w: %.80q: %v", ErrLine, line, err)
		}
		return v, nil
	}
	if err := r.s.Err(); err != nil {
		return v, fmt.Errorf("read the guest port: %w", err)
	}
	return v, io.EOF
}

// Writer writes one JSON value a line. It may be used by several goroutines.
type Writer struct {
	mu sync.Mutex
	w  io.Writer
}

// NewWriter returns a writer on one end of the port.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write sends v as one line, in one Write call.
func (w *Writer) Write(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode for the guest port: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("write the guest port: %w", err)
	}
	return nil
}
