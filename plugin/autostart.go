package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// startTimeout is how long a daemon that we start may take until it is ready.
const startTimeout = 10 * time.Second

// errStart is wrapped by the errors of a daemon that cannot be started.
var errStart = errors.New("mldd cannot be started")

// ensureRunning starts the daemon of a run directory unless one answers: of all callers that want this at a time,
// one holds the lock and starts it, and the others wait for the lock and find it at work. path is CNI_PATH.
func ensureRunning(ctx context.Context, runDir, path string) error {
	unlock, err := lock(ctx, runDir)
	if err != nil {
		return err
	}
	defer unlock()
	// A connection is no proof: those that come while a daemon ends are never answered.
	_, err = api.Exchange(ctx, runDir, &api.Request{Op: api.OpStatus})
	if !api.NotRunning(err) {
		return err
	}
	binary, err := findDaemon(path)
	if err != nil {
		return err
	}
	if err := start(ctx, binary, runDir); err != nil {
		return fmt.Errorf("%w: %w", errStart, err)
	}
	return nil
}

// lock takes the lock of the run directory, waiting until ctx ends. The returned function gives it back.
func lock(ctx context.Context, runDir string) (unlock func(), err error) {
	f, err := os.OpenFile(api.LockPath(runDir), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	// flock has no deadline, so it waits in a goroutine. When we give up first, that one stays behind with the file,
	// which costs nothing: the process is about to end.
	locked := make(chan error)
	go func() {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		select {
		case locked <- err:
		case <-ctx.Done():
			f.Close()
		}
	}()
	select {
	case err := <-locked:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("lock %s: another process holds it to start mldd: %w", f.Name(), ctx.Err())
	}
}

// findDaemon returns the path of mldd: beside this program, else in a directory of CNI_PATH.
func findDaemon(path string) (string, error) {
	var dirs []string
	if self, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Dir(self))
	}
	for _, dir := range filepath.SplitList(path) {
		if !slices.Contains(dirs, filepath.Clean(dir)) {
			dirs = append(dirs, filepath.Clean(dir))
		}
	}
	for _, dir := range dirs {
		binary := filepath.Join(dir, "mldd")
		info, err := os.Stat(binary)
		switch {
		case err != nil || !info.Mode().IsRegular():
		case info.Mode()&0o111 == 0:
			return "", fmt.Errorf("%w: %s is not executable: chmod +x", errStart, binary)
		default:
			return filepath.Abs(binary)
		}
	}
	return "", fmt.Errorf("%w: no program mldd in %s", errStart, strings.Join(dirs, ", "))
}

// try finds out whether the program can be started, and knows our arguments: it is to say its version.
func try(ctx context.Context, binary, runDir string) error {
	cmd := exec.CommandContext(ctx, binary)
	cmd.Args = append(arguments(binary, runDir), "--version")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what it may have started ends with it
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%w: %s --version: %w", errStart, binary, err)
	}
	return nil
}

func arguments(binary, runDir string) []string {
	return []string{binary, "--run-dir", runDir, "--self-started"}
}

// start runs mldd as a daemon and returns when it is ready. It keeps nothing of the caller's: no descriptor,
// terminal, session, working directory, environment or, where the kernel lets us choose, cgroup. A runtime waits
// until the last process has closed the plugin's standard output, and what lives in the first container's cgroup
// dies with that container.
//
// The daemon says on descriptor 3 how it went: "ready\n", or what went wrong.
func start(ctx context.Context, binary, runDir string) error {
	logFile, err := os.OpenFile(api.LogPath(runDir), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	defer logFile.Close()
	report, ready, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	if err := closeOnExec(); err != nil {
		ready.Close()
		return err
	}
	command := func(attr *syscall.SysProcAttr) *exec.Cmd {
		attr.Setsid = true
		return &exec.Cmd{
			Path: binary, Args: arguments(binary, runDir),
			Env: []string{"PATH=" + os.Getenv("PATH")}, Dir: "/",
			Stderr: logFile, ExtraFiles: []*os.File{ready}, // standard input and output are /dev/null
			SysProcAttr: attr,
		}
	}
	var cmd *exec.Cmd
	err = errors.ErrUnsupported
	if cgroup := rootCgroup(); cgroup != nil {
		cmd = command(&syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())})
		err = cmd.Start()
		cgroup.Close()
	}
	if err != nil { // no cgroup v2, no right to leave ours, or a kernel before 5.7
		cmd = command(&syscall.SysProcAttr{})
		err = cmd.Start()
	}
	ready.Close()
	if err != nil {
		return err // names the program
	}
	if err := waitReady(ctx, report); err != nil {
		// Its session, as far as it still lives; not waited for yet, so the number is still its own.
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Process.Release()
		return fmt.Errorf("%s: %w (its log is %s)", binary, err, logFile.Name())
	}
	return cmd.Process.Release()
}

// waitReady reads the daemon's report of its start.
func waitReady(ctx context.Context, report *os.File) error {
	deadline := time.Now().Add(startTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := report.SetReadDeadline(deadline); err != nil {
		return err
	}
	const word = "ready\n"
	buf := make([]byte, 4096)
	n, err := io.ReadAtLeast(report, buf, len(word))
	if string(buf[:n]) == word { // not until its end: a child of the daemon's may hold the descriptor longer
		return nil
	}
	for err == nil && n < len(buf) {
		var more int
		more, err = report.Read(buf[n:])
		n += more
	}
	text := string(bytes.TrimSpace(buf[:n]))
	switch {
	case text != "":
		return errors.New(strings.ToValidUTF8(text, "?"))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("not ready in time")
	default:
		return errors.New("it ended without a word")
	}
}

// closeOnExec marks every open descriptor, so that what a runtime has leaked into this process ends here.
func closeOnExec() error {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range fds {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// rootCgroup opens the root of the cgroup hierarchy of version 2, at its place or beside version 1. It returns nil if
// there is none.
func rootCgroup() *os.File {
	for _, path := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(path, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			if f, err := os.Open(path); err == nil {
				return f
			}
		}
	}
	return nil
}
