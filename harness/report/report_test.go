package report_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/report"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
)

const root = "../.."

// world is a small tree with one scenario, two claims and a peer that differs in one of them.
type world struct {
	claims    []claim.Claim
	areas     []claim.Area
	scenarios []*scenario.Scenario
	known     []scenario.Known
	root      string
}

const claimsTOML = `area = "box"
title = "Box"
about = "What is in the box."

[[claim]]
id = "box/root"
must = "The root MUST be the share | nothing else."
why = "It is a wall."
source = ["chroot(2)"]
probe = ["proc"]
judge = "root-is-share"

[[claim]]
id = "box/user"
must = "There MUST be a user namespace."
why = "It is another wall."
source = ["user_namespaces(7)"]
probe = ["proc"]
judge = "namespaces"
of = ["user"]
`

const scenarioTOML = `title = "Root in a box"
use_case = "A"
why = "For tests."
needs = ["root"]
kernels = ["6.1", "6.12"]

[launch]
as = "root"

[options]
sandbox = "namespace"

[[step]]
probe = "proc"

[[expect]]
claim = "box/root"
outcome = "holds"
because = "pivot_root"

[[expect]]
claim = "box/user"
outcome = "absent"
because = "root needs none"
`

const knownTOML = `[[known]]
claim = "box/root"
impl = "c"
scenario = "a-box"
because = "it stays where it was"
measured = "7.2"
`

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{root: t.TempDir()}
	for name, text := range map[string]string{
		"scenarios/claims/box.toml": claimsTOML, "scenarios/a-box.toml": scenarioTOML, "scenarios/known-differences.toml": knownTOML,
	} {
		file := filepath.Join(w.root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	}
	tree := os.DirFS(w.root)
	var err error
	w.claims, err = claim.Load(tree, "scenarios/claims")
	require.NoError(t, err)
	w.areas, err = claim.LoadAreas(tree, "scenarios/claims")
	require.NoError(t, err)
	w.scenarios, err = scenario.Load(tree, "scenarios", w.claims)
	require.NoError(t, err)
	w.known, err = scenario.LoadKnown(tree, "scenarios", w.claims)
	require.NoError(t, err)
	return w
}

// facts of the probe proc: where the root is, and which user namespace.
func facts(root, user string) json.RawMessage {
	return json.RawMessage(`{"launcher":{"namespaces":{"user":"user:[1]"}},"processes":[{"root":"/tmp/vfsmatrix-123/share","exe":"/data/tree/bin/virtiofsd",` +
		`"root_is":"` + root + `","cwd_is":"share","namespaces":{"user":"` + user + `"},"threads":[{"cap_bnd":18446744073709551615}]}],"serving":0}`)
}

// store writes a run of the world into a folder. change may alter a cell's facts and records before they are written.
func (w world) store(t *testing.T, change func(result.CellID, *json.RawMessage, []result.Record)) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "20260101T000000Z-test")
	sum := strings.Repeat("a", 64)
	out, err := result.Create(dir, result.Run{
		ID: "20260101T000000Z-test", Started: "2026-01-01T00:00:00Z", Host: map[string]string{"kernel": "6.18", "accel": "tcg"},
		Impls: []result.Identity{
			{Name: "ours", Version: "virtiofsd 0.1 (go1.26)", SHA256: sum, Path: "/data/tree/bin/virtiofsd"},
			{Name: "c", Version: "virtiofsd version 7.2.22 (Debian)", SHA256: sum, Path: "/usr/lib/qemu/virtiofsd"},
		},
		Kernels: []result.Identity{{Name: "6.1", Version: "6.1.170", SHA256: sum, Path: "/data/tree/vm-images/out/6.1/vmlinuz"}},
	})
	require.NoError(t, err)
	for _, i := range []string{"ours", "c"} {
		for _, k := range []string{"6.12", "6.1"} { // not in the order of pages
			id := result.CellID{Scenario: "a-box", Impl: i, Kernel: k}
			cell := result.Cell{CellID: id, Status: result.CellRan, Argv: []string{"/data/tree/bin/virtiofsd", "--shared-dir=/tmp/vfsmatrix-123/share", "--socket-path=/tmp/vfsmatrix-123/run/vhost.sock"}}
			seen := facts("share", "user:[1]")
			evidence := []string{id.Dir() + "/observations.jsonl#proc"}
			records := []result.Record{
				{Claim: "box/user", CellID: id, Verdict: result.Pass, Expected: "absent", Observed: "absent", Because: "user namespace is the launcher's", Evidence: evidence},
				{Claim: "box/root", CellID: id, Verdict: result.Pass, Expected: "holds", Observed: "holds", Because: "root is the share's", Evidence: evidence},
			}
			if i == "c" {
				seen = facts("host", "user:[1]")
				records[1].Verdict, records[1].Observed, records[1].Because, records[1].Known = result.Fail, "violated", "root is the host's", "it stays where it was"
			}
			if change != nil {
				change(id, &seen, records)
			}
			require.NoError(t, out.Cell(cell, []result.Observation{
				{Step: "hello", Probe: "hello", Where: result.Guest, Facts: json.RawMessage(`{"release":"` + k + `","kernel_log":["long"]}`), T: 3.14159},
				{Step: "proc", Probe: "proc", Where: result.Host, Facts: seen, T: 4},
			}))
			require.NoError(t, out.Records(records))
		}
	}
	_, err = out.Close(12)
	require.NoError(t, err)
	return dir
}

