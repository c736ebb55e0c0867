package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// Client is a connection to mldd. It is not safe for concurrent use.
type Client struct {
	conn *net.UnixConn
	r    *bufio.Reader
}

// Dial connects to the daemon of a run directory, which it checks but never creates. The error wraps fs.ErrNotExist
// or unix.ECONNREFUSED if nothing listens there; see NotRunning. It wraps ErrRunDir if the directory is not to be
// trusted. It does not wait: a daemon that is busy lets clients into its backlog, or refuses them.
func Dial(runDir string) (*Client, error) {
	if err := verifyRunDir(runDir); err != nil {
		return nil, err
	}
	path := SocketPath(runDir)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("mldd at %s: %w", path, err)
	}
	return &Client{conn: conn, r: bufio.NewReader(conn)}, nil
}

// NotRunning reports whether an error of Dial or Call means that no daemon listens in the run directory, or that the
// daemon has gone away before it answered.
func NotRunning(err error) bool {
	for _, gone := range []error{fs.ErrNotExist, unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE, io.ErrUnexpectedEOF} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

// Exchange sends one request to the daemon of a run directory, over a connection of its own, and waits for the answer
// until ctx ends. If the daemon goes away before it answers, whoever listens there then is asked once more: a worker of
// mldd may be followed by the next one, and a request that comes twice does no more than one that comes once. The error is
// that of Dial or Client.Call, or what the daemon says is wrong, a *types.Error.
func Exchange(ctx context.Context, runDir string, r *Request) (*Answer, error) {
	line, fds, err := r.encode() // before the daemon knows of us and waits
	if err != nil {
		return nil, err
	}
	answer, connected, err := exchange(ctx, runDir, r, line, fds)
	if connected && NotRunning(err) {
		answer, _, err = exchange(ctx, runDir, r, line, fds)
	}
	if err != nil {
		return nil, err
	}
	if answer.Error != nil {
		return nil, answer.Error
	}
	return answer, nil
}

// exchange is Exchange of a request that is encoded already, and asks once.
func exchange(ctx context.Context, runDir string, r *Request, line []byte, fds []int) (_ *Answer, connected bool, err error) {
	c, err := Dial(runDir)
	if err != nil {
		return nil, false, err
	}
	defer c.Close()
	answer, err := c.exchange(ctx, r, line, fds)
	return answer, true, err
}

// Call sends one request and waits for its answer until ctx ends. The descriptors of the request go with it and
// stay the caller's. The error is about the exchange, a *types.Error if the request is longer than MaxLine; what the daemon
// thinks of the request is in Answer.Error. After an error the client is of no further use.
func (c *Client) Call(ctx context.Context, r *Request) (*Answer, error) {
	line, fds, err := r.encode()
	if err != nil {
		return nil, err
	}
	return c.exchange(ctx, r, line, fds)
}

// exchange sends a request that is encoded already.
func (c *Client) exchange(ctx context.Context, r *Request, line []byte, fds []int) (*Answer, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("mldd: %s: %w", r.Op, err)
	}
	// A deadline in the past wakes the blocked read or write.
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := writeLine(c.conn, line, fds)
	runtime.KeepAlive(r) // its files, whose numbers were in use until here
	var answer *Answer
	if err == nil {
		line, err = readLine(c.r)
	}
	if err == nil {
		answer, err = decodeAnswer(line)
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("no answer: %w", ctx.Err())
		if path := c.conn.RemoteAddr().String(); errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w: something listens at %s, and no worker of mldd answers: see its log, by journalctl -u mldd or in %s",
				err, path, LogPath(filepath.Dir(path)))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("mldd: %s: %w", r.Op, err)
	}
	return answer, nil
}

// encode makes the line of a request, and lists the descriptors that go with it.
func (r *Request) encode() (line []byte, fds []int, err error) {
	req := *r
	req.V = Version
	w := wireRequest{Request: &req}
	for i, f := range []*os.File{r.Netns, r.HostNetns} {
		if f != nil {
			w.Descriptors = append(w.Descriptors, descriptorNames[i])
			fds = append(fds, int(f.Fd()))
		}
	}
	if line, err = json.Marshal(w); err != nil {
		return nil, nil, fmt.Errorf("mldd: %s: %w", r.Op, err)
	}
	if n := len(line) + 1; n > MaxLine {
		return nil, nil, types.NewError(types.ErrInvalidNetworkConfig, // what makes it long; to try again does not help
			fmt.Sprintf("%s: a request of %d bytes: at most %d are sent: name fewer groups, sources or attachments", r.Op, n, MaxLine), "")
	}
	return line, fds, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// writeLine sends a line, with descriptors in the message of its first byte.
func writeLine(conn *net.UnixConn, line []byte, fds []int) error {
	if len(line)+1 > MaxLine {
		return fmt.Errorf("the line is %d bytes long: at most %d are allowed", len(line)+1, MaxLine)
	}
	line = append(line, '\n')
	if len(fds) > 0 {
		n, _, err := conn.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
		if err != nil {
			return err
		}
		if line = line[n:]; len(line) == 0 { // a stream socket may take less than the whole
			return nil // an empty write would fail if the answer is here already and the other side has closed
		}
	}
	_, err := conn.Write(line)
	return err
}

// readLine reads a line of at most MaxLine bytes and returns it without its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > MaxLine {
			return nil, fmt.Errorf("the answer is longer than %d bytes", MaxLine)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("the daemon went away without an answer: %w", io.ErrUnexpectedEOF)
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// decodeAnswer decodes an answer strictly.
func decodeAnswer(line []byte) (*Answer, error) {
	var a Answer
	err := decodeStrictly(line, &a)
	if err != nil || a.V != Version {
		if err := checkVersion(line, "answer", "daemon"); err != nil { // the reason for everything else
			return nil, err
		}
	}
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	return &a, nil
}

// decodeStrictly decodes one JSON value whose keys are all known.
func decodeStrictly(line []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w (protocol version %d on both sides)", err, Version)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value in the line")
	}
	return nil
}
