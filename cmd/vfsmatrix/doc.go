// Command vfsmatrix is the test matrix for virtio-fs daemons: it boots guests on shares that daemons serve from inside their
// sandboxes, judges what it saw against written claims, and generates the documents from the records.
//
// Exit status: 0 all as expected; 1 something was not; 2 usage; 3 the harness or the machine failed, or nothing could be
// judged.
//
// Sub-commands stand in a file each. What they share is in tree.go: where the tree, its binaries and its cache are.
package main
