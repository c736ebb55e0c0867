//go:build kernels

package kernels

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
)

// A kernel is one to test on, with what it is expected to offer.
type kernel struct {
	series string // how its release begins
	suite  string // of Debian, that has it
	facts  map[string]string
}

var kernels = []kernel{
	{"5.10", "bullseye", nil},
	{"6.1", "bookworm", nil},
	{"6.12", "trixie", nil},
}

// patience bounds the life of a guest.
const patience = 15 * time.Minute

// module is the path of this repository's packages.
const module_ = "github.com/seed-aaab8e3a/cni-mld"

// A program is a test binary and what of it runs in the guest.
type program struct {
	pkg   string // import path, from the module's
	flags []string
}

var programs = []program{
	{"e2e/kernels/guest", nil},
}

func TestKernels(t *testing.T) {
	bin := t.TempDir()
	if err := chain.Build(t.Context(), bin); err != nil {
		t.Fatal(err)
	}
	if err := build(t.Context(), bin); err != nil {
		t.Fatal(err)
	}
	for _, k := range kernels {
		t.Run(k.series, func(t *testing.T) {
			dir, err := k.fetch(t.Context(), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			initrd := filepath.Join(t.TempDir(), "initrd")
			if err := pack(initrd, dir, bin); err != nil {
				t.Fatal(err)
			}
			boot(t, k, filepath.Join(dir, "vmlinuz"), initrd)
		})
	}
}

// build builds init and the test binaries. They are static: the guest has no libraries.
func build(ctx context.Context, bin string) error {
	commands := [][]string{{"build", "-o", filepath.Join(bin, "init"), "./init"}}
	for _, p := range programs {
		commands = append(commands, []string{"test", "-c", "-tags", "kernels", "-o", filepath.Join(bin, testName(p)), module_ + "/" + p.pkg})
	}
	for _, args := range commands {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-ldflags=-s")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
	}
	return nil
}

func testName(p program) string { return strings.ReplaceAll(p.pkg, "/", "-") + ".test" }

// pack makes the guest's file system.
func pack(file, kernel, bin string) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := newInitramfs(f)
	for _, name := range []string{"ip", "bridge", "nft"} {
		if err := a.program(name); err != nil {
			return err
		}
	}
	if err := a.copy("init", filepath.Join(bin, "init")); err != nil {
		return err
	}
	for to, from := range map[string]string{"bin": bin, "modules": filepath.Join(kernel, "modules")} {
		files, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := a.copy(to+"/"+f.Name(), filepath.Join(from, f.Name())); err != nil {
				return err
			}
		}
	}
	for i, p := range programs {
		args := append([]string{"/bin/" + testName(p), "-test.v"}, p.flags...)
		if err := a.file(fmt.Sprintf("tests/%02d-%s", i, testName(p)), []byte(strings.Join(args, "\n"))); err != nil {
			return err
		}
	}
	return a.close()
}

// boot runs a guest to its end and reads what it says.
func boot(t *testing.T, k kernel, image, initrd string) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "1024",
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio",
		"-kernel", image, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 reboot=t LAB_REQUIRED=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(io.Reader(out)); lines.Scan(); {
		t.Logf("%6.2f %s", time.Since(start).Seconds(), strings.TrimRight(lines.Text(), "\r"))
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
