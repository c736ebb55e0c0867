package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// A survey looks at interfaces and at the bridges that they are plugged into.
type survey struct {
	host   *netns.Namespace                       // of the bridges
	tables map[interfaceID]map[int][]bridge.Entry // each bridge's MDB, which is read once, by port
}

func newSurvey(host *netns.Namespace) *survey {
	return &survey{host: host, tables: make(map[interfaceID]map[int][]bridge.Entry)}
}

// A sight is what is seen of an interface: the agent first and the bridge afterwards, so that what was reported is
// there.
type sight struct {
	ended  error // why the listener is gone, and nothing else is known
	state  agent.State
	groups []agent.Group
	port   *port // nil: not the port of a bridge
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
	seen := &sight{}
	var err error
	if seen.state, err = i.agent.State(ctx); err == nil {
		seen.groups, err = i.agent.Groups(ctx)
	}
	if err != nil {
		if i.alive() {
			return nil, fmt.Errorf("interface %s: %w", i.name, err)
		}
		return &sight{ended: i.agent.Err()}, nil
	}
	seen.port, err = s.port(i)
	return seen, err
}

// port looks at the bridge port that an interface is plugged into.
func (s *survey) port(i *iface) (*port, error) {
	p, err := findPort(i.netns, s.host, i.id.index)
	if errors.Is(err, bridge.ErrNotPort) {
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
