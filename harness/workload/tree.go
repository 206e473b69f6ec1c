package workload

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"virtiofsd/harness/guestproto"
)

func (e *Env) tree(a guestproto.TreeArgs) (guestproto.Tree, error) {
	if a.Files == 0 {
		a.Files = 10_000
	}
	if a.PerDir == 0 {
		a.PerDir = 1000
	}
	r := guestproto.Tree{Files: a.Files, Wrong: []string{}, Seconds: map[string]float64{}}
	p, err := e.place(a.Where, guestproto.CallTree)
	if err != nil {
		return r, err
	}
	wrong := func(format string, args ...any) {
		if len(r.Wrong) < 20 {
			r.Wrong = append(r.Wrong, fmt.Sprintf(format, args...))
		}
	}
	top := filepath.Join(p.dir, "tree")
	dir := func(i int) string { return filepath.Join(top, fmt.Sprintf("dir-%04d", i/a.PerDir)) }
	phase := func(name string, f func(i int) error) (done int) {
		start := time.Now()
		for i := range a.Files {
			if err := f(i); err != nil {
				wrong("%s file %d: %v", name, i, err)
				continue
			}
			done++
			e.progress(name, int64(done), int64(a.Files))
		}
		r.Seconds[name] = time.Since(start).Seconds()
		return done
	}
	oldName := func(i int) string { return fmt.Sprintf("file-%06d", i) }
	newName := func(i int) string { return fmt.Sprintf("renamed-%06d", i) }

	r.Made = phase("make", func(i int) error {
		if i%a.PerDir == 0 {
			if err := os.MkdirAll(dir(i), 0o755); err != nil {
				return err
			}
		}
		return os.WriteFile(filepath.Join(dir(i), oldName(i)), []byte(oldName(i)), 0o644)
	})
	r.Listed = e.list(top, a, "list", oldName, wrong, r.Seconds)
	r.Renamed = phase("rename", func(i int) error {
		// Every other file moves to the next directory.
		to := dir(i)
		if i%2 == 1 {
			to = dir((i + a.PerDir) % a.Files)
		}
		return os.Rename(filepath.Join(dir(i), oldName(i)), filepath.Join(to, newName(i)))
	})
	if err := dropCaches(); err != nil && !a.Local {
		return r, err
	}
	r.ListedAfter = e.list(top, a, "list-after", newName, wrong, r.Seconds)
	if a.Keep {
		r.Left = r.ListedAfter
		return r, nil
	}
	r.Removed = phase("remove", func(i int) error {
		from := dir(i)
		if i%2 == 1 {
			from = dir((i + a.PerDir) % a.Files)
		}
		return os.Remove(filepath.Join(from, newName(i)))
	})
	dirs, err := os.ReadDir(top)
	if err != nil {
		wrong("list %s at the end: %v", top, err)
	}
	for _, d := range dirs {
		if err := os.Remove(filepath.Join(top, d.Name())); err != nil {
			r.Left++
			wrong("remove directory %s: %v", d.Name(), err)
		}
	}
	if err := os.Remove(top); err != nil {
		wrong("remove %s: %v", top, err)
	}
	return r, nil
}

// list counts the expected names and reports missing, double and foreign ones, and wrong sizes.
func (e *Env) list(top string, a guestproto.TreeArgs, name string, want func(int) string, wrong func(string, ...any), seconds map[string]float64) int {
	start := time.Now()
	defer func() { seconds[name] = time.Since(start).Seconds() }()
	expected := make(map[string]bool, a.Files)
	for i := range a.Files {
		expected[want(i)] = true
	}
	dirs, err := os.ReadDir(top)
	if err != nil {
		wrong("%s: %v", name, err)
	}
	seen := 0
	for _, d := range dirs {
		files, err := os.ReadDir(filepath.Join(top, d.Name()))
		if err != nil {
			wrong("%s: %v", name, err)
		}
		for _, f := range files {
			if !expected[f.Name()] {
				wrong("%s: %s/%s is foreign or there twice", name, d.Name(), f.Name())
				continue
			}
			delete(expected, f.Name())
			seen++
			if st, err := f.Info(); err != nil || st.Size() != int64(len("file-000000")) {
				wrong("%s: %s/%s: size of %v, error %v", name, d.Name(), f.Name(), st, err)
			}
			e.progress(name, int64(seen), int64(a.Files))
		}
	}
	for n := range expected {
		wrong("%s: %s is missing", name, n)
	}
	return seen
}
