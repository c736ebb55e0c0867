package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// birth is what a started daemon found around itself.
type birth struct {
	PID         int
	Args        []string
	Environ     []string
	Dir         string
	Session     int
	Descriptors map[int]string
}

// fakeDaemonMain is the main function of mldd in these tests. Its run directory tells it what to do: the file
// "behaviour" holds a word, and "births" gets a line of JSON for each start.
func fakeDaemonMain() {
	if os.Args[len(os.Args)-1] == "--version" {
		return
	}
	b := birth{PID: os.Getpid(), Args: os.Args[1:], Environ: os.Environ(), Descriptors: map[int]string{}}
	b.Dir, _ = os.Getwd()
	b.Session, _ = unix.Getsid(0)
	for fd := range 1024 {
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		switch {
		case err != nil || strings.HasPrefix(filepath.Base(name), "cpu."): // Go's runtime watches its CPU limit
		case strings.HasPrefix(name, "pipe:"):
			b.Descriptors[fd] = "pipe"
		default:
			b.Descriptors[fd] = name
		}
	}
	runDir := os.Args[2]
	behaviour, _ := os.ReadFile(filepath.Join(runDir, "behaviour"))
	line, _ := json.Marshal(b)
	births, err := os.OpenFile(filepath.Join(runDir, "births"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		os.Exit(1)
	}
	births.Write(append(line, '\n'))
	births.Close()

	ready := os.NewFile(3, "ready")
	switch string(behaviour) {
	case "fail":
		fmt.Fprintln(ready, "nf_tables: no such module")
		os.Exit(1)
	case "die":
		os.Exit(1)
	case "hang":
		<-time.After(ceiling)
		os.Exit(1)
	}
	os.Remove(api.SocketPath(runDir))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: api.SocketPath(runDir), Net: "unix"})
	if err != nil {
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "a line for the log")
	io.WriteString(ready, "ready\n")
	ready.Close()
	time.AfterFunc(ceiling, func() { os.Exit(1) }) // should the test die before it ends us
	(&fakeDaemon{answer: fine}).serve(l)
}

// installation is a folder with the plugin and this test binary as mldd. It returns the plugin's path.
func installation(t *testing.T) string {
	t.Helper()
	dir := tempDir(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "mld")
	if err := errors.Join(os.Link(built, program), os.Symlink(self, filepath.Join(dir, "mldd"))); err != nil {
		t.Fatal(err)
	}
	return program
}

// runDirWithCleanup returns a run directory whose daemons are ended with the test.
func runDirWithCleanup(t *testing.T, behaviour string) string {
	t.Helper()
	dir := tempDir(t)
	if err := os.WriteFile(filepath.Join(dir, "behaviour"), []byte(behaviour), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, b := range startedDaemons(t, dir) {
			unix.Kill(b.PID, unix.SIGKILL)
			unix.Wait4(b.PID, nil, 0, nil)
		}
	})
	return dir
}

