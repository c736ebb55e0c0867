package listener_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// longest is a source of random numbers that always draws the longest delay there is.
type longest struct{}

func (longest) Int64N(n int64) int64 { return n - 1 }

// A listener in virtual time. A program would use rand.New(rand.NewPCG(...)) and time.Now.
func Example() {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l, err := listener.New(listener.Config{Version: mld.Version1}, longest{})
	if err != nil {
		panic(err)
	}
	send := func(now time.Time) {
		for p := range l.Outgoing() {
			decoded, err := mld.Parse(p.Bytes, 0)
			if err != nil {
				panic(err)
			}
			fmt.Println(now.Sub(start), decoded.Message.Type, "to", p.Dst, "because", p.Cause)
		}
	}
	group := netip.MustParseAddr("ff05::8")
	l.SetSource(start, netip.MustParseAddr("fe80::a"))

	// Somebody on this node begins to listen.
	const app listener.SubscriberID = 1
	if err := l.Listen(start, app, group, listener.AnySource); err != nil {
		panic(err)
	}
	send(start)

	// A querier asks for everything that is listened to, within a second.
	asked := start.Add(3 * time.Second)
	l.Receive(asked, netip.MustParseAddr("fe80::1"), mld.Message{
		Type: mld.TypeQuery, MulticastAddress: netip.IPv6Unspecified(), MaxResponseCode: 1000,
	})
	send(asked)

	// Come back whenever something is due.
	for deadline, ok := l.NextDeadline(); ok; deadline, ok = l.NextDeadline() {
		l.Advance(deadline)
		send(deadline)
	}

	// The last one who listened goes.
	left := start.Add(time.Minute)
	if err := l.Listen(left, app, group, listener.Filter{}); err != nil {
		panic(err)
	}
	send(left)

	// Output:
	// 0s Report to ff05::8 because joined
	// 3.995s Report to ff05::8 because answer
	// 1m0s Done to ff02::2 because left
}

func ExampleListener_Snapshot() {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l, err := listener.New(listener.Config{Version: mld.Version1}, longest{})
	if err != nil {
		panic(err)
	}
	l.SetSource(now, netip.IPv6Unspecified()) // no valid link-local address yet
	if err := l.Listen(now, 1, netip.MustParseAddr("ff02::1:ff00:a"), listener.AnySource); err != nil {
		panic(err)
	}
	for a := range l.Snapshot() {
		fmt.Println(a.Addr, "is in", a.State, "until", a.Due.Format(time.TimeOnly))
	}
	// Output:
	// ff02::1:ff00:a is in Delaying Listener until 00:00:10
}
