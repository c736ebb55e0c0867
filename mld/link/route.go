package link

import (
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// A routeSocket asks the kernel about an interface. It has joined no group, so nothing comes to it but answers, and these
// are there when a request has been sent: it never waits, and needs none of Go's poller.
type routeSocket struct {
	fd  int
	seq uint32
}

func dialRoute(ns *netns.Namespace) (r *routeSocket, err error) {
	err = ns.Do(func() error {
		r, err = newRouteSocket()
		return err
	})
	return r, err
}

// newRouteSocket opens one in the namespace that the thread is in.
func newRouteSocket() (*routeSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open route socket: %w", err)
	}
	// Before Linux 4.20 a dump of addresses is not limited to the interface, only longer.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &routeSocket{fd: fd}, nil
}

// Close closes the socket.
func (r *routeSocket) Close() error { return unix.Close(r.fd) }

// answers are what an answer is read into: the kernel makes a part of a dump no longer than that. They grow with what is
// told of an interface with many other names, 64 KiB and more.
var answers = sync.Pool{New: func() any { b := make([]byte, 16<<10); return &b }}

// ask sends a request and hands what is answered to take: one message, or those of a dump. What take is given is only
// its own until it returns.
func (r *routeSocket) ask(kind, flags uint16, data []byte, take func(data []byte) error) error {
	r.seq++
	n := unix.SizeofNlMsghdr + len(data)
	b := binary.NativeEndian.AppendUint32(make([]byte, 0, n), uint32(n))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, r.seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // our port: as the kernel has chosen it
	if err := unix.Sendto(r.fd, append(b, data...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	buf := answers.Get().(*[]byte)
	defer answers.Put(buf)
	for {
		part, err := r.receive(buf)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		for rest := part; len(rest) >= unix.SizeofNlMsghdr; {
			n := int(binary.NativeEndian.Uint32(rest))
			if n < unix.SizeofNlMsghdr || n > len(rest) {
				return fmt.Errorf("message of %d octets in %d", n, len(rest))
			}
			data := rest[unix.SizeofNlMsghdr:n]
			switch kind := binary.NativeEndian.Uint16(rest[4:]); kind {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				if len(data) < 4 {
					return fmt.Errorf("end of %d octets", len(data))
				}
				if errno := -int32(binary.NativeEndian.Uint32(data)); errno != 0 {
					return unix.Errno(errno)
				}
				return nil
			}
			if err := take(data); err != nil {
				return err
			}
			if flags&unix.NLM_F_DUMP == 0 {
				return nil
			}
			rest = rest[min((n+3)&^3, len(rest)):]
		}
	}
}

// receive reads one part of an answer into buf, which is made longer if it must be.
func (r *routeSocket) receive(buf *[]byte) (part []byte, err error) {
	n, err := ignoringEINTR(func() (int, error) {
		n, _, err := unix.Recvfrom(r.fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC)
		return n, err
	})
	if err != nil {
		return nil, err
	}
	if n > len(*buf) {
		*buf = make([]byte, n)
	}
	n, err = ignoringEINTR(func() (int, error) { return unix.Read(r.fd, *buf) })
	return (*buf)[:max(n, 0)], err
}
