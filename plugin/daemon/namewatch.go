package daemon

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// A nameWatch tells when names are removed from their directories, or no longer stand for the same file. It watches
// the directories, all with one inotify instance, of which a user has 128: neither a namespace nor a directory in which
// a file is open has an event of its own end (IN_DELETE_SELF). Its methods are safe for concurrent use.
type nameWatch struct {
	inotify *os.File
	ended   chan struct{}

	mu   sync.Mutex
	dirs map[int32]watchedDir // by watch descriptor
}

// A watchedDir has the names that are watched in a directory, which may be thousands, by what an event calls them.
type watchedDir map[string]map[*watchedName]struct{}

type watchedName struct {
	path string
	info os.FileInfo
	stat func(string) (os.FileInfo, error)
	gone func()
}

// errOther says that a path does not lead to what it is taken for.
var errOther = errors.New("leads to something else")

func newNameWatch(log *slog.Logger) (*nameWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	w := &nameWatch{
		inotify: os.NewFile(uintptr(fd), "inotify"),
		ended:   make(chan struct{}),
		dirs:    make(map[int32]watchedDir),
	}
	go func() {
		defer close(w.ended)
		if err := w.run(); !errors.Is(err, os.ErrClosed) {
			log.Error("names not watched any more", "err", err)
		}
	}()
	return w, nil
}

// watch calls gone, once and in a goroutine of its own, when path does not lead to the file any more that info and stat
// are about. It fails with [errOther] if it does not now.
func (w *nameWatch) watch(path string, info os.FileInfo, stat func(string) (os.FileInfo, error), gone func()) (stop func(), err error) {
	n := &watchedName{path, info, stat, gone}
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, err := w.add(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	if w.dirs[wd] == nil {
		w.dirs[wd] = make(watchedDir)
	}
	name := filepath.Base(path)
	if w.dirs[wd][name] == nil {
		w.dirs[wd][name] = make(map[*watchedName]struct{})
	}
	w.dirs[wd][name][n] = struct{}{}
	if !n.there() { // looked at with the watch in place, so that no end is missed
		w.drop(wd, n)
		return nil, fmt.Errorf("watch %s: %w", path, errOther)
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.drop(wd, n)
	}, nil
}

// add watches a directory, which has one watch descriptor under all its names.
func (w *nameWatch) add(dir string) (wd int32, err error) {
	conn, err := w.inotify.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := conn.Control(func(fd uintptr) {
		var n int
		n, err = unix.InotifyAddWatch(int(fd), dir, unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVE_SELF|unix.IN_ONLYDIR)
		wd = int32(n)
	})
	return wd, errors.Join(ctlErr, err)
}

// drop forgets a name, and with its last one the directory. w.mu is held.
func (w *nameWatch) drop(wd int32, n *watchedName) {
	dir, ok := w.dirs[wd]
	if !ok {
		return
	}
	name := filepath.Base(n.path)
	delete(dir[name], n)
	if len(dir[name]) == 0 {
		delete(dir, name)
	}
	if len(dir) > 0 {
		return
	}
	delete(w.dirs, wd)
	if conn, err := w.inotify.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(wd)) }) // it may have gone with the directory
	}
}

func (n *watchedName) there() bool {
	info, err := n.stat(n.path)
	return err == nil && os.SameFile(info, n.info)
}

// run handles events until close.
func (w *nameWatch) run() error {
	buf := make([]byte, 16*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		n, err := w.inotify.Read(buf)
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b))
			mask := binary.NativeEndian.Uint32(b[4:])
			end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
			name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:end]), "\x00")
			b = b[end:]
			w.event(wd, mask, name)
		}
	}
}

// event looks after the names that an event is about: one of a directory, with IN_IGNORED all of it, for it has gone
// itself, and after IN_Q_OVERFLOW all there are.
func (w *nameWatch) event(wd int32, mask uint32, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	look := func(wd int32, names map[*watchedName]struct{}) {
		for n := range names {
			if !n.there() {
				w.drop(wd, n)
				go n.gone()
			}
		}
	}
	if name != "" {
		look(wd, w.dirs[wd][name])
		return
	}
	for dir, all := range w.dirs {
		if dir != wd && mask&unix.IN_Q_OVERFLOW == 0 {
			continue
		}
		for _, names := range all {
			look(dir, names)
		}
	}
}

// close ends all watches.
func (w *nameWatch) close() error {
	err := w.inotify.Close()
	<-w.ended
	return err
}

// isGone tells whether an error of watch or watchNamespace means that the path does not lead there, and not that it
// cannot be watched.
func isGone(err error) bool {
	return errors.Is(err, errOther) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// processPath matches the network namespace of a process or a thread.
var processPath = regexp.MustCompile(`^/proc/([0-9]+)(?:/task/([0-9]+))?/ns/net$`)

// watchNamespace calls gone, in a goroutine of its own, when path does not lead to the namespace any more: its name has
// been removed, or the process has ended. The path is what a client says, and errOther that it does not lead there
// from here.
func (w *nameWatch) watchNamespace(path string, ns *netns.Namespace, gone func()) (stop func(), err error) {
	info, err := ns.File().Stat()
	if err != nil {
		return nil, err
	}
	clean := filepath.Clean(path)
	if m := processPath.FindStringSubmatch(clean); m != nil {
		return watchProcess(m, info, gone)
	}
	if !filepath.IsAbs(clean) || strings.HasPrefix(clean, "/proc/") { // which has no events
		return nil, fmt.Errorf("watch %s: neither a name of a namespace nor that of a process", path)
	}
	return w.watch(clean, info, os.Stat, gone)
}

// watchProcess waits for the end of a process or thread, of which m is the match of processPath.
func watchProcess(m []string, info os.FileInfo, gone func()) (stop func(), err error) {
	id, flags := m[1], unix.PIDFD_NONBLOCK
	if m[2] != "" && m[2] != m[1] {
		id, flags = m[2], flags|unix.PIDFD_THREAD // Linux 6.9
	}
	pid, err := strconv.Atoi(id)
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, flags)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", m[0], err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	// Looked at with the process in hand: its number is still its own.
	if now, err := os.Stat(m[0]); err != nil || !os.SameFile(now, info) {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", m[0], errOther), f.Close())
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	go func() {
		err := conn.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0 && err == nil
		})
		if err == nil { // else stop was called
			_ = f.Close()
			gone()
		}
	}()
	return func() { _ = f.Close() }, nil
}
