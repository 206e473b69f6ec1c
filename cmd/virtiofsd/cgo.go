//go:build cgo

package main

// With cgo, libcap's psx looks for the process's threads in a /proc that a new PID namespace has not been given, and ends the child.
func init() {
	unfit = "this program was built with cgo, and cannot give its capabilities up so; remedy: build it with CGO_ENABLED=0, as make does"
}
