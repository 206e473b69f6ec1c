package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"virtiofsd/harness/result"
	"virtiofsd/harness/runner"
	"virtiofsd/harness/scenario"
)

// shard reads I/N, from 1/1 to N/N.
func shard(s string) (i, n int, err error) {
	if s == "" {
		return 1, 1, nil
	}
	a, b, ok := strings.Cut(s, "/")
	i, e1 := strconv.Atoi(a)
	n, e2 := strconv.Atoi(b)
	if !ok || e1 != nil || e2 != nil || n < 1 || i < 1 || i > n {
		return 0, 0, usagef("--shard %q is not I/N with I from 1 to N", s)
	}
	return i, n, nil
}

// filter reads a pattern of path.Match over SCENARIO/IMPL/KERNEL; "" is every cell.
func filter(pattern string) (func(result.CellID) bool, error) {
	if pattern == "" {
		return func(result.CellID) bool { return true }, nil
	}
	if _, err := path.Match(pattern, ""); err != nil || strings.Count(pattern, "/") != 2 {
		return nil, usagef("--filter %q is no pattern of SCENARIO/IMPL/KERNEL, such as 'c-*/ours/*'", pattern)
	}
	return func(c result.CellID) bool {
		ok, _ := path.Match(pattern, c.String())
		return ok
	}, nil
}

// cells lists combinations as the matrix of a farm's own engine.
func (a *app) cells() *cobra.Command {
	var impls, kernels []string
	var format string
	cmd := &cobra.Command{
		Use: "cells [SCENARIO...]", Short: "List the cells of a run, as text or as the matrix of a farm's engine",
		Long: `List the cells that a run with the same flags has.

text    scenario, implementation and kernel, a cell a line
json    the same as a list of objects
github  the value of strategy.matrix for GitHub Actions: use it with fromJSON
gitlab  a parallel:matrix for GitLab CI
k8s     an indexed Job for Kubernetes, in which each pod runs one shard; set its image`,
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.book()
			if err != nil {
				return err
			}
			if err := checkKernels(kernels); err != nil {
				return err
			}
			scenarios, err := b.pick(args)
			if err != nil {
				return err
			}
			all := runner.Cells(scenarios, impls, func(k string) bool { return len(kernels) == 0 || slices.Contains(kernels, k) })
			return writeCells(cmd.OutOrStdout(), format, all)
		},
	}
	cmd.Flags().StringSliceVar(&impls, "impl", defaultImpls, implHelp)
	cmd.Flags().StringSliceVar(&kernels, "kernel", nil, "guest kernels; default: all that the scenarios list")
	cmd.Flags().StringVar(&format, "format", "text", "text, json, github, gitlab, k8s")
	return cmd
}

func writeCells(w io.Writer, format string, all []result.CellID) error {
	asJSON := func(v any) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	switch format {
	case "text":
		for _, c := range all {
			fmt.Fprintln(w, c.Scenario, c.Impl, c.Kernel)
		}
	case "json":
		return asJSON(all)
	case "github":
		return asJSON(map[string]any{"include": all})
	case "gitlab":
		fmt.Fprintln(w, "parallel:\n  matrix:")
		for _, c := range all {
			fmt.Fprintf(w, "    - SCENARIO: %q\n      IMPL: %q\n      KERNEL: %q\n", c.Scenario, c.Impl, c.Kernel)
		}
	case "k8s":
		fmt.Fprintf(w, `apiVersion: batch/v1
kind: Job
metadata:
  name: vfsmatrix
spec:
  completionMode: Indexed
  completions: %[1]d
  parallelism: %[1]d
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: vfsmatrix
          image: vfsmatrix # the image of the tree after make images
          command: ["sh", "-c", "exec bin/vfsmatrix run --shard $((JOB_COMPLETION_INDEX + 1))/%[1]d --dir /results/$JOB_COMPLETION_INDEX"]
          securityContext:
            privileged: true # scenarios make users, namespaces and mounts of their own
          volumeMounts:
            - {name: results, mountPath: /results}
      volumes:
        - {name: results, emptyDir: {}} # a volume that outlives the pods, for vfsmatrix merge
`, len(all))
	default:
		return usagef("--format %q is not text, json, github, gitlab or k8s", format)
	}
	return nil
}

// merge joins the folders of a sharded run.
func (a *app) merge() *cobra.Command {
	return &cobra.Command{
		Use: "merge INTO RUN...", Short: "Join the run folders of shards into a new one", Args: takes(2, math.MaxInt),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.book()
			if err != nil {
				return err
			}
			if _, err := os.Stat(args[0]); err == nil {
				return usagef("%s is there already; name a new folder", args[0])
			}
			for i, name := range args[1:] {
				if args[1+i], err = a.runDir(name); err != nil {
					return err
				}
			}
			if err := join(args[0], args[1:]); err != nil {
				return err
			}
			return tell(cmd.OutOrStdout(), args[0], b)
		},
	}
}

