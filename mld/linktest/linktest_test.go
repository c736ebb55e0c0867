package linktest_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/linktest"
)

var (
	group  = netip.MustParseAddr("ff05::4321")
	alice  = netip.MustParseAddr("fe80::a")
	router = netip.MustParseAddr("fe80::99")
)

type state struct{ up bool }

// heard reads what a port hears until the port is closed.
func heard(p *linktest.Port[state]) <-chan string {
	texts := make(chan string, 100)
	go func() {
		defer close(texts)
		for {
			b, unicast, err := p.ReadPacket()
			if err != nil {
				texts <- err.Error()
				return
			}
			packet, err := mld.Parse(b, 0)
			texts <- fmt.Sprint(packet.Message.Type, packet.Message.MulticastAddress, unicast, err)
		}
	}()
	return texts
}

// all closes a port and returns what it has heard to the end.
func all(p *linktest.Port[state], texts <-chan string) []string {
	synctest.Wait()
	p.Close()
	var list []string
	for text := range texts {
		list = append(list, text)
	}
	return list
}

func TestSegment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := linktest.NewSegment()
		a, b := linktest.Plug(s, "a", state{}), linktest.Plug(s, "b", state{})
		as, bs := heard(a), heard(b)
		begin := time.Now()
		report := mld.AppendReport(nil, alice, group)
		if err := a.WritePacket(report); err != nil {
			t.Fatal(err)
		}
		clear(report) // the segment has its own
		s.Querier(router).Play(
			linktest.Query{After: time.Second, MaxResponseDelay: 10 * time.Second},
			linktest.Query{After: 3 * time.Second, Addr: group, MaxResponseDelay: time.Second},
		)
		b.Hear(mld.AppendReport(nil, alice, group), true)
		a.Refuse(errors.New("no room"))
		if err := a.WritePacket(mld.AppendReport(nil, alice, group)); err == nil || err.Error() != "no room" {
			t.Errorf("a refused packet: %v", err)
		}
		a.Refuse(nil)
		s.Querier(router).Send([]byte("junk"))

		query := []string{"Query :: false <nil>", "Query ff05::4321 false <nil>"}
		junk := []string{"0 invalid IP false packet is shorter than the 40 octets of an IPv6 header", net.ErrClosed.Error()}
		if diff := cmp.Diff(append(query, junk...), all(a, as)); diff != "" {
			t.Error("a: ", diff)
		}
		want := append([]string{"Report ff05::4321 false <nil>"}, query...)
		want = append(append(want, "Report ff05::4321 true <nil>"), junk...)
		if diff := cmp.Diff(want, all(b, bs)); diff != "" {
			t.Error("b: ", diff)
		}

		var log []string
		for _, p := range s.Take() {
			log = append(log, fmt.Sprintf("%v %v %v %v %v", p.At.Sub(begin), p.From, p.Message.Type, p.Message.MaxResponseDelay(), p.Err))
		}
		if diff := cmp.Diff([]string{
			"0s a Report 0s <nil>", "1s fe80::99 Query 10s <nil>", "3s fe80::99 Query 1s <nil>",
			"3s fe80::99 0 0s packet is shorter than the 40 octets of an IPv6 header",
		}, log); diff != "" {
			t.Error("log: ", diff)
		}
		if n := s.Sent(); n != 0 {
			t.Errorf("%d packets after Take", n)
		}
	})
}

func TestPortState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := linktest.Plug(linktest.NewSegment(), "a", state{})
		if _, err := p.State(); err != nil {
			t.Fatal(err)
		}
		p.SetState(state{true})
		p.SetState(state{false})
		p.SetState(state{true})
		if s, err := p.Watch(); err != nil || !s.up {
			t.Errorf("%+v, %v", s, err)
		}
		begin := time.Now()
		time.AfterFunc(time.Minute, func() { p.SetState(state{false}) })
		if s, err := p.Watch(); err != nil || s.up || time.Since(begin) != time.Minute {
			t.Errorf("%+v, %v after %v, want the change after a minute", s, err, time.Since(begin))
		}
		p.Slow(time.Second)
		begin = time.Now()
		if err := p.WritePacket(mld.AppendReport(nil, alice, group)); err != nil || time.Since(begin) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		gone := errors.New("gone")
		time.AfterFunc(time.Second, func() { p.End(gone) })
		if _, err := p.Watch(); err != gone {
			t.Errorf("Watch: %v", err)
		}
		p.Close()
		_, _, err := p.ReadPacket()
		_, stateErr := p.State()
		if writeErr := p.WritePacket(nil); err != gone || stateErr != gone || writeErr != gone || !p.Closed() {
			t.Errorf("after the end: %v, %v, %v", err, stateErr, writeErr)
		}
	})
}

func TestMemberships(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := linktest.NewMemberships("a", "b")
		next := func() any {
			changes, err := m.Next()
			if err != nil {
				return err
			}
			return changes
		}
		if diff := cmp.Diff([]string{"a", "b"}, next()); diff != "" {
			t.Error(diff)
		}
		time.AfterFunc(time.Second, func() { m.Tell("c") })
		if diff := cmp.Diff([]string{"c"}, next()); diff != "" {
			t.Error(diff)
		}
		m.Tell("d", "e")
		m.Tell("f")
		if diff := cmp.Diff([]string{"d", "e", "f"}, next()); diff != "" {
			t.Error(diff)
		}
		time.AfterFunc(time.Second, func() { m.Close() })
		if got := next(); got != net.ErrClosed {
			t.Error(got)
		}
		empty := linktest.NewMemberships[string]()
		if changes, err := empty.Next(); len(changes) != 0 || err != nil {
			t.Error(changes, err)
		}
	})
}
