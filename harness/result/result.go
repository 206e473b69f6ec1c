package result

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
)

// Verdict is what the judge says of one claim in one cell. The zero value is invalid, so that a forgotten verdict is no pass.
type Verdict string

// The verdicts.
const (
	Pass  Verdict = "pass"
	Fail  Verdict = "fail"
	Skip  Verdict = "skip"  // not looked at, for a reason of the closed list SkipWords
	Error Verdict = "error" // the harness or the machine failed: nothing is known of the daemon
)

// Valid reports whether v is one of the verdicts.
func (v Verdict) Valid() bool { return slices.Contains([]Verdict{Pass, Fail, Skip, Error}, v) }

// SkipWord says why a claim was not looked at.
type SkipWord string

// The closed list of reasons.
const (
	SkipInexpressible SkipWord = "inexpressible" // the implementation has no option for what the scenario asks
	SkipNeed          SkipWord = "need-missing"  // the machine lacks something that the scenario needs
	SkipImpl          SkipWord = "impl-missing"  // the implementation is not on this machine
	SkipKernel        SkipWord = "kernel-lacks"  // the guest's kernel cannot do what the claim is about
	SkipNotRun        SkipWord = "not-run"       // the scenario has no step for the claim's probe
	SkipRefused       SkipWord = "refused"       // the daemon refused to start, as the scenario expects: nothing to look at
)

// SkipWords lists the reasons.
func SkipWords() []SkipWord {
	return []SkipWord{SkipInexpressible, SkipNeed, SkipImpl, SkipKernel, SkipNotRun, SkipRefused}
}

// Where says from which side something was seen.
type Where string

// The sides.
const (
	Guest   Where = "guest"
	Host    Where = "host"
	Harness Where = "harness"
)

// Observation is what one probe saw. Facts are the probe's own type; Error is set instead when the probe could not look.
type Observation struct {
	Step  string          `json:"step"`  // the scenario's step, unique in it
	Probe string          `json:"probe"` // guest call or host probe
	Where Where           `json:"where"`
	Facts json.RawMessage `json:"facts,omitempty"`
	Error string          `json:"error,omitempty"`
	Gone  bool            `json:"gone,omitempty"` // the daemon had ended: the host's probe had nothing to look at
	T     float64         `json:"t"`              // seconds since the cell began
}

// CellID names one combination.
type CellID struct {
	Scenario string `json:"scenario"`
	Impl     string `json:"impl"`
	Kernel   string `json:"kernel"`
}

// Dir is the cell's folder within the run's, with slashes.
func (c CellID) Dir() string { return path.Join("cells", c.Scenario, c.Impl, c.Kernel) }

// String is scenario/impl/kernel.
func (c CellID) String() string { return c.Scenario + "/" + c.Impl + "/" + c.Kernel }

// CellStatus says how far a cell came. The zero value is invalid.
type CellStatus string

// The statuses.
const (
	CellRan     CellStatus = "ran"     // the guest ran and every step was tried
	CellRefused CellStatus = "refused" // the daemon ended before it was ready
	CellSkipped CellStatus = "skipped" // not started; Skip says why
	CellBroken  CellStatus = "broken"  // the harness or the machine failed; Reason says how
)

// Cell is what became of one combination.
type Cell struct {
	CellID
	Status  CellStatus `json:"status"`
	Skip    SkipWord   `json:"skip,omitempty"`
	Reason  string     `json:"reason,omitempty"`  // one line: the daemon's last words, or what broke
	Argv    []string   `json:"argv,omitempty"`    // of the daemon, as executed
	Exit    *int       `json:"exit,omitempty"`    // of a daemon that refused
	Seconds float64    `json:"seconds,omitempty"` // the whole cell
	Boot    float64    `json:"boot,omitempty"`    // from QEMU's exec to the agent's hello
}

// Record is one claim judged in one cell.
type Record struct {
	Claim string `json:"claim"`
	CellID
	Verdict  Verdict  `json:"verdict"`
	Skip     SkipWord `json:"skip,omitempty"`
	Expected string   `json:"expected"`           // holds, absent, refused
	Observed string   `json:"observed,omitempty"` // the same words, or empty where nothing is known
	Because  string   `json:"because"`            // one line: the facts that decided
	Known    string   `json:"known,omitempty"`    // a known difference of the implementation explains the failure
	Evidence []string `json:"evidence,omitempty"` // files of the run's folder, steps behind '#'
}

// Bad reports whether the record spoils a run: a failure that nobody knew of, or an error.
func (r Record) Bad() bool { return r.Verdict == Error || r.Verdict == Fail && r.Known == "" }

// Identity is something that took part, pinned.
type Identity struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	SHA256  string `json:"sha256,omitempty"`
	Path    string `json:"path,omitempty"`
	Missing string `json:"missing,omitempty"` // why it could not take part
}

// Run is run.json.
type Run struct {
	ID        string            `json:"id"`
	Started   string            `json:"started"` // RFC 3339, UTC
	Tool      Identity          `json:"tool"`    // vfsmatrix itself
	Host      map[string]string `json:"host"`    // kernel, cpus, memory, qemu, accel …
	Impls     []Identity        `json:"impls"`
	Kernels   []Identity        `json:"kernels"`
	Scenarios []string          `json:"scenarios"`
	// Beside are later runs whose scenarios stand in the folder instead of, or beside, this run's.
	// A scenario is in one of the lists only.
	Beside []Run `json:"beside,omitempty"`
}

// End is the last line of results.jsonl.
type End struct {
	Records int             `json:"records"` // lines before this one
	Cells   int             `json:"cells"`
	Count   map[Verdict]int `json:"count"`
	Known   int             `json:"known"` // failures among them that are known differences
	Seconds float64         `json:"seconds"`
}

// CheckRecord refuses a record that no reader could use.
func CheckRecord(r Record) error {
	switch {
	case !r.Verdict.Valid():
		return fmt.Errorf("record of %s in %s: invalid verdict %q", r.Claim, r.CellID, r.Verdict)
	case r.Claim == "" || r.Scenario == "" || r.Impl == "" || r.Kernel == "":
		return fmt.Errorf("record %+v: claim, scenario, implementation and kernel must be set", r)
	case (r.Verdict == Skip) != (r.Skip != ""):
		return fmt.Errorf("record of %s in %s: a skip has a word, and only a skip", r.Claim, r.CellID)
	case r.Skip != "" && !slices.Contains(SkipWords(), r.Skip):
		return fmt.Errorf("record of %s in %s: unknown skip word %q", r.Claim, r.CellID, r.Skip)
	}
	return nil
}
