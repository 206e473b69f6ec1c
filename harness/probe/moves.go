package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"virtiofsd/harness/guestproto"
)

// What the probe moves may be asked to do.
const (
	MovesLay  = "lay"  // make what a guest is to take hold of
	MovesMove = "move" // rename and remove it
	MovesLook = "look" // see whether what the guest did to it arrived
)

// MovesArgs are the arguments of the probe moves.
type MovesArgs struct {
	Dir    string `json:"dir"` // under the share's root
	Do     string `json:"do"`
	Others int    `json:"others,omitempty"` // files of guestproto.HeldOthers, to lay
	// By says who moves: "" is the host, "guest" another guest of the same share, through a daemon
	// of its own.
	By string `json:"by,omitempty"`
}

// ByGuest is the other guest.
const ByGuest = "guest"

// Moves is what was done. Checks are of MovesLook.
type Moves struct {
	Laid   int                `json:"laid,omitempty"`
	Moved  int                `json:"moved,omitempty"`
	Checks []guestproto.Check `json:"checks,omitempty"`
}

// Mover gives entries of the share other names; paths are under its root.
type Mover interface {
	Rename(from, to string) error
	Remove(name string) error
}

// HostMover does it by the host's own system calls.
type HostMover struct{ Share string }

// Rename renames.
func (h HostMover) Rename(from, to string) error {
	return os.Rename(filepath.Join(h.Share, from), filepath.Join(h.Share, to))
}

// Remove removes a name.
func (h HostMover) Remove(name string) error { return os.Remove(filepath.Join(h.Share, name)) }

// LayOut makes what guestproto.CallHold takes hold of. All of it belongs to the directory's owner,
// as the guest's root may have no rights over others' files.
func LayOut(share string, a MovesArgs) (*Moves, error) {
	dir := filepath.Join(share, filepath.Clean("/"+a.Dir))
	m := &Moves{}
	made := func(err error) error {
		m.Laid++
		return err
	}
	file := func(name string) error {
		return made(os.WriteFile(filepath.Join(dir, name), []byte(guestproto.HeldContent), 0o644))
	}
	var all []error
	for _, d := range slices.Concat(guestproto.HeldDirectories, []string{guestproto.HeldInto, guestproto.HeldOthers}) {
		all = append(all, made(os.MkdirAll(filepath.Join(dir, d), 0o755)), file(path.Join(d, guestproto.HeldInside)))
	}
	for _, f := range guestproto.HeldFiles {
		all = append(all, file(f))
	}
	for _, f := range []string{guestproto.HeldFirstLink, guestproto.HeldLastLink} {
		all = append(all, made(os.Link(filepath.Join(dir, f), filepath.Join(dir, f+guestproto.HeldSecond))))
	}
	for i := range a.Others {
		all = append(all, file(fmt.Sprintf("%s/%05d", guestproto.HeldOthers, i)))
	}
	all = append(all, ownAll(share, strings.Split(strings.Trim(path.Clean("/"+a.Dir), "/"), "/")[0]))
	if err := errors.Join(all...); err != nil {
		return nil, fmt.Errorf("lay out what a guest is to hold: %w", err)
	}
	return m, nil
}

// ownAll gives a directory of the share, and all in it, to the share's owner.
func ownAll(share, top string) error {
	st, err := os.Stat(share)
	if err != nil {
		return err
	}
	uid, gid := owner(st)
	if os.Geteuid() != 0 {
		return nil
	}
	return filepath.WalkDir(filepath.Join(share, top), func(p string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, uid, gid))
	})
}

// Move gives all of it other names.
func Move(by Mover, a MovesArgs) (*Moves, error) {
	m := &Moves{}
	for _, from := range sortedMoves() {
		to := guestproto.HeldMoves[from]
		var err error
		if to == "" {
			err = by.Remove(path.Join(a.Dir, from))
		} else {
			err = by.Rename(path.Join(a.Dir, from), path.Join(a.Dir, to))
		}
		if err != nil {
			return nil, fmt.Errorf("move %s: %w", from, err)
		}
		m.Moved++
	}
	return m, nil
}

func sortedMoves() []string {
	var all []string
	for from := range guestproto.HeldMoves {
		all = append(all, from)
	}
	slices.Sort(all)
	return all
}

// Look sees whether what the guest made, and what it wrote, is in what was moved, and nothing at
// the old names.
func Look(share string, a MovesArgs) *Moves {
	dir := filepath.Join(share, filepath.Clean("/"+a.Dir))
	m := &Moves{}
	see := func(name string, err error) {
		c := guestproto.Check{Name: path.Base(a.Dir) + "-" + name, Status: guestproto.StatusPass}
		if err != nil {
			c.Status, c.Detail = guestproto.StatusFail, err.Error()
		}
		m.Checks = append(m.Checks, c)
	}
	content := func(name, want string) error {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil && string(b) != want {
			err = fmt.Errorf("%s holds %q, want %q", name, b, want)
		}
		return pathless(err)
	}
	gone := func(name string) error {
		if Exists(filepath.Join(dir, name)) {
			return fmt.Errorf("there is %s again", name)
		}
		return nil
	}
	for _, d := range guestproto.HeldDirectories {
		err := errors.Join(gone(d), content(guestproto.HeldNow(d)+"/"+guestproto.HeldInside, guestproto.HeldContent))
		if d != guestproto.HeldLower { // an overlay writes elsewhere
			err = errors.Join(err, content(guestproto.HeldNow(d)+"/"+guestproto.HeldMade, guestproto.HeldContent))
		}
		see(d, err)
	}
	for _, f := range guestproto.HeldFiles {
		see(f, content(guestproto.HeldNow(f), guestproto.HeldContent+guestproto.HeldAdded))
	}
	return m
}

// pathless leaves the host's directory out of an error.
func pathless(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return fmt.Errorf("%s %s: %w", p.Op, filepath.Base(filepath.Dir(p.Path))+"/"+filepath.Base(p.Path), p.Err)
	}
	return err
}

func owner(st fs.FileInfo) (uid, gid int) {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, -1
	}
	return int(sys.Uid), int(sys.Gid)
}
