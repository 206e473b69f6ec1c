package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"strings"
	"sync"
)

// levels are the words of --log-level and RUST_LOG.
var levels = map[string]slog.Level{
	"error": slog.LevelError, "warn": slog.LevelWarn, "info": slog.LevelInfo, "debug": slog.LevelDebug, "trace": slog.LevelDebug - 4, "off": slog.LevelError + 100,
}

// newLog makes the daemon's log, on standard error or syslog. Where syslog cannot be reached, standard error it is, with a warning.
func newLog(level, rustLog string, toSyslog bool) *slog.Logger {
	l, ok := levels[strings.ToLower(rustLog)]
	if !ok {
		l = levels[level]
	}
	h := &textHandler{w: os.Stderr, level: l}
	if !toSyslog {
		return slog.New(h)
	}
	w, err := syslog.New(syslog.LOG_USER|syslog.LOG_INFO, "virtiofsd")
	if err != nil {
		log := slog.New(h)
		log.Warn("cannot reach syslog: logging to standard error", "err", err)
		return log
	}
	return slog.New(&textHandler{w: w, level: l, bare: true})
}

// textHandler writes lines as the Rust daemon does, which launchers look for: "[2026-11-23T07:50:03Z INFO  virtiofsd] text".
type textHandler struct {
	mu    sync.Mutex
	w     io.Writer
	level slog.Level
	bare  bool // without time, which syslog adds
	attrs string
}

func (h *textHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *textHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	if !h.bare {
		fmt.Fprintf(&b, "[%s %-5s virtiofsd] ", r.Time.UTC().Format("2006-01-02T15:04:05Z"), r.Level)
	}
	b.WriteString(r.Message)
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(attr(a))
		return true
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	// One line is one write, whatever a guest put into a name.
	_, err := io.WriteString(h.w, strings.ReplaceAll(b.String(), "\n", " | ")+"\n")
	return err
}

func attr(a slog.Attr) string {
	if a.Key == "err" {
		return ": " + a.Value.String()
	}
	return " " + a.Key + "=" + a.Value.String()
}

func (h *textHandler) WithAttrs(as []slog.Attr) slog.Handler {
	n := &textHandler{w: h.w, level: h.level, bare: h.bare, attrs: h.attrs}
	for _, a := range as {
		n.attrs += attr(a)
	}
	return n
}

func (h *textHandler) WithGroup(string) slog.Handler { return h }
