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
// FromFile fails. The file's name is used in error texts only. The functions are run inside, as
// by [Namespace.Do], which they spare the caller; if one fails, FromFile does.
func FromFile(f *os.File, inside ...func() error) (*Namespace, error) {
	if err := checkNetwork(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	ns := &Namespace{file: f}
	err := ns.Do(func() (err error) {
		if ns.cookie, err = currentCookie(); errors.Is(err, unix.ENOPROTOOPT) {
			ns.cookie, err = inode(f)
		}
		for _, fn := range inside {
			if err == nil {
				err = fn()
			}
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return ns, nil
}

// Sibling is [FromFile] for a descriptor that may well be of n too, by whatever path: then nothing is entered to know it.
func (n *Namespace) Sibling(f *os.File) (*Namespace, error) {
	mine, err := n.file.Stat()
	if err != nil {
		return FromFile(f)
	}
	other, err := f.Stat()
	if err != nil || !os.SameFile(mine, other) {
		return FromFile(f)
	}
	return &Namespace{file: f, cookie: n.cookie}, nil
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

// cookieOption is the socket option that tells the cookie (Linux 5.14); a test takes it away.
var cookieOption = unix.SO_NETNS_COOKIE

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

// inode returns the number of the file's inode. All namespaces are in one file system.
func inode(f *os.File) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", f.Name(), err)
	}
	return stat.Ino, nil
}

// Cookie is the kernel's number for the namespace. It is never given to another namespace until the machine
// restarts, unlike an inode number or a path.
//
// Before Linux 5.14 the kernel has none, and it is the inode number: that of no other namespace as long as this one
// lives, and so as long as a Namespace of it is open. Afterwards another one may get it.
func (n *Namespace) Cookie() uint64 { return n.cookie }

// File is the descriptor, for handing it to another process. It still belongs to n.
func (n *Namespace) File() *os.File { return n.file }

// Close lets go of the namespace.
func (n *Namespace) Close() error { return n.file.Close() }

// Do runs fn inside the namespace and returns its error. A call costs 5 µs. fn has a thread to itself, so it must be
// short; goroutines that it starts are not inside. Calls may run side by side.
func (n *Namespace) Do(fn func() error) error {
	answer := make(chan error, 1)
	// In a goroutine of its own, because a thread that cannot come home must die, and does so with the goroutine that
	// is locked to it. The starter only waits, so both run on one thread and no other has to wake up.
	go func() {
		err := errExit
		defer func() { answer <- err }()
		runtime.LockOSThread()
		if enterErr := n.enter(); enterErr != nil {
			err = enterErr
			runtime.UnlockOSThread()
			return
		}
		defer func() { // also when fn ends the goroutine
			if leaveErr := leave(); leaveErr != nil {
				err = errors.Join(err, leaveErr)
				return
			}
			runtime.UnlockOSThread()
		}()
		err = fn()
	}()
	return <-answer
}

// errExit answers a call whose function ended its goroutine instead of returning, as t.FailNow of a test does.
var errExit = errors.New("the function run inside the network namespace has not returned")

// init keeps the first thread of the process for the main goroutine: it cannot die, and where it is is what /proc says
// of the whole process.
func init() { runtime.LockOSThread() }

// home is the namespace of the threads that are not inside another one.
var home = sync.OnceValues(vnetns.Get)

// enter brings the calling thread into the namespace. After an error it is at home.
func (n *Namespace) enter() error {
	if _, err := home(); err != nil { // without a way back nobody goes
		return fmt.Errorf("own network namespace: %w", err)
	}
	// The connection keeps the descriptor open even if Close runs meanwhile.
	conn, err := n.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.file.Name(), err)
	}
	var enterErr error
	if err := conn.Control(func(fd uintptr) { enterErr = vnetns.Set(vnetns.NsHandle(fd)) }); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.file.Name(), err)
	}
	if enterErr != nil {
		return fmt.Errorf("enter network namespace %s (CAP_SYS_ADMIN is needed): %w", n.file.Name(), enterErr)
	}
	return nil
}

// leave brings the calling thread home.
func leave() error {
	h, err := home()
	if err == nil {
		err = vnetns.Set(h)
	}
	if err != nil {
		return fmt.Errorf("leave network namespace: %w", err)
	}
	return nil
}
