package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/internal/config"
)

func TestLinesOfTheLog(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		var b bytes.Buffer
		log := slog.New(&lineHandler{mu: &sync.Mutex{}, w: &b, level: levelTrace, json: asJSON}).With("queue", 1)
		log.Warn("a name\nof the guest", "err", errors.New("no\nsuch file"), "n", 5)
		log.Log(t.Context(), levelTrace, "fine")
		lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		require.Len(t, lines, 2, "one line each, whatever is in it")
		if !asJSON {
			assert.Regexp(t, `^\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ WARN  virtiofsd\] a name \| of the guest: no \| such file n=5 queue=1$`, lines[0])
			assert.Contains(t, lines[1], " TRACE virtiofsd] fine")
			continue
		}
		var rec map[string]any
		require.NoError(t, json.Unmarshal([]byte(lines[0]), &rec))
		delete(rec, "time")
		assert.Equal(t, map[string]any{"level": "WARN", "msg": "a name\nof the guest", "err": "no\nsuch file", "n": 5., "queue": 1.}, rec)
		assert.Contains(t, lines[1], `"level":"TRACE"`)
	}
}

func TestLevels(t *testing.T) {
	for rust, want := range map[string]slog.Level{
		"": slog.LevelWarn, "ERROR": slog.LevelError, "Trace": levelTrace, "warn,virtiofsd=debug": slog.LevelDebug, "vhost=trace": slog.LevelWarn, "nonsense": slog.LevelWarn,
		"info,vhost=off": slog.LevelInfo,
	} {
		assert.Equal(t, want, levelOf(config.Options{LogLevel: "warn"}, rust), rust)
	}
}
