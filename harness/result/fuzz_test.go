package result_test

import (
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"virtiofsd/harness/result"
)

// FuzzRun reads a run's folder with any bytes for its files. It is refused, or it has an end that counts what is there and records that
// are whole; written again it is read as the same.
func FuzzRun(f *testing.F) {
	run := []byte(`{"id":"r1","scenarios":["a-01"]}`)
	cell := []byte(`{"scenario":"a-01","impl":"ours","kernel":"6.12","status":"ran"}`)
	obs := []byte(`{"step":"info","probe":"info","where":"guest","facts":{"n":1},"t":1.5}` + "\n")
	record := `{"claim":"start/ready","scenario":"a-01","impl":"ours","kernel":"6.12","verdict":"pass","expected":"holds","because":"b"}`
	end := `{"end":{"records":1,"cells":1,"count":{"pass":1},"known":0,"seconds":1}}`
	f.Add(run, []byte(record+"\n"+end+"\n"), cell, obs)
	f.Add(run, []byte(record+"\n"), cell, obs)
	f.Add(run, []byte(end+"\n"+record+"\n"), cell, obs)
	f.Add(run, []byte(`{"verdict":"skip","skip":"not-run","claim":"c","scenario":"s","impl":"i","kernel":"k"}`+"\n"+`{"end":{"records":1,"cells":1,"count":{"skip":1}}}`), cell, obs)
	f.Add([]byte("{"), []byte("null\n"), []byte("[]"), []byte("\x00"))
	f.Fuzz(func(t *testing.T, run, results, cell, obs []byte) {
		fsys := fstest.MapFS{
			result.RunFile: {Data: run}, result.ResultsFile: {Data: results},
			"cells/a-01/ours/6.12/" + result.CellFile:         {Data: cell},
			"cells/a-01/ours/6.12/" + result.ObservationsFile: {Data: obs},
		}
		s, err := result.Read(fsys)
		if err != nil {
			if s != nil {
				require.ErrorIs(t, err, result.ErrBroken)
				require.Nil(t, s.End, "a broken run has no end that somebody could rely on")
			}
			return
		}
		require.NotNil(t, s.End)
		require.Equal(t, len(s.Records), s.End.Records)
		require.Equal(t, len(s.Cells), s.End.Cells)
		for _, r := range s.Records {
			require.NoError(t, result.CheckRecord(r))
		}
		id := result.CellID{Scenario: "a-01", Impl: "ours", Kernel: "6.12"}
		if len(s.Cells) != 1 || s.Cells[0].CellID != id {
			return
		}
		dir := filepath.Join(t.TempDir(), "run")
		w, err := result.Create(dir, s.Run)
		require.NoError(t, err)
		require.NoError(t, w.Cell(s.Cells[0], s.Observations[id]))
		require.NoError(t, w.Records(s.Records))
		_, err = w.Close(s.End.Seconds)
		require.NoError(t, err)
		again, err := result.Read(os.DirFS(dir))
		require.NoError(t, err)
		require.Equal(t, len(s.Records), len(again.Records))
		for i := range s.Records {
			require.Equal(t, s.Records[i].Verdict, again.Records[i].Verdict)
			require.Equal(t, s.Records[i].CellID, again.Records[i].CellID)
		}
	})
}
