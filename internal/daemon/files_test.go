package daemon

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestMostFilesLeaveTheHostSome(t *testing.T) {
	for _, c := range []struct{ nrOpen, fileMax, want uint64 }{
		{1 << 30, math.MaxInt64, 1000000},
		{1 << 20, math.MaxInt64, 1000000},
		{65536, math.MaxInt64, 65536}, // fs.nr_open
		{1 << 20, 100000, 100000 - 16384},
		{1 << 20, 17000, 1024}, // a small host: enough to start with
		{1 << 20, 100, 1024},
		{0, 0, 1000000}, // not known
	} {
		assert.Equal(t, c.want, mostFiles(c.nrOpen, c.fileMax), "fs.nr_open %d, fs.file-max %d", c.nrOpen, c.fileMax)
	}
}
