package sys

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mutex is a mutual exclusion lock for goroutines that are locked to their threads: who has to wait sleeps in the kernel, futex(2), and not in
// Go's scheduler, which needs the help of two other threads to get such a goroutine going again. The zero value is unlocked.
//
// It is the second mutex of Drepper's "Futexes Are Tricky": 0 unlocked, 1 locked, 2 locked and perhaps waited for.
type Mutex struct{ state atomic.Uint32 }

// spins is how often Lock looks again before it sleeps, for a microsecond or two in all: what the lock is held for takes less than going to
// sleep does, and than being woken up.
const spins = 20

// TryLock locks m if that can be done at once, and reports whether it did.
func (m *Mutex) TryLock() bool { return m.state.CompareAndSwap(0, 1) }

// Lock locks m.
func (m *Mutex) Lock() {
	if m.TryLock() {
		return
	}
	for range spins {
		Relax()
		if m.state.Load() == 0 && m.TryLock() {
			return
		}
	}
	for m.state.Swap(2) != 0 {
		SleepWhile(&m.state, 2)
	}
}

// Unlock unlocks m.
func (m *Mutex) Unlock() {
	switch m.state.Swap(0) {
	case 0:
		panic("sys: Unlock of an unlocked Mutex")
	case 2:
		Wake(&m.state)
	}
}

// SleepWhile has the caller's thread sleep in the kernel as long as *word is value, until a Wake or, now and then, for no reason (futex(2)).
func SleepWhile(word *atomic.Uint32, value uint32) {
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWaitPrivate, uintptr(value), 0, 0, 0)
}

// Wake wakes up one thread that sleeps at word, if there is one.
func Wake(word *atomic.Uint32) {
	_, _, _ = unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWakePrivate, 1, 0, 0, 0)
}

// FUTEX_WAIT and FUTEX_WAKE with FUTEX_PRIVATE_FLAG, include/uapi/linux/futex.h
const (
	futexWaitPrivate = 0x80
	futexWakePrivate = 0x81
)
