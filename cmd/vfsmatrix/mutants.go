package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"virtiofsd/harness/mutants"
)

func (a *app) mutants() *cobra.Command {
	var r mutants.Runner
	var only string
	var fresh, survivors bool
	cmd := &cobra.Command{
		Use: "mutants [PACKAGE...]", Short: "Change the daemon's source in small ways, one at a time, and see a unit test fail",
		Long: `Change one operator, condition, result or statement at a time in packages of internal/ (` + strings.Join(mutants.Packages, ", ") + `;
all, or those named), without touching the tree, and run the package's tests, of which one must fail. Outcomes are kept in
` + mutants.StateFile + `: a run skips what is known of functions and tests that did not change, so it goes on where another was ended.
It needs root, and takes the go command and hours for all. The exit status is 1 where a package is below its score.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			for _, name := range args {
				if !slices.Contains(mutants.Packages, name) {
					return usagef("%q is none of the packages %s", name, strings.Join(mutants.Packages, ", "))
				}
			}
			if len(args) == 0 {
				args = mutants.Packages
			}
			var err error
			if r.Only, err = pattern(only); err != nil {
				return err
			}
			if r.Jobs, err = processors(r.Jobs); err != nil {
				return err
			}
			if r.Root, err = a.tree(); err != nil {
				return err
			}
			tree := os.DirFS(r.Root)
			if r.State, err = mutants.ReadState(tree); err != nil {
				return err
			}
			list, err := mutants.ReadEquivalents(tree)
			if err != nil {
				return err
			}
			if fresh {
				r.State.Forget(args)
			}
			r.Tell = func(s string) { fmt.Fprintln(cmd.ErrOrStderr(), s) }
			low := false
			for _, name := range args {
				if r.Package, err = mutants.Load(r.Root, name); err != nil {
					return err
				}
				if r.Reasons, err = mutants.Match(r.Package, list); err != nil {
					return err
				}
				one := r
				one.Save = func() error { return r.State.Write(r.Root, name) }
				if !survivors {
					if err := one.Run(cmd.Context()); err != nil {
						return err
					}
				}
				for _, m := range r.State.Left(r.Package) {
					fmt.Fprintf(out, "survived: internal/%s/%s\n", name, m)
				}
			}
			for _, score := range r.State.Scores() {
				if slices.Contains(args, score.Package) {
					fmt.Fprintln(out, score)
					low = low || score.Percent() < mutants.Least
				}
			}
			if low {
				return errNotExpected
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&only, "only", "", "a regular expression: mutants that are printed so")
	f.BoolVar(&fresh, "fresh", false, "forget what is known of these packages")
	f.BoolVar(&survivors, "survivors", false, "run nothing, and print those that survived")
	f.IntVar(&r.Jobs, "parallel", 0, "how many at the same time; 0 is as many as there are processors")
	f.IntVar(&r.Sample, "sample", 0, "run that many of each package, drawn with the same seed each time; 0 is all")
	f.DurationVar(&r.Slowest, "slowest", 0, "do without tests that take longer; 0 uses all")
	return cmd
}
