package netnslab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

const netlinkRoute = unix.NETLINK_ROUTE

// A Node is one network namespace of a lab: a container, or the host.
type Node struct {
	lab    *Lab
	name   string
	number int
	ns     *netns.Namespace
	links  *netlink.Handle // for one-shot requests; open sockets stay in the namespace they were made in

	endpoints []*Endpoint // under lab.mu
}

// Name is the node's name.
func (n *Node) Name() string { return n.name }

// String is the node's name.
func (n *Node) String() string { return n.name }

// Netns is the node's namespace. It belongs to the lab.
func (n *Node) Netns() *netns.Namespace { return n.ns }

// Path is a path under which this process and others of the same user can open the namespace while the lab
// lives, as a container runtime would give it in CNI_NETNS.
func (n *Node) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.ns.File().Fd())
}

// Do runs fn inside the namespace: on a thread that is there, see [netns.Namespace.Do]. Sockets that fn opens
// stay there; fn must be short. What ends fn early ends its caller: a panic, or the FailNow of a test.
//
// Package net remembers for a minute which index an interface's name stands for, whatever the namespace: the zone of an
// address had better be a number, such as "fe80::1%2" with [Endpoint.Index].
func (n *Node) Do(fn func() error) error {
	var (
		exited   bool
		panicked string
	)
	err := n.ns.Do(func() error {
		exited = true
		defer func() {
			if v := recover(); v != nil {
				panicked = fmt.Sprintf("%v, in node %s:\n%s", v, n, debug.Stack())
			}
		}()
		err := fn()
		exited = false
		return err
	})
	switch {
	case panicked != "":
		panic(panicked)
	case exited:
		runtime.Goexit()
	}
	return err
}

// Sysctl reads a setting of the namespace, such as "net/ipv6/conf/eth0/mldv2_unsolicited_report_interval".
func (n *Node) Sysctl(key string) string {
	n.lab.tb.Helper()
	var value []byte
	err := n.Do(func() error {
		var err error
		value, err = os.ReadFile("/proc/sys/" + key) // /proc/sys/net shows the namespace of the thread that opens it
		return err
	})
	if err != nil {
		n.lab.fatalf("node %s: sysctl %s: %v", n, key, err)
	}
	return strings.TrimSpace(string(value))
}

// SetSysctl changes a setting of the namespace.
func (n *Node) SetSysctl(key, value string) {
	n.lab.tb.Helper()
	if err := n.writeSysctl(key, value); err != nil {
		n.lab.fatalf("node %s: %v", n, err)
	}
}

func (n *Node) writeSysctl(key, value string) error {
	return n.Do(func() error {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", key, value, err)
		}
		return nil
	})
}

// A Cmd is an [exec.Cmd] whose process starts inside a node's namespace.
type Cmd struct {
	*exec.Cmd
	node *Node
}

// Command prepares a program to run inside the namespace. The process is killed when ctx is done and when this
// process dies; one that still runs when the test ends is an error.
func (n *Node) Command(ctx context.Context, name string, args ...string) *Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second // a grandchild that holds the output open is not waited for longer
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return &Cmd{Cmd: cmd, node: n}
}

// Start starts the process; Wait must follow.
func (c *Cmd) Start() error {
	// A process is born in the namespace of the thread that forks it.
	if err := c.node.Do(c.Cmd.Start); err != nil {
		return fmt.Errorf("node %s: %w", c.node, err)
	}
	l := c.node.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commands[c] = struct{}{}
	return nil
}

// Wait waits for the process to end, like [exec.Cmd.Wait].
func (c *Cmd) Wait() error {
	err := c.Cmd.Wait()
	l := c.node.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.commands, c)
	return err
}

// Run starts the process and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the process and returns its standard output. What it said on standard error becomes part of the
// error.
func (c *Cmd) Output() ([]byte, error) {
	var out, complaint bytes.Buffer
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &complaint
	}
	err := c.Run()
	if err != nil && complaint.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.Bytes(), err
}

// CombinedOutput runs the process and returns its standard output and standard error together.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// String says what runs where.
func (c *Cmd) String() string { return c.node.name + ": " + strings.Join(c.Args, " ") }
