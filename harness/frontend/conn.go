package frontend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is one vhost-user connection, front-end side. It is not safe for concurrent use.
type Conn struct {
	fd      int
	timeout time.Duration
}

var (
	// ErrGone says that the daemon closed the connection.
	ErrGone = errors.New("the daemon closed the connection")
	// ErrTimeout says that the daemon did not answer in time.
	ErrTimeout = errors.New("the daemon does not answer")
)

// Dial connects to a daemon's listening socket. timeout bounds each send and receive (0 = 10 s).
func Dial(path string, timeout time.Duration) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	c, err := NewConn(fd, timeout)
	if err != nil {
		return nil, err
	}
	// A socket's path is there between bind and listen already.
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		err := unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		if err == nil {
			return c, nil
		}
		if err != unix.ECONNREFUSED || time.Since(began) > 100*time.Millisecond {
			unix.Close(fd)
			return nil, fmt.Errorf("connect to %s: %w", path, err)
		}
	}
}

// NewConn takes over a connected socket.
func NewConn(fd int, timeout time.Duration) (*Conn, error) {
	if timeout <= 0 {
		timeout = 10 * time.Second
	}
	c := &Conn{fd: fd, timeout: timeout}
	if err := c.SetTimeout(timeout); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return c, nil
}

// SetTimeout bounds each later send and receive.
func (c *Conn) SetTimeout(d time.Duration) error {
	tv := unix.NsecToTimeval(int64(d))
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, opt, &tv); err != nil {
			return fmt.Errorf("set the socket's time-out: %w", err)
		}
	}
	c.timeout = d
	return nil
}

// FD is the socket, for poll(2).
func (c *Conn) FD() int { return c.fd }

// Close ends the connection.
func (c *Conn) Close() error {
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}

// SendRaw writes bytes with descriptors as they are, whatever they mean.
func (c *Conn) SendRaw(b []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		n, err := unix.SendmsgN(c.fd, b, oob, nil, unix.MSG_NOSIGNAL)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EPIPE || err == unix.ECONNRESET:
			return fmt.Errorf("send %d bytes: %w", len(b), ErrGone)
		case err == unix.EAGAIN:
			return fmt.Errorf("send %d bytes: %w within %v", len(b), ErrTimeout, c.timeout)
		case err != nil:
			return fmt.Errorf("send %d bytes: %w", len(b), err)
		case n == len(b):
			return nil
		}
		b, oob = b[n:], nil
	}
}

// headerSize is the length of each message's header: request, flags, size; little endian on the hosts we run on.
const headerSize = 12

// flags of a message's header (vhost-user.rst, "Header")
const (
	flagVersion   = 0x1
	flagReply     = 0x4
	flagNeedReply = 0x8
)

// Frame puts a header before the payload.
func Frame(request Message, flags uint32, payload []byte) []byte {
	b := make([]byte, headerSize, headerSize+len(payload))
	binary.LittleEndian.PutUint32(b[0:], uint32(request))
	binary.LittleEndian.PutUint32(b[4:], flags)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(payload)))
	return append(b, payload...)
}

// Send sends one message; needReply asks for REPLY_ACK's answer.
func (c *Conn) Send(request Message, needReply bool, payload []byte, fds ...int) error {
	flags := uint32(flagVersion)
	if needReply {
		flags |= flagNeedReply
	}
	return c.SendRaw(Frame(request, flags, payload), fds...)
}

// recvAll fills b. Descriptors that come along are closed unless fds is given.
func (c *Conn) recvAll(b []byte, fds *[]int) error {
	var oob [256]byte
	for got := 0; got < len(b); {
		n, oobn, _, _, err := unix.Recvmsg(c.fd, b[got:], oob[:], unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return fmt.Errorf("%w within %v", ErrTimeout, c.timeout)
		}
		if err == unix.ECONNRESET || err == nil && n == 0 {
			return ErrGone
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		got += n
		if oobn > 0 {
			msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil {
				return fmt.Errorf("parse control message: %w", err)
			}
			for i := range msgs {
				rights, err := unix.ParseUnixRights(&msgs[i])
				if err != nil {
					continue
				}
				if fds != nil {
					*fds = append(*fds, rights...)
					continue
				}
				for _, fd := range rights {
					unix.Close(fd)
				}
			}
		}
	}
	return nil
}

// Recv reads one message. fds may be nil.
func (c *Conn) Recv(fds *[]int) (request Message, flags uint32, payload []byte, err error) {
	var h [headerSize]byte
	if err := c.recvAll(h[:], fds); err != nil {
		return 0, 0, nil, err
	}
	request, flags = Message(binary.LittleEndian.Uint32(h[0:])), binary.LittleEndian.Uint32(h[4:])
	size := binary.LittleEndian.Uint32(h[8:])
	if size > 1<<16 {
		return request, flags, nil, fmt.Errorf("the daemon sends a message of %d bytes", size)
	}
	payload = make([]byte, size)
	if err := c.recvAll(payload, fds); err != nil {
		return request, flags, nil, err
	}
	return request, flags, payload, nil
}

// Call sends a message that has an answer by nature and returns the answer's payload.
func (c *Conn) Call(request Message, payload []byte, fds ...int) ([]byte, error) {
	if err := c.Send(request, false, payload, fds...); err != nil {
		return nil, err
	}
	return c.reply(request)
}

func (c *Conn) reply(request Message) ([]byte, error) {
	got, flags, payload, err := c.Recv(nil)
	if err != nil {
		return nil, err
	}
	if got != request || flags&flagReply == 0 || flags&3 != flagVersion {
		return nil, fmt.Errorf("the daemon answers %v with %v, flags %#x", request, got, flags)
	}
	return payload, nil
}

// CallU64 is Call for the many messages whose answer is one 64-bit number.
func (c *Conn) CallU64(request Message, payload []byte, fds ...int) (uint64, error) {
	b, err := c.Call(request, payload, fds...)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("the daemon answers %v with %d bytes, not 8", request, len(b))
	}
	return binary.LittleEndian.Uint64(b), nil
}

// RefusedError is a REPLY_ACK answer other than 0.
type RefusedError struct {
	Request Message
	Code    uint64
}

// Error says which message was refused.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("the daemon refuses %v with %#x", e.Request, e.Code)
}

// Ack sends a message with NEED_REPLY and waits for its verdict: a *RefusedError if it is not 0.
func (c *Conn) Ack(request Message, payload []byte, fds ...int) error {
	if err := c.Send(request, true, payload, fds...); err != nil {
		return err
	}
	b, err := c.reply(request)
	if err != nil {
		return err
	}
	if len(b) != 8 {
		return fmt.Errorf("the daemon acknowledges %v with %d bytes, not 8", request, len(b))
	}
	if code := binary.LittleEndian.Uint64(b); code != 0 {
		return &RefusedError{request, code}
	}
	return nil
}
