// Package idmap is the arithmetic of user and group ids: the grammar of --uid-map and --gid-map, the ranges of /etc/subuid and
// /etc/subgid, and what the kernel will accept of them. It is pure: it reads no files and makes no system calls.
//
// Sources: user_namespaces(7), newuidmap(1), subuid(5).
package idmap
