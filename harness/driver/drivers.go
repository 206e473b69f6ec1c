package driver

import (
	"path/filepath"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/winfs"
)

var driverCases = []Case{
	{"windows-driver", "mounts the share as Windows' driver does, lists it, and makes, opens, writes, reads, renames and deletes in it", windows},
}

func windows(e *env) error {
	socket := filepath.Join(e.dir, "s")
	argv, err := e.daemon.Argv(frontend.Options{Share: e.share, Socket: socket})
	if err != nil {
		return err
	}
	f, err := e.connect(argv, socket)
	e.check("starts", err)
	if err != nil {
		return nil
	}
	for _, c := range winfs.Replay(f) { // it opens the session itself
		c.Name = e.name + "-" + c.Name
		e.checks = append(e.checks, c)
	}
	return nil
}
