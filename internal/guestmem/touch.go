package guestmem

import "runtime/debug"

// Touching is the time in which a goroutine touches guest memory.
type Touching struct{ before bool }

// Touch makes a fault in guest memory a panic of the calling goroutine, until End. Whoever touches
// guest memory recovers, so both are said in one place, whichever goroutine that runs in: defer
// f(&err, Touch()), where f calls End and recover.
func Touch() Touching { return Touching{debug.SetPanicOnFault(true)} }

// End has the goroutine do with faults what it did before.
func (t Touching) End() { debug.SetPanicOnFault(t.before) }
