package vhostabi

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var le = binary.LittleEndian

// Request is the type of a message that the front-end sends.
type Request uint32

// The requests of docs/interop/vhost-user.rst, "Front-end message types".
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetLogBase          Request = 6
	SetLogFD            Request = 7
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	GetQueueNum         Request = 17
	SetVringEnable      Request = 18
	SendRARP            Request = 19
	NetSetMTU           Request = 20
	SetBackendReqFD     Request = 21
	IOTLBMsg            Request = 22
	SetVringEndian      Request = 23
	GetConfig           Request = 24
	SetConfig           Request = 25
	CreateCryptoSession Request = 26
	CloseCryptoSession  Request = 27
	PostcopyAdvise      Request = 28
	PostcopyListen      Request = 29
	PostcopyEnd         Request = 30
	GetInflightFD       Request = 31
	SetInflightFD       Request = 32
	GPUSetSocket        Request = 33
	ResetDevice         Request = 34
	VringKick           Request = 35
	GetMaxMemSlots      Request = 36
	AddMemReg           Request = 37
	RemMemReg           Request = 38
	SetStatus           Request = 39
	GetStatus           Request = 40
	GetSharedObject     Request = 41
	SetDeviceStateFD    Request = 42
	CheckDeviceState    Request = 43
)

var names = [...]string{
	GetFeatures: "GET_FEATURES", SetFeatures: "SET_FEATURES", SetOwner: "SET_OWNER", ResetOwner: "RESET_OWNER",
	SetMemTable: "SET_MEM_TABLE", SetLogBase: "SET_LOG_BASE", SetLogFD: "SET_LOG_FD", SetVringNum: "SET_VRING_NUM",
	SetVringAddr: "SET_VRING_ADDR", SetVringBase: "SET_VRING_BASE", GetVringBase: "GET_VRING_BASE",
	SetVringKick: "SET_VRING_KICK", SetVringCall: "SET_VRING_CALL", SetVringErr: "SET_VRING_ERR",
	GetProtocolFeatures: "GET_PROTOCOL_FEATURES", SetProtocolFeatures: "SET_PROTOCOL_FEATURES",
	GetQueueNum: "GET_QUEUE_NUM", SetVringEnable: "SET_VRING_ENABLE", SendRARP: "SEND_RARP", NetSetMTU: "NET_SET_MTU",
	SetBackendReqFD: "SET_BACKEND_REQ_FD", IOTLBMsg: "IOTLB_MSG", SetVringEndian: "SET_VRING_ENDIAN",
	GetConfig: "GET_CONFIG", SetConfig: "SET_CONFIG", CreateCryptoSession: "CREATE_CRYPTO_SESSION",
	CloseCryptoSession: "CLOSE_CRYPTO_SESSION", PostcopyAdvise: "POSTCOPY_ADVISE", PostcopyListen: "POSTCOPY_LISTEN",
	PostcopyEnd: "POSTCOPY_END", GetInflightFD: "GET_INFLIGHT_FD", SetInflightFD: "SET_INFLIGHT_FD",
	GPUSetSocket: "GPU_SET_SOCKET", ResetDevice: "RESET_DEVICE", VringKick: "VRING_KICK",
	GetMaxMemSlots: "GET_MAX_MEM_SLOTS", AddMemReg: "ADD_MEM_REG", RemMemReg: "REM_MEM_REG", SetStatus: "SET_STATUS",
	GetStatus: "GET_STATUS", GetSharedObject: "GET_SHARED_OBJECT", SetDeviceStateFD: "SET_DEVICE_STATE_FD",
	CheckDeviceState: "CHECK_DEVICE_STATE",
}

// String is the name that the specification gives the request, without its prefix.
func (r Request) String() string {
	if int(r) < len(names) && names[r] != "" {
		return names[r]
	}
	return fmt.Sprintf("request %d", uint32(r))
}

// Protocol feature bits (docs/interop/vhost-user.rst, "Protocol features").
const (
	ProtocolMQ                = 1 << 0
	ProtocolLogShmFD          = 1 << 1
	ProtocolRARP              = 1 << 2
	ProtocolReplyAck          = 1 << 3
	ProtocolMTU               = 1 << 4
	ProtocolBackendReq        = 1 << 5
	ProtocolCrossEndian       = 1 << 6
	ProtocolCryptoSession     = 1 << 7
	ProtocolPagefault         = 1 << 8
	ProtocolConfig            = 1 << 9
	ProtocolBackendSendFD     = 1 << 10
	ProtocolHostNotifier      = 1 << 11
	ProtocolInflightShmFD     = 1 << 12
	ProtocolResetDevice       = 1 << 13
	ProtocolInbandNotify      = 1 << 14
	ProtocolConfigureMemSlots = 1 << 15
	ProtocolStatus            = 1 << 16
	ProtocolXenMmap           = 1 << 17
	ProtocolSharedObject      = 1 << 18
	ProtocolDeviceState       = 1 << 19
)

