package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"virtiofsd/harness/bench"
)

func (a *app) bench() *cobra.Command {
	var impls []string
	var only, file string
	o := bench.Options{}
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure daemons in turns, without a virtual machine, and print the first against the best of the others", Args: cobra.NoArgs,
		Long: `Measure daemons in turns with a fresh process each round. Figures are medians of rounds; p is the probability that rounds as different as
these come from equals: from 0.05 on the two cannot be told apart. Give the machine nothing else to do meanwhile.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Only, err = pattern(only); err != nil {
				return err
			}
			if o.Rounds < 1 || o.Time <= 0 {
				return usagef("--rounds %d, --time %v: both must be positive", o.Rounds, o.Time)
			}
			if o.Daemons, err = a.daemons(cmd.Context(), impls); err != nil {
				return err
			}
			o.Progress = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			r, err := bench.Run(cmd.Context(), o)
			if err != nil {
				return err
			}
			if err := writeJSON(file, r); err != nil {
				return err
			}
			r.WriteTable(cmd.OutOrStdout())
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&impls, "impl", defaultImpls, implHelp)
	cmd.Flags().StringVar(&only, "only", "", "a regular expression: workloads whose name it fits, and state (of the process)")
	cmd.Flags().IntVar(&o.Rounds, "rounds", 7, "rounds: from seven on an interval of 95 % can be told")
	cmd.Flags().DurationVar(&o.Time, "time", time.Second, "of each workload in each round")
	cmd.Flags().StringVar(&o.Dir, "dir", "", "where to make the share; default: the directory for temporary files")
	cmd.Flags().StringVar(&o.Sandbox, "sandbox", "namespace", "each daemon's --sandbox")
	cmd.Flags().StringVar(&file, "json", "", "also write all samples to this file")
	return cmd
}
