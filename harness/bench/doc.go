// Package bench measures virtio-fs daemons against each other, without a virtual machine: harness/frontend plays the guest.
//
// The method, and why:
//
//   - Each round starts a fresh process of each daemon. They take turns at one workload, then at the next; who begins changes. What the
//     machine does meanwhile hits all of them, and those that wait sleep. Two daemons are compared within each round, and the median of
//     these ratios is reported: a machine that is slow for a minute is slow for both.
//   - A workload at depth 1 sleeps in the call eventfd until its reply is there, as a guest that waits for an interrupt: wake-ups
//     are part of what is measured. The floor of that, an eventfd there and back between two threads, is measured in the same run.
//   - Processors with nothing to do are kept awake ([Idle]): what a virtual one takes to come back is its host's mood.
//   - Latencies go into an HDR histogram; of each round the median and the 99th percentile are kept, and what is reported are
//     medians of rounds, with the interval of their confidence, never one run.
//   - Processor time is that of the daemon's whole process tree, in nanoseconds, divided by operations.
//   - Requests are laid out before the clock runs; the loop allocates nothing, and the collector is off meanwhile.
//   - A workload of many steps is a pass over its files. What makes room for the next pass (FORGET, what removes a tree, what drops the
//     host's cache) is off the clock; processor time includes it.
//   - Each queue has a thread of the front-end, as it has a processor in a guest, and workloads on several queues have processes of their own.
//   - A daemon with other options is a variant: measured in the same turns, compared with its origin, and no peer of it.
//   - System calls are counted apart from the timing ([Syscalls]), and what an item costs among many is asked for by itself ([Scale]).
//   - Two reports are compared by their medians, and a difference counts where it is large and the rounds tell it from noise ([Report.Changes]).
package bench
