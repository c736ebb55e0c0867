//go:build kernels

package guest

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// canMute tells whether the kernel can be muted, and if not, why.
func canMute(tb testing.TB, e *netnslab.Endpoint) error {
	tb.Helper()
	mute, err := kernel.NewMute(e.Node().Netns(), e.Index(), kernel.MuteOptions{Sources: true})
	switch {
	case err == nil:
		if err := mute.Close(); err != nil {
			tb.Error(err)
		}
	case !errors.Is(err, kernel.ErrCannotMute):
		tb.Fatal(err)
	}
	return err
}

// The host knows what each kernel has, and this says what is found.
func TestFacts(t *testing.T) {
	lab := netnslab.New(t)
	e := lab.Bridge("br0", netnslab.BridgeOptions{Querier: 1}).Connect(lab.Node("alice"), "eth0")
	say := func(name string, value string) { fmt.Printf("fact %s %s\n", name, value) }

	mutes := canMute(t, e)
	say("reports", map[bool]string{true: "mute", false: "keep"}[mutes == nil])
	switch {
	case kernel.HasEvents(e.Node().Netns()):
		say("changes", "events")
	case mutes == nil:
		say("changes", "hints")
	default:
		say("changes", "polling")
	}

	err := e.Node().Do(func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	switch {
	case err == nil:
		say("cookie", "kernel")
	case errors.Is(err, unix.ENOPROTOOPT):
		say("cookie", "inode")
	default:
		t.Error(err)
	}
}
