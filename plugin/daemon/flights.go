package daemon

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// errOvertaken is the cause of the end of a request's context when another one has made it pointless.
var errOvertaken = errors.New("another request for it has overtaken this one")

// flights lets one request at a time work on a key; the others wait for their turn, in the order in which they have come.
type flights[K comparable] struct {
	mu     sync.Mutex
	queues map[K][]*flight // the first is at work
}

// A flight is a request that is at work or waits.
type flight struct {
	turn chan struct{}           // closed when those before it are done
	end  context.CancelCauseFunc // of its context
}

// enter waits for its turn, as long as ctx lasts. The context that it returns ends with ctx, and when the request is
// overtaken, be it before its turn. The caller calls leave when it is done.
func (f *flights[K]) enter(ctx context.Context, key K) (within context.Context, leave func(), err error) {
	own := &flight{turn: make(chan struct{})}
	within, own.end = context.WithCancelCause(ctx)
	leave = func() { f.leave(key, own) }
	f.mu.Lock()
	if f.queues == nil {
		f.queues = make(map[K][]*flight)
	}
	first := len(f.queues[key]) == 0
	f.queues[key] = append(f.queues[key], own)
	f.mu.Unlock()
	if first {
		return within, leave, nil
	}
	select {
	case <-own.turn:
		return within, leave, nil
	case <-ctx.Done():
		leave()
		return nil, nil, ctx.Err()
	}
}

func (f *flights[K]) leave(key K, own *flight) {
	own.end(nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	queue := f.queues[key]
	if queue[0] == own && len(queue) > 1 {
		close(queue[1].turn)
	}
	i := slices.Index(queue, own)
	if queue = slices.Delete(queue, i, i+1); len(queue) > 0 {
		f.queues[key] = queue
	} else {
		delete(f.queues, key)
	}
}

// overtake ends the contexts of the requests that are at work on a key or wait.
func (f *flights[K]) overtake(key K) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, before := range f.queues[key] {
		before.end(errOvertaken)
	}
}
