package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// MaxLine bounds a line of the protocol, with its end, in bytes.
const MaxLine = 1 << 20

// ReadRequest reads one request from a connection. It returns io.EOF if the client has closed the connection
// between two requests. An error that is a *types.Error is the client's fault and is to be answered with; any other
// is the connection's, and so is the caller's deadline. After any error the connection must be closed, for the
// place of the next line is lost.
//
// The request is valid (Request.Validate) and its descriptors, which are close-on-exec, belong to the caller. No
// descriptor stays open when an error is returned. The caller sets the deadline (net.Conn.SetReadDeadline); without
// one a silent client is waited for without end.
func ReadRequest(conn *net.UnixConn) (*Request, error) {
	line, files, err := readMessage(conn)
	if err == nil {
		var r *Request
		if r, err = decodeRequest(line, files); err == nil {
			return r, nil
		}
		var e *types.Error
		if !errors.As(err, &e) {
			err = types.NewError(types.ErrDecodingFailure, err.Error(), "")
		}
	}
	for _, f := range files {
		f.Close()
	}
	return nil, err
}

// readMessage reads up to the end of a line and returns the line and every descriptor that came with it, also when
// it returns an error.
func readMessage(conn *net.UnixConn) (line []byte, files []*os.File, err error) {
	tooMany := types.NewError(types.ErrDecodingFailure,
		fmt.Sprintf("request: brings more than %d descriptors", len(descriptorNames)), "")
	buf := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4*len(descriptorNames)))
	used := 0
	for {
		n, oobn, flags, _, err := conn.ReadMsgUnix(buf[used:], oob) // sets MSG_CMSG_CLOEXEC
		got, perr := parseRights(oob[:oobn])
		files = append(files, got...)
		switch {
		case errors.Is(err, io.EOF) && used == 0:
			return nil, files, io.EOF
		case errors.Is(err, io.EOF):
			return nil, files, fmt.Errorf("request: the connection ended after %d bytes, before the end of a line: %w",
				used, io.ErrUnexpectedEOF)
		case err != nil:
			return nil, files, err
		case perr != nil:
			return nil, files, perr
		case flags&unix.MSG_CTRUNC != 0 && len(files) < len(descriptorNames):
			return nil, files, types.NewError(types.ErrTryAgainLater,
				"request: a descriptor of it did not arrive: mldd has as many files open as it may (RLIMIT_NOFILE)", "")
		case flags&unix.MSG_CTRUNC != 0 || len(files) > len(descriptorNames):
			return nil, files, tooMany // the kernel has closed those that found no room
		}
		end := bytes.IndexByte(buf[used:used+n], '\n')
		used += n
		switch {
		case end >= 0 && used-n+end+1 != used:
			return nil, files, types.NewError(types.ErrDecodingFailure,
				"request: bytes follow the line: wait for the answer before the next request", "")
		case end >= 0:
			return buf[:used-1], files, nil
		case used == MaxLine:
			return nil, files, types.NewError(types.ErrDecodingFailure,
				fmt.Sprintf("request: the line is longer than %d bytes", MaxLine), "")
		case used == len(buf):
			buf = append(buf, make([]byte, min(len(buf), MaxLine-len(buf)))...)
		}
	}
}

// parseRights returns the descriptors of a control message as files.
func parseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("request: control message: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // not a message of descriptors, so there is nothing to close
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "descriptor of a request"))
		}
	}
	return files, nil
}

// decodeRequest makes a valid request of a line and the descriptors that came with it. On error the descriptors
// stay the caller's.
func decodeRequest(line []byte, files []*os.File) (*Request, error) {
	w := wireRequest{Request: new(Request)}
	err := decodeStrictly(line, &w)
	if err != nil || w.V != Version {
		if err := checkVersion(line, "request", "client"); err != nil { // the reason for everything else
			return nil, err
		}
	}
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if err := w.attach(files); err != nil {
		return nil, err
	}
	if err := w.Request.Validate(); err != nil {
		return nil, err
	}
	return w.Request, nil
}

// WriteAnswer sends an answer. The caller sets the deadline (net.Conn.SetWriteDeadline).
func WriteAnswer(conn *net.UnixConn, a *Answer) error {
	ans := *a
	ans.V = Version
	line, err := json.Marshal(ans)
	if err != nil {
		return err
	}
	return writeLine(conn, line, nil)
}
