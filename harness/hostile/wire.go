package hostile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	fe "virtiofsd/harness/frontend"
)

// sayMessage puts the fate of a message into words.
func sayMessage(err error) (Outcome, string) {
	var refused *fe.RefusedError
	switch {
	case err == nil:
		return OK, "accepted"
	case errors.As(err, &refused):
		return ErrorReply, ""
	case errors.Is(err, fe.ErrGone):
		return Closed, ""
	case errors.Is(err, fe.ErrTimeout):
		return NeverDone, err.Error()
	}
	return BadReply, err.Error()
}

// tell sends a message and learns its fate: by REPLY_ACK where that was agreed on, else by asking for the features.
func (e *Env) tell(m fe.Message, payload []byte, fds ...int) (Outcome, string) {
	return sayMessage(e.tellErr(m, payload, fds...))
}

func (e *Env) tellErr(m fe.Message, payload []byte, fds ...int) error {
	if e.Dev.HasProtocol(fe.ProtocolReplyAck) {
		return e.Dev.Conn.Ack(m, payload, fds...)
	}
	if err := e.Dev.Conn.Send(m, false, payload, fds...); err != nil {
		return err
	}
	_, err := e.Dev.Conn.CallU64(fe.MsgGetFeatures, nil)
	return err
}

// raw writes bytes and looks whether the daemon still answers on this connection.
func (e *Env) raw(b []byte, fds ...int) (Outcome, string) {
	if err := e.Dev.Conn.SendRaw(b, fds...); err != nil {
		return sayMessage(err)
	}
	e.Dev.Conn.SetTimeout(300 * time.Millisecond)
	_, _, _, err := e.Dev.Conn.Recv(nil)
	if errors.Is(err, fe.ErrTimeout) {
		return Ignored, "no answer"
	}
	return sayMessage(err)
}

// negotiated makes a case's connection up to SET_OWNER, with rings made but not told of.
func (e *Env) negotiated() error {
	d, err := fe.Negotiate(e.Ctx, e.Config)
	if err != nil {
		return err
	}
	e.use(d)
	return nil
}

// fresh is an attack on a connection that was negotiated and nothing more.
func fresh(f func(*Env) (Outcome, string)) func(*Env) (Outcome, string) {
	return func(e *Env) (Outcome, string) {
		if err := e.negotiated(); err != nil {
			return Failed, err.Error()
		}
		return f(e)
	}
}

// message is an attack of one message on a fresh connection.
func message(m fe.Message, payload []byte) func(*Env) (Outcome, string) {
	return fresh(func(e *Env) (Outcome, string) { return e.tell(m, payload) })
}

// withRings gives the daemon memory before f.
func withMemory(f func(*Env) (Outcome, string)) func(*Env) (Outcome, string) {
	return fresh(func(e *Env) (Outcome, string) {
		if err := e.Dev.Conn.Send(fe.MsgSetFeatures, false, fe.U64(e.Dev.Features)); err != nil {
			return sayMessage(err)
		}
		if err := e.Dev.Share(false); err != nil {
			return Failed, err.Error()
		}
		return f(e)
	})
}

// regions is an attack by SET_MEM_TABLE with these regions (GPA, size, user address, offset), each with a memfd of 1 MiB.
func regions(all ...[4]uint64) func(*Env) (Outcome, string) {
	return fresh(func(e *Env) (Outcome, string) {
		payload := fe.VringState(uint32(len(all)), 0)
		var fds []int
		for _, r := range all {
			for _, v := range r {
				payload = binary.LittleEndian.AppendUint64(payload, v)
			}
			fd, err := e.memfd(1 << 20)
			if err != nil {
				return Failed, err.Error()
			}
			fds = append(fds, fd)
		}
		o, d := e.tell(fe.MsgSetMemTable, payload, fds...)
		if o == OK {
			return e.touch()
		}
		return o, d
	})
}

// touch starts a ring in whatever memory the daemon took, so that it has to look at it.
func (e *Env) touch() (Outcome, string) {
	q := e.Queue
	q.Kick()
	err := e.Dev.SetUp(q)
	if err == nil {
		err = e.Dev.Enable(q, true)
	}
	if err == nil {
		q.Kick()
		time.Sleep(20 * time.Millisecond)
		_, err = e.Dev.Conn.CallU64(fe.MsgGetFeatures, nil)
	}
	var refused *fe.RefusedError
	if errors.As(err, &refused) {
		return ErrorReply, "refused when the ring was set up"
	}
	return sayMessage(err)
}

// start starts a ring in which nothing waits.
func (e *Env) start() (Outcome, string) {
	err := e.Dev.SetUp(e.Queue)
	if err == nil {
		err = e.Dev.Enable(e.Queue, true)
	}
	if err == nil {
		e.Queue.Kick()
		time.Sleep(20 * time.Millisecond)
		_, err = e.Dev.Conn.CallU64(fe.MsgGetFeatures, nil)
	}
	return sayMessage(err)
}

