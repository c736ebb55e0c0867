package listener_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// A listener that takes the place of another one tells what stands as if it had been asked for, and nothing as a change.
func TestResume(t *testing.T) {
	for name, s := range map[string]struct {
		cfg        listener.Config
		transcript string
	}{
		"MLDv2": {transcript: `
			0s    listen ff05::8 EX()
			0s    listen ff05::9 IN(s1)
			0s    mirror ff02::1 EX()
			0s    resume fe80::a
			0s    ? ff05::8
			0s    = ff05::8 EX() Idle
			9.995s > IS_EX(ff05::8) IS_IN(ff05::9; s1)
			1h    wait
		`},
		"MLDv2, what changes meanwhile is news": {transcript: `
			0s    listen ff05::8 EX()
			0s    listen ff05::9 EX()
			0s    resume fe80::a
			1s    listen ff05::8 IN()
			1s    > TO_IN(ff05::8)
			1s    listen ff05::7 EX()
			1s    > TO_EX(ff05::7)
			2s    > TO_EX(ff05::7) TO_IN(ff05::8)
			9.995s > IS_EX(ff05::7) IS_EX(ff05::9)
		`},
		"MLDv2, a query that wants it sooner": {transcript: `
			0s    listen ff05::8 EX()
			0s    resume fe80::a
			0s    query2 :: 1s
			995ms > IS_EX(ff05::8)
			1h    wait
		`},
		"MLDv2, nothing stands": {transcript: `
			0s    mirror ff02::1 EX()
			0s    resume fe80::a
			0s    listen ff05::8 EX()
			0s    > TO_EX(ff05::8)
			1s    > TO_EX(ff05::8)
		`},
		"MLDv2, no address yet": {transcript: `
			0s    listen ff05::8 EX()
			0s    resume ::
			0s    > TO_EX(ff05::8) from ::
			1s    > TO_EX(ff05::8) from ::
			2s    source fe80::a
			2s    > TO_EX(ff05::8)
			3s    > TO_EX(ff05::8)
		`},
		"MLDv2, another address": {transcript: `
			0s    listen ff05::8 EX()
			0s    resume fe80::a
			1s    source fe80::c
			1s    > TO_EX(ff05::8) from fe80::c
			2s    > TO_EX(ff05::8) from fe80::c
			9.995s > IS_EX(ff05::8) from fe80::c
		`},
		"MLDv1": {listener.Config{Version: mld.Version1, Robustness: 3}, `
			0s    join ff05::8
			0s    join ff05::9
			0s    join ff02::1
			0s    resume fe80::a
			0s    ? ff05::8
			0s    = ff05::8 Delaying due 9.995s last
			1s    leave ff05::9
			1s    > Done ff05::9
			9.995s > Report ff05::8 answer
			1h    wait
		`},
		"MLDv1, another node answers": {listener.Config{Version: mld.Version1}, `
			0s    join ff05::8
			0s    resume fe80::a
			1s    report ff05::8
			1h    wait
		`},
		"KAME": {listener.Config{Version: mld.Version1, Profile: listener.KAME}, `
			0s    join ff05::8
			0s    resume fe80::a
			10s   > Report ff05::8 answer
			1h    wait
		`},
	} {
		t.Run(name, func(t *testing.T) { scenario(t, s.cfg, s.transcript) })
	}
}

// TestResumeReported: the one before has reported what stands, as far as it is reported at all.
func TestResumeReported(t *testing.T) {
	n := newNode(t, listener.Config{}, &share{1, 1})
	addrs := map[string]bool{"ff05::8": true, "ff02::1": false}
	for addr := range addrs {
		n.do(0, "join", []string{addr})
	}
	n.do(0, "resume", []string{own.String()})
	for addr, want := range addrs {
		if a, ok := n.l.Address(netip.MustParseAddr(addr)); !ok || a.Reported != want {
			t.Errorf("%v: reported is %v, want %v", addr, a.Reported, want)
		}
	}
}

// TestResumeSpread: a thousand that resume at once speak all over the Query Response Interval.
func TestResumeSpread(t *testing.T) {
	const nodes, interval = 1000, 10 * time.Second
	var tenths [10]int
	for i := range nodes {
		n := newNode(t, listener.Config{}, &share{int64(i), nodes})
		n.do(0, "join", []string{"ff05::8"})
		n.do(0, "resume", []string{own.String()})
		due, ok := n.l.NextDeadline()
		if !ok {
			t.Fatal("nothing is due")
		}
		tenths[min(due.Sub(epoch)*10/interval, 9)]++
	}
	for i, n := range tenths {
		if n < 50 || n > 150 {
			t.Errorf("%d in the tenth %d: %s", n, i, fmt.Sprint(tenths))
		}
	}
}
