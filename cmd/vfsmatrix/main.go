package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/selftest/faultd"
)

// Exit statuses.
const (
	exitOK       = 0
	exitNot      = 1 // something is not as expected
	exitUsage    = 2
	exitHarness  = 3 // the harness or the machine failed, or nothing could be judged
	treeFlagHelp = "the tree with scenarios/ and bin/; default: the first one above the current directory or this program"
)

// notExpected is the error of a command that ran and found what should not be. It has been told already.
var errNotExpected = errors.New("not as expected")

// usage marks an error of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, a ...any) error { return usageError{fmt.Errorf(format, a...)} }

// app is what the sub-commands share.
type app struct {
	treeDir string // --tree
	verbose bool   // --verbose
	ran     bool   // a sub-command has begun: errors are no longer the command line's
}

func main() {
	if faultd.Is(os.Args) { // the self-test's: a faulty daemon
		os.Exit(faultd.Main(os.Args, os.Stderr))
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

// command is the program's command line.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "vfsmatrix",
		Short: "Test virtio-fs daemons in all their sandboxes",
		Long: `vfsmatrix boots guests on shares that virtio-fs daemons serve from inside their sandboxes, judges what it saw
against written claims, and generates the documents from the records.

Exit status: 0 all as expected; 1 something was not; 2 usage; 3 the harness or the machine failed, or nothing could be judged.`,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		PersistentPreRun:  func(*cobra.Command, []string) { a.ran = true },
	}
	root.PersistentFlags().StringVar(&a.treeDir, "tree", "", treeFlagHelp)
	root.PersistentFlags().BoolVarP(&a.verbose, "verbose", "v", false, "say more on standard error")
	cobra.AddTemplateFunc("usages", usages)
	root.SetUsageTemplate(strings.NewReplacer(".LocalFlags.FlagUsages", "usages .LocalFlags", ".InheritedFlags.FlagUsages", "usages .InheritedFlags").Replace(root.UsageTemplate()))
	root.AddCommand(a.list(), a.explain(), a.check(), a.images(), a.runCmd(), a.judge(), a.docs(), a.hostile(), a.fuzz(), a.bench(),
		a.prove(), a.mutants(), a.compare(), a.cells(), a.merge(), a.newScenario(), a.selftest(), a.boot())
	return root
}

// takes checks the number of a command's arguments, which its Use names.
func takes(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			_, names, _ := strings.Cut(cmd.Use, " ")
			return usagef("%s takes %s", cmd.Name(), strings.ReplaceAll(names, " ", " and "))
		}
		return nil
	}
}

// usages lists flags as they are typed: a switch without a value, and a value that may be left out behind =.
func usages(flags *pflag.FlagSet) string {
	typed := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.VisitAll(func(f *pflag.Flag) {
		shown := *f
		if f.NoOptDefVal != "" {
			if f.Value.Type() != "bool" {
				shown.Name += "[=N]"
			}
			shown.Value, shown.NoOptDefVal = bare{f.Value}, ""
		}
		typed.AddFlag(&shown)
	})
	return typed.FlagUsages()
}

// bare is the value of a flag that is shown without one.
type bare struct{ pflag.Value }

func (bare) Type() string { return "bool" }

// run is the program; it returns the exit status.
func run(ctx context.Context, args []string) int {
	a := &app{}
	root := a.command()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	var usage usageError
	var status exitStatus
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, errNotExpected):
		return exitNot
	case errors.As(err, &usage), !a.ran:
		remedy := ""
		if !strings.Contains(err.Error(), "; ") {
			remedy = "; see " + cmd.CommandPath() + " --help"
		}
		fmt.Fprintf(os.Stderr, "vfsmatrix: %v%s\n", err, remedy)
		return exitUsage
	}
	fmt.Fprintf(os.Stderr, "vfsmatrix: %v\n", err)
	return exitHarness
}
