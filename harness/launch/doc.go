// Package launch starts a daemon as a launcher would, watches it, and ends it.
//
// A daemon is ready when its socket exists and its process lives. One that ends before is a [RefusedError] with its last words and
// status; one that stays but makes no socket in time is a [RefusedError], too, with Hung set, and is killed. A daemon may be started as another user and
// behind a wrapper (unshare, bubblewrap), and with files of its own in /etc: those are bind-mounted in a mount namespace that only
// this daemon has, so the machine's files are never edited.
//
// The daemon gets no descriptor of ours but /dev/null and pipes for its output. It dies with this process (PDEATHSIG).
package launch
