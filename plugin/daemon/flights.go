package daemon

import (
	"context"
	"errors"
	"sync"
)

// errOvertaken is the cause of the end of a request's context when another one has made it pointless.
var errOvertaken = errors.New("another request for it has overtaken this one")

// flights lets one request at a time work on a key; the others wait for their turn.
type flights[K comparable] struct {
	mu   sync.Mutex
	busy map[K]*flight
}

// A flight is a request at work.
type flight struct {
	done chan struct{}           // closed when it is
	end  context.CancelCauseFunc // of its context
}

// enter waits for its turn. The context that it returns ends with ctx, and when the request is overtaken. The caller calls
// leave when it is done.
func (f *flights[K]) enter(ctx context.Context, key K) (within context.Context, leave func(), err error) {
	for {
		f.mu.Lock()
		before, taken := f.busy[key]
		if !taken {
			break
		}
		f.mu.Unlock()
		select {
		case <-before.done:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	defer f.mu.Unlock()
	if f.busy == nil {
		f.busy = make(map[K]*flight)
	}
	own := &flight{done: make(chan struct{})}
	within, own.end = context.WithCancelCause(ctx)
	f.busy[key] = own
	return within, func() {
		f.mu.Lock()
		delete(f.busy, key)
		f.mu.Unlock()
		close(own.done)
		own.end(nil)
	}, nil
}

// overtake ends the context of the request that is at work on a key, if there is one.
func (f *flights[K]) overtake(key K) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if own := f.busy[key]; own != nil {
		own.end(errOvertaken)
	}
}
