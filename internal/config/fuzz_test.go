package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzOptions parses any command line (arguments are separated by line ends). An error is one line; what is accepted means the same when
// it is parsed again, and when every switch with a value is written the other way; the word list of -o means what the long options mean.
func FuzzOptions(f *testing.F) {
	for _, line := range []string{
		"--socket-path=/s\n--shared-dir\n/d\n--sandbox=none",
		"-o\nsource=/d,cache=always,xattr,sandbox=chroot",
		"-o\nsource=/a,,b,no_posix_acl,xattrmap=:map::user.virtiofs.:",
		"--uid-map=:0:100000:65536:\n--gid-map\n:0:1:1:",
		"--translate-uid=map:0:1000:1\n--translate-gid=squash-guest:0:5:10",
		"--posix-acl\n--security-label=auto\n--single-user=1000:1000\n-d\n-f",
		"--fd=3\n--report-fd=4\n--rlimit-nofile=0\n--thread-pool-size=64\n--modcaps=+sys_admin:-mknod",
		"--help\n--version\n-hV\n--print-capabilities",
		"--cache=none\n--tag=x\n--poll-us=1001",
		"--\nx",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if strings.Contains(line, "\x00") { // no argument of a process holds one
			return
		}
		args := strings.Split(line, "\n")
		o, err := Parse(args)
		if err != nil {
			require.NotContains(t, err.Error(), "\n", "an error is one line")
			return
		}
		again, err := Parse(args)
		require.NoError(t, err)
		require.Equal(t, o, again)
		if err := o.Validate(); err != nil {
			require.NotContains(t, err.Error(), "\n")
		} else {
			require.NotEmpty(t, o.SharedDir)
			require.NotEqual(t, o.SocketPath != "", o.FD >= 0)
		}
		if o.SingleUser != "" {
			uids, gids := o.SingleUserRules(7, 8)
			require.NotEmpty(t, uids)
			require.NotEmpty(t, gids)
		}
		// A lone -o means what its words mean as options of their own.
		if len(args) == 2 && args[0] == "-o" && !strings.Contains(args[1], ",,") {
			var long []string
			for _, w := range strings.Split(args[1], ",") {
				if w == "" {
					continue
				}
				name, value, _ := strings.Cut(w, "=")
				flag, fixed, bare := strings.Cut(compatWords[name], "=")
				switch {
				case flag == "":
				case bare && fixed == "":
					long = append(long, "--"+flag)
				case bare:
					long = append(long, "--"+flag+"="+fixed)
				default:
					long = append(long, "--"+flag+"="+value)
				}
			}
			same, err := Parse(long)
			require.NoError(t, err)
			require.Equal(t, same, o)
		}
	})
}
