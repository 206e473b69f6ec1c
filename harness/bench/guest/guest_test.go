package guest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/impl"
	"virtiofsd/internal/testenv"
	vmimages "virtiofsd/vm-images"
)

// fioSays is what fio 3.33 writes of one job, shortened.
const fioSays = `note: a line of warning
{
  "fio version" : "fio-3.33",
  "jobs" : [ {
    "jobname" : "randread-4k", "error" : 0,
    "read" : { "io_bytes" : 66613248, "bw_bytes" : 33306624, "iops" : 8131.5, "runtime" : 2000, "total_ios" : 16263,
      "clat_ns" : { "min" : 1, "percentile" : { "1.000000" : 600, "50.000000" : 87552, "99.000000" : 978944 } } },
    "write" : { "io_bytes" : 0, "bw_bytes" : 0, "iops" : 0.0, "runtime" : 0, "total_ios" : 0, "clat_ns" : { "min" : 0 } }
  } ]
}
`

func TestParseFIO(t *testing.T) {
	want := &FIO{Ops: 16263, Seconds: 2, IOPS: 8131.5, Bytes: 33306624, P50: 87.552, P99: 978.944}
	got, err := parseFIO([]byte(fioSays))
	require.NoError(t, err)
	assert.Equal(t, want, got)

	swapped := strings.NewReplacer(`"read" :`, `"write" :`, `"write" :`, `"read" :`).Replace(fioSays)
	got, err = parseFIO([]byte(swapped))
	require.NoError(t, err)
	assert.Equal(t, want, got, "writes are told of in their own part")

	for name, tc := range map[string]struct{ in, says string }{
		"no JSON": {"fio: engine psync not loadable", "read what fio says"},
		"no job":  {`{"jobs": []}`, "0 jobs"},
		"error":   {strings.Replace(fioSays, `"error" : 0`, `"error" : 5`, 1), "error 5"},
		"nothing": {strings.Replace(fioSays, `"total_ios" : 16263`, `"total_ios" : 0`, 1), "did nothing"},
	} {
		_, err := parseFIO([]byte(tc.in))
		assert.ErrorContains(t, err, tc.says, name)
	}
}

// synthetic is a report of two daemons, the first twice as fast, and of a program that fails with the second.
func synthetic() *Report {
	r := &Report{
		Daemons: []string{"a", "b"}, Rounds: 4, Accel: "kvm", Kernel: "6.12", Versions: map[string]string{"fio": "3.33"},
		Programs: []Program{
			{Name: "fio-randread-4k", What: "reads", Unit: "ops"}, {Name: "fio-read-1m", What: "reads", Unit: "bytes"},
			{Name: "tar-x", What: "tar -x", Unit: "s"}, {Name: "git-status", What: "git status", Unit: "s"},
		},
	}
	for round := range r.Rounds {
		k := 1 + float64(round)/100
		for n, d := range r.Daemons {
			half := float64(n + 1)
			f := FIO{Ops: 1000, Seconds: 1, IOPS: 20000 * k / half, Bytes: 1e9 * k / half, P50: 50, P99: 90}
			status := Sample{Program: "git-status", Daemon: d, Round: round, Seconds: 1, CPU: 1}
			if d == "b" {
				status = Sample{Program: "git-status", Daemon: d, Round: round, Bad: "status 1: no work tree"}
			}
			r.Samples = append(r.Samples,
				Sample{Program: "fio-randread-4k", Daemon: d, Round: round, Seconds: 1, CPU: 0.01 * half, FIO: &f},
				Sample{Program: "fio-read-1m", Daemon: d, Round: round, Seconds: 1, CPU: 0.1, FIO: &f},
				Sample{Program: "tar-x", Daemon: d, Round: round, Seconds: k * half, CPU: 0.2 / half}, status)
		}
	}
	return r
}

