// Package impl knows the daemons that the matrix compares: where to find each, which version it is, and how to say a set of neutral options in
// its command line.
//
// There are two dialects. "rust" is that of the Rust virtiofsd, which ours shares and extends ("ours"); "c" is QEMU 7.2's, with its -o words, and
// "c5" the same before QEMU 5.2, whose sandbox has no other mode and no word. What a daemon has no option for is an [InexpressibleError]: a recorded
// cell of the matrix, not a hole.
package impl
