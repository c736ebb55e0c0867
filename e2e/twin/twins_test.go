//go:build twin

package twin

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

const (
	patience = 10 * time.Second      // the ceiling of every wait
	interval = 60 * time.Millisecond // Unsolicited Report Interval of both twins, in both versions
	margin   = 20 * time.Millisecond // how late an answer may be before it is missed
)

var router = netip.MustParseAddr("fe80::8000:0:0:1")

// A query is what the router asks.
type query struct {
	version int // 1, or 2
	group   name
	sources set
	delay   time.Duration // Maximum Response Delay
	qrv     int
	qqi     int // Querier's Query Interval in seconds, below 128
}

func (q query) String() string {
	text := fmt.Sprintf("query v%d %v", q.version, q.delay)
	if q.group != nobody {
		text += " " + q.group.String()
	}
	if q.sources != 0 {
		text += q.sources.String()
	}
	if q.version == 2 && (q.qrv != 2 || q.qqi != 125) {
		text += fmt.Sprintf(" qrv=%d qqi=%d", q.qrv, q.qqi)
	}
	return text
}

func (q query) packet() []byte {
	dst := mld.AllNodes
	if q.group != nobody {
		dst = addresses[q.group]
	}
	return mld.AppendQuery(nil, router, dst, mld.Query{
		Version: mld.Version(q.version), MulticastAddress: addresses[q.group],
		MaxResponseCode: uint16(q.delay / time.Millisecond), QRV: uint8(q.qrv), QQIC: uint8(q.qqi),
		Sources: q.sources.addrs(),
	})
}

// A listen is one socket's new filter for a group.
type listen struct {
	socket int
	group  name
	filter filter
	how    int // chooses among the system calls that come to the same
}

func (l listen) String() string {
	return fmt.Sprintf("%d %s %s", l.socket, l.group, l.filter)
}

// A step is one of its fields.
type step struct {
	listen *listen
	query  *query
	report name // another node reports the group by MLDv1
	sent   name // wait until a further State Change Report for the group, or a Report of it, has been sent
	end    bool // wait until everything has been told and answered
	back   bool // wait until the twin has returned to MLDv2
}

func (s step) String() string {
	switch {
	case s.listen != nil:
		return s.listen.String()
	case s.query != nil:
		return s.query.String()
	case s.report != nobody:
		return "report " + s.report.String()
	case s.back:
		return "back"
	case s.end:
		return "end"
	}
	return "sent " + s.sent.String()
}

// A packet is one that a twin has sent.
type packet struct {
	time    time.Time
	src     netip.Addr
	records []record
	query   bool // one that it has heard
}

// helper tells whether the packet is only about the groups that serve the test, and no general answer.
func (p packet) helper() bool {
	return !slices.ContainsFunc(p.records, func(r record) bool { return r.group != barrier && r.group != sentinel })
}

func (p packet) byGroup() map[name][]record {
	m := map[name][]record{}
	for _, r := range p.records {
		m[r.group] = append(m[r.group], r)
	}
	return m
}

// An event of a twin's: a step, or a frame by its index in the capture.
type event struct {
	step  step
	frame int // if step is none

	// Of a step. What was sent until it ended may have been sent before it took effect.
	begun, ended time.Time
}

func (e event) isFrame() bool { return e.step == step{} }

// A twin is one of the two listeners.
type twin struct {
	tb       testing.TB
	name     string
	node     *netnslab.Node
	port     *netnslab.Endpoint // the twin's interface
	cable    *netnslab.Endpoint // the router's end of its cable
	heard    *netnslab.Capture  // on port, where a frame is stamped when it is sent
	side     side
	frames   int      // that have been looked at
	glances  []packet // what they are at a quick look; the verdict is tshark's
	events   []event
	begin    int   // of the round, in events
	base     *spec // when the round began
	spec     *spec // now
	asked    int   // queries
	reported int   // times
	qrv      int   // of the last one
	qqi      int
}

// side is what the twins do differently.
type side interface {
	listen(l listen, before filter) error
	waitRead(version int) // until all queries of that version have been read
}

// rig is a pair of twins.
type rig struct {
	testing.TB
	lab          *netnslab.Lab
	kernel, ours *twin
	rounds       int // so far
}

