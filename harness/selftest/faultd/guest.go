package faultd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// AgentDoesNothing is the fault of [Guest], for tables: the daemon is honest.
const AgentDoesNothing = "agent-did-nothing"

// Guest is the agent of a guest, as PID 1, that answers every call at once and has done nothing: it says that the share is mounted, and
// gives empty facts. Its guest's kernel has everything built in.
func Guest() error {
	for _, m := range []struct{ fs, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	port, err := port()
	if err != nil {
		return err
	}
	out := guestproto.NewWriter(port)
	hello, err := json.Marshal(guestproto.Hello{Release: "6.12", Mounts: []guestproto.Mount{{Tag: "share", Dir: "/mnt/share", OK: true}}})
	if err != nil {
		return err
	}
	if err := out.Write(guestproto.Message{Kind: guestproto.KindHello, Facts: hello}); err != nil {
		return err
	}
	in := guestproto.NewReader[guestproto.Request](port)
	for {
		q, err := in.Next()
		if err != nil {
			return err
		}
		m := guestproto.Message{Kind: guestproto.KindResult, ID: q.ID, Call: q.Call, Facts: json.RawMessage(`{}`)}
		if q.Call == guestproto.CallPowerOff {
			m = guestproto.Message{Kind: guestproto.KindDone, ID: q.ID, Call: q.Call}
		}
		if err := out.Write(m); err != nil {
			return err
		}
		if m.Kind == guestproto.KindDone {
			return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		}
	}
}

// port waits for the virtio-serial port of guestproto.
func port() (*os.File, error) {
	for range 1000 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err != nil || strings.TrimSpace(string(b)) != guestproto.PortName {
				continue
			}
			if fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(n)), unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
				return os.NewFile(uintptr(fd), n), nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, errors.New("no virtio-serial port")
}
