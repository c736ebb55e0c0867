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
			p, ok := l.nextV1()
			if !ok {
				p, ok = l.nextV2()
			}
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
func (l *Listener) nextV1() (Packet, bool) {
	o, ok := l.out.pop()
	if !ok {
		return Packet{}, false
	}
	a := netip.AddrFrom16(o.addr)
	p := Packet{Dst: a, Addr: a, Cause: o.cause} // V1-8, K60
	if o.cause == CauseLeft {
		p.Dst = mld.AllRouters // V1-9, K60
		l.buf = mld.AppendDone(l.buf[:0], l.source, a)
	} else {
		l.buf = mld.AppendReport(l.buf[:0], l.source, a)
		l.noteReported(o.slot, o.addr)
	}
	p.Bytes = l.buf
	return p, true
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

func (r *records) pop() { r.list[0] = r.list[1]; r.list[1] = record{}; r.len-- }

// nextV2 builds the next version 2 Report: as many records as fit (V2-46), all for the same cause.
func (l *Listener) nextV2() (Packet, bool) {
	l.writer.Reset(l.mtu)
	p := Packet{Dst: mld.AllMLDv2Routers, Cause: l.recordsOf} // V2-1
	for full := false; !full; {
		if l.records.len == 0 && !l.nextRecords(&p) {
			break
		}
		r := &l.records.list[0]
		if l.writer.Len() == 0 {
			p.Addr = netip.AddrFrom16(r.addr)
		}
		full = l.addRecord(r)
		if !full && l.records.len == 0 && l.recordsOf == CauseAnswer && l.specific.len == 0 {
			l.addPlain()
		}
	}
	if l.writer.Len() == 0 {
		return Packet{}, false
	}
	p.Records = l.writer.Len()
	p.Bytes = l.writer.Packet(l.source)
	return p, true
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
		if !l.nextCurrent() {
			return false
		}
	}
	p.Cause = l.recordsOf
	return true
}

// nextCurrent fetches the record of the next address of a general answer (V2-40); false: there is none left.
func (l *Listener) nextCurrent() bool {
	for l.current.running {
		slot, _ := l.current.take(l.addresses.slots(), 1)
		if slot < l.addresses.slots() && l.settle(slot) {
			l.transmitCurrent(slot)
		}
		if l.records.len > 0 {
			return true
		}
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
	if r.wanted() {
		l.noteReported(r.slot, r.addr)
	}
	if full && r.kind != mld.ModeIsExclude && r.kind != mld.ChangeToExclude {
		r.sources = r.sources[len(sources):] // V2-47: disjoint parts, each in a Report of its own
		return true
	}
	// V2-48: the rest of an exclude list goes unreported. The set is sorted, so it is the same sources every time.
	l.records.pop()
	return full
}

// addPlain adds the records of a general answer as long as they are what most are: of an address that is wanted from
// any source, which needs no closer look.
func (l *Listener) addPlain() {
	const plain = inUse | listening | reportable | exclude
	var heard flags
	if l.source.IsLinkLocalUnicast() {
		heard = reported
	}
	for l.current.running && l.writer.Room() >= 0 {
		e := l.addresses.at(l.current.next)
		if e.flags&(plain|extended) != plain || e.epoch != l.epoch {
			return
		}
		l.writer.Add(mld.ModeIsExclude, &e.addr, nil)
		e.set(heard)
		l.current.take(l.addresses.slots(), 1)
	}
}

// wanted tells whether a record says that its address is listened to.
func (r *record) wanted() bool {
	return r.kind != mld.BlockOldSources && (r.kind != mld.ChangeToInclude || len(r.sources) > 0)
}

// noteReported notes that an address has been reported to those who listen to Reports.
func (l *Listener) noteReported(slot uint32, a addr) {
	if e := l.addresses.at(slot); e.addr == a && l.source.IsLinkLocalUnicast() {
		e.set(reported)
	}
}
