// Package qemu boots one test guest in QEMU and talks to the agent inside it.
//
// A [VM] is one QEMU process: kernel, initramfs with cmd/vfsguest as PID 1, no disk, no network, one vhost-user-fs device per
// [Share]. Everything that QEMU says lands in Config.Dir (argv, qemu.log, console.log, messages.jsonl). QMP and the agent's
// virtio-serial port are socket pairs inherited by QEMU, so a VM has no socket file that could be left behind or be too long a path.
//
// [Start] returns once QEMU runs, [VM.Hello] once the agent is ready, [VM.Call] runs one call of package guestproto, [VM.Session] a
// program for a person, and [VM.PowerOff] ends the guest in order. [VM.Reset], [VM.Unplug] and [VM.Plug] do to the machine what an operator may do.
//
// What goes wrong is told apart. An ordinary error means that we could not do our work (no such binary, no room for logs); a
// [GuestError] means that the guest did not come up or went away, and its Reason says how: QEMU exited, the kernel panicked, no hello in
// time, the agent failed. Both are one line; a GuestError carries the console's last line. A [CallError] is a call that the agent
// could not carry out; the guest lives on.
//
// Lock order: VM.mu, then qmp.mu; neither is held over I/O.
package qemu