// Header flags.
const (
	FlagVersion     = 0x1 // the only version there is
	FlagVersionMask = 0x3
	FlagReply       = 0x4
	FlagNeedReply   = 0x8
)

// HeaderSize is the size of an encoded [Header] in bytes; MaxPayload bounds what may follow it. The largest payload the
// specification has is a configuration space of 256 bytes behind its 12-byte head; a memory table of eight regions takes 264.
const (
	HeaderSize = 12
	MaxPayload = 4096
	MaxFDs     = 8 // VHOST_MEMORY_BASELINE_NREGIONS: no message carries more
)

// Header precedes each message: struct vhost_user_msg up to its payload.
type Header struct {
	Request Request
	Flags   uint32
	Size    uint32 // of the payload, bytes
}

// AppendTo appends the encoded header to b.
func (h Header) AppendTo(b []byte) []byte {
	b = le.AppendUint32(b, uint32(h.Request))
	b = le.AppendUint32(b, h.Flags)
	return le.AppendUint32(b, h.Size)
}

// Unmarshal decodes the first HeaderSize bytes of b.
func (h *Header) Unmarshal(b []byte) error {
	if len(b) < HeaderSize {
		return short("header", len(b), HeaderSize)
	}
	*h = Header{Request(le.Uint32(b)), le.Uint32(b[4:]), le.Uint32(b[8:])}
	return nil
}

// Validate refuses another version, a reply where a request is due, and a payload that no message has.
func (h Header) Validate() error {
	switch {
	case h.Flags&FlagVersionMask != FlagVersion:
		return fmt.Errorf("%v: header flags %#x: version is not 1", h.Request, h.Flags)
	case h.Flags&FlagReply != 0:
		return fmt.Errorf("%v: header flags %#x: a reply where a request is due", h.Request, h.Flags)
	case h.Size > MaxPayload:
		return fmt.Errorf("%v: payload of %d bytes: more than %d", h.Request, h.Size, MaxPayload)
	}
	return nil
}

// NeedReply reports whether the front-end waits for an acknowledgement (with REPLY_ACK negotiated).
func (h Header) NeedReply() bool { return h.Flags&FlagNeedReply != 0 }

func short(what string, have, want int) error {
	return fmt.Errorf("%s of %d bytes, not %d", what, have, want)
}

// exact is the check that every payload of fixed size starts with.
func exact(what string, b []byte, want int) error {
	if len(b) != want {
		return short(what, len(b), want)
	}
	return nil
}

// U64 is a payload of one number: features, an fd message's vring index, a status.
type U64 uint64

// Size of the encoded payload in bytes.
const U64Size = 8

// AppendTo appends the encoded number to b.
func (u U64) AppendTo(b []byte) []byte { return le.AppendUint64(b, uint64(u)) }

// Unmarshal decodes b, which must be exactly the payload.
func (u *U64) Unmarshal(b []byte) error {
	if err := exact("payload", b, U64Size); err != nil {
		return err
	}
	*u = U64(le.Uint64(b))
	return nil
}

// VringFD is the number of SET_VRING_KICK, _CALL and _ERR: bits 0 to 7 are the vring's index, bit 8 says that no descriptor comes
// with the message, which asks for polling.
type VringFD uint64

// VringNoFD is the flag of a [VringFD] without a descriptor.
const VringNoFD = 1 << 8

// Index of the vring.
func (v VringFD) Index() uint32 { return uint32(v & 0xff) }

// NoFD reports whether no descriptor comes with the message.
func (v VringFD) NoFD() bool { return v&VringNoFD != 0 }

// Unmarshal decodes b, which must be exactly the payload.
func (v *VringFD) Unmarshal(b []byte) error { return (*U64)(v).Unmarshal(b) }

// AppendTo appends the encoded number to b.
func (v VringFD) AppendTo(b []byte) []byte { return U64(v).AppendTo(b) }

// Validate checks that the message carries a descriptor exactly where the number says so, and nothing in reserved bits.
func (v VringFD) Validate(fds int) error {
	switch {
	case v>>9 != 0:
		return fmt.Errorf("vring number %#x has reserved bits", uint64(v))
	case v.NoFD() && fds != 0:
		return fmt.Errorf("%d descriptors came with a message that says it has none", fds)
	case !v.NoFD() && fds != 1:
		return fmt.Errorf("%d descriptors, not 1", fds)
	}
	return nil
}

