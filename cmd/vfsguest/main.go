package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/workload"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "child" {
		os.Exit(workload.Child(os.Args[2], os.Args[3:], os.Stdin, os.Stdout, os.Stderr))
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "vfsguest: this is PID 1 of a test guest; boot it with: vfsmatrix boot")
		os.Exit(2)
	}
	a := &agent{}
	if err := a.run(); err != nil {
		a.fatal(err)
	}
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Printf("vfsguest: power off: %v\n", err)
}
