package vhostuser_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/vhostuser"
)

// talk connects to a device and negotiates, but shares no memory and sets no ring up.
func talk(t *testing.T, e *echo, cfg vhostuser.Config) (d *device, conn *fe.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := vhostuser.Listen(path, "")
	require.NoError(t, err)
	d = &device{log: &journal{}, ended: make(chan error, 1)}
	var ctx context.Context
	ctx, d.stop = context.WithCancel(context.Background())
	cfg.Logger = d.log.logger()
	go func() {
		c, err := l.Accept(ctx)
		if err == nil {
			err = vhostuser.Serve(ctx, c, e, cfg, nil)
		}
		d.ended <- err
	}()
	d.Device, err = fe.Negotiate(ctx, fe.Config{Socket: path, Timeout: 2 * time.Second})
	require.NoError(t, err)
	t.Cleanup(func() {
		d.Close()
		if !d.taken {
			assert.NoError(t, d.end(t))
		}
		d.stop()
		l.Close()
	})
	return d, d.Conn
}

func TestWhatIsOffered(t *testing.T) {
	_, c := talk(t, &echo{}, vhostuser.Config{})
	n, err := c.CallU64(fe.MsgGetFeatures, nil)
	require.NoError(t, err)
	assert.EqualValues(t, 1<<32|1<<30|1<<29|1<<28, n)
	n, err = c.CallU64(fe.MsgGetProtocolFeatures, nil)
	require.NoError(t, err)
	assert.EqualValues(t, 1<<0|1<<3|1<<5|1<<10|1<<13|1<<15|1<<16, n, "no CONFIG without a tag, nothing of migration")
	n, err = c.CallU64(fe.MsgGetQueueNum, nil)
	require.NoError(t, err)
	assert.EqualValues(t, 65, n)
	n, err = c.CallU64(fe.MsgGetMaxMemSlots, nil)
	require.NoError(t, err)
	assert.EqualValues(t, 509, n)

	_, c = talk(t, &echo{}, vhostuser.Config{Tag: "x", MaxRequestQueues: 2})
	n, err = c.CallU64(fe.MsgGetProtocolFeatures, nil)
	require.NoError(t, err)
	assert.NotZero(t, n&(1<<9))
	n, err = c.CallU64(fe.MsgGetQueueNum, nil)
	require.NoError(t, err)
	assert.EqualValues(t, 3, n)
}

func configRequest(offset, size uint32) []byte {
	b := make([]byte, 12+size)
	binary.LittleEndian.PutUint32(b, offset)
	binary.LittleEndian.PutUint32(b[4:], size)
	return b
}

func TestConfigurationSpace(t *testing.T) {
	_, c := talk(t, &echo{}, vhostuser.Config{Tag: "share", MaxRequestQueues: 7})
	want := append(append([]byte("share"), make([]byte, 31)...), 7, 0, 0, 0)
	for _, at := range [][2]uint32{{0, 40}, {36, 4}, {0, 1}, {1, 3}} {
		b, err := c.Call(fe.MsgGetConfig, configRequest(at[0], at[1]))
		require.NoError(t, err)
		assert.Equal(t, want[at[0]:at[0]+at[1]], b[12:])
	}
	b, err := c.Call(fe.MsgGetConfig, configRequest(32, 256))
	require.NoError(t, err)
	assert.Equal(t, append(want[32:40:40], make([]byte, 248)...), b[12:], "zeros behind its end")
	for _, bad := range [][]byte{nil, make([]byte, 12), configRequest(257, 1), configRequest(0, 257), configRequest(0, 4)[:14]} {
		b, err := c.Call(fe.MsgGetConfig, bad)
		require.NoError(t, err)
		assert.Empty(t, b, "a payload of size 0 says no")
	}
	assert.Error(t, c.Ack(fe.MsgSetConfig, configRequest(0, 4)))

	_, c = talk(t, &echo{}, vhostuser.Config{})
	b, err = c.Call(fe.MsgGetConfig, configRequest(0, 40))
	require.NoError(t, err)
	assert.Empty(t, b)
}

func number(v uint64) []byte              { return fe.U64(v) }
func state(index, num uint32) []byte      { return fe.VringState(index, num) }
func addrs(i uint32, at ...uint64) []byte { return fe.RingAddresses(i, at[0], at[1], at[2]) }

