package report

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/probe"
	"virtiofsd/harness/scenario"
)

func TestPictureShowsWhatWasMeasured(t *testing.T) {
	host := map[string]string{"mnt": "mnt:[1]", "pid": "pid:[1]", "net": "net:[1]", "user": "user:[1]", "ipc": "ipc:[1]", "uts": "uts:[1]", "cgroup": "cgroup:[1]"}
	own := map[string]string{"mnt": "mnt:[2]", "pid": "pid:[2]", "net": "net:[1]", "user": "user:[2]", "ipc": "ipc:[1]", "uts": "uts:[1]", "cgroup": "cgroup:[1]"}
	thread := probe.Thread{UID: [4]int{100000, 100000, 100000, 100000}, CapEff: 1, CapBnd: 1, NoNewPrivs: 1, Seccomp: 2}
	careless := thread
	careless.Groups, careless.Seccomp = []int{4}, 0
	proc := probe.Proc{
		Launcher:  probe.Process{Namespaces: host, Threads: []probe.Thread{{CapEff: 1<<41 - 1}}},
		Processes: []probe.Process{{Namespaces: own, UIDMap: "0 100000 65536", Setgroups: "allow", RootIsDir: "share", CwdIsDir: "share", Threads: []probe.Thread{thread, careless}}},
	}
	s := &scenario.Scenario{ID: "c-<multi>"}
	svg := draw(s, "6.12", proc, probe.Mounts{Mounts: []probe.Mount{{Point: "/", FSType: "ext4", Options: "ro,nosuid"}}}, guestproto.Info{})

	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		_, err := d.Token()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
	}
	assert.Contains(t, svg, "Own namespaces: mount, pid<")
	assert.Contains(t, svg, "Own user namespace")
	assert.Contains(t, svg, "0 100000 65536")
	assert.Contains(t, svg, "supplementary groups: 4", "one thread with a group is enough")
	assert.Contains(t, svg, "system call filter: no", "one thread without the filter is enough")
	assert.Contains(t, svg, "/ ext4 ro,nosuid")
	assert.Contains(t, svg, "c-&lt;multi&gt;")
}