func newRig(tb testing.TB) *rig {
	tb.Helper()
	r := &rig{TB: tb, lab: netnslab.New(tb)}
	asker := r.lab.Node("router")
	asker.SetSysctl("net/ipv6/conf/default/disable_ipv6", "1")
	r.kernel = r.newTwin(asker, "kernel")
	r.kernel.side = newSockets(r.kernel)
	r.kernel.settle()
	r.ours = r.newTwin(asker, "ours")
	r.ours.side = startAgent(r.ours)
	for _, t := range r.twins() {
		t.do(step{listen: &listen{socket: 7, group: barrier, filter: filter{exclude: true}}})
		t.do(step{end: true})
	}
	r.rounds = 1
	return r
}

func (r *rig) twins() []*twin { return []*twin{r.kernel, r.ours} }

func (r *rig) newTwin(asker *netnslab.Node, called string) *twin {
	r.Helper()
	t := &twin{tb: r, name: called, node: r.lab.Node(called), qrv: 2, qqi: 125}
	t.base = newSpec(called == "kernel")
	t.spec = t.base
	ms := strconv.Itoa(int(interval / time.Millisecond))
	for _, version := range []string{"1", "2"} {
		t.node.SetSysctl("net/ipv6/conf/default/mldv"+version+"_unsolicited_report_interval", ms)
	}
	t.port, t.cable = r.lab.Veth(t.node, "eth0", asker, called, netnslab.Down)
	t.heard = t.port.Capture(netnslab.MLD)
	t.cable.SetUp()
	t.port.SetUp()
	t.port.LinkLocal()
	return t
}

// settle waits until the kernel has announced itself: it tells its solicited-node group twice when it joins it and
// twice when its address is valid (L8).
func (t *twin) settle() {
	for told := 0; told < 4; {
		for _, r := range t.next("announcement").records {
			if r.group == other && r.kind == toEx {
				told++
			}
		}
	}
}

// run puts both twins through steps, one after the other up to each end.
func (r *rig) run(steps []step) {
	r.Helper()
	for len(steps) > 0 {
		n := slices.IndexFunc(steps, func(s step) bool { return s.end }) + 1
		for _, t := range r.twins() {
			for _, s := range steps[:n] {
				t.do(s)
			}
		}
		steps = steps[n:]
		r.rounds++
	}
}

// do carries out a step, and notes it among the frames.
func (t *twin) do(s step) {
	t.tb.Helper()
	switch {
	case s.listen != nil:
		g := t.spec.groups[s.listen.group]
		before := g.sockets[s.listen.socket]
		t.mark()
		begun := time.Now()
		if err := t.side.listen(*s.listen, before); err != nil {
			t.tb.Fatalf("%s: %v: %v", t.name, s, err)
		}
		t.happened(event{step: s, begun: begun, ended: time.Now()})
	case s.query != nil:
		t.mark()
		at := len(t.events)
		t.happened(event{step: s, begun: time.Now(), ended: time.Now().Add(patience)})
		t.ask(*s.query)
		t.side.waitRead(s.query.version)
		t.events[at].ended = time.Now()
		t.mark()
		t.update()
	case s.report != nobody:
		t.mark()
		at := len(t.events)
		t.happened(event{step: s, ended: time.Now().Add(patience)})
		t.cable.SendPacket(mld.AppendReport(nil, router, addresses[s.report]))
		t.reported++
		t.side.waitRead(t.spec.version())
		t.events[at].ended = time.Now()
		t.mark()
		t.update()
	case s.back:
		t.happened(event{step: s})
		t.back()
	case s.end:
		t.end()
		t.happened(event{step: s})
		t.begin, t.base = len(t.events), t.spec
	default:
		t.waitSent(s.sent)
	}
}

// happened takes note of an event.
func (t *twin) happened(e event) {
	t.events = append(t.events, e)
	t.update()
}

// update brings the spec up to date.
func (t *twin) update() {
	all := replays(t.base, t.events[t.begin:], t.glances)
	t.spec = all[0].after
	for _, r := range all[1:] {
		t.spec.unsure(r.after)
	}
}

// ask sends a query.
func (t *twin) ask(q query) {
	t.cable.SendPacket(q.packet())
	t.asked++
	if q.version == 2 && q.group != barrier {
		t.qrv, t.qqi = q.qrv, q.qqi
	}
}

