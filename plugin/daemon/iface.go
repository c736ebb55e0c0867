package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	id     interfaceID
	name   string
	ofHost bool // see target
	netns  *netns.Namespace
	voice  voice
	log    *slog.Logger               // under the name of the first attachment
	agent  *agent.Agent               // nil: none could be started again
	failed error                      // then it says why
	reaped chan struct{}              // closed when the agent has ended and its namespace is let go of
	shown  atomic.Pointer[label]      // how it is called in streams
	link   atomic.Pointer[link.State] // as the agent saw it last

	restoring atomic.Bool // a restore is about to begin, which sees to all that has happened until then

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
func (i *iface) alive() bool { return i.over() == nil }

// over tells why no agent is at work, and returns nil while one is.
func (i *iface) over() error {
	if i.agent == nil {
		return i.failed
	}
	select {
	case <-i.agent.Done():
		return i.agent.Err()
	default:
		return nil
	}
}

// stop has the agent, if there is one, leave everything and end.
func (i *iface) stop(ctx context.Context) error {
	if i.agent == nil {
		return nil
	}
	return i.agent.Stop(ctx)
}

// newIface is the target's interface, with no agent yet. The namespace stays the target's.
func (d *Daemon) newIface(t *target, v voice) *iface {
	i := &iface{
		id: t.id, name: t.name, ofHost: t.ofHost, netns: t.netns, voice: v,
		log: d.about(t.key).With("netns", t.path), reaped: make(chan struct{}),
	}
	i.shown.Store(&label{netns: t.path, attachments: []api.Attachment{t.key}})
	return i
}

// start prepares an agent of the interface, with a configuration that says what is not the target's or the voice's. It
// begins when the caller says so.
func (d *Daemon) start(t *target, v voice, cfg agent.Config) (*iface, error) {
	i := d.newIface(t, v)
	cfg.Netns, cfg.Index = t.netns, t.id.index
	cfg.Listener = listener.Config{
		Profile:                   profiles[v.profile],
		Version:                   versions[v.mldVersion],
		Robustness:                v.robustness,
		UnsolicitedReportInterval: v.interval,
		AlwaysDone:                v.alwaysDone,
	}
	cfg.KernelReports = kernelReports[v.kernelReports]
	cfg.MaxJoined = d.cfg.MaxJoined
	cfg.Logger = i.log
	cfg.Observe = func(e agent.Event) {
		d.observe(i, e)
		switch {
		case e.Kind == agent.EventLink && restarted(e.Before, e.Link) && i.restoring.CompareAndSwap(false, true):
			go d.restore(i)
		case e.Kind == agent.EventEnded:
			go d.reap(i) // and not before: thousands would wait
		}
	}
	a, err := agent.Prepare(cfg)
	if err != nil {
		return nil, err
	}
	i.agent = a
	t.netns = nil // the interface's now
	d.mu.Lock()
	d.interfaces[i.id] = i
	d.mu.Unlock()
	return i, nil
}

// attachError gives an error of attach the code that a runtime can act on.
func attachError(name string, err error) error {
	switch {
	case errors.Is(err, agent.ErrEthernet):
		return types.NewError(api.CodeNotEthernet, fmt.Sprintf("%v: MLD needs a link with multicast, such as veth, macvlan or Ethernet", err), "")
	case errors.Is(err, kernel.ErrTooMany):
		return types.NewError(api.CodeKernelReports, fmt.Sprintf("kernelReports: interface %s: %s", name, endReason(err)), "")
	case errors.Is(err, kernel.ErrMuted):
		return types.NewError(api.CodeKernelReports, fmt.Sprintf("kernelReports: %v", err), "")
	case errors.Is(err, kernel.ErrCannotMute):
		return types.NewError(api.CodeKernelReports, fmt.Sprintf(`kernelReports: "mute": %v: use "auto" or "keep"`, err), "")
	case errors.Is(err, link.ErrGone):
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("interface %s went away during ADD: %v", name, err), "")
	}
	return err
}

// endReason says why there is no listener, with what helps.
func endReason(err error) string {
	if errors.Is(err, kernel.ErrTooMany) {
		return fmt.Sprintf("%v: its kernel speaks for itself: end the program, or start mldd with a higher --max-joined", err)
	}
	return err.Error()
}

// restarted tells whether IPv6 may have begun anew between two states of an interface.
func restarted(before, now link.State) bool {
	return before.Name != "" && now.IPv6 && (!before.IPv6 || before.Restarts != now.Restarts)
}

// restore joins the groups with delivery again after IPv6 has begun anew on an interface.
func (d *Daemon) restore(i *iface) {
	id := i.id
	ctx, cancel := context.WithTimeout(context.Background(), workTimeout)
	defer cancel()
	_, leave, err := d.changing.enter(ctx, id)
	i.restoring.Store(false)
	if err != nil {
		i.log.Warn("groups not joined again", "err", err)
		return
	}
	defer leave()
	var joins []*kernel.Joins
	d.mu.Lock()
	if now := d.interfaces[id]; now != nil { // another listener may have followed, and the namespace of i be closed
		i = now
	}
	for _, a := range d.attachments {
		if a.iface.id == id { // also where its own listener has ended: the kernel may hold what it has joined
			joins = append(joins, a.joins)
		}
	}
	d.mu.Unlock()
	if err := kernel.Restore(i.netns, id.index, joins...); err != nil {
		i.log.Warn("groups not joined again", "err", err)
	}
}

// reap follows the end of an agent, and lets go of the namespace, which would live on with all that is in it.
func (d *Daemon) reap(i *iface) {
	<-i.agent.Done()
	defer close(i.reaped)
	failed := !errors.Is(i.agent.Err(), agent.ErrStopped)
	given := errors.Is(i.agent.Err(), kernel.ErrTooMany) // back to the kernel, which reports what is delivered
	if failed {
		i.log.Warn("listener ended", "err", i.agent.Err())
	}
	d.mu.Lock()
	if d.interfaces[i.id] == i {
		delete(d.interfaces, i.id)
	}
	if failed && !given { // after a stop nobody is attached to it any more, and there may be thousands of others
		for _, a := range d.attachments {
			if a.iface == i { // they stand until their DEL, and hold nothing
				defer d.closeJoins(a.key, a.joins)
			}
		}
	}
	d.mu.Unlock()
	if err := i.netns.Close(); err != nil {
		i.log.Warn("namespace not closed", "err", err)
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
	case <-i.reaped:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("interface %s: its former listener has not ended: %w", i.name, ctx.Err())
	}
}
