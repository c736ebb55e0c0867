package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// ErrMuted says that the interface has a mute already, which belongs to another process or to another Mute.
var ErrMuted = errors.New("the kernel's MLD reports are muted by somebody else")

// ErrCannotMute says that the kernel has no nf_tables, or none whose tables go with their owner (before Linux 5.12).
var ErrCannotMute = errors.New("this kernel cannot mute its MLD reports")

// Of nf_tables; package x/sys/unix does not have them.
const (
	nfTableFlagOwner = 2 // NFT_TABLE_F_OWNER
	nfHookLocalIn    = 1 // NF_INET_LOCAL_IN
	nfHookLocalOut   = 3 // NF_INET_LOCAL_OUT
)

// Names within the table, for whoever reads "nft list ruleset".
const (
	chainOutput    = "output"  // sees every packet, and takes aside what may be a report
	chainReports   = "reports" // decides about these
	chainInput     = "input"   // sees every packet for this host, and takes aside the queries
	chainQueries   = "queries" // decides about these
	counterDropped = "dropped"
)

// mutePriority is far before any rule set of the container, which might hide the reports from us at 0 or -150.
const mutePriority = -450

// maxRenewals is how many priorities a mute has from mutePriority on. Each Renew takes the next one: a packet that is on its
// way through the hooks passes the former chain as it was, or else the new one as it is. The other way round it would pass
// the new one before it is in force, and then the former one that is no more. That may happen once in maxRenewals.
const maxRenewals = 100

// A Mute drops the MLD reports that the kernel itself sends on one interface, from NewMute until Close or the
// death of the process, whatever its cause. Its methods are safe for concurrent use.
type Mute struct {
	index   int
	group   uint16 // of nflog; of no meaning without a log
	options MuteOptions
	renewed int // how often

	mu     sync.Mutex
	conn   *netlink.Conn // owns the table: the kernel removes it when the socket is closed
	dup    int           // a second descriptor of the socket, see holdHigh
	closed bool
}

// MuteOptions say what a mute does for a [Mirror]. The zero value mutes and nothing else.
type MuteOptions struct {
	// Hints has the kernel log a copy of what is dropped: it tells a mirror of changes on a kernel without the events.
	Hints bool

	// Sources has it log likewise, so that a mirror learns the source filters.
	Sources bool

	// With either, queries of version 1 are kept from the kernel: in its MLDv1 mode it reports no sources, and no leave
	// where another node was the last to report. So are queries for single sources, the answer to which is only a part
	// of a filter. Both are still heard by AF_PACKET sockets, but not by a program's ICMPv6 socket.
}

// logs tells whether a copy is logged of what is dropped.
func (o MuteOptions) logs() bool { return o.Hints || o.Sources }

// NewMute mutes the kernel on the interface with the given index. It survives a rename of the interface, going
// down and up, and a flush of all rules by the container's root. Reports that a program sends by itself, such as
// a multicast router's, pass. CAP_NET_ADMIN is needed in the namespace.
//
// The error wraps [ErrMuted] or [ErrCannotMute] where these are the cause; the kernel then is as it was.
func NewMute(ns *netns.Namespace, ifindex int, options MuteOptions) (*Mute, error) {
	if ifindex <= 0 {
		return nil, fmt.Errorf("mute interface %d: no such index", ifindex)
	}
	m := &Mute{index: ifindex, options: options, dup: -1}
	err := ns.Do(func() (err error) {
		if options.logs() {
			m.group = logGroup(ifindex, takenLogGroups())
		}
		m.conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("mute interface %d: %w: it has no nfnetlink: %w", ifindex, ErrCannotMute, err)
	}
	if err != nil {
		return nil, fmt.Errorf("mute interface %d: open netfilter socket: %w", ifindex, err)
	}
	m.holdHigh()
	batch, err := m.batch(options, false)
	if err == nil {
		err = m.install(batch)
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// holdHigh keeps a second descriptor of the socket with a high number. A dying process lets its descriptors go
// from the highest number down, each AF_PACKET socket among them takes 13 ms, and until this one has gone the
// kernel stays silent although nobody speaks for it.
func (m *Mute) holdHigh() {
	// The table of descriptors takes eight octets for each, up to the highest.
	const highest, lowest = 1 << 17, 1 << 8
	raw, err := m.conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for n := highest; m.dup < 0 && n >= lowest; n /= 2 { // RLIMIT_NOFILE may be lower
			if dup, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, n); err == nil {
				m.dup = dup
			}
		}
	})
}

