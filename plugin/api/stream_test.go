package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// serveLines reads a request, answers it and sends lines.
func serveLines(t *testing.T, answer *Answer, lines ...*Line) *Client {
	t.Helper()
	c, conn := pair(t)
	go func() {
		r, err := ReadRequest(conn)
		if err != nil {
			t.Error(err)
			return
		}
		r.Close()
		if err := WriteAnswer(conn, answer); err != nil {
			t.Error(err)
		}
		for _, l := range lines {
			if l == nil {
				conn.Close()
				return
			}
			if err := WriteLine(conn, l); err != nil {
				t.Error(err)
			}
		}
	}()
	return c
}

func collect(ctx context.Context, c *Client) (lines []*Line, err error) {
	for l, e := range c.Stream(ctx, &Request{Op: OpGroups}) {
		if e != nil {
			return lines, e
		}
		lines = append(lines, l)
	}
	return lines, nil
}

func TestStream(t *testing.T) {
	group := &Line{Group: &GroupStatus{
		Interface: Interface{Netns: "/run/netns/c1", Cookie: 7, Index: 2, Name: "eth0"}, Attachments: []Attachment{{"lab", "c1", "eth0"}},
		Group:    netip.MustParseAddr("ff05::1"),
		Wanted:   []Want{{By: ByKernel, Filter: Filter{Mode: Include, Sources: []netip.Addr{netip.MustParseAddr("fd00::1")}}}},
		Reported: &Filter{}, ReportedBy: ByListener,
		MDB:   &MDB{Mode: Include, Expires: Duration(time.Minute)},
		Marks: []Mark{NewMark(MarkNotInMDB, "why")},
	}}
	event := &Line{Event: &Event{Time: time.Now().Round(0), Kind: EventLost, Lost: 3}}
	c := serveLines(t, &Answer{}, group, event, &Line{End: true})
	lines, err := collect(background(t), c)
	want := []*Line{group, event}
	for _, l := range lines {
		l.V = 0
	}
	if diff := cmp.Diff(want, lines, cmpopts.EquateComparable(netip.Addr{})); err != nil || diff != "" {
		t.Errorf("%v, (-want +got):\n%s", err, diff)
	}
}

func TestStreamEnds(t *testing.T) {
	fault := types.NewError(types.ErrTryAgainLater, "not now", "")
	line := &Line{End: false, Event: &Event{Kind: EventLost}}
	for name, c := range map[string]struct {
		answer *Answer
		lines  []*Line
		want   int
		is     func(error) bool
	}{
		"refused": {&Answer{Error: fault}, nil, 0, func(err error) bool { return errors.As(err, new(*types.Error)) }},
		"failed":  {&Answer{}, []*Line{line, {Error: fault}}, 1, func(err error) bool { return errors.As(err, new(*types.Error)) }},
		"gone":    {&Answer{}, []*Line{line, line, nil}, 2, NotRunning},
	} {
		t.Run(name, func(t *testing.T) {
			lines, err := collect(background(t), serveLines(t, c.answer, c.lines...))
			if len(lines) != c.want || !c.is(err) {
				t.Errorf("%d lines and %v", len(lines), err)
			}
		})
	}
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(background(t))
		defer cancel()
		n := 0
		for _, err := range serveLines(t, &Answer{}, line).Stream(ctx, &Request{Op: OpWatch}) {
			switch n++; n {
			case 1:
				cancel() // while the next line is waited for, or before
			case 2:
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			}
		}
		if n != 2 {
			t.Errorf("%d lines", n)
		}
	})
	t.Run("left early", func(t *testing.T) {
		for range serveLines(t, &Answer{}, line).Stream(background(t), &Request{Op: OpWatch}) {
			break
		}
	})
}

// The keys of the JSON are a promise to those who read it.
func TestStreamKeys(t *testing.T) {
	keys := func(v any) (list []string) {
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !f.Anonymous {
				list = append(list, name)
			}
		}
		slices.Sort(list)
		return list
	}
	for _, c := range []struct {
		v    any
		want string
	}{
		{Line{}, "attachment end error event group v"},
		{Interface{}, "ifindex ifname netns netnsCookie"},
		{AttachmentStatus{}, "bridge bridgeReason containerID declared ifname interface kernelReports mldVersion mldVersionReason " +
			"mldVersionUntil muted network querier reason reported robustness since source state wanted"},
		{Querier{}, "address heard mldVersion"},
		{Bridge{}, "forwarding mldVersion name port querier snooping"},
		{Filter{}, "mode omitted sources"},
		{GroupStatus{}, "attachments group interface marks mdb reported reportedBy wanted"},
		{Want{}, "attachment by deliver mode omitted sources"},
		{MDB{}, "blocked expires mode omitted permanent sources"},
		{Mark{}, "code fault text"},
		{Event{}, "attachment attachments bridge cause filter from group interface kind lost maxDelay message mldVersion port reason " +
			"record sources time"},
	} {
		if got := strings.Join(keys(c.v), " "); got != c.want {
			t.Errorf("%T: keys %s\nwant %s", c.v, got, c.want)
		}
	}
}

// What is not known is left out, and never an address that is none.
func TestStreamLeavesOut(t *testing.T) {
	for want, v := range map[string]any{
		`{"time":"0001-01-01T00:00:00Z","kind":""}`:                                Event{},
		`{"name":"","port":"","forwarding":false,"snooping":false,"mldVersion":0}`: Bridge{},
	} {
		if text, err := json.Marshal(v); err != nil || string(text) != want {
			t.Errorf("%s, %v, want %s", text, err, want)
		}
	}
}
