package vhostabi_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/vhostabi"
)

// The bytes are those that QEMU 7.2 was seen to send, but for addresses.
func TestWireFormat(t *testing.T) {
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"header", vhostabi.Header{Request: vhostabi.SetVringNum, Flags: vhostabi.FlagVersion | vhostabi.FlagNeedReply, Size: 8}.AppendTo(nil), "080000000900000008000000"},
		{"number", vhostabi.U64(0x170000000).AppendTo(nil), "0000007001000000"},
		{"vring state", vhostabi.VringState{Index: 1, Num: 1024}.AppendTo(nil), "0100000000040000"},
		{"vring addresses", vhostabi.VringAddr{Index: 1, Flags: 1, Desc: 0x10, Used: 0x20, Avail: 0x30, Log: 0x40}.AppendTo(nil),
			"0100000001000000" + "1000000000000000" + "2000000000000000" + "3000000000000000" + "4000000000000000"},
		{"single region", vhostabi.SingleMemRegion{MemRegion: vhostabi.MemRegion{GuestAddr: 1, Size: 2, UserAddr: 3, MmapOffset: 4}}.AppendTo(nil),
			"0000000000000000" + "0100000000000000" + "0200000000000000" + "0300000000000000" + "0400000000000000"},
		{"table", vhostabi.MemTable{{GuestAddr: 1, Size: 2, UserAddr: 3, MmapOffset: 4}}.AppendTo(nil),
			"0100000000000000" + "0100000000000000" + "0200000000000000" + "0300000000000000" + "0400000000000000"},
		{"config", vhostabi.Config{Offset: 36, Flags: 1, Data: []byte{7, 0, 0, 0}}.AppendTo(nil), "240000000400000001000000" + "07000000"},
	} {
		assert.Equal(t, c.want, hex.EncodeToString(c.got), c.name)
	}
}

func TestConfigurationSpace(t *testing.T) {
	short := vhostabi.FSConfig{Tag: "share", NumRequestQueues: 3}.AppendTo(nil)
	require.Len(t, short, vhostabi.FSConfigSize)
	assert.Equal(t, append([]byte("share"), make([]byte, 31)...), short[:36])
	assert.Equal(t, []byte{3, 0, 0, 0}, short[36:])
	full := vhostabi.FSConfig{Tag: "0123456789abcdefghijklmnopqrstuvwxyz", NumRequestQueues: 1}.AppendTo(nil)
	assert.Equal(t, "0123456789abcdefghijklmnopqrstuvwxyz", string(full[:36]), "a tag of full size has no NUL")
}

