package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"virtiofsd/harness/guestproto"
)

// Session is a program of the guest, joined to streams of the host.
type Session struct {
	guestproto.SessionArgs
	// Stdin is read in a goroutine that ends with it, or with the first read after the program's end. nil is an empty one.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Started is called when the program runs; nil for nothing.
	Started func()
	// Sizes tells of the terminal's new sizes; nil for none.
	Sizes <-chan guestproto.Terminal
}

// Session runs a program in the guest until it ends, and returns its exit status. Errors are those of Call, and of Stdout and Stderr, at
// which the session is given up.
func (vm *VM) Session(ctx context.Context, s Session) (int, error) {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	vm.mu.Lock()
	vm.output = func(o guestproto.Output) {
		var err error
		switch o.Stream {
		case guestproto.Started:
			if s.Started != nil {
				s.Started()
			}
			go vm.feed(ctx, s)
			go vm.resize(ctx, s)
		case guestproto.Stdout:
			_, err = s.Stdout.Write(o.Data)
		case guestproto.Stderr:
			_, err = s.Stderr.Write(o.Data)
		}
		if err != nil {
			giveUp(err)
		}
	}
	vm.mu.Unlock()
	var end guestproto.SessionEnd
	err := vm.Call(ctx, guestproto.CallSession, s.SessionArgs, &end)
	if err == nil && ctx.Err() != nil { // the last output
		err = fmt.Errorf("guest call %s: %w", guestproto.CallSession, context.Cause(ctx))
	}
	return end.Status, err
}

// input sends input to the session that runs; false means that there is none any more.
func (vm *VM) input(ctx context.Context, in guestproto.Input) bool {
	b, err := json.Marshal(in)
	return err == nil && ctx.Err() == nil && vm.out.Write(guestproto.Request{Call: guestproto.CallInput, Args: b}) == nil
}

func (vm *VM) feed(ctx context.Context, s Session) {
	buf := make([]byte, 32<<10)
	for s.Stdin != nil {
		n, err := s.Stdin.Read(buf)
		if n > 0 && !vm.input(ctx, guestproto.Input{Data: buf[:n]}) {
			return
		}
		if err != nil {
			break
		}
	}
	vm.input(ctx, guestproto.Input{EOF: true})
}

func (vm *VM) resize(ctx context.Context, s Session) {
	for {
		select {
		case t := <-s.Sizes:
			vm.input(ctx, guestproto.Input{Size: &t})
		case <-ctx.Done():
			return
		}
	}
}
