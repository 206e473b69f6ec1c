package hostile_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
	"virtiofsd/internal/testenv"
)

// These tests see the daemon as its launcher and its front-end see it: a process and a socket.

// process is our daemon on a fresh share.
type process struct {
	*fe.Process
	share, socket string
}

func start(t *testing.T, extra ...string) *process {
	t.Helper()
	dir, err := os.MkdirTemp("", "daemon") // t.TempDir may be too long for a socket's path
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &process{share: filepath.Join(dir, "share"), socket: filepath.Join(dir, "s")}
	require.NoError(t, os.Mkdir(p.share, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(p.share, "file"), []byte(strings.Repeat("0123456789abcdef", 1<<16)), 0o644))
	argv, err := daemon.Argv(fe.Options{Share: p.share, Socket: p.socket, Extra: extra})
	require.NoError(t, err)
	p.Process, err = fe.Spawn(context.Background(), argv, nil, p.socket)
	require.NoError(t, err)
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Log(p.Log())
		}
	})
	return p
}

// connect brings a device and a session up.
func (p *process) connect(t *testing.T, cfg fe.Config) *fe.FUSE {
	t.Helper()
	cfg.Socket, cfg.Timeout = p.socket, 5*time.Second
	d, err := fe.Connect(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(d.Close)
	f := fe.NewFUSE(d)
	f.Timeout = 5 * time.Second
	_, err = f.Init(0)
	require.NoError(t, err)
	return f
}

// gone asserts that the daemon has ended well and left nothing behind, within a time.
func (p *process) gone(t *testing.T, within time.Duration) {
	t.Helper()
	began := time.Now()
	clean, status, err := p.Exit(within + 5*time.Second)
	require.NoError(t, err)
	assert.Less(t, time.Since(began), within+2*time.Second, "with patience for a busy machine")
	assert.True(t, clean, status)
	assert.Equal(t, "exit 0", status)
	for _, path := range []string{p.socket, p.socket + ".pid"} {
		_, err := os.Lstat(path)
		assert.ErrorIs(t, err, os.ErrNotExist, path)
	}
}

// Every message that a front-end of this device sends gets the answer that the specification wants.
func TestEachMessageIsAnswered(t *testing.T) {
	p := start(t, "--tag=share", "--request-queues=3")
	d, err := fe.Negotiate(t.Context(), fe.Config{Socket: p.socket, RequestQueues: 3, ProtocolFeatures: ^uint64(0)})
	require.NoError(t, err)
	defer d.Close()
	ask := func(m fe.Message) uint64 {
		t.Helper()
		n, err := d.Conn.CallU64(m, nil)
		require.NoError(t, err)
		return n
	}
	eventfd := func() int {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		require.NoError(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	q := d.Request(2)
	index := uint32(q.Index)
	r0, r1 := d.Memory.Regions[0], d.Memory.Regions[1]

	assert.EqualValues(t, fe.DefaultFeatures, ask(fe.MsgGetFeatures))
	assert.NotZero(t, ask(fe.MsgGetProtocolFeatures)&(1<<fe.ProtocolConfig))
	assert.EqualValues(t, 4, ask(fe.MsgGetQueueNum))
	assert.GreaterOrEqual(t, ask(fe.MsgGetMaxMemSlots), uint64(509))
	config, err := d.Conn.Call(fe.MsgGetConfig, append(binary.LittleEndian.AppendUint64(nil, 40<<32), make([]byte, 44)...))
	require.NoError(t, err)
	require.Len(t, config, 52)
	assert.Equal(t, "share", strings.TrimRight(string(config[12:48]), "\x00"))
	assert.EqualValues(t, 3, binary.LittleEndian.Uint32(config[48:]))
	for _, m := range []struct {
		m       fe.Message
		payload []byte
		fds     []int
	}{
		{fe.MsgSetOwner, nil, nil},
		{fe.MsgSetFeatures, fe.U64(d.Features), nil},
		{fe.MsgSetBackendReqFD, nil, []int{eventfd()}},
		{fe.MsgSetStatus, fe.U64(11), nil},
		{fe.MsgSetMemTable, fe.MemTable(d.Memory.Regions[:1]), []int{r0.FD}},
		{fe.MsgAddMemReg, fe.SingleRegion(r1), []int{r1.FD}},
		{fe.MsgRemMemReg, fe.SingleRegion(r1), nil},
		{fe.MsgAddMemReg, fe.SingleRegion(r1), []int{r1.FD}},
		{fe.MsgSetVringNum, fe.VringState(index, uint32(q.Size)), nil},
		{fe.MsgSetVringBase, fe.VringState(index, 0), nil},
		{fe.MsgSetVringAddr, d.VringAddr(q), nil},
		{fe.MsgSetVringCall, fe.U64(uint64(index) | 1<<8), nil},
		{fe.MsgSetVringErr, fe.U64(uint64(index)), []int{eventfd()}},
		{fe.MsgSetVringKick, fe.U64(uint64(index)), []int{eventfd()}},
		{fe.MsgSetVringEnable, fe.VringState(index, 1), nil},
	} {
		require.NoError(t, d.Conn.Ack(m.m, m.payload, m.fds...), m.m.String())
	}
	assert.EqualValues(t, 11, ask(fe.MsgGetStatus))
	base, err := d.Stop(q)
	require.NoError(t, err)
	assert.Zero(t, base)
	require.NoError(t, d.Conn.Ack(fe.MsgResetDevice, nil))
	assert.Zero(t, ask(fe.MsgGetStatus), "a reset device has no status")
	require.NoError(t, d.Conn.Ack(fe.MsgResetOwner, nil))
	d.Conn.Close()
	p.gone(t, time.Second)
}

func TestOneFrontEndThenTheEnd(t *testing.T) {
	for name, extra := range map[string][]string{"none": {"--sandbox=none"}, "namespace": {"--sandbox=namespace"}} {
		t.Run(name, func(t *testing.T) {
			if name == "namespace" {
				testenv.Need(t, "root")
			}
			p := start(t, extra...)
			f := p.connect(t, fe.Config{})
			began := time.Now()
			_, err := fe.Dial(p.socket, time.Second)
			assert.ErrorIs(t, err, unix.ECONNREFUSED, "a second front-end is refused")
			assert.Less(t, time.Since(began), 500*time.Millisecond)
			_, err = f.Getattr(fe.RootNode)
			require.NoError(t, err)
			f.Device.Conn.Close()
			p.gone(t, time.Second)
		})
	}
}

func TestKeepListening(t *testing.T) {
	p := start(t, "--keep-listening")
	for range 5 {
		f := p.connect(t, fe.Config{})
		second, err := fe.Dial(p.socket, time.Second)
		if err == nil {
			_, err = second.CallU64(fe.MsgGetFeatures, nil)
			second.Close()
		}
		assert.ErrorIs(t, err, fe.ErrGone, "a second front-end learns at once that it is not served")
		_, err = f.Lookup(fe.RootNode, "file")
		require.NoError(t, err)
		f.Device.Close()
	}
	// One that breaks the protocol ends its connection only.
	c, err := fe.Dial(p.socket, time.Second)
	require.NoError(t, err)
	require.NoError(t, c.SendRaw(fe.Frame(fe.MsgGetFeatures, 0, nil)))
	_, _, _, err = c.Recv(nil)
	assert.ErrorIs(t, err, fe.ErrGone)
	c.Close()
	p.connect(t, fe.Config{}).Device.Close()
	unix.Kill(p.PID(), unix.SIGTERM)
	p.gone(t, time.Second)
}

// SIGTERM ends the daemon within a second and with status 0, whatever it is at; what was taken off the ring is given back whole.
func TestTerm(t *testing.T) {
	for name, extra := range map[string][]string{"none": {"--sandbox=none"}, "namespace": {"--sandbox=namespace"}} {
		t.Run(name+", waiting", func(t *testing.T) {
			p := start(t, extra...)
			unix.Kill(p.PID(), unix.SIGTERM)
			p.gone(t, time.Second)
		})
		t.Run(name+", idle", func(t *testing.T) {
			p := start(t, extra...)
			p.connect(t, fe.Config{})
			unix.Kill(p.PID(), unix.SIGTERM)
			p.gone(t, time.Second)
		})
		t.Run(name+", busy", func(t *testing.T) {
			p := start(t, extra...)
			f := p.connect(t, fe.Config{Memory: []uint64{4 << 20, 64 << 20}})
			e, err := f.Lookup(fe.RootNode, "file")
			require.NoError(t, err)
			fh, err := f.Open(e.Node, unix.O_RDONLY)
			require.NoError(t, err)
			var all []*fe.Pending
			for range 40 {
				r, err := f.Start(fe.Request{Op: fe.OpRead, Node: e.Node, Args: fe.ReadArgs(fh, 0, 1<<20), OutData: 1 << 20})
				require.NoError(t, err)
				all = append(all, r)
			}
			f.Queue.Publish()
			unix.Kill(p.PID(), unix.SIGTERM)
			p.gone(t, time.Second)
			for f.Queue.Pending() {
				_, err := f.Queue.Reap()
				require.NoError(t, err)
			}
			for i, r := range all {
				if r.Chain.Done {
					reply, err := f.Finish(r)
					require.NoError(t, err)
					assert.Zero(t, reply.Error)
					assert.Len(t, reply.Body, 1<<20, "read %d", i)
				}
			}
		})
		t.Run(name+", blocked", func(t *testing.T) {
			p := start(t, append([]string{"--posix-lock"}, extra...)...)
			f := p.connect(t, fe.Config{})
			e, err := f.Lookup(fe.RootNode, "file")
			require.NoError(t, err)
			fh, err := f.Open(e.Node, unix.O_RDWR)
			require.NoError(t, err)
			held, err := os.OpenFile(filepath.Join(p.share, "file"), os.O_RDWR, 0)
			require.NoError(t, err)
			defer held.Close()
			require.NoError(t, unix.FcntlFlock(held.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
			wait, err := f.Start(fe.Request{Op: fe.OpSetlkw, Node: e.Node, Args: fe.Body(nil).U64(fh, 1, 0, 1<<62).U32(unix.F_WRLCK, 7, 0, 0)})
			require.NoError(t, err)
			f.Queue.Publish()
			_, err = f.Getattr(e.Node)
			require.NoError(t, err, "a lock that waits holds up nobody")
			assert.False(t, wait.Chain.Done)
			unix.Kill(p.PID(), unix.SIGTERM)
			p.gone(t, time.Second)
			reply, err := f.Finish(wait)
			require.NoError(t, err, "what waits is given back")
			assert.NotZero(t, reply.Error)
		})
	}
}

// usage is what a daemon's processes hold.
type usage struct{ fds, threads, maps, anon int }

func (p *process) usage(t *testing.T) (u usage) {
	t.Helper()
	for _, pid := range p.Tree() {
		for dir, n := range map[string]*int{"fd": &u.fds, "task": &u.threads} {
			list, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, dir))
			require.NoError(t, err)
			*n += len(list)
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		require.NoError(t, err)
		u.maps += strings.Count(string(b), "\n")
	}
	_, anon := p.Memory()
	u.anon = int(anon)
	return u
}

// A VMM that reboots for years costs nothing: after 200 front-ends the daemon holds what it held after 20.
func TestConnectionsLeaveNothing(t *testing.T) {
	p := start(t, "--keep-listening", "--inode-file-handles=never")
	once := func(i int) {
		d, err := fe.Connect(t.Context(), fe.Config{Socket: p.socket, RequestQueues: 1 + i%3, QueueSize: 64, Memory: []uint64{1 << 20, 1 << 20}})
		require.NoError(t, err, "connection %d", i)
		defer d.Close()
		f := fe.NewFUSE(d)
		_, err = f.Init(0)
		require.NoError(t, err)
		e, err := f.Lookup(fe.RootNode, "file")
		require.NoError(t, err)
		_, err = f.Open(e.Node, unix.O_RDWR) // left open, and known
		require.NoError(t, err)
		for n := range 1 + i%3 {
			_, err := f.On(d.Request(n)).Getattr(e.Node)
			require.NoError(t, err)
		}
		if i%2 == 0 { // leaves with requests under way
			for range 20 {
				_, err := f.Start(fe.Request{Op: fe.OpGetattr, Node: e.Node, Args: make([]byte, 16), OutArgs: fe.AttrOutSize})
				require.NoError(t, err)
			}
			f.Queue.Publish()
		}
	}
	ready := func() {
		require.Eventually(t, func() bool {
			return strings.HasSuffix(strings.TrimSpace(p.Log()), "Waiting for vhost-user socket connection...")
		}, 5*time.Second, time.Millisecond)
	}
	ready() // the socket is there before the parent has closed its own end
	fresh := p.usage(t)
	for i := range 20 {
		once(i)
	}
	ready()
	before := p.usage(t)
	assert.Equal(t, fresh.fds, before.fds, "what a front-end's guest had open is closed when it has left, not when the next comes")
	for i := range 200 {
		once(i)
	}
	ready()
	var after usage
	assert.Eventually(t, func() bool {
		after = p.usage(t)
		return after.threads <= before.threads+3 && after.anon < before.anon+4<<20 // Go's own come and go; memory is given back when it is quiet
	}, 5*time.Second, 50*time.Millisecond)
	assert.Equal(t, before.fds, after.fds)
	assert.LessOrEqual(t, after.threads, before.threads+3)
	assert.LessOrEqual(t, after.maps, before.maps+20)
	assert.Less(t, after.anon, before.anon+4<<20, "bytes")
	t.Logf("after 20 front-ends %+v, after 220 %+v", before, after)
}

// A device that is connected and silent, with many queues, costs less than a thousandth of a processor.
func TestSilentDeviceIsIdle(t *testing.T) {
	p := start(t)
	f := p.connect(t, fe.Config{RequestQueues: 4})
	for n := range 4 {
		for range 100 {
			_, err := f.On(f.Device.Request(n)).Getattr(fe.RootNode)
			require.NoError(t, err)
		}
	}
	time.Sleep(300 * time.Millisecond) // what polls gives up
	least := 1.0
	for range 3 { // the machine may have its own reasons in one of them: a garbage collection, say
		before, began := p.CPU(), time.Now()
		time.Sleep(time.Second)
		least = min(least, float64(p.CPU()-before)/float64(time.Since(began)))
	}
	assert.Less(t, least, 0.001)
	t.Logf("%.4f %% of a processor", 100*least)
	_, err := f.Getattr(fe.RootNode)
	require.NoError(t, err)
}
