package bridge

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// ErrNotPort says that a link is not, or no longer, a port of a Linux bridge.
var ErrNotPort = errors.New("not a port of a bridge")

// Names from linux/if_link.h and linux/if_bridge.h that golang.org/x/sys does not have.
const (
	iflaBRPortState          = 1  // IFLA_BRPORT_STATE
	iflaBRPortMcastNGroups   = 41 // IFLA_BRPORT_MCAST_N_GROUPS (Linux 6.3)
	iflaBRPortMcastMaxGroups = 42 // IFLA_BRPORT_MCAST_MAX_GROUPS

	iflaBRMcastSnooping     = 23 // IFLA_BR_MCAST_SNOOPING
	iflaBRMcastQuerier      = 25 // IFLA_BR_MCAST_QUERIER
	iflaBRMcastHashMax      = 27 // IFLA_BR_MCAST_HASH_MAX
	iflaBRMcastMLDVersion   = 44 // IFLA_BR_MCAST_MLD_VERSION
	iflaBRMcastQuerierState = 47 // IFLA_BR_MCAST_QUERIER_STATE (Linux 5.15)

	bridgeQuerierIPv6Address    = 5 // BRIDGE_QUERIER_IPV6_ADDRESS
	bridgeQuerierIPv6Port       = 6 // BRIDGE_QUERIER_IPV6_PORT
	bridgeQuerierIPv6OtherTimer = 7 // BRIDGE_QUERIER_IPV6_OTHER_TIMER

	brStateForwarding = 3 // BR_STATE_FORWARDING
)

// A Port is a port of a bridge: the host's end of a container's veth, or the bridge itself, whose entries are of the
// groups that its own host has joined. Its methods are safe for concurrent use.
type Port struct {
	Bridge      string // names at the time of FindPort
	Name        string
	BridgeIndex int
	Index       int

	ns   *netns.Namespace
	conn *netlink.Conn        // for requests; each Wait has a socket of its own for events
	news atomic.Pointer[news] // of Listen, until a Wait takes it
}

// Netns returns the namespace that the bridge is in, which stays its owner's.
func (p *Port) Netns() *netns.Namespace { return p.ns }

// State is what a bridge says about itself and one of its ports at a moment.
type State struct {
	// Snooping says that the bridge keeps an MDB. A bridge whose MDB overflows turns it off by itself (B19).
	Snooping bool
	// Querier says that the bridge knows an MLD querier, its own or another, and therefore sends a group only to
	// the ports that have an entry for it (B1). The kernel does not tell two moments: after a querier became active
	// the bridge floods for one response interval more, for which Querier is true too early (B2); and when its own
	// querier loses its address the bridge constrains until its next query fails, for which Querier is false too
	// early. Before Linux 5.15 the kernel tells of no other querier, and that its own is on and has an address to ask
	// from is what counts.
	Querier bool
	// QuerierAddr is the querier's address; zero without a querier.
	QuerierAddr netip.Addr
	// QuerierPort is the ifindex of the port behind which another querier was heard; 0 if the bridge itself is the
	// querier, or if that port has left the bridge.
	QuerierPort int
	// MLDVersion is the version of the bridge's snooping and of its own queries, 1 or 2. In version 1 it
	// takes every report for any source (B17).
	MLDVersion int
	// HashMax is how many groups the MDB takes.
	HashMax int
	// Groups is how many entries the port has, and MaxGroups how many it may have; 0 is no limit. Both are 0 before
	// Linux 6.3. Without Snooping, entries are what an overflow has left: whoever turns it off empties the MDB.
	Groups, MaxGroups int
	// Forwarding says that the port passes frames: state forwarding, which it leaves when the link goes down. The
	// bridge itself does while it is up.
	Forwarding bool
}

