package qemu

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"log/slog"
)

// Defaults of [Config].
const (
	DefaultBinary       = "qemu-system-x86_64"
	DefaultMemMiB       = 512
	DefaultCPUs         = 2
	DefaultHelloTimeout = 60 * time.Second
)

// Config describes one guest. Kernel, Initrd and Dir are required.
type Config struct {
	Binary string // QEMU's program; "" is DefaultBinary on $PATH
	Accel  string // "auto" (or ""), "tcg" or "kvm"; auto asks ProbeKVM
	Kernel string // bzImage or PVH vmlinux
	Initrd string // initramfs with the agent as /init
	// Append are more words for the kernel command line.
	Append []string
	MemMiB int // guest memory; 0 is DefaultMemMiB
	CPUs   int // 0 is DefaultCPUs
	Shares []Share
	Dir    string // an existing directory for logs; nothing else is written
	// NoTranscript keeps no copy of what the guest sends, which a session's output may make any size.
	NoTranscript bool
	// QEMUArgs are added at the end, as they are.
	QEMUArgs []string
	// Wrap goes before QEMU's argv, such as a program that drops privilege.
	Wrap []string
	// HelloTimeout bounds Start to hello; 0 is DefaultHelloTimeout.
	HelloTimeout time.Duration
	Logger       *slog.Logger // nil discards
}

// Share is one vhost-user-fs device.
type Share struct {
	Socket string // the daemon's listening socket
	Tag    string // virtio-fs tag, at most 36 bytes, no comma, blank or colon
	// RequestQueues is num-request-queues; 0 leaves QEMU's default (1).
	RequestQueues int
	// QueueSize is the ring size, a power of two; 0 is 1024, which gives Linux guests requests of 1 MiB (a ring of n bounds a
	// request to n-4 pages).
	QueueSize int
	// MountOptions are passed to mount(2) by the agent as data; NoMount keeps the agent from mounting.
	MountOptions string
	NoMount      bool
}

// flag is one part of QEMU's argv with the reason why it is there.
type flag struct {
	args []string
	why  string
}

// plan is the whole argv of a config. accel is "tcg" or "kvm"; qmpFD and portFD are inherited socket pairs.
func plan(c Config, accel string, qmpFD, portFD int) []flag {
	cpu := "max"
	engine := accel
	if accel == "tcg" {
		engine += ",thread=single"
	}
	if accel == "kvm" {
		cpu = "host"
	}
	fs := []flag{
		{[]string{"-nodefaults", "-no-user-config"}, "only the devices named here; the caller's QEMU configuration changes no result"},
		{[]string{"-M", "pc,vmport=off,memory-backend=mem"},
			"PCI for vhost-user-fs-pci and ACPI hot-unplug on the root bus, which microvm and q35's root complex lack; boots within 0.3 s of microvm"},
		{[]string{"-accel", engine}, "as probed: kvm only where it really runs a guest. TCG in one thread: in several, a virtual CPU may run what another has just patched, " +
			"and then a Linux guest dies at boot of an int3 that it has put there and taken away"},
		{[]string{"-cpu", cpu}, "all that the accelerator offers, so that the guest finds no reason to emulate"},
		{[]string{"-m", strconv.Itoa(c.MemMiB)}, "guest memory in MiB"},
		{[]string{"-object", fmt.Sprintf("memory-backend-memfd,id=mem,size=%dM,share=on", c.MemMiB)},
			"vhost-user: the daemon maps the same pages"},
		{[]string{"-smp", strconv.Itoa(c.CPUs)}, "more than one CPU, so that the guest uses several request queues and races are possible"},
		{[]string{"-no-reboot"}, "a panic (panic=-1 reboots at once) ends QEMU instead of looping"},
		{[]string{"-display", "none"}, "no window and no terminal"},
		{[]string{"-serial", "file:" + escape(c.path(consoleFile))}, "the kernel's last words survive QEMU"},
		{[]string{"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", qmpFD), "-mon", "chardev=qmp,mode=control"},
			"QMP over an inherited socket pair: no path, nothing left behind"},
		{[]string{"-device", "virtio-serial-pci,id=serial0", "-chardev", fmt.Sprintf("socket,id=guest,fd=%d", portFD),
			"-device", "virtserialport,bus=serial0.0,chardev=guest,name=" + portName},
			"the agent's port: a stream that the console cannot garble"},
	}
	for i, s := range c.Shares {
		fs = append(fs, flag{
			[]string{"-chardev", fmt.Sprintf("socket,id=fs%dc,path=%s", i, escape(s.Socket)), "-device", s.device(i)},
			"the share " + s.Tag,
		})
	}
	fs = append(fs,
		flag{[]string{"-kernel", c.Kernel, "-initrd", c.Initrd}, "direct boot: no disk, no boot loader"},
		flag{[]string{"-append", strings.Join(c.cmdline(), " ")}, "see cmdline"},
	)
	if len(c.QEMUArgs) > 0 {
		fs = append(fs, flag{c.QEMUArgs, "as asked for"})
	}
	return fs
}

