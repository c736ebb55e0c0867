package daemon

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// dirWatch tells when a directory is removed or moved away. It watches the parent: the directory itself has no event
// of its removal (IN_DELETE_SELF) as long as a file is open that was in it, such as our lock.
type dirWatch struct {
	*os.File // inotify
	dir      string
	info     os.FileInfo
}

func watchDir(dir string) (*dirWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	w := &dirWatch{File: os.NewFile(uintptr(fd), "inotify"), dir: dir}
	_, err = unix.InotifyAddWatch(fd, filepath.Dir(filepath.Clean(dir)), unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_ONLYDIR)
	if err == nil {
		w.info, err = os.Lstat(dir)
	}
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	return w, nil
}

// wait returns when the directory has been removed or moved away, or with an error after Close.
func (w *dirWatch) wait() error {
	buf := make([]byte, 16*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		if _, err := w.Read(buf); err != nil {
			return err
		}
		if info, err := os.Lstat(w.dir); err != nil || !os.SameFile(info, w.info) {
			return nil
		}
	}
}
