package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// Unreported says why an address is not reported. The smaller value is the more telling one.
type Unreported uint8

// The reasons.
const (
	Reported      Unreported = iota // it is reported
	NeverReported                   // ff02::1 and scopes 0 and 1 (V1-22, V1-23)
	IPv6Off                         // on the interface
	LinkDown
	NoLinkLocal // no valid link-local address to report from
	Refused     // the interface did not take the Report
	ReportDue   // a Report of it is still to come (K76)
	NotHeld     // the listener does not hold it
)

// A Group is what an agent knows of a multicast address that somebody wants.
type Group struct {
	listener.Address
	Wanted   []listener.Subscription // by whom; [KernelID]'s comes first
	ByKernel bool                    // the kernel speaks for it, as its reports are kept
	Why      Unreported
	Words    string // Why in words; empty if it is reported
}

// Groups returns what is wanted, sorted by address. It fails only if the agent or ctx has ended.
func (a *Agent) Groups(ctx context.Context) ([]Group, error) {
	var groups []Group
	err := a.do(ctx, func() {
		for addr := range a.listener.Snapshot() {
			groups = append(groups, Group{Address: addr, Wanted: a.listener.Subscriptions(addr.Addr)})
		}
		groups = append(groups, a.voice.kernelsOwn()...)
		for i := range groups {
			g := &groups[i]
			if g.Why = a.unreportedBecause(g.Addr); g.Why != Reported {
				g.Words = a.words(g.Why)
			}
		}
	})
	slices.SortFunc(groups, func(x, y Group) int { return x.Addr.Compare(y.Addr) })
	return groups, err
}

// kernelsOwn returns the addresses that the kernel speaks for.
func (v *voice) kernelsOwn() (groups []Group) {
	for addr := range v.held {
		g := Group{
			Address:  listener.Address{Addr: addr, Mode: listener.Exclude, Reportable: mld.Reportable(addr)},
			Wanted:   []listener.Subscription{{ID: KernelID, Filter: listener.AnySource}},
			ByKernel: true,
		}
		for _, s := range v.wanted[addr] {
			g.Wanted = append(g.Wanted, listener.Subscription{ID: s.id, Filter: s.filter})
		}
		g.Subscribers = len(g.Wanted)
		groups = append(groups, g)
	}
	return groups
}

// unreportedBecause says why an address is not reported.
func (a *Agent) unreportedBecause(addr netip.Addr) Unreported {
	switch {
	case !mld.Reportable(addr):
		return NeverReported
	case !a.link.IPv6:
		return IPv6Off
	case !a.link.Up:
		return LinkDown
	case !a.link.Source.IsValid():
		return NoLinkLocal
	case a.voice.reported(addr):
		return Reported
	case a.voice.refuses(addr):
		return Refused
	case a.voice.holds(addr):
		return ReportDue
	}
	return NotHeld
}

// words explains a reason.
func (a *Agent) words(why Unreported) string {
	switch why {
	case NeverReported:
		return "ff02::1 and addresses of scope 0 and 1 are never reported"
	case IPv6Off:
		return fmt.Sprintf("IPv6 is off, see sysctl net.ipv6.conf.%s.disable_ipv6", a.link.Name)
	case LinkDown:
		return "the link is down"
	case NoLinkLocal:
		return "there is no valid link-local address yet, see ip -6 addr show dev " + a.link.Name
	case Refused:
		return fmt.Sprintf("the interface refused %d packets, the last one because of: %v", a.sendErrs, a.lastSendErr)
	case ReportDue:
		return "a Report of it is still to come"
	}
	return "the listener does not hold it"
}
