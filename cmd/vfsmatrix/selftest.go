package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"virtiofsd/harness/impl"
	"virtiofsd/harness/qemu"
	"virtiofsd/harness/report"
	"virtiofsd/harness/selftest"
	"virtiofsd/harness/selftest/faultd"
	vmimages "virtiofsd/vm-images"
)

func (a *app) selftest() *cobra.Command {
	var c selftest.Config
	var list, adopt bool
	var dir string
	cmd := &cobra.Command{
		Use:   "selftest [FAULT...]",
		Short: "Run daemons with planted faults: each must be caught by the claim that names it",
		Long: `Run our daemon with one fault at a time (all, or those named; patterns such as 'keeps-*' count) and see that the claim which names the
fault fails, that no other claim does, and that the harness makes no error.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			plants, err := selftest.Pick(args)
			if err != nil {
				return usageError{err}
			}
			if list {
				return listFaults(out, plants)
			}
			b, err := a.book()
			if err != nil {
				return err
			}
			if c.Parallel, err = processors(c.Parallel); err != nil {
				return err
			}
			if c.QEMU, err = a.emulator(cmd.Context(), b.root, c.QEMU); err != nil {
				return err
			}
			c.Claims, c.Plants, c.Log = b.claims, plants, a.log()
			if c.Program, err = os.Executable(); err != nil {
				return err
			}
			c.Daemon = filepath.Join(b.root, "bin", "virtiofsd")
			if c.Dir = dir; dir == "" {
				if c.Dir, err = os.MkdirTemp("", "vfsmatrix-selftest-"); err != nil {
					return err
				}
				defer os.RemoveAll(c.Dir)
			}
			if c.Image, c.Liar, err = a.selftestImages(cmd, b.root, c.Program, c.Dir); err != nil {
				return err
			}
			n := 0
			c.Progress = func(o selftest.Outcome) {
				n++
				fmt.Fprintf(out, "[%d] %-26s %-12s %4.0f s  %s\n", n, o.Fault, o.Scenario, o.Seconds, shorten(verdictOf(o)+": "+o.Saw, 160))
			}
			all, err := selftest.Run(cmd.Context(), c)
			tellFaults(out, all)
			if err != nil {
				return err
			}
			if adopt {
				if err := adoptFaults(cmd, c, b.root, all); err != nil {
					return err
				}
			}
			if slices.ContainsFunc(all, func(o selftest.Outcome) bool { return !o.Caught }) {
				return errNotExpected
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&list, "list", false, "show the faults and run nothing")
	cmd.Flags().BoolVar(&adopt, "adopt", false, "make what was caught the evidence of the pages (docs/evidence), beside what stands there of other faults")
	cmd.Flags().StringVar(&dir, "dir", "", "keep the evidence in this folder")
	cmd.Flags().IntVar(&c.Parallel, "parallel", 0, "cells at a time; 0 is as many as there are processors")
	cmd.Flags().StringVar(&c.Accel, "accel", "auto", "auto, kvm or tcg")
	cmd.Flags().StringVar(&c.QEMU, "qemu", qemu.DefaultBinary, qemuHelp)
	return cmd
}

// selftestImages are the guest's image and one whose agent is this program.
func (a *app) selftestImages(cmd *cobra.Command, root, program, dir string) (image, liar vmimages.Image, err error) {
	dirs, err := imageDirs(root)
	if err != nil {
		return image, liar, err
	}
	get := func(d vmimages.Dirs) (vmimages.Image, error) {
		all, err := vmimages.Ensure(cmd.Context(), d, []string{selftest.Kernel}, a.log())
		return all[selftest.Kernel], err
	}
	if image, err = get(dirs); err != nil {
		return image, liar, err
	}
	dirs.Out, dirs.Guest = filepath.Join(dir, "liar"), program
	liar, err = get(dirs)
	return image, liar, err
}

// adoptFaults makes what was caught the evidence, in the order of the table; what was seen of other faults stays.
func adoptFaults(cmd *cobra.Command, c selftest.Config, root string, all []selftest.Outcome) error {
	honest, err := impl.Find(cmd.Context(), "ours="+c.Daemon, impl.Dirs{})
	if err != nil {
		return err
	}
	had, err := report.LoadFaults(os.DirFS(root))
	if err != nil {
		return err
	}
	f := report.Faults{Daemon: "ours " + honest.Version, Guest: c.Image.Version}
	for _, p := range selftest.Plants() {
		if p.Claim == "" {
			continue
		}
		does, err := faultd.Find(p.Fault)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(all, func(o selftest.Outcome) bool { return o.Fault == p.Fault && o.Caught }); i >= 0 {
			f.Found = append(f.Found, report.Fault{Name: p.Fault, Does: does.Does, Claim: p.Claim, Also: all[i].Others, Saw: shorten(all[i].Saw, 300)})
		} else if old, ok := had.Find(p.Fault); ok {
			f.Found = append(f.Found, old)
		}
	}
	if err := report.AdoptFaults(f, c.Dir, root); err != nil {
		return err
	}
	return report.Write(root)
}

func verdictOf(o selftest.Outcome) string {
	switch {
	case o.Claim == "" && o.Caught:
		return "honest"
	case o.Caught:
		return "caught"
	}
	return "NOT CAUGHT"
}

func tellFaults(w io.Writer, all []selftest.Outcome) {
	t := newTable(w, "fault", "claim", "caught", "what was seen")
	missed := 0
	for _, o := range all {
		if !o.Caught {
			missed++
		}
		saw := o.Saw
		if len(o.Others) > 0 {
			saw += fmt.Sprintf(" (also %s)", strings.Join(o.Others, ", "))
		}
		t.AppendRow(table.Row{o.Fault, o.Claim, verdictOf(o), shorten(saw, 120)})
	}
	t.AppendFooter(table.Row{fmt.Sprintf("%d runs", len(all)), "", fmt.Sprintf("%d missed", missed), ""})
	t.Render()
}

func listFaults(w io.Writer, plants []selftest.Plant) error {
	t := newTable(w, "fault", "the daemon", "claim", "scenario")
	for _, p := range plants {
		f, err := faultd.Find(p.Fault)
		if err != nil {
			return err
		}
		t.AppendRow(table.Row{p.Fault, f.Does, p.Claim, p.Scenario})
	}
	t.Render()
	return nil
}
