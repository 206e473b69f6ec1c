package vhostuser_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/vhostuser"
)

// FuzzDriver is a guest's driver that does anything to its rings while requests run, on several queues, and a front-end that stops,
// starts and takes memory away meanwhile. Queues whose ring can still be understood serve on, the device ends when its front-end leaves,
// and nothing is left behind.
//
// The input: request queues and how it all ends, log2 of the ring size and what is not negotiated, poll, then operations of three bytes:
// what, queue, argument.
func FuzzDriver(f *testing.F) {
	f.Add([]byte{1, 4, 0, 0, 1, 3, 0, 1, 3, 1, 1, 0})
	f.Add([]byte{3, 3, 50, 0, 1, 255 - 1, 0, 2, 255 - 2, 0, 3, 3, 2, 0, 0, 3, 3, 0, 0, 2, 5, 1, 1, 0, 4, 1, 0, 5, 1, 0})
	f.Add([]byte{2, 4, 50, 0, 1, 255 - 3, 0, 1, 255 - 3, 0, 1, 255 - 3, 0, 1, 3, 1, 1, 0, 8, 0, 0, 9, 0, 0, 0, 1, 3, 1, 1, 0})
	f.Add([]byte{2, 4, 0, 2, 1, 200, 6, 1, 17, 1, 1, 0, 0, 2, 3, 1, 2, 0})
	f.Add([]byte{1, 2, 0, 7, 1, 1, 7, 0, 0, 0, 1, 3, 1, 1, 0, 7, 1, 3, 0, 1, 3, 1, 1, 0})
	f.Add([]byte{2, 5, 0, 10, 0, 1, 0, 1, 3, 1, 1, 0, 11, 1, 0, 0, 1, 3, 1, 1, 0, 12, 0, 0, 0, 2, 3, 1, 2, 0})
	f.Add([]byte{1, 4, 0, 0, 1, 3, 1, 1, 0, 13, 0, 0, 1, 1, 0, 0, 0, 3, 1, 0, 0})
	f.Add([]byte{1, 4, 0, 14, 1, 0, 14, 1, 1, 14, 1, 2, 0, 1, 3, 1, 1, 0})
	f.Add([]byte{1, 5, 0, 6, 1, 255, 0, 0, 3, 1, 0, 0, 6, 0, 9, 8, 1, 0, 0, 1, 3, 1, 1, 0})                 // an index that jumps, then a new ring
	f.Add([]byte{1, 0x86, 0, 0, 1, 3, 1, 1, 0, 15, 0, 200, 9, 1, 5, 0, 1, 3, 1, 1, 0})                      // without the event index
	f.Add([]byte{2, 6, 50, 0, 1, 255, 1, 1, 0, 15, 0, 250, 15, 0, 250, 0, 1, 3, 1, 1, 0, 0, 2, 3, 1, 2, 0}) // a request that blocks
	f.Add([]byte{1, 6, 3, 0, 1, 252, 0, 1, 252, 0, 1, 252, 0, 1, 252, 0, 1, 252, 0, 1, 252, 0, 1, 252, 1, 1, 0, 15, 0, 255})
	f.Add([]byte{1, 6, 2, 10, 0, 0, 2, 1, 3, 1, 1, 0, 12, 0, 0, 2, 1, 8, 1, 1, 0, 15, 0, 200, 11, 0, 0})
	f.Add([]byte{0x80, 4, 2, 0, 1, 3, 1, 1, 0, 15, 0, 50, 13, 0, 0, 8, 0, 0, 8, 1, 0, 0, 1, 3, 1, 1, 0})
	f.Add([]byte{1, 5, 2, 4, 1, 255, 4, 1, 200, 15, 0, 100, 0, 1, 254, 0, 1, 253, 1, 1, 0, 15, 0, 100, 0, 1, 3, 1, 1, 0})
	f.Add([]byte{1, 5, 0, 10, 0, 0, 2, 1, 8, 1, 1, 0, 12, 0, 0, 2, 1, 8, 1, 1, 0, 0, 1, 3, 1, 1, 0})              // buffers in memory that vanished
	f.Add([]byte{1, 0x43, 0, 0, 1, 3, 1, 1, 0, 8, 1, 0, 0, 1, 3, 1, 1, 0})                                        // without protocol features
	f.Add([]byte{0x12, 6, 100, 0, 1, 3, 1, 1, 0, 15, 0, 100, 0, 1, 3, 1, 1, 0, 15, 0, 100, 0, 2, 3, 1, 2, 0})     // sleeps that Go does not know of
	f.Add([]byte{0x41, 5, 0, 0, 1, 255, 1, 1, 0, 15, 0, 200})                                                     // told to end while a request blocks
	f.Add([]byte{0x21, 5, 0, 0, 1, 255, 1, 1, 0, 15, 0, 200})                                                     // the front-end leaves meanwhile
	f.Add([]byte{0x61, 5, 0, 0, 1, 255, 1, 1, 0, 15, 0, 200, 20, 1, 0})                                           // having asked for its end
	f.Add([]byte{9, 5, 0, 0, 1, 3, 1, 1, 0, 15, 0, 100, 8, 1, 0})                                                 // no worker to be had
	f.Add([]byte{1, 5, 0, 16, 0, 0, 16, 0, 60, 17, 0, 0, 17, 0, 0, 18, 1, 0, 0, 2, 3, 1, 2, 0, 19, 0, 13})        // odd messages
	f.Add([]byte{1, 6, 0, 0, 1, 252, 0, 1, 252, 0, 1, 252, 0, 1, 252, 0, 1, 252, 0, 1, 252, 0, 1, 252, 0, 1, 252, // many workers, then none to do
		1, 1, 0, 15, 0, 100, 0, 1, 252, 0, 1, 252, 0, 1, 252, 0, 1, 252, 0, 1, 252, 1, 1, 0, 15, 0, 255, 15, 0, 255, 0, 1, 3, 1, 1, 0})
	log := slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelDebug}))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 3 {
			return
		}
		told, leaves, hidden, noWorker := in[0]&0x40 != 0, in[0]&0x20 != 0, int(in[0]>>4&1)*2, in[0]&0x08 != 0
		fds := openFDs(t)
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		e := &echo{block: make(chan struct{})}
		if noWorker {
			e.fail = errors.New("there is none")
		}
		ended := make(chan error, 1)
		counters := make(chan vhostuser.Stats, 1)
		cfg := vhostuser.Config{MaxRequestQueues: 4, Logger: log, Poll: time.Duration(in[2]) * time.Microsecond, Workers: int(in[2]) % 4, Hidden: hidden}
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		go func() {
			ended <- vhostuser.Serve(ctx, vhostuser.NewConn(pair[0]), e, cfg, func(s vhostuser.Stats) { counters <- s })
		}()
		features := fe.DefaultFeatures &^ (uint64(in[1]>>7) << fe.FeatureEventIdx) &^ (uint64(in[1]>>6&1) << fe.FeatureProtocol)
		d, err := fe.Connect(context.Background(), fe.Config{
			FD: pair[1], RequestQueues: 1 + int(in[0])%4, QueueSize: 1 << (1 + in[1]%7), Memory: []uint64{1 << 18, 1 << 20}, Timeout: 5 * time.Second,
			Features: features, ForceMemTable: in[0]&0x80 != 0,
		})
		require.NoError(t, err)
		stats := <-counters
		acks := d.HasProtocol(fe.ProtocolReplyAck) // else a refusal is the end, and there is nothing to wait for
		client := fe.NewFUSE(d)
		client.Timeout = 5 * time.Second
		extra, err := fe.NewRegion(1<<40, 1<<16)
		require.NoError(t, err)
		defer extra.Close()
		mapped, gone, wild := false, false, map[int]bool{} // queues whose ring the driver itself has spoilt
		blocked := false
		stopped, paused := map[int]bool{}, map[int]bool{}
		for in = in[3:]; len(in) >= 3 && !gone; in = in[3:] {
			n := int(in[1]) % len(d.Queues)
			q, arg := d.Queues[n], in[2]
			switch in[0] % 21 {
			case 0: // a request of the echo's
				if arg != 255 || !blocked {
					blocked = blocked || arg == 255
					client.On(q).Start(fe.Request{Op: fe.Opcode(arg), Node: 1, OutArgs: int(arg) * 16, OutData: int(arg>>6) << 15})
				}
			case 1:
				q.Publish()
			case 2: // a chain of any descriptor
				ids, err := q.TakeDesc(1)
				if err != nil {
					break
				}
				q.WriteDesc(ids[0], fe.Desc{Addr: []uint64{0, d.Memory.Outside(), d.Memory.Regions[1].GPA + 8, extra.GPA, ^uint64(0)}[arg%5], Len: uint32(arg) << (arg % 27), Flags: uint16(arg >> 3), Next: uint16(arg)})
				q.Post(q.PrepareRaw(ids[0], ids))
			case 3:
				q.Kick()
			case 4: // heads that are not there
				q.SetAvailRing(q.AvailIndex(), uint16(arg)<<8)
				q.SetNext(q.AvailIndex() + 1)
				q.SetAvailIndex(q.AvailIndex())
				q.Kick()
			case 5:
				q.SetAvailRing(uint16(arg), uint16(arg)+q.Size-4)
			case 6: // an index that jumps
				wild[n] = true
				q.SetAvailIndex(q.AvailIndex() + uint16(arg)*64)
				q.Kick()
			case 7:
				gone = d.Enable(q, arg&1 == 1) != nil
				paused[n] = arg&1 == 0 // of a ring that is stopped it changes nothing
			case 8:
				if blocked {
					break // GET_VRING_BASE waits for it
				}
				if _, err := d.Stop(q); err != nil {
					gone = true
					break
				}
				wild[n] = false
				stopped[n], paused[n] = d.Restart(q) != nil, false
			case 9: // completions come in
				for range arg {
					if c, err := q.Reap(); err != nil || c == nil {
						break
					}
				}
			case 10:
				if acks && !mapped {
					mapped = d.Conn.Ack(fe.MsgAddMemReg, fe.SingleRegion(extra), extra.FD) == nil
				}
			case 11:
				if mapped {
					mapped = false
					gone = d.Conn.Ack(fe.MsgRemMemReg, fe.SingleRegion(extra)) != nil
				}
			case 12: // memory vanishes
				unix.Ftruncate(extra.FD, 0)
				unix.Ftruncate(extra.FD, int64(arg)<<8)
			case 13:
				if acks && !blocked && d.Conn.Ack(fe.MsgResetDevice, nil) == nil {
					for i := range d.Queues {
						stopped[i] = true
					}
				}
			case 14:
				place := []fe.Message{fe.MsgSetVringKick, fe.MsgSetVringCall, fe.MsgSetVringErr}[arg%3]
				if acks && (place != fe.MsgSetVringKick || arg&4 != 0) {
					gone = d.Conn.Ack(place, number(uint64(n)|1<<8)) != nil
				}
				if place == fe.MsgSetVringCall {
					stopped[n] = true // the driver would have to poll
				}
			case 15:
				pause := time.Duration(arg) * 10 * time.Microsecond
				if arg > 250 {
					pause = time.Duration(arg-250) * 15 * time.Millisecond // the monitor has gone to sleep
				}
				time.Sleep(pause)
			case 16: // there is no configuration space
				if acks {
					b, err := d.Conn.Call(fe.MsgGetConfig, configRequest(uint32(arg), 8))
					require.True(t, err != nil || len(b) == 0)
					gone = err != nil
				}
			case 17: // descriptors that others offer to call us by
				if acks {
					gone = d.Conn.Ack(fe.MsgSetBackendReqFD, nil, extra.FD) != nil
				}
			case 18: // a kick by another descriptor, which never comes
				if acks {
					fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
					require.NoError(t, err)
					gone = d.Conn.Ack(fe.MsgSetVringKick, number(uint64(n)), fd) != nil
					unix.Close(fd)
					stopped[n] = true
				}
			case 19: // half a message, and it leaves
				d.Conn.SendRaw(fe.Frame(fe.MsgSetFeatures, 1, number(0))[:arg%20])
				gone = true
			case 20: // a question whose answer nobody will read
				d.Conn.Send(fe.MsgGetVringBase, false, state(uint32(n), 0))
				gone = true
			}
		}
		if blocked && (told || leaves) {
			time.AfterFunc(250*time.Millisecond, func() { close(e.block) }) // the device asks it to end meanwhile
			gone = true
		} else {
			close(e.block)
		}
		if told {
			stop()
			gone = true
		}
		for n, q := range d.Queues {
			if gone || noWorker || wild[n] || stopped[n] || paused[n] {
				continue
			}
			for { // room for one more
				c, err := q.Reap()
				if err != nil || c == nil {
					break
				}
			}
			p, err := client.On(q).Start(fe.Request{Op: opQuick, Node: 1})
			if err != nil {
				continue // the driver has filled its ring
			}
			q.Publish()
			q.Kick()
			err = q.WaitChain(p.Chain, 5*time.Second)
			if err == fe.ErrRingStopped || err == fe.ErrBogus {
				continue // case 5 or more heads than the ring holds
			}
			require.NoError(t, err, "queue %d", n)
		}
		d.Close()
		select {
		case err = <-ended:
		case <-time.After(15 * time.Second):
			t.Fatal("the device does not end")
		}
		require.Positive(t, e.resets.Load(), "%v", err)
		for n, c := range stats() {
			require.GreaterOrEqual(t, c.Requests, c.Faults, "queue %d", n)
			require.Zero(t, c.Workers, "queue %d", n)
		}
		extra.Close()
		require.Equal(t, fds, openFDs(t), "descriptors, %v", err)
	})
}

