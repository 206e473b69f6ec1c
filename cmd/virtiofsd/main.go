//go:debug containermaxprocs=0

// Command virtiofsd shares a directory of the host with a virtual machine over virtio-fs: a vhost-user-fs back-end. All it does is in
// the packages under internal; see internal/daemon for how they come together.
//
// containermaxprocs is off because the Go runtime would keep the files of its control group open inside the sandbox.
package main

import (
	"os"
	"runtime"

	"virtiofsd/internal/daemon"
	"virtiofsd/internal/sandbox"
)

func init() {
	sandbox.Begin()
	runtime.LockOSThread() // the serving child is killed when the thread that started it ends: main must stay on one
}

// unfit ends a program that was built in a way in which it would fail later.
var unfit = func() {}

func main() {
	unfit()
	os.Exit(daemon.Main(os.Args[1:], os.Stdout, os.Stderr))
}
