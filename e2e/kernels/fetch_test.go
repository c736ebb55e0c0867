//go:build kernels

package kernels

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// cache is where kernels stay, from this folder; `make clean` removes it.
const cache = "../../bin/kernels"

// meta is Debian's package that depends on the newest kernel of a suite.
const meta = "linux-image-cloud-amd64"

// wanted are the modules that the tests need; what a kernel does not have as a module is built in.
var wanted = []string{
	"veth", "bridge", "macvlan", "dummy", "tun", "nf_tables", "nft_log", "nft_objref", "nft_counter", "nfnetlink_log",
}

// fetch returns the directory of the kernel: its image, vmlinuz, and the modules, under names that sort in the order
// in which they are to be loaded.
func (k kernel) fetch(ctx context.Context, temp string) (string, error) {
	dir := filepath.Join(cache, k.suite)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	deb, err := k.download(ctx, temp)
	if err != nil {
		return "", err
	}
	image, all, err := unpack(ctx, deb)
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(deb), err)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	fresh, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	if err := os.WriteFile(filepath.Join(fresh, "vmlinuz"), image, 0o644); err != nil {
		return "", err
	}
	s := modules{ctx: ctx, packed: all}
	for _, name := range wanted {
		if err := s.add(name); err != nil {
			return "", fmt.Errorf("module %s: %w", name, err)
		}
	}
	if err := os.Mkdir(filepath.Join(fresh, "modules"), 0o755); err != nil {
		return "", err
	}
	for i, m := range s.sorted {
		if err := os.WriteFile(filepath.Join(fresh, "modules", fmt.Sprintf("%02d-%s", i, m.name)), m.object, 0o644); err != nil {
			return "", err
		}
	}
	return dir, os.Rename(fresh, dir)
}

// download gets the newest kernel of the suite by an apt of its own, which knows that suite alone and nothing of what
// is installed. It checks the signatures and takes the archives, and the way to them, from the machine's apt.
func (k kernel) download(ctx context.Context, temp string) (deb string, err error) {
	for _, dir := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(temp, dir), 0o755); err != nil {
			return "", err
		}
	}
	var sources strings.Builder
	for label, suite := range map[string]string{"Debian": k.suite, "Debian-Security": k.suite + "-security"} {
		uris, err := output(ctx, temp, "apt-get", "indextargets", "--format", "$(REPO_URI)",
			"Created-By: Packages", "Component: main", "Origin: Debian", "Label: "+label)
		if err != nil {
			return "", err
		}
		uri, _, _ := strings.Cut(uris, "\n")
		if uri == "" {
			return "", fmt.Errorf("apt knows no archive of %s: it takes a Debian, and apt-get update", label)
		}
		fmt.Fprintf(&sources, "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", uri, suite)
	}
	for file, content := range map[string]string{"sources.list": sources.String(), "status": ""} {
		if err := os.WriteFile(filepath.Join(temp, file), []byte(content), 0o644); err != nil {
			return "", err
		}
	}
	apt := func(program string, args ...string) (string, error) {
		options := []string{
			"-o", "Dir::Etc::sourcelist=" + filepath.Join(temp, "sources.list"), "-o", "Dir::Etc::sourceparts=-",
			"-o", "Dir::State::lists=" + filepath.Join(temp, "lists"), "-o", "Dir::State::status=" + filepath.Join(temp, "status"),
			"-o", "Dir::Cache=" + filepath.Join(temp, "cache"), "-o", "APT::Sandbox::User=", "-q",
		}
		return output(ctx, temp, program, append(options, args...)...)
	}
	if _, err := apt("apt-get", "update"); err != nil {
		return "", err
	}
	depends, err := apt("apt-cache", "depends", "--important", meta)
	if err != nil {
		return "", err
	}
	_, name, found := strings.Cut(depends, "Depends: ")
	if !found {
		return "", fmt.Errorf("%s: package %s depends on no kernel: %q", k.suite, meta, depends)
	}
	if _, err := apt("apt-get", "download", strings.TrimSpace(name)); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(temp, "*.deb"))
	if err != nil {
		return "", err
	}
	if len(debs) != 1 {
		return "", fmt.Errorf("%s: package %s: %d files instead of one", k.suite, strings.TrimSpace(name), len(debs))
	}
	return debs[0], nil
}

// output runs a program and returns what it prints.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", cmd, err, &stderr)
	}
	return string(out), nil
}

// unpack reads a package: the kernel's image, and its modules by name.
func unpack(ctx context.Context, deb string) (image []byte, packed map[string][]byte, err error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, cmd.Wait()) }()
	packed = map[string][]byte{}
	for r := tar.NewReader(pipe); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return image, packed, nil
		}
		if err != nil {
			return nil, nil, err
		}
		base := path.Base(h.Name)
		name, suffix, _ := strings.Cut(base, ".ko")
		switch {
		case strings.HasPrefix(base, "vmlinuz-"):
			image, err = io.ReadAll(r)
		case base != name && (suffix == "" || suffix == ".xz"):
			packed[moduleName(name)+suffix], err = io.ReadAll(r)
		}
		if err != nil {
			return nil, nil, err
		}
	}
}

// moduleName is the one of the two ways to write a module's name that lsmod has.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// modules sorts modules by what they depend on.
type modules struct {
	ctx    context.Context
	packed map[string][]byte
	sorted []module
}

type module struct {
	name   string
	object []byte
}

// add adds a module behind what it depends on, unless it is built in.
func (s *modules) add(name string) error {
	if slices.ContainsFunc(s.sorted, func(m module) bool { return m.name == name }) {
		return nil
	}
	object, ok := s.packed[name]
	if !ok {
		compressed, ok := s.packed[name+".xz"]
		if !ok {
			return nil
		}
		cmd := exec.CommandContext(s.ctx, "xz", "-dc")
		cmd.Stdin = bytes.NewReader(compressed)
		var err error
		if object, err = cmd.Output(); err != nil {
			return err
		}
	}
	needs, err := depends(object)
	if err != nil {
		return err
	}
	for _, other := range needs {
		if err := s.add(other); err != nil {
			return err
		}
	}
	s.sorted = append(s.sorted, module{name, object})
	return nil
}

// depends returns the modules that must be loaded before.
func depends(object []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(moduleName(list), ","), nil
		}
	}
	return nil, nil
}
