package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// findPort finds the bridge port of an interface that is about to be attached, notes it in the target, and listens to what
// becomes of it, if that is to be waited for; looking ends when it is done. Where there is none yet, which waitReady will
// tell, nothing is noted.
func (t *target) findPort(s *api.Settings) {
	own := t.netns // which an iface takes over
	t.looking.Go(func() {
		port, err := portOf(t.link, t.links, own, t.host)
		if err != nil {
			return
		}
		t.plug = &plug{Bridge: port.Bridge, Port: port.Name}
		if w := s.Ready.Wait; w == api.WaitNone || w == api.WaitReport || len(s.Groups) == 0 || port.Listen() != nil {
			_ = port.Close()
			return
		}
		t.port = port
	})
}

// waitReady waits until the declared groups of an attachment are forwarded, or reported, as the settings ask. If
// the time is up, an "auto" is degraded and says why; what was asked for by name is an error. The port is that of
// findPort.
func (d *Daemon) waitReady(ctx context.Context, a *attachment, host *netns.Namespace, port *bridge.Port) (degraded string, err error) {
	ready, groups := a.settings.Ready, addrs(a.settings)
	if ready.Wait == api.WaitNone || len(groups) == 0 {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(ready.Timeout))
	defer cancel()

	if err = a.waitFor(ctx, ready.Wait, host, port, groups); err == nil {
		return "", nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, errOvertaken) {
		return "", cause
	}
	verdict := "not ready: " + reason(err)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		verdict = fmt.Sprintf("not ready after %v: %s", ready.Timeout, reason(err))
	}
	if ready.Wait == api.WaitAuto {
		return verdict, nil
	}
	return "", types.NewError(api.CodeNotReady, fmt.Sprintf("ready.wait %q: %s", ready.Wait, verdict), "")
}

// maxReason is how many bytes of a reason are told. It may name thousands of groups, and an answer has api.MaxLine.
const maxReason = 4096

func reason(err error) string {
	text := err.Error()
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "..."
	}
	return text
}

func (a *attachment) waitFor(ctx context.Context, wait string, host *netns.Namespace, port *bridge.Port, groups []netip.Addr) (err error) {
	if wait == api.WaitReport {
		return a.iface.agent.WaitReported(ctx, groups...)
	}
	if port == nil {
		if port, err = a.port(host); errors.Is(err, bridge.ErrNotPort) && wait == api.WaitAuto {
			return a.iface.agent.WaitReported(ctx, groups...)
		}
		if err != nil {
			return err
		}
		defer port.Close()
	}
	s, err := port.State()
	if err != nil {
		return err
	}
	switch {
	case wait == api.WaitAuto && !(s.Snooping && s.Querier): // B1: it floods, and keeps no promise about entries
		return a.iface.agent.WaitReported(ctx, groups...)
	case !s.Snooping:
		return fmt.Errorf("bridge %s: snooping is off, so there is no entry to wait for: switch it on, or wait for the report", port.Bridge)
	}
	return a.withObstacle(port.WaitFlows(ctx, flows(a.settings)...))
}

// withObstacle adds to an error about missing entries what keeps the groups from being reported, if something does. A
// bridge also makes an entry because of a Report from "::" (B6), so that an obstacle is none while there is no error.
func (a *attachment) withObstacle(err error) error {
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), workTimeout)
	defer cancel()
	s, stateErr := a.iface.agent.State(ctx)
	if stateErr != nil {
		return errors.Join(stateErr, err)
	}
	if obstacle := s.Link.Obstacle(); obstacle != "" {
		return fmt.Errorf("interface %s: %s: %w", s.Link.Name, obstacle, err)
	}
	return err
}

// port finds the bridge port that the interface is plugged into. Where there was one and is none any more, the error is no
// [bridge.ErrNotPort].
func (a *attachment) port(host *netns.Namespace) (*bridge.Port, error) {
	port, err := findPort(a.iface.netns, host, a.iface.id.index)
	if a.plug != nil && errors.Is(err, bridge.ErrNotPort) && !errors.Is(err, errElsewhere) {
		return nil, errors.New(a.plug.pulled())
	}
	return port, err
}

