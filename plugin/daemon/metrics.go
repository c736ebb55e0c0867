package daemon

import (
	"context"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// maxAsked is how many agents are asked for their state at once when metrics are collected.
const maxAsked = 16

// metrics describes what is collected. Where RFC 8652 (ietf-igmp-mld) has a name for something, it is this name: received,
// sent and error below statistics, groups-count.
type metrics struct {
	daemon *Daemon

	build, attachments, interfaces                    *prometheus.Desc // of the daemon
	received, sent, rejected                          *prometheus.Desc // of an interface, as all below
	suppressed, muted, sendErrors, groups, unreported *prometheus.Desc
}

// Metrics returns what Prometheus may collect: a few series for the daemon, and for each interface some that are labelled
// with its first attachment. None has a label that a packet or an application can choose.
func (d *Daemon) Metrics() prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("mld_"+name, help, labels, nil)
	}
	of := func(name, help string, labels ...string) *prometheus.Desc {
		return desc(name, help, append([]string{"network", "container", "interface"}, labels...)...)
	}
	return &metrics{
		daemon:      d,
		build:       desc("build_info", "Version of mldd; always 1.", "version"),
		attachments: desc("attachments", "Attachments."),
		interfaces:  desc("interfaces", "Interfaces with a listener."),
		received:    of("messages_received_total", "MLD messages heard and accepted.", "type"),
		sent:        of("messages_sent_total", "MLD messages sent.", "type"),
		rejected:    of("messages_error_total", "MLD messages heard and not accepted.", "reason"),
		suppressed:  of("reports_suppressed_total", "MLDv1 Reports left out because another node's was heard."),
		muted:       of("kernel_messages_muted_total", "MLD messages of the kernel that were dropped."),
		sendErrors:  of("send_errors_total", "MLD messages that the interface did not take."),
		groups:      of("groups", "Multicast addresses that are listened to and reportable."),
		unreported:  of("groups_unreported", "Reportable multicast addresses that are listened to, and have not been reported yet."),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.build, m.attachments, m.interfaces, m.received, m.sent, m.rejected,
		m.suppressed, m.muted, m.sendErrors, m.groups, m.unreported} {
		descs <- d
	}
}

// Collect implements prometheus.Collector. An interface that does not answer in time is left out.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	d := m.daemon
	d.mu.Lock()
	attachments, interfaces := len(d.attachments), len(d.interfaces)
	first := make(map[*iface]api.Attachment)
	for _, i := range d.interfaces {
		// One on its way out keeps the name of its last attachment, which another interface may have by now.
		if names := i.shown.Load().attachments; i.attachments > 0 && len(names) > 0 {
			first[i] = names[0]
		}
	}
	d.mu.Unlock()
	gauge(out, m.build, 1, d.cfg.Version)
	gauge(out, m.attachments, attachments)
	gauge(out, m.interfaces, interfaces)

	ctx, cancel := context.WithTimeout(context.Background(), workTimeout)
	defer cancel()
	var asked sync.WaitGroup
	places := make(chan struct{}, maxAsked)
	for i, name := range first {
		places <- struct{}{}
		asked.Go(func() {
			defer func() { <-places }()
			if s, err := i.agent.State(ctx); err == nil {
				m.collect(out, s, name)
			}
		})
	}
	asked.Wait()
}

// collect tells of one interface.
func (m *metrics) collect(out chan<- prometheus.Metric, s agent.State, of api.Attachment) {
	name := []string{of.Network, of.ContainerID, of.IfName}
	count := func(desc *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), append(slices.Clip(name), labels...)...)
	}
	count(m.received, s.Counters.QueriesHeard, "query")
	count(m.received, s.Counters.ReportsHeard, "report")
	count(m.sent, s.Counters.ReportsSent, "report")
	count(m.sent, s.Counters.DonesSent, "done")
	for reason, n := range s.Rejected {
		if n > 0 {
			count(m.rejected, n, mld.Reason(reason).String())
		}
	}
	count(m.suppressed, s.Counters.Suppressed)
	count(m.muted, s.Muted)
	count(m.sendErrors, s.SendErrors)
	groups, unreported := 0, 0
	for _, a := range s.Addresses {
		if a.Reportable {
			groups++
			if !a.Reported {
				unreported++
			}
		}
	}
	gauge(out, m.groups, groups, name...)
	gauge(out, m.unreported, unreported, name...)
}

func gauge(out chan<- prometheus.Metric, desc *prometheus.Desc, n int, labels ...string) {
	out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), labels...)
}
