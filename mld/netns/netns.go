package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrNotNetwork says that a path or descriptor is not a network namespace.
var ErrNotNetwork = errors.New("not a network namespace")

// A Namespace is a network namespace held by an open descriptor. Its methods are safe for concurrent use, but
// Close must come last.
type Namespace struct {
	file   *os.File
	cookie uint64
	number *number // in place of a cookie of the kernel's
}

// Open opens the network namespace at path, such as /run/netns/pod or /proc/42/ns/net.
// An error that wraps [ErrNotNetwork] says that something else is there.
func Open(path string) (*Namespace, error) {
	// O_NONBLOCK: the path may be a named pipe, whose opening would wait for a writer.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return FromFile(os.NewFile(uintptr(fd), path))
}

// Current opens the network namespace of the calling thread.
func Current() (*Namespace, error) {
	return Open("/proc/thread-self/ns/net")
}

// FromFile makes a Namespace of an open descriptor and takes it over: it is closed by Close, or at once if
// FromFile fails. The file's name is used in error texts only.
func FromFile(f *os.File) (*Namespace, error) {
	if err := checkNetwork(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	ns := &Namespace{file: f}
	err := ns.Do(func() error {
		var err error
		ns.cookie, err = currentCookie()
		return err
	})
	if errors.Is(err, unix.ENOPROTOOPT) {
		err = ns.takeNumber()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return ns, nil
}

// checkNetwork tells a network namespace from everything else a path can lead to. The file system is asked
// first, because the ioctl would mean something else to another kind of file.
func checkNetwork(f *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return fmt.Errorf("network namespace %s: %w", f.Name(), err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("%s: %w: it is an ordinary file or a name left over from a deleted namespace", f.Name(), ErrNotNetwork)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", f.Name(), err)
	}
	if kind != unix.CLONE_NEWNET {
		return fmt.Errorf("%s: %w: it is a namespace of another kind", f.Name(), ErrNotNetwork)
	}
	return nil
}

func currentCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("network namespace cookie: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, cookieOption)
	if err != nil {
		return 0, fmt.Errorf("network namespace cookie: %w", err)
	}
	return cookie, nil
}

// Cookie is the kernel's number for the namespace. It is never given to another namespace until the machine
// restarts, unlike an inode number or a path.
//
// Before Linux 5.14 the kernel has none, and it is a number of this process's: the same for every Namespace of the
// namespace while one of them is open, and never given to another. The next process has others.
func (n *Namespace) Cookie() uint64 { return n.cookie }

// File is the descriptor, for handing it to another process. It still belongs to n.
func (n *Namespace) File() *os.File { return n.file }

// Close lets go of the namespace.
func (n *Namespace) Close() error {
	if n.number != nil {
		return n.giveBack()
	}
	return n.file.Close()
}

// Do runs fn on a thread that is inside the namespace, and returns its error. Calls are served one after
// another by one thread for the whole process, so fn must be short; goroutines that it starts are not inside, and
// it must not wait for another call: it must not use Do, Open, FromFile or Current.
func (n *Namespace) Do(fn func() error) error {
	startThread.Do(func() { go serve(vnetns.None()) })
	c := call{ns: n, fn: fn, done: make(chan error, 1)}
	calls <- c
	return <-c.done
}

type call struct {
	ns   *Namespace
	fn   func() error
	done chan error
}

var (
	startThread sync.Once
	calls       = make(chan call)
)

// errExit answers a call whose function ended its goroutine instead of returning, as t.FailNow of a test does.
var errExit = errors.New("the function run inside the network namespace has not returned")

// serve is the namespace thread. It is never unlocked, so no other goroutine ever runs on it. The first one finds
// out where home is; those that take its place are told.
func serve(home vnetns.NsHandle) {
	runtime.LockOSThread()
	var c call
	var answer error
	defer func() {
		// A thread that is not home dies: its goroutine ends while locked to it. Another one takes its place.
		go serve(home)
		c.done <- answer
	}()
	if !home.IsOpen() {
		var err error
		if home, err = vnetns.Get(); err != nil { // without a way back no call can be served
			c, answer = <-calls, fmt.Errorf("namespace thread: own network namespace: %w", err)
			return
		}
	}
	for c = range calls {
		answer = errExit
		var returned bool
		if returned, answer = c.run(home); !returned {
			return
		}
		c.done <- answer
	}
}

// run enters the namespace, calls fn and goes home. It tells whether the thread is home again.
func (c call) run(home vnetns.NsHandle) (returned bool, err error) {
	// The connection keeps the descriptor open even if Close runs meanwhile.
	conn, err := c.ns.file.SyscallConn()
	if err != nil {
		return true, fmt.Errorf("enter network namespace %s: %w", c.ns.file.Name(), err)
	}
	var enterErr error
	if err := conn.Control(func(fd uintptr) { enterErr = vnetns.Set(vnetns.NsHandle(fd)) }); err != nil {
		return true, fmt.Errorf("enter network namespace %s: %w", c.ns.file.Name(), err)
	}
	if enterErr != nil {
		return true, fmt.Errorf("enter network namespace %s (CAP_SYS_ADMIN is needed): %w", c.ns.file.Name(), enterErr)
	}
	returned = true
	defer func() { // also when fn ends the goroutine: the first thread of a process does not die with it
		if homeErr := vnetns.Set(home); homeErr != nil {
			returned, err = false, errors.Join(err, fmt.Errorf("leave network namespace %s: %w", c.ns.file.Name(), homeErr))
		}
	}()
	return returned, c.fn()
}
