package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// stream sends a request and passes on what follows the answer, until stop is called.
func (r *rig) stream(request *api.Request) (lines <-chan *api.Line, ended <-chan error, stop func()) {
	r.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r.Cleanup(cancel)
	client, err := api.Dial(ctx, r.runDir)
	if err != nil {
		r.Fatal(err)
	}
	c, e := make(chan *api.Line), make(chan error, 1)
	go func() {
		defer close(e)
		defer client.Close()
		for line, err := range client.Stream(ctx, request) {
			if err != nil {
				e <- err
				return
			}
			select {
			case c <- line:
			case <-ctx.Done():
			}
		}
	}()
	return c, e, func() { cancel(); <-e }
}

// all returns all lines of a stream that ends.
func (r *rig) all(request *api.Request) (list []*api.Line) {
	r.Helper()
	lines, ended, _ := r.stream(request)
	for {
		select {
		case l := <-lines:
			list = append(list, l)
		case err := <-ended:
			if err != nil {
				r.Fatal(err)
			}
			return list
		case <-time.After(patience):
			r.Fatalf("%s does not end", request.Op)
		}
	}
}

func TestList(t *testing.T) {
	r := serve(t)
	if list := r.all(&api.Request{Op: api.OpList}); len(list) != 0 {
		t.Errorf("of no attachments: %v", list)
	}
	pod, _ := r.pod("c1")
	other, _ := r.pod("c2")
	r.add("lab", pod.Node(), settings(t, `"groups": ["%v", "%v"]`, first, second))
	r.add("more", pod.Node(), settings(t, `"groups": ["%v"]`, third))
	r.add("lab", other.Node(), settings(t, ``))
	for _, c := range []struct {
		filter api.Attachment
		want   []string
	}{
		{api.Attachment{}, []string{"lab/c1/eth0 2", "lab/c2/eth0 0", "more/c1/eth0 1"}},
		{api.Attachment{Network: "lab"}, []string{"lab/c1/eth0 2", "lab/c2/eth0 0"}},
		{api.Attachment{ContainerID: "c1"}, []string{"lab/c1/eth0 2", "more/c1/eth0 1"}},
		{api.Attachment{ContainerID: "c"}, []string{"lab/c1/eth0 2", "lab/c2/eth0 0", "more/c1/eth0 1"}},
		{api.Attachment{IfName: "eth"}, nil},
	} {
		var got []string
		for _, l := range r.all(&api.Request{Op: api.OpList, Attachment: c.filter}) {
			a := l.Attachment
			got = append(got, fmt.Sprint(a.Attachment, " ", a.Declared))
			if a.State != api.StateReady || a.KernelReports != api.KernelReportsMute || a.MLDVersion != 1 || a.Bridge != nil ||
				a.Interface.Name != "eth0" || !a.Source.IsLinkLocalUnicast() || a.Since.IsZero() {
				t.Errorf("%+v", a)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: %q, want %q", c.filter, got, c.want)
		}
	}
	pod.Delete()
	netnslab.WaitFor(t, "end of both", patience, func() (bool, string) {
		list := r.all(&api.Request{Op: api.OpList, Attachment: api.Attachment{ContainerID: "c1"}})
		ended := len(list) == 2
		for _, l := range list {
			ended = ended && l.Attachment.State == api.StateEnded && l.Attachment.Reason != ""
		}
		return ended, fmt.Sprint(list)
	})
}

// A watcher's end is noticed, and so is that of the daemon.
func TestWatchEnds(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1")
	before := r.settled()
	lines, _, stop := r.stream(&api.Request{Op: api.OpWatch})
	r.add("lab", pod.Node(), settings(t, `"groups": ["%v"]`, first))
	select {
	case <-lines:
	case <-time.After(patience):
		t.Fatal("no event")
	}
	stop()
	r.del("lab", pod.Node())
	r.wantNoAgents()
	r.wantDescriptors(before)

	_, ended, _ := r.stream(&api.Request{Op: api.OpWatch})
	if err := r.end(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if !api.NotRunning(err) {
			t.Errorf("the daemon has ended: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the daemon has ended, and the stream has not")
	}
}

// A watcher that does not read holds nobody up: it loses events.
func TestSlowWatcher(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1")
	r.add("lab", pod.Node(), settings(t, ``))
	lines, _, stop := r.stream(&api.Request{Op: api.OpWatch})
	defer stop()
	groups := func(round byte) string {
		text := ""
		for i := range 2000 {
			a := netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 12: round, 13: byte(i >> 8), 14: byte(i), 15: 1})
			text += fmt.Sprintf(`{"group": "%v", "deliver": false},`, a)
		}
		return text[:len(text)-1]
	}
	for round := range byte(4) { // each is some 6000 events
		r.add("lab", pod.Node(), settings(t, `"limits": {"groups": 4096}, "groups": [%s]`, groups(round)))
	}
	told, lost := 0, 0
	for lost == 0 {
		select {
		case l := <-lines:
			told++
			if l.Event.Kind == api.EventLost {
				lost = l.Event.Lost
			}
		case <-time.After(patience):
			t.Fatalf("%d events, and none is said to be lost", told)
		}
	}
	if lost < 1000 {
		t.Errorf("%d events are lost", lost)
	}
}