// mark takes note of all frames sent so far: a Done, which no listener cares for, is the last of them.
func (t *twin) mark() {
	t.tb.Helper()
	sent := time.Now()
	t.cable.SendPacket(mld.AppendDone(nil, router, addresses[barrier]))
	for {
		t.next("mark")
		if f := t.heard.Frames()[t.frames-1]; !f.Outgoing && f.ICMPv6() == done && !f.Time.Before(sent) {
			return
		}
	}
}

// next waits for the next frame and takes note of it.
func (t *twin) next(what string) packet {
	t.tb.Helper()
	f := t.heard.Wait(patience, t.name+": "+what, func(netnslab.Frame) bool { return true })
	p := glance(f)
	t.glances = append(t.glances, p)
	t.frames++
	if len(p.records) > 0 {
		t.happened(event{frame: t.frames - 1})
	}
	return p
}

// waitSent waits for something about a change of the group, if there is something to come.
func (t *twin) waitSent(n name) {
	if g := t.spec.groups[n]; g.changesExcused != "" && !t.spec.v1 {
		t.flush()
		return
	} else if !g.untold() {
		return
	}
	for {
		for _, r := range t.next("State Change Report for " + n.String()).records {
			if r.group == n && !r.current() {
				return
			}
		}
	}
}

// barrier asks for the barrier group, with a Maximum Response Delay of 0, and waits for the answer. Queries are read
// in turn, so that those before have been read, too.
func (t *twin) barrier(version int) {
	t.tb.Helper()
	t.ask(query{version: version, group: barrier, qrv: t.qrv, qqi: t.qqi})
	for {
		groups := t.next("answer about the barrier group").byGroup()
		if _, general := groups[other]; !general && groups[barrier] != nil {
			return
		}
	}
}

// end returns when everything has been told and answered.
func (t *twin) end() {
	t.tb.Helper()
	for t.spec.owes() {
		t.next("answer: " + t.spec.left())
	}
	if due, ok := t.spec.answersDue(); ok { // only answers that may fall away: none has come when the barrier's has
		<-time.After(time.Until(due.Add(margin)))
		t.barrier(t.spec.version())
	}
	t.flush()
}

// flush has the kernel send what it has not told yet: with each State Change Report, whatever it is about, it sends
// what is left of all groups. Of ours the spec knows what is left.
func (t *twin) flush() {
	if !t.spec.v1 { // where nothing waits
		t.toggle()
	}
	for !t.spec.quiet() {
		t.next("more of " + t.spec.left())
	}
}

// back returns when the twin has returned to MLDv2: when it tells by version 2 that the sentinel is joined.
func (t *twin) back() {
	t.tb.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if t.spec.groups[sentinel].exclude {
			t.toggle()
			<-time.After(interval) // not more often
		}
		t.toggle()
		for told := false; !told; {
			for _, r := range t.next("message about the sentinel").records {
				if r.group == sentinel && r.kind == toEx {
					return
				}
				told = told || r.group == sentinel && r.kind == report
			}
		}
	}
	t.tb.Fatalf("%s: still in MLDv1 mode after %v", t.name, patience)
}

// toggle joins or leaves the sentinel.
func (t *twin) toggle() {
	t.do(step{listen: &listen{socket: 7, group: sentinel, filter: filter{exclude: !t.spec.groups[sentinel].exclude}}})
}

// glance is a quick look at a frame that a twin has sent; what it has heard is empty.
func glance(f netnslab.Frame) packet {
	p := packet{time: f.Time, src: f.Src()}
	if !f.Outgoing {
		return p
	}
	const offset = 40 + 8 // our twins send one Hop-by-Hop header of 8 octets
	m := f.IPv6()[offset:]
	if kind := int(m[0]); kind != reportV2 {
		p.records = []record{{kind: kind, group: nameOf(netip.AddrFrom16([16]byte(m[8:24])))}}
		return p
	}
	n := int(binary.BigEndian.Uint16(m[6:]))
	m = m[8:]
	for range n {
		r := record{kind: int(m[0]), group: nameOf(netip.AddrFrom16([16]byte(m[4:20])))}
		sources := int(binary.BigEndian.Uint16(m[2:]))
		m = m[20:]
		for range sources {
			r.add(netip.AddrFrom16([16]byte(m[:16])))
			m = m[16:]
		}
		p.records = append(p.records, r)
	}
	return p
}

func (r *record) add(source netip.Addr) {
	bit, ok := sourceBit(source)
	if !ok || r.sources&bit != 0 {
		r.extra++
	}
	r.sources |= bit
}

