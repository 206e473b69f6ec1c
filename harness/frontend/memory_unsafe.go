package frontend

import (
	"sync/atomic"
	"unsafe"
)

// The ring's fields are shared with another process, so each is read and written by one access of its width. Fields of
// 16 bits have no atomic in Go; a plain aligned access is one instruction on every machine that virtio-fs runs on, and
// fence orders it.

func ptr16(b []byte, off uint32) *uint16 { return (*uint16)(unsafe.Pointer(&b[off : off+2][0])) }

//go:noinline
func load16(p *uint16) uint16 { return *p }

//go:noinline
func store16(p *uint16, v uint16) { *p = v }

// fenceWord is written by fence only; its value means nothing.
type fenceWord struct{ v atomic.Uint32 }

// fence is a full barrier: on amd64 and arm64 a locked exchange orders all accesses around it.
func (f *fenceWord) fence() { f.v.Swap(0) }
