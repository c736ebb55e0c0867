// Package deploy tests the files that are installed beside the programs.
package deploy

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
