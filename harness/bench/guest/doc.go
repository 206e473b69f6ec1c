// Package guest measures virtio-fs daemons by what programs in a guest see of them: fio, and what people do with files.
//
// Package bench drives the rings itself, so that nothing but the daemon is measured. Here a guest's kernel stands between, as for everybody who
// uses a share, and its cost is in the figures. The method, and why:
//
//   - In each round each daemon gets a fresh process, a fresh guest, and a fresh copy of the share; who begins changes. What one program leaves
//     behind meets the next one of the same guest, in the same order for all.
//   - Programs of Debian (fio, git) travel in the share, and are copied into the guest's memory before anything is measured: to load them is
//     nobody's work. Their own loader runs them, so the guest needs no libraries.
//   - Before each program the guest drops its caches. The host does not: what the daemon reads is in the host's memory, for all daemons alike.
//   - fio goes over its file again and again until its time is over, and has the guest's kernel forget the file before each pass: no read is
//     answered by the guest.
//   - Time is read in the guest, from the program's start to its end; fio tells its own. Processor time is that of the daemon's whole process
//     tree meanwhile, read on the host.
//   - The guest's clock is not believed: where it and the host's differ, there is no sample. An emulated guest reads a device for its time.
//   - Two daemons are compared as in package bench: by the median of the ratios of each round, with the p of the U-test.
//
// Without KVM the guest's processors are emulated, and a request costs more there than in any daemon: ratios then are nearer to 1 than they
// would be. Requests are far apart, too, so that what a daemon does while it waits for the next one weighs more in its processor time. A report
// says which it was.
package guest
