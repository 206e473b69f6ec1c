package guestmem_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/vhostabi"
)

// model is what a table should hold: regions, in no order.
type model []vhostabi.MemRegion

// fits reports whether a region may be added: what it wants of the file is there, and its addresses are free.
func (m model) fits(r vhostabi.MemRegion, file uint64) bool {
	if r.Validate() != nil || r.MmapOffset+r.Size > file {
		return false
	}
	return !slices.ContainsFunc(m, func(o vhostabi.MemRegion) bool {
		apart := func(a, b uint64) bool { return a >= b+o.Size || b >= a+r.Size }
		return !apart(r.GuestAddr, o.GuestAddr) || !apart(r.UserAddr, o.UserAddr)
	})
}

// holder is the region that an address lies in, and the address within it.
func (m model) holder(a uint64, of func(vhostabi.MemRegion) uint64) (r vhostabi.MemRegion, at uint64, ok bool) {
	for _, r := range m {
		if a >= of(r) && a-of(r) < r.Size {
			return r, a - of(r), true
		}
	}
	return r, 0, false
}

func guestAddr(r vhostabi.MemRegion) uint64 { return r.GuestAddr }
func userAddr(r vhostabi.MemRegion) uint64  { return r.UserAddr }

// bytes are the n bytes at a guest address, as they stand in the file; ok is false where one is missing.
func (m model) bytes(file []byte, a, n uint64) (b []byte, ok bool) {
	for n > 0 {
		r, at, ok := m.holder(a, guestAddr)
		if !ok {
			return nil, false
		}
		k := min(n, r.Size-at)
		b = append(b, file[r.MmapOffset+at:][:k]...)
		if a, n = a+k, n-k; a == 0 && n > 0 {
			return nil, false
		}
	}
	return b, true
}

// FuzzTable adds and removes any regions, and looks for any addresses: a table finds just those bytes that the regions before it put
// there, an older table still finds its own, and nothing stays mapped in the end.
//
// The input is a list of ten bytes each: what, then place in the guest, size, place in the front-end, place in the file, and a digit.
func FuzzTable(f *testing.F) {
	op := func(what byte, guest, size, user, offset uint16) (b []byte) {
		b = []byte{what}
		for _, v := range []uint16{guest, size, user, offset} {
			b = binary.LittleEndian.AppendUint16(b, v)
		}
		return append(b, 0)
	}
	f.Add(slices.Concat(op(0, 0, 4096, 0, 0), op(0, 16, 4096, 16, 16), op(3, 0, 8192, 0, 0), op(3, 15, 300, 15, 0), op(2, 0, 0, 0, 0), op(3, 0, 8192, 0, 0)))
	f.Add(slices.Concat(op(0, 1, 512, 1, 2), op(0, 2, 512, 9, 2), op(0, 9, 512, 2, 2), op(3, 1, 256, 1, 0), op(3, 2, 257, 2, 0)))
	f.Add(slices.Concat(op(128, 1, 256, 1, 2), op(131, 1, 256, 1, 0), op(131, 1, 512, 1, 0), op(0, 0, 256, 0, 0)))
	f.Add(slices.Concat(op(0, 1, 512, 0xffff, 2), op(64, 16, 512, 3, 0xffff), op(0, 0, 0, 0, 0), op(2, 7, 7, 7, 7)))
	const pages = 16
	fd := memfd(f, pages*page, 0)
	file := make([]byte, pages*page)
	for i := range file {
		file[i] = byte(i) ^ byte(i>>8)*31
	}
	_, err := unix.Pwrite(fd, file, 0)
	require.NoError(f, err)
	before := mappings(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		table, now := &guestmem.Table{}, model{}
		var old []*guestmem.Table
		var was []model
		defer func() {
			for _, o := range append(old, table) {
				o.Drop()
			}
			require.Equal(t, before, mappingsOf(t, "FuzzTable"), "mappings")
		}()
		for n := 0; len(in) >= 10 && n < 64; n++ {
			word := func(i int) uint64 { return uint64(binary.LittleEndian.Uint16(in[i:])) }
			what, fine := in[0], uint64(in[9])
			r := vhostabi.MemRegion{GuestAddr: word(1) << 8, Size: word(3), UserAddr: user + word(5)<<8, MmapOffset: word(7) << 8}
			if what&128 != 0 { // at the end of all addresses
				r.GuestAddr = -r.GuestAddr
			}
			if what&64 != 0 { // not aligned
				r.UserAddr += fine
			}
			in = in[10:]
			next, then := table, now
			var err error
			switch what % 4 {
			case 0, 1:
				next, err = table.Add(r, fd)
				require.Equal(t, now.fits(r, uint64(len(file))), err == nil, "%+v to %+v: %v", r, now, err)
				then = append(slices.Clone(now), r)
			case 2:
				if len(now) > 0 && what&32 == 0 {
					r = now[int(fine)%len(now)]
				}
				i := slices.IndexFunc(now, func(o vhostabi.MemRegion) bool {
					return o.GuestAddr == r.GuestAddr && o.UserAddr == r.UserAddr && o.Size == r.Size
				})
				next, err = table.Remove(r)
				require.Equal(t, i >= 0, err == nil, "%v", err)
				if i >= 0 {
					then = slices.Delete(slices.Clone(now), i, i+1)
				}
			case 3:
				look(t, table, now, file, r.GuestAddr+fine, r.UserAddr+fine, r.Size)
				if len(old) > 0 {
					i := int(fine) % len(old)
					look(t, old[i], was[i], file, r.GuestAddr+fine, r.UserAddr+fine, r.Size)
				}
				continue
			}
			if err != nil {
				require.NotContains(t, err.Error(), "\n")
				continue
			}
			if what&16 != 0 {
				table.Drop()
			} else {
				old, was = append(old, table), append(was, now)
			}
			table, now = next, then
			require.Equal(t, len(now), table.Len())
		}
	})
}

// look holds what a table finds at two addresses against the model.
func look(t *testing.T, table *guestmem.Table, m model, file []byte, guest, front, n uint64) {
	t.Helper()
	iov, err := table.AppendIovecs(nil, guest, n)
	want, ok := m.bytes(file, guest, n)
	require.Equal(t, ok, err == nil, "%#x of %d bytes in %+v: %v", guest, n, m, err)
	if ok {
		require.Equal(t, n, total(iov))
		require.True(t, bytes.Equal(want, join(iov)[:n]))
	}
	for _, c := range []struct {
		at   uint64
		of   func(vhostabi.MemRegion) uint64
		find func(a, n uint64) (guestmem.View, error)
	}{{guest, guestAddr, table.Guest}, {front, userAddr, table.User}} {
		v, err := c.find(c.at, n)
		r, at, ok := m.holder(c.at, c.of)
		ok = ok && n <= r.Size-at
		require.Equal(t, ok, err == nil, "view at %#x of %d bytes in %+v: %v", c.at, n, m, err)
		if !ok {
			continue
		}
		require.Equal(t, n, v.Len())
		for _, off := range []uint64{0, (n - 16) / 2, n - 16} {
			if n >= 16 {
				lo, hi := v.LoadPair(off)
				b := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, lo), hi)
				require.Equal(t, file[r.MmapOffset+at+off:][:16:16], b)
			}
		}
		require.Panics(t, func() { v.Sub(n, 1) })
	}
}

func total(iov []unix.Iovec) (n uint64) {
	for _, v := range iov {
		n += v.Len
	}
	return n
}
