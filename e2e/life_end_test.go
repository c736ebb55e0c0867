package e2e

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// The interface is deleted, or goes to another namespace, and another one has its name: the attachment is of the one that
// has gone, and CHECK says so. ADD again makes it the new one's, and nothing is kept of the old one.
func TestLifeAnotherInterface(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		end  func(l *life) (elsewhere *container)
	}{
		{"deleted", func(l *life) *container { l.alice.eth0.Delete(); return nil }},
		{"moved to another namespace", func(l *life) *container {
			node := l.Node("elsewhere")
			runIn(l.tb, l.alice.Node, "ip", "link", "set", "dev", "eth0", "netns", node.Path())
			runIn(l.tb, node, "ip", "link", "set", "dev", "eth0", "up")
			return newContainer(l.tb, node, node.Interface("eth0"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			inEachVoice(t, func(t *testing.T, l *life) {
				first := l.alice
				elsewhere := c.end(l)
				l.waitReleased(first)
				l.check("without an interface", types.ErrInvalidEnvironmentVariables, "CNI_IFNAME", "eth0", "not found")

				second := newContainer(t, first.Node, l.bridge.Connect(first.Node, "eth0"))
				second.eth0.LinkLocal()
				l.check("another interface", api.CodeNotReady, "eth0 is not the one that was attached")
				l.alice, l.macs, l.members = second, []string{second.eth0.HardwareAddr().String()}, nil
				begin := time.Now()
				if code, text := l.call("ADD", second, nil); code != 0 {
					t.Fatalf("ADD again: code %d (%s)", code, text)
				}
				l.application = second.eth0.Receive(port + 1)
				took := l.waitTold("what is declared", begin, []netip.Addr{groupA, groupD, groupS})
				l.check("after ADD again", 0)
				if _, muted := second.muted(); !muted {
					t.Error("the kernel is not muted")
				}
				if n := l.daemon().Attachments; n != 1 {
					t.Errorf("the daemon has %d attachments, want 1", n)
				}
				t.Logf("everything told %v after ADD began", took.Round(time.Millisecond))
				if elsewhere == nil {
					return
				}
				if _, muted := elsewhere.muted(); muted {
					t.Error("a table has moved with the interface")
				}
				if code, text := l.call("ADD", elsewhere, nil); code != 0 {
					t.Errorf("ADD elsewhere: code %d (%s)", code, text)
				}
				if code, text := l.call("CHECK", elsewhere, nil); code != 0 {
					t.Errorf("CHECK elsewhere: code %d (%s)", code, text)
				}
				if code, text := l.call("DEL", elsewhere, nil); code != 0 {
					t.Errorf("DEL elsewhere: code %d (%s)", code, text)
				}
			})
		})
	}
}

// ADD again with other settings of the listener starts another one. The kernel, which has something to say all the time,
// is heard at no moment, and nothing of what stays is left.
func TestLifeOfSettings(t *testing.T) {
	t.Parallel()
	l := newLife(t, "MLDv2")
	keys := func(version any) map[string]any {
		return map[string]any{
			"groups": []any{
				groupA, map[string]any{"group": groupD, "deliver": false}, fmt.Sprintf("%v@%v", goodAddr, groupS),
			},
			"mldVersion": version, "robustness": robustness, "unsolicitedReportInterval": uri.String(),
		}
	}
	begin := time.Now()
	for _, version := range []any{1, "auto", 2, 1, 1, "auto"} {
		added := make(chan struct{})
		var speaker sync.WaitGroup
		speaker.Go(func() {
			for {
				if err := l.alice.eth0.Join(groupB).Close(); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-added:
					return
				default:
				}
			}
		})
		if code, text := l.call("ADD", l.alice, keys(version)); code != 0 {
			t.Errorf("ADD with version %v: code %d (%s)", version, code, text)
		}
		close(added)
		speaker.Wait()
	}
	muted, _ := l.alice.muted()
	l.alice.eth0.Join(groupB)
	l.waitMuted(l.alice, muted+1)
	l.settle()
	for _, s := range l.said(begin) {
		if s.addr != groupB && s.leave() {
			t.Errorf("left: %v", s)
		}
	}
	if program, kernel := l.counted(); kernel != 0 {
		t.Errorf("%d messages of the kernel's have left the interface, %d of ours", kernel, program)
	}
	l.check("afterwards", 0)
	l.received(l.good)
}
