package netnslab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

func TestMain(m *testing.M) { netnslab.Main(m) }

// actEnv makes TestAct do something that a test of this file wants to see from outside.
const actEnv = "NETNSLAB_TEST_ACT"

var acts = map[string]func(*testing.T){
	"pass": func(*testing.T) {},
	"fail": func(t *testing.T) { t.Error("as told") },
	"echo": func(t *testing.T) {
		text, err := io.ReadAll(os.Stdin)
		fmt.Printf("uid %d, stdin %q, %v\n", os.Getuid(), text, err)
	},
	"killed": func(*testing.T) { _ = unix.Kill(os.Getpid(), unix.SIGKILL) },
	"wait": func(t *testing.T) {
		fmt.Println("waiting")
		select {}
	},
	"lab": func(t *testing.T) { netnslab.New(t) },
	"failing lab": func(t *testing.T) {
		lab := netnslab.New(t)
		alice := lab.Bridge("br0", netnslab.BridgeOptions{Querier: 2}).Connect(lab.Node("alice"), "eth0")
		alice.Capture().Wait(time.Millisecond, "miracle", func(netnslab.Frame) bool { return false })
	},
	"passing lab": func(t *testing.T) {
		lab := netnslab.New(t)
		alice := lab.Bridge("br0", netnslab.BridgeOptions{Querier: 2}).Connect(lab.Node("alice"), "eth0")
		alice.Capture().Wait(5*time.Second, "query", func(f netnslab.Frame) bool { return f.ICMPv6() == 130 })
	},
	"namespace": func(t *testing.T) {
		if _, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY, 0); err != nil {
			t.Fatal(err)
		}
	},
	"descriptor": func(t *testing.T) {
		if _, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); err != nil {
			t.Fatal(err)
		}
	},
	"goroutine": func(*testing.T) { go leakedGoroutine(make(chan struct{})) },
	"thread": func(t *testing.T) {
		entered := make(chan error)
		go func() {
			runtime.LockOSThread()
			ns, err := vnetns.New()
			entered <- errors.Join(err, ns.Close())
			select {}
		}()
		if err := <-entered; err != nil {
			t.Fatal(err)
		}
	},
	"child": func(t *testing.T) {
		cmd := exec.Command("sleep", "20")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it is left behind by the tests only
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	},
	"command": func(t *testing.T) {
		if err := netnslab.New(t).Host().Command(context.Background(), "sleep", "20").Start(); err != nil {
			t.Fatal(err)
		}
	},
}

func leakedGoroutine(forever chan struct{}) { <-forever }

// TestAct is not a test by itself.
func TestAct(t *testing.T) {
	if act := acts[os.Getenv(actEnv)]; act != nil {
		act(t)
	}
}

// perform runs this test binary for one act, as if started by go test; with environment on top of it.
func perform(t *testing.T, act string, environment ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestAct$", "-test.v", "-test.count=1")
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); name != "NETNSLAB_INSIDE" && name != "LAB_REQUIRED" && name != "GOCOVERDIR" {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, actEnv+"="+act, "TMPDIR="+t.TempDir())
	cmd.Env = append(cmd.Env, environment...)
	return cmd
}

func TestMainTellsLeaks(t *testing.T) {
	t.Parallel()
	var acting sync.WaitGroup // all at once: to tell a leak takes a while
	for act, want := range map[string]string{
		"namespace":  "a network namespace",
		"descriptor": "family AF_PACKET",
		"goroutine":  "leakedGoroutine",
		"thread":     "in the foreign namespace",
		"child":      "child process",
		"command":    "was started and not waited for",
	} {
		cmd := perform(t, act)
		acting.Go(func() {
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
				t.Errorf("%s: ended with %v and did not tell of %q:\n%s", act, err, want, out)
			}
		})
	}
	for _, act := range []string{"pass", "lab", "passing lab"} {
		cmd := perform(t, act)
		acting.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v:\n%s", act, err, out)
			}
		})
	}
	acting.Wait()
}

