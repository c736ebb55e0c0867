package daemon

import (
	"errors"
	"fmt"
	"sync"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// A target is what a request points at: an interface in a container's namespace, seen from the host's.
type target struct {
	key    api.Attachment
	path   string // of netns: a label
	name   string
	ofHost bool // attached on purpose in a namespace that is no container's
	id     interfaceID
	netns  *netns.Namespace // nil once an iface has taken it over
	kept   *netns.Namespace // the same, which stays the target's; nil unless keep was called
	host   *netns.Namespace
	links  *link.Lookup // in netns
	link   link.Found

	// Of findPort.
	looking sync.WaitGroup
	plug    *plug        // nil: none was found, or looked for
	port    *bridge.Port // nil: it is not listened to
}

// target opens what a request points at and takes over its descriptors.
func (d *Daemon) target(r *api.Request) (*target, error) {
	t := &target{key: r.Attachment, path: r.NetnsPath, name: r.IfName, ofHost: r.Host}
	if err := t.open(r, d.home); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

func (t *target) open(r *api.Request, home *netns.Namespace) (err error) {
	netnsFile, hostFile := r.Netns, r.HostNetns
	r.Netns, r.HostNetns = nil, nil
	if t.host, err = home.Sibling(hostFile); err != nil {
		return errors.Join(types.NewError(types.ErrIOFailure, fmt.Sprintf("the caller's own namespace: %v", err), ""), netnsFile.Close())
	}
	if t.netns, err = netns.FromFile(netnsFile, func() (err error) {
		t.links, err = link.NewLookup()
		return err
	}); err != nil {
		return badEnv("CNI_NETNS", r.NetnsPath, err.Error())
	}
	switch c := t.netns.Cookie(); {
	case r.Host && c != t.host.Cookie():
		return badEnv("CNI_NETNS", r.NetnsPath, "is not the host's namespace, where the request says that the interface is")
	case !r.Host && (c == t.host.Cookie() || c == home.Cookie()):
		return badEnv("CNI_NETNS", r.NetnsPath, "is the host's namespace: a container's own is needed")
	}
	t.id.netns = t.netns.Cookie()
	t.link, err = t.links.ByName(r.IfName)
	if errors.Is(err, link.ErrGone) {
		return badEnv("CNI_IFNAME", r.IfName, "not found in "+r.NetnsPath)
	}
	if err != nil {
		return badEnv("CNI_IFNAME", r.IfName, fmt.Sprintf("not found in %s: %v", r.NetnsPath, err))
	}
	t.id.index = t.link.Index
	return nil
}

// keep makes renew possible.
func (t *target) keep() error {
	return t.netns.Do(func() (err error) {
		t.kept, err = netns.Current()
		return err
	})
}

// renew opens the namespace again if an iface has taken it over, and may have closed it.
func (t *target) renew() error {
	if t.netns != nil {
		return nil
	}
	return t.kept.Do(func() (err error) {
		t.netns, err = netns.Current()
		return err
	})
}

func badEnv(variable, value, why string) error {
	return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("%s: %q: %s", variable, value, why), "")
}

// release closes what a request pointed at, but for what an iface has taken over.
func (d *Daemon) release(t *target) {
	if err := t.close(); err != nil {
		d.about(t.key).Warn("namespace not closed", "netns", t.path, "err", err)
	}
}

func (t *target) close() error {
	t.looking.Wait()
	var errs []error
	if t.port != nil {
		errs = append(errs, t.port.Close())
	}
	for _, ns := range []*netns.Namespace{t.netns, t.kept, t.host} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	if t.links != nil {
		errs = append(errs, t.links.Close())
	}
	return errors.Join(errs...)
}
