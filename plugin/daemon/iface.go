package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// interfaceID identifies an interface as long as it lives: names change, and both numbers are never used twice.
type interfaceID struct {
	netns uint64 // cookie
	index int
}

// An iface is an interface with its agent.
type iface struct {
	id    interfaceID
	name  string
	netns *netns.Namespace
	voice voice
	agent *agent.Agent
	shown atomic.Pointer[label]      // how it is called in streams
	link  atomic.Pointer[link.State] // as the agent saw it last

	// Guarded by Daemon.mu.
	attachments int
	lastID      listener.SubscriberID
}

// voice is the part of the settings that all attachments of an interface have to agree on.
type voice struct {
	mldVersion    string
	profile       string
	kernelReports string
	robustness    int
	interval      time.Duration // 0: the default of the version
	alwaysDone    bool
}

func voiceOf(s *api.Settings) voice {
	return voice{
		mldVersion:    s.MLDVersion,
		profile:       s.Profile,
		kernelReports: s.KernelReports,
		robustness:    s.Robustness,
		interval:      time.Duration(s.UnsolicitedReportInterval),
		alwaysDone:    s.AlwaysDone,
	}
}

// contradiction names the settings in which v differs from what stands, with both values.
func (v voice) contradiction(stands voice) string {
	interval := func(d time.Duration) string {
		if d == 0 {
			return "the default"
		}
		return d.String()
	}
	var texts []string
	for _, c := range []struct {
		key    string
		is, be any
	}{
		{"mldVersion", stands.mldVersion, v.mldVersion},
		{"profile", stands.profile, v.profile},
		{"kernelReports", stands.kernelReports, v.kernelReports},
		{"robustness", stands.robustness, v.robustness},
		{"unsolicitedReportInterval", interval(stands.interval), interval(v.interval)},
		{"alwaysDone", stands.alwaysDone, v.alwaysDone},
	} {
		if c.is != c.be {
			texts = append(texts, fmt.Sprintf("%s: %v here, %v there", c.key, c.be, c.is))
		}
	}
	return strings.Join(texts, "; ")
}

var (
	versions = map[string]mld.Version{
		api.MLDVersionAuto: 0,
		api.MLDVersion1:    mld.Version1,
		api.MLDVersion2:    mld.Version2,
	}
	profiles = map[string]listener.Profile{
		api.ProfileRFC:  listener.RFC,
		api.ProfileKAME: listener.KAME,
	}
	kernelReports = map[string]agent.KernelReports{
		api.KernelReportsAuto: agent.Auto,
		api.KernelReportsMute: agent.Mute,
		api.KernelReportsKeep: agent.Keep,
	}
)

// alive tells whether the agent is still at work.
func (i *iface) alive() bool {
	select {
	case <-i.agent.Done():
		return false
	default:
		return true
	}
}

// start puts an agent to work on the interface, with a configuration that says what is not the target's or the voice's.
func (d *Daemon) start(t *target, v voice, cfg agent.Config) (*iface, error) {
	i := &iface{id: t.id, name: t.name, netns: t.netns, voice: v}
	i.shown.Store(&label{netns: t.path, attachments: []api.Attachment{t.key}})
	cfg.Netns, cfg.Index = t.netns, t.id.index
	cfg.Listener = listener.Config{
		Profile:                   profiles[v.profile],
		Version:                   versions[v.mldVersion],
		Robustness:                v.robustness,
		UnsolicitedReportInterval: v.interval,
		AlwaysDone:                v.alwaysDone,
	}
	cfg.KernelReports = kernelReports[v.kernelReports]
	cfg.Logger = d.log.With("netns", t.id.netns, "ifname", t.name)
	cfg.Observe = func(e agent.Event) {
		d.observe(i, e)
		if e.Kind == agent.EventLink && restarted(e.Before, e.Link) {
			go d.restore(i.id)
		}
	}
	a, err := agent.Start(cfg)
	if err != nil {
		return nil, err
	}
	i.agent = a
	t.netns = nil // the interface's now
	d.mu.Lock()
	d.interfaces[i.id] = i
	d.mu.Unlock()
	go d.reap(i)
	return i, nil
}

// startError gives a failed start the code that a runtime can act on.
func startError(name string, err error) error {
	switch {
	case errors.Is(err, agent.ErrEthernet):
		return types.NewError(api.CodeNotEthernet, fmt.Sprintf("%v: MLD needs a link with multicast, such as veth, macvlan or Ethernet", err), "")
	case errors.Is(err, kernel.ErrMuted):
		return types.NewError(api.CodeKernelReports, fmt.Sprintf("kernelReports: %v", err), "")
	case errors.Is(err, kernel.ErrCannotMute):
		return types.NewError(api.CodeKernelReports, fmt.Sprintf(`kernelReports: "mute": %v: use "auto" or "keep"`, err), "")
	case errors.Is(err, link.ErrGone):
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("interface %s went away during ADD: %v", name, err), "")
	}
	return err
}

// restarted tells whether IPv6 may have begun anew between two states of an interface.
func restarted(before, now link.State) bool {
	return before.Name != "" && now.IPv6 && (!before.IPv6 || before.Restarts != now.Restarts)
}

// restore joins the groups with delivery again after IPv6 has begun anew on an interface.
func (d *Daemon) restore(id interfaceID) {
	ctx, cancel := context.WithTimeout(context.Background(), workTimeout)
	defer cancel()
	leave, err := d.changing.enter(ctx, id)
	if err != nil {
		d.log.Warn("groups not joined again", "netns", id.netns, "ifindex", id.index, "err", err)
		return
	}
	defer leave()
	joins := make(map[api.Attachment]*kernel.Joins)
	d.mu.Lock()
	for key, a := range d.attachments {
		if a.iface.id == id {
			joins[key] = a.joins
		}
	}
	d.mu.Unlock()
	for key, j := range joins {
		if err := j.Restore(); err != nil {
			d.log.Warn("groups not joined again", "attachment", key, "err", err)
		}
	}
}

// reap waits for the end of an agent and lets go of the namespace, which would live on with all that is in it.
func (d *Daemon) reap(i *iface) {
	<-i.agent.Done()
	failed := !errors.Is(i.agent.Err(), agent.ErrStopped)
	if failed {
		d.log.Warn("listener ended", "netns", i.id.netns, "ifname", i.name, "err", i.agent.Err())
	}
	d.mu.Lock()
	if d.interfaces[i.id] == i {
		delete(d.interfaces, i.id)
	}
	for _, a := range d.attachments {
		if failed && a.iface == i { // they stand until their DEL, and hold nothing
			defer d.closeJoins(a.key, a.joins)
		}
	}
	d.mu.Unlock()
	if err := i.netns.Close(); err != nil {
		d.log.Warn("namespace not closed", "netns", i.id.netns, "err", err)
	}
}

// end waits until an agent that is on its way out has let go of the interface.
func (i *iface) end(ctx context.Context) error {
	i.agent.Close()
	return i.ended(ctx)
}

// release is end for an agent that another one is to follow, and returns its mute, which may be nil.
func (i *iface) release(ctx context.Context) (*kernel.Mute, error) {
	mute := i.agent.Release()
	err := i.ended(ctx)
	if err != nil && mute != nil {
		err = errors.Join(err, mute.Close())
	}
	return mute, err
}

func (i *iface) ended(ctx context.Context) error {
	select {
	case <-i.agent.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("interface %s: its former listener has not ended: %w", i.name, ctx.Err())
	}
}
