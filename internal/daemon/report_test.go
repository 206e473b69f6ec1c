package daemon_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/sandbox"
)

// TestReport: what --report-fd tells of the sandbox is what /proc says from outside.
func TestReport(t *testing.T) {
	const maps = " --uid-map=:0:100000:65536: --gid-map=:0:100000:65536:"
	for name, l := range map[string]launcher{
		"A":    {},
		"C":    {as: user(), args: maps},
		"none": {as: user(), args: "--sandbox=none"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			r, w, err := os.Pipe()
			require.NoError(t, err)
			defer r.Close()
			l.args += " --report-fd=3"
			l.fds = []*os.File{w}
			d := h.start(t, l)
			w.Close()
			line, err := bufio.NewReader(r).ReadBytes('\n')
			require.NoError(t, err)
			var s sandbox.State
			require.NoError(t, json.Unmarshal(line, &s))

			pid := d.ServingPID()
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			require.NoError(t, err)
			lines := map[string]string{}
			for line := range strings.Lines(string(status)) {
				k, v, _ := strings.Cut(line, ":")
				lines[k] = strings.TrimSpace(v)
			}
			assert.Equal(t, lines["Seccomp"], fmt.Sprint(s.Thread.Seccomp))
			assert.Equal(t, "2", lines["Seccomp"])
			assert.Equal(t, lines["NoNewPrivs"], fmt.Sprint(s.Thread.NoNewPrivs))
			assert.Equal(t, lines["CapEff"], fmt.Sprintf("%016x", uint64(s.Thread.Effective)))
			assert.Equal(t, lines["CapBnd"], fmt.Sprintf("%016x", uint64(s.Thread.Bounding)))
			assert.Len(t, s.Thread.Groups, len(strings.Fields(lines["Groups"])))
			assert.Equal(t, name == "none", len(s.New) == 0, "%v", s.New)
			for kind, is := range s.Namespaces {
				file := map[string]string{"mount": "mnt", "network": "net"}[kind]
				if file == "" {
					file = kind
				}
				to, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, file))
				require.NoError(t, err)
				assert.Equal(t, to, is, kind)
			}
			assert.NotEmpty(t, s.Namespaces)
			if name != "none" {
				assert.Len(t, s.Mounts, 1, "the share is all there is")
				assert.Equal(t, []string{"lo"}, s.Interfaces, "and it is down in a new network namespace")
			}
		})
	}
}
