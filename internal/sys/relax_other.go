//go:build !amd64 && !arm64

package sys

// Relax does nothing where we know no instruction for it.
func Relax() {}
