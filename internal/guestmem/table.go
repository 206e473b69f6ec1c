package guestmem

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"virtiofsd/internal/vhostabi"
)

// MaxRegions is how many regions a table may hold: what KVM offers as memory slots, so that each can be a region.
const MaxRegions = 509

// region is one mapping: size bytes at guest physical address guest, at address user in the front-end. It is shared by all
// tables that hold it and unmapped when the last of them is dropped.
type region struct {
	vhostabi.MemRegion
	mem  []byte // the whole mapping, page aligned
	off  uint64 // of the region's first byte in mem
	refs atomic.Int32
}

// Table is an immutable set of regions, none overlapping another in guest addresses. The zero value has no memory.
type Table struct {
	regions []*region // ascending by guest address
	space   *space    // nil before the first region
}

// ErrNoMemory says that an address range is not, or not wholly, within mapped guest memory.
var ErrNoMemory = errors.New("address is outside of guest memory")

// New is a first table with these regions.
func New(regions []vhostabi.MemRegion, fds []int) (*Table, error) {
	return (&Table{}).Replace(regions, fds)
}

// Replace maps the regions, each from the descriptor at the same place in fds, in place of those of
// t, which stays as it was and is dropped apart. The descriptors stay the caller's.
func (t *Table) Replace(regions []vhostabi.MemRegion, fds []int) (*Table, error) {
	made := &Table{space: t.space}
	for i, r := range regions {
		next, err := made.Add(r, fds[i])
		made.Drop()
		if err != nil {
			return nil, fmt.Errorf("region %d: %w", i, err)
		}
		made = next
	}
	return made, nil
}

// Add returns a table with one region more, mapped from fd, which stays the caller's. The old table stays as it was and is dropped
// apart.
func (t *Table) Add(r vhostabi.MemRegion, fd int) (*Table, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	if len(t.regions) >= MaxRegions {
		return nil, fmt.Errorf("map guest memory: %d regions are the most", MaxRegions)
	}
	for _, o := range t.regions {
		if r.GuestAddr < o.GuestAddr+o.Size && o.GuestAddr < r.GuestAddr+r.Size {
			return nil, fmt.Errorf("map guest memory: region at %#x of %#x bytes overlaps the one at %#x", r.GuestAddr, r.Size, o.GuestAddr)
		}
		if r.UserAddr < o.UserAddr+o.Size && o.UserAddr < r.UserAddr+r.Size {
			return nil, fmt.Errorf("map guest memory: region at front-end address %#x of %#x bytes overlaps the one at %#x", r.UserAddr, r.Size, o.UserAddr)
		}
	}
	next := t.clone()
	if next.space == nil {
		next.space = &space{}
	}
	m, err := next.space.mapRegion(r, fd)
	if err != nil {
		next.Drop()
		return nil, err
	}
	at, _ := slices.BinarySearchFunc(next.regions, r.GuestAddr, func(o *region, a uint64) int {
		if o.GuestAddr < a {
			return -1
		}
		return 1
	})
	next.regions = slices.Insert(next.regions, at, m)
	m.refs.Add(1)
	return next, nil
}

// Remove returns a table without the region that has these addresses and this size. The old table stays as it was.
func (t *Table) Remove(r vhostabi.MemRegion) (*Table, error) {
	at := slices.IndexFunc(t.regions, func(o *region) bool {
		return o.GuestAddr == r.GuestAddr && o.UserAddr == r.UserAddr && o.Size == r.Size
	})
	if at < 0 {
		return nil, fmt.Errorf("remove guest memory: no region at guest %#x, front-end %#x of %#x bytes", r.GuestAddr, r.UserAddr, r.Size)
	}
	next := t.clone()
	next.regions[at].refs.Add(-1) // t still holds it
	next.regions = slices.Delete(next.regions, at, at+1)
	return next, nil
}

func (t *Table) clone() *Table {
	for _, o := range t.regions {
		o.refs.Add(1)
	}
	return &Table{regions: slices.Clone(t.regions), space: t.space}
}

// Drop gives the table up: regions that no other table holds are unmapped. No view or iovec made from it may be used afterwards.
func (t *Table) Drop() {
	for _, o := range t.regions {
		if o.refs.Add(-1) == 0 {
			t.space.unmap(o.mem)
		}
	}
	t.regions = nil
}

// Len is the number of regions.
func (t *Table) Len() int { return len(t.regions) }

// space is what the tables of one front-end have mapped in all, those included that are replaced
// and still in use. Where addresses or mappings run out, Go's runtime ends the process.
type space struct {
	bytes    uint64
	mappings int
}

const (
	// mostBytes is half of what x86-64 has for a process, and mostMappings a small part of what
	// Linux permits (vm.max_map_count).
	mostBytes    = 64 << 40
	mostMappings = 4 * MaxRegions
	// ownBytes is what has to be left for the daemon itself: a guest that knows a million files
	// takes less than that.
	ownBytes = 1 << 30
)