// fill gives the daemon a sparse file in slots that take all of 47 bits of addresses, large ones
// first, and has it work then.
func (e *Env) fill() (Outcome, string) {
	fd, err := e.memfd(1 << 45)
	if err != nil {
		return Failed, err.Error()
	}
	taken, at := 0, uint64(1)<<46
	for size := uint64(1) << 45; size >= fe.PageSize && taken < 500; {
		payload := make([]byte, 8)
		for _, v := range [4]uint64{at, size, at, 0} {
			payload = binary.LittleEndian.AppendUint64(payload, v)
		}
		at += size
		switch o, d := e.tell(fe.MsgAddMemReg, payload, fd); o {
		case OK:
			taken++
		case ErrorReply:
			size /= 2
		default:
			return o, fmt.Sprintf("slot %d of %d bytes: %s", taken, size, d)
		}
	}
	for _, q := range e.Dev.Queues { // their memory is there: what follows takes some of the daemon's own
		err = errors.Join(err, e.Dev.SetUp(q), e.Dev.Enable(q, true))
	}
	if err == nil {
		_, err = e.FUSE.Init(0)
	}
	for i := 0; i < 2000 && err == nil; i++ {
		_, err = e.FUSE.Mkdir(1, fmt.Sprint(i), 0o755)
	}
	if err != nil {
		o, d := sayMessage(err)
		return o, fmt.Sprintf("%d slots taken; %s", taken, d)
	}
	return ErrorReply, fmt.Sprintf("%d slots taken", taken)
}

