package guestmem_test

import (
	"bytes"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/internal/guestmem"
	"virtiofsd/internal/testenv"
	"virtiofsd/internal/vhostabi"
)

const page = 4096

// user is where the tests' front-end has its memory: far from guest addresses, so that a mix-up shows.
const user = 0x7f00_0000_0000

func memfd(t testing.TB, size int64, flags int) int {
	t.Helper()
	fd, err := unix.MemfdCreate("guest-"+strings.ReplaceAll(t.Name(), "/", "-"), unix.MFD_CLOEXEC|flags)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	require.NoError(t, unix.Ftruncate(fd, size))
	return fd
}

func region(guest, size, offset uint64) vhostabi.MemRegion {
	return vhostabi.MemRegion{GuestAddr: guest, Size: size, UserAddr: user + guest, MmapOffset: offset}
}

// mappings counts this test's memfds in the process's address space.
func mappings(t testing.TB) int { return mappingsOf(t, t.Name()) }

func mappingsOf(t testing.TB, name string) int {
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	return bytes.Count(maps, []byte("guest-"+strings.ReplaceAll(name, "/", "-")))
}

func join(iov []unix.Iovec) []byte {
	b := make([]byte, 1<<20)
	return b[:guestmem.CopyIn(b, iov)]
}

func TestAddressesFindTheirBytes(t *testing.T) {
	fd := memfd(t, 8*page, 0)
	// Two regions that touch each other in the guest but not in the file, and one with a hole before it.
	table, err := guestmem.New([]vhostabi.MemRegion{region(0, 2*page, 4*page), region(2*page, 2*page, page), region(16*page, page, 0)}, []int{fd, fd, fd})
	require.NoError(t, err)
	defer table.Drop()
	for off := range int64(8) {
		_, err := unix.Pwrite(fd, bytes.Repeat([]byte{byte('a' + off)}, page), off*page)
		require.NoError(t, err)
	}

	for _, c := range []struct {
		addr, n uint64
		want    string // runs of letters, or "" for no memory
		pieces  int
	}{
		{0, 3, "eee", 1},
		{page - 1, 2, "ef", 1},
		{2*page - 2, 4, "ffbb", 2},
		{4*page - 1, 1, "c", 1},
		{4*page - 1, 2, "", 0},
		{4 * page, 1, "", 0},
		{16*page - 1, 2, "", 0},
		{16 * page, 2, "aa", 1},
		{17*page - 1, 1, "a", 1},
		{17 * page, 1, "", 0},
		{^uint64(0), 1, "", 0},
		{^uint64(0), 2, "", 0},
		{^uint64(1), 1 << 32, "", 0},
		{0, ^uint64(0), "", 0},
	} {
		iov, err := table.AppendIovecs(nil, c.addr, c.n)
		if c.want == "" {
			assert.ErrorIs(t, err, guestmem.ErrNoMemory, "%#x+%d", c.addr, c.n)
		} else {
			require.NoError(t, err, "%#x+%d", c.addr, c.n)
			assert.Equal(t, c.want, string(join(iov)), "%#x+%d", c.addr, c.n)
			assert.Len(t, iov, c.pieces, "%#x+%d", c.addr, c.n)
		}
		_, err = table.Guest(c.addr, c.n)
		assert.Equal(t, c.pieces == 1, err == nil, "a view lies in one region: %#x+%d: %v", c.addr, c.n, err)
		_, err = table.User(user+c.addr, c.n)
		assert.Equal(t, c.pieces == 1, err == nil, "by the front-end's address: %#x+%d: %v", c.addr, c.n, err)
	}
	_, err = table.User(0, 1)
	assert.ErrorIs(t, err, guestmem.ErrNoMemory, "a guest address is none of the front-end")
}

func TestNeighboursAreJoined(t *testing.T) {
	table, err := guestmem.New([]vhostabi.MemRegion{region(0, 4*page, 0)}, []int{memfd(t, 4*page, 0)})
	require.NoError(t, err)
	defer table.Drop()
	var iov []unix.Iovec
	for i := range uint64(8) {
		iov, err = table.AppendIovecs(iov, i*512, 512)
		require.NoError(t, err)
	}
	assert.Len(t, iov, 1)
	assert.EqualValues(t, 4096, iov[0].Len)
	iov, err = table.AppendIovecs(iov, 8*512+1, 1)
	require.NoError(t, err)
	assert.Len(t, iov, 2, "a gap of one byte parts them")
}

