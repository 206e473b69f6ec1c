package bench

import (
	"encoding/binary"
	"fmt"
	"os"
)

// Idle is what processors do that have nothing to do.
type Idle string

const (
	// Awake processors poll, so that a thread is woken up in a microsecond or two, as on a machine that is not idle. What is measured then
	// is what daemons do, and it is the same from round to round.
	Awake Idle = "awake"
	// Machine leaves it to the machine. A virtual processor that halts takes some 10 to 50 µs to come back, by the host's mood; with two
	// processors it is a matter of luck whether a daemon and its guest share one that is awake.
	Machine Idle = "machine"
)

// qosFile takes the longest time that a processor may take to come back, and keeps to it while it is open
// (Documentation/power/pm_qos_interface.rst).
const qosFile = "/dev/cpu_dma_latency"

// Keep has processors idle that way until release is called. Where they cannot be kept awake, how says so.
func (i Idle) Keep() (how string, release func()) {
	release = func() {}
	if i == Machine {
		return "as the machine does", release
	}
	f, err := os.OpenFile(qosFile, os.O_WRONLY, 0)
	if err == nil {
		if _, err = f.Write(binary.NativeEndian.AppendUint32(nil, 0)); err != nil {
			f.Close()
		}
	}
	if err != nil {
		return fmt.Sprintf("as the machine does, %v", err), release
	}
	return string(Awake), func() { f.Close() }
}
