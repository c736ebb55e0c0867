package netnslab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// TB is the part of [testing.TB] that a lab uses. A program that is not a test can bring its own.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Failed() bool
	Cleanup(func())
}

// A Lab is a small network of namespaces around one that stands for the host. It is torn down when the test
// ends. Its methods fail the test when something cannot be done, so they return no errors, and like Fatalf
// they belong on the goroutine of the test.
type Lab struct {
	tb TB

	mu       sync.Mutex
	nodes    []*Node  // the first is the host
	closers  []func() // run at the end, all at once
	captures []*Capture
	commands map[*Cmd]struct{}
	dir      string
	saved    bool   // saveEvidence was called
	dropped  uint32 // droppedFrames at the beginning
}

// New makes a lab with nothing in it but the host.
func New(tb TB) *Lab {
	tb.Helper()
	if unavailable != nil {
		Skip(tb, unavailable.Error())
	}
	l := &Lab{tb: tb, commands: map[*Cmd]struct{}{}, dropped: droppedFrames()}
	tb.Cleanup(l.close)
	l.Node("host")
	return l
}

// Host is the node that stands for the host: bridges and their ports live here.
func (l *Lab) Host() *Node { return l.nodes[0] }

// Node makes a namespace with the loopback up and nothing else in it. The name appears in captures, in evidence
// and in the names of bridge ports, so it has no slash; no two nodes share one.
func (l *Lab) Node(name string) *Node {
	l.tb.Helper()
	if name == "" || strings.Contains(name, "/") {
		l.tb.Fatalf("netnslab: node %q: the name becomes part of file names: it is not empty and has no slash", name)
	}
	l.mu.Lock()
	number := len(l.nodes)
	for _, n := range l.nodes {
		if n.name == name {
			l.mu.Unlock()
			l.tb.Fatalf("netnslab: node %s exists already", name)
		}
	}
	l.mu.Unlock()

	n := &Node{lab: l, name: name, number: number}
	var err error
	if n.ns, err = newNamespace(name); err != nil {
		if errors.Is(err, os.ErrPermission) {
			Skip(l.tb, fmt.Sprintf("node %s: %v", name, err))
		}
		l.tb.Fatalf("netnslab: node %s: %v", name, err)
	}
	l.mu.Lock()
	l.nodes = append(l.nodes, n)
	l.mu.Unlock()
	if err := n.setUp(); err != nil {
		l.tb.Fatalf("netnslab: node %s: %v", name, err)
	}
	return n
}

// newNamespace makes a network namespace on a thread that is locked meanwhile.
func newNamespace(name string) (*netns.Namespace, error) {
	type result struct {
		ns  *netns.Namespace
		err error
	}
	done := make(chan result)
	go func() {
		// Unlocked only when it is home again, else the thread ends with this goroutine. It should not end without
		// need: a command that it has started would be killed, see Node.Command.
		runtime.LockOSThread()
		ns, err := func() (*netns.Namespace, error) {
			home, err := vnetns.Get()
			if err != nil {
				return nil, err
			}
			defer home.Close()
			handle, err := vnetns.New()
			if err != nil {
				return nil, fmt.Errorf("new network namespace: %w", err)
			}
			file := os.NewFile(uintptr(handle), name)
			if err := vnetns.Set(home); err != nil {
				return nil, errors.Join(fmt.Errorf("leave the new network namespace: %w", err), file.Close())
			}
			runtime.UnlockOSThread()
			return netns.FromFile(file)
		}()
		done <- result{ns, err}
	}()
	r := <-done
	return r.ns, r.err
}

// setUp gives a new namespace its loopback and settings under which a capture holds no surprise.
func (n *Node) setUp() error {
	err := n.Do(func() error {
		var err error
		n.links, err = netlink.NewHandle(netlinkRoute)
		return err
	})
	if err != nil {
		return err
	}
	if err := setLoopbackUp(n.links); err != nil {
		return err
	}
	for _, s := range []struct{ key, value string }{
		{"net/ipv6/conf/all/disable_ipv6", "0"}, // a machine may hand its own settings down
		{"net/ipv6/conf/default/disable_ipv6", "0"},
		{"net/ipv6/conf/all/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/addr_gen_mode", "0"}, // the link-local address follows from the MAC address
		{"net/ipv6/conf/default/router_solicitations", "0"},
	} {
		if err := n.writeSysctl(s.key, s.value); err != nil {
			return fmt.Errorf("is IPv6 switched off on this machine? %w", err)
		}
	}
	return nil
}

func setLoopbackUp(links *netlink.Handle) error {
	lo, err := links.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := links.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// atEnd runs fn when the lab is torn down.
func (l *Lab) atEnd(fn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, fn)
}

// fatalf fails the test while what went wrong can still be seen.
func (l *Lab) fatalf(format string, args ...any) {
	l.tb.Helper()
	l.saveEvidence()
	l.tb.Fatalf("netnslab: "+format, args...)
}

func (l *Lab) close() {
	l.tb.Helper()
	for cmd := range l.commands {
		l.tb.Errorf("netnslab: %s was started and not waited for", cmd)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	if l.tb.Failed() {
		l.saveEvidence()
	}
	// All at once: closing a packet socket takes up to 14 ms, but many together take no longer.
	var closing sync.WaitGroup
	for _, fn := range l.closers {
		closing.Go(fn)
	}
	for _, c := range l.captures {
		closing.Go(c.Close)
	}
	closing.Wait()
	for _, n := range l.nodes {
		if n.links != nil {
			n.links.Close()
		}
		if err := n.ns.Close(); err != nil {
			l.tb.Errorf("netnslab: node %s: %v", n.name, err)
		}
	}
	if !l.tb.Failed() {
		l.removeEvidence()
	}
}