// FindPort finds the bridge that the interface with the given index is, or is a port of. Both are in the namespace host,
// which must stay open as long as the Port is. An error that wraps [ErrNotPort] says that there is no such port.
func FindPort(host *netns.Namespace, ifindex int) (*Port, error) {
	conn, err := dial(host)
	if err != nil {
		return nil, fmt.Errorf("bridge port %d: %w", ifindex, err)
	}
	p := &Port{Index: ifindex, ns: host, conn: conn}
	if err := p.find(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return p, nil
}

func (p *Port) find() error {
	port, err := p.link(p.Index)
	if err != nil {
		return err
	}
	if port.isBridge {
		p.Name, p.Bridge, p.BridgeIndex = port.name, port.name, p.Index
		return nil
	}
	if !port.isPort {
		return fmt.Errorf("link %s: %w", port.name, ErrNotPort)
	}
	bridge, err := p.link(port.master)
	if err != nil {
		return err
	}
	p.Name, p.Bridge, p.BridgeIndex = port.name, bridge.name, port.master
	return nil
}

// String is bridge and port: "cni0 port veth1".
func (p *Port) String() string { return p.Bridge + " port " + p.Name }

// Close ends the use of the port. A Wait that is under way ends with an error then, at the latest with its context.
func (p *Port) Close() error {
	err := p.conn.Close()
	if news := p.news.Swap(nil); news != nil {
		err = errors.Join(err, news.events.Close())
	}
	return err
}

// State asks the kernel for the state of bridge and port. An error that wraps [ErrNotPort] says that the interface
// is gone or has left the bridge.
func (p *Port) State() (State, error) {
	port, err := p.self()
	if err != nil {
		return State{}, err
	}
	bridge, err := p.link(p.BridgeIndex)
	if err != nil {
		return State{}, err
	}
	state := bridge.state
	state.Forwarding = port.forwarding
	state.Groups, state.MaxGroups = port.groups, port.maxGroups
	switch {
	case bridge.untold:
		if state.QuerierAddr, err = p.linkLocal(); err != nil {
			return State{}, err
		}
		state.Querier = state.QuerierAddr.IsValid()
	case bridge.ownQuerier && state.Querier:
		// The kernel shows the address of the last query, also when the bridge cannot send another.
		if state.Querier, err = p.hasAddr(state.QuerierAddr); err != nil {
			return State{}, err
		}
	}
	if !state.Querier {
		state.QuerierAddr, state.QuerierPort = netip.Addr{}, 0
	}
	return state, nil
}

// self asks for the port, which may have left the bridge.
func (p *Port) self() (link, error) {
	port, err := p.link(p.Index)
	if err == nil && (!port.isPort || port.master != p.BridgeIndex) && !port.isBridge {
		err = fmt.Errorf("link %s of bridge %s: %w", port.name, p.Bridge, ErrNotPort)
	}
	return port, err
}

// hasAddr tells whether the bridge device has an address that it may send from.
func (p *Port) hasAddr(addr netip.Addr) (bool, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.IFA_ADDRESS, addr.AsSlice())
	attrs, err := ae.Encode()
	if err != nil {
		return false, fmt.Errorf("bridge %s: %w", p.Bridge, err)
	}
	replies, err := p.addrs(0, attrs)
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("bridge %s: address %s: %w", p.Bridge, addr, err)
	}
	for _, m := range replies {
		if len(m.Data) >= unix.SizeofIfAddrmsg {
			return sendsFrom(m.Data), nil
		}
	}
	return false, nil
}

// linkLocal is an address that the bridge device may send queries from; zero if it has none.
func (p *Port) linkLocal() (netip.Addr, error) {
	replies, err := p.addrs(netlink.Dump, nil)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("bridge %s: addresses: %w", p.Bridge, err)
	}
	for _, m := range replies {
		if len(m.Data) < unix.SizeofIfAddrmsg || int(binary.NativeEndian.Uint32(m.Data[4:])) != p.BridgeIndex || !sendsFrom(m.Data) {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfAddrmsg:])
		if err != nil {
			return netip.Addr{}, fmt.Errorf("bridge %s: addresses: %w", p.Bridge, err)
		}
		for ad.Next() {
			addr, ok := netip.AddrFromSlice(ad.Bytes())
			if ad.Type() == unix.IFA_ADDRESS && ok && addr.IsLinkLocalUnicast() && !addr.Is4In6() {
				return addr, nil
			}
		}
	}
	return netip.Addr{}, nil
}

