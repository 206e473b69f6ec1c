package probe

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// between two changes of [Changes]: there is time for others on a machine with few processors.
const pause = 500 * time.Microsecond

// Changes keeps changing what is below a directory of the share, by the names that the guest's random operations use, until it is
// stopped: names are exchanged, replaced, taken away and made links out of the share, files are cut and written to. It follows no
// link itself: a guest may have made them.
type Changes struct {
	quit chan struct{}
	done chan struct{}
	made int
}

// StartChanges begins as soon as the directory is there. The changes are drawn from the seed; links lead to outside.
func StartChanges(share, dir string, seed int64, outside string) *Changes {
	c := &Changes{quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		root, rng := -1, rand.New(rand.NewPCG(uint64(seed), 'h'))
		for {
			select {
			case <-c.quit:
				if root >= 0 {
					unix.Close(root)
				}
				return
			case <-time.After(pause):
			}
			if root < 0 {
				if top, err := unix.Open(share, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
					root, _ = beneath(top, dir, unix.O_PATH|unix.O_DIRECTORY)
					unix.Close(top)
				}
				continue
			}
			if change(root, rng, outside) == nil {
				c.made++
			}
		}
	}()
	return c
}

// Stop ends it and says how many changes succeeded.
func (c *Changes) Stop() int {
	close(c.quit)
	<-c.done
	return c.made
}

// beneath opens a path below a directory, without a link in it.
func beneath(dir int, name string, flags int) (int, error) {
	return unix.Openat2(dir, name, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
}

// change makes one change; what cannot be changed so, as it is something else meanwhile, is an error.
func change(root int, rng *rand.Rand, outside string) error {
	open := func() (int, string, error) {
		name := string('a' + byte(rng.IntN(5)))
		dir, err := beneath(root, []string{".", ".", "s", "t", "p", "a", "b", "s/c"}[rng.IntN(8)], unix.O_PATH|unix.O_DIRECTORY)
		return dir, name, err
	}
	dir, name, err := open()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	switch rng.IntN(10) {
	case 0, 1: // another name, or an exchange of two
		to, other, err := open()
		if err != nil {
			return err
		}
		defer unix.Close(to)
		return unix.Renameat2(dir, name, to, other, []uint{0, unix.RENAME_EXCHANGE}[rng.IntN(2)])
	case 2, 3: // another file in its place
		fd, err := unix.Openat(dir, ".host", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o666)
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, fmt.Appendf(nil, "the host's, %d", rng.Uint32()))
		unix.Close(fd)
		if err == nil {
			err = unix.Renameat(dir, ".host", dir, name)
		}
		if err != nil { // there is a directory
			_ = unix.Unlinkat(dir, ".host", 0)
		}
		return err
	case 4: // a link out of the share in its place
		if err := unix.Symlinkat(outside, dir, ".host"); err != nil {
			return err
		}
		err := unix.Renameat(dir, ".host", dir, name)
		if err != nil {
			_ = unix.Unlinkat(dir, ".host", 0)
		}
		return err
	case 5:
		return unix.Unlinkat(dir, name, 0)
	case 6:
		return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	case 7:
		return unix.Mkdirat(dir, name, 0o777)
	}
	// The file's own bytes. A device or a FIFO is not touched.
	at, err := beneath(dir, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return unix.EINVAL
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(at), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if rng.IntN(2) == 0 {
		return unix.Ftruncate(fd, int64(rng.IntN(20000)))
	}
	_, err = unix.Pwrite(fd, fmt.Appendf(nil, "the host's, %d", rng.Uint32()), int64(rng.IntN(20000)))
	return err
}
