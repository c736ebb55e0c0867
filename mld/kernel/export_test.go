package kernel

import (
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// WithoutEvents pretends that the kernel has no events of its memberships until restore is called.
func WithoutEvents() (restore func()) {
	real := mcaddrGroup
	mcaddrGroup = 1 << 20
	return func() { mcaddrGroup = real }
}

// Sockets is how many sockets the joins are on.
func (j *Joins) Sockets() int { return len(j.sockets) }

// HighDescriptor is the second descriptor of the socket that owns the table.
func (m *Mute) HighDescriptor() int { return m.dup }

// DropTable takes the table away, so that the mute cannot be renewed.
func (m *Mute) DropTable() error {
	b := batch{table: tableName(m.index)}
	b.control(unix.NFNL_MSG_BATCH_BEGIN)
	b.add(unix.NFT_MSG_DELTABLE, netlink.Acknowledge, func(e *netlink.AttributeEncoder) { e.String(unix.NFTA_TABLE_NAME, b.table) })
	b.control(unix.NFNL_MSG_BATCH_END)
	return m.install(b.messages)
}

// WithLogBuffer makes the logs that are opened until restore is called hold so much.
func WithLogBuffer(octets int) (restore func()) {
	real := logBuffer
	logBuffer = octets
	return func() { logBuffer = real }
}

// WithSourcesDelay has sources waited for so long until restore is called.
func WithSourcesDelay(d time.Duration) (restore func()) {
	real := sourcesDelay
	sourcesDelay = d
	return func() { sourcesDelay = real }
}
