package guestmem_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/testenv"
	"virtiofsd/internal/vhostabi"
)

// mapped are this test's mappings: offset in the file and length.
func mapped(t *testing.T) (all [][2]uint64) {
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	for s := bufio.NewScanner(bytes.NewReader(maps)); s.Scan(); {
		if strings.Contains(s.Text(), "guest-"+t.Name()) {
			var from, to, off uint64
			var mode string
			_, err := fmt.Sscanf(s.Text(), "%x-%x %s %x", &from, &to, &mode, &off)
			require.NoError(t, err)
			assert.Equal(t, "rw-s", mode)
			all = append(all, [2]uint64{off, to - from})
		}
	}
	return all
}

// What is mapped are the pages that the region touches, no more.
func TestPagesOfARegionAreMapped(t *testing.T) {
	for _, c := range []struct {
		off, size uint64
		want      [2]uint64
	}{
		{0, page, [2]uint64{0, page}},
		{page, page, [2]uint64{page, page}},
		{2 * page, 3 * page, [2]uint64{2 * page, 3 * page}},
		{page + 16, 32, [2]uint64{page, page}},
		{page + 16, page, [2]uint64{page, 2 * page}},
		{3*page - 16, 16, [2]uint64{2 * page, page}},
		{3*page - 16, 17, [2]uint64{2 * page, 2 * page}},
	} {
		table, err := guestmem.New([]vhostabi.MemRegion{region(0, c.size, c.off)}, []int{memfd(t, 8*page, 0)})
		require.NoError(t, err)
		assert.Equal(t, [][2]uint64{c.want}, mapped(t), "%d bytes at %d", c.size, c.off)
		table.Drop()
		assert.Empty(t, mapped(t))
	}
}

