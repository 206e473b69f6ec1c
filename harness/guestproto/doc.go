// Package guestproto is the language which the host and the agent inside a test guest speak.
//
// The wire is a virtio-serial port ([PortName]). Each line is one JSON value: a [Request] from the host, a [Message] from the
// guest. The host drives: after the guest's one "hello" it sends a call, and the guest answers with any number of "progress" and
// "log" messages and then exactly one "result" of the same ID. One call runs at a time; only "input" may come while it does. The call "poweroff" ends the session: the
// guest unmounts, answers "done" and powers off. A guest whose agent fails says so in a message with Error set; silence is never
// an answer, so a port that closes before "done" is a broken run.
//
// A call's arguments and facts are Go types of this package (one file per group of calls), so that the guest's workloads and the
// host's probes cannot drift apart. [Calls] lists them. Facts say what was seen, in the guest's own view; what they mean is the
// judge's business on the host. Facts never hold a Go error value: an errno is its symbolic name ("ENOENT"), "" is success.
package guestproto
