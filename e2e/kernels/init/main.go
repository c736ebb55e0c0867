// Command init is the first process of a guest: it loads the kernel's modules, runs the tests and ends the machine. What
// it says itself begins with "init: ", so that the host finds it among what the tests say.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where the host has put what the guest needs. Both are sorted by name.
const (
	modules = "/modules/*" // in an order in which each finds what it depends on
	tests   = "/tests/*"   // the arguments of a test: a program and its flags
)

// patience bounds how long one program may take; the host bounds them all.
const patience = 10 * time.Minute

func main() {
	start := time.Now()
	err := setUp()
	if err == nil {
		say("up on Linux %s", release())
		err = runAll()
	}
	if err != nil {
		say("error: %v", err)
	}
	say("end after %.1f s", time.Since(start).Seconds())
	unix.Sync()
	// A restart, by which qemu ends as well, takes no ACPI.
	say("restart: %v", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
}

func say(format string, args ...any) { fmt.Printf("init: "+format+"\n", args...) }

func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err.Error()
	}
	return unix.ByteSliceToString(u.Release[:])
}

// setUp makes of a bare kernel a place where programs can run.
func setUp() error {
	for _, m := range []struct{ kind, dir, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"tmpfs", "/tmp", ""},
		{"tmpfs", "/run", "mode=0755"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := os.Setenv("PATH", "/bin"); err != nil {
		return err
	}
	files, err := filepath.Glob(modules)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := load(file); err != nil {
			return fmt.Errorf("module %s: %w", filepath.Base(file), err)
		}
	}
	return nil
}

func load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// runAll runs the programs one after the other; the host reads what became of each.
func runAll() error {
	files, err := filepath.Glob(tests)
	if err != nil {
		return err
	}
	for _, file := range files {
		args, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name, start := filepath.Base(file), time.Now()
		say("run %s", name)
		verdict := "ok"
		if err := run(strings.Split(string(args), "\n")); err != nil {
			verdict = err.Error()
		}
		say("done %s in %.1f s: %s", name, time.Since(start).Seconds(), verdict)
	}
	return nil
}

func run(args []string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()
	return wait(cmd.Process.Pid)
}

// wait waits for a process, and for every other that has lost its parent meanwhile.
func wait(pid int) error {
	for {
		var status unix.WaitStatus
		found, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case found != pid:
		case status.Signaled():
			return fmt.Errorf("signal %v", status.Signal())
		case status.ExitStatus() != 0:
			return fmt.Errorf("exit status %d", status.ExitStatus())
		default:
			return nil
		}
	}
}
