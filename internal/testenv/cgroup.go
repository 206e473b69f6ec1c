package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// Cgroup makes a cgroup in which there may be so many threads, and returns its directory. It needs
// "pids".
func Cgroup(t testing.TB, most int) string {
	t.Helper()
	Need(t, "pids")
	dir, err := makeCgroup()
	if err == nil {
		t.Cleanup(func() {
			for range 100 { // what was in it may be about to end
				if os.Remove(dir) == nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
		err = os.WriteFile(filepath.Join(dir, "pids.max"), []byte(strconv.Itoa(most)), 0)
	}
	if err != nil {
		t.Fatalf("testenv: make a cgroup: %v", err)
	}
	return dir
}

// cgroups counts those made by this process.
var cgroups int

func makeCgroup() (string, error) {
	var errs error
	for _, top := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(top, "cgroup.procs")); err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		_ = os.WriteFile(filepath.Join(top, "cgroup.subtree_control"), []byte("+pids"), 0) // version 1 has no such file
		cgroups++
		dir := filepath.Join(top, fmt.Sprintf("virtiofsd-test-%d-%d", os.Getpid(), cgroups))
		if err := os.Mkdir(dir, 0o755); err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "pids.max")); err == nil {
			return dir, nil
		}
		errs = errors.Join(errs, fmt.Errorf("%s has no pids.max", dir), os.Remove(dir))
	}
	return "", errs
}

func probePids() error {
	dir, err := makeCgroup()
	if err != nil {
		return err
	}
	return os.Remove(dir)
}