func (e *Env) memfd(size int64) (int, error) {
	fd, err := unix.MemfdCreate("hostile", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	e.Defer(func() { unix.Close(fd) })
	return fd, unix.Ftruncate(fd, size)
}

// slot is an attack by ADD_MEM_REG with any descriptors.
func slot(r [4]uint64, open func(*Env) ([]int, error)) func(*Env) (Outcome, string) {
	return fresh(func(e *Env) (Outcome, string) {
		fds, err := open(e)
		if err != nil {
			return Failed, err.Error()
		}
		payload := make([]byte, 8)
		for _, v := range r {
			payload = binary.LittleEndian.AppendUint64(payload, v)
		}
		o, d := e.tell(fe.MsgAddMemReg, payload, fds...)
		if o == OK {
			return e.touch()
		}
		return o, d
	})
}

func memfds(n int, size int64) func(*Env) ([]int, error) {
	return func(e *Env) ([]int, error) {
		var fds []int
		for range n {
			fd, err := e.memfd(size)
			if err != nil {
				return nil, err
			}
			fds = append(fds, fd)
		}
		return fds, nil
	}
}

func path(name string, flags int) func(*Env) ([]int, error) {
	return func(e *Env) ([]int, error) {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		e.Defer(func() { unix.Close(fd) })
		return []int{fd}, nil
	}
}

// ring sets up the first request queue with one message changed.
func ring(m fe.Message, payload func(*Env) []byte) func(*Env) (Outcome, string) {
	return withMemory(func(e *Env) (Outcome, string) {
		if o, d := e.tell(m, payload(e)); o != OK {
			return o, d
		}
		order := []func() error{
			func() error { return e.tellErr(fe.MsgSetVringNum, fe.VringState(1, uint32(e.Queue.Size))) },
			func() error { return e.tellErr(fe.MsgSetVringAddr, e.Dev.VringAddr(e.Queue)) },
		}
		// The bent message comes last of those that describe the ring, then the ring starts.
		for _, f := range order {
			if err := f(); err != nil {
				return sayMessage(err)
			}
		}
		if o, d := e.tell(m, payload(e)); o != OK {
			return o, d
		}
		kick, err := unix.Eventfd(1, unix.EFD_CLOEXEC)
		if err != nil {
			return Failed, err.Error()
		}
		e.Defer(func() { unix.Close(kick) })
		if err := e.tellErr(fe.MsgSetVringKick, fe.U64(1), kick); err != nil {
			return sayMessage(err)
		}
		if err := e.tellErr(fe.MsgSetVringEnable, fe.VringState(1, 1)); err != nil {
			return sayMessage(err)
		}
		time.Sleep(20 * time.Millisecond)
		_, err = e.Dev.Conn.CallU64(fe.MsgGetFeatures, nil)
		return sayMessage(err)
	})
}

const (
	ruleFrame   = "vhost-user.rst, Message Specification: header of 12 bytes, size bytes follow, version 1"
	ruleFDs     = "vhost-user.rst: each message says how many descriptors come along"
	ruleMemory  = "vhost-user.rst, Memory region description: regions are backed by their descriptors and do not overlap"
	ruleQueue   = "vhost-user.rst, vring state: the index is below the number of queues"
	ruleNum     = "virtio 1.2, 2.7: a split ring's size is a power of two up to 32768"
	ruleAddr    = "vhost-user.rst, A vring address description: rings lie in shared memory, aligned (virtio 1.2, 2.7)"
	ruleFeature = "vhost-user.rst: only what was offered is accepted"
)

// wireCases break the rules of vhost-user.
func wireCases() []Case {
	num := func(n uint32) func(*Env) []byte {
		return func(*Env) []byte { return fe.VringState(1, n) }
	}
	addr := func(f func(d, u, a uint64) (uint64, uint64, uint64)) func(*Env) []byte {
		return func(e *Env) []byte {
			m := e.Dev.Memory
			d, u, a := f(m.UserAddr(e.Queue.DescGPA), m.UserAddr(e.Queue.UsedGPA), m.UserAddr(e.Queue.AvailGPA))
			return fe.RingAddresses(1, d, u, a)
		}
	}
	const mb = 1 << 20
	cases := []Case{
		{Name: "connect-and-leave", Rule: ruleFrame, Attack: func(e *Env) (Outcome, string) {
			c, err := fe.Dial(e.Config.Socket, patience)
			if err != nil {
				return Failed, err.Error()
			}
			c.Close()
			return OK, ""
		}},
		{Name: "header-cut", Rule: ruleFrame, Attack: leaveAfter([]byte{1, 0, 0, 0, 1})},
		{Name: "payload-cut", Rule: ruleFrame, Attack: leaveAfter(fe.Frame(2, 1, make([]byte, 8))[:15])},
		{Name: "payload-missing", Rule: ruleFrame, Attack: leaveAfter(fe.Frame(2, 1, make([]byte, 8))[:12])},
		{Name: "size-max", Rule: ruleFrame, Attack: fresh(func(e *Env) (Outcome, string) {
			b := fe.Frame(fe.MsgSetFeatures, 1, nil)
			binary.LittleEndian.PutUint32(b[8:], 0xffffffff)
			return e.raw(append(b, make([]byte, 4096)...))
		})},
		{Name: "size-64k", Rule: ruleFrame, Attack: fresh(func(e *Env) (Outcome, string) {
			return e.raw(fe.Frame(fe.MsgSetFeatures, 1, make([]byte, 1<<16)))
		})},
		{Name: "version-0", Rule: ruleFrame, Attack: fresh(func(e *Env) (Outcome, string) { return e.raw(fe.Frame(fe.MsgGetFeatures, 0, nil)) })},
		{Name: "version-2", Rule: ruleFrame, Attack: fresh(func(e *Env) (Outcome, string) { return e.raw(fe.Frame(fe.MsgGetFeatures, 2, nil)) })},
		{Name: "reply-flag", Rule: ruleFrame, Attack: fresh(func(e *Env) (Outcome, string) { return e.raw(fe.Frame(fe.MsgGetFeatures, 5, nil)) })},
		{Name: "unknown-flags", Rule: ruleFrame, Attack: fresh(func(e *Env) (Outcome, string) { return e.raw(fe.Frame(fe.MsgGetFeatures, 0xfffffff1, nil)) })},
		{Name: "message-0", Rule: "vhost-user.rst, message types start with 1", Attack: message(0, nil)},
		{Name: "message-unknown", Rule: "vhost-user.rst, message types", Attack: message(99, fe.U64(7))},
		{Name: "message-max", Rule: "vhost-user.rst, message types", Attack: message(0xffffffff, nil)},
		{Name: "get-with-payload", Rule: ruleFrame, Attack: fresh(func(e *Env) (Outcome, string) { return e.raw(fe.Frame(fe.MsgGetFeatures, 1, make([]byte, 40))) })},
		{Name: "get-with-fds", Rule: ruleFDs, Attack: fresh(func(e *Env) (Outcome, string) {
			fds, err := memfds(3, 4096)(e)
			if err != nil {
				return Failed, err.Error()
			}
			return e.raw(fe.Frame(fe.MsgGetFeatures, 1, nil), fds...)
		})},
		{Name: "fds-200", Rule: ruleFDs, Attack: fresh(func(e *Env) (Outcome, string) {
			fds, err := memfds(1, 4096)(e)
			if err != nil {
				return Failed, err.Error()
			}
			for len(fds) < 200 {
				fds = append(fds, fds[0])
			}
			return e.raw(fe.Frame(fe.MsgSetVringCall, 1, fe.U64(1)), fds...)
		})},
		{Name: "each-message-empty", Rule: ruleFrame, Attack: eachMessage(func(fe.Message) []byte { return nil })},
		{Name: "each-message-short", Rule: ruleFrame, Attack: eachMessage(func(fe.Message) []byte { return make([]byte, 3) })},
		{Name: "each-message-zero", Rule: "vhost-user.rst: values are checked", Attack: eachMessage(func(fe.Message) []byte { return make([]byte, 40) })},
		{Name: "each-message-ones", Rule: "vhost-user.rst: values are checked", Attack: eachMessage(func(fe.Message) []byte {
			b := make([]byte, 40)
			for i := range b {
				b[i] = 0xff
			}
			return b
		})},
		{Name: "features-not-offered", Rule: ruleFeature, Attack: message(fe.MsgSetFeatures, fe.U64(^uint64(0)))},
		{Name: "features-none", Rule: ruleFeature, Attack: message(fe.MsgSetFeatures, fe.U64(0))},
		{Name: "protocol-not-offered", Rule: ruleFeature, Attack: message(fe.MsgSetProtocolFeatures, fe.U64(^uint64(0)))},
		{Name: "kick-before-memory", Rule: "a ring has its memory before it starts", Attack: fresh(func(e *Env) (Outcome, string) { return e.touch() })},
		{Name: "enable-before-setup", Rule: "a ring is set up before it is enabled", Attack: message(fe.MsgSetVringEnable, fe.VringState(1, 1))},
		{Name: "stop-before-start", Rule: "GET_VRING_BASE of a ring that never ran", Attack: fresh(func(e *Env) (Outcome, string) {
			_, err := e.Dev.Stop(e.Queue)
			return sayMessage(err)
		})},
		{Name: "index-out-of-range", Rule: ruleQueue, Attack: queueIndex(200)},
		{Name: "index-max", Rule: ruleQueue, Attack: queueIndex(0xffffffff)},
		{Name: "num-0", Rule: ruleNum, Attack: ring(fe.MsgSetVringNum, num(0))},
		{Name: "num-3", Rule: ruleNum, Attack: ring(fe.MsgSetVringNum, num(3))},
		{Name: "num-65535", Rule: ruleNum, Attack: ring(fe.MsgSetVringNum, num(65535))},
		{Name: "num-65536", Rule: ruleNum, Attack: ring(fe.MsgSetVringNum, num(65536))},
		{Name: "num-max", Rule: ruleNum, Attack: ring(fe.MsgSetVringNum, num(0xffffffff))},
		{Name: "base-max", Rule: "a ring's base is below 65536", Attack: ring(fe.MsgSetVringBase, num(0xffffffff))},
		{Name: "addr-outside", Rule: ruleAddr, Attack: ring(fe.MsgSetVringAddr, addr(func(d, u, a uint64) (uint64, uint64, uint64) { return 0x1000, 0x2000, 0x3000 }))},
		{Name: "addr-max", Rule: ruleAddr, Attack: ring(fe.MsgSetVringAddr, addr(func(d, u, a uint64) (uint64, uint64, uint64) { return ^uint64(15), ^uint64(15), ^uint64(15) }))},
		{Name: "addr-beyond-region", Rule: ruleAddr, Attack: ring(fe.MsgSetVringAddr, func(e *Env) []byte {
			r := e.Dev.Memory.Regions[0]
			end := r.UserAddr + r.Size
			return fe.RingAddresses(1, end-16, end-16, end-16)
		})},
		{Name: "addr-misaligned", Rule: ruleAddr, Attack: ring(fe.MsgSetVringAddr, addr(func(d, u, a uint64) (uint64, uint64, uint64) { return d + 1, u + 1, a + 1 }))},
		{Name: "addr-overlap", Rule: ruleAddr, Attack: ring(fe.MsgSetVringAddr, addr(func(d, u, a uint64) (uint64, uint64, uint64) { return d, d, d }))},
		{Name: "kick-no-fd", Rule: ruleFDs, Attack: withMemory(func(e *Env) (Outcome, string) { return e.tell(fe.MsgSetVringKick, fe.U64(1)) })},
		{Name: "kick-3-fds", Rule: ruleFDs, Attack: withMemory(func(e *Env) (Outcome, string) {
			fds, err := memfds(3, 4096)(e)
			if err != nil {
				return Failed, err.Error()
			}
			return e.tell(fe.MsgSetVringKick, fe.U64(1), fds...)
		})},
		{Name: "kick-polling", Rule: "vhost-user.rst: bit 8 means no descriptor", Attack: withMemory(func(e *Env) (Outcome, string) {
			return e.tell(fe.MsgSetVringKick, fe.U64(1|1<<8))
		})},
		{Name: "kick-is-a-file", Rule: "a kick descriptor is an eventfd", Attack: strangeKick(path("/dev/zero", unix.O_RDWR))},
		{Name: "kick-is-a-directory", Rule: "a kick descriptor is an eventfd", Attack: strangeKick(path("/", unix.O_RDONLY))},
		{Name: "kick-is-a-closed-pipe", Rule: "a kick descriptor is an eventfd", Attack: strangeKick(func(e *Env) ([]int, error) {
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
				return nil, err
			}
			unix.Close(p[1])
			e.Defer(func() { unix.Close(p[0]) })
			return p[:1], nil
		})},
		{Name: "call-is-a-closed-pipe", Rule: "writing a call must not raise SIGPIPE", Attack: strangeCall(func(e *Env) ([]int, error) {
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
				return nil, err
			}
			unix.Close(p[0])
			e.Defer(func() { unix.Close(p[1]) })
			return p[1:], nil
		})},
		{Name: "call-is-a-full-pipe", Rule: "writing a call must not block", Attack: strangeCall(func(e *Env) ([]int, error) {
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
				return nil, err
			}
			for {
				if _, err := unix.Write(p[1], make([]byte, 4096)); err != nil {
					break
				}
			}
			unix.SetNonblock(p[1], false)
			e.Defer(func() { unix.Close(p[0]); unix.Close(p[1]) })
			return p[1:], nil
		})},
		{Name: "call-is-a-full-eventfd", Rule: "writing a call must not block", Attack: strangeCall(func(e *Env) ([]int, error) {
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
			if err != nil {
				return nil, err
			}
			unix.Write(fd, []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
			e.Defer(func() { unix.Close(fd) })
			return []int{fd}, nil
		})},
		{Name: "table-empty", Rule: ruleMemory, Attack: message(fe.MsgSetMemTable, fe.VringState(0, 0))},
		{Name: "table-9-regions", Rule: "vhost-user.rst: at most 8 regions", Attack: regions(manyRegions(9)...)},
		{Name: "table-1000-regions-short", Rule: ruleFrame, Attack: message(fe.MsgSetMemTable, append(fe.VringState(1000, 0), make([]byte, 64)...))},
		{Name: "table-no-fds", Rule: ruleFDs, Attack: message(fe.MsgSetMemTable, append(fe.VringState(1, 0), make([]byte, 32)...))},
		{Name: "table-too-few-fds", Rule: ruleFDs, Attack: fresh(func(e *Env) (Outcome, string) {
			return e.tell(fe.MsgSetMemTable, fe.MemTable(e.Dev.Memory.Regions), e.Dev.Memory.Regions[0].FD)
		})},
		{Name: "table-too-many-fds", Rule: ruleFDs, Attack: fresh(func(e *Env) (Outcome, string) {
			fd := e.Dev.Memory.Regions[0].FD
			return e.tell(fe.MsgSetMemTable, fe.MemTable(e.Dev.Memory.Regions[:1]), fd, fd, fd)
		})},
		{Name: "table-overlap-guest", Rule: ruleMemory, Attack: regions([4]uint64{0, mb, 1 << 40, 0}, [4]uint64{mb / 2, mb, 1 << 41, 0})},
		{Name: "table-overlap-user", Rule: ruleMemory, Attack: regions([4]uint64{0, mb, 1 << 40, 0}, [4]uint64{mb, mb, 1<<40 + mb/2, 0})},
		{Name: "region-size-0", Rule: ruleMemory, Attack: regions([4]uint64{0, 0, 1 << 40, 0})},
		{Name: "region-size-huge", Rule: ruleMemory, Attack: regions([4]uint64{0, 1 << 62, 1 << 40, 0})},
		{Name: "region-size-max", Rule: ruleMemory, Attack: regions([4]uint64{0, ^uint64(0), 1 << 40, 0})},
		{Name: "region-wraps", Rule: ruleMemory, Attack: regions([4]uint64{^uint64(0) - 4095, mb, 1 << 40, 0})},
		{Name: "region-user-wraps", Rule: ruleMemory, Attack: regions([4]uint64{0, mb, ^uint64(0) - 4095, 0})},
		{Name: "region-offset-huge", Rule: ruleMemory, Attack: regions([4]uint64{0, mb, 1 << 40, 1 << 62})},
		{Name: "region-offset-wraps", Rule: ruleMemory, Attack: regions([4]uint64{0, mb, 1 << 40, ^uint64(0) - 4095})},
		{Name: "region-offset-odd", Rule: ruleMemory, Attack: regions([4]uint64{0, mb / 2, 1 << 40, 5})},
		{Name: "region-beyond-file", Rule: ruleMemory, Attack: fresh(func(e *Env) (Outcome, string) {
			r := e.Dev.Memory.Regions[0]
			small, err := e.memfd(0)
			if err != nil {
				return Failed, err.Error()
			}
			if o, d := e.tell(fe.MsgSetMemTable, fe.MemTable([]*fe.Region{r}), small); o != OK {
				return o, d
			}
			return e.touch()
		})},
		{Name: "slot-no-fd", Rule: ruleFDs, Attack: slot([4]uint64{0, mb, 1 << 40, 0}, memfds(0, 0))},
		{Name: "slot-2-fds", Rule: ruleFDs, Attack: slot([4]uint64{0, mb, 1 << 40, 0}, memfds(2, mb))},
		{Name: "slot-dev-null", Rule: ruleMemory, Attack: slot([4]uint64{0, mb, 1 << 40, 0}, path("/dev/null", unix.O_RDWR))},
		{Name: "slot-directory", Rule: ruleMemory, Attack: slot([4]uint64{0, mb, 1 << 40, 0}, path("/", unix.O_RDONLY))},
		{Name: "slot-readonly-file", Rule: ruleMemory, Attack: slot([4]uint64{0, mb, 1 << 40, 0}, path("/proc/self/exe", unix.O_RDONLY))},
		{Name: "slot-600", Rule: "at most as many slots as GET_MAX_MEM_SLOTS says", Attack: fresh(func(e *Env) (Outcome, string) {
			fd, err := e.memfd(1 << 20)
			if err != nil {
				return Failed, err.Error()
			}
			for i := range uint64(600) {
				payload := make([]byte, 8)
				for _, v := range [4]uint64{i << 20, 4096, 1<<40 + i<<20, 0} {
					payload = binary.LittleEndian.AppendUint64(payload, v)
				}
				if o, d := e.tell(fe.MsgAddMemReg, payload, fd); o != OK {
					return o, fmt.Sprintf("slot %d %s", i, d)
				}
			}
			return OK, "600 slots accepted"
		})},
		{Name: "region-fills-address-space", Rule: "a daemon maps no more than leaves room for itself", Attack: withMemory(func(e *Env) (Outcome, string) { return e.fill() })},
		{Name: "slot-twice", Rule: ruleMemory, Attack: fresh(func(e *Env) (Outcome, string) {
			r := e.Dev.Memory.Regions[0]
			if o, d := e.tell(fe.MsgAddMemReg, fe.SingleRegion(r), r.FD); o != OK {
				return o, d
			}
			return e.tell(fe.MsgAddMemReg, fe.SingleRegion(r), r.FD)
		})},
		{Name: "slot-remove-unknown", Rule: ruleMemory, Attack: fresh(func(e *Env) (Outcome, string) {
			return e.tell(fe.MsgRemMemReg, fe.SingleRegion(e.Dev.Memory.Regions[0]))
		})},
		{Name: "slot-remove-in-use", Rule: "a region may go while rings lie in it", Attack: running(func(e *Env) (Outcome, string) {
			for _, r := range e.Dev.Memory.Regions {
				if o, d := e.tell(fe.MsgRemMemReg, fe.SingleRegion(r)); o != OK {
					return o, d
				}
			}
			e.Queue.Kick()
			time.Sleep(20 * time.Millisecond)
			_, err := e.Dev.Conn.CallU64(fe.MsgGetFeatures, nil)
			return sayMessage(err)
		})},
		{Name: "table-again-while-running", Rule: "vhost-user.rst: SET_MEM_TABLE may come again; rings go on", Config: fe.Config{ProtocolFeatures: fe.DefaultProtocolFeatures &^ (1 << fe.ProtocolMemSlots)}, Attack: running(func(e *Env) (Outcome, string) {
			for range 20 {
				if err := e.Dev.Share(true); err != nil {
					return sayMessage(err)
				}
				if _, err := e.FUSE.Getattr(1); err != nil {
					return NeverDone, err.Error()
				}
			}
			return OK, ""
		})},
		{Name: "ring-memory-vanishes", Rule: "the pages of a ring go away (ftruncate of the memfd): no SIGBUS", Attack: running(func(e *Env) (Outcome, string) {
			r := e.Dev.Memory.Regions[0]
			if err := unix.Ftruncate(r.FD, 0); err != nil {
				return Failed, err.Error()
			}
			for range 3 {
				e.Queue.Kick()
				e.Dev.Queues[0].Kick()
				time.Sleep(20 * time.Millisecond)
			}
			_, err := e.Dev.Conn.CallU64(fe.MsgGetFeatures, nil)
			return sayMessage(err)
		})},
		{Name: "ring-memory-vanishes-before-start", Rule: "the pages of a ring go away (ftruncate of the memfd) before it starts: no SIGBUS", Attack: withMemory(func(e *Env) (Outcome, string) {
			if err := unix.Ftruncate(e.Dev.Memory.Regions[0].FD, 0); err != nil {
				return Failed, err.Error()
			}
			return e.start()
		})},
		{Name: "rings-again-while-running", Rule: "vring messages to a running ring", Attack: running(func(e *Env) (Outcome, string) {
			err := e.Dev.SetUp(e.Queue)
			if err == nil {
				_, err = e.FUSE.Getattr(1)
				var gone error = fe.ErrGone
				if err != nil && !errors.Is(err, gone) {
					return NeverDone, err.Error()
				}
			}
			return sayMessage(err)
		})},
		{Name: "config-size", Rule: "vhost-user.rst, Virtio device config space: offset and size lie in the space", Attack: fresh(func(e *Env) (Outcome, string) {
			for _, v := range [][2]uint32{{0, 0}, {0, 9999}, {0xffffffff, 4}, {40, 4}, {0, 0xffffffff}, {36, 8}} {
				b := binary.LittleEndian.AppendUint32(nil, v[0])
				b = binary.LittleEndian.AppendUint32(b, v[1])
				b = binary.LittleEndian.AppendUint32(b, 0)
				if _, err := e.Dev.Conn.Call(fe.MsgGetConfig, append(b, make([]byte, min(v[1], 256))...)); err != nil {
					if errors.Is(err, fe.ErrTimeout) {
						return Ignored, "no answer"
					}
					return sayMessage(err)
				}
			}
			return OK, ""
		})},
		{Name: "owner-twice", Rule: "vhost-user.rst: SET_OWNER comes once", Attack: message(fe.MsgSetOwner, nil)},
		{Name: "reset-owner-while-running", Rule: "RESET_OWNER ends the session", Attack: running(func(e *Env) (Outcome, string) { return e.tell(fe.MsgResetOwner, nil) })},
		{Name: "reset-device-while-running", Rule: "RESET_DEVICE disables all rings", Attack: running(func(e *Env) (Outcome, string) { return e.tell(fe.MsgResetDevice, nil) })},
		{Name: "backend-fd-missing", Rule: ruleFDs, Attack: message(fe.MsgSetBackendReqFD, nil)},
		{Name: "log-and-inflight", Rule: "messages of features that were not agreed on", Attack: fresh(func(e *Env) (Outcome, string) {
			fd, err := e.memfd(4096)
			if err != nil {
				return Failed, err.Error()
			}
			if o, d := e.tell(fe.MsgSetLogBase, append(fe.U64(1<<62), fe.U64(0)...), fd); o == Closed || o == NeverDone || o == BadReply {
				return o, d
			}
			return e.tell(fe.MsgSetInflightFD, append(append(fe.U64(1<<62), fe.U64(1<<62)...), 0xff, 0xff, 0xff, 0xff), fd)
		})},
		{Name: "second-connection", Rule: "one front-end at a time; the first is not disturbed", Attack: running(func(e *Env) (Outcome, string) {
			c, err := fe.Dial(e.Config.Socket, 500*time.Millisecond)
			out, detail := ErrorReply, "refused at connect"
			if err == nil {
				defer c.Close()
				_, err = c.CallU64(fe.MsgGetFeatures, nil)
				switch {
				case err == nil:
					out, detail = OK, "the second front-end is served, too"
				case errors.Is(err, fe.ErrTimeout):
					return NeverDone, "the second front-end is accepted and left hanging"
				default:
					out, detail = ErrorReply, "closed at once"
				}
			}
			if _, err := e.FUSE.Getattr(1); err != nil {
				return QueueDead, "the first front-end: " + err.Error()
			}
			return out, detail
		})},
		{Name: "leave-in-flight", Rule: "the front-end goes away with requests outstanding", Attack: running(func(e *Env) (Outcome, string) {
			for range 200 {
				if _, err := e.FUSE.Start(getattr(1)); err != nil {
					return Failed, err.Error()
				}
			}
			e.Queue.Publish()
			e.Dev.Conn.Close()
			return OK, ""
		})},
		{Name: "random-messages", Rule: "any messages", Attack: running(func(e *Env) (Outcome, string) {
			rng := rand.New(rand.NewPCG(31, 41))
			e.Dev.Conn.SetTimeout(50 * time.Millisecond)
			for i := range 300 {
				b := make([]byte, rng.IntN(100))
				for j := range b {
					b[j] = byte(rng.Uint32() >> (rng.Uint32() % 9))
				}
				var fds []int
				if rng.IntN(3) == 0 {
					fds = append(fds, e.Dev.Memory.Regions[rng.IntN(2)].FD)
				}
				if err := e.Dev.Conn.Send(fe.Message(rng.Uint32()%46), rng.IntN(2) == 0, b, fds...); err != nil {
					return sayMessage(err)
				}
				if rng.IntN(4) == 0 {
					_, _, _, err := e.Dev.Conn.Recv(nil)
					if errors.Is(err, fe.ErrGone) {
						return Closed, fmt.Sprintf("after %d messages", i)
					}
				}
			}
			return Ignored, ""
		})},
	}
	for i := range cases {
		cases[i].Side, cases[i].NoDevice = FrontEnd, true
	}
	return cases
}