// VringState is the payload of SET_VRING_NUM, _BASE, _ENABLE and GET_VRING_BASE: struct vhost_vring_state.
type VringState struct{ Index, Num uint32 }

// VringStateSize is the size of the encoded payload in bytes.
const VringStateSize = 8

// AppendTo appends the encoded state to b.
func (s VringState) AppendTo(b []byte) []byte {
	return le.AppendUint32(le.AppendUint32(b, s.Index), s.Num)
}

// Unmarshal decodes b, which must be exactly the payload.
func (s *VringState) Unmarshal(b []byte) error {
	if err := exact("vring state", b, VringStateSize); err != nil {
		return err
	}
	*s = VringState{le.Uint32(b), le.Uint32(b[4:])}
	return nil
}

// ValidateNum checks a ring size: a power of two up to MaxRingSize (VIRTIO 1.2, section 2.7).
func (s VringState) ValidateNum() error {
	if s.Num == 0 || s.Num > MaxRingSize || s.Num&(s.Num-1) != 0 {
		return fmt.Errorf("ring size %d is no power of two from 1 to %d", s.Num, MaxRingSize)
	}
	return nil
}

// ValidateBase checks an index into the avail ring, which is 16 bits wide.
func (s VringState) ValidateBase() error {
	if s.Num > 0xffff {
		return fmt.Errorf("avail index %d is wider than 16 bits", s.Num)
	}
	return nil
}

// ValidateEnable checks that the number is 0 or 1.
func (s VringState) ValidateEnable() error {
	if s.Num > 1 {
		return fmt.Errorf("enable value %d is neither 0 nor 1", s.Num)
	}
	return nil
}

// VringAddr is the payload of SET_VRING_ADDR: struct vhost_vring_addr. The three ring addresses are in the front-end's address
// space, Log is a guest physical address.
type VringAddr struct {
	Index, Flags           uint32
	Desc, Used, Avail, Log uint64
}

// VringAddrSize is the size of the encoded payload in bytes; VringAddrLog is the only flag: used-ring writes are to be logged.
const (
	VringAddrSize = 40
	VringAddrLog  = 1
)

// AppendTo appends the encoded addresses to b.
func (a VringAddr) AppendTo(b []byte) []byte {
	b = le.AppendUint32(le.AppendUint32(b, a.Index), a.Flags)
	for _, v := range [...]uint64{a.Desc, a.Used, a.Avail, a.Log} {
		b = le.AppendUint64(b, v)
	}
	return b
}

// Unmarshal decodes b, which must be exactly the payload.
func (a *VringAddr) Unmarshal(b []byte) error {
	if err := exact("vring addresses", b, VringAddrSize); err != nil {
		return err
	}
	*a = VringAddr{le.Uint32(b), le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:])}
	return nil
}

// Validate checks alignment and flags; that the rings lie in mapped memory is for the holder of the memory table to say.
func (a VringAddr) Validate() error {
	switch {
	case a.Flags&^VringAddrLog != 0:
		return fmt.Errorf("vring address flags %#x are unknown", a.Flags)
	case a.Desc%DescAlign != 0:
		return fmt.Errorf("descriptor table %#x is not aligned to %d", a.Desc, DescAlign)
	case a.Avail%AvailAlign != 0:
		return fmt.Errorf("avail ring %#x is not aligned to %d", a.Avail, AvailAlign)
	case a.Used%UsedAlign != 0:
		return fmt.Errorf("used ring %#x is not aligned to %d", a.Used, UsedAlign)
	}
	return nil
}

// MemRegion describes a region of guest memory: where it is for the guest and for the front-end, and where in the descriptor that
// comes with it. All in bytes.
type MemRegion struct{ GuestAddr, Size, UserAddr, MmapOffset uint64 }

// MemRegionSize is the size of an encoded region in bytes; MaxRegionSize bounds a region: 1 TiB.
const (
	MemRegionSize = 32
	MaxRegionSize = 1 << 40
)

// AppendTo appends the encoded region to b.
func (m MemRegion) AppendTo(b []byte) []byte {
	for _, v := range [...]uint64{m.GuestAddr, m.Size, m.UserAddr, m.MmapOffset} {
		b = le.AppendUint64(b, v)
	}
	return b
}

func (m *MemRegion) unmarshal(b []byte) {
	*m = MemRegion{le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])}
}

