package sys

import (
	"time"

	"golang.org/x/sys/unix"
)

// DefaultSlack is what a process of Linux begins with.
const DefaultSlack = 50 * time.Microsecond

// SetTimerSlack is prctl(2) PR_SET_TIMERSLACK: how much later than asked for the kernel may end the calling thread's sleeps, so that one
// interrupt of an idle processor serves several. Threads and processes that it makes from then on begin with the same, also after exec. It cannot
// fail but where a seccomp filter forbids it, and then all stays as it was.
func SetTimerSlack(d time.Duration) {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(d), 0, 0, 0)
}