// running brings the device up first.
func running(f func(*Env) (Outcome, string)) func(*Env) (Outcome, string) {
	return func(e *Env) (Outcome, string) {
		if err := e.bringUp(Case{}); err != nil {
			return Failed, err.Error()
		}
		return f(e)
	}
}

// leaveAfter sends the beginning of something and goes.
func leaveAfter(b []byte) func(*Env) (Outcome, string) {
	return fresh(func(e *Env) (Outcome, string) {
		if err := e.Dev.Conn.SendRaw(b); err != nil {
			return sayMessage(err)
		}
		time.Sleep(20 * time.Millisecond)
		e.Dev.Conn.Close()
		return OK, ""
	})
}

// eachMessage sends every message once, each on what the ones before have left; a daemon may end the connection at any.
func eachMessage(payload func(fe.Message) []byte) func(*Env) (Outcome, string) {
	return fresh(func(e *Env) (Outcome, string) {
		e.Dev.Conn.SetTimeout(100 * time.Millisecond)
		for m := fe.MsgGetFeatures; m <= fe.MsgCheckDeviceState+3; m++ {
			if err := e.Dev.Conn.Send(m, true, payload(m)); err != nil {
				return sayMessage(err)
			}
			if _, _, _, err := e.Dev.Conn.Recv(nil); errors.Is(err, fe.ErrGone) {
				return Closed, m.String()
			}
		}
		return Ignored, ""
	})
}

