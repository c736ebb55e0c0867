package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// TestLogBound: the log of a self-started daemon does not grow without a bound, from one daemon to the next nor while one
// runs, and both processes write to the one that is.
func TestLogBound(t *testing.T) {
	var path string
	fill := func() {
		t.Helper()
		if err := os.Truncate(path, maxLog); err != nil {
			t.Fatal(err)
		}
	}
	p := startBy(t, func(host *netnslab.Node, dir string) *netnslab.Cmd {
		path = api.LogPath(dir)
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		fill() // by the daemons before
		cmd := command(t, host, "-run-dir", dir, "-self-started")
		cmd.Stderr = file
		return cmd
	})
	// wantRenewed wants a log that says something, and the one before, which was full.
	wantRenewed := func(says string) {
		t.Helper()
		netnslab.WaitFor(t, "a log that says "+says, patience, func() (bool, string) {
			text, err := os.ReadFile(path)
			return err == nil && len(text) < maxLog && strings.Contains(string(text), says), fmt.Sprintf("%d bytes, %v", len(text), err)
		})
		former, err := os.Stat(path + formerSuffix)
		if err != nil || former.Size() < maxLog || former.Size() > maxLog+1000 || former.Mode().Perm() != 0o600 {
			t.Errorf("the former log: %v, %v", former, err)
		}
		logs, err := filepath.Glob(path + "*")
		if err != nil || len(logs) != 2 {
			t.Errorf("%q, %v, want two logs", logs, err)
		}
	}
	wantRenewed("msg=serving")
	fill()
	p.call(&api.Request{Op: api.OpDel, Attachment: api.Attachment{Network: "lab", ContainerID: "c1", IfName: "eth0"}})
	wantRenewed("op=del")
	fill()
	if err := unix.Kill(p.status().PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wantRenewed("msg=serving")
	if text, err := os.ReadFile(path + formerSuffix); err != nil || !strings.Contains(string(text), `msg="worker ended`) {
		t.Errorf("the keeper has written elsewhere: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := p.end(unix.SIGTERM); err != nil { // which it logs
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, and who removes the run directory finds a log there again", err)
	}
}
