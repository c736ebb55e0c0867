// Package deploy tests the files that are installed beside the programs.
package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// units copies the unit files to a directory of their own, with a program that is there in place of mldd, and returns their
// paths.
func units(t *testing.T) (service, socket string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"mldd.service", "mldd.socket"} {
		text, err := os.ReadFile(filepath.Join("systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("/opt/cni/bin/mldd"), []byte("/bin/true"))
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "mldd.service"), filepath.Join(dir, "mldd.socket")
}

// analyze runs systemd-analyze, which wants no running systemd for what is asked here.
func analyze(t *testing.T, args ...string) (output string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemd-analyze", args...).CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("systemd-analyze %q: %v\n%s", args, ctx.Err(), out)
	}
	return string(out), err
}

// TestUnits has systemd read the units: an unknown key or a bad value is a warning, and here a failure.
func TestUnits(t *testing.T) {
	service, socket := units(t)
	if out, err := analyze(t, "verify", "--man=no", service, socket); err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestHardening has systemd judge how exposed the service is: 0 is a service that may do nothing, 9.6 one without any limit.
func TestHardening(t *testing.T) {
	service, _ := units(t)
	if out, err := analyze(t, "security", "--offline=true", "--threshold=40", service); err != nil {
		t.Errorf("exposed more than 4.0: %v\n%s", err, out)
	}
}

// TestInstall: what is installed is complete, the units among it start what is installed, and nothing is left of it afterwards.
func TestInstall(t *testing.T) {
	dest := t.TempDir()
	run := func(target string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "make", target, "DESTDIR="+dest, "PREFIX=/usr/lib/cni")
		cmd.Dir = "../.."
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("make %s: %v\n%s", target, err, out)
		}
		return string(out)
	}
	files := func() (list []string) {
		if err := filepath.WalkDir(dest, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				list = append(list, strings.TrimPrefix(path, dest))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return list
	}
	run("install")
	list := files()
	for _, want := range []string{
		"/usr/lib/cni/bin/mld", "/usr/lib/cni/bin/mldd", "/usr/local/bin/mldctl", "/usr/local/share/man/man1/mldctl-groups.1",
		"/usr/local/share/man/man5/mld.5", "/usr/local/share/man/man8/mldd.8", "/usr/local/lib/systemd/system/mldd.socket",
		"/usr/local/lib/systemd/system/mldd.service",
	} {
		if !slices.Contains(list, want) {
			t.Errorf("not installed: %s", want)
		}
	}
	service, err := os.ReadFile(filepath.Join(dest, "/usr/local/lib/systemd/system/mldd.service"))
	if err != nil || !bytes.Contains(service, []byte("\nExecStart=/usr/lib/cni/bin/mldd\n")) {
		t.Errorf("%v: %s", err, service)
	}

	// A daemon that is running still is told of, and ended as the warning says.
	runDir := t.TempDir()
	mldd := exec.Command("unshare", "--user", "--map-root-user", "--net", filepath.Join(dest, "/usr/lib/cni/bin/mldd"), "--run-dir", runDir)
	var log bytes.Buffer
	mldd.Stderr = &log
	if err := mldd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- mldd.Wait() }()
	defer func() { _ = mldd.Process.Kill() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	netnslab.WaitFor(t, "mldd, its worker included", time.Minute, func() (bool, string) {
		_, err := api.Exchange(ctx, runDir, &api.Request{Op: api.OpStatus})
		return err == nil, fmt.Sprint(err)
	})
	out := run("uninstall")
	_, text, warned := strings.Cut(out, " and else kill ")
	text, _, _ = strings.Cut(text, "\n")
	pids := strings.Fields(text)
	if !warned || !slices.Contains(pids, strconv.Itoa(mldd.Process.Pid)) || len(pids) != 2 || !strings.Contains(out, "warning: "+dest) {
		t.Fatalf("of processes %d and its worker:\n%s", mldd.Process.Pid, out)
	}
	if left := files(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	for _, pid := range pids {
		n, err := strconv.Atoi(pid)
		if err == nil {
			err = unix.Kill(n, unix.SIGTERM)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // the worker ends with its keeper
			t.Errorf("kill %s: %v", pid, err)
		}
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("mldd: %v\n%s", err, &log)
		}
	case <-time.After(time.Minute):
		t.Fatalf("mldd goes on\n%s", &log)
	}
	if strings.Contains(out, "rm -r") {
		t.Errorf("of no run directory:\n%s", out)
	}
	if err := os.MkdirAll(filepath.Join(dest, "/run/mld"), 0o700); err != nil {
		t.Fatal(err)
	}
	if out := run("uninstall"); strings.Contains(out, "warning") || !strings.Contains(out, "rm -r "+dest+"/run/mld\n") {
		t.Errorf("of no process, and of the run directory:\n%s", out)
	}
}
