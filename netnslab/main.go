package netnslab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideEnv marks a process that runs in the namespaces made by Main, and every process started by it.
const insideEnv = "NETNSLAB_INSIDE"

// unavailable says why no lab can be made on this machine; New skips with it.
var unavailable error

// Main is the whole body of a TestMain:
//
//	func TestMain(m *testing.M) { netnslab.Main(m) }
//
// It runs the test binary again in a network and mount namespace of its own, and in a user namespace whose root
// is the caller if the caller is not root, so that nothing a test does can reach the machine's interfaces.
// Flags, standard streams, signals and the exit code pass through. Where user namespaces are not allowed the
// tests run in place and [New] skips, or fails when LAB_REQUIRED=1.
//
// After the tests Main looks for what they left behind: network namespaces and other descriptors, threads in
// a foreign namespace, goroutines, child processes. A leak is printed and fails the run.
func Main(m *testing.M) {
	switch {
	case isFuzzWorker():
		os.Exit(m.Run()) // inside already, and its descriptors and goroutines belong to the fuzzing engine
	case os.Getenv(insideEnv) == "":
		code, err := reexec()
		if err == nil {
			os.Exit(code)
		}
		unavailable = fmt.Errorf("no namespaces for the test binary, which takes root or user namespaces: %w", err)
	}
	if unavailable == nil {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "netnslab: own loopback:", err)
			os.Exit(1)
		}
	}
	before, err := takeCensus()
	if err != nil {
		fmt.Fprintln(os.Stderr, "netnslab: leak check:", err)
		os.Exit(1)
	}
	code := m.Run()
	if leaks := before.leaks(); len(leaks) > 0 {
		fmt.Fprintf(os.Stderr, "netnslab: the tests left behind:\n%s\n", strings.Join(leaks, "\n"))
		code = max(code, 1)
	}
	os.Exit(code)
}

// Enter is for programs that are not tests: called first in main, it runs the program again in namespaces of its
// own, as Main does, and ends this process with the exit code of the other. It returns there, or with the error
// that kept it from being started.
func Enter() error {
	if os.Getenv(insideEnv) != "" {
		return nil
	}
	code, err := reexec()
	if err == nil {
		os.Exit(code)
	}
	return fmt.Errorf("no namespaces for this program: %w", err)
}

// loopbackUp lets tests that know nothing of namespaces use 127.0.0.1 and ::1 in the namespace that Main made.
func loopbackUp() error {
	links, err := netlink.NewHandle(netlinkRoute)
	if err != nil {
		return err
	}
	defer links.Close()
	return setLoopbackUp(links)
}

func isFuzzWorker() bool {
	for _, arg := range os.Args[1:] {
		if name, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "="); name == "test.fuzzworker" {
			return value != "false"
		}
	}
	return false
}

// reexec runs this program again in new namespaces and returns its exit code, or the error that kept it from
// starting.
func reexec() (int, error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWNET,
		Unshareflags: unix.CLONE_NEWNS, // by unshare, because then no mount of ours gets out
		Pdeathsig:    syscall.SIGKILL,
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}

	// The parent-death signal follows the thread that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "netnslab: test binary:", err)
		return 1, nil
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		fmt.Fprintln(os.Stderr, "netnslab: test binary:", cmd.ProcessState)
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// Skip skips the test, saying why, unless LAB_REQUIRED=1 is in the environment: then it fails the test,
// because a test that is skipped everywhere proves nothing.
func Skip(tb TB, reason string) {
	tb.Helper()
	if os.Getenv("LAB_REQUIRED") == "1" {
		tb.Fatalf("LAB_REQUIRED=1 but this test cannot run: %s", reason)
	}
	tb.Skipf("%s (with LAB_REQUIRED=1 it fails)", reason)
}
