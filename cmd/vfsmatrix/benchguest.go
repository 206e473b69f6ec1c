package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"virtiofsd/harness/bench"
	"virtiofsd/harness/bench/guest"
	"virtiofsd/harness/qemu"
	vmimages "virtiofsd/vm-images"
)

// benchGuestFlags are the command line of bench guest.
type benchGuestFlags struct {
	guest.Options
	impls, variants          []string
	only, kernel, qemu, json string
	idle                     string
}

func (a *app) benchGuest() *cobra.Command {
	f := benchGuestFlags{}
	cmd := &cobra.Command{
		Use: "guest", Short: "Measure daemons in turns by what fio, git, tar and their like take in a guest", Args: cobra.NoArgs,
		Long: `Measure daemons in turns, each round with a fresh process, a fresh guest and a fresh copy of the share for each, by what programs take in the
guest, and what processor time the daemon takes for them. Figures are medians of rounds; p is as in bench. fio and git are fetched from Debian
once, with their libraries (50 MB). Root is needed.

Without KVM the emulated processor is most of what is measured: the report says which it was. Give the machine nothing else to do meanwhile.`,
		Example: `  vfsmatrix bench guest --impl ours,c,rust --variant no-poll=ours:--poll-us=0
  vfsmatrix bench guest --only '^(tar|git)' --rounds 7 --json guest.json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.Progress = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			r, err := a.measureGuest(cmd.Context(), &f)
			if err != nil {
				return err
			}
			return publish(cmd, f.json, r)
		},
	}
	cmd.Flags().StringSliceVar(&f.impls, "impl", defaultImpls, implHelp)
	cmd.Flags().StringArrayVar(&f.variants, "variant", nil, variantHelp)
	cmd.Flags().StringVar(&f.only, "only", "", "a regular expression: programs whose name it fits")
	cmd.Flags().IntVar(&f.Rounds, "rounds", 3, "rounds: from seven on an interval of 95 % can be told")
	cmd.Flags().DurationVar(&f.Time, "time", 5*time.Second, "of each run of fio")
	cmd.Flags().StringVar(&f.Dir, "dir", "", "where to make the share; default: the directory for temporary files")
	cmd.Flags().StringVar(&f.idle, "idle", string(bench.Awake), idleHelp)
	cmd.Flags().StringVar(&f.kernel, "kernel", "6.12", "the guest's kernel, a name or a path")
	cmd.Flags().StringVar(&f.Accel, "accel", "auto", "auto, kvm or tcg")
	cmd.Flags().StringVar(&f.qemu, "qemu", qemu.DefaultBinary, qemuHelp)
	cmd.Flags().StringVar(&f.json, "json", "", "also write all samples to this file")
	return cmd
}

// measureGuest does what the flags ask for.
func (a *app) measureGuest(ctx context.Context, f *benchGuestFlags) (*guest.Report, error) {
	var err error
	if f.Rounds < 1 || f.Time <= 0 {
		return nil, usagef("--rounds %d, --time %v: both must be positive", f.Rounds, f.Time)
	}
	if f.Only, err = pattern(f.only); err != nil {
		return nil, err
	}
	if f.Idle, err = idle(f.idle); err != nil {
		return nil, err
	}
	if f.Only != nil && len(guest.Chosen(f.Only)) == 0 {
		return nil, usagef("--only %q fits no program", f.only)
	}
	if err := checkKernels([]string{f.kernel}); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a daemon's sandbox needs root; remedy: run as root")
	}
	root, err := a.tree()
	if err != nil {
		return nil, err
	}
	if f.QEMU, err = a.emulator(ctx, root, f.qemu); err != nil {
		return nil, err
	}
	if _, err := exec.LookPath(f.QEMU); err != nil {
		return nil, fmt.Errorf("%w; remedy: install the package qemu-system-x86", err)
	}
	if err := a.built(ctx, root); err != nil {
		return nil, err
	}
	if f.Impls, err = a.present(ctx, root, f.impls); err != nil {
		return nil, err
	}
	if err := f.addVariants(); err != nil {
		return nil, err
	}
	if f.Cache, err = imageDirs(root); err != nil {
		return nil, err
	}
	images, err := vmimages.Ensure(ctx, f.Cache, []string{f.kernel}, a.log())
	if err != nil {
		return nil, err
	}
	f.Image, f.Log = images[f.kernel], a.log()
	return guest.Run(ctx, f.Options)
}

// addVariants adds the daemons of --variant.
func (f *benchGuestFlags) addVariants() error {
	var names []string
	for _, i := range f.Impls {
		names = append(names, i.Name)
	}
	all, err := variants(f.variants, names)
	if err != nil {
		return err
	}
	f.Variants, f.Extra = map[string]string{}, map[string][]string{}
	for _, v := range all {
		i := *f.Impls[v.of]
		i.Name = v.name
		f.Impls = append(f.Impls, &i)
		f.Variants[v.name], f.Extra[v.name] = names[v.of], v.extra
	}
	return nil
}