// addrs asks for IPv6 addresses of the bridge device.
func (p *Port) addrs(flags netlink.HeaderFlags, attrs []byte) ([]netlink.Message, error) {
	request := make([]byte, unix.SizeofIfAddrmsg)
	request[0] = unix.AF_INET6
	binary.NativeEndian.PutUint32(request[4:], uint32(p.BridgeIndex))
	return p.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETADDR, Flags: netlink.Request | flags},
		Data:   append(request, attrs...),
	})
}

// sendsFrom tells whether an address, in an ifaddrmsg, may be a source: it is not tentative, and no duplicate.
func sendsFrom(b []byte) bool {
	flags := b[2]
	tentative := flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_OPTIMISTIC) == unix.IFA_F_TENTATIVE
	return !tentative && flags&unix.IFA_F_DADFAILED == 0
}

// Members returns the entries of the MDB that are on this port.
func (p *Port) Members() ([]Entry, error) {
	all, err := dump(p.conn, p.BridgeIndex)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(e Entry) bool { return e.Port != p.Index }), nil
}

// Listen lets the next Wait know of the entries that come from now on. If those are all it waits for, and nothing of that
// is taken back, it need not read the database, which has the entries of all ports of all bridges, and which the kernel
// locks while it is read.
func (p *Port) Listen() error {
	events, err := p.dialEvents()
	if err != nil {
		return err
	}
	port, err := p.self()
	if err != nil {
		return errors.Join(err, events.Close())
	}
	heard := &news{events: events, before: math.MaxInt}
	if port.counted {
		heard.before = port.groups
	}
	if former := p.news.Swap(heard); former != nil {
		return former.events.Close()
	}
	return nil
}

// news is what Listen has begun to hear.
type news struct {
	events *netlink.Conn
	before int // how many entries the port had at most
}

func (p *Port) dialEvents() (*netlink.Conn, error) {
	events, err := dial(p.ns, unix.RTNLGRP_MDB, unix.RTNLGRP_LINK)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	return events, nil
}

// A Flow is packets to a group from a source, or from any source if Source is the zero Addr.
type Flow struct{ Group, Source netip.Addr }

// String is the group, or "(source,group)".
func (f Flow) String() string {
	if !f.Source.IsValid() {
		return f.Group.String()
	}
	return fmt.Sprintf("(%s,%s)", f.Source, f.Group)
}

// Wait returns nil as soon as the bridge has an entry for every one of groups on this port, of whatever source, that
// forwards something. If ctx ends before that, the error wraps the cause and names the groups that are missing; an
// error that wraps [ErrNotPort] says that the port went away.
//
// An entry proves forwarding only together with [State]: with Querier false everything is flooded anyway.
func (p *Port) Wait(ctx context.Context, groups ...netip.Addr) error {
	flows := make([]Flow, len(groups))
	for i, g := range groups {
		flows[i].Group = g
	}
	return p.wait(ctx, flows, true)
}

// WaitFlows is [Port.Wait] for what is forwarded in particular: from a source because of an entry for it, or of one for
// any source that does not keep it out; from any source because of an entry for any source alone.
func (p *Port) WaitFlows(ctx context.Context, flows ...Flow) error { return p.wait(ctx, flows, false) }

// A missingError says what is missing. That the time was up is known to whoever has limited it.
type missingError struct {
	what  string
	cause error
}

func (e *missingError) Error() string {
	if errors.Is(e.cause, context.DeadlineExceeded) {
		return e.what
	}
	return e.what + ": " + e.cause.Error()
}

func (e *missingError) Unwrap() error { return e.cause }

