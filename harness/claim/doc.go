// Package claim reads what is claimed of a virtio-fs daemon: one sentence with MUST, why it matters, where it comes from, which
// probe shows it, and by what it was seen to be falsified.
//
// Claims are written once, in scenarios/claims/*.toml, one file an area. Scenarios refer to them by id and say what is to be
// expected there. A claim that nothing was ever seen to violate proves little: its falsified_by is empty, and reports say so.
package claim