// queueIndex sends the vring messages for a queue that does not exist; the first that is not accepted decides.
func queueIndex(i uint32) func(*Env) (Outcome, string) {
	return withMemory(func(e *Env) (Outcome, string) {
		for _, m := range []fe.Message{fe.MsgSetVringNum, fe.MsgSetVringBase, fe.MsgSetVringEnable} {
			if o, d := e.tell(m, fe.VringState(i, 1)); o != OK && o != ErrorReply {
				return o, d
			}
		}
		for _, m := range []fe.Message{fe.MsgSetVringCall, fe.MsgSetVringErr, fe.MsgSetVringKick} {
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
			if err != nil {
				return Failed, err.Error()
			}
			e.Defer(func() { unix.Close(fd) })
			if o, d := e.tell(m, fe.U64(uint64(i&0xff)), fd); o != OK && o != ErrorReply {
				return o, d
			}
		}
		_, err := e.Dev.Conn.Call(fe.MsgGetVringBase, fe.VringState(i, 0))
		if errors.Is(err, fe.ErrTimeout) {
			return Ignored, "no answer"
		}
		return sayMessage(err)
	})
}

// strangeKick starts a ring with a descriptor that is no eventfd. The processor time of the daemon must stay sane.
func strangeKick(open func(*Env) ([]int, error)) func(*Env) (Outcome, string) {
	return withMemory(func(e *Env) (Outcome, string) {
		fds, err := open(e)
		if err != nil {
			return Failed, err.Error()
		}
		for _, f := range []func() error{
			func() error { return e.tellErr(fe.MsgSetVringNum, fe.VringState(1, uint32(e.Queue.Size))) },
			func() error { return e.tellErr(fe.MsgSetVringAddr, e.Dev.VringAddr(e.Queue)) },
			func() error { return e.tellErr(fe.MsgSetVringKick, fe.U64(1), fds...) },
			func() error { return e.tellErr(fe.MsgSetVringEnable, fe.VringState(1, 1)) },
		} {
			if err := f(); err != nil {
				return sayMessage(err)
			}
		}
		before := e.Proc.CPU()
		time.Sleep(100 * time.Millisecond)
		detail := ""
		if used := e.Proc.CPU() - before; used > 50*time.Millisecond {
			detail = fmt.Sprintf("spins: %v of processor time in 100 ms", used.Round(time.Millisecond))
		}
		_, err = e.Dev.Conn.CallU64(fe.MsgGetFeatures, nil)
		o, d := sayMessage(err)
		return o, d + detail
	})
}

