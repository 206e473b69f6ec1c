package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// QMP is a client of QEMU's machine protocol (docs/interop/qmp-spec in QEMU). It is small on purpose: it talks over an
// inherited socket pair, keeps all events in order, and lets one wait for an event that may already have come.
type QMP struct {
	conn net.Conn

	mu      sync.Mutex
	nextID  int
	pending map[int]chan qmpReply
	events  []Event
	more    chan struct{} // closed and replaced at each event
	err     error         // why the reader stopped
	gone    chan struct{} // closed when it did
}

// Event is one QMP event.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// QMPError is QEMU's refusal of a command.
type QMPError struct {
	Command string
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *QMPError) Error() string { return fmt.Sprintf("qmp %s: %s", e.Command, e.Desc) }

type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *QMPError       `json:"error"`
	ID     *int            `json:"id"`
	Event
}

func newQMP(conn net.Conn) *QMP {
	q := &QMP{conn: conn, pending: map[int]chan qmpReply{}, more: make(chan struct{}), gone: make(chan struct{})}
	go q.read()
	return q
}

func (q *QMP) read() {
	r := bufio.NewReader(q.conn)
	d := json.NewDecoder(r)
	for {
		var m qmpReply
		if err := d.Decode(&m); err != nil {
			if errors.Is(err, net.ErrClosed) {
				err = io.EOF
			}
			q.mu.Lock()
			q.err = fmt.Errorf("qmp connection ended: %w", err)
			q.mu.Unlock()
			close(q.gone)
			return
		}
		q.mu.Lock()
		switch {
		case m.Name != "":
			q.events = append(q.events, m.Event)
			close(q.more)
			q.more = make(chan struct{})
		case m.ID != nil:
			if c := q.pending[*m.ID]; c != nil {
				delete(q.pending, *m.ID)
				c <- m
			}
		}
		q.mu.Unlock()
	}
}

// Execute runs a command. args may be nil; ret may be nil, or a pointer for the returned value.
func (q *QMP) Execute(ctx context.Context, command string, args, ret any) error {
	c := make(chan qmpReply, 1)
	q.mu.Lock()
	q.nextID++
	id := q.nextID
	q.pending[id] = c
	q.mu.Unlock()

	m := map[string]any{"execute": command, "id": id}
	if args != nil {
		m["arguments"] = args
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	if _, err := q.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	select {
	case r := <-c:
		if r.Error != nil {
			r.Error.Command = command
			return r.Error
		}
		if ret != nil {
			if err := json.Unmarshal(r.Return, ret); err != nil {
				return fmt.Errorf("qmp %s: decode the answer: %w", command, err)
			}
		}
		return nil
	case <-q.gone:
		return fmt.Errorf("qmp %s: %w", command, q.err)
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: %w", command, context.Cause(ctx))
	}
}

// Mark returns the number of events so far, for [QMP.WaitEvent].
func (q *QMP) Mark() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.events)
}

// WaitEvent returns the first event of that name at or after a mark for which match (nil: any) holds.
func (q *QMP) WaitEvent(ctx context.Context, mark int, name string, match func(Event) bool) (Event, error) {
	for {
		q.mu.Lock()
		for ; mark < len(q.events); mark++ {
			if e := q.events[mark]; e.Name == name && (match == nil || match(e)) {
				q.mu.Unlock()
				return e, nil
			}
		}
		more := q.more
		q.mu.Unlock()
		select {
		case <-more:
		case <-q.gone:
			return Event{}, fmt.Errorf("wait for qmp event %s: %w", name, q.err)
		case <-ctx.Done():
			return Event{}, fmt.Errorf("wait for qmp event %s: %w", name, context.Cause(ctx))
		}
	}
}

// Events returns all events so far.
func (q *QMP) Events() []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]Event(nil), q.events...)
}
