//go:build kernels

package kernels

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
)

// guestRun narrows down what runs in a guest; -run /6.1 does so with the kernels.
var guestRun = flag.String("guest.run", "", "run only those tests of a guest that match, as -run does")

// A kernel is one to test on.
type kernel struct {
	series string            // as its release begins
	suite  string            // of Debian, that has it
	facts  map[string]string // what it is to be found to offer, see package guest
}

var kernels = []kernel{
	{"5.10", "bullseye", map[string]string{"changes": "polling", "reports": "keep", "cookie": "inode"}},
	{"6.1", "bookworm", map[string]string{"changes": "hints", "reports": "mute", "cookie": "kernel"}},
	{"6.12", "trixie", map[string]string{"changes": "hints", "reports": "mute", "cookie": "kernel"}},
}

// A program is a package's tests, and which of them run in a guest: those that match run, all if it is empty, but not
// those that match skip, by the kernel's series. Tests of a package that do not match are of no interest on another
// kernel, or take tshark, tc, events of memberships, or haste.
type program struct {
	pkg  string // import path, from the module's
	run  []string
	skip map[string][]string
}

var programs = []program{
	{pkg: "e2e/kernels/guest"},
	{pkg: "mld/netns"},
	{
		pkg: "mld/link",
		run: []string{
			"TestReadPacketFilter", "TestReadPacketUDP", "TestV1_25", "TestHearKernel", "TestWritePacket$", "TestState$", "TestWatch",
			"TestErrGone",
		},
		skip: map[string][]string{
			"5.10": {"TestWatch$"}, // renames an interface that is up, which was not possible
			"6.1":  {"TestWatch$"},
		},
	},
	{
		pkg: "mld/bridge",
		run: []string{"TestDump", "TestWait", "TestB", "TestForwarding", "TestErrNotPort", "TestMonitor"},
		skip: map[string][]string{
			"5.10": {"TestB19_Overflow", "TestB12_OtherQuerier"}, // the kernel tells neither
			"6.1":  {"TestB19_Overflow"},
		},
	},
	{
		pkg: "mld/kernel",
		run: []string{
			"TestJoinsErrors", "TestJoinsLeaveAfterLoss", "TestV2_71_JoinsWithSources", "TestMirrorHints", "TestMirrorLeaveWithoutDone",
			"TestMirrorAlone", "TestMirrorHintIsPrompt", "TestMirrorReadsWhileOthersJoin", "TestMirrorFirstCall",
			"TestMirrorOtherInterface", "TestMirrorClose/events=false", "TestOpenMirrorWhileTheKernelReports", "TestMute",
			"WithoutEvents", "TestV2_47_MirrorManySources", "TestMirrorSourcesVersion1", "TestMirrorImpossibleSources",
		},
		skip: map[string][]string{
			"5.10": {"Mute", "Mirror"},                     // of which the former cannot be
			"6.1":  {"TestMuteSilence", "TestMuteQueries"}, // rename an interface that is up; switch back from MLDv1 late
		},
	},
	{
		pkg: "mld/agent",
		run: []string{"TestStart$", "TestStopThenDelete", "TestKeep$", "TestSecondAgent", "StartRefused", "TestInterfaceDeleted", "Version1Querier", "TestStandingSources"},
		skip: map[string][]string{
			"5.10": {"TestSt", "TestSecondAgent", "Version1Querier"}, // mute
		},
	},
}

// patience bounds the life of a guest.
const patience = 15 * time.Minute

