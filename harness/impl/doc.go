// Package impl knows the daemons that the matrix compares: where to find each, which version it is, and how to say a set of neutral options in
// its command line.
//
// There are two dialects. "rust" is that of the Rust virtiofsd, which ours shares and extends ("ours"); "c" is QEMU 7.2's, with its -o words. What a
// daemon has no option for is an [InexpressibleError]: a recorded cell of the matrix, not a hole.
package impl
