package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/guestproto"
	"virtiofsd/internal/testenv"
	vmimages "virtiofsd/vm-images"
)

// domain is what a person writes to share a directory: libvirt finds the daemon by itself.
const domain = `<domain type='qemu'>
  <name>vfs</name>
  <memory unit='MiB'>512</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>%[1]s/vmlinuz</kernel><initrd>%[1]s/initrd.cpio</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 vfs.mount=share</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <filesystem type='mount' accessmode='passthrough'>
      <driver type='virtiofs' queue='1024'/><source dir='%[1]s/share'/><target dir='share'/>
    </filesystem>
    <channel type='unix'><source mode='bind' path='%[1]s/guest.sock'/><target type='virtio' name='` + guestproto.PortName + `'/></channel>
    <serial type='file'><source path='%[1]s/console.log'/></serial>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
</domain>
`

// libvirt is a libvirtd of its own, in a mount namespace in which it finds nothing of the machine's.
type libvirt struct {
	dir string
	uri string
	log string // of the daemon that libvirt starts
}

// libvirtd starts one: root's, or a user's with subordinate ids (qemu:///session).
func libvirtd(t *testing.T, bin string, session bool) *libvirt {
	t.Helper()
	dir, err := os.MkdirTemp("", "lv")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &libvirt{dir: dir}
	for name, text := range map[string]string{
		// What `make install` brings, for a daemon at another place; root's is masked by nothing that the machine has.
		"config/qemu/vhost-user/40-virtiofsd.json": fmt.Sprintf(`{"description":"ours","type":"fs","binary":%q}`, bin),
		"etc/libvirtd.conf":                        fmt.Sprintf("unix_sock_dir = %q\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n", dir+"/sock"),
		"etc/qemu.conf":                            "stdio_handler = \"file\"\nsecurity_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\n",
		"config/libvirt/qemu.conf":                 "stdio_handler = \"file\"\n",
		"share/hello":                              "hello\n",
		"sock/.keep":                               "", "run/.keep": "", "lib/.keep": "", "log/.keep": "", "cache/.keep": "",
	} {
		file := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	}
	if _, err := user.Lookup("libvirt-qemu"); err != nil { // Debian's, which libvirt is built to run QEMU as
		f, err := os.OpenFile(filepath.Join(dir, "etc/qemu.conf"), os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteString("user = \"root\"\ngroup = \"root\"\n")
		require.NoError(t, errors.Join(err, f.Close()))
	}
	require.NoError(t, os.Chmod(dir, 0o777))
	daemon, err := exec.LookPath("virtqemud")
	if err != nil {
		daemon = "libvirtd"
	}
	script := "set -e\n"
	bind := func(from, to string) {
		script += fmt.Sprintf("if [ -e %[2]s ]; then mount --bind %[1]s %[2]s; fi\n", filepath.Join(dir, from), to)
	}
	if session {
		l.uri = "qemu+unix:///session?socket=" + dir + "/run/libvirt/" + filepath.Base(daemon) + "-sock"
		l.uri = strings.Replace(l.uri, "libvirtd-sock", "libvirt-sock", 1)
		l.log = dir + "/cache/libvirt/qemu/log"
		for name, line := range map[string]string{
			"passwd": "matrix:x:1500:1500::/:/bin/sh\n", "group": "matrix:x:1500:\n", "subuid": "matrix:100000:65536\n", "subgid": "matrix:100000:65536\n",
		} {
			old, err := os.ReadFile("/etc/" + name)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "etc", name), append(old, line...), 0o644))
			bind("etc/"+name, "/etc/"+name)
		}
		require.NoError(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(p, userID, userID))
		}))
		script += fmt.Sprintf("exec setpriv --reuid %d --regid %d --clear-groups env -i PATH=$PATH HOME=%[3]s XDG_RUNTIME_DIR=%[3]s/run XDG_CONFIG_HOME=%[3]s/config XDG_CACHE_HOME=%[3]s/cache %[4]s",
			userID, userID, dir, daemon)
	} else {
		l.uri = "qemu+unix:///system?socket=" + dir + "/sock/" + strings.Replace(filepath.Base(daemon)+"-sock", "libvirtd", "libvirt", 1)
		l.log = dir + "/log/qemu"
		script += "mount -t tmpfs run /run\n[ -d /etc/qemu ] || { mount -t tmpfs none /mnt; cp -a /etc/. /mnt/; mkdir /mnt/qemu; mount --move /mnt /etc; }\n"
		bind("config/qemu", "/etc/qemu")
		for from, to := range map[string]string{"etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "log": "/var/log/libvirt", "cache": "/var/cache/libvirt"} {
			bind(from, to)
		}
		script += fmt.Sprintf("exec %s -f /etc/libvirt/libvirtd.conf -p %s/pid", daemon, dir)
	}
	c := exec.Command("unshare", "--mount", "sh", "-c", script)
	out, err := os.Create(filepath.Join(dir, "libvirtd.log"))
	require.NoError(t, err)
	defer out.Close()
	c.Stdout, c.Stderr = out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(out.Name())
			t.Logf("libvirtd:\n%s", b)
		}
	})
	require.Eventually(t, func() bool { return exec.Command("virsh", "-c", l.uri, "version").Run() == nil }, patience, 100*time.Millisecond, "libvirtd answers")
	return l
}

