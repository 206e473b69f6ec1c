// Package workload is what runs inside a test guest: the calls of package guestproto, carried out on a mounted share.
//
// A workload reports facts: what the guest's own system calls returned. Most compare the share with what Linux does on a local file system, and
// all of them accept Where.Local, which runs them on a tmpfs of the guest: a workload that fails there is wrong itself.
//
// [Run] dispatches. [Child] is the entry of helper processes, which the agent starts from its own program: other users (a process's
// credentials are set before it starts, so that each identity really has its groups and no more capabilities than a user has), and posixtest,
// which expects to own its process.
//
// The package runs as root in a throw-away guest. Its tests run it on a temporary directory of the host, for the parts that may.
package workload
