package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/guestproto"
	"virtiofsd/harness/impl"
	"virtiofsd/harness/qemu"
	"virtiofsd/harness/runner"
	"virtiofsd/harness/scenario"
	vmimages "virtiofsd/vm-images"
)

// exitStatus is the error of a program in the guest that ended with it. It has told what there is to tell.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// modes are the scenarios that the letters of --mode stand for when root says them. The users of those scenarios exist for the daemon only.
var modes = map[string]string{
	"A": "a-root", "B": "b-user", "C": "c-user-own-and-range", "D": "d-unshare-range-chroot", "E": "e-none-root",
}

type bootFlags struct {
	share, mode, impl, kernel, accel, qemu string
	options                                []string
}

func (a *app) boot() *cobra.Command {
	var f bootFlags
	cmd := &cobra.Command{
		Use: "boot --share DIR [-- COMMAND...]", Short: "Boot a guest with a directory of yours at /mnt, for a shell or for one command",
		Long: `Share DIR with a guest in one of the ways of sandboxing, and join a shell in it to this terminal, or run COMMAND there with the standard
streams of vfsmatrix. Ends when the shell or COMMAND does, with its exit status: 127 and 126 are a command that is not there or does not start, 3 is
as elsewhere that vfsmatrix or the machine failed. What is missing is made first: programs are built, the kernel is fetched from Debian.

Modes: A, root and the default sandbox; B, a user, his one id; C, a user, his id and a range of /etc/subuid; D, in a user namespace that the
caller makes; E, no sandbox. As root, B and C are a user made up for the daemon, whom DIR has to let in. A scenario's name is a
mode, too: its launcher and its options count. As an ordinary user all is done as that user.`,
		Example: "  vfsmatrix boot --share .\n  vfsmatrix boot --share . -- sh -c 'ls /mnt | head'\n  vfsmatrix boot --share . --mode C --option=--cache=never -- stat -c %u:%g .",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return usagef("%q: a command of the guest stands after --", args[0])
			}
			return a.bootGuest(cmd.Context(), f, args)
		},
	}
	cmd.Flags().StringVar(&f.share, "share", "", "the directory to share")
	cmd.Flags().StringVar(&f.mode, "mode", "", "A, B, C, D, E, or a scenario; default: A as root, B as an ordinary user")
	cmd.Flags().StringVar(&f.impl, "impl", "ours", "the daemon: "+strings.Join(impl.Names(), ", ")+", or NAME=PATH")
	cmd.Flags().StringVar(&f.kernel, "kernel", "6.12", "the guest's kernel, a name or a path")
	cmd.Flags().StringArrayVar(&f.options, "option", nil, "an option for the daemon, such as --option=--cache=never; may be repeated")
	cmd.Flags().StringVar(&f.accel, "accel", "auto", "auto, kvm or tcg")
	cmd.Flags().StringVar(&f.qemu, "qemu", qemu.DefaultBinary, qemuHelp)
	return cmd
}

func (a *app) bootGuest(ctx context.Context, f bootFlags, command []string) error {
	if f.share == "" {
		return usagef("--share is missing; name the directory to share")
	}
	if err := checkKernels([]string{f.kernel}); err != nil {
		return err
	}
	share, err := filepath.Abs(f.share)
	if err != nil {
		return err
	}
	if st, err := os.Stat(share); err != nil || !st.IsDir() {
		return usagef("--share %q is not a directory", f.share)
	}
	b, err := a.book()
	if err != nil {
		return err
	}
	s, err := b.mode(f.mode)
	if err != nil {
		return err
	}
	s.Options.Extra = append(s.Options.Extra, f.options...)
	if f.qemu, err = a.emulator(ctx, b.root, f.qemu); err != nil {
		return err
	}
	if _, err := exec.LookPath(f.qemu); err != nil {
		return fmt.Errorf("%w; remedy: install the package qemu-system-x86", err)
	}
	if err := a.built(ctx, b.root); err != nil {
		return err
	}
	impls, err := findImpls(ctx, b.root, []string{f.impl}, a)
	if err != nil {
		return err
	}
	if impls[0].Missing != "" {
		return fmt.Errorf("implementation %s is missing: %s", impls[0].Name, impls[0].Missing)
	}
	dirs, err := imageDirs(b.root)
	if err != nil {
		return err
	}
	if unix.Access(filepath.Dir(dirs.Out), unix.W_OK) != nil { // somebody else's tree
		dirs.Out = filepath.Join(dirs.Cache, "out")
	}
	images, err := vmimages.Ensure(ctx, dirs, []string{f.kernel}, a.log())
	if err != nil {
		return err
	}
	session := qemu.Session{SessionArgs: guestproto.SessionArgs{Argv: command}, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	restore := func() {}
	if len(command) == 0 {
		session.Argv = []string{"/bin/sh"}
		if isTerminal(os.Stdin) && isTerminal(os.Stdout) {
			fmt.Fprintf(os.Stderr, "%s is at /mnt of a guest with kernel %s, as in %s: leave with exit or ^D\n", share, f.kernel, s.ID)
			if session, restore, err = joinTerminal(ctx, session); err != nil {
				return err
			}
		}
	}
	defer restore()
	if !signal.Ignored(unix.SIGHUP) { // the terminal goes: all is taken down, as at ^C
		var stop func()
		ctx, stop = signal.NotifyContext(ctx, unix.SIGHUP)
		defer stop()
	}
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE) // an output that nobody reads any more is an error of write, and all is taken down
	status, err := runner.Boot(ctx, runner.BootConfig{
		Share: share, Scenario: s, Impl: impls[0], Image: images[f.kernel], Accel: f.accel, QEMU: f.qemu, Log: a.log(), Session: session,
	})
	switch {
	case errors.Is(err, unix.EPIPE):
		return exitStatus(128 + unix.SIGPIPE)
	case err != nil:
		return err
	case status != 0:
		return exitStatus(status)
	}
	return nil
}

