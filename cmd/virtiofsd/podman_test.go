package main_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/frontend"
	"virtiofsd/internal/testenv"
)

// TestPodman: which of our sandboxes a real container engine allows with which options of its own, as docs/launchers.md has it.
func TestPodman(t *testing.T) {
	testenv.Need(t, "podman", "root", "userns")
	bin, err := build()
	require.NoError(t, err)
	for _, tc := range []struct {
		name    string
		user    bool // rootless
		allow   string
		options string
		want    string // of the daemon's log
	}{
		{"root, default", false, "", "", `sandbox namespace: new namespaces user,mount,pid,.* users :0:0:1:`},
		{"root, chroot", false, "", "--sandbox=chroot", `sandbox chroot: new namespaces none; uid 0 gid 0, supplementary groups none; capabilities .*chown,`},
		{"root, pivot_root", false, "", "--sandbox=pivot_root", `ERROR .*gives no CAP_SYS_ADMIN`},
		{"root, SYS_ADMIN", false, "--cap-add=SYS_ADMIN", "", `sandbox namespace: new namespaces mount,pid,`},
		{"root, SYS_ADMIN, a filter like docker's", false, "--cap-add=SYS_ADMIN --security-opt=seccomp=FILTER", "", `ERROR .*refuses pivot_root`},
		{"root, SYS_ADMIN, a filter like docker's, chroot", false, "--cap-add=SYS_ADMIN --security-opt=seccomp=FILTER", "--sandbox=chroot", `sandbox chroot: `},
		{"root, restricted", false, "--user=107:107 --cap-drop=all --security-opt=no-new-privileges", "--sandbox=none", `sandbox none: .* uid 107 gid 107.* capabilities none, bounding set none`},
		{"rootless, default", true, "", "", `sandbox namespace: new namespaces user,mount,pid,.* users :0:0:1:`},
		{"rootless, chroot", true, "", "--sandbox=chroot", `sandbox chroot: new namespaces none; uid 0 gid 0, supplementary groups none; capabilities .*chown,`},
		{"rootless, SYS_ADMIN", true, "--cap-add=SYS_ADMIN", "", `sandbox namespace: new namespaces mount,pid,`},
		{"rootless, restricted", true, "--userns=keep-id --cap-drop=all --security-opt=no-new-privileges", "--sandbox=none", `sandbox none: .* uid 1500 gid 1500.* capabilities none`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "pod")
			require.NoError(t, err)
			t.Cleanup(func() { os.RemoveAll(dir) })
			for _, d := range []string{"", "root", "root/share", "root/sock", "root/proc", "share", "sock", "home", "run"} {
				require.NoError(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
				require.NoError(t, os.Chmod(filepath.Join(dir, d), 0o777))
			}
			require.NoError(t, os.WriteFile(filepath.Join(dir, "share/hello"), []byte("hello\n"), 0o644))
			b, err := os.ReadFile(bin)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "root/virtiofsd"), b, 0o755))
			if strings.Contains(tc.allow, "FILTER") { // the engine's own, with what it lets through that docker's does not
				file := filepath.Join(dir, "filter.json")
				own, err := os.ReadFile("/usr/share/containers/seccomp.json")
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(own), `"pivot_root",`, "")), 0o644))
				tc.allow = strings.ReplaceAll(tc.allow, "FILTER", file)
			}
			script := "mount -t tmpfs run /run\n"
			if tc.user {
				for name, line := range map[string]string{
					"passwd": "matrix:x:1500:1500::/:/bin/sh\n", "group": "matrix:x:1500:\n", "subuid": "matrix:100000:65536\n", "subgid": "matrix:100000:65536\n",
				} {
					old, err := os.ReadFile("/etc/" + name)
					require.NoError(t, err)
					require.NoError(t, os.WriteFile(filepath.Join(dir, name), append(old, line...), 0o644))
					script += "mount --bind " + filepath.Join(dir, name) + " /etc/" + name + "\n"
				}
				require.NoError(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
					if err == nil {
						err = os.Lchown(p, userID, userID)
					}
					return err
				}))
				script += "set -- setpriv --reuid 1500 --regid 1500 --clear-groups env -i PATH=$PATH HOME=" + dir + "/home XDG_RUNTIME_DIR=" + dir + "/run \"$@\"\n"
			}
			argv := []string{"--mount", "sh", "-c", script + `exec "$@"`, "sh", "podman", "--root=" + dir + "/home/storage", "--runroot=" + dir + "/run/storage", "run", "--rm", "--cgroups=disabled", "--network=none"}
			argv = append(argv, strings.Fields(tc.allow)...)
			argv = append(argv, "-v", dir+"/sock:/sock", "-v", dir+"/share:/share", "--rootfs", dir+"/root", "/virtiofsd", "--socket-path=/sock/s", "--shared-dir=/share")
			argv = append(argv, strings.Fields(tc.options)...)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c := exec.CommandContext(ctx, "unshare", argv...)
			c.Dir = "/"
			out, err := os.Create(filepath.Join(dir, "out"))
			require.NoError(t, err)
			defer out.Close()
			c.Stdout, c.Stderr = out, out
			c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
			require.NoError(t, c.Start())
			ended := make(chan struct{})
			go func() {
				_ = c.Wait() // the process state says it all
				close(ended)
			}()
			if !strings.HasPrefix(tc.want, "ERROR") {
				socket := filepath.Join(dir, "sock/s")
				for _, err := os.Lstat(socket); err != nil; _, err = os.Lstat(socket) {
					select {
					case <-ended:
						log, _ := os.ReadFile(out.Name())
						t.Fatalf("podman ended before the socket was there: %s", log)
					case <-time.After(10 * time.Millisecond):
					}
				}
				d, err := frontend.Connect(ctx, frontend.Config{Socket: socket, Timeout: patience})
				require.NoError(t, err)
				f := frontend.NewFUSE(d)
				_, err = f.Init(0)
				assert.NoError(t, err)
				_, err = f.Lookup(frontend.RootNode, "hello")
				assert.NoError(t, err)
				d.Close()
			}
			<-ended
			log, err := os.ReadFile(out.Name())
			require.NoError(t, err)
			assert.Regexp(t, tc.want, string(log))
			assert.Equal(t, strings.HasPrefix(tc.want, "ERROR"), c.ProcessState.ExitCode() != 0, string(log))
		})
	}
}
