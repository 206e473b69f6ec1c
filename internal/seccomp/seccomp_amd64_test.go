package seccomp

import (
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestForeignArchitectureIsRefused: the 32-bit entry of amd64 has other numbers.
func TestForeignArchitectureIsRefused(t *testing.T) {
	p, err := policyFor(config(), arch.X86_64)
	require.NoError(t, err)
	run := machine(t, p)
	read := arch.X86_64.SyscallNames["read"]
	assert.EqualValues(t, allow, run(uint32(arch.X86_64.ID), read))
	assert.EqualValues(t, kill, run(uint32(arch.I386.ID), arch.I386.SyscallNames["read"]))
	assert.EqualValues(t, enosys, run(uint32(arch.X86_64.ID), read|1<<30), "x32")
}