// built makes the programs where the tree has none yet.
func (a *app) built(ctx context.Context, root string) error {
	missing := func(name string) bool {
		_, err := os.Stat(filepath.Join(root, "bin", name))
		return err != nil
	}
	if !slices.ContainsFunc([]string{"virtiofsd", "vfsguest"}, missing) {
		return nil
	}
	a.log().Info("building", "dir", filepath.Join(root, "bin"))
	c := exec.CommandContext(ctx, "make", "-s", "-C", root, "build")
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	if err := c.Run(); err != nil {
		return fmt.Errorf("build: %w; remedy: see what make says", err)
	}
	return nil
}

// mode is the scenario that --mode names, for whoever we are. It is a copy.
func (b *book) mode(name string) (*scenario.Scenario, error) {
	root := os.Geteuid() == 0
	if name == "" {
		name = "B"
		if root {
			name = "A"
		}
	}
	id, letter := modes[name]
	if !letter {
		id = name
	}
	i := slices.IndexFunc(b.scenarios, func(s *scenario.Scenario) bool { return s.ID == id })
	if i < 0 {
		return nil, usagef("--mode %q is not A, B, C, D, E or a scenario; vfsmatrix list shows them", name)
	}
	s := *b.scenarios[i]
	s.Options.Extra = slices.Clone(s.Options.Extra)
	if root {
		return &s, nil
	}
	if !letter || name == "A" {
		return nil, fmt.Errorf("mode %s needs root; remedy: run as root, or say --mode B, C, D or E", name)
	}
	// The same ways, as the user that we are.
	s.Launch = scenario.Launch{}
	o := &s.Options
	switch name {
	case "C":
		uids, gids, err := subordinate()
		if err != nil {
			return nil, err
		}
		o.UIDMap = []string{fmt.Sprintf(":0:%d:1:", os.Getuid()), fmt.Sprintf(":1:%d:%d:", uids.SubID, uids.Count)}
		o.GIDMap = []string{fmt.Sprintf(":0:%d:1:", os.Getgid()), fmt.Sprintf(":1:%d:%d:", gids.SubID, gids.Count)}
	case "D":
		s.Launch.Wrap = []string{"unshare", "--user", "--map-root-user"}
		o.NoFailSetgroups = true // one id is mapped: the kernel lets nobody drop groups
	}
	return &s, nil
}

// subordinate are the first ranges that /etc/subuid and /etc/subgid give us.
func subordinate() (uids, gids user.SubID, err error) {
	me, err := user.CurrentUser()
	uid := strconv.Itoa(os.Getuid())
	if err != nil { // an id that nobody has named
		me.Name = uid
	}
	first := func(file string) (user.SubID, error) {
		all, err := user.ParseSubIDFileFilter(file, func(s user.SubID) bool { return s.Name == me.Name || s.Name == uid })
		if err == nil && len(all) == 0 {
			err = errors.New("no range")
		}
		if err != nil {
			return user.SubID{}, fmt.Errorf("%s for user %s: %w; remedy: as root, usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s", file, me.Name, err, me.Name)
		}
		return all[0], nil
	}
	if uids, err = first("/etc/subuid"); err == nil {
		gids, err = first("/etc/subgid")
	}
	return uids, gids, err
}

// joinTerminal has the session use our terminal: byte by byte once the shell runs, and with its size. restore gives it back.
func joinTerminal(ctx context.Context, s qemu.Session) (qemu.Session, func(), error) {
	fd := int(os.Stdin.Fd())
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return s, nil, fmt.Errorf("read the terminal's settings: %w", err)
	}
	size := func() guestproto.Terminal {
		w, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err != nil || w.Row == 0 || w.Col == 0 {
			return guestproto.Terminal{Rows: 24, Cols: 80, Term: os.Getenv("TERM")}
		}
		return guestproto.Terminal{Rows: w.Row, Cols: w.Col, Term: os.Getenv("TERM")}
	}
	now := size()
	s.Terminal = &now
	s.Started = func() {
		raw := *was // as cfmakeraw(3)
		raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		raw.Oflag &^= unix.OPOST
		raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
		raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, &raw) // a terminal that stays as it is serves, less well
	}
	sizes := make(chan guestproto.Terminal)
	s.Sizes = sizes
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	ctx, stop := context.WithCancel(ctx)
	go func() {
		for {
			select {
			case <-changed:
				select {
				case sizes <- size():
				case <-ctx.Done():
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return s, func() {
		stop()
		signal.Stop(changed)
		_ = unix.IoctlSetTermios(fd, unix.TCSETSW, was) // nothing more can be done for it
	}, nil
}
