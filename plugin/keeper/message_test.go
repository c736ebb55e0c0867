package keeper

import (
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMessages: a message comes as it was sent, with its descriptor; what is none counts for nothing and leaves nothing
// open.
func TestMessages(t *testing.T) {
	ours, file, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := connOf(file)
	if err != nil {
		t.Fatal(err)
	}
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := open()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(null.Fd())
	for _, c := range []struct {
		what string
		send func() error
		want message
		fd   bool
		bad  bool
	}{
		{"keep", func() error { return send(theirs, message{opKeep, 1<<63 + 7}, fd) }, message{opKeep, 1<<63 + 7}, true, false},
		{"drop", func() error { return send(theirs, message{opDrop, 7}, -1) }, message{opDrop, 7}, false, false},
		{"of another release", func() error { return send(theirs, message{'x', 7}, -1) }, message{'x', 7}, false, false},
		{"keep without", func() error { return send(theirs, message{opKeep, 7}, -1) }, message{}, false, true},
		{"drop with", func() error { return send(theirs, message{opDrop, 7}, fd) }, message{}, false, true},
		{"short", func() error { _, err := theirs.Write([]byte("k")); return err }, message{}, false, true},
		{"long", func() error { _, err := theirs.Write(make([]byte, 100)); return err }, message{}, false, true},
		{"two descriptors", func() error {
			_, _, err := theirs.WriteMsgUnix(message{opKeep, 7}.bytes(), unix.UnixRights(fd, fd), nil)
			return err
		}, message{}, false, true},
	} {
		if err := c.send(); err != nil {
			t.Fatal(err)
		}
		m, got, err := receive(ours)
		_, bad := errors.AsType[*badMessageError](err)
		if bad != c.bad || (err != nil) != c.bad || m != c.want || (got >= 0) != c.fd {
			t.Errorf("%s: %v, descriptor %d, %v", c.what, m, got, err)
		}
		if got >= 0 {
			if flags, err := unix.FcntlInt(uintptr(got), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("%s: flags %#x, %v, want close-on-exec", c.what, flags, err)
			}
			_ = unix.Close(got)
		}
	}
	null.Close()
	if after := open(); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
	theirs.Close()
	if _, _, err := receive(ours); !errors.Is(err, io.EOF) {
		t.Errorf("%v, want the end", err)
	}
}

// A keeper that somebody has stopped takes nothing. Who tells it something does not wait for ever, neither for others that
// come later nor for all that came before; and when it goes on, it is told again.
func TestTellStopped(t *testing.T) {
	t.Parallel()
	ours, file, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := connOf(file)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	w := &Worker{conn: ours}
	if err := ours.SetWriteDeadline(time.Now().Add(tellAgainTimeout)); err != nil {
		t.Fatal(err)
	}
	told := 0
	for ; err == nil; told++ {
		err = send(ours, message{opDrop, 1}, -1)
	}
	if told--; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d messages, then %v", told, err)
	}
	var callers sync.WaitGroup
	for i := range 6 {
		callers.Add(1)
		time.AfterFunc(time.Duration(i)*tellTimeout/4, func() {
			defer callers.Done()
			begin := time.Now()
			err := w.Drop(1)
			if took := time.Since(begin); !errors.Is(err, os.ErrDeadlineExceeded) || took > 2*tellTimeout {
				t.Errorf("caller %d: %v after %v, want %v after at most %v", i, err, took, os.ErrDeadlineExceeded, tellTimeout)
			}
		})
	}
	callers.Wait()

	for range told {
		if _, _, err := receive(theirs); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(2 * tellTimeout); ; {
		if err = w.Drop(1); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Errorf("it reads again: %v", err)
	}
}
