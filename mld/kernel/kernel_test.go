package kernel_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// holderEnv makes the test binary a process that mutes the interface with this index and stays.
const holderEnv = "KERNEL_TEST_MUTE"

func TestMain(m *testing.M) {
	if index := os.Getenv(holderEnv); index != "" {
		hold(index)
	}
	netnslab.Main(m)
}

func hold(index string) {
	i, err := strconv.Atoi(index)
	if err != nil {
		panic(err)
	}
	ns, err := netns.Current()
	if err != nil {
		panic(err)
	}
	if _, err := kernel.NewMute(ns, i, sources); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("muted")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

const patience = 15 * time.Second

var group = netip.MustParseAddr("ff05::4321")

// pod makes a namespace with an interface, and a peer that sees what comes from it.
func pod(t testing.TB, options ...netnslab.LinkOption) *netnslab.Endpoint {
	lab := netnslab.New(t)
	_, e := lab.Veth(lab.Node("peer"), "eth0", lab.Node("pod"), "eth0", options...)
	return e
}

func run(t testing.TB, n *netnslab.Node, command string, args ...string) string {
	t.Helper()
	out, err := n.Command(t.Context(), command, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", command, args, err, out)
	}
	return string(out)
}

// igmp6 is the kernel's own list of an interface's memberships.
func igmp6(t testing.TB, n *netnslab.Node, index int) map[netip.Addr]bool {
	t.Helper()
	var b []byte
	err := n.Do(func() (err error) {
		b, err = os.ReadFile("/proc/thread-self/net/igmp6")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	list := make(map[netip.Addr]bool)
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Fields(s.Text())
		if f[0] != strconv.Itoa(index) {
			continue
		}
		addr, err := hex.DecodeString(f[2])
		if err != nil {
			t.Fatal(err)
		}
		list[netip.AddrFrom16([16]byte(addr))] = true
	}
	return list
}
