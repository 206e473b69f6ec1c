package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"virtiofsd/harness/mutate"
)

func (a *app) prove() *cobra.Command {
	var only string
	var fuzz time.Duration
	cmd := &cobra.Command{
		Use: "prove", Short: "Take each defence out of the daemon's source and see its tests fail", Args: cobra.NoArgs,
		Long: `Take each defence of ` + mutate.Dir + `/*.toml out of the source, one at a time and without touching the tree, and run
its tests, which must fail. Where one does not, the exit status is 1. It takes the go command and some ten seconds a defence. With --fuzz it is the fuzz targets that must find it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := pattern(only)
			if err != nil {
				return err
			}
			root, err := a.tree()
			if err != nil {
				return err
			}
			defences, err := mutate.Load(os.DirFS(root))
			if err != nil {
				return err
			}
			if filter != nil {
				defences = slices.DeleteFunc(defences, func(d mutate.Defence) bool { return !filter.MatchString(d.Layer + ": " + d.Name) })
			}
			defences = slices.DeleteFunc(defences, func(d mutate.Defence) bool { return fuzz > 0 && len(d.Fuzz) == 0 || fuzz == 0 && len(d.Tests) == 0 })
			if len(defences) == 0 {
				return usagef("--only %q fits no defence", only)
			}
			all, err := mutate.Prove(cmd.Context(), root, defences, fuzz, func(r mutate.Result) {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s: %s: %s\n", r.Outcome, r.Defence.Name, r.Test, strings.TrimSpace(r.Detail+" "+took(r.Took)))
			})
			if err != nil {
				return err
			}
			mutate.WriteTable(cmd.OutOrStdout(), all)
			if slices.ContainsFunc(all, func(r mutate.Result) bool { return r.Outcome != mutate.Red }) {
				return errNotExpected
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&fuzz, "fuzz", 0, "let the fuzz targets find it, within this time each, instead of the tests")
	cmd.Flags().StringVar(&only, "only", "", "a regular expression: entries whose \"layer: name\" it fits")
	return cmd
}

// took is a time in words, "" for none.
func took(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return "after " + d.Round(100*time.Millisecond).String()
}
