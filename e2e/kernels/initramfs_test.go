//go:build kernels

package kernels

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
)

// initramfs writes a file system for the kernel to unpack: a cpio archive of the kind "newc".
type initramfs struct {
	w    *bufio.Writer
	have map[string]bool // the names in it, each of which counts as an inode
}

func newInitramfs(w io.Writer) *initramfs {
	return &initramfs{bufio.NewWriter(w), map[string]bool{".": true}}
}

const (
	typeDir  = 0o040000
	typeFile = 0o100000
)

// file adds a file, and the directories that it is in.
func (a *initramfs) file(name string, content []byte) error {
	if err := a.dir(path.Dir(name)); err != nil {
		return err
	}
	return a.entry(name, typeFile|0o755, content)
}

func (a *initramfs) dir(name string) error {
	if a.have[name] {
		return nil
	}
	if err := a.dir(path.Dir(name)); err != nil {
		return err
	}
	return a.entry(name, typeDir|0o755, nil)
}

// copy adds a file of the host's.
func (a *initramfs) copy(name, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return a.file(name, content)
}

func (a *initramfs) entry(name string, mode int, content []byte) error {
	a.have[name] = true
	const headerLen = 110
	_, err := fmt.Fprintf(a.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00%s", len(a.have), mode,
		0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name, padding(headerLen+len(name)+1))
	if err != nil {
		return err
	}
	if _, err := a.w.Write(content); err != nil {
		return err
	}
	_, err = a.w.WriteString(padding(len(content)))
	return err
}

func padding(n int) string { return "\x00\x00\x00"[:(4-n%4)%4] }

func (a *initramfs) close() error {
	if err := a.entry("TRAILER!!!", 0, nil); err != nil {
		return err
	}
	return a.w.Flush()
}

// program adds a program of the host's to bin, and the libraries that it is linked with.
func (a *initramfs) program(name string) error {
	file, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	if err := a.copy("bin/"+name, file); err != nil {
		return err
	}
	libraries, err := exec.Command("ldd", file).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", file, err)
	}
	for field := range strings.FieldsSeq(string(libraries)) {
		if name := strings.TrimPrefix(field, "/"); name != field && !a.have[name] {
			if err := a.copy(name, field); err != nil {
				return err
			}
		}
	}
	return nil
}