// install sends the batch. Only its last message asks for an acknowledgement, so the first answer is that, or the first
// error, which others may follow.
func (m *Mute) install(batch []netlink.Message) error {
	sent, err := m.conn.SendMessages(batch)
	if err != nil {
		return fmt.Errorf("mute interface %d: %w", m.index, err)
	}
	_, err = m.conn.Receive()
	if err == nil {
		return nil
	}
	m.discardAnswers()
	var op *netlink.OpError
	first := errors.As(err, &op) && op.Sequence == sent[0].Header.Sequence
	switch {
	case first && errors.Is(err, unix.EPERM):
		return fmt.Errorf("mute interface %d: CAP_NET_ADMIN is needed in the network namespace: %w", m.index, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("mute interface %d: %w: the namespace has a table ip6 %s already; another mldd there must "+
			"let go of the interface, or the table be deleted: %w", m.index, ErrMuted, tableName(m.index), err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT),
		errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("mute interface %d: %w: it takes nf_tables with owner tables (Linux 5.12 or later), and "+
			"nfnetlink_log for hints and sources: %w", m.index, ErrCannotMute, err)
	}
	return fmt.Errorf("mute interface %d: %w", m.index, err)
}

// discardAnswers reads what is left of the answers to a batch, all of which are there when it has been sent. The next
// request would take them for its own.
func (m *Mute) discardAnswers() {
	raw, err := m.conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		for {
			_, err := ignoringEINTR(func() (int, error) { return unix.Read(int(fd), make([]byte, 1)) })
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return true
			}
		}
	})
}

// Renew makes the mute one of other options, without a moment in which the kernel is heard. Dropped begins at 0 again if
// they differ. On an error the mute is as it was. The namespace is that of NewMute.
func (m *Mute) Renew(ns *netns.Namespace, options MuteOptions) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return net.ErrClosed
	case options == m.options:
		return nil
	}
	if options.logs() && !m.options.logs() { // until now, others could take any group
		if err := ns.Do(func() error {
			m.group = logGroup(m.index, takenLogGroups())
			return nil
		}); err != nil {
			return fmt.Errorf("mute interface %d: %w", m.index, err)
		}
	}
	m.renewed++ // also if it fails
	batch, err := m.batch(options, true)
	if err != nil {
		return err
	}
	if err := m.install(batch); err != nil {
		return err
	}
	m.options = options
	return nil
}

// Dropped returns how many packets were dropped since NewMute or Renew. It is [net.ErrClosed] after Close.
func (m *Mute) Dropped() (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, net.ErrClosed
	}
	req, err := nftMessage(unix.NFT_MSG_GETOBJ, netlink.Request, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_OBJ_TABLE, tableName(m.index))
		e.String(unix.NFTA_OBJ_NAME, counterDropped)
		e.Uint32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	})
	if err != nil {
		return 0, fmt.Errorf("mute interface %d: read counter: %w", m.index, err)
	}
	replies, err := m.conn.Execute(req)
	if err != nil {
		return 0, fmt.Errorf("mute interface %d: read counter: %w", m.index, err)
	}
	for _, r := range replies {
		if n, ok := counterPackets(r.Data); ok {
			return n, nil
		}
	}
	return 0, fmt.Errorf("mute interface %d: read counter: no counter in the answer", m.index)
}

