package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"virtiofsd/internal/config"
)

// activation is the descriptor of the socket that systemd or another passed by the protocol of sd_listen_fds(3), -1 for none. The protocol's
// variables are taken off the environment.
func activation() (int, error) {
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"} {
		os.Unsetenv(name)
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return -1, nil
	}
	const first = 3 // SD_LISTEN_FDS_START
	if fds != "1" {
		return -1, fmt.Errorf("%s sockets were passed by socket activation, and a daemon serves one: start one for each (ListenStream= once a unit), or name one by --fd", fds)
	}
	return first, nil
}

// readiness tells whoever asked for it that a front-end may connect: systemd (sd_notify(3)) and the reader of --ready-fd.
type readiness struct {
	notify net.Conn // or nil
	fd     *os.File // or nil
}

// newReadiness connects while this process may still do whatever its caller may.
func newReadiness(o config.Options) (*readiness, error) {
	r := &readiness{}
	if o.ReadyFD >= 0 {
		r.fd = adopt("--ready-fd", o.ReadyFD)
	}
	if path := os.Getenv("NOTIFY_SOCKET"); path != "" {
		os.Unsetenv("NOTIFY_SOCKET") // none of the serving process's business
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			return nil, fmt.Errorf("NOTIFY_SOCKET=%s: %w; unset it where nobody listens", path, errors.Unwrap(err))
		}
		r.notify = conn
	}
	return r, nil
}

// ready says so, once.
func (r *readiness) ready() error {
	r.send("READY=1\nSTATUS=Waiting for a front-end, or serving one")
	if r.fd == nil {
		return nil
	}
	_, err := r.fd.WriteString("READY=1\n")
	if err = errors.Join(err, r.fd.Close()); err != nil {
		return fmt.Errorf("--ready-fd: %w; keep its reader alive until the daemon is ready", clean(err))
	}
	return nil
}

func (r *readiness) stopping() { r.send("STOPPING=1") }

func (r *readiness) send(state string) {
	if r.notify != nil {
		_, _ = r.notify.Write([]byte(state)) // who listened may be gone, which is not ours to mend
	}
}

// inherited checks the descriptors that options name: they are the launcher's and not by chance our own, which are closed on exec, and those to
// write to can be.
func inherited(o config.Options) error {
	for _, d := range o.Descriptors() {
		flags, err := unix.FcntlInt(uintptr(d.FD), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			return fmt.Errorf("%s=%d: the launcher has passed no such descriptor; correct the number, or have it stay open across exec", d.Option, d.FD)
		}
		if flags, err = unix.FcntlInt(uintptr(d.FD), unix.F_GETFL, 0); d.Option != "--fd" && (err != nil || flags&unix.O_ACCMODE == unix.O_RDONLY) {
			return fmt.Errorf("%s=%d: the descriptor is not open for writing; pass it open for that", d.Option, d.FD)
		}
	}
	return nil
}

// adopt takes over a descriptor that the launcher passed. No child gets it but by name.
func adopt(option string, fd int) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), option)
}
