package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// ExitHandover is the code with which a worker ends that leaves everything to the next one.
const ExitHandover = 3

const (
	// firstPause and longestPause bound the time until a worker that has failed is followed by the next.
	firstPause, longestPause = 100 * time.Millisecond, 10 * time.Second
	// endTimeout is how long a worker may take to end that was told to, before it is killed. A request that waits for
	// readiness takes up to a minute.
	endTimeout = 90 * time.Second
	// settleTimeout is how long a worker that is to be stopped may take until it is settled.
	settleTimeout = 10 * time.Second
	// maxFormer is of how many workers, one after the other, the keeper holds something. A worker that never gets settled
	// leaves as much as the one before, and the keeper's descriptors, without which there is no next one, would run out.
	maxFormer = 8
	// tryTimeout is how long a program may take to say its version.
	tryTimeout = 5 * time.Second
)

// Config is what a keeper needs. The Path is that of the program, which may be replaced between two workers.
type Config struct {
	Place  *Place
	Path   string
	Args   []string         // from the program's name on
	Ready  *os.File         // for the first worker; may be nil; Run closes it
	Reload <-chan os.Signal // asks for the next worker
	Logger *slog.Logger

	// Settled is called when a worker is settled, or stays although a reload was asked for, Reloading when one is asked for.
	Settled, Reloading func()
}

type keeper struct {
	Config
	served bool           // a worker was settled
	asked  bool           // the worker that is was told to make room for the next
	held   map[uint64]int // descriptors of the worker that is
	former [][]int        // of those before, by worker; of the settled one first
	pause  time.Duration  // before the next worker, if this one fails
}

// Run keeps a worker at work until one has nothing more to do, or until ctx is done, when it is told to stop by SIGTERM, once
// it is settled, or the next one if it is about to be replaced.
// It fails if the first worker ends before it was settled, of its own accord. The Place stays the caller's.
func Run(ctx context.Context, cfg Config) error {
	k := &keeper{Config: cfg, held: make(map[uint64]int), pause: firstPause}
	defer k.close()
	for first := true; ; first = false {
		begin := time.Now()
		state, err := k.work(ctx, first)
		k.Ready = nil
		over := err == nil && state.ExitCode() == ExitHandover
		handover := over || err == nil && k.asked
		switch {
		case err == nil && state.ExitCode() == 0:
			return nil
		case ctx.Err() != nil && !over: // else the next one leaves what stands
			return nil
		case !k.served && !handover && (err != nil || state.Exited()):
			return errors.Join(err, fmt.Errorf("worker: %v", state))
		case k.Place.Gone():
			k.Logger.Warn("keeper ends", "reason", "run directory or socket removed")
			return nil
		case handover:
			continue
		}
		if time.Since(begin) > longestPause {
			k.pause = firstPause
		}
		k.Logger.Error("worker ended: the kernels speak for themselves until the next one", "state", state, "err", err,
			"pause", k.pause, "held", len(slices.Concat(k.former...)))
		select {
		case <-ctx.Done():
			return nil
		case <-k.Reload:
			k.Reloading()
		case <-time.After(k.pause):
		}
		k.pause = min(2*k.pause, longestPause)
	}
}

// close closes everything, and thereby leaves what nobody else holds.
func (k *keeper) close() {
	k.retire()
	k.dropFormer()
}

// retire makes what is held that of a former worker. If there are too many, what goes is the oldest of those that were
// never settled: what it has joined, the others have, too, as far as they have come.
func (k *keeper) retire() {
	if len(k.held) == 0 {
		return
	}
	if len(k.former) == maxFormer {
		k.drop(k.former[1])
		k.former = slices.Delete(k.former, 1, 2)
	}
	k.former = append(k.former, slices.Collect(maps.Values(k.held)))
	clear(k.held)
}

func (k *keeper) dropFormer() {
	k.drop(slices.Concat(k.former...))
	k.former = nil
}

func (k *keeper) drop(fds []int) {
	for _, fd := range fds {
		if err := unix.Close(fd); err != nil {
			k.Logger.Warn("descriptor not closed", "err", err)
		}
	}
}

type received struct {
	message
	fd int
}

