package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// MustEnv is the environment variable which names the needs that have to be met: a comma list of words, or "all".
const MustEnv = "MATRIX_MUST"

// LongEnv is the environment variable which, set to anything, asks for the long form of tests that have one: minutes instead of seconds.
const LongEnv = "MATRIX_LONG"

// Long reports whether the long form of a test is asked for.
func Long() bool { return os.Getenv(LongEnv) != "" }

// need is one thing that a test can ask for: probe returns an error that says what was missing.
type need struct {
	probe  func() error
	remedy string
}

// QEMUVirtiofsd is where Debian 12's qemu-system-common keeps the C virtiofsd.
const QEMUVirtiofsd = "/usr/lib/qemu/virtiofsd"

func needs() map[string]need {
	return map[string]need{
		"root":      {probeRoot, "run the tests as root with CAP_SYS_ADMIN"},
		"userns":    {probeUserns, "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces>0)"},
		"newuidmap": {probeTool("newuidmap"), "install the package uidmap"},
		"bwrap":     {probeTool("bwrap"), "install the package bubblewrap"},
		"subuid":    {probeFile("/etc/subuid"), "create it (an empty file will do)"},
		"bash":      {probeTool("bash"), "install the package bash"},
		"tmpfile":   {probeTmpfile, "set TMPDIR to a directory of a file system with O_TMPFILE, such as ext4"},
		"long":      {probeLong, "set " + LongEnv + " to anything"},
		"fuse":      {probeOpen("/dev/fuse"), "load the module: modprobe fuse"},
		"loop":      {probeOpen("/dev/loop-control"), "load the module: modprobe loop"},
		"mkfs":      {probeTool("mkfs.ext4"), "install the package e2fsprogs"},
		"strace":    {probeTool("strace"), "install the package strace"},
		"gcc":       {probeTool("gcc"), "install the package gcc"},
		"qemu":      {probeTool("qemu-system-x86_64"), "install the package qemu-system-x86"},
		"apt":       {probeTool("apt-get"), "use a Debian machine, or give kernel images by path"},
		"chromium":  {probeTool("chromium"), "install the package chromium"},
		"podman":    {probeTool("podman"), "install the package podman"},
		"systemd":   {probeTool("systemd-socket-activate"), "install the package systemd"},
		"units":     {probeTool("systemd-analyze"), "install the package systemd"},
		"libvirt":   {probeLibvirt, "install the packages libvirt-daemon, libvirt-daemon-driver-qemu and libvirt-clients"},
		"hugepages": {probeHugePages, "give the kernel some: sysctl vm.nr_overcommit_hugepages=16"},
		"pids":      {probePids, "mount a writable cgroup hierarchy with the controller pids: mount -t cgroup -o pids none /sys/fs/cgroup/pids"},
		"c-daemon":  {probeFile(QEMUVirtiofsd), "install Debian 12's package qemu-system-common"},
	}
}

// probeLibvirt looks for a daemon with the QEMU driver, and for what talks to it.
func probeLibvirt() error {
	if _, err := exec.LookPath("virsh"); err != nil {
		return err
	}
	if _, err := exec.LookPath("virtqemud"); err == nil {
		return nil
	}
	if _, err := exec.LookPath("libvirtd"); err != nil {
		return err
	}
	if found, _ := filepath.Glob("/usr/lib*/*/libvirt/connection-driver/libvirt_driver_qemu.so"); len(found) == 0 {
		return errors.New("libvirtd has no driver for QEMU")
	}
	return nil
}

// probeHugePages looks for three free huge pages, or leave to make them.
func probeHugePages() error {
	for _, name := range []string{"free_hugepages", "nr_overcommit_hugepages"} {
		b, err := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/" + name)
		if err != nil {
			return err
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n >= 3 {
			return nil
		}
	}
	return errors.New("fewer than three huge pages of 2 MiB are free")
}

// Need skips the test unless every word's probe succeeds; it fails the test instead when MATRIX_MUST asks for the word.
// An unknown word is a mistake in the test and fails it.
func Need(t testing.TB, words ...string) {
	t.Helper()
	for _, w := range words {
		n, ok := needs()[w]
		if !ok {
			t.Fatalf("testenv: unknown need %q", w)
		}
		err := cached(w, n.probe)
		if err == nil {
			continue
		}
		Lacks(t, w, fmt.Sprintf("%v; remedy: %s", err, n.remedy))
	}
}

// Lacks is Need for what only the test itself can find missing: it skips the test and says why, or fails it when MATRIX_MUST asks for the
// word.
func Lacks(t testing.TB, word, why string) {
	t.Helper()
	if Must(word) {
		t.Fatalf("%s asks for %q, which is missing: %s", MustEnv, word, why)
	}
	t.Skipf("needs %q: %s", word, why)
}

// Must reports whether MATRIX_MUST asks for the word.
func Must(word string) bool {
	list := strings.Split(os.Getenv(MustEnv), ",")
	return slices.Contains(list, word) || slices.Contains(list, "all")
}

// results remembers probe outcomes of this process: a probe such as "userns" starts a program.
var results sync.Map

func cached(word string, probe func() error) error {
	once, _ := results.LoadOrStore(word, sync.OnceValue(probe))
	return once.(func() error)()
}

// probeTmpfile makes a file without a name where tests make theirs.
func probeTmpfile() error {
	fd, err := syscall.Open(os.TempDir(), 0x410000|syscall.O_RDWR|syscall.O_CLOEXEC, 0o600) // O_TMPFILE
	if err == nil {
		err = syscall.Close(fd)
	}
	return err
}

func probeLong() error {
	if !Long() {
		return errors.New("the long form of tests was not asked for")
	}
	return nil
}

func probeTool(name string) func() error {
	return func() error {
		_, err := exec.LookPath(name)
		return err
	}
}

func probeOpen(path string) func() error {
	return func() error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	}
}

func probeFile(path string) func() error {
	return func() error {
		_, err := os.Stat(path)
		return err
	}
}

// probeRoot tries what root is asked for: a mount namespace of one's own.
func probeRoot() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("effective uid is %d, not 0", os.Geteuid())
	}
	return try(&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}, "a mount namespace")
}

func probeUserns() error {
	return try(&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}, "a user namespace")
}

func try(attr *syscall.SysProcAttr, what string) error {
	c := exec.Command("true")
	c.SysProcAttr = attr
	if err := c.Run(); err != nil {
		return fmt.Errorf("start a program in %s: %w", what, err)
	}
	return nil
}

// QuickExits lets the processes that a test starts of its own program end at once: under -race each would sleep for a second so
// that reports of its last moment can come. For TestMain; a GORACE that is set stays.
func QuickExits() {
	if os.Getenv("GORACE") == "" {
		os.Setenv("GORACE", "atexit_sleep_ms=0")
	}
}
