package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"virtiofsd/harness/frontend"
	"virtiofsd/harness/hostile"
	"virtiofsd/harness/impl"
)

func (a *app) hostile() *cobra.Command {
	var impls []string
	var only, file string
	cmd := &cobra.Command{
		Use: "hostile", Short: "Attack daemons as a guest and as a front-end that break the rules, and print case × daemon", Args: cobra.NoArgs,
		Long: `Break each rule of FUSE, of the ring and of vhost-user in one way after the other, each against a process of its own, without a
virtual machine. Where the first implementation does not withstand a case, the exit status is 1; the others stand beside it to compare.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := pattern(only)
			if err != nil {
				return err
			}
			daemons, err := a.daemons(cmd.Context(), impls)
			if err != nil {
				return err
			}
			log := a.log()
			results, err := hostile.Run(cmd.Context(), daemons, filter, func(r hostile.Result) {
				log.Debug("case done", "daemon", r.Daemon, "case", r.Case, "outcome", r.Outcome, "detail", r.Detail)
			})
			if err != nil {
				return err
			}
			if len(results) == 0 {
				return usagef("--only %q fits no case", only)
			}
			if err := writeJSON(file, results); err != nil {
				return err
			}
			return tellHostile(cmd.OutOrStdout(), results, daemons[0].Name)
		},
	}
	cmd.Flags().StringSliceVar(&impls, "impl", defaultImpls, implHelp)
	cmd.Flags().StringVar(&only, "only", "", "a regular expression: cases whose name it fits")
	cmd.Flags().StringVar(&file, "json", "", "also write the results to this file")
	return cmd
}

// tellHostile prints the table, then what became of the first daemon where it did not pass.
func tellHostile(out io.Writer, results []hostile.Result, first string) error {
	hostile.WriteTable(out, results)
	bad := false
	for _, r := range results {
		if r.Daemon == first && !r.Pass {
			bad = true
			fmt.Fprintf(out, "\n%s, %s: %s %s\n%s", r.Daemon, r.Case, r.Outcome, r.Detail, r.Log)
		}
	}
	if bad {
		return errNotExpected
	}
	return nil
}

var implHelp = "implementations: " + strings.Join(impl.Names(), ", ") + ", or NAME=PATH"

// present finds the implementations that a command works with. The first has to be there; others that are not are told of and left out.
func (a *app) present(ctx context.Context, root string, names []string) ([]*impl.Impl, error) {
	impls, err := findImpls(ctx, root, names, a)
	if err != nil {
		return nil, err
	}
	var all []*impl.Impl
	for n, i := range impls {
		switch {
		case i.Missing == "":
			all = append(all, i)
		case n == 0:
			return nil, fmt.Errorf("implementation %s must be there: %s", i.Name, i.Missing)
		default:
			a.log().Warn("implementation left out", "name", i.Name, "missing", i.Missing)
		}
	}
	if len(all) == 0 {
		return nil, usagef("--impl names no implementation")
	}
	return all, nil
}

// daemons are those implementations, as commands without virtual machines start them.
func (a *app) daemons(ctx context.Context, names []string) ([]frontend.Daemon, error) {
	root, err := a.tree()
	if err != nil {
		return nil, err
	}
	impls, err := a.present(ctx, root, names)
	if err != nil {
		return nil, err
	}
	var all []frontend.Daemon
	for _, i := range impls {
		all = append(all, frontend.Daemon{Name: i.Name, Dialect: i.Dialect, Exec: append(append([]string{}, i.Prefix...), i.Path)})
	}
	return all, nil
}

// pattern compiles --only; nil is no pattern.
func pattern(s string) (*regexp.Regexp, error) {
	if s == "" {
		return nil, nil
	}
	re, err := regexp.Compile(s)
	if err != nil {
		return nil, usagef("--only: %w", err)
	}
	return re, nil
}

// writeJSON writes v to a file, if one is named.
func writeJSON(file string, v any) error {
	if file == "" {
		return nil
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