func read(t *testing.T, dir string) *result.Stored {
	t.Helper()
	run, err := result.Read(os.DirFS(dir))
	require.NoError(t, err)
	return run
}

func table(t *testing.T, run *result.Stored, color bool) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, report.Table(&b, run, color))
	return b.String()
}

func TestTableCountsAndListsSurprises(t *testing.T) {
	w := newWorld(t)
	text := table(t, read(t, w.store(t, nil)), false)
	assert.Regexp(t, `a-box\s+│ 6\.1 \s+│ 2 pass\s+│ 1 pass 1 known`, text)
	assert.Less(t, strings.Index(text, "│ 6.1 "), strings.Index(text, "│ 6.12"), "kernels are in the order of versions")
	assert.Contains(t, text, "no surprises")
	assert.Contains(t, text, "known differences (2):\n  c: it stays where it was (box/root)")
	assert.NotContains(t, text, "\x1b[")

	text = table(t, read(t, w.store(t, func(id result.CellID, _ *json.RawMessage, records []result.Record) {
		if id.Impl == "ours" {
			records[0].Verdict, records[0].Observed, records[0].Because = result.Fail, "holds", "holds, though"
		}
	})), true)
	assert.Contains(t, text, "surprises (2):")
	assert.Contains(t, text, "box/user, ours, a-box on 6.1, 6.12: holds, though")
	assert.Contains(t, text, "\x1b[31m1 fail\x1b[0m")
}

func TestTableOfSkippedCellsSpeaksOfNoSurprises(t *testing.T) {
	text := table(t, read(t, newWorld(t).store(t, func(_ result.CellID, _ *json.RawMessage, records []result.Record) {
		for i := range records {
			records[i].Verdict, records[i].Skip = result.Skip, result.SkipNeed
		}
	})), false)
	assert.NotContains(t, text, "surprises")
}

func TestTableSaysThatARunIsBroken(t *testing.T) {
	run := read(t, newWorld(t).store(t, nil))
	run.End = nil
	assert.Contains(t, table(t, run, false), "the run is broken")
}

func TestPageIsComplete(t *testing.T) {
	w := newWorld(t)
	pages, err := report.Page(read(t, w.store(t, nil)), w.claims, w.areas, w.scenarios, w.known)
	require.NoError(t, err)
	require.Len(t, pages, 2)
	assert.Contains(t, string(pages["report.md"]), "root is the host's")
	html := string(pages["report.html"])
	assert.Contains(t, html, `href="results.jsonl#L`)
	assert.NotRegexp(t, `(src|href)="(https?:)?//`, html, "the page needs nothing from elsewhere")
}

func TestDocsWithoutEvidenceSayNothingIsShown(t *testing.T) {
	w := newWorld(t)
	pages, err := report.Docs(w.root)
	require.NoError(t, err)
	page := string(pages["docs/generated/scenarios/a-box.md"])
	assert.Contains(t, page, "Not measured yet")
	assert.Contains(t, page, "virtiofsd --socket-path=/run/vm1-fs.sock --shared-dir=/srv/share --sandbox=namespace")
	assert.Contains(t, page, `<a id="box-root"></a>`)
	assert.NotContains(t, page, "✓ [")
	assert.Contains(t, string(pages["docs/generated/claims.md"]), `share | nothing else`)
}

