//go:build kernels

package kernels

import (
	"bufio"
	"fmt"
	"io"
	"os"
)

// initramfs writes a file system for the kernel to unpack: a cpio archive of the kind "newc".
type initramfs struct {
	w     *bufio.Writer
	inode int
}

func newInitramfs(w io.Writer) *initramfs { return &initramfs{w: bufio.NewWriter(w)} }

const (
	typeDir  = 0o040000
	typeFile = 0o100000
)

// dir adds a directory, which must come before what is in it.
func (a *initramfs) dir(name string) error { return a.entry(name, typeDir|0o755, nil) }

// file adds a file.
func (a *initramfs) file(name string, content []byte) error {
	return a.entry(name, typeFile|0o755, content)
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
	a.inode++
	const headerLen = 110
	_, err := fmt.Fprintf(a.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00%s", a.inode, mode,
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