// startedDaemons returns all that were started in a run directory, also those that have ended.
func startedDaemons(t *testing.T, runDir string) []birth {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(runDir, "births"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var births []birth
	for line := range strings.Lines(string(text)) {
		var b birth
		if err := json.Unmarshal([]byte(line), &b); err != nil {
			t.Fatal(err)
		}
		births = append(births, b)
	}
	return births
}

// TestAutostartLetsGo: the daemon keeps nothing of the runtime's.
func TestAutostartLetsGo(t *testing.T) {
	t.Parallel()
	program, runDir := installation(t), runDirWithCleanup(t, "")
	leakRead, leak, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer leakRead.Close()
	cgroup := testCgroup(t)
	o := invocation{verb: "ADD", runDir: runDir, program: program, keys: prevResult, change: func(cmd *exec.Cmd) {
		cmd.ExtraFiles = []*os.File{nil, nil, leak} // a descriptor 5 that the runtime forgot to close
		cmd.Dir = t.TempDir()
		if cgroup != nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
		}
	}}.run(t) // which returns when nobody has the plugin's standard output and error any more
	o.wants(t, 0)
	if o.stderr != "" || o.took > ceiling/2 {
		t.Errorf("took %v, standard error %q", o.took, o.stderr)
	}
	leak.Close()
	leakRead.SetReadDeadline(time.Now().Add(ceiling / 4))
	if _, err := leakRead.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the leaked descriptor is still open somewhere: %v", err)
	}

	births := startedDaemons(t, runDir)
	if len(births) != 1 {
		t.Fatalf("started: %+v", births)
	}
	got := births[0]
	want := birth{
		PID:     got.PID,
		Args:    []string{"--run-dir", runDir, "--self-started"},
		Environ: []string{"PATH=/usr/bin:/bin"},
		Dir:     "/",
		Session: got.PID,
		Descriptors: map[int]string{
			0: "/dev/null", 1: "/dev/null", 2: api.LogPath(runDir), 3: "pipe",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := unix.Kill(got.PID, 0); err != nil {
		t.Errorf("the daemon does not live: %v", err)
	}
	if link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/3", got.PID)); strings.HasPrefix(link, "pipe:") {
		t.Errorf("descriptor 3 is still %s, %v", link, err)
	}
	if cgroup != nil {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", got.PID))
		if err != nil || !strings.Contains(string(text), "0::/\n") {
			t.Errorf("the daemon's cgroups, %v: %s", err, text)
		}
	}
	info, err := os.Stat(api.LogPath(runDir))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("log: %v, %v: want mode 0600", info, err)
	}
	if text, _ := os.ReadFile(api.LogPath(runDir)); string(text) != "a line for the log\n" {
		t.Errorf("log: %q", text)
	}
}

// testCgroup makes a cgroup like a container's, or returns nil where the test may not.
func testCgroup(t *testing.T) *os.File {
	root := rootCgroup()
	if root == nil {
		t.Log("no cgroup v2: leaving the caller's is not tested")
		return nil
	}
	defer root.Close()
	dir := filepath.Join(root.Name(), "mld-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Logf("leaving the caller's cgroup is not tested: %v", err)
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		if err := os.Remove(dir); err != nil { // fails while a process is in it
			t.Error(err)
		}
	})
	return f
}

// TestAutostartOnce: many ADDs at a time start one daemon, and all of them succeed.
func TestAutostartOnce(t *testing.T) {
	t.Parallel()
	program, runDir := installation(t), runDirWithCleanup(t, "")
	var adds sync.WaitGroup
	for range 20 {
		adds.Go(func() { invocation{verb: "ADD", runDir: runDir, program: program, keys: prevResult}.run(t).wants(t, 0) })
	}
	adds.Wait()
	if births := startedDaemons(t, runDir); len(births) != 1 {
		t.Errorf("%d daemons were started: %+v", len(births), births)
	}
}

// TestAutostartAfterACrash: a socket that nobody listens on is no daemon.
func TestAutostartAfterACrash(t *testing.T) {
	t.Parallel()
	program, runDir := installation(t), runDirWithCleanup(t, "")
	add := invocation{verb: "ADD", runDir: runDir, program: program, keys: prevResult}
	add.run(t).wants(t, 0)
	for _, b := range startedDaemons(t, runDir) {
		unix.Kill(b.PID, unix.SIGKILL)
		unix.Wait4(b.PID, nil, 0, nil)
	}
	if _, err := os.Stat(api.SocketPath(runDir)); err != nil {
		t.Fatal(err)
	}
	add.run(t).wants(t, 0)
	if births := startedDaemons(t, runDir); len(births) != 2 {
		t.Errorf("%d daemons were started, want 2", len(births))
	}
}

