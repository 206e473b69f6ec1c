package frontend

import (
	"errors"
	"fmt"
	"sort"
	"sync"

	"golang.org/x/sys/unix"
)

// PageSize is the guest's page: the unit in which Linux hands file data to the device.
const PageSize = 4096

// userBase keeps the front-end's "user addresses" apart from guest physical addresses and from every real mapping.
const userBase = 0x5a00_0000_0000

// Region is one piece of guest RAM, backed by a memfd.
type Region struct {
	GPA, Size  uint64
	UserAddr   uint64 // address in which SET_VRING_ADDR speaks
	FD         int    // memfd, shared with the daemon
	MmapOffset uint64 // where the region starts in FD
	Data       []byte // our mapping of it
}

// Memory is guest RAM with an allocator for pages of its last region (rings live in the first).
type Memory struct {
	Regions []*Region

	mu    sync.Mutex
	free  []span // sorted by gpa, never adjacent
	ringN uint64 // bytes of the first region handed out to rings
}

type span struct{ gpa, size uint64 }

// ErrNoMemory says that guest RAM has no room for a buffer.
var ErrNoMemory = errors.New("guest memory is full")

// NewMemory makes RAM of the given region sizes in bytes (rounded up to pages). The first region starts at address 0, each
// further one at the next multiple of 4 GiB, so that there are holes between them.
func NewMemory(sizes ...uint64) (*Memory, error) {
	m := &Memory{}
	var gpa uint64
	for _, size := range sizes {
		size = (size + PageSize - 1) &^ (PageSize - 1)
		r, err := NewRegion(gpa, size)
		if err != nil {
			m.Close()
			return nil, err
		}
		m.Regions = append(m.Regions, r)
		gpa = (gpa + size + 1<<32 - 1) &^ (1<<32 - 1)
	}
	last := m.Regions[len(m.Regions)-1]
	start := last.GPA
	if len(m.Regions) == 1 {
		start += last.Size / 4 &^ (PageSize - 1) // the first quarter is for rings
	}
	m.free = []span{{start, last.GPA + last.Size - start}}
	return m, nil
}

// NewRegion makes one region that belongs to no Memory yet.
func NewRegion(gpa, size uint64) (*Region, error) {
	fd, err := unix.MemfdCreate("guest-ram", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create memfd for guest memory: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("size guest memory to %d bytes: %w", size, err)
	}
	data, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("map %d bytes of guest memory: %w", size, err)
	}
	return &Region{GPA: gpa, Size: size, UserAddr: userBase + gpa, FD: fd, Data: data}, nil
}

// Close unmaps and closes the region.
func (r *Region) Close() {
	if r.Data != nil {
		unix.Munmap(r.Data)
		r.Data = nil
	}
	if r.FD >= 0 {
		unix.Close(r.FD)
		r.FD = -1
	}
}

// Close gives the memory back. The daemon's own mappings live on.
func (m *Memory) Close() {
	for _, r := range m.Regions {
		r.Close()
	}
}

// Bytes is our view of n bytes of guest memory at gpa; nil if they do not lie in one region.
func (m *Memory) Bytes(gpa uint64, n int) []byte {
	for _, r := range m.Regions {
		if gpa >= r.GPA && gpa-r.GPA <= r.Size && uint64(n) <= r.Size-(gpa-r.GPA) {
			off := gpa - r.GPA
			return r.Data[off : off+uint64(n) : off+uint64(n)]
		}
	}
	return nil
}

// UserAddr translates a guest physical address as the front-end's own address space has it; 0 if it is outside RAM.
func (m *Memory) UserAddr(gpa uint64) uint64 {
	for _, r := range m.Regions {
		if gpa >= r.GPA && gpa-r.GPA < r.Size {
			return r.UserAddr + gpa - r.GPA
		}
	}
	return 0
}

// Outside is a guest physical address that no region holds, a multiple of the page size.
func (m *Memory) Outside() uint64 {
	var end uint64
	for _, r := range m.Regions {
		end = max(end, r.GPA+r.Size)
	}
	return end + 1<<40
}

// Alloc takes n bytes, rounded up to whole pages, zeroed or not, and returns their address.
func (m *Memory) Alloc(n int) (uint64, error) {
	size := (uint64(max(n, 1)) + PageSize - 1) &^ (PageSize - 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.free {
		if f := &m.free[i]; f.size >= size {
			gpa := f.gpa
			f.gpa += size
			f.size -= size
			if f.size == 0 {
				m.free = append(m.free[:i], m.free[i+1:]...)
			}
			return gpa, nil
		}
	}
	return 0, fmt.Errorf("allocate %d bytes: %w", n, ErrNoMemory)
}

// Free returns what Alloc gave; n must be the same.
func (m *Memory) Free(gpa uint64, n int) {
	size := (uint64(max(n, 1)) + PageSize - 1) &^ (PageSize - 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	i := sort.Search(len(m.free), func(i int) bool { return m.free[i].gpa > gpa })
	m.free = append(m.free, span{})
	copy(m.free[i+1:], m.free[i:])
	m.free[i] = span{gpa, size}
	if i+1 < len(m.free) && m.free[i].gpa+m.free[i].size == m.free[i+1].gpa {
		m.free[i].size += m.free[i+1].size
		m.free = append(m.free[:i+1], m.free[i+2:]...)
	}
	if i > 0 && m.free[i-1].gpa+m.free[i-1].size == m.free[i].gpa {
		m.free[i-1].size += m.free[i].size
		m.free = append(m.free[:i], m.free[i+1:]...)
	}
}

// allocRing takes n bytes of the first region for good, page aligned.
func (m *Memory) allocRing(n uint64) (uint64, error) {
	n = (n + PageSize - 1) &^ (PageSize - 1)
	r := m.Regions[0]
	limit := r.Size
	if len(m.Regions) == 1 {
		limit = r.Size / 4 &^ (PageSize - 1)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ringN+n > limit {
		return 0, fmt.Errorf("place a ring of %d bytes: %w", n, ErrNoMemory)
	}
	gpa := r.GPA + m.ringN
	m.ringN += n
	return gpa, nil
}
