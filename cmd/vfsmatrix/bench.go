package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"virtiofsd/harness/bench"
)

// benchFlags are the command line of bench.
type benchFlags struct {
	bench.Options
	impls, variants []string
	only            string
	json, from, old string
	syscalls        bool
	compete         bool
	idle            string
	scale           int
}

const idleHelp = "awake: processors with nothing to do poll; machine: they do what they do"

const variantHelp = "NAME=IMPL:OPTIONS: measure IMPL with further options too; may be repeated"

func (a *app) bench() *cobra.Command {
	f := benchFlags{}
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure daemons in turns, without a virtual machine, and print the first against the best of the others", Args: benchArgs,
		Long: `Measure daemons in turns with a fresh process each round. Figures are medians of rounds; p is the probability that rounds as different as
these come from equals: from 0.05 on the two cannot be told apart. Give the machine nothing else to do meanwhile.

With --compare the exit status is 1 where a daemon is worse than it was: by more than 10 %, with p below 0.05, which takes four rounds on both
sides.

Processors with nothing to do are kept awake, which shows what daemons do and not what it costs to wake a processor up; --idle=machine leaves
them to sleep.`,
		Example: `  vfsmatrix bench --impl ours,c --variant no-poll=ours:--poll-us=0
  vfsmatrix bench --json new.json --compare old.json
  vfsmatrix bench --from new.json --scale=1000000 --syscalls --json new.json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.Progress = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			old, err := readBench(f.old)
			if err != nil {
				return err
			}
			r, err := a.measure(cmd.Context(), &f)
			if err != nil {
				return err
			}
			if err := publish(cmd, f.json, r); err != nil {
				return err
			}
			if old != nil && old.WriteChanges(cmd.OutOrStdout(), r) > 0 {
				return errNotExpected
			}
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&f.impls, "impl", defaultImpls, implHelp)
	cmd.Flags().StringArrayVar(&f.variants, "variant", nil, variantHelp)
	cmd.Flags().StringVar(&f.only, "only", "", "a regular expression: workloads whose name it fits, and state (of the process)")
	cmd.Flags().IntVar(&f.Rounds, "rounds", 7, "rounds: from seven on an interval of 95 % can be told")
	cmd.Flags().DurationVar(&f.Time, "time", time.Second, "of each workload in each round")
	cmd.Flags().StringVar(&f.Dir, "dir", "", "where to make the share; default: the directory for temporary files")
	cmd.Flags().StringVar(&f.Sandbox, "sandbox", "namespace", "each daemon's --sandbox")
	cmd.Flags().StringVar(&f.idle, "idle", string(bench.Awake), idleHelp)
	cmd.Flags().StringVar(&f.json, "json", "", "also write all samples to this file")
	cmd.Flags().StringVar(&f.from, "from", "", "take the samples of this file, which --json wrote, and measure only what --scale, --syscalls or --compete ask for")
	cmd.Flags().StringVar(&f.old, "compare", "", "compare with the samples of this file, which --json wrote")
	cmd.Flags().BoolVar(&f.syscalls, "syscalls", false, "count the system calls of each workload under strace, and measure nothing else")
	cmd.Flags().BoolVar(&f.compete, "compete", false, "measure at depth 1 beside threads that compute, as when guests compete for processors, for four times --time each, and nothing else")
	cmd.Flags().IntVar(&f.scale, "scale", 0, "measure what an item costs among 1000 and tenfold, up to so many names (without =N 100000), and on 1 to 8 queues, and nothing else")
	cmd.Flags().Lookup("scale").NoOptDefVal = "100000"
	cmd.AddCommand(a.benchGuest(), a.benchReady())
	return cmd
}

// benchArgs refuses arguments. The value of --scale reads as one where it does not stand behind =.
func benchArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 && cmd.Flags().Changed("scale") {
		return usagef("--scale takes its value behind =; say --scale=%s", args[0])
	}
	return cobra.NoArgs(cmd, args)
}

// publish writes a report to a file, if one is named, and prints it.
func publish(cmd *cobra.Command, file string, r interface{ WriteTable(io.Writer) }) error {
	if err := writeJSON(file, r); err != nil {
		return err
	}
	r.WriteTable(cmd.OutOrStdout())
	return nil
}

// measure does what the flags ask for.
func (a *app) measure(ctx context.Context, f *benchFlags) (*bench.Report, error) {
	var err error
	switch {
	case f.Rounds < 1 || f.Time <= 0:
		return nil, usagef("--rounds %d, --time %v: both must be positive", f.Rounds, f.Time)
	case f.scale != 0 && (f.scale < 1000 || f.scale > bench.MaxScale):
		return nil, usagef("--scale %d is not from 1000 to %d", f.scale, bench.MaxScale)
	}
	if f.Only, err = pattern(f.only); err != nil {
		return nil, err
	}
	if f.Idle, err = idle(f.idle); err != nil {
		return nil, err
	}
	some := f.syscalls || f.compete || f.scale != 0
	if len(f.Chosen()) == 0 && (some || !f.WantsState()) {
		return nil, usagef("--only %q fits no workload", f.only)
	}
	had, err := readBench(f.from)
	if err != nil {
		return nil, err
	}
	if had != nil && !some {
		return had, nil
	}
	if f.Daemons, err = a.daemons(ctx, f.impls); err != nil {
		return nil, err
	}
	if err := f.addVariants(); err != nil {
		return nil, err
	}
	if !some {
		return bench.Run(ctx, f.Options)
	}
	r := had
	if f.syscalls {
		calls, err := bench.Syscalls(ctx, f.Options)
		if err != nil {
			return nil, err
		}
		r = r.With(calls)
	}
	if f.compete {
		contests, err := bench.Compete(ctx, f.Options)
		if err != nil {
			return nil, err
		}
		r = r.With(contests)
	}
	if f.scale != 0 {
		points, err := bench.Scale(ctx, f.Options, f.scale)
		if err != nil {
			return nil, err
		}
		r = r.With(points)
	}
	return r, nil
}

// idle reads --idle.
func idle(s string) (bench.Idle, error) {
	switch i := bench.Idle(s); i {
	case bench.Awake, bench.Machine:
		return i, nil
	}
	return "", usagef("--idle %q: it is %s or %s", s, bench.Awake, bench.Machine)
}

// variant is a daemon of --variant.
type variant struct {
	name  string
	of    int // the number of the implementation
	extra []string
}

// variants reads --variant, where the implementations have these names.
func variants(said, names []string) (all []variant, err error) {
	taken := slices.Clone(names)
	for _, v := range said {
		name, rest, _ := strings.Cut(v, "=")
		of, options, ok := strings.Cut(rest, ":")
		if !ok || name == "" || strings.ContainsRune(name, '/') || options == "" {
			return nil, usagef("--variant %q is not NAME=IMPL:OPTIONS", v)
		}
		at := slices.Index(names, of)
		switch {
		case slices.Contains(taken, name):
			return nil, usagef("--variant %q: there is a daemon %s already", v, name)
		case at < 0:
			return nil, usagef("--variant %q: %s is not among those of --impl", v, of)
		}
		taken = append(taken, name)
		all = append(all, variant{name, at, strings.Fields(options)})
	}
	return all, nil
}

// addVariants adds the daemons of --variant.
func (f *benchFlags) addVariants() error {
	var names []string
	for _, d := range f.Daemons {
		names = append(names, d.Name)
	}
	all, err := variants(f.variants, names)
	if err != nil {
		return err
	}
	f.Variants, f.Extra = map[string]string{}, map[string][]string{}
	for _, v := range all {
		d := f.Daemons[v.of]
		d.Name = v.name
		f.Daemons = append(f.Daemons, d)
		f.Variants[v.name], f.Extra[v.name] = names[v.of], v.extra
	}
	return nil
}

// readBench reads what --json wrote; nil without a name.
func readBench(file string) (*bench.Report, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var r bench.Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if len(r.Daemons) == 0 {
		return nil, fmt.Errorf("read %s: it names no daemons", file)
	}
	return &r, nil
}
