package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

const (
	// requestTimeout is how long a client may take to send a request, or to take an answer.
	requestTimeout = 10 * time.Second
	// workTimeout is how long a request may take beside the wait for readiness.
	workTimeout = 10 * time.Second
	// firstRequest is how long a client that has just been accepted may still take when the daemon is told to end: who
	// could connect is answered.
	firstRequest = time.Second
	// maxConnections is how many clients are served at once; further ones wait in the socket's backlog.
	maxConnections = 256
)

// accept serves clients until the listener is closed.
func (d *Daemon) accept(ctx context.Context, connections *sync.WaitGroup) {
	places := make(chan struct{}, maxConnections)
	for {
		places <- struct{}{}
		conn, err := d.cfg.Listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, most likely: those of the clients served now will come back
			d.log.Error("client not accepted", "err", err)
			<-places
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
				continue
			}
		}
		connections.Go(func() {
			defer func() { <-places }()
			defer conn.Close()
			if err := d.serve(ctx, conn); err != nil && ctx.Err() == nil {
				d.log.Warn("client dropped", "err", err)
			}
		})
	}
}

// serve answers the requests of one client.
func (d *Daemon) serve(ctx context.Context, conn *net.UnixConn) error {
	if err := checkPeer(conn); err != nil {
		return err
	}
	var answered atomic.Bool
	hurry := func() error {
		if answered.Load() {
			return conn.SetReadDeadline(time.Now())
		}
		return conn.SetReadDeadline(time.Now().Add(firstRequest))
	}
	defer context.AfterFunc(ctx, func() { _ = hurry() })()
	for ; ; answered.Store(true) {
		if err := conn.SetReadDeadline(time.Now().Add(d.patience)); err != nil {
			return err
		}
		if ctx.Err() != nil { // only now: from here on the end of ctx moves the deadline
			if err := hurry(); err != nil {
				return err
			}
		}
		r, err := api.ReadRequest(conn)
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
			return nil
		}
		var fault *types.Error
		if err != nil && !errors.As(err, &fault) {
			return err
		}
		if fault == nil && api.Streams(r.Op) {
			err := d.stream(ctx, conn, r)
			r.Close()
			if err != nil {
				return err
			}
			continue
		}
		begin := time.Now()
		answer, failure := &api.Answer{Error: fault}, error(nil)
		if fault == nil {
			answer, failure = d.handle(d.work, r, func() bool { return hasLeft(conn) })
			r.Close()
			if answer == nil {
				<-ctx.Done() // who looks for the next daemon is not to find this one again
				return failure
			}
		}
		err = d.answer(conn, answer)
		switch { // only now: who waits for the answer does not wait for the log
		case fault != nil:
			return fault // the place of the next line is lost
		case r.Op != api.OpStatus:
			d.logDone(r, answer, failure, time.Since(begin))
		}
		if err != nil {
			return err
		}
	}
}

// hasLeft tells whether a client has closed its connection.
func hasLeft(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	var polled [1]unix.PollFd
	if err := raw.Control(func(fd uintptr) {
		polled[0].Fd = int32(fd)
		_, _ = unix.Poll(polled[:], 0) // if it cannot be known, the client is there
	}); err != nil {
		return true
	}
	return polled[0].Revents&unix.POLLHUP != 0
}

// checkPeer refuses clients of other users, whom the mode of the socket keeps away already.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("peer credentials: %w", credErr)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of user %d may not use this socket", cred.Pid, cred.Uid)
	}
	return nil
}

// errEnding makes the client look for the next daemon, when the socket is closed.
var errEnding = errors.New("not answered: there were no attachments, and mldd is about to end")

// handle does what a request asks for, unless left says that its client has gone. The request stays the caller's to close.
// The error is the whole of the one that the answer has; without an answer there is none to give.
func (d *Daemon) handle(ctx context.Context, r *api.Request, left func() bool) (*api.Answer, error) {
	switch r.Op {
	case api.OpStatus:
		return &api.Answer{Status: d.status()}, nil
	case api.OpAdd:
		arrived, ok := d.expectOne()
		if !ok {
			return nil, errEnding
		}
		defer arrived()
	}
	timeout := workTimeout
	if r.Settings != nil {
		timeout += time.Duration(r.Settings.Ready.Timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := d.dispatch(ctx, r, left)
	if err != nil {
		return &api.Answer{Error: asTypesError(err)}, err
	}
	return answer, nil
}

func (d *Daemon) logDone(r *api.Request, answer *api.Answer, err error, took time.Duration) {
	log := d.about(r.Attachment).With("op", r.Op)
	if err != nil {
		log.Warn("request refused", "err", err, "dur", took)
		return
	}
	log.Info("request done", "degraded", answer.Degraded, "dur", took)
}

// dispatch has a request done in its turn.
func (d *Daemon) dispatch(ctx context.Context, r *api.Request, left func() bool) (*api.Answer, error) {
	if r.Op == api.OpGC {
		return &api.Answer{}, d.gc(ctx, r)
	}
	if r.Op == api.OpDel { // a runtime that has given up an ADD does not wait until that is ready
		d.attaching.overtake(r.Attachment)
	}
	within, leave, err := d.enter(ctx, r.Attachment)
	if err != nil {
		return nil, err
	}
	defer leave()
	answer := &api.Answer{}
	switch {
	case r.Op == api.OpDel: // which is not overtaken: another one does the same
		answer.Unknown = d.lookup(r.Attachment) == nil && !d.store.has(r.Attachment)
		return answer, d.del(ctx, r.Attachment)
	case errors.Is(context.Cause(within), errOvertaken): // while it has waited
		err = errOvertaken
	case r.Op == api.OpAdd && left(): // only now: a DEL that its client has sent since then waits for this
		err = types.NewError(types.ErrTryAgainLater, fmt.Sprintf("attachment %v: not begun: its client has given up", r.Attachment), "")
	case r.Op == api.OpAdd:
		answer.Degraded, err = d.add(within, r)
	case r.Op == api.OpCheck:
		err = d.check(within, r)
	default:
		err = types.NewError(types.ErrDecodingFailure, fmt.Sprintf("request: op %q is unknown", r.Op), "")
	}
	if err != nil && errors.Is(context.Cause(within), errOvertaken) {
		err = errors.Join(types.NewError(types.ErrTryAgainLater,
			fmt.Sprintf("attachment %v: its DEL has come before this was done", r.Attachment), ""), err)
	}
	return answer, err
}

// enter waits until no other request is at work on an attachment.
func (d *Daemon) enter(ctx context.Context, key api.Attachment) (within context.Context, leave func(), err error) {
	within, leave, err = d.attaching.enter(ctx, key)
	if err != nil {
		return nil, nil, types.NewError(types.ErrTryAgainLater,
			fmt.Sprintf("attachment %v: another request for it is still at work: try again", key), "")
	}
	return within, leave, nil
}

// asTypesError gives an error the code that it carries, or the internal one.
func asTypesError(err error) *types.Error {
	if e, ok := errors.AsType[*types.Error](err); ok {
		return e
	}
	return types.NewError(types.ErrInternal, err.Error(), "")
}
