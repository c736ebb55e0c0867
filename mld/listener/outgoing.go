package listener

import (
	"fmt"
	"iter"
	"net/netip"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// A Cause is why a packet is sent.
type Cause uint8

// The causes.
const (
	CauseJoined    Cause = iota // MLDv1: the first subscriber of the address
	CauseRepeat                 // MLDv1: the repeat of such a Report, for robustness
	CauseAnnounced              // MLDv1: sending has become possible, or the source address is a new one
	CauseLeft                   // MLDv1: the last subscriber has left: a Done
	CauseChanged                // MLDv2: what is wanted has changed, and the repeats that tell so again
	CauseAnswer                 // a Query asked for it
)

func (c Cause) String() string {
	switch c {
	case CauseJoined:
		return "joined"
	case CauseRepeat:
		return "repeat"
	case CauseAnnounced:
		return "announced"
	case CauseLeft:
		return "left"
	case CauseChanged:
		return "changed"
	case CauseAnswer:
		return "answer"
	}
	return fmt.Sprintf("Cause(%d)", uint8(c))
}

// A Packet is a message to be sent on the interface.
type Packet struct {
	Dst     netip.Addr // where to; multicast
	Addr    netip.Addr // the multicast address that it speaks of, the first one of a version 2 Report
	Records int        // of a version 2 Report; else 0
	Cause   Cause
	Bytes   []byte // from the IPv6 header on; valid until the iteration goes on
}

// Outgoing yields the packets that are to be sent now, in the order in which they came up. What has been yielded
// is the caller's to send and will not come again; the caller may stop at any packet and go on with another call.
// The listener must not be changed while the iteration waits for its caller.
func (l *Listener) Outgoing() iter.Seq[Packet] {
	return func(yield func(Packet) bool) {
		for {
			var p Packet
			ok := l.nextV1(&p) || l.nextV2(&p)
			switch {
			case !ok && l.out.len == 0: // what is looked at on the way may have been cut off and owe a Done
				return
			case !ok || !l.canSend():
				continue
			case p.Cause == CauseLeft:
				l.counters.DonesSent++
			default:
				l.counters.ReportsSent++
			}
			if !yield(p) {
				return
			}
		}
	}
}

// outgoing is a message of version 1 not yet built: a Done if the cause is CauseLeft, else a Report.
type outgoing struct {
	addr  addr
	slot  uint32 // of addr, for a Report
	cause Cause
}

func (l *Listener) send(o outgoing) { l.out.push(o) }

// nextV1 builds the next message of version 1.
func (l *Listener) nextV1(p *Packet) bool {
	for l.out.len > 0 {
		o, _ := l.out.pop()
		if e := l.addresses.at(o.slot); o.cause != CauseLeft && e.addr == o.addr {
			e.clear(reportQueued)
		}
		if l.version != mld.Version1 && (o.cause == CauseAnswer || o.cause == CauseRepeat) {
			continue // V2-53
		}
		a := netip.AddrFrom16(o.addr)
		p.Dst, p.Addr, p.Cause = a, a, o.cause // V1-8, K60
		if o.cause == CauseLeft {
			p.Dst = mld.AllRouters // V1-9, K60
			l.buf = mld.AppendDone(l.buf[:0], l.source, a)
		} else {
			l.buf = mld.AppendReport(l.buf[:0], l.source, a)
			l.noteReported(o.slot, o.addr)
		}
		p.Bytes = l.buf
		return true
	}
	return false
}

// A record is a Multicast Address Record to be sent.
type record struct {
	kind    mld.RecordType
	addr    addr
	slot    uint32 // of addr, unless another address has it now
	sources []addr
}

// records are the records of one address, which go into the next packets.
type records struct {
	list [2]record
	len  int
}

func (r *records) push(rec record) { r.list[r.len] = rec; r.len++ }

func (r *records) pop() {
	r.len--
	if r.len > 0 {
		r.list[0] = r.list[1]
	}
	r.list[r.len].sources = nil
}

// nextV2 builds the next version 2 Report: as many records as fit (V2-46), all for the same cause.
func (l *Listener) nextV2(p *Packet) bool {
	if l.records.len == 0 && l.changes.len == 0 && l.specific.len == 0 && !l.current.running {
		return false
	}
	l.writer.Reset(l.mtu)
	p.Dst, p.Cause = mld.AllMLDv2Routers, l.recordsOf // V2-1
	for full := false; !full; {
		if l.records.len == 0 && !l.nextRecords(p) {
			break
		}
		r := &l.records.list[0]
		if l.writer.Len() == 0 {
			p.Addr = netip.AddrFrom16(r.addr)
		}
		full = l.addRecord(r)
	}
	if l.writer.Len() == 0 {
		return false
	}
	p.Records = l.writer.Len()
	p.Bytes = l.writer.Packet(l.source)
	return true
}

// nextRecords fetches the records of one more address, for the cause that the packet has if it has any records.
func (l *Listener) nextRecords(p *Packet) bool {
	for l.records.len == 0 {
		begun := l.writer.Len() > 0
		if !begun || p.Cause == CauseChanged {
			if slot, ok := l.changes.pop(); ok {
				l.recordsOf = CauseChanged
				if l.settle(slot) && l.addresses.at(slot).has(changeQueued) {
					l.transmitChange(slot)
				}
				continue
			}
		}
		if begun && p.Cause != CauseAnswer {
			return false
		}
		l.recordsOf = CauseAnswer
		if slot, ok := l.specific.pop(); ok {
			if l.settle(slot) && l.addresses.at(slot).has(answerQueued) {
				l.transmitAnswer(slot)
			}
			continue
		}
		if !l.nextCurrent(p) {
			return false
		}
	}
	p.Cause = l.recordsOf
	return true
}

// nextCurrent goes on with a general answer (V2-40). What is wanted from any source, as most addresses are, goes
// straight into the packet; of the next address that is not, the records are fetched. It returns false when the packet
// is full, when no address is left, and when it has passed over so many free slots that the rest is for the next call.
func (l *Listener) nextCurrent(p *Packet) bool {
	const plain = inUse | listening | reportable | exclude
	told := flags(0)
	if l.source.IsLinkLocalUnicast() {
		told = reported
	}
	for range maxPieces {
		if l.current.next >= l.addresses.slots() {
			l.current.running = false
		}
		if !l.current.running {
			return false
		}
		piece := l.addresses.entries.rest(l.current.next)
		for i := range piece {
			switch e := &piece[i]; {
			case !e.has(inUse):
			case e.flags&(plain|extended) == plain && e.epoch == l.epoch:
				if !l.writer.AddAny(mld.ModeIsExclude, &e.addr) {
					l.current.next += uint32(i)
					return false
				}
				if l.writer.Len() == 1 {
					p.Addr, p.Cause = netip.AddrFrom16(e.addr), CauseAnswer
				}
				e.flags |= told
			default:
				slot := l.current.next + uint32(i)
				if l.settle(slot) {
					l.transmitCurrent(slot)
				}
				if l.records.len > 0 {
					l.current.next = slot + 1
					return true
				}
			}
		}
		l.current.next += uint32(len(piece))
	}
	return false
}

// addRecord adds a record to the packet, or as much of it as fits, and tells whether the packet is full.
func (l *Listener) addRecord(r *record) (full bool) {
	sources := r.sources
	if room := l.writer.Room(); room < len(sources) {
		if l.writer.Len() > 0 {
			return true
		}
		sources, full = sources[:room], true
	}
	l.writer.Add(r.kind, &r.addr, sources)
	l.noteReported(r.slot, r.addr)
	if full && r.kind != mld.ModeIsExclude && r.kind != mld.ChangeToExclude {
		r.sources = r.sources[len(sources):] // V2-47: disjoint parts, each in a Report of its own
		return true
	}
	// V2-48: the rest of an exclude list goes unreported. The set is sorted, so it is the same sources every time.
	l.records.pop()
	return full
}

// noteReported notes that an address has been reported to those who listen to Reports.
func (l *Listener) noteReported(slot uint32, a addr) {
	if e := l.addresses.at(slot); e.addr == a && l.source.IsLinkLocalUnicast() {
		e.set(reported)
	}
}
