package runtimes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

const (
	root     = "../.."                // of the repository
	unpacked = root + "/bin/runtimes" // what Debian packages
	binDir   = "/opt/cni/bin"         // of the plugins
)

// What the processes on the way into the namespaces tell each other; see TestMain.
const (
	stageEnv  = "MLD_RUNTIMES_STAGE"
	cgroupEnv = "MLD_RUNTIMES_CGROUP" // the parent of all containers' cgroups
)

// TestMain runs the test binary again as the first process of a process namespace, which runs it again, and the tests
// in it, as netnslab does. As a plugin it is the spy.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == spyName {
		os.Exit(spy())
	}
	code, err := 1, error(nil)
	switch os.Getenv(stageEnv) {
	case "":
		code, err = outside()
	case "first":
		code, err = first()
	default:
		netnslab.Main(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "runtimes:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// outside runs the first process of the namespaces and removes what does not end with it.
func outside() (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("container runtimes need root")
	}
	runtime.LockOSThread() //nolint:forbidigo // the parent-death signal follows the thread that starts the child
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	cgroup := "mld-runtimes-" + strconv.Itoa(os.Getpid())
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"=first", cgroupEnv+"="+cgroup)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID,
		Unshareflags: unix.CLONE_NEWNS, // by unshare, because then no mount of ours gets out
		Pdeathsig:    unix.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = nil
	}
	return cmd.ProcessState.ExitCode(), errors.Join(err, removeCgroups(cgroup))
}

// removeCgroups removes the cgroups below those of a name. Their processes have been killed, and may take a moment.
func removeCgroups(name string) error {
	var found []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() && (d.Name() == name || len(found) > 0 && within(path, found)) {
			found = append(found, path)
		}
		return nil
	})
	deadline := time.Now().Add(10 * time.Second)
	for i := len(found) - 1; i >= 0; i-- { // children first
		err := os.Remove(found[i])
		for errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
			<-time.After(10 * time.Millisecond)
			err = os.Remove(found[i])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// within tells whether a path is below one of others.
func within(path string, others []string) bool {
	for _, other := range others {
		if rest, err := filepath.Rel(other, path); err == nil && filepath.IsLocal(rest) {
			return true
		}
	}
	return false
}

// first makes a machine of its own, runs the tests, and waits for every process that has lost its parent.
func first() (int, error) {
	if err := mountAll(); err != nil {
		return 1, err
	}
	if err := build(); err != nil {
		return 1, err
	}
	if err := os.Setenv(stageEnv, "tests"); err != nil {
		return 1, err
	}
	tests, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return 1, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait: %w", err)
		case pid == tests.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == tests.Pid:
			return status.ExitStatus(), nil
		}
	}
}

// mountAll covers what the runtimes write to, and puts the unpacked packages where they belong.
func mountAll() error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	packages, err := filepath.Abs(unpacked)
	if err != nil {
		return err
	}
	if err := unix.Mount("runtimes", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, dir := range []string{"/etc", "/opt", "/usr", "/var"} {
		upper, work, lower := "/run/layers"+dir, "/run/layers"+dir+".work", dir
		if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
			return err
		}
		if _, err := os.Stat(packages + dir); err == nil {
			lower = packages + dir + ":" + dir
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
		if err := unix.Mount("runtimes", dir, "overlay", 0, options); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	for _, state := range []string{confDir, "/var/lib/cni", "/var/lib/containerd", "/var/lib/containers"} {
		if err := os.RemoveAll(state); err != nil { // from this view alone
			return err
		}
	}
	return nil
}

// build builds the plugins, cnitool, the spy and the image.
func build() error {
	if err := os.MkdirAll(binDir, 0o755); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	const reference = "github.com/containernetworking/plugins/plugins/"
	for _, p := range []struct{ dir, pkg, to string }{
		{root, "./plugin", binDir + "/mld"},
		{root, "./plugin/mldd", binDir + "/mldd"},
		{root, reference + "main/bridge", binDir + "/bridge"},
		{root, reference + "ipam/host-local", binDir + "/host-local"},
		{root, reference + "main/loopback", binDir + "/loopback"}, // containerd's CRI wants it
		{root, "github.com/containernetworking/cni/cnitool", "/usr/bin/cnitool"},
		{".", "./receiver", "/run/receiver"},
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", p.to, p.pkg)
		cmd.Dir = p.dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", p.pkg, err, out)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return errors.Join(os.Symlink(self, filepath.Join(binDir, spyName)), writeImage(imageArchive, "/run/receiver"))
}
