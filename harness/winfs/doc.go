// Package winfs sends what Windows' driver for virtio-fs sends (virtio-win's viofs: virtiofs.exe
// above WinFsp, and its kernel driver), request by request. It differs from Linux's in what a
// daemon has to know of:
//
//   - INIT is of FUSE 7.31, 16 bytes long, and negotiates READDIRPLUS and MAX_PAGES.
//   - Each path is walked anew from node 1, and the root itself is looked up as ".", links by their targets, with ".." in them.
//   - Whoever asks is uid 0, but for what is created, which is the owner's of the root.
//   - The header's last field, padding then and the length of extensions now, is not set: it holds what was on the stack.
//   - READLINK is longer than its header, by a buffer that holds nothing.
//   - What is forgotten is a file that was deleted, while it may still be open.
package winfs
