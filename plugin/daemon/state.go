package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// schema is the version of the state files. Nothing is guessed about a file of another one.
const schema = 1

// A record is what the state file of an attachment says: enough to find the interface again and to go on.
type record struct {
	Schema int    `json:"schema"`
	BootID string `json:"bootID"` // of the kernel that the cookie and the index are of
	api.Attachment
	Cookie    uint64        `json:"cookie"` // of the namespace
	Index     int           `json:"ifindex"`
	NetnsPath string        `json:"netns"` // where the namespace is to be found again
	Host      bool          `json:"host,omitempty"`
	Settings  *api.Settings `json:"settings"`
	Added     time.Time     `json:"added"`
	Degraded  string        `json:"degraded,omitempty"`
	Plug      *plug         `json:"plug,omitempty"` // absent: no port was found, or it was not looked for
}

func (r *record) id() interfaceID { return interfaceID{netns: r.Cookie, index: r.Index} }

// maxRecord bounds a state file, in bytes. Its settings came in one line of the API.
const maxRecord = 2 * api.MaxLine

// parseRecord decodes a state file strictly: a file that is not entirely what this program writes counts for nothing.
func parseRecord(data []byte) (*record, error) {
	var version struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return nil, err
	}
	if version.Schema != schema {
		return nil, fmt.Errorf("schema %d: this mldd knows %d", version.Schema, schema)
	}
	var r record
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the record")
	}
	switch {
	case r.BootID == "" || r.Cookie == 0 || r.Index <= 0 || r.Settings == nil:
		return nil, errors.New("bootID, cookie, ifindex or settings are missing")
	case len(r.NetnsPath) > api.MaxNetnsPath || strings.ContainsRune(r.NetnsPath, 0):
		return nil, errors.New("netns is not a path")
	}
	if err := r.Attachment.Validate(); err != nil {
		return nil, err
	}
	if err := r.Settings.Validate(); err != nil {
		return nil, err
	}
	return &r, nil
}

// disk is what a store needs of a file system. A test lets it end in the middle of everything.
type disk interface {
	write(path string, data []byte) error // a new file, or an old one emptied, of mode 0600; synced
	rename(from, to string) error
	remove(path string) error
	syncDir(path string) error
}

// A store keeps a file for each attachment, which is there, whole, or not at all, whenever the machine stops. Its
// methods are safe for concurrent use, but not those of one attachment.
type store struct {
	runDir string
	boot   string
	disk   disk
}

// openStore makes the directory of the state files.
func openStore(runDir string) (*store, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("boot ID: %w", err)
	}
	s := &store{runDir: runDir, boot: strings.TrimSpace(string(boot)), disk: osDisk{}}
	if err := os.Mkdir(s.dir(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("state: %w", err)
	}
	return s, nil
}

func (s *store) dir() string { return filepath.Dir(api.StatePath(s.runDir, api.Attachment{})) }

// stateSuffix is how the name of a state file ends, and tempSuffix what follows while it is written.
const (
	stateSuffix = ".json"
	tempSuffix  = ".tmp"
)

// put writes the file of an attachment, in place of an older one. When it returns, the file survives whatever may come.
func (s *store) put(r record) error {
	r.Schema, r.BootID = schema, s.boot
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := api.StatePath(s.runDir, r.Attachment)
	temp := path + tempSuffix
	err = s.disk.write(temp, append(data, '\n'))
	if err == nil {
		err = s.disk.rename(temp, path)
	}
	if err == nil {
		err = s.disk.syncDir(s.dir())
	}
	if err != nil {
		return fmt.Errorf("state: %w", errors.Join(err, s.disk.remove(temp)))
	}
	return nil
}

// has tells whether there is a file of an attachment, or may be one.
func (s *store) has(key api.Attachment) bool {
	_, err := os.Lstat(api.StatePath(s.runDir, key))
	return !errors.Is(err, fs.ErrNotExist)
}

// remove removes the file of an attachment, if there is one.
func (s *store) remove(key api.Attachment) error {
	if !s.has(key) {
		return nil
	}
	err := s.disk.remove(api.StatePath(s.runDir, key))
	if err == nil {
		err = s.disk.syncDir(s.dir())
	}
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// load returns the records of this boot. Files of another one, and what was being written when a daemon died, are
// removed; what is none of ours stays where it is, and is told.
func (s *store) load(log *slog.Logger) ([]*record, error) {
	entries, err := os.ReadDir(s.dir())
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	var list []*record
	for _, e := range entries {
		path := filepath.Join(s.dir(), e.Name())
		r, err := s.read(path)
		remove := strings.HasSuffix(e.Name(), stateSuffix+tempSuffix)
		switch {
		case remove:
		case err != nil:
			log.Warn("state file ignored", "path", path, "err", err)
		case r.BootID != s.boot:
			log.Info("state file removed: its attachment ended with the boot that it was of", "path", path)
			remove = true
		default:
			list = append(list, r)
		}
		if remove {
			if err := s.disk.remove(path); err != nil {
				log.Warn("state file not removed", "path", path, "err", err)
			}
		}
	}
	return list, nil
}

// read reads a state file.
func (s *store) read(path string) (*record, error) {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("not a regular file")
	case info.Size() > maxRecord:
		return nil, fmt.Errorf("%d bytes: at most %d are allowed", info.Size(), maxRecord)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r, err := parseRecord(data)
	if err == nil && api.StatePath(s.runDir, r.Attachment) != path {
		err = fmt.Errorf("the file of attachment %v has another name", r.Attachment)
	}
	return r, err
}

// osDisk is the disk of the operating system.
type osDisk struct{}

func (osDisk) write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (osDisk) rename(from, to string) error { return os.Rename(from, to) }

func (osDisk) remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (osDisk) syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
