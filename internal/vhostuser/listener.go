package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// Listener is a listening Unix stream socket on which front-ends connect.
type Listener struct {
	fd   int
	file *os.File    // fd, once it was asked for
	path string      // where Bind is to bind it, "" for one that listens
	gid  int         // the group that may connect, -1 for none
	next *Conn       // accepted already, while the front-end before it was going
	made unix.Stat_t // the socket in the file system, once Bind has made it
}

// Listen is Prepare and Bind.
func Listen(path, group string) (*Listener, error) {
	l, err := Prepare(path, group)
	if err != nil {
		return nil, err
	}
	if err := l.Bind(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Prepare makes a socket, for Bind to bind to path with mode 0700, or 0770 and the group where group (a name or a number) is not empty. A
// socket that is there is removed. The socket's directory must exist.
func Prepare(path, group string) (*Listener, error) {
	if len(path) >= len(unix.RawSockaddrUnix{}.Path) {
		return nil, fmt.Errorf("listen on %s: the path is longer than %d bytes, which is all a Unix socket's address holds; use a shorter or a relative one", shown(path), len(unix.RawSockaddrUnix{}.Path)-1)
	}
	if dir := filepath.Dir(path); dir != "" {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return nil, fmt.Errorf("listen on %s: the folder %s does not exist; create it or choose another --socket-path", shown(path), shown(dir))
		}
	}
	gid := -1
	if group != "" {
		var err error
		if gid, err = lookupGroup(group); err != nil {
			return nil, err
		}
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("listen on %s: it exists and is no socket; remove it or choose another --socket-path", shown(path))
		}
		if err := unix.Unlink(path); err != nil {
			return nil, fmt.Errorf("replace the socket %s: %w", shown(path), err)
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	return &Listener{fd: fd, path: path, gid: gid}, nil
}

// Bind makes a prepared socket appear in the file system, and front-ends can connect. On one that listens already it does nothing. Close
// leaves the socket in the file system.
func (l *Listener) Bind() error {
	if l.path == "" {
		return nil
	}
	mask := 0o077
	if l.gid >= 0 {
		mask = 0o007
	}
	old := unix.Umask(mask)
	err := unix.Bind(l.fd, &unix.SockaddrUnix{Name: l.path})
	unix.Umask(old)
	if err == nil {
		l.made, err = give(l.path, l.gid)
	}
	if err == nil {
		err = unix.Listen(l.fd, 1)
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", shown(l.path), err)
	}
	return nil
}

// give gives the socket that path names to a group, unless gid is -1, and returns which it is. What
// somebody who may write to its folder has put in its place meanwhile is not touched: a link is not
// followed, and another user's socket stays as it is.
func give(path string, gid int) (is unix.Stat_t, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return is, err
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &is); err != nil {
		return is, err
	}
	if is.Mode&unix.S_IFMT != unix.S_IFSOCK || gid >= 0 && int(is.Uid) != os.Geteuid() {
		return is, errors.New("something else has taken the socket's place; let nobody else write to its folder")
	}
	if gid >= 0 {
		err = unix.Fchownat(fd, "", -1, gid, unix.AT_EMPTY_PATH)
	}
	return is, err
}

// Remove removes the socket that Bind has made from the file system. What has taken its place
// stays.
func (l *Listener) Remove() {
	var is unix.Stat_t
	if l.made.Ino != 0 && unix.Lstat(l.path, &is) == nil && is.Ino == l.made.Ino && is.Dev == l.made.Dev {
		os.Remove(l.path)
	}
}

// shown is a name as it stands in an error, which is one line.
func shown(name string) string {
	if strings.ContainsFunc(name, unicode.IsControl) {
		return strconv.Quote(name)
	}
	return name
}

func lookupGroup(group string) (int, error) {
	if n, err := strconv.Atoi(group); err == nil && n >= 0 {
		return n, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("socket group %s: there is no such group; make it, or correct --socket-group", shown(group))
	}
	return strconv.Atoi(g.Gid)
}

// ListenFD takes over a descriptor that must be a listening Unix stream socket.
func ListenFD(fd int) (*Listener, error) {
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		return nil, fmt.Errorf("descriptor %d is not a listening socket; pass one on which listen(2) was called", fd)
	}
	return Adopt(fd)
}

// Adopt takes over a descriptor of a Unix stream socket on which somebody will have called listen(2) when a front-end is accepted.
func Adopt(fd int) (*Listener, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w; pass a listening Unix socket", fd, err)
	}
	if family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || family != unix.AF_UNIX || kind != unix.SOCK_STREAM {
		return nil, fmt.Errorf("descriptor %d is no Unix stream socket; pass one", fd)
	}
	unix.CloseOnExec(fd)
	return &Listener{fd: fd, gid: -1}, nil
}

// File is the listening socket, to be handed to a child process. It stays the listener's.
func (l *Listener) File() *os.File {
	if l.file == nil {
		l.file = os.NewFile(uintptr(l.fd), "listener")
	}
	return l.file
}

// Accept waits for a front-end, until ctx ends.
func (l *Listener) Accept(ctx context.Context) (*Conn, error) {
	if c := l.next; c != nil {
		l.next = nil
		return c, nil
	}
	stop, err := newBell()
	if err != nil {
		return nil, err
	}
	defer stop.close()
	defer context.AfterFunc(ctx, stop.ring)()
	c, err := l.accept(stop)
	switch {
	case ctx.Err() != nil:
		if err == nil {
			c.Close()
		}
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("accept a front-end: %w", err)
	}
	return c, nil
}

func (l *Listener) accept(stop *bell) (*Conn, error) {
	for {
		if err := stop.wait(l.fd, unix.POLLIN); err != nil {
			return nil, err
		}
		fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			return NewConn(fd), nil
		case unix.EINTR, unix.EAGAIN, unix.ECONNABORTED:
		default:
			return nil, err
		}
	}
}

// Refuse accepts and closes every further connection while served's front-end is there, until stop is called: a second front-end learns at
// once that it is not served, instead of waiting in the backlog of a listener that others keep open. One that comes when the first has left
// is the next, and Accept returns it; a front-end that reconnects need not wait for our end of its first connection.
func (l *Listener) Refuse(served *Conn) (stop func()) {
	end, err := newBell()
	if err != nil {
		return func() {} // others wait until this one is served
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.accept(end)
			switch {
			case errors.Is(err, errRung):
				return
			case err != nil: // EMFILE, for one
				time.Sleep(100 * time.Millisecond)
			case served.gone():
				l.next = c
				return
			default:
				c.Close()
			}
		}
	})
	return func() {
		end.ring()
		wg.Wait()
		end.close()
	}
}

// Close stops listening. The socket stays in the file system.
func (l *Listener) Close() error {
	if l.next != nil {
		l.next.Close()
		l.next = nil
	}
	if l.file != nil {
		return l.file.Close()
	}
	closeAll(&l.fd)
	return nil
}