// Of huge pages only whole ones can be mapped. They are not touched here, so the host needs none.
func TestWholeHugePagesAreMapped(t *testing.T) {
	const huge = 2 << 20
	for _, c := range []struct{ off, size, from, length uint64 }{
		{0, huge, 0, huge},
		{huge, huge, huge, huge},
		{huge + huge/4, huge / 2, huge, huge},
		{huge + huge/4, huge, huge, 2 * huge},
	} {
		fd := memfd(t, 4*huge, unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
		table, err := guestmem.New([]vhostabi.MemRegion{region(0, c.size, c.off)}, []int{fd})
		require.NoError(t, err)
		assert.Equal(t, [][2]uint64{{c.from, c.length}}, mapped(t), "%d bytes at %d", c.size, c.off)
		table.Drop()
		assert.Empty(t, mapped(t))
	}
}

// A region is removed by all of its addresses and its size: what names another leaves all as it is.
func TestRemoveWantsAllOfARegion(t *testing.T) {
	r := region(4*page, 2*page, 0)
	table, err := guestmem.New([]vhostabi.MemRegion{r}, []int{memfd(t, 4*page, 0)})
	require.NoError(t, err)
	defer table.Drop()
	for name, change := range map[string]func(*vhostabi.MemRegion){
		"guest address":       func(o *vhostabi.MemRegion) { o.GuestAddr += page },
		"front-end's address": func(o *vhostabi.MemRegion) { o.UserAddr += page },
		"size":                func(o *vhostabi.MemRegion) { o.Size -= page },
		"both addresses":      func(o *vhostabi.MemRegion) { o.GuestAddr += page; o.UserAddr += page },
		"guest and size":      func(o *vhostabi.MemRegion) { o.GuestAddr += page; o.Size -= page },
		"front-end and size":  func(o *vhostabi.MemRegion) { o.UserAddr += page; o.Size -= page },
	} {
		o := r
		change(&o)
		_, err := table.Remove(o)
		assert.ErrorContains(t, err, "no region", name)
		assert.Equal(t, 1, table.Len())
	}
	r.MmapOffset = 3 * page // says nothing (vhost-user, REM_MEM_REG)
	next, err := table.Remove(r)
	require.NoError(t, err)
	assert.Zero(t, next.Len())
	next.Drop()
}

// A table that was dropped has nothing left to drop: what another table holds stays mapped.
func TestDropIsOnce(t *testing.T) {
	fd := memfd(t, 2*page, 0)
	one, err := guestmem.New([]vhostabi.MemRegion{region(0, page, 0)}, []int{fd})
	require.NoError(t, err)
	two, err := one.Add(region(page, page, page), fd)
	require.NoError(t, err)
	one.Drop()
	one.Drop()
	assert.Zero(t, one.Len())
	assert.Len(t, mapped(t), 2)
	two.Drop()
	assert.Empty(t, mapped(t))
}

// Regions that touch in the front-end's addresses are told apart to the byte.
func TestNeighboursOfTheFrontEnd(t *testing.T) {
	fd := memfd(t, 2*page, 0)
	_, err := unix.Pwrite(fd, []byte{'a'}, page-1)
	require.NoError(t, err)
	_, err = unix.Pwrite(fd, []byte{'b'}, page)
	require.NoError(t, err)
	table, err := guestmem.New([]vhostabi.MemRegion{
		{GuestAddr: 0, Size: page, UserAddr: user},
		{GuestAddr: 64 * page, Size: page, UserAddr: user + page, MmapOffset: page},
	}, []int{fd, fd})
	require.NoError(t, err)
	defer table.Drop()
	v, err := table.User(user+page-4, 4)
	require.NoError(t, err)
	assert.EqualValues(t, uint32('a')<<24, v.Load32(0))
	v, err = table.User(user+page, 4)
	require.NoError(t, err)
	assert.EqualValues(t, 'b', v.Load32(0))
	_, err = table.User(user+page-1, 2)
	assert.ErrorIs(t, err, guestmem.ErrNoMemory, "half in each")
	_, err = table.User(user+2*page, 1)
	assert.ErrorIs(t, err, guestmem.ErrNoMemory)
	_, err = table.User(user-1, 1)
	assert.ErrorIs(t, err, guestmem.ErrNoMemory)
}

// An empty piece at the very end is one; a byte further is a mistake.
func TestEmptyPieceAtTheEnd(t *testing.T) {
	table, err := guestmem.New([]vhostabi.MemRegion{region(0, page, 0)}, []int{memfd(t, page, 0)})
	require.NoError(t, err)
	defer table.Drop()
	v, err := table.Guest(0, page)
	require.NoError(t, err)
	assert.EqualValues(t, page, v.Len())
	assert.Zero(t, v.Sub(page, 0).Len())
	assert.EqualValues(t, 1, v.Sub(page-1, 1).Len())
	assert.Panics(t, func() { v.Sub(page, 1) })
	assert.Panics(t, func() { v.Sub(page+1, 0) })
	assert.Panics(t, func() { v.Sub(1, page) })
}

// A file system that likes large reads is not one of huge pages: pages of its files are mapped one
// by one.
func TestPreferredSizeIsNoPage(t *testing.T) {
	testenv.Need(t, "root")
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fs)
	if unix.FsconfigSetString(fs, "huge", "always") != nil {
		testenv.Lacks(t, "huge tmpfs", "the kernel has no transparent huge pages for shared memory")
	}
	require.NoError(t, unix.FsconfigCreate(fs))
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, "guest-"+t.Name(), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Ftruncate(fd, 4*page))
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	assert.Greater(t, int(st.Blksize), page)
	table, err := guestmem.New([]vhostabi.MemRegion{region(0, page, page)}, []int{fd})
	require.NoError(t, err)
	assert.Equal(t, [][2]uint64{{page, page}}, mapped(t))
	table.Drop()
}

// What is unmapped is free again, as often as a front-end likes.
func TestAddressesAreGivenBack(t *testing.T) {
	const tib = 1 << 40
	size := func() (pages uint64) {
		b, err := os.ReadFile("/proc/self/statm")
		require.NoError(t, err)
		_, err = fmt.Sscan(string(b), &pages)
		require.NoError(t, err)
		return pages
	}
	fd := memfd(t, tib, 0)
	table, err := guestmem.New([]vhostabi.MemRegion{region(0, page, 0)}, []int{fd})
	require.NoError(t, err)
	before := size()
	for range 200 {
		more, err := table.Add(region(tib, tib, 0), fd)
		require.NoError(t, err)
		less, err := more.Remove(region(tib, tib, 0))
		require.NoError(t, err)
		table.Drop()
		more.Drop()
		table = less
	}
	assert.Less(t, size()*page, before*page+10<<30)
	assert.Len(t, mapped(t), 1)
	table.Drop()
}