// wait waits for entries; some says that for a flow from any source one from some source is enough.
func (p *Port) wait(ctx context.Context, flows []Flow, some bool) error {
	wanted := make(pending)
	for _, f := range flows {
		wanted.add(f)
	}
	// Events first and the database afterwards, so that nothing falls between them.
	heard := p.news.Swap(nil)
	if heard == nil {
		events, err := p.dialEvents()
		if err != nil {
			return err
		}
		heard = &news{events: events}
	} else if told, err := p.told(ctx, heard, wanted, some); told || err != nil {
		return errors.Join(err, heard.events.Close())
	}
	events := heard.events
	defer events.Close()
	defer context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })()

	for look := secondLook; ; {
		members, err := p.Members()
		missing := wanted.missing(members, some)
		interrupted := errors.Is(err, errInterrupted)
		switch {
		case interrupted: // the next try is to come at a calmer moment
		case err != nil || len(missing) == 0:
			return err
		}
		if _, err := p.self(); err != nil {
			return err // it went before there were events
		}
		// Events may be older than the database just read, so what they say is only believed once it has been
		// read again. Of two deadlines the end of ctx wins.
		_ = events.SetReadDeadline(time.Now().Add(look))
		if ctx.Err() != nil {
			_ = events.SetReadDeadline(time.Unix(1, 0))
		}
		_, end := p.follow(events, missing, missing, some, 0)
		if errors.Is(end, os.ErrDeadlineExceeded) {
			if look *= 2; ctx.Err() == nil {
				continue
			}
			end = context.Cause(ctx)
		}
		switch {
		case end != nil && interrupted:
			return &missingError{err.Error(), end}
		case end != nil:
			return &missingError{fmt.Sprintf("%s: no entry for %v%s", p, missing.flows(), missing.limit(members)), end}
		}
	}
}

// secondLook is how long Wait follows events before it reads the database again; the next time it takes twice as long.
// The kernel goes on with a long dump by counting, so while entries of others leave it may miss one that stands, without
// a word (NLM_F_DUMP_INTR), and no event of that one will come.
const secondLook = 100 * time.Millisecond

// newsDelay is how long a Wait after Listen waits for events of entries that may as well have been there before, of which
// none comes. An event comes within a moment of the Report.
const newsDelay = 20 * time.Millisecond

// told tells whether there were events of entries for all that is wanted, and none that takes something of it back.
func (p *Port) told(ctx context.Context, heard *news, wanted pending, some bool) (bool, error) {
	missing := wanted.clone()
	stop := context.AfterFunc(ctx, func() { _ = heard.events.SetReadDeadline(time.Unix(1, 0)) })
	reread, err := p.follow(heard.events, missing, wanted, some, heard.before) // what it fails for shows again
	if !stop() {
		return false, nil // the time is up
	}
	if err := heard.events.SetReadDeadline(time.Now().Add(newsDelay)); err != nil {
		return false, fmt.Errorf("%s: %w", p, err)
	}
	if !reread && err == nil {
		reread, err = p.follow(heard.events, missing, wanted, some, 0)
	}
	for more := true; more && !reread && err == nil; { // what has come may have gone since
		if more, err = queued(heard.events); more {
			reread, err = p.hear(heard.events, missing, wanted, some)
		}
	}
	told := !reread && err == nil
	if err := heard.events.SetReadDeadline(time.Time{}); err != nil {
		return false, fmt.Errorf("%s: %w", p, err)
	}
	return told, nil
}

// queued tells whether there is an event, or an error, to be read at once.
func queued(events *netlink.Conn) (bool, error) {
	raw, err := events.SyscallConn()
	if err != nil {
		return false, err
	}
	ready := 0
	ctlErr := raw.Control(func(fd uintptr) {
		ready, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	})
	return ready > 0, errors.Join(ctlErr, err)
}

// pending is flows without an entry: their sources by group.
type pending map[netip.Addr]map[netip.Addr]struct{}

func (m pending) add(f Flow) {
	f.Group = f.Group.WithZone("")
	if m[f.Group] == nil {
		m[f.Group] = make(map[netip.Addr]struct{})
	}
	m[f.Group][f.Source.WithZone("")] = struct{}{}
}