func memfd(t *testing.T, size int64) int {
	fd, err := unix.MemfdCreate("guest-ram", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	require.NoError(t, unix.Ftruncate(fd, size))
	return fd
}

func region(guest, size, user, off uint64) []byte {
	b := make([]byte, 8)
	for _, v := range []uint64{guest, size, user, off} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// Each message that breaks a rule is refused with one line: by an answer where the front-end asked for one, which leaves the connection
// usable; by its end where it did not.
func TestRefusedMessages(t *testing.T) {
	fd := memfd(t, 1<<16)
	pipe := func() int {
		var p [2]int
		require.NoError(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
		t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
		return p[1]
	}()
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(event)
	table := func(n uint32, regions ...[]byte) []byte {
		b := state(n, 0)
		for _, r := range regions {
			b = append(b, r[8:]...)
		}
		return b
	}
	for _, c := range []struct {
		m       fe.Message
		payload []byte
		fds     []int
		want    string
	}{
		{fe.MsgSetFeatures, number(1 << 40), nil, "features 0x10000000000 were not offered"},
		{fe.MsgSetFeatures, nil, nil, "payload of 0 bytes, not 8"},
		{fe.MsgSetFeatures, number(0), []int{fd}, "1 descriptors came with it"},
		{fe.MsgSetProtocolFeatures, number(1 << 12), nil, "protocol features 0x1000 were not offered"},
		{fe.MsgSetProtocolFeatures, number(1 << 9), nil, "protocol features 0x200 were not offered"},
		{fe.MsgSetOwner, number(0), nil, "payload of 8 bytes, not 0"},
		{fe.MsgResetOwner, number(0), nil, "payload of 8 bytes, not 0"},
		{fe.MsgResetDevice, number(0), nil, "payload of 8 bytes, not 0"},
		{fe.MsgSetMemTable, nil, nil, "memory table of 0 bytes"},
		{fe.MsgSetMemTable, table(0), nil, "memory table is empty"},
		{fe.MsgSetMemTable, table(9), nil, "at most 8"},
		{fe.MsgSetMemTable, table(1, region(0, 4096, 0, 0)), nil, "came with 0 descriptors"},
		{fe.MsgSetMemTable, table(1, region(0, 4096, 0, 0)), []int{fd, fd}, "came with 2 descriptors"},
		{fe.MsgSetMemTable, table(1, region(0, 0, 0, 0)), []int{fd}, "memory region is empty"},
		{fe.MsgSetMemTable, table(1, region(0, 1<<17, 0, 0)), []int{fd}, "of a file of 65536 bytes"},
		{fe.MsgSetMemTable, table(2, region(0, 8192, 0, 0), region(4096, 4096, 1<<40, 0)), []int{fd, fd}, "region 1: map guest memory: region at 0x1000 of 0x1000 bytes overlaps"},
		{fe.MsgAddMemReg, region(0, 4096, 0, 0), nil, "0 descriptors, not 1"},
		{fe.MsgAddMemReg, region(0, 4096, 0, 0), []int{fd, fd}, "2 descriptors came with it"},
		{fe.MsgAddMemReg, region(0, 4096, 0, 0)[:32], []int{fd}, "memory region of 32 bytes, not 40"},
		{fe.MsgAddMemReg, region(0, 4096, 0, 0), []int{pipe}, "map 4096 bytes of guest memory"},
		{fe.MsgAddMemReg, region(0, 1<<41, 0, 0), []int{fd}, "larger than"},
		{fe.MsgAddMemReg, region(^uint64(0xfff), 1<<16, 0, 0), []int{fd}, "wraps round"},
		{fe.MsgRemMemReg, region(0, 4096, 0, 0), nil, "no region at guest 0x0"},
		{fe.MsgSetVringNum, state(1, 0), nil, "ring size 0 is no power of two"},
		{fe.MsgSetVringNum, state(1, 65536), nil, "ring size 65536 is no power of two"},
		{fe.MsgSetVringNum, state(65, 128), nil, "queue 65: there are 65"},
		{fe.MsgSetVringNum, state(^uint32(0), 128), nil, "queue 4294967295: there are 65"},
		{fe.MsgSetVringNum, state(1, 128)[:4], nil, "vring state of 4 bytes"},
		{fe.MsgSetVringBase, state(1, 1<<16), nil, "avail index 65536 is wider than 16 bits"},
		{fe.MsgSetVringEnable, state(1, 2), nil, "enable value 2"},
		{fe.MsgSetVringAddr, addrs(1, 0x1000, 0x2000, 0x3000), nil, "front-end address 0x1000"},
		{fe.MsgSetVringAddr, addrs(1, 0x1001, 0x2000, 0x3000), nil, "not aligned to 16"},
		{fe.MsgSetVringAddr, addrs(99, 0x1000, 0x2000, 0x3000), nil, "queue 99"},
		{fe.MsgSetVringKick, number(1), nil, "0 descriptors, not 1"},
		{fe.MsgSetVringKick, number(1), []int{event}, "started before its size and addresses are known"},
		{fe.MsgSetVringKick, number(1 | 1<<8), []int{event}, "says it has none"},
		{fe.MsgSetVringKick, number(1 | 1<<9), []int{event}, "reserved bits"},
		{fe.MsgSetVringKick, number(200), []int{event}, "queue 200"},
		{fe.MsgSetVringKick, number(1), []int{fd}, "no eventfd"},
		{fe.MsgSetVringCall, number(1), []int{pipe}, "no eventfd"},
		{fe.MsgSetVringErr, number(1), []int{pipe}, "no eventfd"},
		{fe.MsgSetVringCall, number(1), []int{event, event}, "2 descriptors came with it"},
		{fe.MsgSetBackendReqFD, nil, nil, "0 descriptors, not 1"},
		{fe.MsgSetStatus, number(256), nil, "wider than 8 bits"},
		{fe.MsgSetConfig, configRequest(0, 4), nil, "not supported"},
		{fe.MsgSetLogFD, nil, nil, "not supported"},
		{fe.MsgSetInflightFD, make([]byte, 24), nil, "not supported"},
		{fe.MsgSendRarp, number(0), nil, "not supported"},
		{fe.MsgIotlbMsg, make([]byte, 32), nil, "not supported"},
		{fe.MsgVringKick, state(1, 0), nil, "not supported"},
		{99, number(0), nil, "request 99: not supported"},
		{0, nil, nil, "request 0: not supported"},
	} {
		name := c.m.String() + ": " + c.want
		before := openFDs(t)
		d, conn := talk(t, &echo{}, vhostuser.Config{})
		err := conn.Ack(c.m, c.payload, c.fds...)
		var refused *fe.RefusedError
		require.ErrorAs(t, err, &refused, name)
		_, err = conn.CallU64(fe.MsgGetFeatures, nil)
		require.NoError(t, err, "%s: the connection goes on", name)
		assert.Contains(t, d.log.String(), c.want)

		require.NoError(t, conn.Send(c.m, false, c.payload, c.fds...))
		err = d.end(t)
		require.Error(t, err, name)
		assert.Contains(t, err.Error(), c.want)
		assert.NotContains(t, err.Error(), "\n", "one line")
		d.Close()
		assert.Eventually(t, func() bool { return openFDs(t) <= before+2 }, time.Second, time.Millisecond, "%s: none stays open but the listener's", name)
	}
}

// A request whose answer is more than a status must not be answered by a status, which would be taken for it.
func TestRefusedQuestionsEndTheConnection(t *testing.T) {
	for _, c := range []struct {
		m       fe.Message
		payload []byte
	}{
		{fe.MsgGetVringBase, state(65, 0)},
		{fe.MsgGetVringBase, nil},
		{fe.MsgGetFeatures, number(1)},
		{fe.MsgGetInflightFD, make([]byte, 24)},
		{fe.MsgSetLogBase, make([]byte, 16)},
		{fe.MsgSetDeviceStateFD, make([]byte, 8)},
		{fe.MsgCheckDeviceState, nil},
		{fe.MsgPostcopyAdvise, nil},
	} {
		d, conn := talk(t, &echo{}, vhostuser.Config{})
		assert.ErrorIs(t, conn.Ack(c.m, c.payload), fe.ErrGone, c.m.String())
		assert.ErrorContains(t, d.end(t), c.m.String())
	}
}

func TestFrames(t *testing.T) {
	header := func(request, flags, size uint32) []byte {
		var b []byte
		for _, v := range []uint32{request, flags, size} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		return b
	}
	for _, c := range []struct {
		name  string
		bytes []byte
		want  string
	}{
		{"version 0", header(1, 0, 0), "version is not 1"},
		{"version 3", header(1, 3, 0), "version is not 1"},
		{"a reply", header(1, 5, 0), "a reply where a request is due"},
		{"huge", header(2, 1, 1<<32-1), "payload of 4294967295 bytes"},
		{"a little too long", header(2, 1, 4097), "payload of 4097 bytes"},
		{"no header", []byte{1}, "unexpected EOF"},
		{"no payload", header(2, 1, 8), "EOF"},
		{"half a payload", append(header(2, 1, 8), 1, 2, 3), "unexpected EOF"},
	} {
		d, conn := talk(t, &echo{}, vhostuser.Config{})
		require.NoError(t, conn.SendRaw(c.bytes), c.name)
		if strings.Contains(c.want, "EOF") {
			conn.Close()
		}
		err := d.end(t)
		require.Error(t, err, c.name)
		assert.ErrorContains(t, err, c.want, c.name)
	}

	d, conn := talk(t, &echo{}, vhostuser.Config{})
	for _, b := range append(fe.Frame(fe.MsgSetFeatures, 9, number(0)), fe.Frame(fe.MsgGetQueueNum, 1, nil)...) {
		require.NoError(t, conn.SendRaw([]byte{b}))
		time.Sleep(100 * time.Microsecond)
	}
	for _, want := range []uint64{0, 65} { // byte by byte is fine
		_, _, b, err := conn.Recv(nil)
		require.NoError(t, err)
		assert.Equal(t, want, binary.LittleEndian.Uint64(b))
	}
	conn.Close()
	assert.NoError(t, d.end(t), "leaving between two messages is no error")
}

func openFDs(t testing.TB) int {
	list, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(list)
}

func TestStrayDescriptorsAreClosed(t *testing.T) {
	fd := memfd(t, 4096)
	many := make([]int, 253) // SCM_MAX_FD
	for i := range many {
		many[i] = fd
	}
	for _, n := range []int{1, 8, 9, 253} {
		d, conn := talk(t, &echo{}, vhostuser.Config{})
		require.Error(t, conn.Ack(99, nil)) // the device is up before its descriptors are counted
		before := openFDs(t)
		require.NoError(t, conn.SendRaw(fe.Frame(fe.MsgSetVringCall, 9, number(1)), many[:n]...))
		conn.Recv(nil)
		assert.Eventually(t, func() bool { return openFDs(t) <= before+1 }, time.Second, time.Millisecond, "%d descriptors", n)
		conn.Close()
		d.end(t)
	}
}

func TestStatus(t *testing.T) {
	e := &echo{}
	_, c := talk(t, e, vhostuser.Config{})
	require.NoError(t, c.Ack(fe.MsgSetStatus, number(0xf)))
	n, err := c.CallU64(fe.MsgGetStatus, nil)
	require.NoError(t, err)
	assert.EqualValues(t, 0xf, n)
	assert.Zero(t, e.resets.Load())
	require.NoError(t, c.Ack(fe.MsgSetStatus, number(0)))
	assert.EqualValues(t, 1, e.resets.Load(), "status 0 resets")
}

func TestResets(t *testing.T) {
	for _, m := range []fe.Message{fe.MsgResetOwner, fe.MsgResetDevice} {
		e := &echo{}
		d := serve(t, e, vhostuser.Config{}, fe.Config{})
		_, err := d.fuse.Do(fe.Request{Op: opQuick, Node: 1})
		require.NoError(t, err)
		require.NoError(t, d.Conn.Ack(m, nil))
		assert.EqualValues(t, 1, e.resets.Load())

		p, err := d.fuse.Start(fe.Request{Op: opQuick, Node: 1})
		require.NoError(t, err)
		d.Request(0).Publish()
		d.Request(0).Kick()
		assert.ErrorIs(t, d.Request(0).WaitChain(p.Chain, 50*time.Millisecond), fe.ErrTimeout, "a device that was reset serves nothing")
		for _, q := range d.Queues {
			require.NoError(t, d.Restart(q))
		}
		_, err = d.fuse.Do(fe.Request{Op: opQuick, Node: 1})
		require.NoError(t, err)
	}
}

func TestRunningRingIsNotMoved(t *testing.T) {
	d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{})
	q := d.Request(0)
	assert.Error(t, d.Conn.Ack(fe.MsgSetVringNum, state(1, 4)))
	assert.Error(t, d.Conn.Ack(fe.MsgSetVringBase, state(1, 4)))
	at := d.VringAddr(q)
	assert.NoError(t, d.Conn.Ack(fe.MsgSetVringAddr, at), "saying the same again is fine")
	at[8] += 16
	assert.Error(t, d.Conn.Ack(fe.MsgSetVringAddr, at))
	_, err := d.fuse.Do(fe.Request{Op: opQuick, Node: 1})
	require.NoError(t, err)
}

func TestReplyToNobody(t *testing.T) {
	d, conn := talk(t, &echo{}, vhostuser.Config{})
	// A front-end that asks and never listens: the device ends when it is told to, though its answers have no room.
	full := false
	conn.SetTimeout(50 * time.Millisecond)
	for range 100_000 {
		if err := conn.SendRaw(bytes.Repeat(fe.Frame(fe.MsgGetFeatures, 1, nil), 50)); err != nil {
			full = errors.Is(err, fe.ErrTimeout)
			break
		}
	}
	require.True(t, full)
	d.stop()
	began := time.Now()
	assert.NoError(t, d.end(t))
	assert.Less(t, time.Since(began), time.Second)
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	_, err := vhostuser.Listen(strings.Repeat("x", 108), "")
	assert.ErrorContains(t, err, "longer than 107 bytes")
	_, err = vhostuser.Listen(filepath.Join(dir, "none", "s"), "")
	assert.ErrorContains(t, err, "does not exist")
	_, err = vhostuser.Listen(path, "no-such-group")
	assert.ErrorContains(t, err, "no such group")
	_, err = os.Stat(path)
	assert.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = vhostuser.Listen(path, "")
	assert.ErrorContains(t, err, "is no socket")
	require.NoError(t, os.Remove(path))

	l, err := vhostuser.Listen(path, "")
	require.NoError(t, err)
	st, err := os.Stat(path)
	require.NoError(t, err)
	assert.EqualValues(t, 0o700, st.Mode().Perm())
	l.Close()
	_, err = os.Stat(path)
	assert.NoError(t, err, "Close leaves the socket to its owner")
	l, err = vhostuser.Listen(path, "")
	require.NoError(t, err, "a socket that nobody listens on is replaced")
	defer l.Close()

	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	_, err = l.Accept(ctx)
	assert.ErrorIs(t, err, context.Canceled)
}

func TestListenFD(t *testing.T) {
	for name, open := range map[string]func() (int, error){
		"file": func() (int, error) { return unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0) },
		"idle": func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) },
		"connected": func() (int, error) {
			p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			return p[0], err
		},
		"network": func() (int, error) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = unix.Listen(fd, 1)
			}
			return fd, err
		},
	} {
		fd, err := open()
		require.NoError(t, err, name)
		_, err = vhostuser.ListenFD(fd)
		assert.Error(t, err, name)
		assert.NotContains(t, err.Error(), "\n")
	}
	_, err := vhostuser.ListenFD(-1)
	assert.Error(t, err)
}

func TestSecondFrontEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := vhostuser.Listen(path, "")
	require.NoError(t, err)
	dial := func() *fe.Conn {
		c, err := fe.Dial(path, time.Second)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	first := dial()
	served, err := l.Accept(t.Context())
	require.NoError(t, err)
	stop := l.Refuse(served)
	for range 10 {
		_, err = dial().CallU64(fe.MsgGetFeatures, nil)
		assert.ErrorIs(t, err, fe.ErrGone, "it learns at once that it is not served")
	}
	first.Close()
	second, third := dial(), dial()
	time.Sleep(50 * time.Millisecond) // whoever refuses has met the second by then
	stop()
	for _, c := range []*fe.Conn{second, third} { // they came when the first had left
		ours, err := l.Accept(t.Context())
		require.NoError(t, err)
		require.NoError(t, c.Send(fe.MsgGetFeatures, false, nil))
		ours.Close()
		_, _, _, err = c.Recv(nil)
		assert.ErrorIs(t, err, fe.ErrGone)
	}

	fourth := dial()
	served, err = l.Accept(t.Context())
	require.NoError(t, err)
	stop = l.Refuse(served)
	fourth.Close()
	fifth := dial()
	require.NoError(t, fifth.Send(fe.MsgGetFeatures, false, nil))
	time.Sleep(20 * time.Millisecond)
	stop()
	l.Close()
	_, _, _, err = fifth.Recv(nil)
	assert.ErrorIs(t, err, fe.ErrGone, "who waits when the listener ends is told")
}