func TestTable(t *testing.T) {
	rows := synthetic().Table()
	require.Len(t, rows, 5)
	assert.Equal(t, []string{"program", "a", "a cpu", "b", "b cpu", "a : best other", "cpu : its cpu"}, rows[0])
	assert.Equal(t, []string{"fio-randread-4k", "20.3 k/s, p50 50 µs, p99 90 µs", "10.0 µs/op", "10.2 k/s, p50 50 µs, p99 90 µs", "20.0 µs/op", "2.00 × b (p=0.029)", "0.50"}, rows[1])
	assert.Equal(t, "1015 MB/s, p50 50 µs, p99 90 µs", rows[2][1])
	assert.Equal(t, []string{"tar-x", "1.02 s", "200 ms", "2.03 s", "100 ms", "2.00 × b (p=0.029)", "2.00"}, rows[3], "half the time is twice as good")
	assert.Equal(t, []string{"git-status", "1.00 s", "1000 ms", "status 1: no work tree", "", "-", "-"}, rows[4])

	var out strings.Builder
	r := synthetic()
	r.WriteTable(&out)
	assert.Contains(t, out.String(), "Accelerated by KVM")
	assert.NotContains(t, out.String(), "NaN")
	r.Accel, r.NoKVM = "tcg", "no /dev/kvm"
	assert.Contains(t, r.Method(), "as KVM does not work: no /dev/kvm): the emulated processor is most of what is measured")
	r.Variants, r.Options = map[string]string{"b": "a"}, map[string]string{"b": "--poll-us=0"}
	assert.Equal(t, "-", r.Table()[1][5], "a variant is no peer")
	assert.Contains(t, r.Others(), "`b` is `a` with `--poll-us=0`")
	r.Daemons = r.Daemons[:1]
	assert.Len(t, r.Table()[0], 3, "nobody to compare with")
}

func TestShareIsTheSameEachTime(t *testing.T) {
	dirA, dirB := t.TempDir(), t.TempDir()
	var sums [2]string
	for n, dir := range []string{dirA, dirB} {
		b := &bed{template: dir}
		require.NoError(t, b.makeTemplate(t.Context()))
		out, err := exec.Command("sh", "-c", "cd '"+dir+"' && find tree gone -type f | sort | xargs sha256sum").Output()
		require.NoError(t, err)
		assert.Equal(t, 2*files, strings.Count(string(out), "\n"))
		sums[n] = string(out)
		list, err := exec.Command("tar", "-tf", filepath.Join(dir, "tree.tar")).Output()
		require.NoError(t, err)
		assert.GreaterOrEqual(t, strings.Count(string(list), ".c\n"), files)
	}
	assert.Equal(t, sums[0], sums[1])
}

func TestChosen(t *testing.T) {
	assert.Len(t, Chosen(regexp.MustCompile("^fio-")), 4)
	assert.Len(t, Chosen(nil), len(Programs()))
	names := map[string]bool{}
	for _, p := range Programs() {
		assert.False(t, names[p.Name], p.Name)
		names[p.Name] = true
		assert.Contains(t, []string{"s", "ops", "bytes"}, p.Unit)
	}
}

// TestInGuest runs one program of the guest's own and one that is fetched.
func TestInGuest(t *testing.T) {
	testenv.Need(t, "long", "root", "qemu", "apt")
	bin := t.TempDir()
	require.NoError(t, testenv.Build(bin, "virtiofsd", "vfsguest"))
	caches, err := os.UserCacheDir()
	require.NoError(t, err)
	dirs := vmimages.Dirs{Cache: filepath.Join(caches, "vfsmatrix"), Out: filepath.Join(bin, "out"), Guest: filepath.Join(bin, "vfsguest")}
	images, err := vmimages.Ensure(t.Context(), dirs, []string{"6.12"}, nil)
	require.NoError(t, err)
	ours, err := impl.Find(t.Context(), "ours", impl.Dirs{Bin: bin})
	require.NoError(t, err)
	r, err := Run(t.Context(), Options{Impls: []*impl.Impl{ours}, Rounds: 1, Only: regexp.MustCompile("^(find|git-status)$"), Image: images["6.12"], Cache: dirs})
	require.NoError(t, err)
	require.Len(t, r.Samples, 2)
	for _, s := range r.Samples {
		assert.Empty(t, s.Bad, s.Program)
		assert.Positive(t, s.Seconds, s.Program)
		assert.Positive(t, s.CPU, s.Program)
	}
	assert.Contains(t, []string{"tcg", "kvm"}, r.Accel)
	_, err = json.Marshal(r)
	require.NoError(t, err)
}

func TestADaemonThatDoesNotStartIsTold(t *testing.T) {
	testenv.Need(t, "root")
	none := &impl.Impl{Name: "none", Dialect: impl.DialectOurs, Path: "/bin/false"}
	r, err := Run(t.Context(), Options{Impls: []*impl.Impl{none}, Rounds: 1, Only: regexp.MustCompile("^(find|du)$"), Dir: t.TempDir()})
	assert.ErrorContains(t, err, "daemon ended with status 1", "no guest came up: nothing is known")
	require.Len(t, r.Samples, 2)
	assert.Contains(t, r.Samples[1].Bad, "daemon ended")
}
