//go:build amd64 || arm64

package sys

// Relax tells the processor that the caller is spinning: some tens of nanoseconds in which the sibling hyperthread and the power
// budget are spared.
func Relax()