func TestRefusals(t *testing.T) {
	fd := memfd(t, 4*page, 0)
	base, err := guestmem.New([]vhostabi.MemRegion{region(4*page, 4*page, 0)}, []int{fd})
	require.NoError(t, err)
	defer base.Drop()
	dir, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(dir)
	readOnly, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(readOnly)
	for _, c := range []struct {
		name string
		r    vhostabi.MemRegion
		fd   int
		want string
	}{
		{"empty", region(0, 0, 0), fd, "empty"},
		{"the same", region(4*page, 4*page, 0), fd, "overlaps"},
		{"one byte below", region(0, 4*page+1, 0), fd, "overlaps"},
		{"its last byte", region(8*page-16, page, 0), fd, "overlaps"},
		{"guest addresses alone", vhostabi.MemRegion{GuestAddr: 8*page - 16, Size: page, UserAddr: user + 64*page}, fd, "region at 0x7ff0"},
		{"front-end addresses", vhostabi.MemRegion{GuestAddr: 0, Size: page, UserAddr: user + 4*page}, fd, "front-end address"},
		{"longer than the file", region(0, 4*page, page), fd, "of a file of 16384 bytes"},
		{"one byte longer", region(8*page, 4*page+1, 0), fd, "of a file of 16384 bytes"},
		{"beyond the file", region(0, page, 4*page), fd, "of a file of 16384 bytes"},
		{"closed descriptor", region(0, page, 0), 1 << 20, "bad file descriptor"},
		{"directory", region(0, page, 0), dir, "map 4096 bytes"},
		{"read-only", region(0, page, 0), readOnly, "permission denied"},
	} {
		next, err := base.Add(c.r, c.fd)
		assert.ErrorContains(t, err, c.want, c.name)
		assert.Nil(t, next, c.name)
	}
	_, err = base.Remove(region(4*page, page, 0))
	assert.ErrorContains(t, err, "no region")
	assert.Equal(t, 1, base.Len())
	assert.Equal(t, 1, mappings(t), "what was refused is not mapped")
	_, err = guestmem.New([]vhostabi.MemRegion{region(0, page, 0), region(0, page, 0)}, []int{fd, fd})
	assert.ErrorContains(t, err, "region 1")
	assert.Equal(t, 1, mappings(t), "a table that fails in its middle leaves nothing mapped")
}

func TestTablesShareAndUnmap(t *testing.T) {
	fd := memfd(t, 4*page, 0)
	one, err := guestmem.New([]vhostabi.MemRegion{region(0, page, 0)}, []int{fd})
	require.NoError(t, err)
	two, err := one.Add(region(8*page, page, 2*page), fd)
	require.NoError(t, err)
	three, err := two.Remove(region(0, page, 0))
	require.NoError(t, err)
	assert.Equal(t, []int{1, 2, 1}, []int{one.Len(), two.Len(), three.Len()})
	assert.Equal(t, 2, mappings(t))
	one.Drop()
	assert.Equal(t, 2, mappings(t), "the second table still holds the first's region")
	_, err = two.Guest(0, page)
	require.NoError(t, err)
	two.Drop()
	assert.Equal(t, 1, mappings(t))
	_, err = three.Guest(0, 1)
	assert.ErrorIs(t, err, guestmem.ErrNoMemory)
	_, err = three.Guest(8*page, 1)
	require.NoError(t, err)
	three.Drop()
	assert.Zero(t, mappings(t))
}

func TestAsManySlotsAsKVM(t *testing.T) {
	fd := memfd(t, page, 0)
	table := &guestmem.Table{}
	add := func(i int) error {
		next, err := table.Add(region(uint64(i)*2*page, page, 0), fd)
		if err == nil {
			table.Drop()
			table = next
		}
		return err
	}
	for i := range guestmem.MaxRegions {
		require.NoError(t, add((i*7)%guestmem.MaxRegions), "in any order")
	}
	assert.ErrorContains(t, add(guestmem.MaxRegions), "509 regions are the most")
	for i := range guestmem.MaxRegions {
		_, err := table.Guest(uint64(i)*2*page, page)
		require.NoError(t, err)
		_, err = table.Guest(uint64(i)*2*page+page, 1)
		require.Error(t, err)
	}
	for i := range guestmem.MaxRegions {
		next, err := table.Remove(region(uint64(i)*2*page, page, 0))
		require.NoError(t, err)
		table.Drop()
		table = next
	}
	assert.Zero(t, mappings(t))
}