func TestMainPassesThrough(t *testing.T) {
	t.Parallel()
	t.Run("exit code", func(t *testing.T) {
		t.Parallel()
		err := perform(t, "fail").Run()
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("a failing test ended with %v, want exit status 1", err)
		}
		err = perform(t, "killed").Run()
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 128+9 {
			t.Errorf("a killed test ended with %v, want exit status 137", err)
		}
	})
	t.Run("streams", func(t *testing.T) {
		t.Parallel()
		cmd := perform(t, "echo")
		cmd.Stdin = strings.NewReader("hello")
		out, err := cmd.Output()
		if want := `uid 0, stdin "hello", <nil>`; err != nil || !strings.Contains(string(out), want) {
			t.Errorf("got %s, %v; want %s", out, err, want)
		}
	})
	t.Run("flags", func(t *testing.T) {
		t.Parallel()
		profile := filepath.Join(t.TempDir(), "heap.out")
		cmd := perform(t, "pass")
		cmd.Args = append(cmd.Args, "-test.memprofile="+profile)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if info, err := os.Stat(profile); err != nil || info.Size() == 0 {
			t.Errorf("no profile: %v", err)
		}
	})
	t.Run("signals", func(t *testing.T) {
		t.Parallel()
		cmd := perform(t, "wait")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var complaint bytes.Buffer
		cmd.Stderr = &complaint
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1)
		for line := ""; !strings.HasSuffix(line, "waiting\n"); line += string(buf) {
			if _, err := out.Read(buf); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
		// The way go test ends a test that takes too long.
		if err := cmd.Process.Signal(unix.SIGQUIT); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err == nil || !strings.Contains(complaint.String(), "goroutine ") {
			t.Errorf("%v, and no stacks in:\n%s", err, &complaint)
		}
	})
}

const nobody = 65534

// asNobody makes the command run without privilege, if this process has any to give up.
func asNobody(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	cmd.Env = append(cmd.Env, "HOME="+dir, "TMPDIR="+dir)
	cmd.Dir = dir
}

func isRootless(t *testing.T) bool {
	t.Helper()
	mapping, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	return !slices.Equal(strings.Fields(string(mapping)), []string{"0", "0", "4294967295"})
}

func TestRootless(t *testing.T) {
	t.Parallel()
	if isRootless(t) {
		return // then every test of this package proves it
	}
	cmd := perform(t, "passing lab", "LAB_REQUIRED=1")
	asNobody(t, cmd)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestAct") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

// Where user namespaces are not allowed tests are skipped, and fail if they are required.
func TestWithoutUserNamespaces(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	for required, want := range map[string]string{"0": "--- SKIP: TestAct", "1": "--- FAIL: TestAct"} {
		cmd := perform(t, "lab", "LAB_REQUIRED="+required)
		cmd.Path = sh
		const script = `echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"`
		cmd.Args = append([]string{"sh", "-c", script, self}, cmd.Args[1:]...)
		// A namespace in which the caller is not root, and may do nothing but write that setting.
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getgid(), Size: 1}},
			AmbientCaps: []uintptr{unix.CAP_SYS_RESOURCE},
		}
		out, err := cmd.CombinedOutput()
		told := strings.Contains(string(out), want) && strings.Contains(string(out), "no namespaces")
		if (err != nil) != (required == "1") || !told {
			t.Errorf("LAB_REQUIRED=%s: %v, want %s:\n%s", required, err, want, out)
		}
	}
}

func TestLabRequired(t *testing.T) {
	for value, want := range map[string]struct{ skipped, failed bool }{
		"": {skipped: true}, "0": {skipped: true}, "1": {failed: true},
	} {
		t.Run("LAB_REQUIRED="+value, func(t *testing.T) {
			t.Setenv("LAB_REQUIRED", value)
			p := run(func(p *program) { netnslab.Skip(p, "no moon") })
			if p.skipped != want.skipped || p.failed != want.failed || !strings.Contains(p.log.String(), "no moon") ||
				!strings.Contains(p.log.String(), "LAB_REQUIRED=1") {
				t.Errorf("skipped %v, failed %v, log %q; want %+v", p.skipped, p.failed, p.log.String(), want)
			}
		})
	}
}

func TestEvidence(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	out, err := perform(t, "passing lab", "TMPDIR="+dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("a test that passes leaves %v", left)
	}
	if out, err = perform(t, "failing lab", "TMPDIR="+dir).CombinedOutput(); err == nil {
		t.Fatalf("did not fail: %s", out)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(left) != 1 {
		t.Fatalf("evidence in %v:\n%s", left, out)
	}
	for _, want := range []string{left[0], "waited 1ms in vain for miracle"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in the log:\n%s", want, out)
		}
	}
	for name, want := range map[string]string{
		"alice-eth0.*.pcapng": "",
		"host-mdb.json":       `"mdb": [`,
		"host-link.json":      `"mcast_querier": 1`,
		"host-addr.json":      `fe80::ff:fe00:1`,
		"alice-addr.json":     `fe80::ff:fe00:101`,
		"alice-maddr.json":    `ff02::1`,
		"host-ports.json":     `"alice"`,
	} {
		files, _ := filepath.Glob(filepath.Join(left[0], name))
		if len(files) != 1 {
			t.Errorf("%s: %v", name, files)
			continue
		}
		if text, err := os.ReadFile(files[0]); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: no %s in %.200s, %v", name, want, text, err)
		}
	}
}
