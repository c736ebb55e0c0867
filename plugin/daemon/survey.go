package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// A survey looks at interfaces and at the bridges that they are plugged into.
type survey struct {
	host   *netns.Namespace                       // of the bridges
	whose  string                                 // the host is, in words
	tables map[interfaceID]map[int][]bridge.Entry // each bridge's MDB, which is read once, by port
}

// newSurvey looks for bridges in the namespace host, which is mldd's or that of mldctl.
func newSurvey(host *netns.Namespace, whose string) *survey {
	return &survey{host: host, whose: whose, tables: make(map[interfaceID]map[int][]bridge.Entry)}
}

// A sight is what is seen of an interface: the agent first and the bridge afterwards, so that what was reported is
// there.
type sight struct {
	ended  error // why the listener is gone, and nothing else is known
	state  agent.State
	groups []agent.Group
	port   *port  // nil: not the port of a bridge
	unseen string // why there may be a bridge though there is no port; in words
	pulled string // why there should be a port though there is none; in words
}

type port struct {
	bridge, name string
	index        int
	state        bridge.State
	entries      []bridge.Entry
}

func (s *survey) look(ctx context.Context, i *iface) (*sight, error) {
	ctx, cancel := context.WithTimeout(ctx, workTimeout)
	defer cancel()
	if err := i.over(); err != nil {
		return &sight{ended: err}, nil
	}
	seen := &sight{}
	var err error
	if seen.state, err = i.agent.State(ctx); err == nil {
		seen.groups, err = i.agent.Groups(ctx)
	}
	if err == nil {
		seen.port, err = s.port(i)
	}
	switch {
	case err == nil:
		return seen, nil
	case errors.Is(err, errElsewhere):
		seen.unseen, err = s.elsewhere(seen.state.Link.Name)
		return seen, err
	case errors.Is(err, link.ErrGone): // and its listener ends in a moment
		return &sight{ended: err}, nil
	case !i.alive():
		return &sight{ended: i.agent.Err()}, nil
	}
	return nil, fmt.Errorf("interface %s: %w", i.name, err)
}

// elsewhere says where the bridge of an interface was looked for, and what helps.
func (s *survey) elsewhere(name string) (string, error) {
	where, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", s.host.File().Fd()))
	return fmt.Sprintf("bridge not seen: it is looked for in %s, %s namespace, and %s leads to another one: run mldctl in the bridge's",
		where, s.whose, name), err
}

// port looks at the bridge port that an interface is plugged into, and returns nil if there is none. An error that wraps
// errElsewhere says that there may be one in another namespace.
func (s *survey) port(i *iface) (*port, error) {
	p, err := findPort(i.netns, s.host, i.id.index)
	if errors.Is(err, bridge.ErrNotPort) && (!errors.Is(err, errElsewhere) || i.ofHost) { // the host's may lead elsewhere
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer p.Close()
	state, err := p.State()
	if errors.Is(err, bridge.ErrNotPort) { // in the meantime
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	key := interfaceID{p.Netns().Cookie(), p.BridgeIndex}
	table, ok := s.tables[key]
	if !ok {
		entries, err := bridge.Dump(p.Netns(), p.BridgeIndex)
		if err != nil {
			return nil, err
		}
		table = make(map[int][]bridge.Entry)
		for _, e := range entries {
			table[e.Port] = append(table[e.Port], e)
		}
		s.tables[key] = table
	}
	return &port{bridge: p.Bridge, name: p.Name, index: p.Index, state: state, entries: table[p.Index]}, nil
}
