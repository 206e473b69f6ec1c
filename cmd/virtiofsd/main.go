//go:debug containermaxprocs=0

// Command virtiofsd shares a directory of the host with a virtual machine over virtio-fs: a vhost-user-fs back-end. All it does is in
// the packages under internal; see internal/daemon for how they come together.
//
// containermaxprocs is off because the Go runtime would keep the files of its control group open inside the sandbox.
package main

import (
	"fmt"
	"os"
	"runtime"

	"virtiofsd/internal/daemon"
	"virtiofsd/internal/sandbox"
)

func init() {
	sandbox.Begin()
	runtime.LockOSThread() // the serving child is killed when the thread that started it ends: main must stay on one
}

// unfit is why a program that was built in some other way would fail later.
var unfit string

func main() {
	if unfit != "" {
		fmt.Fprintln(os.Stderr, "virtiofsd: "+unfit)
		os.Exit(1)
	}
	os.Exit(daemon.Main(os.Args[1:], os.Stdout, os.Stderr))
}
