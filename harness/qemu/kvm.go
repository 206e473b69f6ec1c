package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// kvmAnswers remembers, per QEMU program, what ProbeKVM found: the machine does not change while we run, and a probe costs a process.
var kvmAnswers sync.Map // binary → func() kvmAnswer

type kvmAnswer struct {
	ok  bool
	why string
}

// probeExit is what QEMU's isa-debug-exit device turns the ROM's output byte 0x10 into: (0x10 << 1) | 1.
const probeExit = 0x10<<1 | 1

// ProbeKVM reports whether KVM really runs guest code on this machine, and if not, why. Opening /dev/kvm is not enough: a KVM
// without hardware under it (or with a broken CPU model) creates VMs and then fails on their first ordinary instruction. So a
// ROM of a few instructions is run with the same -cpu as a real guest; one of them is POPCNT, which KVM's software emulator does not know. The
// answer is remembered for the life of the process.
func ProbeKVM(ctx context.Context, binary string) (ok bool, why string) {
	if binary == "" {
		binary = DefaultBinary
	}
	once, _ := kvmAnswers.LoadOrStore(binary, sync.OnceValue(func() kvmAnswer { return probeKVM(ctx, binary) }))
	a := once.(func() kvmAnswer)()
	return a.ok, a.why
}

func probeKVM(ctx context.Context, binary string) kvmAnswer {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return kvmAnswer{false, err.Error()}
	}
	f.Close()
	ok, why := runROM(ctx, binary, "kvm", "host")
	return kvmAnswer{ok, why}
}

// runROM boots the probe's ROM and reports whether it got to its end.
func runROM(ctx context.Context, binary, accel, cpu string) (bool, string) {
	rom, err := os.CreateTemp("", "vfsmatrix-probe-*.rom")
	if err != nil {
		return false, err.Error()
	}
	defer os.Remove(rom.Name())
	defer rom.Close()
	if _, err := rom.Write(probeROM()); err != nil {
		return false, err.Error()
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, binary, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-M", "pc", "-accel", accel, "-cpu", cpu, "-m", "16", "-bios", rom.Name(), "-device", "isa-debug-exit,iobase=0x501,iosize=1")
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err = c.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == probeExit:
		return true, ""
	case ctx.Err() != nil:
		return false, "a guest of four instructions did not finish in 5 s: " + firstLine(out.String())
	case err == nil:
		return false, "a guest of four instructions ended early"
	default:
		return false, fmt.Sprintf("a guest of four instructions failed (%v): %s", err, firstLine(out.String()))
	}
}

// probeROM is 64 KiB of HLT with, at the reset vector f000:fff0, a jump to: popcnt ax,bx; mov dx,0x501; mov al,0x10; out dx,al.
func probeROM() []byte {
	rom := bytes.Repeat([]byte{0xf4}, 64<<10)
	const entry, reset = 0xff00, 0xfff0
	copy(rom[entry:], []byte{0xf3, 0x0f, 0xb8, 0xc3, 0xba, 0x01, 0x05, 0xb0, 0x10, 0xee})
	rel := entry - (reset + 3)
	copy(rom[reset:], []byte{0xe9, byte(rel), byte(rel >> 8)})
	return rom
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if s == "" {
		return "qemu said nothing"
	}
	return s
}