// What a front-end has mapped leaves the daemon room for itself, whatever the memory costs the
// front-end: it may be a sparse file.
func TestFrontEndLeavesAddressesToTheDaemon(t *testing.T) {
	const tib = 1 << 40
	fd := memfd(t, tib, 0)
	all := &guestmem.Table{}
	defer func() { all.Drop() }()
	for i := range uint64(64) { // half of what there is
		next, err := all.Add(region(i*tib, tib, 0), fd)
		require.NoError(t, err)
		all.Drop()
		all = next
	}
	_, err := all.Add(region(64*tib, page, 0), fd)
	assert.EqualError(t, err, "map 4096 bytes of guest memory at file offset 0: with 70368744177664 bytes that are mapped: 70368744177664 are the most")
	_, err = all.Replace([]vhostabi.MemRegion{region(0, page, 0)}, []int{fd})
	assert.ErrorContains(t, err, "are the most", "what a request may still use counts")
	less, err := all.Remove(region(3*tib, tib, 0))
	require.NoError(t, err)
	_, err = less.Add(region(64*tib, page, 0), fd)
	assert.ErrorContains(t, err, "are the most", "the first table still has it")
	all.Drop()
	all, err = less.Add(region(64*tib, tib, 0), fd)
	require.NoError(t, err)
	less.Drop()
	assert.Equal(t, 64, all.Len())
}

// Mappings are few as well, however small: Linux permits a process some 65,000.
func TestFrontEndLeavesMappingsToTheDaemon(t *testing.T) {
	fd := memfd(t, page, 0)
	var held []*guestmem.Table
	defer func() {
		for _, h := range held {
			h.Drop()
		}
	}()
	last := &guestmem.Table{}
	for range 4 * guestmem.MaxRegions { // requests under way use all of them
		next, err := last.Replace([]vhostabi.MemRegion{region(0, page, 0)}, []int{fd})
		require.NoError(t, err)
		held, last = append(held, next), next
	}
	_, err := last.Replace([]vhostabi.MemRegion{region(0, page, 0)}, []int{fd})
	assert.ErrorContains(t, err, "2036 regions are mapped, with those that requests still use")
	held[0].Drop()
	next, err := last.Replace([]vhostabi.MemRegion{region(0, page, 0)}, []int{fd})
	require.NoError(t, err)
	held[0] = next
}

// The daemon's limit of addresses counts as well.
func TestLimitOfAddresses(t *testing.T) {
	statm, err := os.ReadFile("/proc/self/statm")
	require.NoError(t, err)
	var pages uint64
	_, err = fmt.Sscan(string(statm), &pages)
	require.NoError(t, err)
	var was unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_AS, &was))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: pages*page + 2<<30, Max: was.Max}))
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_AS, &was)) }()
	fd := memfd(t, 4<<30, 0)
	for _, size := range []uint64{3 << 29, 4 << 30} { // there is no room for the daemon, or none at all
		_, err = guestmem.New([]vhostabi.MemRegion{region(0, size, 0)}, []int{fd})
		assert.EqualError(t, err, fmt.Sprintf("region 0: map %d bytes of guest memory at file offset 0: that leaves less than 1 GiB of addresses to the daemon itself: "+
			"cannot allocate memory; raise its limit (ulimit -v)", size))
	}
	table, err := guestmem.New([]vhostabi.MemRegion{region(0, 1<<29, 0)}, []int{fd})
	require.NoError(t, err)
	table.Drop()
	assert.Zero(t, mappings(t))
}

func TestTerabyte(t *testing.T) {
	const tib = 1 << 40
	fd := memfd(t, tib, 0)
	table, err := guestmem.New([]vhostabi.MemRegion{region(1<<32, tib, 0)}, []int{fd})
	require.NoError(t, err)
	defer table.Drop()
	v, err := table.Guest(1<<32+tib-8, 8)
	require.NoError(t, err)
	v.Store32(4, 77)
	assert.EqualValues(t, 77, v.Load32(4))
}

// A core dump shows none of a guest's memory, and a child has none.
func TestGuestMemoryIsForThisProcessAlone(t *testing.T) {
	table, err := guestmem.New([]vhostabi.MemRegion{region(0, page, 0)}, []int{memfd(t, page, 0)})
	require.NoError(t, err)
	defer table.Drop()
	smaps, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	_, ours, found := strings.Cut(string(smaps), "guest-"+t.Name())
	require.True(t, found)
	_, flags, _ := strings.Cut(ours, "VmFlags:")
	flags, _, _ = strings.Cut(flags, "\n")
	assert.Subset(t, strings.Fields(flags), []string{"dd", "dc"}, "proc(5): do not dump, do not copy on fork")
}

func TestOffsetsNeedNoPage(t *testing.T) {
	fd := memfd(t, 2*page, 0)
	table, err := guestmem.New([]vhostabi.MemRegion{region(0, page, 48)}, []int{fd})
	require.NoError(t, err)
	defer table.Drop()
	_, err = unix.Pwrite(fd, []byte("here"), 48+16)
	require.NoError(t, err)
	iov, err := table.AppendIovecs(nil, 16, 4)
	require.NoError(t, err)
	assert.Equal(t, "here", string(join(iov)))
}

