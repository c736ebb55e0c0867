package keeper

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunning says that another daemon serves the run directory.
var ErrRunning = errors.New("another mldd serves this run directory")

// A Place is a run directory that has been taken: nobody else can serve it until the Place is closed, here and in every
// process that it was handed to.
type Place struct {
	Listener *net.UnixListener // of the socket
	lock     *os.File
	socket   string                 // its path
	infos    map[string]os.FileInfo // of the socket and of its directory
}

// Take takes a run directory, whose socket is to be at the given path in it, or to be passed, which is what a service
// manager has opened there. The error wraps [ErrRunning] if another daemon has it.
func Take(socket string, passed *net.UnixListener) (*Place, error) {
	p := &Place{Listener: passed, socket: socket}
	if err := p.take(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// lastMoments is how long a daemon is waited for that nobody finds any more: it has closed its socket, or the service
// manager's has taken its place. It is about to end, and who has waited there for it starts the next one at once.
const lastMoments = 5 * time.Second

// listens tells whether somebody serves a socket.
func listens(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED)
	}
	_ = conn.Close()
	return true
}

func (p *Place) take() (err error) {
	if p.Listener != nil && p.Listener.Addr().String() != p.socket {
		return fmt.Errorf("the service manager has passed the socket %s: must be %s", p.Listener.Addr(), p.socket)
	}
	dir := filepath.Dir(p.socket)
	for end := time.Now().Add(lastMoments); ; <-time.After(lastMoments / 500) {
		p.lock, err = takeLock(filepath.Join(dir, "mldd.lock"))
		if err == nil {
			break
		}
		if !errors.Is(err, ErrRunning) || p.Listener == nil && listens(p.socket) || time.Now().After(end) {
			return err
		}
	}
	if p.Listener == nil {
		if err := p.listen(); err != nil {
			return err
		}
	}
	p.infos = make(map[string]os.FileInfo)
	for _, path := range []string{dir, p.socket} {
		if p.infos[path], err = os.Lstat(path); err != nil {
			return err
		}
	}
	return nil
}

func (p *Place) listen() (err error) {
	if err := os.Remove(p.socket); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a daemon that was killed
		return err
	}
	if p.Listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: p.socket, Net: "unix"}); err != nil {
		return err
	}
	return os.Chmod(p.socket, 0o600)
}

// Gone tells whether the directory or the socket has been removed or moved away, or another has taken its place.
func (p *Place) Gone() bool {
	for path, info := range p.infos {
		if now, err := os.Lstat(path); err != nil || !os.SameFile(now, info) {
			return true
		}
	}
	return false
}

// Close gives the place up, and removes the socket unless it was passed, or is another's by now. The lock comes last,
// because whoever gets it next removes the socket.
func (p *Place) Close() error {
	var errs []error
	if p.Listener != nil {
		if p.Gone() {
			p.Listener.SetUnlinkOnClose(false)
		}
		errs = append(errs, p.Listener.Close())
	}
	if p.lock != nil {
		errs = append(errs, p.lock.Close())
	}
	return errors.Join(errs...)
}

// takeLock locks path for as long as the file is open, in whatever process.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrRunning
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return f, nil
}
