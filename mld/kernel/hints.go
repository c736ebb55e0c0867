package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// hintRate is how many muted packets a second are logged at most, so that a storm of joins does not become a
// storm of copies. A packet of version 2 holds up to 72 records.
const hintRate = 1000

// Of nfnetlink_log, whose numbers package x/sys/unix does not have.
const (
	nfgenmsgLen = 4

	nfulMsgPacket = unix.NFNL_SUBSYS_ULOG << 8   // NFULNL_MSG_PACKET
	nfulMsgConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG

	nfulCfgCmd     = 1 // NFULA_CFG_CMD
	nfulCfgMode    = 2 // NFULA_CFG_MODE
	nfulCmdBind    = 1 // NFULNL_CFG_CMD_BIND
	nfulCopyPacket = 2 // NFULNL_COPY_PACKET
	nfulPayload    = 9 // NFULA_PAYLOAD
)

// hintGroup is the nflog group that the mute of an interface logs to, far from the low numbers that people use.
func hintGroup(ifindex int) uint16 { return 0x8000 | uint16(ifindex&0x7fff) }

// openHints opens a socket that gets a copy of every packet that the mute of the interface drops.
func openHints(ns *netns.Namespace, ifindex int) (*netlink.Conn, error) {
	var c *netlink.Conn
	err := ns.Do(func() error {
		var err error
		c, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	for _, config := range []netlink.Attribute{
		{Type: nfulCfgCmd, Data: []byte{nfulCmdBind}},
		{Type: nfulCfgMode, Data: []byte{0, 0, 0xff, 0xff, nfulCopyPacket, 0}},
	} {
		attr, err := netlink.MarshalAttributes([]netlink.Attribute{config})
		if err != nil {
			_ = c.Close()
			return nil, fmt.Errorf("nflog group %d: %w", hintGroup(ifindex), err)
		}
		header := binary.BigEndian.AppendUint16([]byte{unix.AF_INET6, unix.NFNETLINK_V0}, hintGroup(ifindex))
		_, err = c.Execute(netlink.Message{
			Header: netlink.Header{Type: nfulMsgConfig, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(header, attr...),
		})
		if err != nil {
			_ = c.Close()
			return nil, fmt.Errorf("nflog group %d: %w", hintGroup(ifindex), err)
		}
	}
	return c, nil
}

// loggedPacket finds the packet in an nflog message, or returns nil.
func loggedPacket(m netlink.Message) []byte {
	if m.Header.Type != nfulMsgPacket || len(m.Data) < nfgenmsgLen {
		return nil
	}
	d, err := netlink.NewAttributeDecoder(m.Data[nfgenmsgLen:])
	if err != nil {
		return nil
	}
	for d.Next() {
		if d.Type() == nfulPayload {
			return d.Bytes()
		}
	}
	return nil
}

// heard yields the addresses that a report of the kernel shows to be joined. It tells whether anything else is
// in it, which may be a leave: a Done, or a record of what is no longer wanted.
func heard(packet []byte, joined func(netip.Addr)) (other bool) {
	// Until its link-local address is valid the kernel reports from "::" (L6).
	p, err := mld.Parse(packet, mld.AcceptUnspecified)
	if err != nil {
		return true
	}
	switch p.Message.Type {
	case mld.TypeReport:
		joined(p.Message.MulticastAddress)
	case mld.TypeReportV2:
		for r := range p.Message.Records.All() {
			switch {
			case r.Type == mld.ModeIsExclude, r.Type == mld.ChangeToExclude:
				joined(r.MulticastAddress)
			case r.Type != mld.BlockOldSources && r.Sources.Len() > 0:
				joined(r.MulticastAddress) // to receive from some sources
			default:
				other = true
			}
		}
	default:
		other = true
	}
	return other
}