func TestHugePages(t *testing.T) {
	testenv.Need(t, "hugepages")
	const huge = 2 << 20
	fd := memfd(t, 2*huge, unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
	// The second region starts inside a huge page and ends inside one: offset and length of the mapping have to be whole pages.
	table, err := guestmem.New([]vhostabi.MemRegion{region(0, huge, 0), region(huge, huge/2, huge+huge/4)}, []int{fd, fd})
	require.NoError(t, err)
	iov, err := table.AppendIovecs(nil, huge, 4)
	require.NoError(t, err)
	assert.Equal(t, 4, guestmem.CopyOut(iov, []byte("huge")))
	table.Drop()
	assert.Zero(t, mappings(t), "a mapping of huge pages is unmapped as a whole")
}

// fault runs f and returns the panic of a memory fault, which has the address.
func fault(f func()) (r any) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { r = recover() }()
	f()
	return nil
}

func TestVanishedMemoryIsAPanicThatCanBeRecovered(t *testing.T) {
	fd := memfd(t, 2*page, 0)
	table, err := guestmem.New([]vhostabi.MemRegion{region(0, 2*page, 0)}, []int{fd})
	require.NoError(t, err)
	defer table.Drop()
	v, err := table.Guest(0, 2*page)
	require.NoError(t, err)
	iov, err := table.AppendIovecs(nil, page-2, 4)
	require.NoError(t, err)
	require.NoError(t, unix.Ftruncate(fd, page))

	_, isFault := fault(func() { v.Load32(page) }).(interface{ Addr() uintptr })
	assert.True(t, isFault)
	assert.NotNil(t, fault(func() { v.LoadPair(page - 8) }))
	assert.NotNil(t, fault(func() { v.Store16(page, 1) }))
	assert.NotNil(t, fault(func() { guestmem.CopyOut(iov, []byte("1234")) }))
	assert.NotNil(t, fault(func() { guestmem.CopyIn(make([]byte, 4), iov) }))
	assert.Nil(t, fault(func() { v.Load32(page - 4) }))
}

func TestViewsKeepTheirBounds(t *testing.T) {
	table, err := guestmem.New([]vhostabi.MemRegion{region(0, page, 0)}, []int{memfd(t, page, 0)})
	require.NoError(t, err)
	defer table.Drop()
	v, err := table.Guest(64, 32)
	require.NoError(t, err)
	for i, f := range []func(){
		func() { v.Load16(31) },
		func() { v.Load32(29) },
		func() { v.LoadPair(17) },
		func() { v.Store16(^uint64(0), 1) },
		func() { v.StoreRelease32(32, 1) },
		func() { v.Sub(0, 33) },
		func() { v.Sub(33, 0) },
		func() { guestmem.View{}.Load16(0) },
	} {
		assert.Panics(t, f, strconv.Itoa(i))
	}
	assert.EqualValues(t, 32, v.Sub(0, 32).Len())
}

func TestFieldsOfAllAlignments(t *testing.T) {
	table, err := guestmem.New([]vhostabi.MemRegion{region(0, page, 0)}, []int{memfd(t, page, 0)})
	require.NoError(t, err)
	defer table.Drop()
	iov, err := table.AppendIovecs(nil, 0, 64)
	require.NoError(t, err)
	want := make([]byte, 64)
	for i := range want {
		want[i] = byte(i)
	}
	guestmem.CopyOut(iov, want)
	for _, at := range []uint64{0, 1, 3, 4, 5, 8, 15, 16} {
		v, err := table.Guest(at, 16)
		require.NoError(t, err)
		lo, hi := v.LoadPair(0)
		assert.Equal(t, uint64(0x0706050403020100)+at*0x0101010101010101, lo)
		assert.Equal(t, uint64(0x0f0e0d0c0b0a0908)+at*0x0101010101010101, hi)
	}
	v, err := table.Guest(0, 16)
	require.NoError(t, err)
	assert.EqualValues(t, 0x0100, v.Load16(0))
	assert.EqualValues(t, 0x0302, v.Load16(2), "the upper half of an aligned word")
	v.Store16(2, 0xffff)
	assert.EqualValues(t, 0x0100, v.Load16(0))
	assert.EqualValues(t, 0x0504, v.Load16(4))
}

func TestCopies(t *testing.T) {
	a, b := []byte("abc"), []byte("defg")
	iov := []unix.Iovec{{Base: &a[0], Len: 3}, {Base: &b[0], Len: 0}, {Base: &b[0], Len: 4}}
	buf := make([]byte, 5)
	assert.Equal(t, 5, guestmem.CopyIn(buf, iov))
	assert.Equal(t, "abcde", string(buf))
	assert.Equal(t, 7, guestmem.CopyOut(iov, []byte("123456789")))
	assert.Equal(t, "1234567", string(a)+string(b))
	assert.Zero(t, guestmem.CopyIn(buf, nil))
}