func TestDocsFollowTheEvidence(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, report.Adopt(w.store(t, nil), w.root))
	require.NoError(t, report.Write(w.root))
	require.NoError(t, report.Check(w.root))
	pages, err := report.Docs(w.root)
	require.NoError(t, err)
	page := string(pages["docs/generated/scenarios/a-box.md"])
	assert.Regexp(t, `✓ \[6\.1\]\(\.\./\.\./evidence/results\.jsonl#L\d+\) \[6\.12\]`, page)
	assert.Contains(t, page, "≠")
	again, err := report.Docs(w.root)
	require.NoError(t, err)
	assert.Equal(t, pages, again)

	// The stored records do not count: they are judged anew, and the evidence can be adopted again.
	require.NoError(t, report.Adopt(w.store(t, func(_ result.CellID, _ *json.RawMessage, records []result.Record) { records[0].Expected = "holds" }), w.root))
	require.NoError(t, report.Check(w.root))
	require.NoError(t, report.Adopt(filepath.Join(w.root, "docs/evidence"), w.root))
	require.NoError(t, report.Check(w.root))

	// Another outcome is another page, and the check says which.
	require.NoError(t, report.Adopt(w.store(t, func(id result.CellID, seen *json.RawMessage, _ []result.Record) {
		if id.Impl == "ours" && id.Kernel == "6.12" {
			*seen = facts("host", "user:[1]")
		}
	}), w.root))
	err = report.Check(w.root)
	require.Error(t, err)
	assert.ErrorContains(t, err, "docs/generated/scenarios/a-box.md differs from line")
	assert.ErrorContains(t, err, "make fix-docs")

	// A record that was judged against another expectation proves nothing.
	text := strings.Replace(scenarioTOML, `outcome = "holds"`, "outcome = \"refused\"\nsays = \"no\"", 1)
	text = strings.Replace(text, `outcome = "absent"`, `outcome = "holds"`, 1)
	require.NoError(t, os.WriteFile(filepath.Join(w.root, "scenarios/a-box.toml"), []byte(text), 0o644))
	pages, err = report.Docs(w.root)
	require.NoError(t, err)
	assert.NotContains(t, string(pages["docs/generated/scenarios/a-box.md"]), "results.jsonl")
}

func TestWriteRemovesWhatDoesNotBelong(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, report.Write(w.root))
	stray := filepath.Join(w.root, "docs/generated/scenarios/z-gone.md")
	require.NoError(t, os.WriteFile(stray, []byte("old"), 0o644))
	others := filepath.Join(w.root, "docs/generated/opcodes.md")
	require.NoError(t, os.WriteFile(others, []byte("another test's"), 0o644))
	require.ErrorContains(t, report.Check(w.root), "z-gone.md does not belong")
	require.NoError(t, report.Write(w.root))
	require.NoError(t, report.Check(w.root))
	assert.NoFileExists(t, stray)
	assert.FileExists(t, others)
}

func TestAdoptLeavesNoPathOfTheMachine(t *testing.T) {
	w := newWorld(t)
	dir := w.store(t, func(_ result.CellID, seen *json.RawMessage, _ []result.Record) {
		*seen = facts("/root/secret/key (ext4), /mnt/disk/a and the guest's /mnt/share/b", "user:[1]")
	})
	require.NoError(t, report.Adopt(dir, w.root))
	evidence := filepath.Join(w.root, "docs/evidence")
	err := filepath.WalkDir(evidence, func(name string, d os.DirEntry, err error) error {
		require.NoError(t, err)
		if !d.IsDir() {
			b, err := os.ReadFile(name)
			require.NoError(t, err)
			assert.NotRegexp(t, `/data/|/tmp/|/root/`, string(b), name)
		}
		return nil
	})
	require.NoError(t, err)
	run := read(t, evidence)
	assert.Equal(t, "box/root", run.Records[0].Claim)
	assert.Contains(t, run.Records[0].Because, "{path} (ext4), {path} and the guest's /mnt/share/b")
	assert.Equal(t, []string{"bin/virtiofsd", "--shared-dir={share}", "--socket-path={socket}"}, run.Cells[0].Argv)
	obs := run.Observations[run.Cells[0].CellID]
	require.Len(t, obs, 2)
	assert.NotContains(t, string(obs[0].Facts), "long", "what no rule reads is left out")
	assert.Contains(t, string(obs[1].Facts), "18446744073709551615", "no bit of a capability set is lost")
	assert.Equal(t, "/usr/lib/qemu/virtiofsd", run.Impls[1].Path)
}

