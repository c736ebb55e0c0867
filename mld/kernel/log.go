package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
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

// logGroup is the nflog group that the mute of an interface logs to, far from the low numbers that people use. taken are
// groups that have a socket: another interface may have an index that gives it the same one.
func logGroup(ifindex int, taken map[uint16]bool) (group uint16) {
	for n := range 0x8000 {
		if group = 0x8000 | uint16((ifindex+n)&0x7fff); !taken[group] {
			break
		}
	}
	return group
}

// takenLogGroups reads which nflog groups of the thread's namespace have a socket. What cannot be read is not known to be
// taken.
func takenLogGroups() map[uint16]bool {
	list, _ := readList("/proc/thread-self/net/netfilter/nfnetlink_log")
	taken := make(map[uint16]bool)
	for line := range bytes.Lines(list) {
		var group uint16
		if n, _ := fmt.Fscan(bytes.NewReader(line), &group); n == 1 {
			taken[group] = true
		}
	}
	return taken
}

// logBuffer is room for the copies of a long answer, which the kernel allocates as they come. A test makes it small.
var logBuffer = 1 << 20

// unbindTimeout is how long bindLog waits for the socket that has had the group before. It has been closed, but somebody may
// hold it for a moment still: Go's poller, to which a packet has just come, or a process that is dying.
const unbindTimeout = time.Second

// bindLog has a netfilter socket get a copy of every packet that the mute with the group drops.
func bindLog(c *netlink.Conn, group uint16) error {
	if err := c.SetReadBuffer(logBuffer); err != nil {
		return fmt.Errorf("set size of log buffer: %w", err)
	}
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: nfulCfgCmd, Data: []byte{nfulCmdBind}},
		{Type: nfulCfgMode, Data: []byte{0, 0, 0xff, 0xff, nfulCopyPacket, 0}},
		{Type: nfulCfgBufSize, Data: binary.BigEndian.AppendUint32(nil, logRoom)},
	})
	if err == nil {
		header := binary.BigEndian.AppendUint16([]byte{unix.AF_INET6, unix.NFNETLINK_V0}, group)
		for end := time.Now().Add(unbindTimeout); ; <-time.After(unbindTimeout / 1000) {
			if err = configure(c, append(header, attrs...)); !errors.Is(err, unix.EPERM) || time.Now().After(end) {
				break
			}
		}
	}
	if errors.Is(err, unix.EPERM) { // the mute was allowed
		err = fmt.Errorf("%w: its log belongs to another socket still: %w", ErrMuted, err)
	}
	if err != nil {
		return fmt.Errorf("nflog group %d: %w", group, err)
	}
	return nil
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