// strangeCall runs the device, replaces its call descriptor and sends requests on.
func strangeCall(open func(*Env) ([]int, error)) func(*Env) (Outcome, string) {
	return running(func(e *Env) (Outcome, string) {
		fds, err := open(e)
		if err != nil {
			return Failed, err.Error()
		}
		if o, d := e.tell(fe.MsgSetVringCall, fe.U64(1), fds...); o != OK {
			return o, d
		}
		for range 3 {
			if _, err := e.FUSE.Start(getattr(1)); err != nil {
				return Failed, err.Error()
			}
			e.Queue.Publish()
			time.Sleep(10 * time.Millisecond)
		}
		if _, err := e.FUSE.On(e.Dev.Queues[0]).Getattr(1); err != nil {
			return QueueDead, "the high priority queue: " + err.Error()
		}
		_, err = e.Dev.Conn.CallU64(fe.MsgGetFeatures, nil)
		return sayMessage(err)
	})
}

func manyRegions(n int) [][4]uint64 {
	var all [][4]uint64
	for i := range uint64(n) {
		all = append(all, [4]uint64{i << 20, 1 << 20, 1<<40 + i<<20, 0})
	}
	return all
}

// Cases are all attacks, in the order in which they are reported.
func Cases() []Case {
	return append(append(guestCases(), ringCases()...), wireCases()...)
}
