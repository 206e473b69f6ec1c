package qemu

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// Reason says in which way a guest failed.
type Reason string

// The reasons of a [GuestError].
const (
	ReasonExited  Reason = "exited"   // QEMU ended; its log says why
	ReasonPanic   Reason = "panicked" // the guest kernel panicked
	ReasonNoHello Reason = "no-hello" // the guest runs, but its agent did not report in time
	ReasonAgent   Reason = "agent"    // the agent reported that it cannot work
)

// GuestError is a guest that did not come up, or went away before it said done. It is about the guest or its devices, not about
// the harness's own means.
type GuestError struct {
	Reason Reason
	// Detail is one line: QEMU's last log line, the panic's message, or the agent's error.
	Detail string
	// Console is the last line of the guest's console, "" if it printed nothing.
	Console string
}

func (e *GuestError) Error() string {
	var b strings.Builder
	switch e.Reason {
	case ReasonExited:
		b.WriteString("qemu exited")
	case ReasonPanic:
		b.WriteString("guest kernel panicked")
	case ReasonNoHello:
		b.WriteString("guest does not answer")
	case ReasonAgent:
		b.WriteString("guest agent failed")
	default:
		fmt.Fprintf(&b, "guest failed (%s)", e.Reason)
	}
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	if e.Console == "" {
		b.WriteString("; the console is empty (is the kernel bootable on this machine type?)")
	} else {
		fmt.Fprintf(&b, "; last console line: %s", e.Console)
	}
	return b.String()
}

// CallError is a call which the agent could not carry out.
type CallError struct {
	Call string
	Text string
}

func (e *CallError) Error() string { return fmt.Sprintf("guest call %s: %s", e.Call, e.Text) }

var (
	panicLine = regexp.MustCompile(`Kernel panic - not syncing: (.*)`)
	// traceLine are the lines after a panic's message that say less than the message.
	traceLine = regexp.MustCompile(`^(\[ *\d+\.\d+\] )?(</?TASK>|Call Trace:|Kernel Offset:|---\[ end Kernel panic|Rebooting|RIP:|Code:|[A-Z0-9]{2,3}: |  ?\S+\+0x|CPU: |Hardware name:|\? )`)
	ansi      = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]")
)

// tail returns the non-empty lines of the last 32 KiB of a log, without terminal codes.
func tail(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	const keep = 32 << 10
	if st, err := f.Stat(); err == nil && st.Size() > keep {
		if _, err := f.Seek(-keep, io.SeekEnd); err != nil {
			return nil
		}
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil
	}
	var lines []string
	for l := range bytes.Lines(b) {
		if s := strings.TrimSpace(ansi.ReplaceAllString(string(l), "")); s != "" {
			lines = append(lines, s)
		}
	}
	return lines
}

// lastWords returns the console's panic message, if it has one, and the last line that tells something.
func lastWords(lines []string) (panicked, last string) {
	for i := len(lines) - 1; i >= 0; i-- {
		if m := panicLine.FindStringSubmatch(lines[i]); m != nil {
			return m[1], lines[i]
		}
		if last == "" && !traceLine.MatchString(lines[i]) {
			last = lines[i]
		}
	}
	if last == "" && len(lines) > 0 {
		last = lines[len(lines)-1]
	}
	return "", last
}
