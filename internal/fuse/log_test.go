package fuse_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/fuse"
	"virtiofsd/internal/fuseabi"
)

// A guest can send any of these as often as it likes: whichever it takes, it does not fill the
// host's log, whatever the level of that is.
func TestAGuestDoesNotFillTheLog(t *testing.T) {
	initial := func(major, minor uint32) []byte {
		return encode(fuseabi.OpInit, 0, 1, &fuseabi.InitIn{Major: major, Minor: minor}, nil, nil)
	}
	short := encode(fuseabi.OpGetattr, 1, 2, &fuseabi.GetattrIn{}, nil, nil)
	binary.LittleEndian.PutUint32(short, 41)
	for what, raw := range map[string][]byte{
		"a protocol that is too old": initial(fuseabi.Major, fuseabi.MinMinor-1),
		"another protocol":           initial(fuseabi.Major-1, fuseabi.Minor),
		"new sessions":               initial(fuseabi.Major, fuseabi.Minor),
		"a length that is wrong":     short,
		"half a header":              short[:20],
		"a name that is refused":     encode(fuseabi.OpUnlink, 1, 3, &none{}, []byte("..\x00"), nil),
		"no session":                 encode(fuseabi.OpOpen, 1, 4, &fuseabi.OpenIn{}, nil, nil),
	} {
		t.Run(what, func(t *testing.T) {
			var log bytes.Buffer
			o := &ours{}
			ses := fuse.NewSession(oursFS{o}, fuse.SessionConfig{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
			w, err := ses.NewHandler(1)
			require.NoError(t, err)
			const requests = 1000
			for range requests {
				w.Serve(whole(raw), whole(make([]byte, 256)))
			}
			lines := strings.Count(log.String(), "\n")
			assert.LessOrEqual(t, lines, 17, "16 lines, and one that says that there are no more")
			assert.GreaterOrEqual(t, lines, 2, "the first are of use")
			assert.Equal(t, 1, strings.Count(log.String(), "no more are written"))
			if strings.Contains(log.String(), "malformed request") {
				assert.EqualValues(t, requests, ses.Malformed(), "they are counted all the same")
			}
		})
	}
}

// Windows' driver leaves in the header's last field, which was padding before extensions, whatever
// its stack held there. It negotiates nothing that has extensions, so that is no length of any.
func TestExtensionsAreReadWhereTheyWereNegotiated(t *testing.T) {
	for _, padding := range []uint16{0, 1, 5, 0x7ff, 0xffff} {
		r := newRig(t, 0)
		say(r, fuseabi.OpInit, fuseabi.RootID, &initCompat{Major: 7, Minor: 31, Flags: uint32(fuseabi.DoReaddirplus | fuseabi.MaxPages)}, nil, 64)
		for _, raw := range [][]byte{
			encode(fuseabi.OpLookup, fuseabi.RootID, 5, &none{}, []byte("d\x00"), nil),
			encode(fuseabi.OpStatfs, fuseabi.RootID, 6, &none{}, nil, nil),
			encode(fuseabi.OpMkdir, fuseabi.RootID, 7, &fuseabi.MkdirIn{Mode: 0o755}, []byte("made\x00"), nil),
		} {
			binary.LittleEndian.PutUint16(raw[36:], padding)
			got := r.serve(raw, 256)
			status := int32(binary.LittleEndian.Uint32(got[4:]))
			assert.Zero(t, status, fmt.Sprintf("%v, padding %#x: %v", fuseabi.Opcode(binary.LittleEndian.Uint32(raw[4:])), padding, unix.Errno(-status)))
		}
		r.finish()
	}
}

// initCompat is INIT of 16 bytes, as it was before 7.36.
type initCompat struct {
	fuseabi.InHeader
	Major, Minor, MaxReadAhead, Flags uint32
}
