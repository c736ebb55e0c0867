package listener

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// State is the state of an address (RFC 2710 section 5). An address without a state is in Non-Listener. In MLDv2 a
// Delaying Listener is one whose change is still being told.
type State uint8

// The states.
const (
	IdleListener     State = iota // no Report is due
	DelayingListener              // a Report is due at a known time
)

func (s State) String() string {
	if s == DelayingListener {
		return "Delaying Listener"
	}
	return "Idle Listener"
}

// An Address is what the listener knows of a multicast address that somebody listens to.
type Address struct {
	Addr         netip.Addr
	State        State
	Due          time.Time  // in Delaying Listener: when the Report is due
	Mode         FilterMode // of the interface (RFC 9777 section 4.2)
	Sources      []netip.Addr
	Reportable   bool // false for ff02::1 and scopes 0 and 1
	Reported     bool // a Report from a link-local address has been handed out since the first subscriber came
	LastReporter bool // MLDv1: this node sent the last Report; a leave owes a Done
	Subscribers  int
}

// Address tells what the listener knows of addr; false means that it does not listen to it.
func (l *Listener) Address(a netip.Addr) (Address, bool) {
	slot, ok := l.find(a.As16())
	if !ok || !l.addresses.at(slot).has(listening) {
		return Address{}, false
	}
	return l.describe(slot), true
}

// A Subscription is what one subscriber wants of an address.
type Subscription struct {
	ID     SubscriberID
	Filter Filter // the sources are sorted
}

// Subscriptions tells who listens to an address, in the order of their IDs.
func (l *Listener) Subscriptions(a netip.Addr) []Subscription {
	slot, ok := l.find(a.As16())
	if !ok || !l.addresses.at(slot).has(listening) {
		return nil
	}
	list := []Subscription{{ID: l.addresses.at(slot).first, Filter: AnySource}}
	for _, id := range l.addresses.others[slot] {
		list = append(list, Subscription{ID: id, Filter: AnySource})
	}
	slices.SortFunc(list, func(x, y Subscription) int { return cmp.Compare(x.ID, y.ID) })
	m := l.addresses.more(slot)
	if m == nil {
		return list
	}
	for _, f := range m.filters {
		i, _ := slices.BinarySearchFunc(list, f.id, func(s Subscription, id SubscriberID) int { return cmp.Compare(s.ID, id) })
		list[i].Filter = Filter{Mode: f.mode}
		for _, s := range f.sources {
			list[i].Filter.Sources = append(list[i].Filter.Sources, netip.AddrFrom16(s))
		}
	}
	return list
}

// Snapshot yields every address that is listened to, in no particular order. The listener must not be changed
// meanwhile.
func (l *Listener) Snapshot() iter.Seq[Address] {
	return func(yield func(Address) bool) {
		for slot := range l.addresses.slots() {
			if l.settle(slot) && l.addresses.at(slot).has(listening) && !yield(l.describe(slot)) {
				return
			}
		}
	}
}

func (l *Listener) describe(slot uint32) Address {
	e := l.addresses.at(slot)
	a := Address{
		Addr:         netip.AddrFrom16(e.addr),
		Mode:         e.mode(),
		Reportable:   e.has(reportable),
		Reported:     e.has(reported),
		LastReporter: e.has(reportable) && !e.has(otherReporter),
		Subscribers:  l.addresses.subscribers(slot),
	}
	for _, s := range l.addresses.sources(slot) {
		a.Sources = append(a.Sources, netip.AddrFrom16(s))
	}
	if e.timer != 0 {
		a.State = DelayingListener
		a.Due = l.base.Add(time.Duration(l.timers.due(e.timer)))
	}
	return a
}

// Source is the address that the listener sends from: "::" while there is no valid link-local address, the zero
// Addr while it cannot send.
func (l *Listener) Source() netip.Addr { return l.source }

// Robustness is the Robustness Variable in force: in MLDv2 the querier's if it has told one (V2-13).
func (l *Listener) Robustness() int {
	if l.version == mld.Version1 {
		return l.cfg.Robustness
	}
	return int(l.robustness)
}

// Counters counts what a listener has done since it was made.
type Counters struct {
	QueriesHeard uint64
	ReportsHeard uint64 // version 1, from other nodes
	Suppressed   uint64 // own Reports left out because another node's was heard
	ReportsSent  uint64 // of both versions
	DonesSent    uint64

	// SourceSpecificQueriesV1 counts Queries of version 1 that concerned an SSM address: an error somewhere on the
	// link (RFC 4604 sections 2.2.3 and 2.2.5).
	SourceSpecificQueriesV1 uint64
}

// Counters returns the counters.
func (l *Listener) Counters() Counters { return l.counters }
