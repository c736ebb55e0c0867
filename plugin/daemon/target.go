package daemon

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// A target is what a request points at: an interface in a container's namespace, seen from the host's.
type target struct {
	key   api.Attachment
	path  string // of netns: a label
	name  string
	id    interfaceID
	netns *netns.Namespace // nil once an iface has taken it over
	host  *netns.Namespace
}

// target opens what a request points at and takes over its descriptors.
func (d *Daemon) target(r *api.Request) (*target, error) {
	t := &target{key: r.Attachment, path: r.NetnsPath, name: r.IfName}
	if err := t.open(r, d.home.Cookie()); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

func (t *target) open(r *api.Request, home uint64) (err error) {
	netnsFile, hostFile := r.Netns, r.HostNetns
	r.Netns, r.HostNetns = nil, nil
	if t.host, err = netns.FromFile(hostFile); err != nil {
		return errors.Join(types.NewError(types.ErrIOFailure, fmt.Sprintf("the caller's own namespace: %v", err), ""), netnsFile.Close())
	}
	if t.netns, err = netns.FromFile(netnsFile); err != nil {
		return badEnv("CNI_NETNS", r.NetnsPath, err.Error())
	}
	switch c := t.netns.Cookie(); {
	case r.Host && c != t.host.Cookie():
		return badEnv("CNI_NETNS", r.NetnsPath, "is not the host's namespace, where the request says that the interface is")
	case !r.Host && (c == t.host.Cookie() || c == home):
		return badEnv("CNI_NETNS", r.NetnsPath, "is the host's namespace: a container's own is needed")
	}
	t.id.netns = t.netns.Cookie()
	if t.id.index, err = link.Index(t.netns, r.IfName); err != nil {
		return badEnv("CNI_IFNAME", r.IfName, fmt.Sprintf("not found in %s: %v", r.NetnsPath, err))
	}
	return nil
}

func badEnv(variable, value, why string) error {
	return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("%s: %q: %s", variable, value, why), "")
}

// release closes what a request pointed at, but for what an iface has taken over.
func (d *Daemon) release(t *target) {
	if err := t.close(); err != nil {
		d.log.Warn("namespace not closed", "netns", t.id.netns, "err", err)
	}
}

func (t *target) close() error {
	var errs []error
	for _, ns := range []*netns.Namespace{t.netns, t.host} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}
