package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// State is what an agent knows at one moment.
type State struct {
	Link          link.State
	KernelReports KernelReports      // Mute or Keep: what was found possible
	Muted         uint64             // reports of the kernel that were dropped
	Addresses     []listener.Address // sorted
	Version       mld.Version        // that is spoken now
	OlderUntil    time.Time          // when MLDv1 ends that is spoken because of a querier, if that asks no more; else zero
	Robustness    int                // in force
	Querier       Querier
	Counters      listener.Counters
	Rejected      [mld.NumReasons]uint64 // packets heard and not accepted, by mld.Reason
	SendErrors    uint64                 // packets that the interface did not take
}

// A Querier is who asked last, for whatever addresses. The zero Querier means that nobody has asked yet.
type Querier struct {
	Addr    netip.Addr
	Version mld.Version // of its Query
	Heard   time.Time
}

// State returns the state, that of the link as it is now, or as it was seen last if it cannot be read for the moment. It
// fails only if the agent or ctx has ended, or with an error that wraps [link.ErrGone].
func (a *Agent) State(ctx context.Context) (State, error) {
	var s State
	var gone error
	var mute *kernel.Mute
	err := a.do(ctx, func() {
		gone, mute = a.look(), a.mute
		s = State{
			Link:          a.link,
			KernelReports: Keep,
			Addresses: slices.SortedFunc(a.listener.Snapshot(), func(x, y listener.Address) int {
				return x.Addr.Compare(y.Addr)
			}),
			Version:    a.listener.Version(),
			OlderUntil: a.listener.OlderVersionQuerierPresent(),
			Robustness: a.listener.Robustness(),
			Querier:    a.querier,
			Counters:   a.listener.Counters(),
			Rejected:   a.rejected,
			SendErrors: a.sendErrs,
		}
		if mute != nil {
			s.KernelReports = Mute
		}
	})
	if err = errors.Join(err, gone); err != nil || mute == nil {
		return s, err
	}
	s.Muted, err = mute.Dropped()
	if errors.Is(err, net.ErrClosed) { // the agent is on its way out, and nobody has followed it yet
		select {
		case <-a.done:
			err = a.err
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return s, err
}

// Link returns the state of the interface as it was seen last. It never waits for the agent.
func (a *Agent) Link() link.State { return *a.seen.Load() }

// waiter waits until something has come true of addresses.
type waiter struct {
	addrs   []netip.Addr
	missing func(addrs []netip.Addr) []netip.Addr // of which it has not
	done    chan struct{}
	ctx     context.Context
}

// WaitReported waits until every one of the addresses has been reported from a valid link-local address, by the
// listener or, where its reports are kept, by the kernel. If ctx ends first, the error wraps its error and says
// which addresses are missing and why.
func (a *Agent) WaitReported(ctx context.Context, addrs ...netip.Addr) error {
	err := a.wait(ctx, a.unreported, addrs)
	if ctx.Err() != nil && err != nil {
		return a.explain(ctx.Err(), addrs)
	}
	return err
}

// WaitLeft waits until nobody listens to any of the addresses, and it has been said. If ctx ends first, it returns its
// error.
func (a *Agent) WaitLeft(ctx context.Context, addrs ...netip.Addr) error {
	return a.wait(ctx, a.held, addrs)
}

func (a *Agent) wait(ctx context.Context, missing func([]netip.Addr) []netip.Addr, addrs []netip.Addr) error {
	w := waiter{addrs: addrs, missing: missing, done: make(chan struct{}), ctx: ctx}
	if err := a.do(ctx, func() { a.waiters = append(a.waiters, w) }); err != nil {
		return err
	}
	select {
	case <-w.done:
		return nil
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// An unreportedError says what is not reported and why. That the time was up is known to whoever has limited it.
type unreportedError struct {
	what  string
	cause error
}

func (e *unreportedError) Error() string {
	if errors.Is(e.cause, context.DeadlineExceeded) {
		return e.what
	}
	return e.what + ": " + e.cause.Error()
}

func (e *unreportedError) Unwrap() error { return e.cause }

// explain says why addresses are not reported.
func (a *Agent) explain(cause error, addrs []netip.Addr) error {
	var err error
	if doErr := a.do(context.Background(), func() {
		missing := a.unreported(addrs)
		if len(missing) == 0 {
			return // in the meantime
		}
		why := NotHeld
		for _, addr := range missing {
			why = min(why, a.unreportedBecause(addr))
		}
		err = &unreportedError{fmt.Sprintf("interface %s: %v not reported: %s", a.link.Name, missing, a.words(why)), cause}
	}); doErr != nil {
		return doErr
	}
	return err
}

// wake tells the waiters for whose addresses it has come true, and forgets those that have given up.
func (a *Agent) wake() {
	a.waiters = slices.DeleteFunc(a.waiters, func(w waiter) bool {
		if w.ctx.Err() != nil {
			return true
		}
		if len(w.missing(w.addrs)) > 0 {
			return false
		}
		close(w.done)
		return true
	})
}

// held returns those of the addresses that somebody listens to, or all of them while leaves may wait to be sent.
func (a *Agent) held(addrs []netip.Addr) []netip.Addr {
	if a.more {
		return addrs
	}
	return slices.DeleteFunc(slices.Clone(addrs), func(addr netip.Addr) bool { return !a.voice.holds(addr) })
}

func (a *Agent) unreported(addrs []netip.Addr) []netip.Addr {
	if a.link.Obstacle() != "" {
		return addrs
	}
	return slices.DeleteFunc(slices.Clone(addrs), a.voice.reported)
}