// What cannot be done is answered, and leaves nothing open.
func TestStreamRefused(t *testing.T) {
	r := serve(t)
	before := r.settled()
	file := tempNetns(t)
	_, ended, _ := r.stream(&api.Request{Op: api.OpGroups, HostNetns: file})
	var fault *types.Error
	if err := <-ended; !errors.As(err, &fault) || fault.Code != types.ErrIOFailure {
		t.Errorf("of a namespace that is none: %v", err)
	}
	file.Close()
	r.wantDescriptors(before)
}

// tempNetns is no network namespace.
func tempNetns(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A watcher is told whatever happens to an interface, one event after the other.
func TestWatchEvents(t *testing.T) {
	r := serve(t)
	pod, peer := r.pod("c1")
	w := r.listen(peer)
	lines, _, stop := r.stream(&api.Request{Op: api.OpWatch, Attachment: api.Attachment{Network: "lab"}})
	defer stop()
	var told []string
	want := func(what ...string) { // in this order, with others between
		t.Helper()
		for _, text := range what {
			deadline := time.After(patience)
			for found := false; !found; {
				select {
				case l := <-lines:
					e := l.Event
					got := fmt.Sprint(e.Kind, " ", e.Group, " ", e.Message, e.Record, " ", e.Cause, e.Reason, " ", e.MLDVersion)
					told = append(told, got)
					found = strings.HasPrefix(got, text)
					if !slices.ContainsFunc(e.Attachments, func(a api.Attachment) bool { return a.Network == "lab" }) ||
						e.Interface.Index != pod.Index() || e.Interface.Netns != pod.Node().Path() || e.Time.IsZero() {
						t.Errorf("%+v", e)
					}
				case <-deadline:
					t.Fatalf("not told %q, but %q", text, told)
				}
			}
		}
	}
	auto := `"mldVersion": "auto", "groups": [%s]`
	// Nothing is told before the stream has begun: until then declarations come and go.
	netnslab.WaitFor(t, "first event", patience, func() (bool, string) {
		r.add("lab", pod.Node(), settings(t, auto, fmt.Sprintf(`{"group": "%v", "deliver": false}`, second)))
		r.add("lab", pod.Node(), settings(t, auto, ""))
		select {
		case <-lines:
			return true, ""
		default:
			return false, ""
		}
	})
	r.add("lab", pod.Node(), settings(t, auto, fmt.Sprintf(`{"group": "%v", "deliver": false}`, first)))
	want(fmt.Sprintf("declared %v   0", first), fmt.Sprintf("sent %v ReportV2TO_EX changed 0", first))
	w.ask()
	want("heard invalid IP Query  1", "version invalid IP   1", fmt.Sprintf("sent %v Report answer 0", first))
	for range 2 { // the answer may be due within a moment
		peer.SendPacket(mld.AppendQuery(nil, router, first, mld.Query{Version: mld.Version1, MulticastAddress: first, MaxResponseCode: 30000}))
		peer.SendPacket(mld.AppendReport(nil, router, first))
	}
	want(fmt.Sprintf("suppressed %v   0", first))
	r.add("lab", pod.Node(), settings(t, auto, ""))
	want(fmt.Sprintf("undeclared %v   0", first))
	pod.SetDown()
	want("link invalid IP  down 0")
	pod.SetUp()
	want("link invalid IP  up 0")
	pod.Delete()
	want("ended ")
}
