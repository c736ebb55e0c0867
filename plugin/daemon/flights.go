package daemon

import (
	"context"
	"sync"
)

// flights lets one request at a time work on a key; the others wait for their turn.
type flights[K comparable] struct {
	mu   sync.Mutex
	busy map[K]chan struct{} // closed when the request is done
}

// enter waits for its turn. The caller calls leave when it is done.
func (f *flights[K]) enter(ctx context.Context, key K) (leave func(), err error) {
	for {
		f.mu.Lock()
		before, taken := f.busy[key]
		if !taken {
			break
		}
		f.mu.Unlock()
		select {
		case <-before:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer f.mu.Unlock()
	if f.busy == nil {
		f.busy = make(map[K]chan struct{})
	}
	done := make(chan struct{})
	f.busy[key] = done
	return func() {
		f.mu.Lock()
		delete(f.busy, key)
		f.mu.Unlock()
		close(done)
	}, nil
}
