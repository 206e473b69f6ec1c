package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"virtiofsd/internal/config"
)

// levels are the words of --log-level and RUST_LOG.
var levels = map[string]slog.Level{
	"error": slog.LevelError, "warn": slog.LevelWarn, "info": slog.LevelInfo, "debug": slog.LevelDebug, "trace": levelTrace, "off": slog.LevelError + 100,
}

const levelTrace = slog.LevelDebug - 4

// levelOf is the level in force. RUST_LOG is a list as Rust's env_logger reads it: a level, or virtiofsd=LEVEL; other modules are not here.
func levelOf(o config.Options, rustLog string) slog.Level {
	level := levels[o.LogLevel]
	for d := range strings.SplitSeq(strings.ToLower(rustLog), ",") {
		module, word, named := strings.Cut(strings.TrimSpace(d), "=")
		if !named {
			word = module
		}
		if l, ok := levels[word]; ok && (!named || module == "virtiofsd") {
			level = l
		}
	}
	return level
}

// newLog makes the daemon's log, on standard error or syslog. Where syslog cannot be reached, standard error it is, with a warning.
func newLog(o config.Options) *slog.Logger {
	h := &lineHandler{mu: &sync.Mutex{}, w: os.Stderr, level: levelOf(o, os.Getenv("RUST_LOG")), json: o.LogFormat == "json"}
	if !o.Syslog {
		return slog.New(h)
	}
	conn, err := dialSyslog()
	if err != nil {
		log := slog.New(h)
		log.Warn("cannot reach syslog: logging to standard error", "err", err)
		return log
	}
	h.syslog = conn
	return slog.New(h)
}

// dialSyslog connects to the host's log. What is connected stays so inside the sandbox, where there are no paths to connect to: that is why
// package log/syslog, which connects again after an error, is not what serves here.
func dialSyslog() (conn net.Conn, err error) {
	for _, path := range []string{"/dev/log", "/var/run/syslog", "/var/run/log"} {
		var e error
		if conn, e = net.Dial("unixgram", path); e == nil {
			return conn, nil
		} else if err == nil {
			err = e
		}
	}
	return nil, err
}

// lineHandler writes a line for each record: as the Rust daemon does, which launchers look for, "[2026-11-23T07:50:03Z INFO  virtiofsd]
// text", or as JSON.
type lineHandler struct {
	mu     *sync.Mutex
	w      io.Writer
	syslog net.Conn // or nil; where it fails, w gets the line
	level  slog.Level
	json   bool
	attrs  []slog.Attr
}

func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	r = r.Clone()
	r.AddAttrs(h.attrs...)
	h.mu.Lock()
	defer h.mu.Unlock()
	// One line is one write, whatever a guest put into a name.
	if h.syslog != nil {
		const user = 1 << 3 // facility (RFC 5424, section 6.2.1)
		if _, err := fmt.Fprintf(h.syslog, "<%d>%s virtiofsd: %s", user|severity(r.Level), time.Now().Format(time.Stamp), h.line(r, true)); err == nil {
			return nil
		}
	}
	_, err := io.WriteString(h.w, h.line(r, false)+"\n")
	return err
}

func severity(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

// line is a record without its end of line; bare leaves out what syslog adds itself.
func (h *lineHandler) line(r slog.Record, bare bool) string {
	if h.json {
		return jsonLine(r)
	}
	var b strings.Builder
	if !bare {
		fmt.Fprintf(&b, "[%s %-5s virtiofsd] ", r.Time.UTC().Format("2006-01-02T15:04:05Z"), levelName(r.Level))
	}
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" {
			fmt.Fprintf(&b, ": %v", a.Value)
		} else {
			fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		}
		return true
	})
	return strings.ReplaceAll(b.String(), "\n", " | ")
}

func levelName(l slog.Level) string {
	if l <= levelTrace {
		return "TRACE"
	}
	return l.String()
}

func jsonLine(r slog.Record) string {
	var b bytes.Buffer
	h := slog.NewJSONHandler(&b, &slog.HandlerOptions{Level: levelTrace, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch v := a.Value.Any().(type) {
		case time.Time:
			return slog.String(a.Key, v.UTC().Format("2006-01-02T15:04:05.000Z"))
		case slog.Level:
			return slog.String(a.Key, levelName(v))
		}
		return a
	}})
	if err := h.Handle(context.Background(), r); err != nil {
		return fmt.Sprintf(`{"msg":%q}`, r.Message)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (h *lineHandler) WithAttrs(as []slog.Attr) slog.Handler {
	n := *h
	n.attrs = append(n.attrs[:len(n.attrs):len(n.attrs)], as...)
	return &n
}

func (h *lineHandler) WithGroup(string) slog.Handler { return h }
