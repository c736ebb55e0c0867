// Command man writes the manual pages: those of mldctl from its commands, and the others from the texts in
// plugin/deploy/man. Nothing of it is linked into a program that is installed.
//
//	go run ./plugin/mldctl/man DIRECTORY
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra/doc"

	"github.com/seed-aaab8e3a/cni-mld/plugin/mldctl/command"
)

// texts is where the hand-written pages are, from the root of the repository.
const texts = "plugin/deploy/man"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: man DIRECTORY")
		os.Exit(2)
	}
	if err := write(".", os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}

// write writes all pages into dir, which it makes.
func write(root, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tool := command.New("")
	tool.DisableAutoGenTag = true // or every build would make another page
	header := &doc.GenManHeader{Section: "1", Source: "cni-mld", Manual: "cni-mld"}
	if err := doc.GenManTree(tool, header, dir); err != nil {
		return err
	}
	pages, err := filepath.Glob(filepath.Join(root, texts, "*.md"))
	if err != nil {
		return err
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(filepath.Base(page), ".md")
		if err := os.WriteFile(filepath.Join(dir, name), md2man.Render(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
