package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/fuzz"
)

func (a *app) fuzz() *cobra.Command {
	var impls, sandboxes []string
	var cfg fuzz.Config
	var replay string
	cmd := &cobra.Command{
		Use: "fuzz", Short: "Drive live daemons with random sessions of a guest, valid and not, and minimise those that find something", Args: cobra.NoArgs,
		Long: `Draw sessions from a seed and run each against a fresh process of every daemon, in its sandbox and without a virtual machine: requests
that a kernel sends, held against the same calls on a local directory, and requests, chains and changes of memory and of the host's files that
no kernel makes. A death, a hang, a wrong answer or an escape is a finding; its session is minimised and written as a replay file.

Where something is found in the first implementation, the exit status is 1; the others stand beside it to compare. With --replay one file is
run again, and the exit status is 1 while anything is found.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, s := range sandboxes {
				if s != "namespace" && s != "pivot_root" && s != "chroot" && s != "none" {
					return usagef("--sandbox is a list of namespace, pivot_root, chroot, none, not %q", s)
				}
			}
			if cfg.Time <= 0 || cfg.Steps <= 0 || cfg.Sessions < 0 {
				return usagef("--time and --steps are above 0, --sessions is not below")
			}
			if os.Geteuid() != 0 {
				return fmt.Errorf("fuzz: the daemons are run as root, in their sandboxes: run it as root, on a machine that may be thrown away")
			}
			daemons, err := a.daemons(cmd.Context(), impls)
			if err != nil {
				return err
			}
			if replay != "" {
				return replayFile(cmd.Context(), cmd.OutOrStdout(), daemons, replay)
			}
			if cfg.Seed == 0 {
				cfg.Seed = uint64(time.Now().UnixNano())
			}
			cfg.Daemons, cfg.Sandboxes, cfg.Logger = daemons, sandboxes, a.log()
			fmt.Fprintf(cmd.OutOrStdout(), "seed %d\n", cfg.Seed)
			reports, err := fuzz.Run(cmd.Context(), cfg)
			if len(reports) > 0 {
				fuzz.WriteTable(cmd.OutOrStdout(), reports)
			}
			if err != nil {
				return err
			}
			for _, r := range reports {
				for _, f := range r.Findings {
					fmt.Fprintf(cmd.OutOrStdout(), "vfsmatrix fuzz --impl %s --replay %s\n", r.Daemon, f.File)
				}
			}
			if len(reports[0].Findings) > 0 {
				return errNotExpected
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&impls, "impl", defaultImpls, implHelp)
	f.StringSliceVar(&sandboxes, "sandbox", []string{"namespace", "none"}, "sandbox modes, a session each in turns")
	f.DurationVar(&cfg.Time, "time", 10*time.Minute, "for how long, all daemons together")
	f.IntVar(&cfg.Sessions, "sessions", 0, "at most so many sessions a daemon; 0 is no bound")
	f.IntVar(&cfg.Steps, "steps", 150, "steps of a session")
	f.Uint64Var(&cfg.Seed, "seed", 0, "what the sessions are drawn from; 0 is the time")
	f.StringVar(&cfg.Dir, "dir", "runs/fuzz", "the folder for replay files")
	f.StringVar(&replay, "replay", "", "run this file again instead")
	return cmd
}

// replayFile runs one replay against each daemon.
func replayFile(ctx context.Context, out io.Writer, daemons []frontend.Daemon, name string) error {
	file, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("--replay: %w", err)
	}
	defer file.Close()
	r, err := fuzz.Read(file)
	if err != nil {
		return fmt.Errorf("--replay %s: %w", name, err)
	}
	bad := false
	for _, d := range daemons {
		found, log, err := fuzz.RunReplay(ctx, d, r)
		switch {
		case err != nil:
			return fmt.Errorf("replay against %s: %w", d.Name, err)
		case found == nil:
			fmt.Fprintf(out, "%s: nothing in %d steps\n", d.Name, len(r.Steps))
		default:
			bad = true
			fmt.Fprintf(out, "%s: %s\n", d.Name, found)
			if lines := strings.TrimSpace(log); lines != "" {
				fmt.Fprintf(out, "%s\n", lines)
			}
		}
	}
	if bad {
		return errNotExpected
	}
	return nil
}