// Close lets the kernel speak again: it answers the next query. It waits for the kernel, about 15 ms, so whoever
// closes many does it concurrently. Further calls do nothing.
func (m *Mute) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	var err error
	if m.dup >= 0 {
		err = unix.Close(m.dup)
	}
	return errors.Join(err, m.conn.Close())
}

// tableName is the table of one interface. Its index does not change with its name.
func tableName(ifindex int) string { return fmt.Sprintf("mld-%d", ifindex) }

// batch is the transaction that makes the table:
//
//	chain output  { oif I, ICMPv6 types 131 to 143: goto reports }
//	chain reports { types 133 to 142 are not MLD: accept; from a program's socket: accept; log; count and drop }
//
// and, for hints and sources,
//
//	chain input   { iif I, ICMPv6 type 130: goto queries }
//	chain queries { number of sources is 0: accept; drop }
//
// If a table is there, of this socket, it goes in the same moment. A packet that is not ICMPv6 costs one rule.
// Queries that are sent pass: a router in the namespace may be the querier.
//
// The log has no limit, for what a limit holds back is lost without a word. What bounds it is the buffer of its
// socket, and an overflow of that is told.
func (m *Mute) batch(options MuteOptions, replace bool) ([]netlink.Message, error) {
	const (
		typeQuery, typeReport, typeReportV2 = 130, 131, 143
		firstOther, lastOther               = 133, 142
	)
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	reports := [][]expr.Any{
		append(icmpType(firstOther, lastOther), accept),
		{
			// Every user matches; a packet of the kernel's own has none, and then the whole rule does not.
			&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, ^uint32(0))},
			accept,
		},
	}
	if options.logs() {
		reports = append(reports, []expr.Any{&expr.Log{
			Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_QTHRESHOLD,
			Group: m.group, QThreshold: 1, // or a copy waits up to a second for company
		}})
	}
	reports = append(reports, []expr.Any{
		&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counterDropped},
		&expr.Verdict{Kind: expr.VerdictDrop},
	})

	table, priority := tableName(m.index), mutePriority+int32(m.renewed%maxRenewals)
	b := batch{table: table}
	b.control(unix.NFNL_MSG_BATCH_BEGIN)
	if replace {
		b.add(unix.NFT_MSG_DELTABLE, 0, func(e *netlink.AttributeEncoder) { e.String(unix.NFTA_TABLE_NAME, table) })
	}
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Excl, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_TABLE_NAME, table)
		e.Uint32(unix.NFTA_TABLE_FLAGS, nfTableFlagOwner)
	})
	b.add(unix.NFT_MSG_NEWOBJ, 0, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_OBJ_TABLE, table)
		e.String(unix.NFTA_OBJ_NAME, counterDropped)
		e.Uint32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
		e.Bytes(unix.NFTA_OBJ_DATA|unix.NLA_F_NESTED, nil)
	})
	b.chain(chainReports, reports)
	if options.logs() {
		// The number of sources stands at 26. A query of version 1 ends at 24, and then the rule does not match.
		b.chain(chainQueries, [][]expr.Any{
			{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 26, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 0}},
				accept,
			},
			{&expr.Verdict{Kind: expr.VerdictDrop}},
		})
		b.hook(chainInput, nfHookLocalIn, priority, takeAside(expr.MetaKeyIIF, m.index, typeQuery, typeQuery, chainQueries))
	}
	b.hook(chainOutput, nfHookLocalOut, priority, takeAside(expr.MetaKeyOIF, m.index, typeReport, typeReportV2, chainReports))
	b.messages[len(b.messages)-1].Header.Flags |= netlink.Acknowledge
	b.control(unix.NFNL_MSG_BATCH_END)
	if b.err != nil {
		return nil, fmt.Errorf("mute interface %d: %w", m.index, b.err)
	}
	return b.messages, nil
}

