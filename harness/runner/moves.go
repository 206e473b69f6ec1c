package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/probe"
)

// moves lays out, moves or looks at what a guest holds.
func (c *cell) moves(ctx context.Context, raw []byte) (*probe.Moves, error) {
	var a probe.MovesArgs
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, err
	}
	switch {
	case a.Do == probe.MovesLay:
		return probe.LayOut(c.share, a)
	case a.Do == probe.MovesLook:
		return probe.Look(c.share, a), nil
	case a.Do != probe.MovesMove || a.By != "" && a.By != probe.ByGuest:
		return nil, fmt.Errorf("do %q by %q: want lay, move or look, by guest or nobody", a.Do, a.By)
	case a.By == "":
		return probe.Move(probe.HostMover{Share: c.share}, a)
	}
	g, leave, err := c.secondGuest(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return probe.Move(g, a)
}

// secondGuest is the driver of another guest on the same share, with a daemon of its own.
func (c *cell) secondGuest(ctx context.Context) (guestMover, func(), error) {
	d, err := c.another(ctx)
	if err != nil {
		return guestMover{}, nil, fmt.Errorf("start a second daemon on the share: %w", err)
	}
	device, err := frontend.Connect(ctx, frontend.Config{Socket: c.anotherSocket()})
	if err != nil {
		d.Kill()
		return guestMover{}, nil, fmt.Errorf("connect to the second daemon: %w", err)
	}
	leave := func() {
		device.Close()
		bound, cancel := context.WithTimeout(ctx, exitIn)
		defer cancel()
		if _, err := d.Wait(bound); err != nil {
			c.Log.Warn("the second daemon does not end", "cell", c.id.String(), "after", exitIn.Round(time.Second))
			d.Kill()
		}
	}
	g := guestMover{frontend.NewFUSE(device)}
	if _, err := g.f.Init(0); err != nil {
		leave()
		return guestMover{}, nil, fmt.Errorf("open a session with the second daemon: %w", err)
	}
	return g, leave, nil
}

// guestMover renames as a guest does: by requests.
type guestMover struct{ f *frontend.FUSE }

// parent looks up the directory of a path, and the name in it, as a kernel does that is to rename
// or remove it.
func (g guestMover) parent(name string) (node uint64, base string, err error) {
	dir, base := path.Split(name)
	node = frontend.RootNode
	if dir = strings.Trim(dir, "/"); dir != "" {
		e, err := g.f.Walk(strings.Split(dir, "/")...)
		if err != nil {
			return 0, "", err
		}
		node = e.Node
	}
	_, err = g.f.Lookup(node, base)
	if errors.Is(err, unix.ENOENT) { // a new name
		err = nil
	}
	return node, base, err
}

// Rename is FUSE_RENAME2, or FUSE_RENAME.
func (g guestMover) Rename(from, to string) error {
	dir, name, err := g.parent(from)
	if err != nil {
		return err
	}
	newDir, newName, err := g.parent(to)
	if err != nil {
		return err
	}
	return g.f.Rename(dir, name, newDir, newName, 0)
}

// Remove is FUSE_UNLINK.
func (g guestMover) Remove(name string) error {
	dir, base, err := g.parent(name)
	if err != nil {
		return err
	}
	return g.f.Unlink(dir, base)
}
