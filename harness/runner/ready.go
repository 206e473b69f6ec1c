package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"virtiofsd/harness/impl"
	"virtiofsd/harness/launch"
	"virtiofsd/harness/result"
	"virtiofsd/harness/scenario"
)

// Ready starts the daemon as the scenario's launcher does, and returns how long after that its socket was there, the launcher's wrapper
// included. Nobody connects; the daemon is killed. Where the scenario is not for this daemon or this machine, or the daemon refuses, the time
// is 0 and why says so.
func Ready(ctx context.Context, s *scenario.Scenario, i *impl.Impl, log *slog.Logger) (after time.Duration, why string, err error) {
	r := &run{Config: Config{Work: os.TempDir(), Log: log}, needs: map[string]func() error{}}
	c := &cell{run: r, job: job{s: s, i: i}}
	if !c.admitted() {
		if c.out.Status == result.CellSkipped {
			return 0, fmt.Sprintf("%s: %s", c.out.Skip, c.out.Reason), nil
		}
		return 0, "", errors.New(c.out.Reason)
	}
	defer c.clean()
	if err := c.prepare(); err != nil {
		return 0, "", fmt.Errorf("prepare %s: %w", s.ID, err)
	}
	c.dir = filepath.Join(c.work, "logs")
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return 0, "", err
	}
	err = c.startDaemon(ctx)
	var refused *launch.RefusedError
	switch {
	case errors.As(err, &refused):
		return 0, refused.Error(), nil
	case err != nil:
		return 0, "", err
	}
	defer c.daemon.Kill()
	return c.daemon.Ready, "", nil
}
