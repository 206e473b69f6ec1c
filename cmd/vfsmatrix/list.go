package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"virtiofsd/harness/claim"
	"virtiofsd/harness/impl"
	"virtiofsd/harness/scenario"
	"virtiofsd/harness/verdict"
	vmimages "virtiofsd/vm-images"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func newTable(w io.Writer, head ...any) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetStyle(table.StyleLight)
	t.AppendHeader(head)
	return t
}

func (a *app) list() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Show scenarios, claims, implementations and guest kernels", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := a.book()
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			t := newTable(w, "scenario", "use case", "title", "kernels", "needs")
			for _, s := range b.scenarios {
				t.AppendRow(table.Row{s.ID, s.UseCase, s.Title, strings.Join(s.Kernels, " "), strings.Join(s.Needs, " ")})
			}
			t.Render()
			t = newTable(w, "area", "claims", "about")
			for _, r := range b.areas {
				t.AppendRow(table.Row{r.Name, len(r.Claims), r.Title})
			}
			t.AppendFooter(table.Row{"", len(b.claims), "vfsmatrix explain AREA shows each"})
			t.Render()
			k, err := vmimages.Known()
			if err != nil {
				return err
			}
			var kernels []string
			for _, s := range k.Kernels {
				kernels = append(kernels, s.Name)
			}
			fmt.Fprintf(w, "kernels: %s, or the path of a kernel image\nimplementations: %s, or NAME=PATH\n", strings.Join(kernels, ", "), strings.Join(impl.Names(), ", "))
			return nil
		},
	}
}

func (a *app) explain() *cobra.Command {
	return &cobra.Command{
		Use: "explain ID", Short: "Say what a scenario, a claim, an area or a rule is, and why", Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.book()
			if err != nil {
				return err
			}
			w, id := cmd.OutOrStdout(), args[0]
			for _, s := range b.scenarios {
				if s.ID == id {
					return explainScenario(w, b, s)
				}
			}
			for _, r := range b.areas {
				if r.Name == id {
					fmt.Fprintf(w, "%s: %s\n\n", r.Title, r.About)
					for _, c := range r.Claims {
						fmt.Fprintf(w, "%s\n    %s\n", c.ID, c.Must)
					}
					return nil
				}
			}
			for _, c := range b.claims {
				if c.ID == id {
					return explainClaim(w, b, c)
				}
			}
			if r, ok := verdict.Rules()[id]; ok {
				fmt.Fprintf(w, "rule %s: %s\n", id, r.Means)
				return nil
			}
			return usagef("there is no scenario, claim, area or rule %q; vfsmatrix list shows them", id)
		},
	}
}

func explainScenario(w io.Writer, b *book, s *scenario.Scenario) error {
	fmt.Fprintf(w, "%s: %s (use case %s)\n\n%s\n\n", s.ID, s.Title, s.UseCase, s.Why)
	ours := &impl.Impl{Name: "ours", Dialect: impl.DialectOurs, Path: "virtiofsd"}
	argv, err := ours.Argv(impl.Options{SharedDir: "DIR", SocketPath: "SOCKET", Options: s.Options})
	if err != nil {
		return err
	}
	l := s.Launch
	who := cmp.Or(l.As, "root")
	if len(l.Groups) > 0 {
		who += fmt.Sprintf(" with the supplementary groups %v", l.Groups)
	}
	if l.Capabilities != nil {
		who += fmt.Sprintf(", capabilities %s only", strings.Join(l.Capabilities, " "))
	}
	fmt.Fprintf(w, "started by %s:\n    %s\n\nneeds: %s\nguest kernels: %s\n\n", who, strings.Join(append(slices.Clone(l.Wrap), argv...), " "), strings.Join(s.Needs, " "), strings.Join(s.Kernels, " "))
	t := newTable(w, "step", "phase", "side", "probe", "why")
	for _, st := range s.Steps {
		t.AppendRow(table.Row{st.Name, st.At, st.Where(), st.Probe, st.Why})
	}
	t.Render()
	t = newTable(w, "claim", "expected", "because")
	for _, e := range s.Expect {
		because := e.Because
		if len(e.Impls) > 0 {
			because += " (" + strings.Join(e.Impls, ", ") + ")"
		}
		t.AppendRow(table.Row{e.Claim, e.Outcome, because})
	}
	t.Render()
	for _, k := range b.known {
		for _, e := range s.Expect {
			if scenario.Explains([]scenario.Known{k}, e.Claim, k.Impl, s.ID) != nil {
				fmt.Fprintf(w, "known difference of %s at %s: %s\n", k.Impl, e.Claim, k.Because)
			}
		}
	}
	return nil
}

func explainClaim(w io.Writer, b *book, c claim.Claim) error {
	fmt.Fprintf(w, "%s (%s)\n\n%s\n\nwhy: %s\nsource: %s\nprobe: %s, judged by %s: %s\n", c.ID, c.File, c.Must, c.Why,
		strings.Join(c.Source, "; "), strings.Join(c.Probe, ", "), c.Judge, verdict.Rules()[c.Judge].Means)
	if len(c.Of) > 0 {
		fmt.Fprintf(w, "looks at: %s\n", strings.Join(c.Of, ", "))
	}
	for _, f := range c.FalsifiedBy {
		fmt.Fprintf(w, "seen to fail by %s: %s\n", f.By, f.Seen)
	}
	t := newTable(w, "scenario", "expected", "because")
	for _, s := range b.scenarios {
		for _, e := range s.Expect {
			if e.Claim == c.ID {
				t.AppendRow(table.Row{s.ID, e.Outcome, e.Because})
			}
		}
	}
	t.Render()
	return nil
}

func (a *app) check() *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Check the claims, scenarios and known differences of the tree", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := a.book()
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d claims in %d areas, %d scenarios, %d known differences: sound\n", len(b.claims), len(b.areas), len(b.scenarios), len(b.known))
			return nil
		},
	}
}

func (a *app) images() *cobra.Command {
	var refresh bool
	cmd := &cobra.Command{
		Use: "images [KERNEL...]", Short: "Fetch guest kernels and make what guests boot from", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			root, err := a.tree()
			if err != nil {
				return err
			}
			dirs, err := imageDirs(root)
			if err != nil {
				return err
			}
			if err := checkKernels(args); err != nil {
				return err
			}
			dirs.Refresh = refresh
			all, err := vmimages.Ensure(cmd.Context(), dirs, args, a.log())
			if err != nil {
				return err
			}
			t := newTable(cmd.OutOrStdout(), "kernel", "release", "package", "modules")
			for _, k := range sortedKeys(all) {
				i := all[k]
				t.AppendRow(table.Row{k, i.Version, strings.TrimSpace(i.Package + " " + i.PackageVersion), len(i.Modules)})
			}
			t.Render()
			return nil
		},
	}
	cmd.Flags().BoolVar(&refresh, "refresh", false, "look for newer packages even where the cache has what is wanted")
	return cmd
}