func (l *libvirt) virsh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("virsh", append([]string{"-c", l.uri}, args...)...).CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

// running are the command lines of the daemon's processes on this machine.
func running(bin string) (all []string) {
	exes, _ := filepath.Glob("/proc/[0-9]*/exe") // the pattern is sound
	for _, exe := range exes {
		if to, _ := os.Readlink(exe); to == bin { // it may have ended
			b, _ := os.ReadFile(filepath.Join(filepath.Dir(exe), "cmdline"))
			all = append(all, strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " "))
		}
	}
	return all
}

// TestLibvirt: libvirt itself finds the daemon, starts it for a domain, and ends it with the domain. The domain is emulated.
func TestLibvirt(t *testing.T) {
	testenv.Need(t, "libvirt", "root", "qemu", "apt")
	version, err := exec.Command("virsh", "--version").Output()
	require.NoError(t, err)
	major, err := strconv.Atoi(strings.Split(string(version), ".")[0])
	require.NoError(t, err)
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	guest := filepath.Join(t.TempDir(), "vfsguest")
	c := exec.Command("go", "build", "-o", guest, "virtiofsd/cmd/vfsguest")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := c.CombinedOutput()
	require.NoError(t, err, string(out))
	images, err := vmimages.Ensure(t.Context(), vmimages.Dirs{Cache: filepath.Join(cache, "vfsmatrix"), Out: t.TempDir(), Guest: guest},
		[]string{"6.12"}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	built, err := build()
	require.NoError(t, err)

	for mode, want := range map[string]struct {
		session bool
		since   int
		argv    string // of the daemon
		owner   int    // of a file of the guest's user 5, on the host
	}{
		"system":  {false, 0, `^\S+ --fd=\d+ (--shared-dir|-o source=)`, 5},
		"session": {true, 10, `^\S+ --fd=\d+ --shared-dir \S+ --uid-map=:0:1500:1: --uid-map=:1:100000:65536: --gid-map=:0:1500:1: --gid-map=:1:100000:65536:$`, 100004},
	} {
		t.Run(mode, func(t *testing.T) {
			if major < want.since {
				testenv.Lacks(t, fmt.Sprintf("libvirt-%d", want.since), fmt.Sprintf("virtiofs in session mode came with it; this is %s", version))
			}
			if want.session {
				testenv.Need(t, "userns", "newuidmap")
			}
			bin := filepath.Join(t.TempDir(), "virtiofsd") // a path of its own, by which its processes are known
			require.NoError(t, os.Chmod(filepath.Dir(filepath.Dir(bin)), 0o755))
			require.NoError(t, os.Chmod(filepath.Dir(bin), 0o755))
			b, err := os.ReadFile(built)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(bin, b, 0o755))
			l := libvirtd(t, bin, want.session)
			for name, from := range map[string]string{"vmlinuz": images["6.12"].Kernel, "initrd.cpio": images["6.12"].Initrd} {
				b, err := os.ReadFile(from)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(filepath.Join(l.dir, name), b, 0o644))
			}
			xml := filepath.Join(l.dir, "domain.xml")
			require.NoError(t, os.WriteFile(xml, fmt.Appendf(nil, domain, l.dir), 0o644))
			l.virsh(t, "create", xml)
			t.Cleanup(func() {
				_ = exec.Command("virsh", "-c", l.uri, "destroy", "vfs").Run() // it has ended, where all is well
				if t.Failed() {
					logs, _ := filepath.Glob(l.log + "/*")
					for _, f := range append(logs, filepath.Join(l.dir, "console.log")) {
						b, _ := os.ReadFile(f)
						t.Logf("%s:\n%s", f, b[max(0, len(b)-3000):])
					}
				}
			})
			now := running(bin)
			require.NotEmpty(t, now, "libvirt has started another daemon than the first that it finds")
			t.Logf("libvirt %s%v", version, now)
			assert.Regexp(t, want.argv, now[0])

			// The guest sees the share, and the host what the guest makes of it.
			conn, err := net.Dial("unix", filepath.Join(l.dir, "guest.sock"))
			require.NoError(t, err)
			defer conn.Close()
			require.NoError(t, conn.SetDeadline(time.Now().Add(2*time.Minute)))
			r, w := guestproto.NewReader[guestproto.Message](conn), guestproto.NewWriter(conn)
			next := func(kind guestproto.Kind, facts any) {
				t.Helper()
				for {
					m, err := r.Next()
					if errors.Is(err, guestproto.ErrLine) {
						continue
					}
					require.NoError(t, err)
					if m.Kind == kind {
						require.Empty(t, m.Error)
						if facts != nil {
							require.NoError(t, json.Unmarshal(m.Facts, facts))
						}
						return
					}
				}
			}
			var hello guestproto.Hello
			next(guestproto.KindHello, &hello)
			require.Len(t, hello.Mounts, 1)
			require.True(t, hello.Mounts[0].OK, hello.Mounts[0].Errno)
			args, err := json.Marshal(guestproto.ExecArgs{Shell: "cat ../hello && echo made >made && chown 5 made"})
			require.NoError(t, err)
			require.NoError(t, w.Write(guestproto.Request{ID: 1, Call: guestproto.CallExec, Args: args}))
			var x guestproto.Exec
			next(guestproto.KindResult, &x)
			assert.Equal(t, "hello\n", x.Stdout, x.Stderr)
			assert.Zero(t, x.Status, x.Stderr)
			st, err := os.Stat(filepath.Join(l.dir, "share/exec/made"))
			require.NoError(t, err)
			assert.EqualValues(t, want.owner, st.Sys().(*syscall.Stat_t).Uid)

			// The guest powers itself off.
			require.NoError(t, w.Write(guestproto.Request{ID: 2, Call: guestproto.CallPowerOff}))
			next(guestproto.KindDone, nil)
			assert.Eventually(t, func() bool { return !strings.Contains(l.virsh(t, "list"), "vfs") }, patience, 100*time.Millisecond)
			assert.Eventually(t, func() bool { return len(running(bin)) == 0 }, patience, 10*time.Millisecond, "the daemon ends with the domain")
			logs, err := filepath.Glob(l.log + "/*virtiofsd.log")
			require.NoError(t, err)
			require.Len(t, logs, 1)
			b, err = os.ReadFile(logs[0])
			require.NoError(t, err)
			assert.Regexp(t, regexp.MustCompile(`Client disconnected, shutting down\n$`), string(b))
			assert.NotContains(t, string(b), "ERROR")
		})
	}
}
