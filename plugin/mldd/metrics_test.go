package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// scrape reads metrics as Prometheus does, from a unix socket.
func scrape(t *testing.T, socket string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://mldd/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v: %s", answer.Status, err, text)
	}
	return text
}

// series lists the series of ours, such as `mld_groups{container="c1"} 2`, as Prometheus' own parser reads them.
func series(t *testing.T, text []byte) []string {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	list := []string{}
	for name, family := range families {
		if !strings.HasPrefix(name, "mld_") {
			continue
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%s", l.GetName(), l.GetValue()))
			}
			value := m.GetGauge().GetValue() + m.GetCounter().GetValue()
			list = append(list, fmt.Sprintf("%s{%s} %v", name, strings.Join(labels, ","), value))
		}
	}
	slices.Sort(list)
	return list
}

// TestMetrics: what is counted is what is seen on the wire, under names and in a form that Prometheus takes.
func TestMetrics(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "m") // the path of a socket has 107 bytes
	p := start(t, "-metrics", socket)
	peer, pod := p.lab.Veth(p.lab.Node("peer"), "eth0", p.lab.Node("c1"), "eth0")
	pod.LinkLocal()
	if diff := cmp.Diff([]string{"mld_attachments{} 0", "mld_build_info{version=devel} 1", "mld_interfaces{} 0"},
		series(t, scrape(t, socket))); diff != "" {
		t.Error(diff)
	}

	c := peer.Capture(netnslab.MLD)
	p.add(pod.Node(), `"ff05::1:1", {"group": "ff05::1:2", "deliver": false}`)
	bad := mld.AppendQuery(nil, netip.MustParseAddr("fe80::99"), mld.AllNodes, mld.Query{Version: mld.Version1, MaxResponseCode: 10})
	bad[7] = 2 // the hop limit, which no checksum covers
	peer.SendPacket(bad)
	peer.SendPacket(mld.AppendQuery(nil, netip.MustParseAddr("fe80::99"), mld.AllNodes, mld.Query{Version: mld.Version1, MaxResponseCode: 10}))
	of := func(name, labels, value string) string {
		return fmt.Sprintf("mld_%s{container=c1,interface=eth0,network=lab%s} %s", name, labels, value)
	}
	netnslab.WaitFor(t, "metrics", patience, func() (bool, string) {
		reports := 0
		for _, f := range c.Frames() {
			if !f.Outgoing && f.ICMPv6() == 131 {
				reports++
			}
		}
		got := series(t, scrape(t, socket))
		return containsAll(got, of("messages_sent_total", ",type=report", fmt.Sprint(reports)), of("messages_received_total", ",type=query", "1"),
			of("messages_error_total", ",reason=hop_limit", "1"), of("groups_unreported", "", "0"), "mld_attachments{} 1", "mld_interfaces{} 1",
		), fmt.Sprint(reports, " Reports seen; ", strings.Join(got, "\n"))
	})
	text := scrape(t, socket)
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil || slices.ContainsFunc(problems, func(p promlint.Problem) bool { return strings.HasPrefix(p.Metric, "mld_") }) {
		t.Errorf("%v, %v", problems, err)
	}
	if !bytes.Contains(text, []byte("\nprocess_resident_memory_bytes ")) {
		t.Error("no metrics of the process")
	}

	before := p.status().PID
	if err := p.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	netnslab.WaitFor(t, "the next worker", patience, func() (bool, string) {
		now := p.status()
		return now.PID != before, fmt.Sprint(now.PID)
	})
	netnslab.WaitFor(t, "metrics of the next worker", patience, func() (bool, string) {
		got := series(t, scrape(t, socket))
		return containsAll(got, "mld_attachments{} 1"), strings.Join(got, "\n")
	})
}

func containsAll(list []string, want ...string) bool {
	return !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(list, w) })
}

// TestMetricsAddress: a daemon that cannot serve what it was asked to does not start.
func TestMetricsAddress(t *testing.T) {
	lab := netnslab.New(t)
	for _, address := range []string{"localhost:99999", "/nonexistent/socket"} {
		out, err := command(t, lab.Host(), "-run-dir", t.TempDir(), "-metrics", address).CombinedOutput()
		if exitCode(err) != exitFailure || !strings.Contains(string(out), "--metrics "+address+": must be HOST:PORT") {
			t.Errorf("%s: %v: %s", address, err, out)
		}
	}
}

// TestMetricsConnections: whoever connects, and asks nothing, does not use up the daemon's descriptors.
func TestMetricsConnections(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "m")
	l, err := listenMetrics(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveMetrics(ctx, l, prometheus.NewGauge(prometheus.GaugeOpts{Name: "one"}), slog.New(slog.DiscardHandler))
	}()
	defer func() { stop(); <-served }()
	dial := func() net.Conn {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	ask := func(conn net.Conn) {
		t.Helper()
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: mldd\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	answer := func(conn net.Conn) {
		t.Helper()
		if n, err := conn.Read(make([]byte, 1000)); n == 0 {
			t.Fatal(err)
		}
	}
	var silent []net.Conn
	for range maxMetricsClients {
		silent = append(silent, dial())
	}
	last := silent[len(silent)-1]
	ask(last)
	answer(last)
	more, answered := dial(), make(chan struct{})
	ask(more)
	go func() {
		defer close(answered)
		if n, err := more.Read(make([]byte, 1)); n == 0 {
			t.Error(err)
		}
	}()
	for range 100 { // in which it would have had its own answer
		ask(last)
		answer(last)
	}
	select {
	case <-answered:
		t.Errorf("client %d was served", maxMetricsClients+1)
	default:
	}
	silent[0].Close()
	<-answered
}
