package passthrough

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/winfs"
	"virtiofsd/internal/fuseabi"
)

// windows hands the requests of Windows' driver to a worker.
type windows struct{ *guest }

func (w windows) Do(r frontend.Request) (frontend.Reply, error) {
	raw := request(w.guest, fuseabi.Opcode(r.Op), r.Node, &none{}, append([]byte(r.Args), r.Data...))
	if r.ExtLen != nil {
		fuseabi.View[fuseabi.InHeader](raw).TotalExtlen = *r.ExtLen
	}
	if r.Op.NoReply() {
		w.raw(raw, 0)
		return frontend.Reply{}, nil
	}
	got := w.raw(raw, fuseabi.OutHeaderSize+r.OutArgs+r.OutData)
	return frontend.Reply{Error: unix.Errno(-int32(binary.LittleEndian.Uint32(got[4:]))), Body: got[fuseabi.OutHeaderSize:]}, nil
}

// A Windows guest mounts the share, lists it, and works in it.
func TestWindowsDriver(t *testing.T) {
	for name, cfg := range map[string]Config{
		"auto": {}, "never": {Cache: CacheNever, InodeFileHandles: HandlesNever, FDBudget: 1},
		"all": {Xattr: true, PosixACL: true, SecurityLabel: true, KillprivV2: true, Writeback: true, AnnounceSubmounts: true, Flock: true, PosixLock: true},
	} {
		t.Run(name, func(t *testing.T) {
			g := mount(t, t.TempDir(), cfg)
			for range 2 {
				checks := winfs.Replay(windows{g})
				assert.Len(t, checks, 15)
				for _, c := range checks {
					assert.Equal(t, guestproto.StatusPass, c.Status, "%s: %s", c.Name, c.Detail)
				}
			}
		})
	}
}
