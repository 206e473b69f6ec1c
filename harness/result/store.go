package result

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"sync"
)

// Names of files in a run's folder.
const (
	RunFile          = "run.json"
	ResultsFile      = "results.jsonl"
	CellFile         = "cell.json"
	ObservationsFile = "observations.jsonl"
)

// ErrBroken says that a run did not end, or that its files do not fit together.
var ErrBroken = errors.New("the run is broken")

// Writer writes a run's folder. It is safe for concurrent use.
type Writer struct {
	Dir string

	mu      sync.Mutex
	results *os.File
	end     End
}

// Create makes the run's folder and its run.json.
func Create(dir string, run Run) (*Writer, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the run's folder: %w", err)
	}
	if err := WriteJSON(filepath.Join(dir, RunFile), run); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, ResultsFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("make the results: %w", err)
	}
	return &Writer{Dir: dir, results: f, end: End{Count: map[Verdict]int{}}}, nil
}

// CellDir makes and returns a cell's folder.
func (w *Writer) CellDir(id CellID) (string, error) {
	dir := filepath.Join(w.Dir, filepath.FromSlash(id.Dir()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the folder of %s: %w", id, err)
	}
	return dir, nil
}

// Cell writes what became of a cell, with its observations.
func (w *Writer) Cell(c Cell, all []Observation) error {
	dir, err := w.CellDir(c.CellID)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for _, o := range all {
		line, err := json.Marshal(o)
		if err != nil {
			return fmt.Errorf("encode observation %s of %s: %w", o.Step, c.CellID, err)
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	if err := os.WriteFile(filepath.Join(dir, ObservationsFile), b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write the observations of %s: %w", c.CellID, err)
	}
	w.mu.Lock()
	w.end.Cells++
	w.mu.Unlock()
	return WriteJSON(filepath.Join(dir, CellFile), c)
}

// Records appends judged claims.
func (w *Writer) Records(all []Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range all {
		if err := CheckRecord(r); err != nil {
			return err
		}
		if err := appendJSON(w.results, r); err != nil {
			return err
		}
		w.end.Records++
		w.end.Count[r.Verdict]++
		if r.Verdict == Fail && r.Known != "" {
			w.end.Known++
		}
	}
	return nil
}

// Close writes the End record and returns it. Without Close, a run is broken.
func (w *Writer) Close(seconds float64) (End, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end.Seconds = seconds
	if err := appendJSON(w.results, map[string]End{"end": w.end}); err != nil {
		return w.end, err
	}
	if err := errors.Join(w.results.Sync(), w.results.Close()); err != nil {
		return w.end, fmt.Errorf("finish the results: %w", err)
	}
	return w.end, nil
}

func appendJSON(f *os.File, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode a result: %w", err)
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("write a result: %w", err)
	}
	return nil
}

// WriteJSON writes an indented JSON file.
func WriteJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(name), err)
	}
	if err := os.WriteFile(name, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(name), err)
	}
	return nil
}

// Stored is a run that was read back.
type Stored struct {
	Run
	Cells        []Cell // sorted by scenario, implementation, kernel
	Records      []Record
	Observations map[CellID][]Observation
	End          *End // nil for a broken run
}

// Read reads a run's folder. Of a broken run it returns what is there and an error that wraps ErrBroken.
func Read(fsys fs.FS) (*Stored, error) {
	s := &Stored{Observations: map[CellID][]Observation{}}
	b, err := fs.ReadFile(fsys, RunFile)
	if err != nil {
		return nil, fmt.Errorf("read the run: %w", err)
	}
	if err := json.Unmarshal(b, &s.Run); err != nil {
		return nil, fmt.Errorf("read %s: %w", RunFile, err)
	}
	if err := s.readCells(fsys); err != nil {
		return nil, err
	}
	if err := s.readResults(fsys); err != nil {
		return s, err
	}
	return s, nil
}

func (s *Stored) readCells(fsys fs.FS) error {
	names, err := fs.Glob(fsys, path.Join("cells", "*", "*", "*", CellFile))
	if err != nil {
		return fmt.Errorf("list the cells: %w", err)
	}
	for _, name := range names {
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return fmt.Errorf("read a cell: %w", err)
		}
		var c Cell
		if err := json.Unmarshal(b, &c); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		s.Cells = append(s.Cells, c)
		err = eachLine(fsys, path.Join(path.Dir(name), ObservationsFile), func(line []byte) error {
			var o Observation
			if err := json.Unmarshal(line, &o); err != nil {
				return err
			}
			s.Observations[c.CellID] = append(s.Observations[c.CellID], o)
			return nil
		})
		if err != nil {
			return err
		}
	}
	sort.Slice(s.Cells, func(i, j int) bool { return s.Cells[i].String() < s.Cells[j].String() })
	return nil
}

func (s *Stored) readResults(fsys fs.FS) error {
	err := eachLine(fsys, ResultsFile, func(line []byte) error {
		if s.End != nil {
			return errors.New("lines behind the end record")
		}
		var v struct {
			End *End `json:"end"`
			Record
		}
		if err := json.Unmarshal(line, &v); err != nil {
			return err
		}
		if v.End != nil {
			s.End = v.End
			return nil
		}
		if err := CheckRecord(v.Record); err != nil {
			return err
		}
		s.Records = append(s.Records, v.Record)
		return nil
	})
	switch {
	case err != nil:
		s.End = nil
		return fmt.Errorf("%w: %w", ErrBroken, err)
	case s.End == nil:
		return fmt.Errorf("%w: %s has no end record", ErrBroken, ResultsFile)
	case s.End.Records != len(s.Records) || s.End.Cells != len(s.Cells):
		end := s.End
		s.End = nil
		return fmt.Errorf("%w: the end record counts %d records and %d cells, there are %d and %d", ErrBroken, end.Records, end.Cells, len(s.Records), len(s.Cells))
	}
	count := map[Verdict]int{}
	for _, r := range s.Records {
		count[r.Verdict]++
	}
	for _, v := range []Verdict{Pass, Fail, Skip, Error} {
		if end := s.End; end.Count[v] != count[v] {
			s.End = nil
			return fmt.Errorf("%w: the end record counts %d %s, there are %d", ErrBroken, end.Count[v], v, count[v])
		}
	}
	return nil
}

func eachLine(fsys fs.FS, name string, f func([]byte) error) error {
	file, err := fsys.Open(name)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	defer file.Close()
	r := bufio.NewReader(file)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			if err := f(line); err != nil {
				return fmt.Errorf("read %s line %d: %w", name, n, err)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
}
