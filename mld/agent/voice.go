package agent

import (
	"net/netip"
	"slices"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// voice settles who speaks for an address, the kernel or the listener, so that exactly one does.
//
// With the kernel muted, the listener speaks for everything, and the kernel is one subscriber among others. With
// the kernel's reports kept, the listener is silent about every address that the kernel holds.
type voice struct {
	listener *listener.Listener
	keep     bool

	refused map[netip.Addr]struct{} // addresses listened to whose last Report the interface did not take

	// With keep only: what the kernel holds, and who wants which address besides.
	held   map[netip.Addr]struct{}
	wanted map[netip.Addr][]subscription
}

type subscription struct {
	id     listener.SubscriberID
	filter listener.Filter
}

func (v *voice) listen(now time.Time, id listener.SubscriberID, addr netip.Addr, f listener.Filter) error {
	defer v.left(addr)
	if !v.keep {
		return v.listener.Listen(now, id, addr, f)
	}
	var err error
	if _, held := v.held[addr]; held {
		err = v.listener.Validate(addr, f) // it is to be listened to as soon as the kernel leaves
	} else {
		err = v.listener.Listen(now, id, addr, f)
	}
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(v.wanted[addr], func(s subscription) bool { return s.id == id })
	if !f.WantsNothing() {
		others = append(others, subscription{id, f})
	}
	if v.wanted == nil {
		v.wanted = make(map[netip.Addr][]subscription)
	}
	if len(others) == 0 {
		delete(v.wanted, addr)
	} else {
		v.wanted[addr] = others
	}
	return nil
}

// kernelChanged takes over changes of the kernel's memberships. The kernel holds multicast addresses only, and the
// mirror names no source that is not unicast, so that the listener accepts them all.
func (v *voice) kernelChanged(now time.Time, changes []kernel.Change) {
	for _, c := range changes {
		if v.keep {
			v.kernelTookOver(now, c)
		} else if err := v.listener.Mirror(now, KernelID, c.Addr, kernelFilter(c)); err != nil {
			panic(err)
		}
		v.left(c.Addr)
	}
}

// kernelFilter is what the kernel wants of an address: INCLUDE({}) once it has left.
func kernelFilter(c kernel.Change) listener.Filter {
	f := listener.Filter{Sources: c.Sources}
	if c.Joined && c.Exclude {
		f.Mode = listener.Exclude
	}
	return f
}

// kernelTookOver passes an address from the listener to the kernel, whose own Report says so, or back, when the
// kernel's leave has just told everybody that nobody is left.
func (v *voice) kernelTookOver(now time.Time, c kernel.Change) {
	if c.Joined {
		if v.held == nil {
			v.held = make(map[netip.Addr]struct{})
		}
		v.held[c.Addr] = struct{}{}
		for _, s := range v.wanted[c.Addr] {
			v.listener.Forget(now, s.id, c.Addr)
		}
		return
	}
	delete(v.held, c.Addr)
	for _, s := range v.wanted[c.Addr] {
		_ = v.listener.Listen(now, s.id, c.Addr, s.filter) // it was accepted before
	}
}

// kernelSaid hears the kernel's own voice. It says once more what it has left, up to a second later and from our
// address (B16), so that what is wanted nevertheless has to be said anew each time. What wants something takes nothing
// away; and it may be our own Report, sent back by a bridge's port in hairpin mode, which must not lead to another one.
func (v *voice) kernelSaid(now time.Time, m *mld.Message) {
	if m.Type == mld.TypeDone {
		v.contradict(now, m.MulticastAddress)
	}
	for r := range m.Records.All() {
		if r.Type == mld.ChangeToInclude || r.Type == mld.BlockOldSources {
			v.contradict(now, r.MulticastAddress)
		}
	}
}

// contradict reports addr as if it had just been joined, unless the kernel speaks for it.
func (v *voice) contradict(now time.Time, addr netip.Addr) {
	if _, held := v.held[addr]; held {
		return
	}
	for _, s := range v.wanted[addr] {
		v.listener.Forget(now, s.id, addr)
	}
	for _, s := range v.wanted[addr] {
		_ = v.listener.Listen(now, s.id, addr, s.filter) // it was accepted before
	}
}

// sent notes whether the interface has taken a packet, for every address that it speaks of.
func (v *voice) sent(p listener.Packet, err error) {
	if err == nil && len(v.refused) == 0 {
		return
	}
	if p.Records == 0 {
		v.took(p.Addr, err)
		return
	}
	ours, _ := mld.Parse(p.Bytes, mld.AcceptUnspecified) // nothing is wrong with what we make
	for r := range ours.Message.Records.All() {
		v.took(r.MulticastAddress, err)
	}
}

func (v *voice) took(addr netip.Addr, err error) {
	if err == nil || !v.holds(addr) {
		delete(v.refused, addr)
		return
	}
	if v.refused == nil {
		v.refused = make(map[netip.Addr]struct{})
	}
	v.refused[addr] = struct{}{}
}

// left forgets what is known of an address that nobody may listen to any more: there may be no packet to tell of that.
func (v *voice) left(addr netip.Addr) {
	if len(v.refused) > 0 && !v.holds(addr) {
		delete(v.refused, addr)
	}
}

// holds tells whether the listener speaks for addr.
func (v *voice) holds(addr netip.Addr) bool {
	_, ok := v.listener.Address(addr)
	return ok
}

// refuses tells whether the interface did not take the last Report of addr.
func (v *voice) refuses(addr netip.Addr) bool {
	_, refused := v.refused[addr]
	return refused
}

// reported tells whether the listener has reported addr, or the kernel speaks for it.
func (v *voice) reported(addr netip.Addr) bool {
	if _, held := v.held[addr]; held {
		return true
	}
	a, ok := v.listener.Address(addr)
	return ok && a.Reported && !v.refuses(addr)
}

// leaveAll leaves every address on everybody's behalf, for good.
func (v *voice) leaveAll(now time.Time) {
	v.wanted = nil // or the next leave of the kernel's would be contradicted
	for _, a := range slices.Collect(v.listener.Snapshot()) {
		v.listener.Leave(now, a.Addr)
	}
}
