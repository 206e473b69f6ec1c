package vhostuser_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
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

// A front-end may take memory away at any time, before any message. What needs it is refused or
// stops a queue; the connection goes on.
func TestEachMessageMeetsVanishedMemory(t *testing.T) {
	messages := []struct {
		m       fe.Message
		payload func(*device) []byte
		fds     func(*device) []int
		refused string // why, where the ring stands still
	}{
		{m: fe.MsgGetFeatures}, {m: fe.MsgSetOwner}, {m: fe.MsgResetOwner}, {m: fe.MsgResetDevice},
		{m: fe.MsgSetFeatures, payload: func(d *device) []byte { return fe.U64(d.Features) }},
		{m: fe.MsgSetStatus, payload: func(*device) []byte { return fe.U64(0) }},
		{m: fe.MsgSetMemTable, payload: func(d *device) []byte { return fe.MemTable(d.Memory.Regions[:1]) },
			fds: func(d *device) []int { return []int{d.Memory.Regions[0].FD} }, refused: "of a file of 0 bytes"},
		{m: fe.MsgAddMemReg, payload: func(*device) []byte { return region(1<<40, 1<<16, 1<<46, 0) }, fds: func(*device) []int { return []int{memfd(t, 1<<16)} }},
		{m: fe.MsgRemMemReg, payload: func(d *device) []byte { return fe.SingleRegion(d.Memory.Regions[1]) }},
		{m: fe.MsgRemMemReg, payload: func(d *device) []byte { return fe.SingleRegion(d.Memory.Regions[0]) }},
		{m: fe.MsgSetVringNum, payload: func(d *device) []byte { return state(1, 64) }},
		{m: fe.MsgSetVringBase, payload: func(d *device) []byte { return state(1, 0) }},
		{m: fe.MsgSetVringAddr, payload: func(d *device) []byte { return d.VringAddr(d.Request(0)) }},
		{m: fe.MsgSetVringEnable, payload: func(*device) []byte { return state(1, 0) }},
		{m: fe.MsgSetVringEnable, payload: func(*device) []byte { return state(1, 1) }},
		{m: fe.MsgGetVringBase, payload: func(*device) []byte { return state(1, 0) }},
		{m: fe.MsgSetVringKick, payload: func(*device) []byte { return fe.U64(1) }, fds: event(t), refused: "guest memory vanished"},
		{m: fe.MsgSetVringKick, payload: func(*device) []byte { return fe.U64(1 | 1<<8) }, refused: "guest memory vanished"},
		{m: fe.MsgSetVringCall, payload: func(*device) []byte { return fe.U64(1) }, fds: event(t)},
		{m: fe.MsgSetVringErr, payload: func(*device) []byte { return fe.U64(1) }, fds: event(t)},
	}
	for i, m := range messages {
		for _, runs := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v-%d/runs=%v", m.m, i, runs), func(t *testing.T) {
				d := serve(t, &echo{}, vhostuser.Config{}, fe.Config{})
				d.quick(t, 1)
				if !runs {
					_, err := d.Stop(d.Request(0))
					require.NoError(t, err)
				}
				for _, r := range d.Memory.Regions {
					require.NoError(t, unix.Ftruncate(r.FD, 0))
					defer unix.Ftruncate(r.FD, int64(r.Size)) // for the front-end's own sake
				}
				var payload []byte
				var fds []int
				if m.payload != nil {
					payload = m.payload(d)
				}
				if m.fds != nil {
					fds = m.fds(d)
				}
				var err error
				switch m.m {
				case fe.MsgGetFeatures, fe.MsgGetVringBase:
					_, err = d.Conn.Call(m.m, payload)
				default:
					err = d.Conn.Ack(m.m, payload, fds...)
				}
				if m.refused != "" && !runs {
					var refused *fe.RefusedError
					require.ErrorAs(t, err, &refused)
					assert.Contains(t, d.log.String(), m.refused)
				} else if err != nil {
					var refused *fe.RefusedError
					require.ErrorAs(t, err, &refused, "a ring that runs is set up by nobody")
				}
				d.Request(0).Kick()
				time.Sleep(time.Millisecond)
				_, err = d.Conn.CallU64(fe.MsgGetFeatures, nil)
				require.NoError(t, err, "the connection goes on")
			})
		}
	}
}

func event(t *testing.T) func(*device) []int {
	return func(*device) []int {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		require.NoError(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return []int{fd}
	}
}

// Whatever touches guest memory in this package survives that it vanishes, in whichever goroutine:
// the function recovers, and has faults be panics.
func TestWhoTouchesGuestMemorySurvives(t *testing.T) {
	harmless := map[string]bool{"Base": true, "Size": true, "Mem": true, "Move": true, "Waiting": true, "Layout": true} // of a ring
	touching := func(call *ast.CallExpr) bool {
		s, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		if of, ok := s.X.(*ast.SelectorExpr); ok && of.Sel.Name == "ring" {
			return !harmless[s.Sel.Name]
		}
		return s.Sel.Name == "Walk" || s.Sel.Name == "Serve"
	}
	survives := func(body *ast.BlockStmt) (yes bool) {
		for _, s := range body.List {
			if d, ok := s.(*ast.DeferStmt); ok && len(d.Call.Args) > 0 {
				last, ok := d.Call.Args[len(d.Call.Args)-1].(*ast.CallExpr)
				if !ok {
					continue
				}
				f, ok := last.Fun.(*ast.SelectorExpr)
				yes = yes || ok && f.Sel.Name == "Touch"
			}
		}
		return yes
	}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	found := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, name, nil, 0)
		require.NoError(t, err)
		var within func(n ast.Node, safe bool)
		within = func(n ast.Node, safe bool) {
			ast.Inspect(n, func(m ast.Node) bool {
				switch m := m.(type) {
				case *ast.FuncLit:
					within(m.Body, survives(m.Body)) // it may run in a goroutine of its own
					return false
				case *ast.CallExpr:
					if touching(m) {
						found++
						assert.True(t, safe, "%s touches guest memory: defer rescue(&err, guestmem.Touch()) in that function", set.Position(m.Pos()))
					}
				}
				return true
			})
		}
		for _, d := range f.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && d.Body != nil {
				within(d.Body, survives(d.Body))
			}
		}
	}
	assert.GreaterOrEqual(t, found, 10)
}
