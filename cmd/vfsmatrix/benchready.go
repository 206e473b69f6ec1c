package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"virtiofsd/harness/bench"
	"virtiofsd/harness/runner"
)

// benchReadyFlags are the command line of bench ready.
type benchReadyFlags struct {
	impls      []string
	rounds     int
	first      bool
	json, from string
}

func (a *app) benchReady() *cobra.Command {
	f := benchReadyFlags{}
	cmd := &cobra.Command{
		Use: "ready [SCENARIO...]", Short: "Measure how long daemons take until they are ready, in each sandbox, and until they answer",
		Long: `Start each daemon as each scenario's launcher does (all, or those named; patterns such as 'b-*' count), without a guest, and measure how long
it takes until the socket is there. Where no scenario is named, also connect to each at that moment, set 1 to 64 request queues up, and measure how
long it takes from exec until INIT is answered. Daemons take turns; figures are medians of rounds. Give the machine nothing else to do meanwhile.`,
		Example: `  vfsmatrix bench ready --impl ours,c,rust
  vfsmatrix bench ready --first-reply
  vfsmatrix bench ready 'c-*' --rounds 21`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.measureReady(cmd.Context(), &f, args, func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) })
			if err != nil {
				return err
			}
			return publish(cmd, f.json, r)
		},
	}
	cmd.Flags().StringSliceVar(&f.impls, "impl", defaultImpls, implHelp)
	cmd.Flags().IntVar(&f.rounds, "rounds", 7, "rounds")
	cmd.Flags().BoolVar(&f.first, "first-reply", false, "measure until INIT is answered, and nothing else")
	cmd.Flags().StringVar(&f.json, "json", "", "also write all figures to this file")
	cmd.Flags().StringVar(&f.from, "from", "", "add to the samples of this file, which bench --json wrote")
	return cmd
}

func (a *app) measureReady(ctx context.Context, f *benchReadyFlags, names []string, progress func(string)) (*bench.Report, error) {
	if f.rounds < 1 {
		return nil, usagef("--rounds %d: must be positive", f.rounds)
	}
	if f.first && len(names) > 0 {
		return nil, usagef("--first-reply takes no scenario")
	}
	had, err := readBench(f.from)
	if err != nil {
		return nil, err
	}
	var r *bench.Report
	if !f.first {
		if r, err = a.measureStarts(ctx, f, names, progress); err != nil {
			return nil, err
		}
	}
	if len(names) == 0 {
		daemons, err := a.daemons(ctx, f.impls)
		if err != nil {
			return nil, err
		}
		replies, err := bench.FirstReplies(ctx, bench.Options{Daemons: daemons, Rounds: f.rounds, Progress: progress})
		if err != nil {
			return nil, err
		}
		r = r.With(replies)
	}
	return had.With(r), nil
}

func (a *app) measureStarts(ctx context.Context, f *benchReadyFlags, names []string, progress func(string)) (*bench.Report, error) {
	b, err := a.book()
	if err != nil {
		return nil, err
	}
	scenarios, err := b.pick(names)
	if err != nil {
		return nil, err
	}
	impls, err := a.present(ctx, b.root, f.impls)
	if err != nil {
		return nil, err
	}
	r := &bench.Report{Started: time.Now().UTC().Format(time.RFC3339), Host: bench.Host(os.TempDir()), Rounds: f.rounds}
	for _, i := range impls {
		r.Daemons = append(r.Daemons, i.Name)
	}
	began := time.Now()
	for round := range f.rounds {
		for n, s := range scenarios {
			for k := range impls {
				i := impls[(k+n+round)%len(impls)]
				if !s.Runs(i.Name) {
					continue
				}
				after, why, err := runner.Ready(ctx, s, i, a.log())
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", s.ID, i.Name, err)
				}
				why, _, _ = strings.Cut(why, ":") // the rest is for people, and names paths
				r.Starts = append(r.Starts, bench.Start{Scenario: s.ID, Daemon: i.Name, Round: round, ReadyMS: float64(after) / 1e6, Why: why})
			}
		}
		progress(fmt.Sprintf("round %d of %d: %.1f s", round+1, f.rounds, time.Since(began).Seconds()))
	}
	return r, nil
}