func (m pending) clone() pending {
	c := make(pending, len(m))
	for group, sources := range m {
		c[group] = maps.Clone(sources)
	}
	return c
}

// of tells whether the entry is of one of the flows.
func (m pending) of(e Entry) bool {
	_, ok := m[e.Group][e.Source]
	return ok
}

// serve removes what the entry forwards, provided that no other entry keeps it out.
func (m pending) serve(e Entry, some bool) {
	switch {
	case !e.Forwards():
	case some || !e.Source.IsValid():
		delete(m, e.Group)
	default:
		delete(m[e.Group], e.Source)
		if len(m[e.Group]) == 0 {
			delete(m, e.Group)
		}
	}
}

func (m pending) flows() []Flow {
	var list []Flow
	for group, sources := range m {
		for source := range sources {
			list = append(list, Flow{group, source})
		}
	}
	slices.SortFunc(list, func(a, b Flow) int {
		return cmp.Or(a.Group.Compare(b.Group), a.Source.Compare(b.Source))
	})
	return list
}

// missing returns what none of a port's entries forwards.
func (m pending) missing(members []Entry, some bool) pending {
	missing := m.clone()
	for _, e := range members {
		missing.serve(e, some)
	}
	for _, e := range members { // which an entry for any source may have served too early
		if e.Blocked && m.of(e) {
			missing.add(Flow{e.Group, e.Source})
		}
	}
	return missing
}

// limit is [SourceLimit] for what is missing from named sources.
func (m pending) limit(members []Entry) string {
	for group, sources := range m {
		if _, anySource := sources[netip.Addr{}]; anySource {
			continue
		}
		if limit := SourceLimit(members, group); limit != "" {
			return limit
		}
	}
	return ""
}

// follow hears events until no more groups than rest are left in missing, or until the database must be read.
func (p *Port) follow(events *netlink.Conn, missing, wanted pending, some bool, rest int) (reread bool, err error) {
	for len(missing) > rest && !reread && err == nil {
		reread, err = p.hear(events, missing, wanted, some)
	}
	return reread, err
}

// hear applies the next event to missing. With reread the database must be read: events were lost, an entry of a wanted
// group has gone, which may have forwarded something or kept it out, or there is one that keeps out what is wanted.
func (p *Port) hear(events *netlink.Conn, missing, wanted pending, some bool) (reread bool, err error) {
	messages, err := events.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_DELLINK:
			if p.concerns(m.Data) {
				return false, ErrNotPort
			}
		case unix.RTM_NEWMDB, unix.RTM_DELMDB:
			entries, err := parseEntries(m.Data)
			if err != nil {
				return false, err
			}
			for _, e := range entries {
				if e.Bridge != p.BridgeIndex || e.Port != p.Index {
					continue
				}
				gone := m.Header.Type == unix.RTM_DELMDB
				switch {
				case gone && wanted[e.Group] != nil, e.Blocked && wanted.of(e):
					reread = true
				case !gone:
					missing.serve(e, some)
				}
			}
		}
	}
	return reread, nil
}

// concerns tells whether a message about a link, an ifinfomsg, is about this port.
func (p *Port) concerns(b []byte) bool {
	return len(b) >= unix.SizeofIfInfomsg && int(int32(binary.NativeEndian.Uint32(b[4:]))) == p.Index
}

// dial opens a socket for requests inside ns, or one that hears of the given groups of events.
func dial(ns *netns.Namespace, groups ...uint32) (*netlink.Conn, error) {
	var conn *netlink.Conn
	err := ns.Do(func() error {
		var err error
		conn, err = netlink.Dial(unix.NETLINK_ROUTE, nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open route netlink socket: %w", err)
	}
	for _, group := range groups {
		if err := conn.JoinGroup(group); err != nil {
			return nil, errors.Join(fmt.Errorf("subscribe to route netlink group %d: %w", group, err), conn.Close())
		}
	}
	return conn, nil
}

// link asks for an interface.
func (p *Port) link(ifindex int) (link, error) {
	request := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(request[4:], uint32(ifindex))
	replies, err := p.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request},
		Data:   request,
	})
	switch {
	case errors.Is(err, unix.ENODEV):
		return link{}, fmt.Errorf("link %d: %w: it does not exist", ifindex, ErrNotPort)
	case err != nil:
		return link{}, fmt.Errorf("link %d: %w", ifindex, err)
	case len(replies) != 1:
		return link{}, fmt.Errorf("link %d: %d answers instead of one", ifindex, len(replies))
	}
	l, err := parseLink(replies[0].Data)
	if err != nil {
		return link{}, fmt.Errorf("link %d: %w", ifindex, err)
	}
	return l, nil
}

