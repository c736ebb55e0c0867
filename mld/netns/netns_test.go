package netns_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

func TestMain(m *testing.M) { netnslab.Main(m) }

// inside returns the names of the interfaces that the calling thread sees.
func inside(t *testing.T, ns *netns.Namespace) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	err := ns.Do(func() error {
		interfaces, err := net.Interfaces()
		for _, i := range interfaces {
			names[i.Name] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestDo(t *testing.T) {
	lab := netnslab.New(t)
	a, b := lab.Node("a"), lab.Node("b")
	lab.Veth(a, "only-a", b, "only-b")
	if names := inside(t, a.Netns()); !names["only-a"] || names["only-b"] {
		t.Errorf("inside a: %v", names)
	}
	if names := inside(t, b.Netns()); !names["only-b"] || names["only-a"] {
		t.Errorf("inside b: %v", names)
	}
	// No thread stays behind: the goroutines of the test see neither.
	if _, err := net.InterfaceByName("only-a"); err == nil {
		t.Error("a goroutine of the test is inside a")
	}
}

func TestDoReturnsError(t *testing.T) {
	ns := netnslab.New(t).Host().Netns()
	want := errors.New("this one")
	if err := ns.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestSocketStays(t *testing.T) {
	lab := netnslab.New(t)
	node := lab.Node("node")
	var fd int
	err := node.Netns().Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	of, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(of)
	if got, want := inodeOf(t, of), inodeOf(t, int(node.Netns().File().Fd())); got != want {
		t.Errorf("the socket is in namespace %d, want %d", got, want)
	}
}

func TestDoConcurrently(t *testing.T) {
	lab := netnslab.New(t)
	var group sync.WaitGroup
	for _, node := range []*netnslab.Node{lab.Host(), lab.Node("a"), lab.Node("b"), lab.Node("c")} {
		for range 50 {
			group.Go(func() {
				err := node.Netns().Do(func() error {
					if unix.Gettid() == os.Getpid() {
						return errors.New("the first thread of the process is inside")
					}
					var here, want unix.Stat_t
					if err := unix.Stat("/proc/thread-self/ns/net", &here); err != nil {
						return err
					}
					if err := unix.Stat(node.Path(), &want); err != nil {
						return err
					}
					if here.Ino != want.Ino {
						return fmt.Errorf("inside namespace %d, want %d", here.Ino, want.Ino)
					}
					return nil
				})
				if err != nil {
					t.Errorf("%v: %v", node, err)
				}
			})
		}
	}
	group.Wait()
}

// A function that ends its goroutine, as t.FailNow does, leaves the thread inside. That thread must not be used
// again, and nobody may wait for it for ever.
func TestDoSurvivesGoexit(t *testing.T) {
	lab := netnslab.New(t)
	node := lab.Node("node")
	if err := node.Netns().Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error from a function that has not returned")
	}
	home, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	if home.Cookie() == node.Netns().Cookie() {
		t.Error("the test is inside the node")
	}
	if err := node.Netns().Do(func() error { return nil }); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestCookie(t *testing.T) {
	t.Run("the kernel's", testCookie)
	t.Run("in place of the kernel's", func(t *testing.T) { // before Linux 5.14
		defer netns.WithoutCookies()()
		testCookie(t)
	})
}

func testCookie(t *testing.T) {
	lab := netnslab.New(t)
	node := lab.Node("node")
	again, err := netns.Open(node.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Cookie() != node.Netns().Cookie() {
		t.Errorf("opened again: cookie %d, want %d", again.Cookie(), node.Netns().Cookie())
	}
	if node.Netns().Cookie() == lab.Host().Netns().Cookie() {
		t.Error("two namespaces have one cookie")
	}
}

// inodeOf is the inode of an open file.
func inodeOf(t *testing.T, fd int) uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}

func TestOpenRefuses(t *testing.T) {
	netnslab.New(t) // for its privileges
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe") // nobody writes: to wait for a writer would be for ever
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path string
		want error
	}{
		{file, netns.ErrNotNetwork},
		{pipe, netns.ErrNotNetwork},
		{dir, netns.ErrNotNetwork},
		{"/proc/self/ns/mnt", netns.ErrNotNetwork},
		{"/dev/null", netns.ErrNotNetwork},
		{filepath.Join(dir, "missing"), os.ErrNotExist},
	} {
		ns, err := netns.Open(test.path)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.path, err, test.want)
		}
		if err == nil {
			_ = ns.Close()
		}
	}
}

func TestFromFileTakesOver(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := netns.FromFile(f); !errors.Is(err, netns.ErrNotNetwork) {
		t.Errorf("got %v", err)
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a refused file is still open: %v", err)
	}
}

// TestSibling: another descriptor of a namespace is known by the one that is there, and that of another one by itself.
func TestSibling(t *testing.T) {
	lab := netnslab.New(t)
	a, b := lab.Node("a"), lab.Node("b")
	for _, node := range []*netnslab.Node{a, b} {
		f, err := os.Open(node.Path())
		if err != nil {
			t.Fatal(err)
		}
		ns, err := a.Netns().Sibling(f)
		if err != nil {
			t.Fatal(err)
		}
		if ns.Cookie() != node.Netns().Cookie() {
			t.Errorf("%v: cookie %d, want %d", node, ns.Cookie(), node.Netns().Cookie())
		}
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := a.Netns().Do(func() error { return nil }); err != nil {
		t.Errorf("the first one, when the other has been closed: %v", err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Netns().Sibling(null); !errors.Is(err, netns.ErrNotNetwork) {
		t.Errorf("got %v", err)
	}
}

func TestFromFileInside(t *testing.T) {
	lab := netnslab.New(t)
	node := lab.Node("node")
	refused := errors.New("refused")
	for _, want := range []error{nil, refused} {
		f, err := os.Open(node.Path())
		if err != nil {
			t.Fatal(err)
		}
		var cookie uint64
		ns, err := netns.FromFile(f, func() error {
			here, err := netns.Current()
			if err != nil {
				return err
			}
			cookie = here.Cookie()
			return errors.Join(want, here.Close())
		})
		if !errors.Is(err, want) || cookie != node.Netns().Cookie() {
			t.Errorf("inside %d, %v; want %d, %v", cookie, err, node.Netns().Cookie(), want)
		}
		if err := f.Close(); want != nil && !errors.Is(err, os.ErrClosed) {
			t.Errorf("a refused file is still open: %v", err)
		}
		if want == nil && ns == nil {
			t.Error("no namespace")
		}
	}
}

func TestDoAfterClose(t *testing.T) {
	netnslab.New(t)
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error { t.Error("called"); return nil }); err == nil {
		t.Error("no error")
	}
}