// TestAutostartAtTheEnd: a daemon that ends because nobody needs it still takes connections for a moment, and answers none.
func TestAutostartAtTheEnd(t *testing.T) {
	t.Parallel()
	program, runDir := installation(t), runDirWithCleanup(t, "")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: api.SocketPath(runDir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetDeadline(time.Now().Add(ceiling))
	ended := make(chan error, 1)
	go func() {
		for i := range 3 { // ADD asks twice, and once more before it starts another one
			conn, err := l.AcceptUnix()
			if err != nil {
				ended <- err
				return
			}
			if i == 2 {
				l.Close()
			}
			conn.Close()
		}
		ended <- nil
	}()
	invocation{verb: "ADD", runDir: runDir, program: program, keys: prevResult}.run(t).wants(t, 0)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if births := startedDaemons(t, runDir); len(births) != 1 {
		t.Errorf("%d daemons were started, want 1", len(births))
	}
}

func TestAutostartFails(t *testing.T) {
	t.Parallel()
	program := installation(t)
	for behaviour, texts := range map[string][]string{
		"fail": {"nf_tables: no such module", "/mldd", "mldd.log", "start mldd by systemd"},
		"die":  {"without a word", "/mldd", "mldd.log", "start mldd by systemd"},
	} {
		runDir := runDirWithCleanup(t, behaviour)
		o := invocation{verb: "ADD", runDir: runDir, program: program, keys: prevResult}.run(t)
		o.wants(t, 11, texts...)
	}
	runDir := runDirWithCleanup(t, "")
	t.Run("no program", func(t *testing.T) {
		o := invocation{verb: "ADD", runDir: runDir, keys: prevResult}.run(t)
		o.wants(t, 11, "no program mldd in "+filepath.Dir(built)+"; start mldd", "put mldd beside mld") // CNI_PATH names it again
	})
	t.Run("not a program", func(t *testing.T) {
		dir := tempDir(t)
		program := filepath.Join(dir, "mld")
		mldd := filepath.Join(dir, "mldd")
		if err := errors.Join(os.Link(built, program), os.WriteFile(mldd, []byte("text"), 0o700)); err != nil {
			t.Fatal(err)
		}
		invocation{verb: "ADD", runDir: runDir, program: program, keys: prevResult}.run(t).
			wants(t, 11, mldd, "exec format error", "start mldd by systemd")
		invocation{verb: "STATUS", runDir: runDir, program: program}.run(t).wants(t, 50, mldd, "exec format error")
		if err := os.Chmod(mldd, 0o600); err != nil {
			t.Fatal(err)
		}
		for verb, code := range map[string]uint{"ADD": 11, "STATUS": 50} {
			invocation{verb: verb, runDir: runDir, program: program, keys: prevResult}.run(t).wants(t, code, mldd+" is not executable")
		}
	})
	t.Run("switched off", func(t *testing.T) {
		o := invocation{verb: "ADD", runDir: runDir, program: program, keys: prevResult + `,"autostart":false`}.run(t)
		o.wants(t, 11, api.SocketPath(runDir), "start mldd by systemd")
	})
	t.Run("no run directory", func(t *testing.T) {
		none := filepath.Join(runDir, "none")
		o := invocation{verb: "ADD", runDir: none, program: program, keys: prevResult}.run(t)
		o.wants(t, 11, none, "create it with mode 0700")
		if strings.Contains(o.err.Error(), "put mldd beside mld") {
			t.Errorf("a remedy that does not help: %v", o.err)
		}
	})
	for _, verb := range []string{"DEL", "CHECK"} {
		invocation{verb: verb, runDir: runDir, program: program, keys: prevResult}.run(t)
	}
	if births := startedDaemons(t, runDir); len(births) != 0 {
		t.Errorf("started %+v", births)
	}
}

// TestAutostartHangs: a daemon that never gets ready is ended with the call that started it.
func TestAutostartHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a deadline of ten seconds")
	}
	t.Parallel()
	runDir := runDirWithCleanup(t, "hang")
	o := invocation{verb: "ADD", runDir: runDir, program: installation(t), keys: prevResult}.run(t)
	o.wants(t, 11, "not ready in time")
	if o.took > startTimeout+ceiling/4 {
		t.Errorf("took %v", o.took)
	}
	for _, b := range startedDaemons(t, runDir) {
		var status unix.WaitStatus
		if _, err := unix.Wait4(b.PID, &status, 0, nil); err != nil || status.Signal() != unix.SIGKILL {
			t.Errorf("ended with %v, %v: want SIGKILL", status, err)
		}
	}
}

// TestLockHasADeadline: whoever holds the lock without end holds nobody else.
func TestLockHasADeadline(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a deadline of five seconds")
	}
	t.Parallel()
	runDir := tempDir(t)
	f, err := os.OpenFile(api.LockPath(runDir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	o := invocation{verb: "DEL", runDir: runDir}.run(t)
	o.wants(t, 11, api.LockPath(runDir), "deadline")
}
