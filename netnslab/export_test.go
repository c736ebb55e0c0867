package netnslab

import "net/netip"

// WithSoftnetStat has what the processors have received read from another file until restore is called.
func WithSoftnetStat(path string) (restore func()) {
	real := softnetStat
	softnetStat = path
	return func() { softnetStat = real }
}

// NotMember is the hint of a Receiver that waits in vain.
func (e *Endpoint) NotMember(group netip.Addr) string { return e.notMember(group) }
