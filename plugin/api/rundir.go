package api

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// DefaultRunDir is the run directory unless configured otherwise.
const DefaultRunDir = "/run/mld"

// MaxSocketPath bounds SocketPath, in bytes: what fits into a sockaddr_un with the final zero.
const MaxSocketPath = 107

// SocketPath returns the path of the daemon's socket.
func SocketPath(runDir string) string { return filepath.Join(runDir, "mldd.sock") }

// LockPath returns the path of the file that is locked (flock) by whoever starts the daemon or acts in its absence.
func LockPath(runDir string) string { return filepath.Join(runDir, "start.lock") }

// LogPath returns the path of the log of a daemon that the plugin has started. At 1 MiB it becomes the former log, whose
// name has ".1" added.
func LogPath(runDir string) string { return filepath.Join(runDir, "mldd.log") }

// StatePath returns the path of the file that remembers an attachment while it stands. The attachment must be
// valid. The first two parts have no '@', so no two attachments share a file.
func StatePath(runDir string, a Attachment) string {
	return filepath.Join(runDir, "attachments", a.Network+"@"+a.ContainerID+"@"+a.IfName+".json")
}

// Remembered returns the attachments of a network that have a file at StatePath, whatever is in it.
func Remembered(runDir, network string) ([]Attachment, error) {
	entries, err := os.ReadDir(filepath.Dir(StatePath(runDir, Attachment{})))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("state files: %w", err)
	}
	var list []Attachment
	for _, e := range entries {
		name, isState := strings.CutSuffix(e.Name(), ".json")
		parts := strings.SplitN(name, "@", 3) // an interface's name may have more of them
		if !isState || len(parts) != 3 || parts[0] != network {
			continue
		}
		a := Attachment{Network: network, ContainerID: parts[1], IfName: parts[2]}
		if a.Validate() == nil {
			list = append(list, a)
		}
	}
	return list, nil
}

// ErrRunDir is wrapped by the errors of a run directory that is not to be trusted, or cannot be made.
var ErrRunDir = errors.New("run directory")

const asRoot = "run as root, or with --run-dir or runDir of your own"

// CheckRunDir makes sure that a run directory can be trusted: that it is a directory, no symbolic link, belongs to
// the caller and is writable by nobody else. A directory that lies directly in /run is created with mode 0700 if it
// does not exist. Any other must exist, since only its administrator knows who may write to its parents. An error
// wraps ErrRunDir.
func CheckRunDir(dir string) error {
	err := verifyRunDir(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if filepath.Dir(filepath.Clean(dir)) != "/run" {
		return fmt.Errorf("%w %s: does not exist: create it with mode 0700 and owner %d", ErrRunDir, dir, os.Geteuid())
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w: %s", err, asRoot)
		}
		return fmt.Errorf("%w: %w", ErrRunDir, err)
	}
	return verifyRunDir(dir)
}

func verifyRunDir(dir string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w %s: %s", ErrRunDir, Cut(dir), fmt.Sprintf(format, args...))
	}
	if !filepath.IsAbs(dir) {
		return bad("must be an absolute path")
	}
	if n := len(SocketPath(dir)); n > MaxSocketPath {
		return bad("makes a socket path of %d bytes: at most %d are allowed", n, MaxSocketPath)
	}
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("run directory: %w", err)
	}
	if err != nil {
		return bad("%v", err)
	}
	if !info.IsDir() {
		return bad("is not a directory")
	}
	switch uid, own := int(info.Sys().(*syscall.Stat_t).Uid), os.Geteuid(); {
	case uid != own && own != 0:
		return bad("belongs to user %d, and this is user %d: %s", uid, own, asRoot)
	case uid != own:
		return bad("belongs to user %d: must belong to user %d", uid, own)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return bad("mode %#o lets others write: must be a directory of its own, with mode 0700", mode)
	}
	return nil
}
