package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// Of nfnetlink_log, whose numbers package x/sys/unix does not have.
const (
	nfgenmsgLen = 4
	logRoom     = 512 // what the kernel sets aside for a copy; a longer one gets what it needs

	nfulMsgPacket = unix.NFNL_SUBSYS_ULOG << 8   // NFULNL_MSG_PACKET
	nfulMsgConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG

	nfulCfgCmd     = 1 // NFULA_CFG_CMD
	nfulCfgMode    = 2 // NFULA_CFG_MODE
	nfulCfgBufSize = 3 // NFULA_CFG_NLBUFSIZ
	nfulCmdBind    = 1 // NFULNL_CFG_CMD_BIND
	nfulCopyPacket = 2 // NFULNL_COPY_PACKET
	nfulPayload    = 9 // NFULA_PAYLOAD
)

// logGroup is the nflog group that the mute of an interface logs to, far from the low numbers that people use.
func logGroup(ifindex int) uint16 { return 0x8000 | uint16(ifindex&0x7fff) }

// logBuffer is room for the copies of a long answer, which the kernel allocates as they come. A test makes it small.
var logBuffer = 1 << 20

// openLog opens a socket that gets a copy of every packet that the mute of the interface drops.
func openLog(ns *netns.Namespace, ifindex int) (*netlink.Conn, error) {
	var c *netlink.Conn
	err := ns.Do(func() error {
		var err error
		c, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	if err := c.SetReadBuffer(logBuffer); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("set size of log buffer: %w", err)
	}
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: nfulCfgCmd, Data: []byte{nfulCmdBind}},
		{Type: nfulCfgMode, Data: []byte{0, 0, 0xff, 0xff, nfulCopyPacket, 0}},
		{Type: nfulCfgBufSize, Data: binary.BigEndian.AppendUint32(nil, logRoom)},
	})
	if err == nil {
		header := binary.BigEndian.AppendUint16([]byte{unix.AF_INET6, unix.NFNETLINK_V0}, logGroup(ifindex))
		err = configure(c, append(header, attrs...))
	}
	if errors.Is(err, unix.EPERM) { // the mute was allowed; a socket of its owner before may go a moment after that mute
		err = fmt.Errorf("%w: its log belongs to another socket still: %w", ErrMuted, err)
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("nflog group %d: %w", logGroup(ifindex), err)
	}
	return c, nil
}

// configure sends a request about the log and waits for its acknowledgement. Copies of packets may come before that;
// they are from before the mirror begins, which does not count on them.
func configure(c *netlink.Conn, request []byte) error {
	sent, err := c.Send(netlink.Message{
		Header: netlink.Header{Type: nfulMsgConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   request,
	})
	if err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(logPatience)); err != nil {
		return err
	}
	for {
		replies, err := c.Receive()
		if err != nil {
			return err
		}
		for _, r := range replies {
			if r.Header.Type == netlink.Error && r.Header.Sequence == sent.Header.Sequence {
				return c.SetReadDeadline(time.Time{})
			}
		}
	}
}

// logPatience is how long an acknowledgement may take, which the kernel sends at once.
const logPatience = 5 * time.Second

// loggedPackets calls found with the packets in what was read from the log.
func loggedPackets(b []byte, found func(packet []byte)) {
	walk(b, func(h header, data []byte) {
		if h.kind != nfulMsgPacket || len(data) < nfgenmsgLen {
			return
		}
		attributes(data[nfgenmsgLen:], func(kind uint16, value []byte) {
			if kind == nfulPayload {
				found(value)
			}
		})
	})
}
