package vhostuser_test

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/vhostuser"
)

// fuzzMemory is a region's size in FuzzMessages; its rings lie at known places, so that messages can set them up.
const fuzzMemory = 1 << 20

// FuzzMessages plays a front-end that sends any messages with any descriptors. The device answers each question, refuses or ends, and
// never leaves a descriptor, a mapping or a thread behind, nor panics.
//
// The input is a sequence of: request, flags, payload length (one byte each), which descriptors come along (one byte, two bits each: none,
// memory, eventfd, pipe; 0xaa: twelve of them), payload. Request 0xfe is no message: its payload is sent as it is; with 0xfd the front-end
// leaves without having read what was answered.
func FuzzMessages(f *testing.F) {
	message := func(request fe.Message, fds byte, payload []byte) []byte {
		return append([]byte{byte(request), 9, byte(len(payload)), fds}, payload...)
	}
	join := func(all ...[]byte) (b []byte) {
		for _, m := range all {
			b = append(b, m...)
		}
		return b
	}
	setUp := join(
		message(fe.MsgSetProtocolFeatures, 0, number(1<<0|1<<3|1<<15)),
		message(fe.MsgSetFeatures, 0, number(1<<32|1<<30|1<<29|1<<28)),
		message(fe.MsgAddMemReg, 1, region(0, fuzzMemory, 1<<40, 0)),
		message(fe.MsgSetVringNum, 0, state(1, 16)),
		message(fe.MsgSetVringBase, 0, state(1, 0)),
		message(fe.MsgSetVringAddr, 0, addrs(1, 1<<40, 1<<40+4096, 1<<40+8192)),
		message(fe.MsgSetVringCall, 2, number(1)),
		message(fe.MsgSetVringErr, 2, number(1)),
		message(fe.MsgSetVringKick, 2, number(1)),
		message(fe.MsgSetVringEnable, 0, state(1, 1)),
	)
	f.Add(setUp)
	f.Add(join(setUp, message(fe.MsgGetVringBase, 0, state(1, 0)), message(fe.MsgRemMemReg, 0, region(0, fuzzMemory, 1<<40, 0))))
	f.Add(join(setUp, message(fe.MsgRemMemReg, 0, region(0, fuzzMemory, 1<<40, 0)), message(fe.MsgResetDevice, 0, nil)))
	f.Add(join(setUp, message(fe.MsgSetVringKick, 0, number(1|1<<8)), message(fe.MsgSetStatus, 0, number(0))))
	f.Add(join(message(fe.MsgSetMemTable, 1, append(state(1, 0), region(0, fuzzMemory, 1<<40, 0)[8:]...)), message(fe.MsgGetConfig, 0, configRequest(0, 40))))
	f.Add(message(fe.MsgSetVringCall, 3, number(1)))
	f.Add(message(fe.MsgSetMemTable, 0xff, append(state(4, 0), make([]byte, 128)...)))

	// Each message with what it should carry and with what it should not, refused one after the other where a status is asked for.
	agreed := message(fe.MsgSetProtocolFeatures, 0, number(1<<0|1<<3|1<<9|1<<13|1<<15|1<<16))
	wrong := agreed
	for r := fe.MsgGetFeatures; r <= fe.MsgCheckDeviceState; r++ {
		for _, fds := range []byte{0, 1, 2, 5} {
			for _, payload := range [][]byte{nil, number(1), number(1 << 40), state(1, 16), state(9, 3), state(1, 1<<20), addrs(1, 1, 2, 3), addrs(9, 0, 0, 0), region(1, 0, 0, 0), region(0, fuzzMemory, 1<<40, 0)} {
				m := message(r, fds, payload)
				if fds == 0 && len(payload) < 9 {
					f.Add(join(agreed, m)) // whatever has a reply of its own ends the connection
				}
				if !slices.Contains([]fe.Message{
					fe.MsgGetFeatures, fe.MsgGetProtocolFeatures, fe.MsgGetQueueNum, fe.MsgGetMaxMemSlots, fe.MsgGetVringBase, fe.MsgGetConfig, fe.MsgGetStatus,
					fe.MsgSetProtocolFeatures, fe.MsgSetLogBase, fe.MsgGetInflightFD, fe.MsgGetSharedObject, fe.MsgSetDeviceStateFD, fe.MsgCheckDeviceState,
					fe.MsgPostcopyAdvise, fe.MsgPostcopyEnd, fe.MsgCreateCryptoSession,
				}, r) {
					wrong = append(wrong, m...)
				}
			}
		}
	}
	f.Add(join(setUp, wrong))
	f.Add(join(setUp, agreed, message(fe.MsgSetStatus, 0, number(15)), message(fe.MsgGetStatus, 0, nil), message(fe.MsgSetStatus, 0, number(0))))
	f.Add(join(agreed, message(fe.MsgGetConfig, 0, configRequest(0, 40)), message(fe.MsgGetConfig, 0, configRequest(36, 8)), message(fe.MsgGetConfig, 0, nil)))
	f.Add(join(setUp, message(fe.MsgSetVringKick, 2, number(1)), message(fe.MsgSetVringAddr, 0, addrs(1, 1<<40, 1<<40+4096, 1<<40+8192)), message(fe.MsgSetVringNum, 0, state(1, 32))))
	f.Add(join(setUp, message(fe.MsgSetMemTable, 1, append(state(1, 0), region(0, fuzzMemory, 1<<41, 0)[8:]...)), message(fe.MsgGetFeatures, 0, nil)))
	f.Add([]byte{1, 0, 0, 0, 1, 9, 0, 0})
	f.Add(message(fe.MsgGetFeatures, 0xaa, nil))
	f.Add(join(agreed, message(0xfe, 0, []byte{15, 0, 0, 0, 1, 0}), message(0xfe, 2, []byte{0, 0, 0, 0, 0, 0}), message(fe.MsgGetStatus, 0, nil)))
	f.Add(join(agreed, message(0xfe, 1, []byte{2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1, 2})))
	f.Add(join(setUp, message(fe.MsgGetFeatures, 0, nil), message(fe.MsgGetQueueNum, 0, nil), message(0xfd, 0, nil)))
	f.Add(join(setUp, message(fe.MsgSetVringAddr, 0, addrs(1, 1<<40+16, 1<<40+4096, 1<<40+8192)), message(fe.MsgSetBackendReqFD, 2, nil), message(fe.MsgSetBackendReqFD, 3, nil)))
	f.Add([]byte{1, 9, 40, 0, 1, 2, 3})

	mem, err := unix.MemfdCreate("guest-ram", unix.MFD_CLOEXEC)
	require.NoError(f, err)
	require.NoError(f, unix.Ftruncate(mem, fuzzMemory))
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	require.NoError(f, err)
	var pipe [2]int
	require.NoError(f, unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		fds := openFDs(t)
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		e := &echo{}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			vhostuser.Serve(context.Background(), vhostuser.NewConn(pair[0]), e, vhostuser.Config{Tag: "t", MaxRequestQueues: 2, Logger: log}, nil)
		}()
		front, err := fe.NewConn(pair[1], 5*time.Second)
		require.NoError(t, err)
		var answers [4096]byte
		left := false
		for len(in) >= 4 {
			request, flags, n, which := fe.Message(in[0]), uint32(in[1]), min(int(in[2]), len(in)-4), in[3]
			var with []int
			if which == 0xaa {
				which, with = 0, slices.Repeat([]int{event}, 12)
			}
			for ; which != 0; which >>= 2 {
				if which&3 != 0 {
					with = append(with, []int{mem, event, pipe[1]}[which&3-1])
				}
			}
			if request == 0xfd {
				left = true
				break
			}
			b := fe.Frame(request, flags, in[4:4+n])
			if request == 0xfe {
				b = in[4 : 4+n]
			}
			in = in[4+n:]
			if len(b) == 0 {
				continue // no descriptor travels without a byte
			}
			if front.SendRaw(b, with...) != nil {
				break // it has ended the connection
			}
			unix.Recvfrom(pair[1], answers[:], unix.MSG_DONTWAIT) // what it says does not matter
			unix.Write(event, binary.NativeEndian.AppendUint64(nil, 1))
		}
		// What is on its way is dealt with before the end.
		if !left {
			unix.Shutdown(pair[1], unix.SHUT_WR)
		}
		for !left {
			if _, _, _, err := front.Recv(nil); err != nil {
				break
			}
		}
		front.Close()
		select {
		case <-ended:
		case <-time.After(12 * time.Second):
			t.Fatal("the device does not end")
		}
		require.EqualValues(t, 1, min(e.resets.Load(), 1))
		require.Equal(t, fds, openFDs(t), "descriptors")
	})
}