func TestAdoptKeepsWhatIsMeasuredApart(t *testing.T) {
	w := newWorld(t)
	evidence := filepath.Join(w.root, "docs/evidence")
	require.NoError(t, report.Adopt(w.store(t, nil), w.root))
	for _, name := range []string{"bench.json", "bench-asleep.json", "bench-guest.json", "selftest.json", "mutants.json"} {
		require.NoError(t, os.WriteFile(filepath.Join(evidence, name), []byte(name), 0o644))
	}
	require.NoError(t, report.Adopt(w.store(t, nil), w.root))
	for _, name := range []string{"bench.json", "bench-asleep.json", "bench-guest.json", "selftest.json", "mutants.json"} {
		b, err := os.ReadFile(filepath.Join(evidence, name))
		require.NoError(t, err)
		assert.Equal(t, name, string(b))
	}
}

// later is a run of another scenario by another build: a stored one, renamed.
func (w world) later(t *testing.T, id string) string {
	t.Helper()
	from := w.store(t, nil)
	into := filepath.Join(t.TempDir(), id)
	words := strings.NewReplacer("a-box", "a-crate", "20260101T000000Z-test", id, strings.Repeat("a", 64), strings.Repeat("b", 64), `"scenarios": null`, `"scenarios": ["a-crate"]`)
	require.NoError(t, filepath.WalkDir(from, func(name string, d os.DirEntry, err error) error {
		require.NoError(t, err)
		rel, err := filepath.Rel(from, name)
		require.NoError(t, err)
		to := filepath.Join(into, words.Replace(rel))
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		return os.WriteFile(to, []byte(words.Replace(string(b))), 0o644)
	}))
	return into
}

func TestAdoptBesideKeepsOtherScenarios(t *testing.T) {
	w := newWorld(t)
	evidence := filepath.Join(w.root, "docs/evidence")
	require.NoError(t, report.Adopt(w.store(t, nil), w.root))
	require.NoError(t, os.WriteFile(filepath.Join(evidence, "bench.json"), []byte("bench"), 0o644))
	before := read(t, evidence)
	require.NoError(t, os.WriteFile(filepath.Join(w.root, "scenarios/a-crate.toml"), []byte(scenarioTOML), 0o644))

	for range 2 { // the second time in the place of the first
		require.NoError(t, report.AdoptBeside(w.later(t, "20260202T000000Z-more"), w.root))
		now := read(t, evidence)
		assert.Len(t, now.Records, 2*len(before.Records))
		assert.Len(t, now.Cells, 2*len(before.Cells))
		assert.Equal(t, before.Run.ID, now.Run.ID)
		require.Len(t, now.Beside, 1)
		assert.Equal(t, "20260202T000000Z-more", now.Beside[0].ID)
		assert.Equal(t, []string{"a-crate"}, now.Beside[0].Scenarios)
		assert.Equal(t, "bin/virtiofsd", now.Beside[0].Impls[0].Path)
		assert.FileExists(t, filepath.Join(evidence, "bench.json"))
	}
	require.NoError(t, os.Remove(filepath.Join(evidence, "bench.json")))
	for _, c := range before.Cells {
		assert.Contains(t, read(t, evidence).Cells, c)
	}

	require.NoError(t, report.Write(w.root))
	require.NoError(t, report.Check(w.root))
	pages, err := report.Docs(w.root)
	require.NoError(t, err)
	assert.Contains(t, string(pages["docs/generated/scenarios/a-crate.md"]), "results.jsonl#L")
	for _, page := range []string{"matrix.md", "matrix.html"} {
		assert.Contains(t, string(pages["docs/generated/"+page]), "Measured later, by run 20260202T000000Z-more: a-crate; with")
		assert.Contains(t, string(pages["docs/generated/"+page]), strings.Repeat("b", 16)+"…")
	}

	// A whole run takes the place of all.
	require.NoError(t, report.Adopt(evidence, w.root))
	assert.Len(t, read(t, evidence).Beside, 1)
	require.NoError(t, report.Adopt(w.store(t, nil), w.root))
	assert.Empty(t, read(t, evidence).Beside)

	assert.ErrorContains(t, report.AdoptBeside(evidence, w.root), "it is the evidence itself")
}

func TestAdoptRefuses(t *testing.T) {
	w := newWorld(t)
	dir := w.store(t, nil)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "results.jsonl"), nil, 0o644))
	assert.ErrorIs(t, report.Adopt(dir, w.root), result.ErrBroken)
}

func TestDocsUpToDate(t *testing.T) {
	assert.NoError(t, report.Check(root))
}
