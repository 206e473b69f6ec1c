package fuzz

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/testenv"
)

// ours builds the daemon for a test.
func ours(t *testing.T) fe.Daemon {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, testenv.Build(dir, "virtiofsd"))
	return fe.Daemon{Name: "ours", Dialect: "ours", Exec: []string{filepath.Join(dir, "virtiofsd")}}
}

func TestOursWithstandsRandomSessions(t *testing.T) {
	testenv.Need(t, "root")
	sessions := 2 // `vfsmatrix fuzz` does as many as there is time for
	dir := t.TempDir()
	reports, err := Run(t.Context(), Config{Daemons: []fe.Daemon{ours(t)}, Time: time.Minute, Sessions: sessions, Steps: 100, Seed: 1, Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	require.Len(t, reports, 1)
	for _, f := range reports[0].Findings {
		b, _ := os.ReadFile(f.File)
		assert.Fail(t, f.String(), "%s", b)
	}
	assert.Equal(t, sessions, reports[0].Sessions)
	assert.Equal(t, sessions*100, reports[0].Steps)
}

// TestAPeersMistakesAreFound: what QEMU 7.2's daemon is known to die of is found, made small, and found again from the file.
func TestAPeersMistakesAreFound(t *testing.T) {
	testenv.Need(t, "root", "c-daemon")
	d := fe.Daemon{Name: "c", Dialect: "c", Exec: []string{testenv.QEMUVirtiofsd}}
	dir := t.TempDir()
	reports, err := Run(t.Context(), Config{Daemons: []fe.Daemon{d}, Time: time.Minute, Sessions: 1, Steps: 120, Seed: 1, Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	require.NotEmpty(t, reports[0].Findings)
	f := reports[0].Findings[0]
	assert.Equal(t, "died", f.Kind)
	assert.True(t, f.Again)
	assert.Equal(t, 1, f.Left, "one step is enough for it")
	file, err := os.Open(f.File)
	require.NoError(t, err)
	defer file.Close()
	r, err := Read(file)
	require.NoError(t, err)
	found, _, err := RunReplay(t.Context(), d, r)
	require.NoError(t, err)
	require.NotNil(t, found)
	assert.Equal(t, f.Signature(), found.Signature())

	var table bytes.Buffer
	WriteTable(&table, reports)
	assert.Contains(t, table.String(), f.Signature())
}

// TestSessionsFollowTheirSeed: the same seed draws the same, another one something else; what is muted is not drawn.
func TestSessionsFollowTheirSeed(t *testing.T) {
	draw := func(seed uint64, mute map[string]bool) []Step {
		return Generate(rand.New(rand.NewPCG(seed, 1)), 2000, mute)
	}
	assert.Equal(t, draw(1, nil), draw(1, nil))
	assert.NotEqual(t, draw(1, nil), draw(2, nil))
	drawn := map[string]bool{}
	for _, s := range draw(1, nil) {
		drawn[s.Do] = true
	}
	assert.Len(t, drawn, len(operations), "2000 steps draw everything")
	for _, s := range draw(1, map[string]bool{"short-header": true}) {
		assert.NotEqual(t, "short-header", s.Do)
	}
}

// TestMinimiseKeepsWhatIsNeeded works on a daemon that cannot be started, so nothing comes again: then all is kept.
func TestMinimiseKeepsWhatDoesNotComeAgain(t *testing.T) {
	d := fe.Daemon{Name: "none", Dialect: "ours", Exec: []string{"/does/not/exist"}}
	steps := Generate(rand.New(rand.NewPCG(1, 1)), 10, nil)
	small, again := Minimise(context.Background(), d, "none", t.TempDir(), steps, Finding{Kind: "died", Do: "open"}, 10)
	assert.False(t, again)
	assert.Equal(t, steps, small)
}

// TestTheModelSeesDifferences: a share that is not what the model holds is told of.
func TestTheModelSeesDifferences(t *testing.T) {
	dir := t.TempDir()
	m, err := newModel(filepath.Join(dir, "model"))
	require.NoError(t, err)
	defer m.close()
	share := filepath.Join(dir, "share")
	require.NoError(t, os.MkdirAll(filepath.Join(share, "scratch", "not compared"), 0o755))
	require.NoError(t, os.Chmod(share, 0o777))
	assert.Nil(t, m.compare(share))
	for _, name := range []string{"a", "a"} {
		require.NoError(t, os.WriteFile(filepath.Join(share, name), []byte("x"), 0o644))
		f := m.compare(share)
		require.NotNil(t, f)
		assert.Equal(t, "wrong answer", f.Kind)
		assert.Contains(t, f.Detail, "the share has")
	}
	require.NoError(t, os.WriteFile(filepath.Join(m.dir, "a"), []byte("y"), 0o644))
	assert.Contains(t, m.compare(share).Detail, "a mode")
	require.NoError(t, os.WriteFile(filepath.Join(m.dir, "a"), []byte("x"), 0o644))
	assert.Nil(t, m.compare(share))
	require.NoError(t, os.Mkdir(filepath.Join(m.dir, "d"), 0o755))
	assert.Contains(t, m.compare(share).Detail, "lacks")
}

// FuzzReplay: what is read is written and read again to the same.
func FuzzReplay(f *testing.F) {
	f.Add(`{"replay":1,"sandbox":"none"}` + "\n" + `{"do":"short-header","size":3}` + "\n")
	f.Add(`{"replay":2}`)
	f.Add(`{"replay":1}` + "\n\n" + `{"do":"nothing"}`)
	f.Add(`{"replay":1}` + "\n" + `{"do":"open","unknown":1}`)
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Read(strings.NewReader(text))
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		var b bytes.Buffer
		require.NoError(t, r.Write(&b))
		again, err := Read(&b)
		require.NoError(t, err)
		require.Equal(t, r, again)
		rest, err := io.ReadAll(&b)
		require.NoError(t, err)
		require.Empty(t, rest)
	})
}
