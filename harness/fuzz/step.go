package fuzz

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
)

// Step is one thing that the guest, or the host under it, does. Numbers are indices modulo what is there; what a field means is the
// operation's matter (see valid.go and hostile.go).
type Step struct {
	Do    string `json:"do"`
	Queue int    `json:"queue,omitempty"` // request queue
	Node  int    `json:"node,omitempty"`  // of the nodes that the guest knows, the root first
	Other int    `json:"other,omitempty"` // a second node
	File  int    `json:"file,omitempty"`  // of the open files, or of the open directories
	Name  string `json:"name,omitempty"`
	To    string `json:"to,omitempty"`
	User  uint32 `json:"user,omitempty"` // uid and gid of the caller
	Mode  uint32 `json:"mode,omitempty"`
	Flags uint32 `json:"flags,omitempty"`
	Off   uint64 `json:"off,omitempty"`
	Size  uint32 `json:"size,omitempty"`
	Cut   uint64 `json:"cut,omitempty"` // how the request is cut into descriptors; 0 is as Linux does
	Seed  uint64 `json:"seed,omitempty"`
}

// Head is the first line of a replay file.
type Head struct {
	Replay  int    `json:"replay"` // the format's version, 1
	Sandbox string `json:"sandbox"`
	Daemon  string `json:"daemon,omitempty"`  // on which something was found …
	Finding string `json:"finding,omitempty"` // … and what
	Detail  string `json:"detail,omitempty"`
	Seed    uint64 `json:"seed,omitempty"` // of the run, for the record: the steps are all that counts
}

// Replay is a session that can be run again.
type Replay struct {
	Head
	Steps []Step
}

// Write writes the file: the head, then a step a line.
func (r Replay) Write(w io.Writer) error {
	e := json.NewEncoder(w)
	r.Head.Replay = 1
	if err := e.Encode(r.Head); err != nil {
		return fmt.Errorf("write the replay: %w", err)
	}
	for _, s := range r.Steps {
		if err := e.Encode(s); err != nil {
			return fmt.Errorf("write the replay: %w", err)
		}
	}
	return nil
}

// maxSteps bounds a replay file.
const maxSteps = 100_000

// Read reads a replay file. Unknown operations and unknown fields are errors.
func Read(r io.Reader) (Replay, error) {
	var out Replay
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for line := 1; s.Scan(); line++ {
		b := bytes.TrimSpace(s.Bytes())
		if len(b) == 0 {
			continue
		}
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if out.Head.Replay == 0 {
			if err := d.Decode(&out.Head); err != nil {
				return out, fmt.Errorf("replay line %d: %w", line, err)
			}
			if out.Head.Replay != 1 {
				return out, fmt.Errorf("replay line %d: version %d is not 1; it was written by another vfsmatrix", line, out.Head.Replay)
			}
			continue
		}
		var st Step
		if err := d.Decode(&st); err != nil {
			return out, fmt.Errorf("replay line %d: %w", line, err)
		}
		if operations[st.Do].run == nil {
			return out, fmt.Errorf("replay line %d: unknown operation %q", line, st.Do)
		}
		if len(out.Steps) == maxSteps {
			return out, fmt.Errorf("replay line %d: more than %d steps", line, maxSteps)
		}
		out.Steps = append(out.Steps, st)
	}
	if err := s.Err(); err != nil {
		return out, fmt.Errorf("read the replay: %w", err)
	}
	if out.Head.Replay == 0 {
		return out, errors.New("the replay is empty")
	}
	return out, nil
}

// operation is what a step can do.
type operation struct {
	weight int  // how often it is drawn
	breaks bool // it breaks a rule: its outcome has no model
	run    func(*session, Step) *Finding
}

var names = []string{"a", "b", "c", "d", "e", "f"}

// Generate draws a session of n steps. mute names operations to leave out.
func Generate(rng *rand.Rand, n int, mute map[string]bool) []Step {
	type entry struct {
		name string
		op   operation
	}
	var all []entry
	total := 0
	for _, name := range operationNames() {
		if op := operations[name]; !mute[name] {
			all = append(all, entry{name, op})
			total += op.weight
		}
	}
	name := func() string { return names[rng.IntN(len(names))] }
	steps := make([]Step, n)
	for i := range steps {
		at := rng.IntN(total)
		k := 0
		for ; at >= all[k].op.weight; k++ {
			at -= all[k].op.weight
		}
		s := Step{Do: all[k].name, Queue: rng.IntN(4), Node: rng.IntN(64), Other: rng.IntN(64), File: rng.IntN(64), Name: name(), To: name(), Seed: rng.Uint64()}
		if rng.IntN(4) == 0 {
			s.Cut = 1 + rng.Uint64N(1000)
		}
		if rng.IntN(4) == 0 {
			s.User = 1000
		}
		s.Mode = []uint32{0o777, 0o644, 0o755, 0o600, 0o711, 0}[rng.IntN(6)]
		s.Flags = rng.Uint32N(8)
		s.Off = rng.Uint64N(1 << uint(4+rng.IntN(13)))
		s.Size = rng.Uint32N(1 << uint(1+rng.IntN(13)))
		steps[i] = s
	}
	return steps
}
