package listener_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

func TestSubscriptions(t *testing.T) {
	now := time.Unix(0, 0)
	l, err := listener.New(listener.Config{}, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	group := netip.MustParseAddr("ff05::4321")
	a, b := netip.MustParseAddr("fd00::a"), netip.MustParseAddr("fd00::b")
	for _, step := range []struct {
		id   listener.SubscriberID
		f    listener.Filter
		want string
	}{
		{7, listener.AnySource, "[{7 {EXCLUDE []}}]"},
		{3, listener.Filter{Sources: []netip.Addr{b, a}}, "[{3 {INCLUDE [fd00::a fd00::b]}} {7 {EXCLUDE []}}]"},
		{5, listener.Filter{Mode: listener.Exclude, Sources: []netip.Addr{a}},
			"[{3 {INCLUDE [fd00::a fd00::b]}} {5 {EXCLUDE [fd00::a]}} {7 {EXCLUDE []}}]"},
		{3, listener.AnySource, "[{3 {EXCLUDE []}} {5 {EXCLUDE [fd00::a]}} {7 {EXCLUDE []}}]"},
		{7, listener.Filter{}, "[{3 {EXCLUDE []}} {5 {EXCLUDE [fd00::a]}}]"},
		{3, listener.Filter{}, "[{5 {EXCLUDE [fd00::a]}}]"},
		{5, listener.Filter{}, "[]"},
	} {
		if err := l.Listen(now, step.id, group, step.f); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(l.Subscriptions(group)); got != step.want {
			t.Errorf("after %d wants %v: %s, want %s", step.id, step.f, got, step.want)
		}
	}
}

// V2-13: in MLDv2 that of the querier, in MLDv1 one's own.
func TestV2_13_Robustness(t *testing.T) {
	now := time.Unix(0, 0)
	router := netip.MustParseAddr("fe80::99")
	l, err := listener.New(listener.Config{Robustness: 3}, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	want := func(what string, want int) {
		t.Helper()
		if got := l.Robustness(); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	query := mld.Message{Type: mld.TypeQuery, Version: mld.Version2, MulticastAddress: netip.IPv6Unspecified(), QRV: 5}
	want("before a Query", 3)
	l.Receive(now, router, query)
	want("after a Query with 5", 5)
	query.QRV = 0
	l.Receive(now, router, query)
	want("after a Query with none", 3)
	query.QRV = 7
	l.Receive(now, router, query)
	query.Version = mld.Version1
	l.Receive(now, router, query)
	want("in MLDv1", 3)
}
