// Package vmimages makes what test guests boot from: a Debian kernel and an initramfs around the static agent (cmd/vfsguest).
// It also fetches daemons of other projects that run outside guests, and programs that benchmarks run in them.
//
// kernels.toml says which packages, of which Debian suite. They are found and fetched by apt itself, with an apt configuration of
// our own: its lists and cache lie in our cache directory, its only source is the Debian mirror that the machine's apt uses
// already, and Debian's archive keyring signs for it. The machine's own lists, cache and packages are neither read nor changed, and no
// privilege is needed. A package is named by a regular expression and the newest match is taken, because Debian removes old kernels from
// its mirrors. What was fetched stays in the cache with its SHA-256 (record.json) and is used without asking the network again.
//
// Debian 12's kernel has virtio and virtio-fs as modules, Debian 13's has them built in. One code path serves both: of the modules
// wanted, those not listed in modules.builtin are put into the initramfs, after those they depend on, with the order in
// [ModuleList]. Dependencies are read from the modules' own .modinfo, as depmod does, because a package that was unpacked but not
// installed has no modules.dep. Modules are unpacked here, not in the guest, where each second of emulation counts.
package vmimages
