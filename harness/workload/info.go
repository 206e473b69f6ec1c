package workload

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
)

// virtioFS is the device id of virtio-fs (virtio 1.2, section 5.11).
const virtioFS = "0x001a"

// trouble matches kernel log lines that a healthy guest never prints.
var trouble = regexp.MustCompile(`BUG:|WARNING:|Oops|Call Trace:|blocked for more than|soft lockup|rcu.*stall|fuse: .*(error|invalid)|virtio[-_]?fs.*(fail|error)|Unable to handle`)

// Hello gathers what the agent says first.
func Hello(s *Shares, modules []string) guestproto.Hello {
	h := guestproto.Hello{
		Cmdline: readLine("/proc/cmdline"), CPUs: runtime.NumCPU(), Modules: append([]string{}, modules...),
		Mounts: s.All(), Devices: devices(), Uptime: Uptime(),
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		h.Release, h.Version, h.Machine = unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:]), unix.ByteSliceToString(u.Machine[:])
	}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err == nil {
		h.MemMiB = int(uint64(si.Totalram) * uint64(si.Unit) >> 20)
	}
	_, err := os.Stat("/bin/busybox")
	h.Busybox = err == nil
	return h
}

// devices lists the virtio-fs devices.
func devices() []guestproto.Device {
	out := []guestproto.Device{}
	dirs, _ := filepath.Glob("/sys/bus/virtio/devices/*") // the pattern is sound
	interrupts, _ := os.ReadFile("/proc/interrupts")      // without it: -1
	for _, d := range dirs {
		if readLine(filepath.Join(d, "device")) != virtioFS {
			continue
		}
		dev := guestproto.Device{Name: filepath.Base(d), Features: readLine(filepath.Join(d, "features")), RequestQueues: -1}
		if l, err := os.Readlink(filepath.Join(d, "driver")); err == nil {
			dev.Driver = filepath.Base(l)
		}
		if n := strings.Count(string(interrupts), dev.Name+"-requests"); n > 0 {
			dev.RequestQueues = n
		}
		// /sys/fs/virtiofs/N/device is a link to the device, and N/tag is its tag (Linux 6.9).
		tags, _ := filepath.Glob("/sys/fs/virtiofs/*/tag")
		for _, t := range tags {
			if l, err := os.Readlink(filepath.Join(filepath.Dir(t), "device")); err == nil && filepath.Base(l) == dev.Name {
				dev.Tag = readLine(t)
			}
		}
		out = append(out, dev)
	}
	return out
}

func (e *Env) info(a guestproto.InfoArgs) (guestproto.Info, error) {
	n := a.KernelLogLines
	if n == 0 {
		n = 200
	}
	i := guestproto.Info{Hello: Hello(e.Shares, e.Modules), KernelTrouble: []string{}}
	b, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return i, err
	}
	i.ProcMounts = string(b)
	// SYSLOG_ACTION_READ_ALL (3) of syslog(2) and its buffer's size (10).
	size, err := unix.Klogctl(10, nil)
	if err != nil || size <= 0 {
		size = 1 << 20
	}
	buf := make([]byte, size)
	got, err := unix.Klogctl(3, buf)
	if err != nil {
		return i, err
	}
	lines := strings.Split(strings.TrimSpace(string(buf[:got])), "\n")
	for _, l := range lines {
		if trouble.MatchString(l) {
			i.KernelTrouble = append(i.KernelTrouble, l)
		}
	}
	i.KernelLog = lines[max(0, len(lines)-n):]
	return i, nil
}

func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