// FuzzListen listens on any path with any group, whatever is there already. It refuses in one line, or serves one front-end, refuses a
// second, and serves the next.
func FuzzListen(f *testing.F) {
	f.Add("s", "", byte(0))
	f.Add("s", "0", byte(1))
	f.Add("s", "root", byte(2))
	f.Add("no/such/folder", "", byte(0))
	f.Add("s", "nobody knows this group", byte(0))
	f.Add(string(bytes.Repeat([]byte("n"), 200)), "", byte(0))
	f.Add("d", "", byte(3))
	f.Add("s", "", byte(4|1<<4))
	f.Add("s", "", byte(1|2<<4))
	f.Fuzz(func(t *testing.T, name, group string, before byte) {
		if slices.Contains([]byte(name), 0) || len(name) > 255 || name != filepath.Base(name) && name != "no/such/folder" || len(group) > 40 {
			return
		}
		dir, err := os.MkdirTemp("/tmp", "l")
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, name)
		switch before % 4 {
		case 1:
			if old, err := vhostuser.Listen(path, ""); err == nil {
				old.Close()
			}
		case 2:
			os.WriteFile(path, nil, 0o600)
		case 3:
			os.Mkdir(path, 0o700)
		}
		strange := -1 // a descriptor that is no listening socket is refused, and closed
		switch before >> 4 % 4 {
		case 1:
			strange, _ = unix.Eventfd(0, unix.EFD_CLOEXEC)
		case 2:
			strange, _ = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		}
		if strange >= 0 {
			_, err := vhostuser.ListenFD(strange)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "\n")
		}
		fds := openFDs(t)
		old, _ := os.Lstat(path)
		l, err := vhostuser.Listen(path, group)
		if err != nil {
			require.NotContains(t, err.Error(), "\n", "an error is one line")
			require.Equal(t, fds, openFDs(t), "descriptors")
			if old != nil && old.Mode()&os.ModeSocket == 0 {
				now, err := os.Lstat(path)
				require.NoError(t, err, "what is no socket stays")
				require.True(t, os.SameFile(old, now))
			}
			return
		}
		st, err := os.Stat(path)
		require.NoError(t, err)
		want := os.FileMode(0o700)
		if group != "" {
			want = 0o770
		}
		require.Equal(t, want|os.ModeSocket, st.Mode())
		for range 2 {
			first, err := fe.Dial(path, time.Second)
			require.NoError(t, err)
			c, err := l.Accept(context.Background())
			require.NoError(t, err)
			stop := l.Refuse(c)
			second, err := fe.Dial(path, time.Second)
			if err == nil {
				_, err = second.CallU64(fe.MsgGetFeatures, nil)
				require.ErrorIs(t, err, fe.ErrGone)
				second.Close()
			}
			first.Close()
			third, err := fe.Dial(path, time.Second)
			require.NoError(t, err)
			time.Sleep(time.Millisecond)
			stop()
			c.Close()
			if before&4 != 0 {
				if next, err := l.Accept(context.Background()); err == nil {
					next.Close()
				}
			}
			third.Close()
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			for {
				next, err := l.Accept(ctx)
				if err != nil {
					break
				}
				next.Close()
			}
			cancel()
			l.Close()
			require.Equal(t, fds, openFDs(t), "descriptors")
			l, err = vhostuser.Listen(path, group)
			require.NoError(t, err)
		}
		l.Close()
	})
}
