package keeper

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrRunning says that another daemon serves the run directory.
var ErrRunning = errors.New("another mldd serves this run directory")

// A Place is a run directory that has been taken: nobody else can serve it until the Place is closed, here and in every
// process that it was handed to.
type Place struct {
	Listener *net.UnixListener // of the socket
	lock     *os.File
	dir      string
	info     os.FileInfo // of dir
}

// Take takes a run directory, whose socket is to be at the given path in it, or to be passed, which is what a service
// manager has opened there. The error wraps [ErrRunning] if another daemon has it.
func Take(socket string, passed *net.UnixListener) (*Place, error) {
	p := &Place{Listener: passed, dir: filepath.Dir(socket)}
	if err := p.take(socket); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Place) take(socket string) (err error) {
	if p.Listener != nil && p.Listener.Addr().String() != socket {
		return fmt.Errorf("the service manager has passed the socket %s: must be %s", p.Listener.Addr(), socket)
	}
	if p.info, err = os.Lstat(p.dir); err != nil {
		return err
	}
	if p.lock, err = takeLock(filepath.Join(p.dir, "mldd.lock")); err != nil {
		return err
	}
	if p.Listener != nil {
		return nil
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a daemon that was killed
		return err
	}
	if p.Listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"}); err != nil {
		return err
	}
	return os.Chmod(socket, 0o600)
}

// Gone tells whether the directory has been removed or moved away.
func (p *Place) Gone() bool {
	info, err := os.Lstat(p.dir)
	return err != nil || !os.SameFile(info, p.info)
}

// Close gives the place up, and removes the socket unless it was passed. The lock comes last, because whoever gets it
// next removes the socket.
func (p *Place) Close() error {
	var errs []error
	if p.Listener != nil {
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