// Validate refuses an empty region, one beyond MaxRegionSize, and ends that do not fit 64 bits.
func (m MemRegion) Validate() error {
	switch {
	case m.Size == 0:
		return errors.New("memory region is empty")
	case m.Size > MaxRegionSize:
		return fmt.Errorf("memory region of %d bytes is larger than %d", m.Size, uint64(MaxRegionSize))
	case m.GuestAddr+m.Size < m.GuestAddr, m.UserAddr+m.Size < m.UserAddr:
		return fmt.Errorf("memory region at guest %#x, user %#x of %#x bytes wraps round", m.GuestAddr, m.UserAddr, m.Size)
	case (m.GuestAddr|m.UserAddr|m.MmapOffset)%DescAlign != 0:
		return fmt.Errorf("memory region at guest %#x, user %#x, mmap offset %#x is not aligned to %d", m.GuestAddr, m.UserAddr, m.MmapOffset, DescAlign)
	case m.MmapOffset > 1<<62:
		return fmt.Errorf("memory region's mmap offset %#x is not a file offset", m.MmapOffset)
	}
	return nil
}

// SingleMemRegion is the payload of ADD_MEM_REG and REM_MEM_REG: 8 bytes of padding and a region.
type SingleMemRegion struct{ MemRegion }

// SingleMemRegionSize is the size of the encoded payload in bytes.
const SingleMemRegionSize = 8 + MemRegionSize

// AppendTo appends the encoded payload to b.
func (s SingleMemRegion) AppendTo(b []byte) []byte {
	return s.MemRegion.AppendTo(le.AppendUint64(b, 0))
}

// Unmarshal decodes b, which must be exactly the payload.
func (s *SingleMemRegion) Unmarshal(b []byte) error {
	if err := exact("memory region", b, SingleMemRegionSize); err != nil {
		return err
	}
	s.unmarshal(b[8:])
	return nil
}

// MemTable is the payload of SET_MEM_TABLE: count, padding, regions. One descriptor comes with each region, in order.
type MemTable []MemRegion

// AppendTo appends the encoded table to b.
func (t MemTable) AppendTo(b []byte) []byte {
	b = le.AppendUint32(le.AppendUint32(b, uint32(len(t))), 0)
	for _, r := range t {
		b = r.AppendTo(b)
	}
	return b
}

// Unmarshal decodes b. QEMU sends the table at its full size of eight regions or cut after the last: both are taken.
func (t *MemTable) Unmarshal(b []byte) error {
	if len(b) < 8 {
		return short("memory table", len(b), 8)
	}
	n := int(le.Uint32(b))
	if n > MaxFDs {
		return fmt.Errorf("memory table of %d regions: at most %d", n, MaxFDs)
	}
	if len(b) < 8+n*MemRegionSize {
		return short("memory table", len(b), 8+n*MemRegionSize)
	}
	*t = make(MemTable, n)
	for i := range *t {
		(*t)[i].unmarshal(b[8+i*MemRegionSize:])
	}
	return nil
}

// Validate checks each region and that a descriptor came with each.
func (t MemTable) Validate(fds int) error {
	if len(t) == 0 {
		return errors.New("memory table is empty")
	}
	if fds != len(t) {
		return fmt.Errorf("memory table of %d regions came with %d descriptors", len(t), fds)
	}
	for i, r := range t {
		if err := r.Validate(); err != nil {
			return fmt.Errorf("region %d: %w", i, err)
		}
	}
	return nil
}

// Config is the payload of GET_CONFIG and SET_CONFIG: offset, size, flags and the bytes of the space (at most 256).
type Config struct {
	Offset, Flags uint32
	Data          []byte
}

// ConfigHead is the size in bytes of the payload before the data; MaxConfig bounds the data (VHOST_USER_MAX_CONFIG_SIZE).
const (
	ConfigHead = 12
	MaxConfig  = 256
)

// AppendTo appends the encoded payload to b.
func (c Config) AppendTo(b []byte) []byte {
	b = le.AppendUint32(le.AppendUint32(b, c.Offset), uint32(len(c.Data)))
	return append(le.AppendUint32(b, c.Flags), c.Data...)
}

// Unmarshal decodes b; Data points into it.
func (c *Config) Unmarshal(b []byte) error {
	if len(b) < ConfigHead {
		return short("configuration space", len(b), ConfigHead)
	}
	*c = Config{Offset: le.Uint32(b), Flags: le.Uint32(b[8:]), Data: b[ConfigHead:]}
	if n := le.Uint32(b[4:]); uint64(n) != uint64(len(c.Data)) {
		return fmt.Errorf("configuration space says %d bytes and has %d", n, len(c.Data))
	}
	return nil
}

// Validate bounds offset and size by the largest configuration space there is.
func (c Config) Validate() error {
	if len(c.Data) == 0 || len(c.Data) > MaxConfig || c.Offset > MaxConfig {
		return fmt.Errorf("configuration space at %d of %d bytes is outside of %d", c.Offset, len(c.Data), MaxConfig)
	}
	return nil
}