func join(into string, from []string) error {
	var all []*result.Stored
	seen := map[result.CellID]string{}
	for _, dir := range from {
		s, err := result.Read(os.DirFS(dir))
		if err != nil {
			return fmt.Errorf("merge %s: %w", dir, err)
		}
		for _, c := range s.Cells {
			if other := seen[c.CellID]; other != "" {
				return usagef("cell %s stands in %s and in %s", c.CellID, other, dir)
			}
			seen[c.CellID] = dir
		}
		all = append(all, s)
	}
	run := all[0].Run
	for _, s := range all[1:] {
		for _, i := range s.Impls {
			at := slices.IndexFunc(run.Impls, func(o result.Identity) bool { return o.Name == i.Name })
			switch {
			case at < 0:
				run.Impls = append(run.Impls, i)
			case run.Impls[at].SHA256 != i.SHA256:
				return usagef("the runs have different programs under the name %s: they are no shards of one run", i.Name)
			}
		}
		for _, k := range s.Kernels {
			if !slices.ContainsFunc(run.Kernels, func(o result.Identity) bool { return o.Name == k.Name }) {
				run.Kernels = append(run.Kernels, k)
			}
		}
		for _, n := range s.Scenarios {
			if !slices.Contains(run.Scenarios, n) {
				run.Scenarios = append(run.Scenarios, n)
			}
		}
	}
	w, err := result.Create(into, run)
	if err != nil {
		return err
	}
	seconds := 0.0
	for i, s := range all {
		if err := os.CopyFS(filepath.Join(into, "cells"), os.DirFS(filepath.Join(from[i], "cells"))); err != nil {
			return fmt.Errorf("merge %s: %w", from[i], err)
		}
		for _, c := range s.Cells {
			if err := w.Cell(c, s.Observations[c.CellID]); err != nil {
				return err
			}
		}
		if err := w.Records(s.Records); err != nil {
			return err
		}
		seconds += s.End.Seconds
	}
	_, err = w.Close(seconds)
	return err
}

// compare is the gate against regressions.
func (a *app) compare() *cobra.Command {
	return &cobra.Command{
		Use: "compare OLD NEW", Short: "Say what got worse from one run to another; exit status 1 if anything did", Args: takes(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var runs [2]*result.Stored
			for i, name := range args {
				dir, err := a.runDir(name)
				if err != nil {
					return err
				}
				s, err := result.Read(os.DirFS(dir))
				if err != nil {
					return fmt.Errorf("compare %s: %w", dir, err)
				}
				runs[i] = s
			}
			worse := changes(cmd.OutOrStdout(), runs[0], runs[1])
			if worse > 0 {
				return errNotExpected
			}
			return nil
		},
	}
}

// rank orders verdicts from bad to good; a record that is not there is the worst.
func rank(r *result.Record) int {
	switch {
	case r == nil:
		return 0
	case r.Verdict == result.Error:
		return 1
	case r.Bad():
		return 2
	case r.Verdict == result.Fail:
		return 3 // known
	case r.Verdict == result.Skip:
		return 4
	}
	return 5
}

func word(r *result.Record) string {
	switch {
	case r == nil:
		return "not there"
	case r.Verdict == result.Fail && r.Known != "":
		return "known"
	}
	return string(r.Verdict)
}

// changes prints what differs, worse first, and returns how much is worse.
func changes(w io.Writer, old, now *result.Stored) int {
	type key struct {
		claim string
		cell  result.CellID
	}
	index := func(s *result.Stored) map[key]*result.Record {
		m := map[key]*result.Record{}
		for i := range s.Records {
			r := &s.Records[i]
			m[key{r.Claim, r.CellID}] = r
		}
		return m
	}
	before, after := index(old), index(now)
	var worse, better []table.Row
	for _, s := range [][]result.Record{old.Records, now.Records} {
		for _, r := range s {
			k := key{r.Claim, r.CellID}
			b, n := before[k], after[k]
			if b != nil && n != nil && &s[0] == &now.Records[0] {
				continue // seen from the old run's side
			}
			because := ""
			if n != nil {
				because = shorten(n.Because, 100)
			}
			row := table.Row{r.CellID, r.Claim, word(b), word(n), because}
			switch {
			case rank(n) < rank(b):
				worse = append(worse, row)
			case rank(n) > rank(b) && b != nil:
				better = append(better, row)
			}
		}
	}
	for _, l := range []struct {
		title string
		rows  []table.Row
	}{{"worse", worse}, {"better", better}} {
		if len(l.rows) == 0 {
			continue
		}
		t := newTable(w, "cell", "claim", "before", "now", "because")
		t.SetTitle("%s: %d", l.title, len(l.rows))
		t.AppendRows(l.rows)
		t.Render()
	}
	if len(worse) == 0 {
		fmt.Fprintf(w, "nothing got worse: %d records before, %d now, %d better\n", len(old.Records), len(now.Records), len(better))
	}
	return len(worse)
}

// useCase is a scenario's line of the use case.
var useCase = regexp.MustCompile(`(?m)^use_case = .*$`)

// newScenario writes the beginning of a scenario.
func (a *app) newScenario() *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use: "new ID", Short: "Write a new scenario to begin with, as a copy of another one", Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := args[0]
			if err := scenario.CheckID(id); err != nil {
				return usageError{err}
			}
			b, err := a.book()
			if err != nil {
				return err
			}
			src, err := os.ReadFile(filepath.Join(b.root, scenariosDir, from+".toml"))
			if err != nil {
				return usagef("there is no scenario %q to copy; vfsmatrix list shows them", from)
			}
			path := filepath.Join(b.root, scenariosDir, id+".toml")
			src = useCase.ReplaceAll(src, fmt.Appendf(nil, "use_case = %q", strings.ToUpper(id[:1])))
			if _, err := scenario.Parse(id, src, b.claims); err != nil { // a tree with it could not be read
				return usageError{err}
			}
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return usagef("write the scenario: %w", err)
			}
			if _, err := f.Write(src); err != nil {
				return err
			}
			if err := f.Close(); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s\nedit title, why, [launch], [options] and each because; then: vfsmatrix check && vfsmatrix run %s\n", path, id)
			return nil
		},
	}
	cmd.Flags().StringVar(&from, "from", "a-root", "the scenario to copy")
	return cmd
}
