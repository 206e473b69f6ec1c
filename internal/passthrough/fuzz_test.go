package passthrough

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// FuzzTranslation: the sorted spans answer as the rules do when they are read one after the other.
func FuzzTranslation(f *testing.F) {
	f.Add("map:0:1000:2 forbid-guest:7:1", uint32(7))
	f.Add("squash-guest:0:5:4294967295", uint32(1<<32-1))
	f.Add("host:0:1:1 guest:0:1:1 squash-host:9:0:100", uint32(9))
	f.Add("guest:4294967295:4294967295:1", uint32(1<<32-1))
	f.Add("guest:0:1:0 map:5:4294967290:6", uint32(10))
	f.Fuzz(func(t *testing.T, text string, id uint32) {
		rules := strings.Fields(text)
		tr, err := ParseTranslation(rules)
		if err != nil {
			require.NotContains(t, err.Error(), "\n", "an error is one line")
			return
		}
		if tr == nil {
			require.Empty(t, rules)
			return
		}
		ids := []uint32{id, 0, 1<<32 - 1}
		for _, rule := range rules { // and at each rule's edges
			for _, w := range strings.Split(rule, ":")[1:] {
				n, err := strconv.ParseUint(w, 10, 32)
				require.NoError(t, err)
				ids = append(ids, uint32(n), uint32(n)-1, uint32(n)+1)
			}
		}
		for _, id := range ids {
			for _, side := range []bool{true, false} {
				want, wantErr := id, unix.Errno(0)
				for _, rule := range rules {
					w := strings.Split(rule, ":")
					var n [3]uint32
					for i := range w[1:] {
						v, _ := strconv.ParseUint(w[1+i], 10, 32)
						n[i] = uint32(v)
					}
					from, to, count := n[0], n[1], n[2]
					applies, squash := false, strings.HasPrefix(w[0], "squash")
					switch w[0] {
					case "guest", "squash-guest":
						applies = side
					case "host", "squash-host":
						applies = !side
					case "map":
						applies = true
						if !side {
							from, to = to, from
						}
					case "forbid-guest":
						if side && id >= from && uint64(id) < uint64(from)+uint64(n[1]) {
							want, wantErr = 0, unix.EPERM
						}
						continue
					}
					if applies && id >= from && uint64(id) < uint64(from)+uint64(count) {
						want = to
						if !squash {
							want += id - from
						}
					}
				}
				got, e := tr.ToGuest(id)
				if side {
					got, e = tr.ToHost(id)
				}
				require.Equal(t, wantErr, e, "%v of %d", rules, id)
				require.Equal(t, want, got, "%v of %d, to host %v", rules, id, side)
			}
		}
	})
}

// A file with two names is known by the one that was looked up last; when the guest forgets that one's directory, the file is still there
// for it by the other. Found by vfsmatrix fuzz.
func TestAFileOutlivesTheDirectoryItWasFoundIn(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(dir+"/d", 0o755))
	require.NoError(t, os.WriteFile(dir+"/d/a", []byte("x"), 0o644))
	require.NoError(t, os.Link(dir+"/d/a", dir+"/b"))
	g := mount(t, dir, Config{InodeFileHandles: HandlesNever, Lookout: true})
	before := openDescriptors(t)
	file := g.mustLookup(root, "b")
	d := g.mustLookup(root, "d")
	require.Equal(t, file, g.mustLookup(d, "a"))
	g.forget(file, 1)
	g.forget(d, 1)
	_, e := g.getattr(file)
	require.Zero(t, e)
	require.Zero(t, g.unlink(root, "b"))
	_, e = g.getattr(file)
	require.Zero(t, e, "it has a name yet")
	g.forget(file, 1)
	require.Equal(t, before, openDescriptors(t), "the directory's descriptor is closed again")
}
