package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"
	"virtiofsd/internal/vhostabi"
)

// Conn is a connection to one front-end.
type Conn struct {
	mu   sync.Mutex // of fd, for who asks whether the front-end has gone
	fd   int        // -1 once closed
	stop *bell      // ends waits; nil before Serve
	oob  [1040]byte // room for SCM_MAX_FD (253) descriptors
	head [vhostabi.HeaderSize]byte
	body [vhostabi.MaxPayload]byte
}

// NewConn takes over a connected Unix stream socket.
func NewConn(fd int) *Conn { return &Conn{fd: fd} }

// Close ends the connection.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	closeAll(&c.fd)
	return nil
}

// message is one request with its payload and descriptors, which are the receiver's to close.
type message struct {
	vhostabi.Header
	payload []byte // valid until the next receive
	fds     []int
}

// take returns the message's only descriptor, which is then the caller's, or -1.
func (m *message) take() int {
	if len(m.fds) != 1 {
		return -1
	}
	fd := m.fds[0]
	m.fds = nil
	return fd
}

func (m *message) closeFDs() {
	for _, fd := range m.fds {
		unix.Close(fd)
	}
	m.fds = nil
}

// receive reads one message. It returns io.EOF where the front-end left between two messages; after any other error the stream cannot
// be used any more. The descriptors of a message that is refused are closed.
func (c *Conn) receive() (m message, err error) {
	defer func() {
		if err != nil {
			m.closeFDs()
		}
	}()
	for got := 0; got < len(c.head); {
		n, oobn, flags, err := c.read(c.head[got:], c.oob[:])
		if oobn > 0 {
			m.fds = append(m.fds, parseFDs(c.oob[:oobn])...)
		}
		switch {
		case got == 0 && left(err):
			return m, io.EOF
		case err != nil:
			return m, fmt.Errorf("read a message: %w", cut(err))
		case flags&unix.MSG_CTRUNC != 0:
			return m, errors.New("read a message: more descriptors than a message can carry")
		}
		got += n
	}
	if err := m.Unmarshal(c.head[:]); err != nil {
		return m, err
	}
	if err := m.Validate(); err != nil {
		return m, err
	}
	if len(m.fds) > vhostabi.MaxFDs {
		return m, fmt.Errorf("%v: %d descriptors: more than %d", m.Request, len(m.fds), vhostabi.MaxFDs)
	}
	m.payload = c.body[:m.Size]
	for got := 0; got < len(m.payload); {
		n, _, _, err := c.read(m.payload[got:], nil)
		if err != nil {
			return m, fmt.Errorf("%v: read its payload of %d bytes: %w", m.Request, m.Size, cut(err))
		}
		got += n
	}
	return m, nil
}

// read waits for some bytes, and the descriptors that came with them. The stream's end is io.EOF.
func (c *Conn) read(b, oob []byte) (n, oobn, flags int, err error) {
	for {
		n, oobn, flags, _, err = unix.Recvmsg(c.fd, b, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			if err = c.stop.wait(c.fd, unix.POLLIN); err == nil {
				continue
			}
		case err == nil && n == 0:
			err = io.EOF
		}
		return n, oobn, flags, err
	}
}

// write writes all of b.
func (c *Conn) write(b []byte) error {
	for len(b) > 0 {
		n, err := unix.SendmsgN(c.fd, b, nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			n, err = 0, c.stop.wait(c.fd, unix.POLLOUT)
		}
		if err != nil && err != unix.EINTR {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}

// left reports whether a call failed because the front-end has closed its end, with answers unread or not.
func left(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// cut makes the end of the stream within a message what it is.
func cut(err error) error {
	if left(err) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func parseFDs(oob []byte) (fds []int) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		if more, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, more...)
		}
	}
	return fds
}

// gone reports whether the front-end has left, whatever it sent before. Any goroutine may ask.
func (c *Conn) gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return true
	}
	p := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// reply answers m with a payload. It returns io.EOF where the front-end has left.
func (c *Conn) reply(m *message, payload []byte) error {
	h := vhostabi.Header{Request: m.Request, Flags: vhostabi.FlagVersion | vhostabi.FlagReply, Size: uint32(len(payload))}
	err := c.write(append(h.AppendTo(make([]byte, 0, vhostabi.HeaderSize+len(payload))), payload...))
	switch {
	case left(err):
		return io.EOF
	case err != nil:
		return fmt.Errorf("%v: write the reply: %w", m.Request, err)
	}
	return nil
}
