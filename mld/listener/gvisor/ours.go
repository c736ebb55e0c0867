package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// grain is how late the caller of a listener comes.
const grain = time.Millisecond

// A node is a listener with its caller.
type node struct {
	l   *listener.Listener
	now time.Time
}

func newNode(version mld.Version) *node {
	cfg := listener.Config{} // MLDv2, with the choice to fall back, as gVisor has it
	if version == mld.Version1 {
		cfg.Version = version
	}
	l, err := listener.New(cfg, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		panic(err)
	}
	n := &node{l: l, now: time.Unix(0, 0)}
	l.SetSource(n.now, own)
	return n
}

// listen joins one address after the other, and takes the Report of each.
func (n *node) listen(list []netip.Addr) {
	for _, a := range list {
		if err := n.l.Listen(n.now, 1, a, listener.AnySource); err != nil {
			panic(err)
		}
		packets := 0
		for range n.l.Outgoing() {
			packets++
		}
		if packets != 1 {
			panic("a join has not made one packet")
		}
	}
}

// rest lets time go on until nothing is due any more, and counts the addresses reported meanwhile.
func (n *node) rest() (addresses int) {
	for {
		deadline, ok := n.l.NextDeadline()
		if !ok {
			return addresses
		}
		if deadline.After(n.now) {
			n.now = deadline.Add(grain)
		}
		n.l.Advance(n.now)
		for p := range n.l.Outgoing() {
			addresses += max(1, p.Records)
		}
	}
}

// answer answers a General Query.
func (n *node) answer(query []byte) (addresses int) {
	p, err := mld.Parse(query, 0)
	if err != nil {
		panic(fmt.Sprintf("the query is refused: %v", err))
	}
	n.l.Receive(n.now, p.Src, p.Message)
	return n.rest()
}

// addresses returns n multicast addresses.
func addresses(n int) []netip.Addr {
	list := make([]netip.Addr, n)
	for i := range list {
		list[i] = address(i)
	}
	return list
}
