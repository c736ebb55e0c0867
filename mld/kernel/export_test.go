package kernel

import "time"

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