// packets are the frames captured so far, as tshark reads them.
func (t *twin) packets(ctx context.Context) []packet {
	t.tb.Helper()
	frames := t.heard.Frames()
	text := t.heard.Tshark(ctx, "-T", "fields", "-E", "separator=|", "-E", "occurrence=a", "-E", "aggregator=,",
		"-e", "icmpv6.type", "-e", "icmpv6.checksum.status", "-e", "ipv6.hlim", "-e", "ipv6.opt.router_alert",
		"-e", "icmpv6.mld.multicast_address", "-e", "icmpv6.mldr.mar.record_type", "-e", "icmpv6.mldr.mar.nb_sources",
		"-e", "icmpv6.mldr.mar.multicast_address", "-e", "icmpv6.mldr.mar.source_address")
	var lines []string
	if text != "" {
		lines = strings.Split(text, "\n")
	}
	if len(lines) < len(frames) {
		t.tb.Fatalf("%s: tshark sees %d frames of %d", t.name, len(lines), len(frames))
	}
	list := make([]packet, len(frames))
	for i, f := range frames {
		list[i].time = f.Time
		if !f.Outgoing {
			list[i].query = f.ICMPv6() == 130
			continue
		}
		field := strings.Split(lines[i], "|")
		if field[1] != "1" || field[2] != "1" || field[3] != "0" {
			t.tb.Errorf("%s: checksum, hop limit or Router Alert are wrong in %q", t.name, lines[i])
		}
		records, err := decode(field[0], field[4], split(field[5]), split(field[6]), split(field[7]), split(field[8]))
		if err != nil {
			t.tb.Fatalf("%s: %q: %v", t.name, lines[i], err)
		}
		list[i].src, list[i].records = f.Src(), records
	}
	return list
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// decode reads what tshark says of a packet.
func decode(kind, group string, kinds, counts, groups, sources []string) ([]record, error) {
	number, err := strconv.Atoi(kind)
	if err != nil {
		return nil, err
	}
	if number != reportV2 {
		a, err := netip.ParseAddr(group)
		return []record{{kind: number, group: nameOf(a)}}, err
	}
	if len(kinds) != len(counts) || len(kinds) != len(groups) {
		return nil, errors.New("not as many types, counts and addresses")
	}
	var list []record
	for i := range kinds {
		k, kindErr := strconv.Atoi(kinds[i])
		n, countErr := strconv.Atoi(counts[i])
		a, addrErr := netip.ParseAddr(groups[i])
		if err := errors.Join(kindErr, countErr, addrErr); err != nil {
			return nil, err
		}
		r := record{kind: k, group: nameOf(a)}
		for range n {
			if len(sources) == 0 {
				return nil, errors.New("fewer sources than counted")
			}
			s, err := netip.ParseAddr(sources[0])
			if err != nil {
				return nil, err
			}
			r.add(s)
			sources = sources[1:]
		}
		list = append(list, r)
	}
	return list, nil
}

// ourSide is our listener.
type ourSide struct {
	twin  *twin
	agent *agent.Agent
}

func startAgent(t *twin) side {
	t.tb.Helper()
	a, err := agent.Start(agent.Config{
		Netns: t.node.Netns(), Index: t.port.Index(), KernelReports: agent.Mute,
		Listener: listener.Config{UnsolicitedReportInterval: interval},
	})
	if err != nil {
		t.tb.Fatal(err)
	}
	t.tb.Cleanup(func() {
		a.Close()
		<-a.Done()
		if !errors.Is(a.Err(), agent.ErrStopped) {
			t.tb.Errorf("the agent ended: %v", a.Err())
		}
	})
	return ourSide{t, a}
}

func (o ourSide) waitRead(int) {
	netnslab.WaitFor(o.twin.tb, "all queries heard", patience, func() (bool, string) {
		state, err := o.agent.State(o.twin.tb.Context())
		c := state.Counters
		all := c.QueriesHeard == uint64(o.twin.asked) && c.ReportsHeard == uint64(o.twin.reported)
		return all, fmt.Sprint(state.Counters, err)
	})
}

func (o ourSide) listen(l listen, _ filter) error {
	id := listener.SubscriberID(l.socket + 1)
	return o.agent.Listen(o.twin.tb.Context(), id, addresses[l.group], l.filter.listener())
}

// sockets are the kernel's side: real ones that join and filter.
type sockets struct {
	twin  *twin
	fds   []int
	index uint32
}

func newSockets(t *twin) side {
	t.tb.Helper()
	s := &sockets{twin: t, index: uint32(t.port.Index())}
	err := t.node.Do(func() error {
		for range 8 {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			s.fds = append(s.fds, fd)
		}
		return nil
	})
	t.tb.Cleanup(func() {
		for _, fd := range s.fds {
			_ = unix.Close(fd)
		}
	})
	if err != nil {
		t.tb.Fatal(err)
	}
	return s
}

// waitRead asks for an answer at once (L12). Reports have a queue of their own, but that is worked off as quickly.
func (s *sockets) waitRead(version int) { s.twin.barrier(version) }

// listen changes a socket's filter by the system calls of RFC 3678: one where there is one, otherwise two, which the
// kernel tells as one change, since it waits two ticks of its clock (L1).
func (s *sockets) listen(l listen, before filter) error {
	call := func(option int, sources ...netip.Addr) error {
		return s.set(l.socket, option, addresses[l.group], sources...)
	}
	filterBy := func() error { return s.setFilter(l.socket, addresses[l.group], l.filter) }
	more, fewer := (l.filter.sources &^ before.sources).addrs(), (before.sources &^ l.filter.sources).addrs()
	odd := l.how%2 == 1
	switch now := l.filter; {
	case !before.wants() && !now.wants():
		return nil
	case !before.wants() && now == filter{exclude: true}:
		return call(unix.MCAST_JOIN_GROUP)
	case !before.wants() && now.exclude:
		return errors.Join(call(unix.MCAST_JOIN_GROUP), filterBy())
	case !before.wants() && len(more) == 1:
		return call(unix.MCAST_JOIN_SOURCE_GROUP, more[0])
	case !before.wants():
		return errors.Join(call(unix.MCAST_JOIN_SOURCE_GROUP, more[0]), filterBy())
	case !now.wants() && odd && !before.exclude && len(fewer) == 1:
		return call(unix.MCAST_LEAVE_SOURCE_GROUP, fewer[0])
	case !now.wants() && odd:
		return call(unix.MCAST_LEAVE_GROUP)
	case !odd:
		return filterBy()
	case before.exclude != now.exclude || len(more)+len(fewer) != 1:
		return filterBy()
	case now.exclude && len(more) == 1:
		return call(unix.MCAST_BLOCK_SOURCE, more[0])
	case now.exclude:
		return call(unix.MCAST_UNBLOCK_SOURCE, fewer[0])
	case len(more) == 1:
		return call(unix.MCAST_JOIN_SOURCE_GROUP, more[0])
	default:
		return call(unix.MCAST_LEAVE_SOURCE_GROUP, fewer[0])
	}
}

// set calls setsockopt with a struct group_req, or group_source_req if there is a source.
func (s *sockets) set(socket, option int, group netip.Addr, sources ...netip.Addr) error {
	b := s.header(group)
	for _, a := range sources {
		b = append(b, sockaddr(a)...)
	}
	return unix.SetsockoptString(s.fds[socket], unix.IPPROTO_IPV6, option, string(b))
}

// setFilter calls setsockopt with a struct group_filter.
func (s *sockets) setFilter(socket int, group netip.Addr, f filter) error {
	mode := uint32(unix.MCAST_INCLUDE)
	if f.exclude {
		mode = unix.MCAST_EXCLUDE
	}
	return s.setSources(socket, group, mode, f.sources.addrs())
}

func (s *sockets) setSources(socket int, group netip.Addr, mode uint32, sources []netip.Addr) error {
	b := binary.NativeEndian.AppendUint32(s.header(group), mode)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(sources)))
	for _, a := range sources {
		b = append(b, sockaddr(a)...)
	}
	return unix.SetsockoptString(s.fds[socket], unix.IPPROTO_IPV6, unix.MCAST_MSFILTER, string(b))
}

// header is the interface and the group, with which all these structures begin.
func (s *sockets) header(group netip.Addr) []byte {
	b := binary.NativeEndian.AppendUint32(nil, s.index)
	return append(append(b, 0, 0, 0, 0), sockaddr(group)...)
}

// sockaddr is a struct sockaddr_storage.
func sockaddr(a netip.Addr) []byte {
	b := make([]byte, 128)
	binary.NativeEndian.PutUint16(b, unix.AF_INET6)
	copy(b[8:], a.AsSlice())
	return b
}