// check proves that the declared groups of an attachment are forwarded: the listener is alive, the groups are
// reported, and the bridge has entries for them or floods. With sources an entry for each is one, and so is one for any
// source, which is all there is of MLDv1 or when an application wants the group from any source. What an application
// has joined by itself is not judged.
func (d *Daemon) check(ctx context.Context, r *api.Request) error {
	a := d.lookup(r.Attachment)
	if a == nil {
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf(
			"attachment %v: mldd does not know it: its ADD was never seen, or its interface was gone when mldd came back: add the container again", r.Attachment), "")
	}
	t, err := d.target(r)
	if err != nil {
		return err
	}
	defer d.release(t)
	if a.iface.id != t.id {
		return types.NewError(api.CodeNotReady, fmt.Sprintf(
			"attachment %v: interface %s is not the one that was attached: it was made anew, or is in another namespace: add the container again", a.key, a.key.IfName), "")
	}
	if !a.settings.Covers(*r.Settings) { // the container may have asked for more than its network's configuration
		return types.NewError(api.CodeNotReady, fmt.Sprintf("attachment %v: was added with other settings (%s): add the container again",
			a.key, difference(a.settings, r.Settings)), "")
	}
	if err := a.iface.over(); err != nil {
		return types.NewError(api.CodeNotReady, fmt.Sprintf("attachment %v: the listener has ended: %s: add the container again", a.key, endReason(err)), "")
	}
	ctx, cancel := context.WithTimeout(ctx, checkGrace)
	defer cancel()
	if err := a.forwarded(ctx, t.host); err != nil {
		return types.NewError(api.CodeNotReady, fmt.Sprintf("attachment %v: %s", a.key, reason(err)), "")
	}
	return nil
}

// difference names what of the wanted settings an attachment does not have.
func difference(has, wanted *api.Settings) string {
	var texts []string
	if is, be := voiceOf(has), voiceOf(wanted); is != be {
		texts = append(texts, be.contradiction(is))
	}
	if has.Ready != wanted.Ready {
		texts = append(texts, "ready")
	}
	var groups []netip.Addr
	for _, g := range wanted.Groups {
		alone := *has
		if alone.Groups = []api.Group{g}; !has.Covers(alone) {
			groups = append(groups, g.Addr)
		}
	}
	if len(groups) > 0 {
		texts = append(texts, fmt.Sprintf("groups: %v", groups))
	}
	return strings.Join(texts, "; ")
}

// checkGrace is the time that CHECK gives a group to be reported and entered: right after ADD it may still be on
// its way.
const checkGrace = time.Second

func (a *attachment) forwarded(ctx context.Context, host *netns.Namespace) error {
	groups := addrs(a.settings)
	s, err := a.iface.agent.State(ctx)
	if err != nil {
		return err
	}
	if !s.Link.Up {
		return fmt.Errorf("interface %s: %s", s.Link.Name, s.Link.Obstacle())
	}
	port, err := a.port(host)
	unplugged := errors.Is(err, bridge.ErrNotPort)
	if err != nil && !unplugged {
		return err
	}
	if !unplugged {
		defer port.Close()
	}
	if err := a.iface.agent.WaitReported(ctx, groups...); err != nil {
		return err
	}
	if unplugged || len(groups) == 0 {
		return nil
	}
	state, err := port.State()
	if err != nil {
		return err
	}
	switch {
	case !state.Forwarding:
		return fmt.Errorf("%s forwards nothing: is bridge %s up, and the port's state forwarding?", port, port.Bridge)
	case !state.Snooping || !state.Querier: // B1: floods; the entry rightly expires
		return nil
	}
	return port.WaitFlows(ctx, flows(a.settings)...)
}
