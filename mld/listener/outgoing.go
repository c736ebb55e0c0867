package listener

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// A Cause is why a packet is sent.
type Cause uint8

// The causes.
const (
	CauseJoined    Cause = iota // the first subscriber of the address
	CauseRepeat                 // the repeat of such a Report, for robustness
	CauseAnswer                 // a Query asked for it
	CauseAnnounced              // sending has become possible, or the source address is a new one
	CauseLeft                   // the last subscriber has left: a Done
)

func (c Cause) String() string {
	switch c {
	case CauseJoined:
		return "joined"
	case CauseRepeat:
		return "repeat"
	case CauseAnswer:
		return "answer"
	case CauseAnnounced:
		return "announced"
	case CauseLeft:
		return "left"
	}
	return fmt.Sprintf("Cause(%d)", uint8(c))
}

// A Packet is a message to be sent on the interface.
type Packet struct {
	Dst   netip.Addr // where to; multicast
	Addr  netip.Addr // the multicast address that it speaks of
	Cause Cause
	Bytes []byte // from the IPv6 header on; valid until the iteration goes on
}

// outgoing is a packet not yet built: a Done if the cause is CauseLeft, else a Report.
type outgoing struct {
	addr  [16]byte
	slot  uint32 // of addr, for a Report
	cause Cause
}

// queue is a first-in, first-out queue made of pieces like a slab.
type queue struct {
	pieces [][]outgoing
	head   int // the first element, in the first piece
	len    int
	buf    []byte // of the packet being built
}

func (q *queue) push(o outgoing) {
	piece := (q.head + q.len) / pieceSize
	if piece == len(q.pieces) {
		q.pieces = append(q.pieces, newPiece[outgoing](piece == 0))
	}
	q.pieces[piece] = append(q.pieces[piece], o)
	q.len++
}

func (q *queue) pop() (outgoing, bool) {
	if q.len == 0 {
		return outgoing{}, false
	}
	o := q.pieces[0][q.head]
	q.head++
	q.len--
	switch {
	case q.len == 0: // a queue that is drained now and then stays in its first piece
		q.pieces[0] = q.pieces[0][:0]
		q.head = 0
	case q.head == pieceSize:
		empty := q.pieces[0][:0]
		q.pieces = slices.Delete(q.pieces, 0, 1)
		q.head = 0
		if len(q.pieces)*pieceSize < q.len+pieceSize { // one spare piece is kept
			q.pieces = append(q.pieces, empty)
		}
	}
	return o, true
}

func (l *Listener) send(o outgoing) { l.out.push(o) }

// Outgoing yields the packets that are to be sent now, in the order in which they came up. What has been yielded
// is the caller's to send and will not come again; the caller may stop at any packet and go on with another call.
func (l *Listener) Outgoing() iter.Seq[Packet] {
	return func(yield func(Packet) bool) {
		for {
			o, ok := l.out.pop()
			if !ok {
				return
			}
			if l.canSend() && !yield(l.build(o)) {
				return
			}
		}
	}
}

func (l *Listener) build(o outgoing) Packet {
	addr := netip.AddrFrom16(o.addr)
	p := Packet{Dst: addr, Addr: addr, Cause: o.cause} // V1-8, K60
	if o.cause == CauseLeft {
		p.Dst = mld.AllRouters // V1-9, K60
		l.out.buf = mld.AppendDone(l.out.buf[:0], l.source, addr)
		l.counters.DonesSent++
	} else {
		l.out.buf = mld.AppendReport(l.out.buf[:0], l.source, addr)
		l.counters.ReportsSent++
		if e := l.addresses.at(o.slot); e.addr == o.addr && !l.source.IsUnspecified() {
			e.set(reported)
		}
	}
	p.Bytes = l.out.buf
	return p
}