// Each refusal has a neighbour that is accepted, so that the test sees the check and not something else.
func TestValidation(t *testing.T) {
	region := vhostabi.MemRegion{GuestAddr: 0x1000, Size: 0x2000, UserAddr: 0x7f0000000000, MmapOffset: 0}
	with := func(f func(*vhostabi.MemRegion)) vhostabi.MemRegion { r := region; f(&r); return r }
	header := vhostabi.Header{Request: vhostabi.GetFeatures, Flags: vhostabi.FlagVersion}
	addr := vhostabi.VringAddr{Desc: 0x1000, Avail: 0x2000, Used: 0x3000}
	for _, c := range []struct {
		name string
		err  error
		want string // "" for accepted
	}{
		{"header", header.Validate(), ""},
		{"header, longest", vhostabi.Header{Flags: 1, Size: vhostabi.MaxPayload}.Validate(), ""},
		{"header, too long", vhostabi.Header{Flags: 1, Size: vhostabi.MaxPayload + 1}.Validate(), "more than 4096"},
		{"header, version 0", vhostabi.Header{Flags: 0}.Validate(), "version is not 1"},
		{"header, version 2", vhostabi.Header{Flags: 2}.Validate(), "version is not 1"},
		{"header, reply", vhostabi.Header{Flags: 5}.Validate(), "a reply where a request is due"},

		{"fd", vhostabi.VringFD(3).Validate(1), ""},
		{"fd, none", vhostabi.VringFD(3 | vhostabi.VringNoFD).Validate(0), ""},
		{"fd, missing", vhostabi.VringFD(3).Validate(0), "0 descriptors, not 1"},
		{"fd, two", vhostabi.VringFD(3).Validate(2), "2 descriptors, not 1"},
		{"fd, one too many", vhostabi.VringFD(3 | vhostabi.VringNoFD).Validate(1), "says it has none"},
		{"fd, reserved", vhostabi.VringFD(3 | 1<<9).Validate(1), "reserved bits"},

		{"size", vhostabi.VringState{Num: 32768}.ValidateNum(), ""},
		{"size 1", vhostabi.VringState{Num: 1}.ValidateNum(), ""},
		{"size 0", vhostabi.VringState{Num: 0}.ValidateNum(), "no power of two"},
		{"size 3", vhostabi.VringState{Num: 3}.ValidateNum(), "no power of two"},
		{"size 65536", vhostabi.VringState{Num: 65536}.ValidateNum(), "no power of two"},
		{"base", vhostabi.VringState{Num: 0xffff}.ValidateBase(), ""},
		{"base 65536", vhostabi.VringState{Num: 0x10000}.ValidateBase(), "wider than 16 bits"},
		{"enable 1", vhostabi.VringState{Num: 1}.ValidateEnable(), ""},
		{"enable 2", vhostabi.VringState{Num: 2}.ValidateEnable(), "neither 0 nor 1"},

		{"addresses", addr.Validate(), ""},
		{"addresses, logged", vhostabi.VringAddr{Flags: vhostabi.VringAddrLog}.Validate(), ""},
		{"addresses, flag", vhostabi.VringAddr{Flags: 2}.Validate(), "flags 0x2"},
		{"descriptors askew", vhostabi.VringAddr{Desc: 8}.Validate(), "not aligned to 16"},
		{"avail askew", vhostabi.VringAddr{Avail: 1}.Validate(), "not aligned to 2"},
		{"used askew", vhostabi.VringAddr{Used: 2}.Validate(), "not aligned to 4"},

		{"region", region.Validate(), ""},
		{"region, 1 TiB", with(func(r *vhostabi.MemRegion) { r.Size = vhostabi.MaxRegionSize }).Validate(), ""},
		{"region, empty", with(func(r *vhostabi.MemRegion) { r.Size = 0 }).Validate(), "empty"},
		{"region, huge", with(func(r *vhostabi.MemRegion) { r.Size = vhostabi.MaxRegionSize + 1 }).Validate(), "larger than"},
		{"region, guest wraps", with(func(r *vhostabi.MemRegion) { r.GuestAddr = ^uint64(0xfff) }).Validate(), "wraps"},
		{"region, user wraps", with(func(r *vhostabi.MemRegion) { r.UserAddr = ^uint64(0xfff) }).Validate(), "wraps"},
		{"region, askew", with(func(r *vhostabi.MemRegion) { r.UserAddr++ }).Validate(), "not aligned"},
		{"region, offset", with(func(r *vhostabi.MemRegion) { r.MmapOffset = 1 << 63 }).Validate(), "not a file offset"},
		{"table", vhostabi.MemTable{region}.Validate(1), ""},
		{"table, empty", vhostabi.MemTable{}.Validate(0), "empty"},
		{"table, fds", vhostabi.MemTable{region}.Validate(2), "came with 2 descriptors"},
		{"table, bad region", vhostabi.MemTable{region, {}}.Validate(2), "region 1: memory region is empty"},

		{"config", vhostabi.Config{Data: make([]byte, 256)}.Validate(), ""},
		{"config, empty", vhostabi.Config{}.Validate(), "outside of 256"},
		{"config, long", vhostabi.Config{Data: make([]byte, 257)}.Validate(), "outside of 256"},
		{"config, far", vhostabi.Config{Offset: 257, Data: make([]byte, 1)}.Validate(), "outside of 256"},
	} {
		if c.want == "" {
			assert.NoError(t, c.err, c.name)
		} else {
			assert.ErrorContains(t, c.err, c.want, c.name)
		}
	}
}

