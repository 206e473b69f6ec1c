#!/bin/sh
# Bring a Debian machine to the point where `make matrix` and `make test` run, or say in one line what is missing.
# Changes nothing where everything is there; installs packages only as root and only with apt.
set -eu

missing=
want() { # want COMMAND-OR-PATH PACKAGE
	case $1 in
	/*) [ -e "$1" ] ;;
	*) command -v "$1" >/dev/null 2>&1 ;;
	esac || case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
}

if ! command -v "${GO:-go}" >/dev/null 2>&1; then
	echo "setup: Go is missing: install Go 1.26 or newer from https://go.dev/dl and put it on the PATH" >&2
	exit 1
fi

want gcc gcc                                      # the race detector is cgo
want git git                                      # the docs check asks git which files there are
want qemu-system-x86_64 qemu-system-x86           # the guests
want /usr/lib/qemu/virtiofsd qemu-system-common   # the C virtiofsd, a peer in the matrix
want newuidmap uidmap                             # user namespaces with many ids
want bwrap bubblewrap                             # sandboxes that a caller sets up
want unshare util-linux
want strace strace
want mkfs.ext4 e2fsprogs                          # small file systems that fill up
want setfacl acl
want xz xz-utils
want zstd zstd
case ",${MATRIX_MUST:-}," in *,chromium,*) want chromium chromium ;; esac # who wants the generated page looked at as well

[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ]; then
	echo "setup: missing packages:$missing: run 'apt-get install$missing' as root" >&2
	exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
	echo "setup: missing packages:$missing: this machine has no apt-get: install their like by its own package manager" >&2
	exit 1
fi
echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q </dev/null >/dev/null
# shellcheck disable=SC2086 # a list of package names
apt-get install -q -y --no-install-recommends $missing </dev/null >/dev/null
