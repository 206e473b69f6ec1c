package faultd

import "golang.org/x/sys/unix"

// registers are a stopped thread's.
type registers struct{ was unix.PtraceRegs }

// load reads the registers of a thread that stopped at a system call.
func load(c *Call) (*registers, error) {
	r := &registers{}
	if err := unix.PtraceGetRegs(c.TID, &r.was); err != nil {
		return nil, err
	}
	c.Nr, c.result = r.was.Orig_rax, int64(r.was.Rax)
	c.args = [6]uint64{r.was.Rdi, r.was.Rsi, r.was.Rdx, r.was.R10, r.was.R8, r.was.R9}
	return r, nil
}

// entry reports whether the call is not carried out yet: the kernel has put -ENOSYS where the result will be.
func (r *registers) entry() bool { return -int64(r.was.Rax) == int64(unix.ENOSYS) }

// begin lets the call begin as c has it.
func (r *registers) begin(c *Call) error {
	n := r.was
	n.Orig_rax = c.Nr
	n.Rdi, n.Rsi, n.Rdx, n.R10, n.R8, n.R9 = c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5]
	return r.set(c, n)
}

// end lets it end with c's result. Arguments that were changed on the way in are left so: no caller looks at them again.
func (r *registers) end(c *Call) error {
	n := r.was
	n.Rax = uint64(c.result)
	return r.set(c, n)
}

func (r *registers) set(c *Call, n unix.PtraceRegs) error {
	if n == r.was {
		return nil
	}
	return unix.PtraceSetRegs(c.TID, &n)
}
