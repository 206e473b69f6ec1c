package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"runtime"

	"virtiofsd/internal/config"
	"virtiofsd/internal/passthrough"
)

// show prints for people or for programs.
func show(v fmt.Stringer, asJSON bool, w io.Writer) error {
	if !asJSON {
		_, err := io.WriteString(w, v.String())
		return err
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// fsConfig is what the options say about the file system. limit is how many files may be open.
func fsConfig(o config.Options, limit uint64, log *slog.Logger) (passthrough.Config, error) {
	c := passthrough.Config{
		Cache: map[string]passthrough.Cache{
			"auto": passthrough.CacheAuto, "never": passthrough.CacheNever, "metadata": passthrough.CacheMetadata, "always": passthrough.CacheAlways,
		}[o.Cache],
		AllowMmap: o.AllowMmap, Writeback: o.Writeback, Readonly: o.Readonly,
		Xattr: o.Xattr, PosixACL: o.PosixACL != "never", SecurityLabel: o.SecurityLabel != "never", KillprivV2: o.KillprivV2,
		AnnounceSubmounts: o.AnnounceSubmounts, NoReaddirplus: o.NoReaddirplus, AllowDirectIO: o.AllowDirectIO, PreserveNoatime: o.PreserveNoatime,
		Flock: o.Flock, PosixLock: o.PosixLock,
		Lookout: o.Workers() > 1 && runtime.NumCPU() > 1,
		InodeFileHandles: map[string]passthrough.Handles{
			"prefer": passthrough.HandlesPrefer, "never": passthrough.HandlesNever, "mandatory": passthrough.HandlesMandatory,
		}[o.InodeFileHandles],
		Logger: log,
	}
	var err error
	if o.XattrMap != "" {
		if c.XattrMap, err = passthrough.ParseXattrMap(o.XattrMap); err != nil {
			return c, fmt.Errorf("--xattrmap: %w", err)
		}
	}
	if len(o.TranslateUID) > 0 {
		if c.TranslateUID, err = passthrough.ParseTranslation(o.TranslateUID); err != nil {
			return c, fmt.Errorf("--translate-uid: %w", err)
		}
	}
	if len(o.TranslateGID) > 0 {
		if c.TranslateGID, err = passthrough.ParseTranslation(o.TranslateGID); err != nil {
			return c, fmt.Errorf("--translate-gid: %w", err)
		}
	}
	if limit > 0 && limit < config.MinFiles {
		return c, fmt.Errorf("the limit of open files is %d: fewer than %d do not suffice; raise it (ulimit -n, LimitNOFILE=)", limit, config.MinFiles)
	}
	return c, nil
}