// A link is what is read of an interface that may be a bridge or a port of one.
type link struct {
	name       string
	master     int
	isPort     bool
	isBridge   bool
	forwarding bool
	groups     int
	counted    bool // the kernel has told groups
	maxGroups  int
	state      State // of a bridge, without what is the port's
	ownQuerier bool  // the querier of state, if there is one, is the bridge itself
	untold     bool  // its own querier is on, and the kernel does not tell whether it asks
}

// parseLink decodes an ifinfomsg and the attributes after it.
func parseLink(b []byte) (link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, fmt.Errorf("message of %d bytes: %w", len(b), errShort)
	}
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return link{}, err
	}
	var l link
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			l.name = ad.String()
		case unix.IFLA_MASTER:
			l.master = int(ad.Uint32())
		case unix.IFLA_LINKINFO:
			ad.Nested(l.parseInfo)
		}
	}
	if l.isBridge {
		l.forwarding = binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0
	}
	return l, ad.Err()
}

func (l *link) parseInfo(ad *netlink.AttributeDecoder) error {
	var kind, slaveKind string // each precedes its data
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_INFO_KIND:
			kind = ad.String()
			l.isBridge = kind == "bridge"
		case unix.IFLA_INFO_DATA:
			if kind == "bridge" {
				ad.Nested(l.parseBridge)
			}
		case unix.IFLA_INFO_SLAVE_KIND:
			slaveKind = ad.String()
			l.isPort = slaveKind == "bridge"
		case unix.IFLA_INFO_SLAVE_DATA:
			if slaveKind == "bridge" {
				ad.Nested(l.parsePort)
			}
		}
	}
	return nil
}

func (l *link) parsePort(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case iflaBRPortState:
			l.forwarding = ad.Uint8() == brStateForwarding
		case iflaBRPortMcastNGroups:
			l.groups, l.counted = int(ad.Uint32()), true
		case iflaBRPortMcastMaxGroups:
			l.maxGroups = int(ad.Uint32())
		}
	}
	return nil
}

func (l *link) parseBridge(ad *netlink.AttributeDecoder) error {
	var own, other, told bool
	for ad.Next() {
		switch ad.Type() {
		case iflaBRMcastSnooping:
			l.state.Snooping = ad.Uint8() != 0
		case iflaBRMcastQuerier:
			own = ad.Uint8() != 0
		case iflaBRMcastHashMax:
			l.state.HashMax = int(ad.Uint32())
		case iflaBRMcastMLDVersion:
			l.state.MLDVersion = int(ad.Uint8())
		case iflaBRMcastQuerierState:
			told = true
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch ad.Type() {
					case bridgeQuerierIPv6Address:
						if b := ad.Bytes(); len(b) == 16 && [16]byte(b) != [16]byte{} {
							l.state.QuerierAddr = netip.AddrFrom16([16]byte(b))
						}
					case bridgeQuerierIPv6Port:
						l.state.QuerierPort = int(ad.Uint32())
					case bridgeQuerierIPv6OtherTimer:
						other = true
					}
				}
				return nil
			})
		}
	}
	// An own querier without an address has never sent a query, and the bridge does not trust the MDB because of it.
	l.ownQuerier = own && !other
	l.untold = own && !told && l.state.Snooping
	l.state.Querier = l.state.Snooping && (other || own && l.state.QuerierAddr.IsValid())
	return nil
}
