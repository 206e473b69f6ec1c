package workload

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
	"virtiofsd/internal/testenv"
)

// TestMain lets the test program stand in for the agent's helper processes.
func TestMain(m *testing.M) {
	testenv.QuickExits()
	if len(os.Args) > 2 && os.Args[1] == "child" {
		os.Exit(Child(os.Args[2], os.Args[3:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// local is an Env whose local directory is on a file system of the host: the workloads' own control experiment.
func local(t *testing.T) *Env {
	self, err := os.Executable()
	require.NoError(t, err)
	return &Env{LocalDir: t.TempDir(), Self: self, Shares: &Shares{}}
}

func call[F any](t *testing.T, e *Env, name string, args any) F {
	t.Helper()
	raw, err := json.Marshal(args)
	require.NoError(t, err)
	got, err := Run(e, name, raw)
	require.NoError(t, err)
	facts, ok := got.(F)
	require.True(t, ok, "%T", got)
	return facts
}

var here = guestproto.Where{Local: true}

func TestBasicsHoldOnALocalFileSystem(t *testing.T) {
	testenv.Need(t, "root")
	facts := call[guestproto.Basics](t, local(t), guestproto.CallBasics, guestproto.BasicsArgs{Where: here})
	assert.Len(t, facts.Checks, len(Basics()))
	for _, c := range facts.Checks {
		assert.NotEqual(t, guestproto.StatusFail, c.Status, "%s: %s", c.Name, c.Detail)
	}
}

func TestDurabilityHoldsOnALocalFileSystem(t *testing.T) {
	facts := call[guestproto.Durability](t, local(t), guestproto.CallDurability, guestproto.DurabilityArgs{Where: here, FillBytes: 200_000})
	for _, c := range facts.Checks {
		assert.NotEqual(t, guestproto.StatusFail, c.Status, "%s: %s", c.Name, c.Detail)
	}
	assert.GreaterOrEqual(t, facts.Filled, int64(200_000))
	assert.Empty(t, facts.FillErrno)
}

// A check which cannot fail proves nothing: these do wrong things on purpose.
func TestChecksCanFail(t *testing.T) {
	bad := []check{
		{"wrong-content", func(c *checker) { c.file("f", "a"); c.eq(c.read("f"), "b", "content") }},
		{"wrong-errno", func(c *checker) { c.errno(nil, "nothing", 2) }},
		{"panics", func(c *checker) { panic("oh") }},
		{"skips", func(c *checker) { c.skip("not today") }},
	}
	got := runChecks(bad, nil, t.TempDir(), &Env{})
	require.Len(t, got, 4)
	assert.Equal(t, `content: got "a", want "b"`, got[0].Detail)
	assert.Equal(t, "nothing: got success, want ENOENT", got[1].Detail)
	assert.Equal(t, "panic: oh", got[2].Detail)
	assert.Equal(t, guestproto.StatusSkip, got[3].Status)
	for _, c := range got[:3] {
		assert.Equal(t, guestproto.StatusFail, c.Status, c.Name)
	}
	got = runChecks(bad, []string{"no-such"}, t.TempDir(), &Env{})
	require.Len(t, got, 1)
	assert.Equal(t, guestproto.StatusFail, got[0].Status)
}

func TestBigIOHashesWhatIsThere(t *testing.T) {
	e := local(t)
	args := guestproto.BigIOArgs{Where: here, Bytes: 3<<20 + 8, Seed: 5}
	facts := call[guestproto.BigIO](t, e, guestproto.CallBigIO, args)
	assert.Empty(t, facts.Failed)
	assert.Equal(t, facts.WroteSHA256, facts.ReadSHA256)

	path := filepath.Join(e.LocalDir, facts.Path)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	sum := sha256.Sum256(b)
	assert.Equal(t, hex.EncodeToString(sum[:]), facts.WroteSHA256)
	whole := make([]byte, len(b))
	Pattern(whole, 5, 0)
	assert.Equal(t, whole, b, "the host can make the same bytes in one go")

	b[2<<20] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o644))
	args.ReadOnly = true
	again := call[guestproto.BigIO](t, e, guestproto.CallBigIO, args)
	assert.NotEqual(t, facts.ReadSHA256, again.ReadSHA256)
}

func TestReadonly(t *testing.T) {
	testenv.Need(t, "root")
	e := local(t)
	dir := filepath.Join(e.LocalDir, "ro")
	require.NoError(t, os.Mkdir(dir, 0o755))
	inMemory(t, dir, "size=1m,mode=755")
	require.NoError(t, os.WriteFile(dir+"/file", []byte("text"), 0o644))
	require.NoError(t, os.Chmod(dir+"/file", 0o666))
	require.NoError(t, os.MkdirAll(dir+"/dir/inner", 0o755))
	require.NoError(t, os.Symlink("file", dir+"/link"))
	args := guestproto.ReadonlyArgs{Where: guestproto.Where{Local: true, Dir: "ro"}, Content: "text"}
	status := func() map[string]guestproto.Status {
		all := map[string]guestproto.Status{}
		for _, c := range call[guestproto.Readonly](t, e, guestproto.CallReadonly, args).Checks {
			all[c.Name] = c.Status
			t.Log(c.Name, c.Detail)
		}
		return all
	}
	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	for name, got := range status() {
		assert.Equal(t, guestproto.StatusPass, got, name)
	}
	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT, ""))
	for name, got := range status() {
		if name != "reads" { // after the others, there is nothing left to read
			assert.Equal(t, guestproto.StatusFail, got, "%s of what may be changed", name)
		}
	}
}

func TestTree(t *testing.T) {
	facts := call[guestproto.Tree](t, local(t), guestproto.CallTree, guestproto.TreeArgs{Where: here, Files: 60, PerDir: 20})
	assert.Empty(t, facts.Wrong)
	for what, n := range map[string]int{"made": facts.Made, "listed": facts.Listed, "renamed": facts.Renamed, "listed after": facts.ListedAfter, "removed": facts.Removed} {
		assert.Equal(t, 60, n, what)
	}
	assert.Zero(t, facts.Left)
}

func TestIdentityAgreesWithItself(t *testing.T) {
	testenv.Need(t, "root")
	e := local(t)
	require.NoError(t, os.Chmod(filepath.Dir(e.LocalDir), 0o755))
	require.NoError(t, os.Chmod(e.LocalDir, 0o755))
	// Other users must be able to start the helper, which go test keeps in a private directory.
	b, err := os.ReadFile(e.Self)
	require.NoError(t, err)
	e.Self = filepath.Join(e.LocalDir, "self")
	require.NoError(t, os.WriteFile(e.Self, b, 0o755))
	facts := call[guestproto.Identity](t, e, guestproto.CallIdentity, guestproto.IdentityArgs{Where: here})
	made := 0
	for _, o := range facts.Created {
		assert.True(t, o.Same, "%+v", o)
		if o.Share.Errno == "" {
			made++
		}
		if o.Kind == "file" && o.Parent == "plain" && o.Share.Errno == "" {
			assert.Equal(t, o.As.UID, o.Share.UID)
			assert.Equal(t, o.As.GID, o.Share.GID)
		}
	}
	assert.Greater(t, made, len(facts.Created)/2, "most creations succeed")
}

func TestContainmentSeesAnEscape(t *testing.T) {
	e := local(t)
	dir := filepath.Join(e.LocalDir, guestproto.CallContainment)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	// As if a daemon had followed a link: the host says "link", the share shows the file.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "followed"), []byte("the secret"), 0o644))
	args := guestproto.ContainmentArgs{Where: here, Secret: "the secret", Outside: []string{filepath.Join(e.LocalDir, "elsewhere")}, HostLinks: []string{"followed"}}
	facts := call[guestproto.Containment](t, e, guestproto.CallContainment, args)
	assert.Contains(t, facts.Escaped, "host-followed-readlink")

	args.HostLinks = nil
	facts = call[guestproto.Containment](t, e, guestproto.CallContainment, args)
	assert.Empty(t, facts.Escaped)
	assert.Greater(t, len(facts.Attempts), 50)
}

func TestExec(t *testing.T) {
	facts := call[guestproto.Exec](t, local(t), guestproto.CallExec, guestproto.ExecArgs{Where: here, Argv: []string{"sh", "-c", "cat; echo err >&2; exit 7"}, Stdin: "in"})
	assert.Equal(t, 7, facts.Status)
	assert.Equal(t, "in", facts.Stdout)
	assert.Equal(t, "err\n", facts.Stderr)
}

func TestPosixTestInAChild(t *testing.T) {
	facts := call[guestproto.PosixTest](t, local(t), guestproto.CallPosixTest, guestproto.PosixTestArgs{Where: here, Tests: []string{"FileBasic", "FcntlFlockLocksFile"}})
	require.Len(t, facts.Checks, 2)
	assert.Equal(t, guestproto.StatusPass, facts.Checks[0].Status, facts.Output)
	assert.Equal(t, guestproto.StatusFail, facts.Checks[1].Status, "a test that fails is reported: this one fails on every file system")
	assert.Contains(t, facts.Checks[1].Detail, "EAGAIN")
}

func TestWalk(t *testing.T) {
	e := local(t)
	require.NoError(t, os.MkdirAll(filepath.Join(e.LocalDir, "d"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(e.LocalDir, "d", "f"), []byte("x"), 0o640))
	require.NoError(t, os.Symlink("f", filepath.Join(e.LocalDir, "d", "l")))
	facts := call[guestproto.Walk](t, e, guestproto.CallWalk, guestproto.WalkArgs{Where: here, Hash: true})
	require.Len(t, facts.Entries, 3)
	assert.Equal(t, "d/f", facts.Entries[1].Path)
	assert.Equal(t, "0100640", facts.Entries[1].Mode)
	assert.NotEmpty(t, facts.Entries[1].SHA256)
	assert.Equal(t, "f", facts.Entries[2].Target)
}

func TestRunRefusesWhatItDoesNotKnow(t *testing.T) {
	_, err := Run(local(t), "no-such-call", nil)
	assert.ErrorContains(t, err, "no-such-call")
	_, err = Run(local(t), guestproto.CallTree, json.RawMessage(`{"fils": 3}`))
	assert.ErrorContains(t, err, "fils", "a misspelt argument is an error")
	_, err = Run(local(t), guestproto.CallTree, json.RawMessage(`{"share": "none"}`))
	assert.ErrorContains(t, err, "none")
}
