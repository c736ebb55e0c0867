package netnslab

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Dir is a directory for what a test wants to leave behind if it fails, such as a log. It is removed if the test
// passes.
func (l *Lab) Dir() string {
	l.tb.Helper()
	dir, err := l.artifacts()
	if err != nil {
		l.tb.Fatalf("netnslab: %v", err)
	}
	return dir
}

// artifacts is the directory for captures and evidence. It is made when first asked for.
func (l *Lab) artifacts() (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dir != "" {
		return l.dir, nil
	}
	parent := ""
	// Without the flag -artifacts the directory that testing offers is removed even if the test fails.
	if keeper, ok := l.tb.(interface{ ArtifactDir() string }); ok {
		if f := flag.Lookup("test.artifacts"); f != nil && f.Value.String() == "true" {
			parent = keeper.ArtifactDir()
		}
	}
	name := strings.Map(func(r rune) rune {
		if r == '/' || r == '*' || r == os.PathSeparator {
			return '-'
		}
		return r
	}, l.tb.Name())
	const longest = 200 // of the 255 octets of a file's name
	var err error
	l.dir, err = os.MkdirTemp(parent, "netnslab-"+name[:min(len(name), longest)]+"-")
	return l.dir, err
}

// saveEvidence writes down the state of every node, once, and tells where.
func (l *Lab) saveEvidence() {
	l.tb.Helper()
	l.mu.Lock()
	saved := l.saved
	l.saved = true
	l.mu.Unlock()
	if saved {
		return
	}
	dir, err := l.artifacts()
	if err != nil {
		l.tb.Logf("netnslab: no evidence: %v", err)
		return
	}
	l.tb.Logf("netnslab: the evidence is in %s", dir)
	if n := droppedFrames() - l.dropped; n > 0 {
		l.tb.Logf("netnslab: this machine has dropped %d frames meanwhile, in whichever namespace: more came at a time than "+
			"sysctl net.core.netdev_max_backlog", n)
	}
	for _, c := range l.captures {
		if c.pcap != nil {
			_ = c.flush()
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, n := range l.nodes {
		n.save(ctx, dir, "link.json", "ip", "-d", "-j", "-p", "link")
		n.save(ctx, dir, "addr.json", "ip", "-d", "-j", "-p", "addr")
		n.save(ctx, dir, "maddr.json", "ip", "-d", "-j", "-p", "maddr")
	}
	l.Host().save(ctx, dir, "mdb.json", "bridge", "-j", "-p", "-d", "-s", "mdb")
	l.Host().save(ctx, dir, "ports.json", "bridge", "-j", "-p", "-d", "link")
}

// save writes the output of a command into a file of the directory.
func (n *Node) save(ctx context.Context, dir, file, name string, args ...string) {
	n.lab.tb.Helper()
	out, err := n.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		n.lab.tb.Logf("netnslab: node %s: %s %v: %v: %s", n, name, args, err, out)
		return
	}
	if err := os.WriteFile(filepath.Join(dir, n.name+"-"+file), out, 0o644); err != nil {
		n.lab.tb.Logf("netnslab: %v", err)
	}
}

// removeEvidence leaves nothing behind of a test that went well.
func (l *Lab) removeEvidence() {
	if l.dir == "" {
		return
	}
	if err := os.RemoveAll(l.dir); err != nil {
		l.tb.Errorf("netnslab: %v", err)
	}
}
