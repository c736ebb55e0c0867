package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// ceiling is what nothing in these tests takes on any machine.
const ceiling = time.Minute

// built is the plugin as it is installed: the only program in its folder.
var built string

// TestMain builds the plugin. Under the name mldd the test binary is a daemon, so that autostart has one to start, and
// under the name iface it is the plugin before ours.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "mldd":
		fakeDaemonMain()
	case "iface":
		fakeInterfaceMain()
	default:
		os.Exit(run(m))
	}
}

func run(m *testing.M) int {
	// Daemons that a plugin leaves behind become our children, so that we can wait for their end.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "mld")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	built = filepath.Join(dir, "mld")
	build := exec.Command("go", "build", "-o", built, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// invocation is one start of the plugin. The zero value of a field is a usable default, except for runDir.
type invocation struct {
	verb, version string
	runDir        string
	keys          string // more members of the configuration, each with a comma before it
	config        string // the whole configuration instead
	netns         string // "none" for an empty CNI_NETNS
	args          string // CNI_ARGS
	program       string
	change        func(*exec.Cmd)
}

const prevResult = `,"prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/c1"}]}`

// outcome is what a runtime sees.
type outcome struct {
	stdout, stderr string
	err            *types.Error // nil for success
	took           time.Duration
}

func (i invocation) run(t testing.TB) outcome {
	t.Helper()
	if i.version == "" {
		i.version = "1.1.0"
	}
	if i.config == "" {
		i.config = fmt.Sprintf(`{"cniVersion":%q,"name":"lab","type":"mld","runDir":%q%s}`, i.version, i.runDir, i.keys)
	}
	if i.program == "" {
		i.program = built
	}
	switch i.netns {
	case "":
		i.netns = os.DevNull // nothing here looks whether it is a namespace
	case "none":
		i.netns = ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), ceiling)
	defer cancel()
	cmd := exec.CommandContext(ctx, i.program)
	cmd.Env = []string{"CNI_COMMAND=" + i.verb, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(i.program),
		"CNI_NETNS=" + i.netns, "CNI_ARGS=" + i.args, "PATH=/usr/bin:/bin", "SECRET=of the runtime"}
	cmd.Stdin = strings.NewReader(i.config)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if i.change != nil {
		i.change(cmd)
	}
	start := time.Now()
	err := cmd.Run() // which, like a runtime, waits until nobody holds the pipes any more
	o := outcome{stdout: stdout.String(), stderr: stderr.String(), took: time.Since(start)}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && ctx.Err() == nil:
		o.err = new(types.Error)
		if err := json.Unmarshal(stdout.Bytes(), o.err); err != nil {
			t.Errorf("%s: standard output of a failure %q: %v", i.verb, o.stdout, err)
		}
	case err != nil:
		t.Errorf("%s: %v", i.verb, err)
	}
	if strings.Count(o.stderr, "\n") > 1 {
		t.Errorf("%s: more than a line on standard error: %s", i.verb, o.stderr)
	}
	return o
}

// wants checks the code of the outcome, 0 for success, and what its text must name.
func (o outcome) wants(t testing.TB, code uint, texts ...string) {
	t.Helper()
	if o.err == nil {
		if code != 0 {
			t.Errorf("success, want code %d; standard output %q", code, o.stdout)
		}
		return
	}
	if o.err.Code != code {
		t.Errorf("code %d, want %d: %v", o.err.Code, code, o.err)
	}
	for _, text := range texts {
		if !strings.Contains(o.err.Error(), text) {
			t.Errorf("error %q does not say %q", o.err, text)
		}
	}
}

// tempDir returns a directory with a path short enough for a socket.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mld")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// fakeDaemon speaks the daemon's side of the protocol in this process.
type fakeDaemon struct {
	runDir string
	answer func(*api.Request) *api.Answer // nil answers hang up

	mu       sync.Mutex
	requests []*api.Request // with descriptors closed
}

func startFake(t testing.TB, answer func(*api.Request) *api.Answer) *fakeDaemon {
	t.Helper()
	return startFakeIn(t, tempDir(t), answer)
}

func startFakeIn(t testing.TB, runDir string, answer func(*api.Request) *api.Answer) *fakeDaemon {
	t.Helper()
	d := &fakeDaemon{runDir: runDir, answer: answer}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: api.SocketPath(d.runDir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-served })
	go func() {
		defer close(served)
		d.serve(l)
	}()
	return d
}

func (d *fakeDaemon) serve(l *net.UnixListener) {
	var connections sync.WaitGroup
	defer connections.Wait()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		connections.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(ceiling))
			r, err := api.ReadRequest(conn)
			if err != nil {
				return
			}
			answer := d.answer(r)
			r.Close()
			d.mu.Lock()
			d.requests = append(d.requests, r)
			d.mu.Unlock()
			if answer != nil {
				api.WriteAnswer(conn, answer)
			}
		})
	}
}

func (d *fakeDaemon) seen() []*api.Request {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.requests)
}

func fine(*api.Request) *api.Answer { return &api.Answer{} }

// TestDependencies keeps the plugin small: it starts with every container.
func TestDependencies(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "github.com/containernetworking/cni/pkg/skel") {
		t.Fatalf("the list has no skel: %s", out)
	}
	for _, dep := range deps {
		for _, heavy := range []string{"net/http", "crypto/tls", "netlink", "prometheus", "grpc", "plugin/daemon", "mld/agent"} {
			if strings.Contains(dep, heavy) {
				t.Errorf("the plugin links %s", dep)
			}
		}
	}
}
