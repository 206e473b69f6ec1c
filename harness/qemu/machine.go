package qemu

import (
	"context"
	"encoding/json"
	"fmt"
)

// Reset resets the machine as its reset button would, with the guest's kernel in whatever state it is. The agent starts anew: wait
// for its next hello with [VM.Hello]. The daemons' connections stay; QEMU stops and restarts the rings.
func (vm *VM) Reset(ctx context.Context) error {
	// -no-reboot turns every reset into an exit. They are allowed until the next hello, as the firmware adds one of its own to ours.
	if err := vm.onReboot(ctx, "reset"); err != nil {
		return err
	}
	vm.resetting.Store(true)
	mark := vm.qmp.Mark()
	if err := vm.qmp.Execute(ctx, "system_reset", nil, nil); err != nil {
		return err
	}
	_, err := vm.qmp.WaitEvent(ctx, mark, "RESET", nil)
	return err
}

// onReboot says what QEMU does when the machine is to be reset: "reset", or "shutdown", which is to exit.
func (vm *VM) onReboot(ctx context.Context, action string) error {
	return vm.qmp.Execute(ctx, "set-action", map[string]any{"reboot": action}, nil)
}

// Unplug takes the share with index i of Config.Shares out of the running guest, and waits until the guest has let it go. The
// guest should have unmounted it before; if not, its mount fails from then on.
func (vm *VM) Unplug(ctx context.Context, i int) error {
	id := deviceID(i)
	mark := vm.qmp.Mark()
	if err := vm.qmp.Execute(ctx, "device_del", map[string]any{"id": id}, nil); err != nil {
		return err
	}
	_, err := vm.qmp.WaitEvent(ctx, mark, "DEVICE_DELETED", func(e Event) bool {
		var d struct {
			Device string `json:"device"`
		}
		return json.Unmarshal(e.Data, &d) == nil && d.Device == id
	})
	if err != nil {
		return fmt.Errorf("unplug share %d: %w", i, err)
	}
	return vm.qmp.Execute(ctx, "chardev-remove", map[string]any{"id": fmt.Sprintf("fs%dc", i)}, nil)
}

// Plug adds a share to the running guest and returns its index for [VM.Unplug]. The guest does not mount it by itself: use
// guestproto.CallMount.
func (vm *VM) Plug(ctx context.Context, s Share) (int, error) {
	vm.mu.Lock()
	i := vm.shares
	vm.shares++
	vm.mu.Unlock()
	chardev := fmt.Sprintf("fs%dc", i)
	err := vm.qmp.Execute(ctx, "chardev-add", map[string]any{
		"id": chardev,
		"backend": map[string]any{"type": "socket", "data": map[string]any{
			"addr": map[string]any{"type": "unix", "data": map[string]any{"path": s.Socket}}, "server": false,
		}},
	}, nil)
	if err != nil {
		return i, fmt.Errorf("plug share %s: %w", s.Tag, err)
	}
	size := s.QueueSize
	if size == 0 {
		size = 1024
	}
	dev := map[string]any{"driver": "vhost-user-fs-pci", "id": deviceID(i), "chardev": chardev, "tag": s.Tag, "queue-size": size}
	if s.RequestQueues > 0 {
		dev["num-request-queues"] = s.RequestQueues
	}
	if err := vm.qmp.Execute(ctx, "device_add", dev, nil); err != nil {
		return i, fmt.Errorf("plug share %s: %w", s.Tag, err)
	}
	return i, nil
}

// Pause stops the guest's CPUs; Resume lets them go on.
func (vm *VM) Pause(ctx context.Context) error { return vm.qmp.Execute(ctx, "stop", nil, nil) }

// Resume undoes Pause.
func (vm *VM) Resume(ctx context.Context) error { return vm.qmp.Execute(ctx, "cont", nil, nil) }