func TestKernels(t *testing.T) {
	bin := t.TempDir()
	if err := errors.Join(chain.Build(t.Context(), bin), build(t.Context(), bin)); err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	columns := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(columns, "kernel\tchanges\treports\tcookie\tboot\twhole\tverdict")
	for _, k := range kernels {
		t.Run(k.series, func(t *testing.T) {
			dir, err := k.fetch(t.Context(), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			initrd := filepath.Join(t.TempDir(), "initrd")
			if err := k.pack(initrd, dir, bin); err != nil {
				t.Fatal(err)
			}
			g := &guest{facts: map[string]string{}}
			if err := g.boot(t, filepath.Join(dir, "vmlinuz"), initrd); err != nil {
				t.Error(err)
			}
			k.judge(t, g)
			verdict := "ok"
			if t.Failed() {
				verdict = "FAILED"
				t.Logf("the guest's log:\n%s", strings.Join(g.log, "\n"))
			}
			fmt.Fprintf(columns, "%s\t%s\t%s\t%s\t%.1f s\t%.0f s\t%s\n", g.release, g.facts["changes"], g.facts["reports"],
				g.facts["cookie"], g.booted.Seconds(), g.ended.Seconds(), verdict)
		})
	}
	if err := columns.Flush(); err != nil {
		t.Error(err)
	}
	t.Logf("\n%s", &table)
}

// build builds init and the test binaries. They are static, so that they need nothing of the guest.
func build(ctx context.Context, bin string) error {
	commands := [][]string{{"build", "-o", filepath.Join(bin, "init"), "./init"}}
	for _, p := range programs {
		commands = append(commands, []string{"test", "-c", "-tags", "kernels", "-o", filepath.Join(bin, p.name()), "../../" + p.pkg})
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

func (p program) name() string { return strings.ReplaceAll(p.pkg, "/", "-") + ".test" }

// pack makes the guest's file system.
func (k kernel) pack(file, dir, bin string) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := newInitramfs(f)
	if err := a.copy("init", filepath.Join(bin, "init")); err != nil {
		return err
	}
	for to, from := range map[string]string{"opt/cni/bin": bin, "modules": filepath.Join(dir, "modules")} {
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
	for _, name := range []string{"ip", "bridge", "nft", "sh", "cat", "setpriv"} { // which tests of the packages call
		if err := a.program(name); err != nil {
			return err
		}
	}
	for i, p := range programs {
		args := []string{"/opt/cni/bin/" + p.name(), "-test.v", "-test.run=" + cmp.Or(*guestRun, strings.Join(p.run, "|"))}
		if skip := p.skip[k.series]; len(skip) > 0 {
			args = append(args, "-test.skip="+strings.Join(skip, "|"))
		}
		if err := a.file(fmt.Sprintf("tests/%02d-%s", i, p.name()), []byte(strings.Join(args, "\n"))); err != nil {
			return err
		}
	}
	return a.close()
}

// A guest is what was seen of one.
type guest struct {
	release       string
	booted, ended time.Duration     // since the start; zero if it never did
	facts         map[string]string // by name
	passed, idle  int               // programs; those that ran no test
	log           []string
}

// boot runs a guest to its end and reads what it says on the serial console.
func (g *guest) boot(t *testing.T, image, initrd string) error {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// A reboot ends it: -no-reboot, by the processor: reboot=t. So does a panic. LAB_REQUIRED: init inherits it.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "1024",
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio",
		"-kernel", image, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 reboot=t LAB_REQUIRED=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	for lines := bufio.NewReader(out); ; {
		line, err := lines.ReadString('\n')
		if line != "" {
			since := time.Since(start)
			g.log = append(g.log, fmt.Sprintf("%7.2f  %s", since.Seconds(), strings.TrimSpace(line)))
			if g.read(strings.TrimSpace(line), since) {
				t.Log(g.log[len(g.log)-1])
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errors.Join(err, cmd.Wait())
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), errors.Join(err, context.Cause(ctx)), &stderr)
	}
	return nil
}

// read takes in a line, and tells whether it is worth telling at once.
func (g *guest) read(line string, since time.Duration) bool {
	_, said, ours := strings.Cut(line, "init: ") // the first one may follow what the firmware says
	var name, value string
	switch {
	case !ours:
		if n, _ := fmt.Sscanf(line, "fact %s %s", &name, &value); n == 2 {
			g.facts[name] = value
			return true
		}
		if line == "testing: warning: no tests to run" {
			g.idle++
		}
		return strings.HasPrefix(line, "--- FAIL") || strings.HasPrefix(line, "panic:")
	case strings.HasPrefix(said, "up on "):
		g.release, g.booted = strings.TrimPrefix(said, "up on "), since
	case strings.HasPrefix(said, "done ") && strings.HasSuffix(said, ": ok"):
		g.passed++
	case strings.HasPrefix(said, "end "):
		g.ended = since
	}
	return true
}

// judge holds what was seen against what is expected of the kernel.
func (k kernel) judge(t *testing.T, g *guest) {
	t.Helper()
	if !strings.HasPrefix(g.release, "Linux "+k.series+".") {
		t.Errorf("booted %q, want %s", g.release, k.series)
	}
	if g.ended == 0 || g.passed != len(programs) {
		t.Errorf("%d of %d programs passed; the guest came to its end: %v", g.passed, len(programs), g.ended > 0)
	}
	if g.idle > 0 && *guestRun == "" {
		t.Errorf("%d programs ran no test", g.idle)
	}
	for name, want := range k.facts {
		if got, found := g.facts[name]; got != want && (found || *guestRun == "") {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