// work runs one worker from beginning to end. The first one has nothing to take over.
func (k *keeper) work(ctx context.Context, first bool) (*os.ProcessState, error) {
	cmd, conn, err := k.start()
	if err != nil {
		return nil, err
	}
	k.asked = false
	defer k.retire()
	defer conn.Close()
	messages := make(chan received)
	go k.receive(conn, messages)

	done, reload := ctx.Done(), k.Reload
	settled := first
	var stop <-chan time.Time
	var tried chan error
	kill := time.NewTimer(endTimeout)
	kill.Stop()
	end := func(s os.Signal) {
		done, stop, reload, tried = nil, nil, nil, nil
		_ = cmd.Process.Signal(s) // it may have ended
		kill.Reset(endTimeout)
	}
	for {
		select {
		case m, ok := <-messages:
			if !ok { // the end of the process
				kill.Stop()
				_ = cmd.Process.Kill() // if it has only closed the connection
				_ = cmd.Wait()         // the state says it
				return cmd.ProcessState, nil
			}
			k.handle(m)
			if m.op == opSettled {
				if settled = true; stop != nil {
					end(unix.SIGTERM)
				}
			}
		case <-reload:
			k.asked = true // also if it ends by itself meanwhile
			k.Reloading()
			reload, tried = nil, make(chan error, 1)
			go func(tried chan<- error) { tried <- k.try(ctx) }(tried)
		case err := <-tried:
			if err == nil {
				end(unix.SIGHUP)
				continue
			}
			k.Logger.Error("worker not replaced, it goes on: put an mldd there that starts, and send SIGHUP again",
				"path", k.Path, "err", err)
			k.asked, reload, tried = false, k.Reload, nil
			if k.served {
				k.Settled()
			}
		case <-done:
			if settled {
				end(unix.SIGTERM)
				continue
			}
			// It can leave what stands when it has taken it over.
			done, stop, reload, tried = nil, time.After(settleTimeout), nil, nil
		case <-stop:
			end(unix.SIGTERM)
		case <-kill.C:
			k.Logger.Error("worker does not end", "after", endTimeout)
			_ = cmd.Process.Kill()
		}
	}
}

// try finds out whether the program that is at the path now can be started, and knows the arguments: it is to say its
// version. A worker that has been stopped does not come back.
func (k *keeper) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, tryTimeout, fmt.Errorf("-version does not end within %v", tryTimeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, k.Path)
	cmd.Args = slices.Concat(k.Args[:1], []string{"-version"}, k.Args[1:])
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // what it may have started ends with it
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// start starts a worker.
func (k *keeper) start() (*exec.Cmd, *net.UnixConn, error) {
	conn, theirs, err := pair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	listener, err := k.Place.Listener.File()
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	defer listener.Close()
	cmd := &exec.Cmd{
		Path: k.Path, Args: k.Args, Stderr: os.Stderr,
		ExtraFiles: []*os.File{theirs, listener, k.Place.lock}, // connFD and so on
	}
	if k.Ready != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, k.Ready)
		defer k.Ready.Close()
	}
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d.%t.%t", workerEnv, protocol, k.served, k.Ready != nil))
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("worker: %w", err), conn.Close())
	}
	return cmd, conn, nil
}

// receive passes messages on, until the worker has ended and all it has said is read.
func (k *keeper) receive(conn *net.UnixConn, messages chan<- received) {
	defer close(messages)
	for {
		m, fd, err := receive(conn)
		if bad, ok := errors.AsType[*badMessageError](err); ok {
			k.Logger.Error("message of the worker ignored", "err", bad)
			continue
		}
		if err != nil {
			return
		}
		messages <- received{m, fd}
	}
}

// handle does what the worker asks for.
func (k *keeper) handle(m received) {
	switch m.op {
	case opKeep:
		if fd, ok := k.held[m.id]; ok {
			k.drop([]int{fd})
		}
		k.held[m.id] = m.fd
	case opDrop:
		if fd, ok := k.held[m.id]; ok {
			delete(k.held, m.id)
			k.drop([]int{fd})
		}
	case opSettled:
		k.dropFormer()
		k.served = true
		if !k.asked { // for another one
			k.Settled()
		}
	default:
		k.Logger.Error("message of the worker ignored", "op", m.op)
	}
}
