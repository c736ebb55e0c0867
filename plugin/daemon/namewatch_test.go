package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

const soon = 30 * time.Second

func newTestWatch(t *testing.T) *nameWatch {
	t.Helper()
	w, err := newNameWatch(slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// TestNameWatch: the end of a name is told, once, however it comes, and of no other name.
func TestNameWatch(t *testing.T) {
	w := newTestWatch(t)
	dir := t.TempDir()
	other := filepath.Join(t.TempDir(), "same")
	if err := os.Symlink(dir, other); err != nil {
		t.Fatal(err)
	}
	gone := make(chan string, 100)
	file := func(name string) (path string, info os.FileInfo) {
		path = filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return path, info
	}
	watch := func(path string, info os.FileInfo) func() {
		t.Helper()
		stop, err := w.watch(path, info, os.Stat, func() { gone <- path })
		if err != nil {
			t.Fatal(err)
		}
		return stop
	}
	want := func(path string) {
		t.Helper()
		select {
		case got := <-gone:
			if got != path {
				t.Errorf("%s is gone, want %s", got, path)
			}
		case <-time.After(soon):
			t.Fatalf("%s is not gone", path)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	a, infoA := file("a")
	stays, infoStays := file("stays")
	watch(stays, infoStays)
	watch(a, infoA)
	watch(filepath.Join(other, "a"), infoA) // the same directory under another name
	must(os.Remove(a))
	paths := map[string]bool{<-gone: true, <-gone: true}
	if !paths[a] || !paths[filepath.Join(other, "a")] {
		t.Errorf("gone: %v", paths)
	}

	b, infoB := file("b")
	watch(b, infoB)
	must(os.Rename(b, filepath.Join(dir, "c")))
	want(b)

	d, infoD := file("d")
	stop := watch(d, infoD)
	stop()
	stop()
	must(os.Remove(d))

	e, infoE := file("e")
	watch(e, infoE)
	must(os.Remove(e)) // proves that nothing of d is told, nor of what stays
	want(e)

	if _, err := w.watch(stays, infoE, os.Stat, func() {}); !errors.Is(err, errOther) {
		t.Errorf("%v, want that it is another file", err)
	}
	if _, err := w.watch(filepath.Join(dir, "none", "x"), infoE, os.Stat, func() {}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want that there is no directory", err)
	}
	if n := w.count(); n != 1 {
		t.Errorf("%d directories are watched, want one", n)
	}
	must(os.Rename(dir, dir+".moved"))
	t.Cleanup(func() { os.RemoveAll(dir + ".moved") })
	want(stays)
	if n := w.count(); n != 0 {
		t.Errorf("%d directories are watched, want none", n)
	}
}

// count tells how many directories are watched.
func (w *nameWatch) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.dirs)
}

// TestNameWatchOverflow: when events are lost, every name is looked at.
func TestNameWatchOverflow(t *testing.T) {
	w := newTestWatch(t)
	dir := t.TempDir()
	gone := make(chan string, 1)
	for _, name := range []string{"a", "b"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		there := true
		if _, err := w.watch(path, info, func(path string) (os.FileInfo, error) {
			if name == "a" || there {
				there = false
				return os.Stat(path)
			}
			return nil, os.ErrNotExist // which only a second look can tell
		}, func() { gone <- name }); err != nil {
			t.Fatal(err)
		}
	}
	w.event(-1, unix.IN_Q_OVERFLOW, "")
	if got := <-gone; got != "b" {
		t.Errorf("%s is gone", got)
	}
}

// TestWatchProcess: the namespace of a process ends with it.
func TestWatchProcess(t *testing.T) {
	w := newTestWatch(t)
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	process := func() (*exec.Cmd, func()) {
		cmd := exec.CommandContext(t.Context(), "cat")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, func() { in.Close(); _ = cmd.Wait() }
	}
	a, endA := process()
	b, endB := process()
	gone := make(chan int, 10)
	watch := func(format string, pid int) func() {
		t.Helper()
		stop, err := w.watchNamespace(fmt.Sprintf(format, pid), ns, func() { gone <- pid })
		if err != nil {
			t.Fatal(err)
		}
		return stop
	}
	watch("/proc/%d/ns/net", a.Process.Pid)
	stop := watch("/proc/%d/ns/net", b.Process.Pid)
	watch("/proc/%d/task/%[1]d/ns/net", b.Process.Pid)
	stop()
	endA()
	if pid := <-gone; pid != a.Process.Pid {
		t.Errorf("%d has ended", pid)
	}
	endB()
	if pid := <-gone; pid != b.Process.Pid {
		t.Errorf("%d has ended", pid)
	}
	for path, gone := range map[string]bool{
		"": false, "relative": false, "/proc/1/fd/3": false,
		fmt.Sprintf("/proc/%d/ns/net", a.Process.Pid): true, t.TempDir(): true, filepath.Join(t.TempDir(), "none"): true,
	} {
		if _, err := w.watchNamespace(path, ns, func() {}); err == nil || isGone(err) != gone {
			t.Errorf("%q: %v, says that it is gone: %v, want %v", path, err, !gone, gone)
		}
	}
	select {
	case pid := <-gone:
		t.Errorf("%d has ended twice", pid)
	default:
	}
}
