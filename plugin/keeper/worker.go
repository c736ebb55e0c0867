package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// workerEnv makes the program a worker. Its value is the version of the protocol, whether there is something to resume,
// and whether somebody waits for readiness.
const workerEnv = "MLDD_WORKER"

// What a worker inherits, by number.
const (
	connFD     = 3 + iota
	listenerFD // of the run directory's socket
	lockFD     // of the run directory, so that it is taken until the worker is gone, too
	readyFD    // where the keeper's starter waits for a word; the first worker's only
)

// IsWorker tells whether this process is to be a worker.
func IsWorker() bool { return os.Getenv(workerEnv) != "" }

// A Worker is the connection of a worker to its keeper. Its methods are safe for concurrent use.
type Worker struct {
	Listener *net.UnixListener // of the run directory's socket
	Ready    *os.File          // where somebody waits to hear how the start went; nil if nobody does
	Resume   bool              // the keeper holds everything of a worker before

	conn *net.UnixConn
	last atomic.Uint64

	mu   sync.Mutex // of whoever tells the keeper something
	deaf bool       // it took nothing for tellTimeout, and nothing since
}

// Connect makes a worker of this process, which [IsWorker]. It is called once.
func Connect() (*Worker, error) {
	var version int
	var resume, ready bool
	if _, err := fmt.Sscanf(os.Getenv(workerEnv), "%d.%t.%t", &version, &resume, &ready); err != nil || version != protocol {
		return nil, fmt.Errorf("the keeper says %q, and this mldd knows version %d of that: stop mldd and start it again",
			os.Getenv(workerEnv), protocol)
	}
	w := &Worker{Resume: resume}
	unix.CloseOnExec(lockFD)
	if ready {
		unix.CloseOnExec(readyFD)
		w.Ready = os.NewFile(readyFD, "readiness")
	}
	f := os.NewFile(listenerFD, "listener")
	l, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("listening socket of the keeper: %w", err)
	}
	var ok bool
	if w.Listener, ok = l.(*net.UnixListener); !ok {
		return nil, errors.Join(errors.New("the keeper's listening socket is no unix socket"), l.Close())
	}
	if w.conn, err = connOf(os.NewFile(connFD, "keeper")); err != nil {
		return nil, errors.Join(fmt.Errorf("connection to the keeper: %w", err), l.Close())
	}
	return w, nil
}

// Keep has the keeper hold a duplicate of a descriptor.
func (w *Worker) Keep(fd int) (id uint64, err error) {
	id = w.last.Add(1)
	return id, w.tell(message{opKeep, id}, fd)
}

// Drop has the keeper close what it holds as id.
func (w *Worker) Drop(id uint64) error { return w.tell(message{opDrop, id}, -1) }

// Settled has the keeper close what it holds of the workers before.
func (w *Worker) Settled() error { return w.tell(message{opSettled, 0}, -1) }

const (
	// tellTimeout is how long the keeper may take nothing. It always reads, unless somebody has stopped it.
	tellTimeout = 5 * time.Second
	// tellAgainTimeout is the same for one that has taken nothing for so long already: whoever else has something to say
	// finds out whether it reads again, and does not wait for it in turn.
	tellAgainTimeout = tellTimeout / 100
)

func (w *Worker) tell(m message, fd int) error {
	w.mu.Lock() // the deadline is the connection's, and would be the next caller's
	defer w.mu.Unlock()
	timeout := tellTimeout
	if w.deaf {
		timeout = tellAgainTimeout
	}
	if err := w.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	err := send(w.conn, m, fd)
	w.deaf = errors.Is(err, os.ErrDeadlineExceeded)
	return err
}

// Wait returns when the keeper has gone.
func (w *Worker) Wait() {
	for {
		if _, err := w.conn.Read(make([]byte, 1)); err != nil {
			return
		}
	}
}
