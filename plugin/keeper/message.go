package keeper

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// protocol is the version of what keeper and worker say to each other. They may be of different releases, after a
// reload.
const protocol = 1

// A message is an operation and the number of a socket, in network byte order.
type message struct {
	op op
	id uint64
}

type op byte

const (
	opKeep    op = 'k' // hold the descriptor that comes with it, as id
	opDrop    op = 'd' // close what is held as id
	opSettled op = 's' // close what is held of the workers before
)

const messageLen = 9

func (m message) bytes() []byte {
	return binary.BigEndian.AppendUint64([]byte{byte(m.op)}, m.id)
}

// send sends a message, with a descriptor unless fd is negative. The kernel takes it as a whole.
func send(conn *net.UnixConn, m message, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	_, _, err := conn.WriteMsgUnix(m.bytes(), rights, nil)
	return err
}

// receive waits for a message. The descriptor that came with it is the caller's, and negative if there was none. An error
// means that there are no more.
func receive(conn *net.UnixConn) (m message, fd int, err error) {
	var b [messageLen + 1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(b[:], oob) // sets MSG_CMSG_CLOEXEC
	switch {
	case err != nil:
		return m, -1, err
	case n == 0:
		return m, -1, io.EOF
	}
	fds := rights(oob[:oobn])
	defer func() {
		if err != nil {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}
	}()
	fd = -1
	if len(fds) == 1 {
		fd = fds[0]
	}
	m = message{op(b[0]), binary.BigEndian.Uint64(b[1:])}
	switch {
	case n != messageLen:
		err = fmt.Errorf("message of %d octets", n)
	case flags&unix.MSG_CTRUNC != 0:
		err = fmt.Errorf("descriptor %d lost: the limit of open files (RLIMIT_NOFILE) is too low", m.id)
	case (m.op == opKeep) != (fd >= 0) || len(fds) > 1:
		err = fmt.Errorf("message %q with %d descriptors", m.op, len(fds))
	default:
		return m, fd, nil
	}
	return message{}, -1, &badMessageError{err}
}

// rights returns the descriptors of a control message.
func rights(oob []byte) []int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil
	}
	return fds
}

// A badMessageError says that a message counts for nothing; there may be more.
type badMessageError struct{ err error }

func (e *badMessageError) Error() string { return e.err.Error() }
func (e *badMessageError) Unwrap() error { return e.err }

// pair makes two connected sockets, the worker's as a file to be inherited.
func pair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "keeper")
	if ours, err = connOf(os.NewFile(uintptr(fds[0]), "worker")); err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// connOf makes a connection of a file, and closes the file.
func connOf(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("%s: not a unix socket", f.Name())
	}
	return unixConn, nil
}