// takeAside sends the ICMPv6 packets of some types that come or go through the interface to a chain.
func takeAside(direction expr.MetaKey, ifindex int, first, last byte, chain string) []expr.Any {
	rule := []expr.Any{
		&expr.Meta{Key: direction, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, uint32(ifindex))},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
	}
	rule = append(rule, icmpType(first, last)...)
	return append(rule, &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain})
}

// icmpType matches an ICMPv6 type from first to last.
func icmpType(first, last byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{first}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{last}},
	}
}

// A batch gathers the messages of one nf_tables transaction and the first error.
type batch struct {
	table    string
	messages []netlink.Message
	err      error
}

func (b *batch) control(kind netlink.HeaderType) {
	b.messages = append(b.messages, netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES},
	})
}

func (b *batch) add(kind int, flags netlink.HeaderFlags, attrs func(*netlink.AttributeEncoder)) {
	m, err := nftMessage(kind, netlink.Request|netlink.Create|flags, attrs)
	if b.err == nil {
		b.err = err
	}
	b.messages = append(b.messages, m)
}

// chain adds a chain with its rules, for other chains to go to.
func (b *batch) chain(name string, rules [][]expr.Any) {
	b.add(unix.NFT_MSG_NEWCHAIN, 0, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_CHAIN_TABLE, b.table)
		e.String(unix.NFTA_CHAIN_NAME, name)
	})
	for _, r := range rules {
		b.rule(name, r)
	}
}

// hook adds a chain with one rule that the packets of a hook pass. Where it goes to must be there.
func (b *batch) hook(name string, hook uint32, priority int32, rule []expr.Any) {
	b.add(unix.NFT_MSG_NEWCHAIN, 0, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_CHAIN_TABLE, b.table)
		e.String(unix.NFTA_CHAIN_NAME, name)
		e.String(unix.NFTA_CHAIN_TYPE, "filter")
		e.Nested(unix.NFTA_CHAIN_HOOK, func(e *netlink.AttributeEncoder) error {
			e.Uint32(unix.NFTA_HOOK_HOOKNUM, hook)
			e.Int32(unix.NFTA_HOOK_PRIORITY, priority)
			return nil
		})
		e.Uint32(unix.NFTA_CHAIN_POLICY, 1) // NF_ACCEPT
	})
	b.rule(name, rule)
}

func (b *batch) rule(chain string, exprs []expr.Any) {
	b.add(unix.NFT_MSG_NEWRULE, netlink.Append, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_RULE_TABLE, b.table)
		e.String(unix.NFTA_RULE_CHAIN, chain)
		e.Nested(unix.NFTA_RULE_EXPRESSIONS, func(e *netlink.AttributeEncoder) error {
			for _, x := range exprs {
				data, err := expr.Marshal(unix.AF_INET6, x)
				if err != nil {
					return err
				}
				e.Bytes(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data)
			}
			return nil
		})
	})
}

func nftMessage(kind int, flags netlink.HeaderFlags, attrs func(*netlink.AttributeEncoder)) (netlink.Message, error) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	attrs(e)
	data, err := e.Encode()
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: flags},
		Data:   append([]byte{unix.AF_INET6, unix.NFNETLINK_V0, 0, 0}, data...),
	}, err
}

// counterPackets finds the number of packets in an nf_tables counter object.
func counterPackets(b []byte) (n uint64, ok bool) {
	if len(b) < nfgenmsgLen {
		return 0, false
	}
	d, err := netlink.NewAttributeDecoder(b[nfgenmsgLen:])
	if err != nil {
		return 0, false
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		if d.Type() != unix.NFTA_OBJ_DATA {
			continue
		}
		d.Nested(func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				if d.Type() == unix.NFTA_COUNTER_PACKETS {
					n, ok = d.Uint64(), true
				}
			}
			return nil
		})
	}
	return n, ok && d.Err() == nil
}
