package agent

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// An EventKind says what has happened, and which fields of an [Event] tell more.
type EventKind uint8

// The kinds of events.
const (
	EventJoined     EventKind = iota // the kernel holds Addr with Filter: it has joined it, or the sources have changed
	EventLeft                        // the kernel has left Addr
	EventHeard                       // Heard is a Query
	EventSuppressed                  // another node's Report, Heard, has made our own of Addr superfluous (V1-18)
	EventSent                        // Sent is about to be sent
	EventNotSent                     // the interface did not take Sent because of Err
	EventMuted                       // Heard is a report of the kernel that was dropped; where the mute has copies
	EventVersion                     // Version is spoken from now on
	EventLink                        // the interface is as Link says, and was as Before says
	EventEnded                       // the agent has ended because of Err
)

var eventNames = [...]string{"joined", "left", "heard", "suppressed", "sent", "not sent", "muted", "version", "link", "ended"}

func (k EventKind) String() string {
	if int(k) < len(eventNames) {
		return eventNames[k]
	}
	return fmt.Sprintf("EventKind(%d)", uint8(k))
}

// An Event is something that an agent has noticed or does. What it points to belongs to the agent and is good until
// Config.Observe returns.
//
// Config.Observe is called in the order of things by the goroutine that owns the agent, and before Begin by those that
// prepare and call it; but EventMuted comes from another one at any time. So it must be safe for concurrent use. It
// must not block, nor call a method of the agent. EventEnded comes last, before Close returns. An event is made without
// allocating memory.
type Event struct {
	Kind    EventKind
	Addr    netip.Addr
	Filter  listener.Filter
	Heard   mld.Packet
	Sent    listener.Packet
	Version mld.Version
	Link    link.State
	Before  link.State
	Err     error
}

// notice tells the observer.
func (a *Agent) notice(e Event) {
	if a.observe != nil {
		a.observe(e)
	}
}

// kernelChanged takes over changes of the kernel's memberships.
func (a *Agent) kernelChanged(now time.Time, changes []kernel.Change) {
	if a.observe != nil {
		for _, c := range changes {
			e := Event{Kind: EventJoined, Addr: c.Addr, Filter: kernelFilter(c)}
			if !c.Joined {
				e.Kind = EventLeft
			}
			a.observe(e)
		}
	}
	a.voice.kernelChanged(now, changes)
}

// noteVersion notices that another version is spoken.
func (a *Agent) noteVersion() {
	if v := a.listener.Version(); v != a.version {
		a.version = v
		a.notice(Event{Kind: EventVersion, Version: v})
	}
}