func TestSizesAreExact(t *testing.T) {
	for name, decode := range decoders {
		for n := range 300 {
			if err := decode(make([]byte, n)); err == nil {
				switch name {
				case "number", "vring fd", "vring state":
					assert.Equal(t, 8, n, name)
				case "vring addresses":
					assert.Equal(t, vhostabi.VringAddrSize, n)
				case "single region":
					assert.Equal(t, vhostabi.SingleMemRegionSize, n)
				case "table": // its count says how much of it is used
					assert.GreaterOrEqual(t, n, 8)
				case "config":
					assert.Equal(t, vhostabi.ConfigHead, n)
				case "header":
					assert.GreaterOrEqual(t, n, vhostabi.HeaderSize)
				}
			}
		}
	}
	var table vhostabi.MemTable
	assert.ErrorContains(t, table.Unmarshal(append([]byte{9, 0, 0, 0}, make([]byte, 4+9*32)...)), "at most 8")
	assert.ErrorContains(t, table.Unmarshal(append([]byte{2, 0, 0, 0}, make([]byte, 4+1*32)...)), "of 40 bytes, not 72")
	var config vhostabi.Config
	assert.ErrorContains(t, config.Unmarshal([]byte{0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1}), "says 5 bytes and has 1")
}

func TestNames(t *testing.T) {
	assert.Equal(t, "GET_FEATURES", vhostabi.GetFeatures.String())
	assert.Equal(t, "CHECK_DEVICE_STATE", vhostabi.CheckDeviceState.String())
	assert.Equal(t, "request 0", vhostabi.Request(0).String())
	assert.Equal(t, "request 4294967295", vhostabi.Request(0xffffffff).String())
}

var decoders = map[string]func([]byte) error{
	"header":          func(b []byte) error { var v vhostabi.Header; return v.Unmarshal(b) },
	"number":          func(b []byte) error { var v vhostabi.U64; return v.Unmarshal(b) },
	"vring fd":        func(b []byte) error { var v vhostabi.VringFD; return v.Unmarshal(b) },
	"vring state":     func(b []byte) error { var v vhostabi.VringState; return v.Unmarshal(b) },
	"vring addresses": func(b []byte) error { var v vhostabi.VringAddr; return v.Unmarshal(b) },
	"single region":   func(b []byte) error { var v vhostabi.SingleMemRegion; return v.Unmarshal(b) },
	"table":           func(b []byte) error { var v vhostabi.MemTable; return v.Unmarshal(b) },
	"config":          func(b []byte) error { var v vhostabi.Config; return v.Unmarshal(b) },
}

// FuzzPayloads decodes any bytes as each payload: none panics, and what is decoded encodes to the same bytes.
func FuzzPayloads(f *testing.F) {
	f.Add(vhostabi.Header{Request: vhostabi.GetConfig, Flags: 1, Size: 52}.AppendTo(nil))
	f.Add(vhostabi.VringAddr{Desc: 16}.AppendTo(nil))
	f.Add(vhostabi.MemTable{{Size: 1}, {GuestAddr: 4096, Size: 1}}.AppendTo(nil))
	f.Add(vhostabi.Config{Data: make([]byte, 40)}.AppendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.Clone(b)
		for _, decode := range decoders {
			decode(b)
		}
		require.Equal(t, in, b, "decoding changes nothing")
		var h vhostabi.Header
		if h.Unmarshal(b) == nil {
			h.Validate()
			require.Equal(t, b[:vhostabi.HeaderSize], h.AppendTo(nil))
			require.NotEmpty(t, h.Request.String())
		}
		var a vhostabi.VringAddr
		if a.Unmarshal(b) == nil {
			a.Validate()
			require.Equal(t, b, a.AppendTo(nil))
		}
		var m vhostabi.MemTable
		if m.Unmarshal(b) == nil {
			if m.Validate(len(m)) == nil {
				for _, r := range m {
					require.Greater(t, r.GuestAddr+r.Size, r.GuestAddr)
				}
			}
			require.Equal(t, b[8:8+len(m)*vhostabi.MemRegionSize], m.AppendTo(nil)[8:])
		}
		var c vhostabi.Config
		if c.Unmarshal(b) == nil {
			c.Validate()
			require.Equal(t, b, c.AppendTo(nil))
		}
	})
}
