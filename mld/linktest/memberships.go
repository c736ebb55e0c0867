package linktest

import (
	"net"
	"sync"
)

// Memberships are what the kernel of a node has joined on an interface; C is the type of a change. Next and Close do
// what the methods of those names of mld/kernel.Mirror do. The others are the test's. The methods are safe for
// concurrent use.
type Memberships[C any] struct {
	mu      sync.Mutex // nobody waits while holding it
	changes []C
	told    bool // Next has returned once
	err     error
	changed chan struct{} // closed when any of these has changed
}

// NewMemberships makes memberships whose first Next tells what stands.
func NewMemberships[C any](standing ...C) *Memberships[C] {
	return &Memberships[C]{changes: standing, changed: make(chan struct{})}
}

// Next waits for changes. The first call returns at once, with what stands, perhaps nothing.
func (m *Memberships[C]) Next() ([]C, error) {
	for {
		m.mu.Lock()
		changes, told, err, changed := m.changes, m.told, m.err, m.changed
		m.changes, m.told = nil, true
		m.mu.Unlock()
		switch {
		case err != nil:
			return nil, err
		case len(changes) > 0 || !told:
			return changes, nil
		}
		<-changed
	}
}

// Tell adds changes for Next to return.
func (m *Memberships[C]) Tell(changes ...C) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes = append(m.changes, changes...)
	m.wake()
}

// End makes Next fail with err. The first End or Close counts.
func (m *Memberships[C]) End(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = err
	}
	m.wake()
}

// Close makes Next fail with [net.ErrClosed].
func (m *Memberships[C]) Close() error {
	m.End(net.ErrClosed)
	return nil
}

func (m *Memberships[C]) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}