// device is the -device (and device_add) value of the share with number i.
func (s Share) device(i int) string {
	size := s.QueueSize
	if size == 0 {
		size = 1024
	}
	d := fmt.Sprintf("vhost-user-fs-pci,id=%s,chardev=fs%dc,tag=%s,queue-size=%d", deviceID(i), i, escape(s.Tag), size)
	if s.RequestQueues > 0 {
		d += fmt.Sprintf(",num-request-queues=%d", s.RequestQueues)
	}
	return d
}

func deviceID(i int) string { return fmt.Sprintf("fs%d", i) }

// cmdline is the kernel's command line.
func (c Config) cmdline() []string {
	words := []string{
		"console=ttyS0",   // a panic is seen
		"quiet",           // each character on the serial port is an exit: a verbose boot doubles its time
		"loglevel=4",      // errors and worse are printed all the same
		"panic=-1",        // reboot at once, which -no-reboot turns into an exit
		"oops=panic",      // a guest that oopsed proves nothing any more
		"mitigations=off", // they cost time and protect nothing here
		"nokaslr",         // the same guest each time, and one pass over the kernel less
		"8250.nr_uarts=1", // do not probe for ports that are not there
		"i8042.noaux",     // no mouse: its probe waits
		"tsc=reliable",    // no calibration against timers that an emulator stretches
		"no_timer_check",
		"random.trust_cpu=on", // no wait for entropy
		"printk.devkmsg=on",   // the agent's lines are not rate-limited
	}
	for _, s := range c.Shares {
		switch {
		case s.NoMount:
		case s.MountOptions == "":
			words = append(words, "vfs.mount="+s.Tag)
		default:
			words = append(words, "vfs.mount="+s.Tag+":"+s.MountOptions)
		}
	}
	return append(words, c.Append...)
}

// check fills in defaults and refuses what QEMU would misread.
func (c Config) check() (Config, error) {
	if c.Binary == "" {
		c.Binary = DefaultBinary
	}
	if c.MemMiB == 0 {
		c.MemMiB = DefaultMemMiB
	}
	if c.CPUs == 0 {
		c.CPUs = DefaultCPUs
	}
	if c.HelloTimeout == 0 {
		c.HelloTimeout = DefaultHelloTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Kernel == "" || c.Initrd == "" || c.Dir == "":
		return c, fmt.Errorf("qemu config lacks a kernel (%q), an initramfs (%q) or a directory (%q)", c.Kernel, c.Initrd, c.Dir)
	case c.Accel != "" && c.Accel != "auto" && c.Accel != "tcg" && c.Accel != "kvm":
		return c, fmt.Errorf("accelerator %q is none of auto, tcg, kvm", c.Accel)
	}
	for _, s := range c.Shares {
		if s.Tag == "" || len(s.Tag) > 36 || strings.ContainsAny(s.Tag, " ,:=\t\n\"") {
			return c, fmt.Errorf("share tag %q: want 1 to 36 bytes without blank, comma, colon, '=' and quote", s.Tag)
		}
		if strings.ContainsAny(s.MountOptions, " \t\n\"") {
			return c, fmt.Errorf("share %s: mount options %q contain a blank or a quote", s.Tag, s.MountOptions)
		}
	}
	return c, nil
}

// escape doubles commas, as QEMU's option parser wants.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