// mmap maps shared memory, if enough is left for the daemon.
func (s *space) mmap(fd int, start int64, length uint64) ([]byte, error) {
	switch {
	case s.mappings >= mostMappings:
		return nil, fmt.Errorf("%d regions are mapped, with those that requests still use: more than a front-end needs", s.mappings)
	case length > mostBytes-s.bytes:
		return nil, fmt.Errorf("with %d bytes that are mapped: %d are the most", s.bytes, uint64(mostBytes))
	}
	mem, err := unix.Mmap(fd, start, int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err == nil {
		var own []byte
		if own, err = unix.Mmap(-1, 0, ownBytes, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE); err == nil {
			unix.Munmap(own)
		} else {
			unix.Munmap(mem)
		}
	}
	if err != nil {
		if err == unix.ENOMEM {
			err = fmt.Errorf("that leaves less than 1 GiB of addresses to the daemon itself: %w; raise its limit (ulimit -v)", err)
		}
		return nil, err
	}
	s.bytes += length
	s.mappings++
	return mem, nil
}

func (s *space) unmap(mem []byte) {
	unix.Munmap(mem) // fails only for an address that is no mapping
	s.bytes -= uint64(len(mem))
	s.mappings--
}

// mapRegion maps r from fd. A region larger than a file with a size is refused here: touching its end would raise SIGBUS.
func (s *space) mapRegion(r vhostabi.MemRegion, fd int) (*region, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at the memory region's descriptor: %w", err)
	}
	end := r.MmapOffset + r.Size
	if st.Mode&unix.S_IFMT == unix.S_IFREG && uint64(st.Size) < end {
		return nil, fmt.Errorf("memory region ends at byte %d of a file of %d bytes", end, st.Size)
	}
	// st_blksize is the huge page size on hugetlbfs, where offset and length have to be multiples of it.
	page := uint64(unix.Getpagesize())
	if s := uint64(st.Blksize); s > page && s&(s-1) == 0 && isHugetlb(fd) {
		page = s
	}
	start := r.MmapOffset &^ (page - 1)
	length := (end - start + page - 1) &^ (page - 1)
	mem, err := s.mmap(fd, int64(start), length)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of guest memory at file offset %d: %w", length, start, err)
	}
	// A core dump is no place for a guest's memory, nor is a child.
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	_ = unix.Madvise(mem, unix.MADV_DONTFORK)
	return &region{MemRegion: r, mem: mem, off: r.MmapOffset - start}, nil
}

// hugetlbMagic is HUGETLBFS_MAGIC of linux/magic.h.
const hugetlbMagic = 0x958458f6

func isHugetlb(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && uint32(st.Type) == hugetlbMagic
}

// find returns the region that holds guest address a, or nil.
func (t *Table) find(a uint64) *region {
	// Machines have a handful of regions, and most memory is in the last ones.
	for i := len(t.regions) - 1; i >= 0; i-- {
		if r := t.regions[i]; a >= r.GuestAddr {
			if a-r.GuestAddr < r.Size {
				return r
			}
			return nil
		}
	}
	return nil
}

// Guest returns the view of n bytes at guest physical address a, which must lie in one region.
func (t *Table) Guest(a, n uint64) (View, error) {
	r := t.find(a)
	if r == nil || n > r.Size-(a-r.GuestAddr) {
		return View{}, fmt.Errorf("guest address %#x of %d bytes: %w", a, n, ErrNoMemory)
	}
	return r.view(a-r.GuestAddr, n), nil
}

// User returns the view of n bytes at address a of the front-end, which must lie in one region.
func (t *Table) User(a, n uint64) (View, error) {
	for _, r := range t.regions {
		if a >= r.UserAddr && a-r.UserAddr < r.Size {
			if n > r.Size-(a-r.UserAddr) {
				break
			}
			return r.view(a-r.UserAddr, n), nil
		}
	}
	return View{}, fmt.Errorf("front-end address %#x of %d bytes: %w", a, n, ErrNoMemory)
}

// AppendIovecs appends the n bytes at guest physical address a to iov, as few entries as can be: what continues the last entry is
// joined to it, what crosses into the next region is split. It returns ErrNoMemory where a part is not mapped.
func (t *Table) AppendIovecs(iov []unix.Iovec, a, n uint64) ([]unix.Iovec, error) {
	for n > 0 {
		r := t.find(a)
		if r == nil {
			return iov, ErrNoMemory
		}
		m := min(n, r.Size-(a-r.GuestAddr))
		iov = r.appendIovec(iov, a-r.GuestAddr, m)
		n -= m
		a += m // does not wrap round: no region ends at the end of the address space
	}
	return iov, nil
}
